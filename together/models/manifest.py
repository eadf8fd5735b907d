"""The manifest: what a model is, in one small file: headers and samples of its weights, small files, hashes of units.

Strict with what comes from elsewhere: a manifest that does not give its own fingerprint is refused. Reads no weights.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator

from together.errors import BrokenModel, UnsupportedModel
from together.jsonfile import first_fault
from together.models.checkpoint import MAX_FILES, checkpoint_files, is_checkpoint
from together.models.config import layer_count
from together.models.family import MAX_LAYERS
from together.models.folder import folder_name, folder_revision, json_object, most_bytes, read_bytes
from together.models.form import PUBLISHED, converted_units, form_of, is_form
from together.models.headers import MAX_HEADER, FileHeader, Headers, check_distinct
from together.models.names import MANIFEST as MANIFEST
from together.models.names import MAX_NAME, TEMPLATES, is_gguf, is_model_name, is_plain, is_sha256, is_template
from together.models.units import (
    ByteRange,
    PublishedFile,
    Sample,
    Unit,
    fingerprint_of,
    sample_places,
    samples_in,
    units_of,
)
from together.sentences import Value, template
from together.types import ModelRef, model_key
from together.wording import MOST, cut, quoted

CONFIG = "config.json"
FORMAT = "together-model-3"
FORMATS = ("together-model-2", FORMAT)  # 2: before there were forms
SMALL_FILES = (  # kept with the weights: data for tokenizers and templates, nothing that could be run
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
)
MAX_TEMPLATES = 32  # besides the usual one
MAX_FILE = 2**44  # bytes of an original file
_CROWD = 100  # fields of one object


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A file that is not weights: one of SMALL_FILES or a further template."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """One exact model, in one form. `files` are the published ones, sorted by name.

    `digests` are the sha256 of units, as far as they are known.
    """

    name: str
    fingerprint: str
    layers: int
    files: tuple[PublishedFile, ...]
    small: tuple[SmallFile, ...]
    revision: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    form: str = PUBLISHED  # see models/form.py

    @property
    def key(self) -> str:
        """Names the very bytes of its units."""
        return model_key(self.fingerprint, self.form)

    def ref(self, path: str = "") -> ModelRef:
        """Names this model on every machine; `path` is where it is here."""
        return ModelRef(self.name, path, self.fingerprint, self.layers, self.revision, self.form)

    def in_form(self, form: str) -> Manifest:
        """The same model in another form, whose units nobody has hashed yet. Raises BrokenModel or UnsupportedModel."""
        if form != PUBLISHED and any(is_gguf(file.name) for file in self.files):
            raise UnsupportedModel("{model} is GGUF and not quantized again; load it as it is", model=self.name)
        return _checked(replace(self, form=form, digests={}))

    @cached_property
    def headers(self) -> tuple[FileHeader, ...]:
        """The headers of the published files, checked. Raises BrokenModel."""
        model = Headers()
        return tuple(model.check(Path(self.name) / file.name, file.header, file.size) for file in self.files)

    @cached_property
    def units(self) -> dict[str, Unit]:
        """All units by name, in the model's order."""
        if self.form == PUBLISHED:
            return units_of(self.headers)
        return converted_units(self.headers, self.fingerprint, form_of(self.form))

    @cached_property
    def stored(self) -> tuple[FileHeader, ...]:
        """The headers of the files that hold the weights in this form: the published ones, or the units'."""
        if self.form == PUBLISHED:
            return self.headers
        model = Headers()
        return tuple(model.check(Path(self.name) / u.name, u.header[8:], u.size) for u in self.units.values())

    @cached_property
    def places(self) -> Mapping[str, tuple[ByteRange, ...]]:
        """Where in the original files the samples of the weights lie."""
        return sample_places(self.headers)

    def samples(self, unit: Unit) -> tuple[Sample, ...]:
        """What must lie where in this unit's file; of a converted unit nothing, whose header names the fingerprint."""
        return samples_in(unit, self._taken) if self.form == PUBLISHED else ()

    @cached_property
    def _taken(self) -> Mapping[str, list[tuple[int, bytes]]]:
        """Every sample with its byte in the original file, in order."""
        return {file.name: _cut(file.samples, self.places[file.name]) for file in self.files}

    def to_json(self) -> bytes:
        """The manifest's file. Headers are packed: those of a large model have megabytes."""
        plain = ("name", "fingerprint", "form", "layers", "revision")
        value = {
            "format": FORMAT,
            **{key: getattr(self, key) for key in plain},
            "files": [_file_json(file) for file in self.files],
            "small": [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in self.small],
            "digests": dict(self.digests),
        }
        return json.dumps(value, indent=1).encode()

    def verify(self, config: bytes) -> None:
        """Raises BrokenModel unless `config`, the bytes of config.json, headers and samples give this fingerprint."""
        found = fingerprint_of(config, self.files)
        if found != self.fingerprint:
            said = "its files give the fingerprint {found}, it says {fingerprint}"
            raise _bad(self.name, said, found=found[:12], fingerprint=self.fingerprint[:12])
        if _layers(self.name, config) != self.layers:
            said = "it counts {layers} layers and config.json {counted}"
            raise _bad(self.name, said, layers=self.layers, counted=_layers(self.name, config))


