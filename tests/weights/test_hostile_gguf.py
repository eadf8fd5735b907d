"""GGUF files that lie, or are no language models: each is refused by its name, quickly, and nothing is left behind."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from tests.support.chain import Chain, load_shard, new_sequence, row
from tests.support.families import prompt_ids
from tests.support.gguf_bytes import U32, array, entry, header, read_header, tensor, text, u32
from tests.support.gguf_models import VOCABULARY, make_gguf
from together.errors import BrokenModel, TogetherError, UnsupportedModel
from together.models.manifest import Manifest, describe, parse
from together.types import LayerRange
from together.weights.imports import described, imported, imports

FILE = "tiny.gguf"


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("gguf") / "files")


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("gguf") / "files", family="qwen3_moe")


@dataclass
class Edited:
    """A copy of a file's metadata and tensors, to change and write."""

    metadata: dict[str, tuple[Any, ...]]  # key → value, type, type of items
    tensors: dict[str, tuple[Any, Kind]]

    def set(self, **values: Any) -> None:
        """`llama__x=3` sets `llama.x`."""
        kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
        for key, value in values.items():
            kind = kinds.get(type(value), gguf.GGUFValueType.STRING)
            self.metadata[key.replace("__", ".")] = (value, kind, None)

    def write(self, file: Path) -> Path:
        architecture = self.metadata.pop("general.architecture")[0]
        writer = gguf.GGUFWriter(file, architecture)
        for key, (value, kind, items) in self.metadata.items():
            writer.add_key_value(key, value, kind, items)
        for name, (data, its) in self.tensors.items():
            writer.add_tensor(name, data, raw_dtype=its)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file


