"""A manifest says what a model is and believes nobody: every field of a stranger's one is checked."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.models.test_files import sharded
from tests.support.folders import CONFIG as MODEL_CONFIG
from tests.support.folders import SHAPES, write_raw
from tests.support.pieces import random_model, with_template
from together.errors import BrokenModel
from together.jsonfile import first_fault
from together.models import manifest
from together.models.headers import MAX_HEADER
from together.models.manifest import CONFIG, MAX_TEMPLATES, Manifest, compose, describe, parse, small_files
from together.models.names import TEMPLATES
from together.models.spec import fingerprint
from together.models.units import PublishedFile

Change = Callable[[dict[str, Any]], object]


def test_it_describes_a_folder_and_survives_its_file(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "tiny")
    manifest = describe(folder)
    assert (manifest.name, manifest.layers, manifest.revision) == ("tiny", 2, "")
    assert manifest.fingerprint == fingerprint(folder)
    assert [file.name for file in manifest.small] == ["config.json", "tokenizer.json"]  # and no *.py
    again = parse(manifest.to_json())
    assert again == manifest
    assert again.units == manifest.units
    again.verify((folder / CONFIG).read_bytes())


def test_further_templates_belong_to_it(tmp_path: Path) -> None:
    folder = with_template(with_template(random_model(tmp_path / "tiny")), "rag.jinja")
    found = [file.name for file in describe(folder).small]
    assert found == ["config.json", "tokenizer.json", f"{TEMPLATES}/rag.jinja", f"{TEMPLATES}/tool_use.jinja"]
    assert parse(describe(folder).to_json()) == describe(folder)
    for index in range(2 * MAX_TEMPLATES):
        with_template(folder, f"{index:03}.jinja")
    assert len(parse(describe(folder).to_json()).small) == 2 + MAX_TEMPLATES


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")
@pytest.mark.parametrize("link", [TEMPLATES, f"{TEMPLATES}/tool_use.jinja"])
def test_a_template_that_links_elsewhere_is_refused(tmp_path: Path, link: str) -> None:
    folder = with_template(random_model(tmp_path / "tiny"))
    (folder / link).rename(tmp_path / "elsewhere")
    (folder / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BrokenModel, match=f"{TEMPLATES}/tool_use.jinja leads outside"):
        describe(folder)


def test_several_files_are_in_order(tmp_path: Path) -> None:
    manifest = describe(sharded(tmp_path / "m"))
    assert [file.name for file in manifest.files] == ["a.safetensors", "b.safetensors"]
    turned = compose(manifest.name, manifest.files[::-1], small_files(tmp_path / "m"))
    assert turned == manifest


def test_a_snapshot_of_the_hub_has_its_name_and_revision(tmp_path: Path) -> None:
    manifest = describe(random_model(tmp_path / "models--org--a--b" / "snapshots" / "0123abcd"))
    assert (manifest.name, manifest.revision) == ("org/a--b", "0123abcd")


def test_folders_with_any_name(tmp_path: Path) -> None:
    assert describe(random_model(tmp_path / "my model (v2)")).name == "my-model-v2-"


def test_another_config_is_another_model(tmp_path: Path) -> None:
    manifest = describe(random_model(tmp_path / "m"))
    with pytest.raises(BrokenModel, match=manifest.fingerprint[:12]):
        manifest.verify(b'{"num_hidden_layers": 2}')
    with pytest.raises(BrokenModel, match="counts 3 layers"):
        replace(manifest, layers=3).verify((tmp_path / "m" / CONFIG).read_bytes())


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


HOSTILE: dict[str, tuple[Change, str]] = {
    "name leads out": (lambda m: m.update(name="../evil"), "not a model's name"),
    "name of dots": (lambda m: m.update(name="a/.."), "not a model's name"),
    "name has a line": (lambda m: m.update(name="a\n"), "not a model's name"),
    "name is long": (lambda m: m.update(name="a" * 10**6), "not a model's name"),
    "name is a number": (lambda m: m.update(name=3), "name: Input should be a valid string"),
    "format": (lambda m: m.update(format="together-model-9"), "together-model-9"),
    "fingerprint leads out": (lambda m: m.update(fingerprint="../../x"), "fingerprint: .* is not a sha256"),
    "fingerprint in capitals": (lambda m: m.update(fingerprint="A" * 64), "fingerprint: .* is not a sha256"),
    "layers huge": (lambda m: m.update(layers=10**12), "layers: .* less than or equal to 10000"),
    "layers negative": (lambda m: m.update(layers=-1), "layers: .* greater than or equal to 1"),
    "layers true": (lambda m: m.update(layers=True), "layers: .* valid integer"),
    "revision leads out": (lambda m: m.update(revision="../x"), "not a revision"),
    "revision is a list": (lambda m: m.update(revision=[]), "revision: .* valid string"),
    "more fields": (lambda m: m.update(code="x"), "code: Extra"),
    "fewer fields": (lambda m: m.pop("small"), "small: Field required"),
    "files is no list": (lambda m: m.update(files={}), "files: .* valid list"),
    "too many files": (lambda m: m.update(files=m["files"] * 10_001), "at most 10000 items"),
    "no files": (lambda m: m.update(files=[]), "distinct files of weights"),
    "a file twice": (lambda m: m.update(files=m["files"] * 2), "distinct files of weights"),
    "a file leads out": (lambda m: m["files"][0].update(name="../a.safetensors"), "plain name"),
    "a file on a drive": (lambda m: m["files"][0].update(name="C:a.safetensors"), "plain name"),
    "a pickle": (lambda m: m["files"][0].update(name="model.bin"), "plain name"),
    "a file is no object": (lambda m: m.update(files=[3]), r"files\.0"),
    "a huge file": (lambda m: m["files"][0].update(size=2**60), r"files\.0\.size: .* less than"),
    "another size": (lambda m: m["files"][0].update(size=5000), "end at byte"),
    "header not packed": (lambda m: m["files"][0].update(header="{}"), "not packed"),
    "header is a number": (lambda m: m["files"][0].update(header=3), r"files\.0\.header: .* valid string"),
    "header cut": (lambda m: m["files"][0].update(header=m["files"][0]["header"][:-8]), "cut off|not packed"),
    "header is a bomb": (lambda m: m["files"][0].update(header=packed(bytes(MAX_HEADER + 1))), "more than"),
    "header is no JSON": (lambda m: m["files"][0].update(header=packed(b"[")), "not JSON"),
    "samples not packed": (lambda m: m["files"][0].update(samples="{}"), "samples of its weights are not packed"),
    "samples in a list": (lambda m: m["files"][0].update(samples=[]), r"files\.0\.samples: .* valid string"),
    "samples cut": (lambda m: m["files"][0].update(samples=""), "0 bytes of samples of model.safetensors, not 272"),
    "small leads out": (lambda m: m["small"][0].update(name="../config.json"), "beside its weights"),
    "small is code": (lambda m: m["small"][0].update(name="modeling_x.py"), "beside its weights"),
    "small is a list": (lambda m: m["small"][0].update(name=[]), r"small\.0\.name: .* valid string"),
    "a folder of templates leads out": (
        lambda m: m["small"][0].update(name="additional_chat_templates/../x.jinja"),
        "beside its weights",
    ),
    "a template on a drive": (
        lambda m: m["small"][0].update(name="additional_chat_templates/C:x.jinja"),
        "beside its weights",
    ),
    "a template deep down": (
        lambda m: m["small"][0].update(name="additional_chat_templates/a/x.jinja"),
        "beside its weights",
    ),
    "a template elsewhere": (lambda m: m["small"][0].update(name="templates/x.jinja"), "beside its weights"),
    "code among templates": (
        lambda m: m["small"][0].update(name="additional_chat_templates/x.py"),
        "beside its weights",
    ),
    "a template twice on some disks": (
        lambda m: m["small"].extend({**m["small"][0], "name": f"{TEMPLATES}/{name}.jinja"} for name in "aA"),
        "name one twice",
    ),
    "too many small files": (lambda m: m.update(small=m["small"] * 40), "small: List should have at most"),
    "small twice": (lambda m: m.update(small=m["small"][:1] * 2), "name one twice"),
    "small is huge": (lambda m: m["small"][0].update(size=10**12), "config.json has 1000000000000 bytes, more than"),
    "small has no hash": (lambda m: m["small"][0].update(sha256="x"), r"small\.0\.sha256: .* is not a sha256"),
    "no config": (lambda m: m["small"].pop(0), "lack config.json"),
    "digests is a list": (lambda m: m.update(digests=[]), "digests: .* valid dictionary"),
    "digest of nothing": (lambda m: m.update(digests={"../x": "0" * 64}), "none of its units"),
    "digest is none": (lambda m: m.update(digests={"norm.safetensors": "0" * 63}), "not a sha256"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_manifests(tmp_path: Path, case: str) -> None:
    change, reason = HOSTILE[case]
    value = json.loads(describe(random_model(tmp_path / "m")).to_json())
    change(value)
    with pytest.raises(BrokenModel, match=reason) as caught:
        parse(json.dumps(value).encode())
    assert len(str(caught.value)) < 500


CROWDS: dict[str, Change] = {
    "fields": lambda m: m.update({str(number): 1 for number in range(5000)}),
    "digests of no text": lambda m: m.update(digests={str(number): 1 for number in range(5000)}),
    "digests of another length": lambda m: m.update(digests={str(number): "x" for number in range(5000)}),
    "files": lambda m: m.update(files=[3] * 5000),
    "fields of a file": lambda m: m["files"][0].update({str(number): 1 for number in range(5000)}),
}


@pytest.mark.parametrize("case", CROWDS)
def test_of_a_crowd_of_faults_only_the_first_is_looked_at(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def counted(error: ValidationError) -> str:
        counts.append(error.error_count())
        return first_fault(error)

    monkeypatch.setattr(manifest, "first_fault", counted)
    value = json.loads(describe(random_model(tmp_path / "m")).to_json())
    CROWDS[case](value)
    with pytest.raises(BrokenModel, match="the manifest of a model is broken"):
        parse(json.dumps(value).encode())
    assert len(counts) == 1
    assert counts[0] < 20


@pytest.mark.parametrize("data", [b"", b"[]", b"[" * 100_000, b"\xff", b'{"layers": ' + b"9" * 5000 + b"}"])
def test_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(BrokenModel, match=r"manifest\.json"):
        parse(data)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    manifest = describe(random_model(tmp_path / "m"))
    twice = (replace(manifest.files[0], name="a.safetensors"), *manifest.files)
    with pytest.raises(BrokenModel, match="as well"):
        parse(replace(manifest, files=twice).to_json())


_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda item: st.lists(item, max_size=3))


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_value_anywhere_is_refused_or_right(data: st.DataObject) -> None:
    value = json.loads(GOOD.to_json())
    where = data.draw(st.sampled_from([value, value["files"][0], value["small"][0], value["digests"]]))
    where[data.draw(st.sampled_from([*sorted(where), "other"]))] = data.draw(_JSON)
    try:
        found = parse(json.dumps(value).encode())
    except BrokenModel:
        return
    assert found.units == GOOD.units
    assert parse(found.to_json()) == found


def _good() -> Manifest:
    header = {name: {"dtype": "F32", "shape": [], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(SHAPES)}
    raw = json.dumps(header).encode()
    samples = bytes(4 * (len(SHAPES) - 1))  # scalars, whole; not of what is computed
    file = PublishedFile("model.safetensors", 8 + len(raw) + 4 * len(SHAPES), raw, samples)
    made = compose("tiny", [file], {CONFIG: json.dumps(MODEL_CONFIG).encode()})
    return replace(made, digests={"norm.safetensors": "0" * 64})


GOOD = _good()


def test_a_folder_with_a_foreign_manifest_is_still_a_checkpoint(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "m")
    wanted = fingerprint(folder)
    (folder / "manifest.json").write_text("[]")
    assert fingerprint(folder) == wanted


def test_an_oversized_header_is_refused_by_name(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "m")
    write_raw(folder / "model.safetensors", b"{}", length=MAX_HEADER + 1)
    with pytest.raises(BrokenModel, match=r"m/model\.safetensors .* more than"):
        describe(folder)