def compose(name: str, files: Sequence[PublishedFile], small: Mapping[str, bytes], revision: str = "") -> Manifest:
    """The manifest of a model whose original and small files are known. Raises BrokenModel for what is not a model."""
    if CONFIG not in small:
        raise _bad(name, "it has no {config}", config=CONFIG)
    ordered = tuple(sorted(files, key=lambda file: file.name))
    kept = tuple(SmallFile(key, len(small[key]), hashlib.sha256(small[key]).hexdigest()) for key in small_names(small))
    print_ = fingerprint_of(small[CONFIG], ordered)
    return _checked(Manifest(name, print_, _layers(name, small[CONFIG]), ordered, kept, revision))


def describe(folder: Path, name: str = "") -> Manifest:
    """The manifest of the model in `folder`, a whole checkpoint or a shard folder. Raises BrokenModel.

    `name` is what to call a checkpoint, by default as `folder_name` does; a shard folder's manifest has its own. Costs
    the headers, at most 128 small reads of weights and a hash over the small files.
    """
    if is_shard(folder):
        return read_manifest(folder)
    files = checkpoint_files(folder)
    return compose(name or folder_name(folder), files, small_files(folder), folder_revision(folder))


def small_files(folder: Path) -> dict[str, bytes]:
    """The model's files that are not weights, by name. Raises BrokenModel without config.json."""
    there = [name for name in SMALL_FILES if name == CONFIG or (folder / name).is_file()]
    return {name: read_bytes(folder, name) for name in (*there, *template_names(folder))}


def template_names(folder: Path) -> list[str]:
    """The files with further chat templates, in order; a Mac's companion files (`._name`) are none."""
    files = (folder / TEMPLATES).glob("[!.]*.jinja")
    return small_names({f"{TEMPLATES}/{file.name}" for file in files if file.is_file()})


def small_names(there: Collection[str]) -> list[str]:
    """Those of these files that belong to a model and are not weights, in order."""
    known = [name for name in SMALL_FILES if name in there]
    return known + sorted(name for name in there if is_template(name))[:MAX_TEMPLATES]


def check_small(manifest: Manifest, small: Mapping[str, bytes]) -> None:
    """Raises BrokenModel unless these are exactly the manifest's small files."""
    if small.keys() != {file.name for file in manifest.small}:
        raise _bad(manifest.name, "it lists other small files than {files}", files=quoted(sorted(small)))
    for file in manifest.small:
        found = hashlib.sha256(small[file.name]).hexdigest()
        if found != file.sha256:
            raise BrokenModel(
                "{file} of {model} is broken: its sha256 is {found}, it should be {sha256}; get it again",
                file=file.name,
                model=manifest.name,
                found=found,
                sha256=file.sha256,
            )


def is_shard(folder: Path) -> bool:
    """Whether the folder is made of units: it has a manifest and no weights as they are published."""
    return (folder / MANIFEST).is_file() and not is_checkpoint(folder)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a shard folder, checked against its config.json. Raises BrokenModel."""
    manifest = parse(read_bytes(folder, MANIFEST))
    manifest.verify(read_bytes(folder, CONFIG))
    return manifest


# --- parsing ----------------------------------------------------------------------------------------------------------


def parse(data: bytes) -> Manifest:
    """A manifest from its file, every field checked. Raises BrokenModel, naming the field.

    The fingerprint is checked by `Manifest.verify`, when config.json is there.
    """
    if len(data) > most_bytes(MANIFEST):
        raise _bad("a model", "it has {count} bytes, more than {most}", count=len(data), most=most_bytes(MANIFEST))
    try:
        found = _Document.model_validate(json_object(Path("model", MANIFEST), data))
    except ValidationError as error:
        raise _bad("a model", cut(first_fault(error), 2 * MOST)) from None
    small = tuple(_small(found.name, file) for file in found.small)
    files = _files(found.name, found.files)
    head = found.name, found.fingerprint, found.layers
    return _checked(Manifest(*head, files, small, found.revision, found.digests, found.form))


def _is_weights(name: str) -> bool:
    return is_plain(name) and (name.endswith(".safetensors") or is_gguf(name))


def _which(test: Callable[[str], bool], words: str) -> AfterValidator:
    def check(value: str) -> str:
        if not test(value):
            raise ValueError(f"{quoted(value)} is not {words}")
        return value

    return AfterValidator(check)


_Revision = Annotated[str, Field(max_length=MAX_NAME), _which(lambda text: not text or is_plain(text), "a revision")]
_Sha256 = Annotated[str, _which(is_sha256, "a sha256 in hex")]


class _Entry(BaseModel):
    """A few wrong fields are named by pydantic; of a crowd it would collect every one first."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_crowd(cls, value: object) -> object:
        if isinstance(value, dict) and len(value) > _CROWD:
            raise ValueError(f"it has {len(value)} fields")
        return value


