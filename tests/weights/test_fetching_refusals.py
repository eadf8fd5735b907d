"""What a machine that lacks layers does not take: lies, other versions, flipped bits; and what it says of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from tests.support.checksum import make_checksum_model
from tests.support.pieces import carry, flip
from tests.support.suppliers import (
    FIRST,
    HOST,
    LAYERS,
    MEGABYTE,
    MIDDLE,
    all_units,
    at,
    check_whole,
    fetcher,
    hashed,
    heavy_toy,
    lab_ref,
    quiet,
    rot,
    served,
    source,
    studio,
)
from together.cluster_types import Blob, Endpoint, Source, UnitDigest, UnitRequest
from together.errors import BrokenModel, LoadFailed
from together.models.manifest import describe
from together.models.names import layer_unit
from together.models.reading import read_unit
from together.models.same_words import own_tokenizer, tokenizer_digest
from together.ring import rpc
from together.types import ModelRef
from together.weights.part import DiskFull
from together.weights.store import Store


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return heavy_toy(tmp_path / "studio")


# --- wrong bytes ------------------------------------------------------------------------------------------------------


async def test_a_bit_that_flipped_on_the_sources_disk_is_refused_by_name(tmp_path: Path, toy: Path) -> None:
    await hashed(tmp_path / "studio", toy)
    unit = describe(toy).units[layer_unit(2)]
    rot(toy / "model.safetensors", unit.pieces[0].start + 5)
    async with studio(tmp_path) as link:
        with pytest.raises(LoadFailed) as failed:
            await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), FIRST, (source(at(link.port), toy),), quiet)
    text = str(failed.value)
    assert "node laptop lacks layers 2:3 of lab/heavy" in text
    assert f"{HOST}:{link.port} gave bytes that do not match" in text
    assert f"{unit.name} of lab/heavy is broken: its sha256 is" in text
    assert len({word.strip(",;") for word in text.split() if len(word.strip(",;")) == 64}) == 2  # both hashes
    folder = Store(tmp_path / "laptop").folder(lab_ref(toy).fingerprint)
    assert not list(folder.glob(f"{unit.name}*"))


async def test_a_machine_with_good_bytes_helps_out(tmp_path: Path, toy: Path) -> None:
    heavy_toy(tmp_path / "tower")
    await hashed(tmp_path / "studio", toy)
    rot(toy / "model.safetensors", describe(toy).units["embed.safetensors"].pieces[0].start)
    good = tmp_path / "tower" / "models" / "lab" / "heavy"
    async with studio(tmp_path) as bad, served(tmp_path / "tower") as tower:
        sources = (source(at(bad.port), toy), source(tower, toy))
        folder = await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), FIRST, sources, quiet)
    check_whole(folder, good, FIRST)


async def test_a_bit_that_flipped_in_a_part_costs_a_new_start_of_the_unit(tmp_path: Path, toy: Path) -> None:
    store = Store(tmp_path / "laptop")
    manifest = carry(store, toy, "norm.safetensors")
    with store.part(manifest.fingerprint, "embed.safetensors") as part:
        part.write(b"".join(read_unit(toy, part.unit))[: 2 * MEGABYTE])
    flip(store.folder(manifest.fingerprint) / "embed.safetensors.part", 5000)
    (store.folder(manifest.fingerprint) / "norm.safetensors").unlink()
    async with studio(tmp_path) as link:
        folder = await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), FIRST, (source(at(link.port), toy),), quiet)
    check_whole(folder, toy, FIRST)


async def test_a_broken_unit_in_the_own_cache_is_fetched_anew(tmp_path: Path, toy: Path) -> None:
    async with studio(tmp_path) as link:
        sources = (source(at(link.port), toy),)
        folder = await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), MIDDLE, sources, quiet)
        flip(folder / layer_unit(1))
        before = link.back.sent
        await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), MIDDLE, sources, quiet)
        assert 0 < link.back.sent - before < 2 * describe(toy).units[layer_unit(1)].size
        flip(folder / layer_unit(1))
        with pytest.raises(LoadFailed, match=r"lacks layers 1:2 .*layer-00001.safetensors of lab/heavy is broken"):
            await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), MIDDLE, (), quiet)


async def test_a_machine_that_says_another_model_is_this_one_is_refused(tmp_path: Path, toy: Path) -> None:
    truth = describe(toy)
    lie = replace(truth, files=tuple(replace(f, header=f.header + b" ", size=f.size + 1) for f in truth.files))

    async def describe_wrongly(model: ModelRef) -> Blob:
        return Blob(lie.to_json())

    lying = rpc.unary({rpc.DESCRIBE: describe_wrongly})
    async with served(tmp_path / "studio", lying) as liar, served(tmp_path / "studio") as honest:
        with pytest.raises(LoadFailed, match=rf"{HOST}:{liar.port} gives something else for lab/heavy"):
            await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), MIDDLE, (source(liar, toy),), quiet)
        sources = (source(liar, toy), source(honest, toy))
        check_whole(await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), MIDDLE, sources, quiet), toy, MIDDLE)


async def test_a_machine_that_sends_another_version_is_refused_with_both_fingerprints(
    tmp_path: Path, toy: Path
) -> None:
    other = describe(make_checksum_model(tmp_path / "other", layers=LAYERS, seed=3))

    async def describe_other(model: ModelRef) -> Blob:
        return Blob(other.to_json())

    async with served(tmp_path / "studio", rpc.unary({rpc.DESCRIBE: describe_other})) as endpoint:
        both = rf"gives the version {other.fingerprint[:12]} of lab/heavy, not {lab_ref(toy).fingerprint[:12]}"
        with pytest.raises(LoadFailed, match=both):
            await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), MIDDLE, (source(endpoint, toy),), quiet)


async def test_a_machine_that_says_a_wrong_hash_is_asked_no_more(tmp_path: Path, toy: Path) -> None:
    asked = count()

    async def digest(request: UnitRequest) -> UnitDigest:
        next(asked)
        return UnitDigest(1, "0" * 64)

    async with served(tmp_path / "studio", rpc.unary({rpc.DIGEST: digest})) as liar:
        with pytest.raises(LoadFailed, match=r"layer-0000[12].* of lab/heavy is broken: .* it should be 0000"):
            await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), MIDDLE, (source(liar, toy),), quiet)
    assert next(asked) <= 2  # once for each layer


# --- nobody has it ----------------------------------------------------------------------------------------------------


async def test_a_model_that_nobody_has_is_refused_with_what_to_do(tmp_path: Path, toy: Path) -> None:
    with pytest.raises(BrokenModel, match="node laptop does not have lab/heavy; put its folder at"):
        await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), FIRST, (), quiet)


async def test_a_machine_is_not_its_own_source(tmp_path: Path, toy: Path) -> None:
    async with served(tmp_path / "studio") as endpoint:
        own = fetcher(tmp_path / "laptop", endpoint)
        with pytest.raises(BrokenModel, match="does not have lab/heavy"):
            await own.fetch(lab_ref(toy), FIRST, (source(endpoint, toy),), quiet)


async def test_another_version_is_refused_with_both_fingerprints(tmp_path: Path, toy: Path) -> None:
    other = make_checksum_model(tmp_path / "laptop" / "models" / "lab" / "heavy", layers=LAYERS, seed=3)
    both = f"another version of lab/heavy: {describe(other).fingerprint[:12]} there, {describe(toy).fingerprint[:12]}"
    with pytest.raises(BrokenModel, match=both):
        await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), FIRST, (), quiet)


async def test_machines_that_do_not_answer_are_named(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("together.weights.fetch.FIRST_PATIENCE", 1.0)
    silent = (Source(Endpoint((HOST,), 9), all_units(toy)),)
    with pytest.raises(LoadFailed, match=r"node laptop has nothing of lab/heavy, .*nothing answers at port 9 of"):
        await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), FIRST, silent, quiet)


async def test_too_little_room_is_said_before_anything_travels(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with studio(tmp_path) as link:
        await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), MIDDLE, (source(at(link.port), toy),), quiet)
        before = link.back.sent
        monkeypatch.setattr("together.weights.part.shutil.disk_usage", lambda _: _Full())
        with pytest.raises(DiskFull, match=r"needs 8.\d+ MB in .*, has 1.0 MB free"):
            await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), FIRST, (source(at(link.port), toy),), quiet)
        assert link.back.sent < before + CONTROL


CONTROL = 1000  # bytes: what HTTP/2 may still say of itself; a unit has many times as many


class _Full:
    """What a full disk says of itself."""

    free = MEGABYTE


# --- other words ------------------------------------------------------------------------------------------------------


async def test_another_tokenizer_than_the_head_s_is_refused_with_both_hashes(tmp_path: Path, toy: Path) -> None:
    """The weights are the same, and so is the fingerprint: only what ids mean is not."""
    model = replace(lab_ref(toy), tokenizer=own_tokenizer(toy, describe(toy)))
    assert await fetcher(tmp_path / "studio").fetch(model, FIRST, (), quiet) == toy
    file = toy / "tokenizer.json"
    file.write_bytes(file.read_bytes() + b"\n")
    assert describe(toy).key == model.key
    with pytest.raises(BrokenModel, match="node studio has another tokenizer for lab/heavy") as refused:
        await fetcher(tmp_path / "studio").fetch(model, FIRST, (), quiet)
    assert f"{tokenizer_digest(toy)[:12]} there, {model.tokenizer[:12]} at the head" in str(refused.value)


async def test_what_a_machine_gives_to_another_has_its_tokenizer(tmp_path: Path, toy: Path) -> None:
    model = replace(lab_ref(toy), tokenizer=own_tokenizer(toy, describe(toy)))
    async with studio(tmp_path) as link:
        folder = await fetcher(tmp_path / "laptop").fetch(model, FIRST, (source(at(link.port), toy),), quiet)
    assert tokenizer_digest(folder) == model.tokenizer
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BrokenModel, match=r"was changed after it was fetched: its sha256 is \w{12}, it should be"):
        own_tokenizer(folder, describe(folder))