def edit(original: Path) -> Edited:
    reader = gguf.GGUFReader(original)
    metadata = {
        key: (field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    return Edited(metadata, {t.name: (t.data, t.tensor_type) for t in reader.tensors})


def drop(*names: str) -> Callable[[Edited], None]:
    def change(it: Edited) -> None:
        for name in names:
            it.tensors.pop(name, None)
            it.metadata.pop(name, None)

    return change


def put(name: str, *shape: int) -> Callable[[Edited], None]:
    return lambda it: it.tensors.update({name: (np.ones(shape, np.float32), Kind.F32)})


def odd_factors(it: Edited) -> None:
    it.tensors["rope_freqs.weight"] = (np.full(31, 2.0, np.float32), Kind.F32)


def told(**values: Any) -> Callable[[Edited], None]:
    return lambda it: it.set(**values)


def fewer_words(it: Edited) -> None:
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
        value, kind, items = it.metadata[key]
        it.metadata[key] = (value[:-1], kind, items)


def adapter(it: Edited) -> None:
    it.set(general__type="adapter", adapter__type="lora")
    it.tensors = {"blk.0.attn_q.weight.lora_a": (np.ones((8, 256), np.float32), Kind.F32)}


def of_architecture(name: str) -> Callable[[Edited], None]:
    return lambda it: it.set(general__architecture=name)


def packed_norm(it: Edited) -> None:
    it.tensors["blk.1.attn_norm.weight"] = (np.zeros(256 // 32 * 34, np.uint8), Kind.Q8_0)


def unknown_blocks(it: Edited) -> None:
    it.tensors["blk.1.ffn_gate.weight"] = (np.zeros((512, 256 // 32 * 18), np.uint8), Kind.IQ4_NL)


def wrong_blocks(it: Edited) -> None:
    """Of a type that runs, in another shape."""
    it.tensors["blk.1.ffn_gate.weight"] = (np.zeros((256, 256 // 32 * 34), np.uint8), Kind.Q8_0)


LIES: dict[str, tuple[Callable[[Edited], None], str]] = {
    "a tensor is missing": (drop("blk.2.ffn_up.weight"), r"no tensor model\.layers\.2\.mlp\.up_proj\.weight"),
    "no embedding": (drop("token_embd.weight"), r"no token_embd\.weight"),
    "too few blocks": (told(llama__block_count=3), r"not known here \(model\.layers\.3\..*its 3 layers"),
    "too many blocks": (told(llama__block_count=5), "no tensors for layer 4"),
    "a billion blocks": (told(llama__block_count=10**9), "num_hidden_layers"),
    "another width": (told(llama__embedding_length=512), "config"),
    "another count of heads": (told(llama__attention__head_count=1), "config"),
    "another vocabulary": (fewer_words, f"has {VOCABULARY - 1} words and an embedding for {VOCABULARY}"),
    "experts of a llama": (told(llama__expert_count=8), r"llama\.expert_used_count = None"),
    "a cap on logits": (told(llama__final_logit_softcapping=30.0), "final_logit_softcapping"),
    "sections of rope": (told(llama__rope__dimension_sections=1), "dimension_sections"),
    "factors of another rope": (put("rope_factors_long.weight", 32), "rope_factors_long"),
    "sinks": (put("blk.0.attn_sinks.weight", 4), "attn_sinks"),
    "a scale beside a matrix": (put("blk.0.attn_q.scale", 1), r"attn_q\.scale"),
    "a bias that nobody asked for": (put("blk.0.attn_q.bias", 256), "q_proj.bias"),
    "an odd rope_freqs": (odd_factors, r"rope_freqs\.weight of length 31"),
    "blocks that do not run": (unknown_blocks, "type IQ4_NL, which does not run here; choose a file with one of Q4_0"),
    "blocks in another shape": (wrong_blocks, r"gate_proj\.weight is 256×256 in tiny\.gguf and 512×256"),
    "a norm in blocks": (packed_norm, "is a vector in blocks of Q8_0"),
    "an adapter": (adapter, r"is an adapter \(LoRA\)"),
    "a vision part": (told(general__type="mmproj"), "sees pictures"),
    "an embedding model": (told(llama__pooling_type=3), "is an embedding model"),
    "bert": (of_architecture("bert"), "architecture 'bert', which does not run here"),
    "clip": (of_architecture("clip"), "architecture 'clip'"),
    "no words": (drop("tokenizer.ggml.tokens"), "holds no words"),
    "an unknown split": (told(tokenizer__ggml__pre="nobody"), "splits texts in a way"),
    "part of a split model": (told(split__count=3, split__no=1), "says that it is part 2 of 3"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_by_name(original: Path, tmp_path: Path, home: Path, lie: str) -> None:
    change, said = LIES[lie]
    it = edit(original)
    change(it)
    file = it.write(tmp_path / FILE)
    with pytest.raises((BrokenModel, UnsupportedModel), match=said) as refusal:
        imported(file, home)
    assert "tiny" in str(refusal.value)
    assert len(str(refusal.value)) < 1000
    assert imports(home) == []
    assert list((home / "imports").glob("*/*/*")) == []


def count_experts(it: Edited) -> None:
    it.set(qwen3moe__expert_count=10**9)
    it.tensors = {name: held for name, held in it.tensors.items() if "_exps" not in name}


MIXTURES: dict[str, tuple[Callable[[Edited], None], str]] = {
    "a billion experts": (count_experts, "num_experts = 1000000000"),
    "other experts": (told(qwen3moe__expert_count=3), r"mlp\.gate\.weight is 4×256"),
    "more chosen than there are": (told(qwen3moe__expert_used_count=5), "num_experts_per_tok = 5"),
    "shared experts": (told(qwen3moe__expert_shared_count=1), "expert_shared_count 1"),
    "weights that are not normed": (told(qwen3moe__expert_weights_norm=False), "expert_weights_norm False"),
}


@pytest.mark.parametrize("lie", MIXTURES)
def test_a_mixture_that_lies_is_refused_by_name(mixture: Path, tmp_path: Path, home: Path, lie: str) -> None:
    change, said = MIXTURES[lie]
    it = edit(mixture)
    change(it)
    with pytest.raises((BrokenModel, UnsupportedModel), match=said):
        imported(it.write(tmp_path / FILE), home)


def test_experts_in_blocks_one_by_one_are_those_of_a_stack(mixture: Path, tmp_path: Path, home: Path) -> None:
    it = edit(mixture)
    for part in ("gate", "up", "down"):
        for layer in range(4):
            data, kind = it.tensors.pop(f"blk.{layer}.ffn_{part}_exps.weight")
            it.tensors |= {f"blk.{layer}.ffn_{part}.{expert}.weight": (one, kind) for expert, one in enumerate(data)}
    files = mixture, it.write(tmp_path / FILE)
    chains = [Chain([load_shard(imported(file, home), "torch", LayerRange(0, 4))]) for file in files]
    stacked, single = (chain.logits(row(new_sequence(), 0, prompt_ids(9))) for chain in chains)
    assert np.array_equal(stacked, single)


def test_the_copy_that_is_edited_runs(original: Path, tmp_path: Path, home: Path) -> None:
    """Else the lies above would prove nothing."""
    file = edit(original).write(tmp_path / FILE)
    assert describe(imported(file, home)).layers == 4


@pytest.mark.parametrize("wrong", [-1, 2**32 - 1, VOCABULARY, "two"])
def test_ends_that_are_no_words_are_none(original: Path, tmp_path: Path, wrong: Any) -> None:
    it = edit(original)
    it.metadata["tokenizer.ggml.eot_token_id"] = (
        (wrong, gguf.GGUFValueType.STRING, None) if isinstance(wrong, str) else (wrong, gguf.GGUFValueType.INT64, None)
    )
    model, _ = described([it.write(tmp_path / FILE)], "tiny")
    assert model.config["eos_token_id"] == [2]


HEAD = [entry("general.architecture", 8, text("llama")), entry("llama.block_count", U32, u32(1))]
BYTES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no GGUF file"),
    "not gguf": (b"PK\x03\x04" + b"\0" * 100, "no GGUF file"),
    "version 1": (b"GGUF" + u32(1) + b"\0" * 100, "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + b"\0" * 100, "big-endian"),
    "a billion tensors": (header(HEAD, counts=(10**9, 2)), "claims 1000000000 tensors"),
    "more tensors than a file has": (header(HEAD, [tensor(f"t{i}", (8,)) for i in range(30_001)]), "claims 30001"),
    "a billion keys": (header(HEAD, counts=(0, 10**9)), "claims 1000000000 entries"),
    "a billion words": (header([*HEAD, entry("a", 9, array(8, 10**9))]), "values of 'a'"),
    "a header that ends": (header(HEAD)[:-3], "ends within its header"),
    "an offset beyond the end": (header(HEAD, [tensor("t", (32,), 2**40)]), "begins at 1099511627776"),
    "an odd offset": (header(HEAD, [tensor("t", (32,), 7)]), "no multiple of 32"),
    "a giant shape": (header(HEAD, [tensor("t", (2**62, 4))]), "has the shape"),
    "no shape": (header(HEAD, [tensor("t", (0, 4))]), "has the shape"),
    "rows that are no blocks": (header(HEAD, [tensor("t", (100, 4), kind=12)]) + b"\0" * 999, "no whole number of"),
    "an unknown type": (header(HEAD, [tensor("t", (32, 4), kind=999)]) + b"\0" * 999, "type 999"),
    "an overlap": (header(HEAD, [tensor("t", (64,)), tensor("u", (64,), 32)]) + b"\0" * 999, "overlaps"),
    "a tensor twice": (header(HEAD, [tensor("t", (8,)), tensor("t", (8,), 32)]) + b"\0" * 999, "twice"),
    "no alignment": (header([*HEAD, entry("general.alignment", U32, u32(0))]), "alignment is 0"),
    "an alignment beyond all": (header([*HEAD, entry("general.alignment", U32, u32(2**31))]), "head_count = None"),
}


@pytest.mark.parametrize("lie", BYTES)
def test_bytes_that_lie_are_refused_by_name(tmp_path: Path, home: Path, lie: str) -> None:
    data, said = BYTES[lie]
    file = tmp_path / FILE
    file.write_bytes(data)
    with pytest.raises((BrokenModel, UnsupportedModel), match=said) as refusal:
        imported(file, home)
    assert "tiny" in str(refusal.value) or FILE in str(refusal.value)


def test_changed_bytes_are_refused_or_read(original: Path, tmp_path: Path) -> None:
    """Headers with random changes: an error of ours, or a model."""
    whole, size = original.read_bytes(), read_header(original).size
    file, chance, read = tmp_path / FILE, random.Random(7), 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.randrange(size)] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        file.write_bytes(data[: chance.choice((len(data), len(data), chance.randrange(len(data))))])
        with suppress(TogetherError):
            described([file], "tiny")
            read += 1
    assert 0 < read < 270


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scales_that_are_no_numbers(original: Path, tmp_path: Path, home: Path, backend: str, value: float) -> None:
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    it = edit(original)
    data, kind = it.tensors["blk.1.ffn_gate.weight"]
    raw = np.array(data)
    raw[0, :2] = np.array([value], np.float16).view(np.uint8)
    it.tensors["blk.1.ffn_gate.weight"] = (raw, kind)
    folder = imported(it.write(tmp_path / FILE), home)
    load_shard(folder, backend, LayerRange(2, 4)).close()
    with pytest.raises(BrokenModel, match=r"tiny\.gguf is broken: .*layers\.1\.mlp\.gate_proj\.weight.*no numbers"):
        load_shard(folder, backend, LayerRange(0, 2))


# --- manifests from others --------------------------------------------------------------------------------------------


def spoiled(manifest: Manifest, change: Callable[[dict[str, Any]], None], name: str = "") -> bytes:
    """The manifest as a machine that lies would send it."""
    (file,) = manifest.files
    table = json.loads(file.header)
    change(table)
    made = replace(file, header=json.dumps(table, separators=(",", ":")).encode(), name=name or file.name)
    return replace(manifest, files=(made,)).to_json()


UP = "model.layers.1.mlp.up_proj.weight"
TABLES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "an overlap": (lambda t: t[UP].update(data_offsets=t["model.norm.weight"]["data_offsets"]), "bytes, which is not"),
    "two in one place": (lambda t: t.update(x=t[UP]), "overlaps another"),
    "beyond the end": (lambda t: t[UP].update(data_offsets=[2**50, 2**50 + 73728]), "ends behind"),
    "before the begin": (lambda t: t[UP].update(data_offsets=[-1, 73727]), "bad shape or bad offsets"),
    "an unknown type": (lambda t: t[UP].update(dtype="GGUF_Q9_K"), "unknown dtype"),
    "another type": (lambda t: t[UP].update(dtype="GGUF_Q8_0"), "which is not GGUF_Q8_0"),
    "rows that are no blocks": (lambda t: t[UP].update(shape=[512 * 256, 1]), "which is not GGUF_Q4_K"),
    "a gap": (lambda t: t.pop(UP), "samples"),
    "other numbers": (lambda t: t[UP].update(dtype="U8", shape=[73728]), "fingerprint"),
}


@pytest.mark.parametrize("lie", TABLES)
def test_a_table_from_another_machine_is_checked(original: Path, home: Path, lie: str) -> None:
    change, said = TABLES[lie]
    folder = imported(original, home)
    manifest = describe(folder)
    assert parse(manifest.to_json()).key == manifest.key
    with pytest.raises(BrokenModel, match=said):
        parse(spoiled(manifest, change)).verify((folder / "config.json").read_bytes())


@pytest.mark.parametrize("name", ["../x.gguf", "x", "x.bin", "a/b.gguf", "x.gguf\n", ".gguf/", "C:x.gguf"])
def test_names_of_files_from_another_machine(original: Path, home: Path, name: str) -> None:
    manifest = describe(imported(original, home))
    with pytest.raises(BrokenModel, match="plain name of a safetensors or GGUF file"):
        parse(spoiled(manifest, lambda table: None, name))


def test_a_table_in_the_place_of_a_header_and_the_other_way(original: Path, home: Path) -> None:
    """Offsets of a safetensors file count from its data, those of a table from its first byte."""
    manifest = describe(imported(original, home))
    with pytest.raises(BrokenModel, match="overlaps another or leaves a gap"):
        parse(spoiled(manifest, lambda table: None, "tiny.safetensors"))


def test_changed_manifests_are_refused_or_the_same(original: Path, home: Path) -> None:
    folder = imported(original, home)
    config, manifest, chance = (folder / "config.json").read_bytes(), describe(folder), random.Random(3)
    (file,) = manifest.files
    for _ in range(200):
        raw = bytearray(file.header)
        for _ in range(chance.choice((1, 2, 5))):
            raw[chance.randrange(len(raw))] = chance.choice(b'0123456789,:{}[]"-aQ')
        changed = replace(manifest, files=(replace(file, header=bytes(raw)),)).to_json()
        if bytes(raw) != file.header:
            with pytest.raises(BrokenModel):
                parse(changed).verify(config)