class _WeightsEntry(_Entry):
    name: Annotated[str, _which(_is_weights, "the plain name of a safetensors or GGUF file")]
    size: Annotated[int, Field(ge=1, le=MAX_FILE)]
    header: str  # packed
    samples: str  # base64


class _SmallEntry(_Entry):
    name: Annotated[str, _which(lambda name: bool(small_names([name])), "a file that a model has beside its weights")]
    size: Annotated[int, Field(ge=0)]
    sha256: _Sha256


def _digests(found: dict[str, Any]) -> dict[str, str]:
    for unit, digest in found.items():
        if not (isinstance(digest, str) and is_sha256(digest)):
            raise ValueError(f"the hash of {quoted(unit)} is not a sha256 in hex")
    return found


class _Document(_Entry):
    format: Annotated[str, _which(lambda text: text in FORMATS, f"{FORMAT}, which this version reads")]
    name: Annotated[str, _which(is_model_name, "a model's name")]
    fingerprint: _Sha256
    form: Annotated[str, _which(is_form, "a form that this version knows")] = PUBLISHED
    layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    revision: _Revision
    files: Annotated[list[_WeightsEntry], Field(max_length=MAX_FILES), FailFast()]
    small: Annotated[list[_SmallEntry], Field(max_length=len(SMALL_FILES) + MAX_TEMPLATES), FailFast()]
    digests: Annotated[dict[str, Any], AfterValidator(_digests)]


def _files(name: str, entries: Sequence[_WeightsEntry]) -> tuple[PublishedFile, ...]:
    files, left = [], MAX_HEADER
    for entry in entries:
        header = _unpack(name, entry.header, left)
        left -= len(header)
        files.append(PublishedFile(entry.name, entry.size, header, _samples(name, entry.samples)))
    return tuple(files)


def _small(name: str, entry: _SmallEntry) -> SmallFile:
    if entry.size > most_bytes(entry.name):
        said = "{file} has {size} bytes, more than {most}"
        raise _bad(name, said, file=entry.name, size=entry.size, most=most_bytes(entry.name))
    return SmallFile(entry.name, entry.size, entry.sha256)


def _checked(made: Manifest) -> Manifest:
    """What its parts say of one another. Raises BrokenModel."""
    names = [file.name for file in made.files]
    if not names or names != sorted(set(names)) or not all(map(_is_weights, names)):
        raise _bad(made.name, "its files {files} are not distinct files of weights in order", files=quoted(names))
    small = [file.name for file in made.small]
    if CONFIG not in small or len({file.casefold() for file in small}) != len(small):  # some disks know no capitals
        raise _bad(
            made.name, "its small files {files} lack {config} or name one twice", files=quoted(small), config=CONFIG
        )
    check_distinct(made.headers)
    for file in made.files:
        wanted = sum(place.size for place in made.places[file.name])
        if len(file.samples) != wanted:
            said = "it has {count} bytes of samples of {file}, not {wanted}"
            raise _bad(made.name, said, count=len(file.samples), file=file.name, wanted=wanted)
    unknown = made.digests.keys() - made.units.keys()
    if unknown:
        raise _bad(made.name, "it gives the hash of {unit}, which is none of its units", unit=quoted(min(unknown)))
    return made


def _layers(name: str, config: bytes) -> int:
    layers = layer_count(json_object(Path(name, CONFIG), config))
    if type(layers) is not int or not 1 <= layers <= MAX_LAYERS:
        said = "num_hidden_layers of {config} is {layers}, not a whole number from 1 to {most}"
        raise _bad(name, said, config=CONFIG, layers=quoted(layers), most=MAX_LAYERS)
    return layers


def _file_json(file: PublishedFile) -> dict[str, Any]:
    samples = base64.b64encode(file.samples).decode()
    return {"name": file.name, "size": file.size, "header": _pack(file.header), "samples": samples}


def _pack(header: bytes) -> str:
    return base64.b64encode(zlib.compress(header)).decode()


def _unpack(name: str, value: str, limit: int) -> bytes:
    """The header's bytes, never more than `limit`, whatever they were packed from."""
    try:
        packed = base64.b64decode(value, validate=True)
        unpacker = zlib.decompressobj()
        header = unpacker.decompress(packed, limit + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise _bad(name, "a header is not packed ({error})", error=str(error)) from error
    if len(header) > limit or not unpacker.eof or unpacker.unused_data:
        raise _bad(name, "its headers are cut off, or have more than {most} bytes", most=MAX_HEADER)
    return header


def _samples(name: str, value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise _bad(name, "samples of its weights are not packed ({error})", error=str(error)) from error


def _cut(samples: bytes, places: Sequence[ByteRange]) -> list[tuple[int, bytes]]:
    ends = accumulate(place.size for place in places)
    return [(place.start, samples[end - place.size : end]) for place, end in zip(places, ends, strict=True)]


def _bad(name: str, reason: str, **values: Value) -> BrokenModel:
    why = template(reason, **values)
    return BrokenModel("the manifest of {model} is broken: {reason}; get this model again", model=name, reason=why)
