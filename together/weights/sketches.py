"""What a model would be in each of its forms, by headers alone: of a folder, of a GGUF file, or on the hub.

Reads neither weights nor words, and keeps nothing on the disk but the hub's small files.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from together.errors import BrokenModel, TogetherError, UnsupportedModel
from together.models.config import TOY
from together.models.folder import read_json
from together.models.form import PUBLISHED, QUANTIZE, asked_form, converted_units, form_of
from together.models.gguf.parts import title_of
from together.models.headers import FileHeader, Headers
from together.models.manifest import CONFIG, is_shard, read_manifest
from together.models.names import repository
from together.models.reading import Published, read_published
from together.models.remarks import remarks
from together.models.spec import Described, ModelSpec, described, require_runnable
from together.models.summary import summarize
from together.sentences import NOTHING, Sentence
from together.weights.hub_gguf import gguf_model, only_gguf, read_gguf_headers
from together.weights.hub_listing import list_hub, read_headers
from together.weights.imports import described as described_gguf
from together.weights.imports import gguf_in, parts_of
from together.weights.offers import offer_at, offers
from together.weights.store import local_name

FORMS = (PUBLISHED, *(form for quantize in QUANTIZE if (form := asked_form(quantize))))  # that are looked at


@dataclass(frozen=True, slots=True)
class ModelSketch:
    """`specs` has the model in each form that it can have; none where it does not run here, and `reason` says why."""

    name: str
    folder: Path | None  # None: it is on the hub, or a file that was not imported
    family: str
    context: int  # tokens; 0: unknown
    params: int
    weight_bytes: int  # as published
    active: float = 1.0  # the part of its layers that a token reads: less than all with experts
    quantization: str = ""
    config: bytes = b""  # the effective configuration, as JSON
    specs: Mapping[str, ModelSpec] = field(default_factory=lambda: MappingProxyType({}))
    reason: Sentence = NOTHING

    @property
    def bits(self) -> float:
        """Of a weight, on average."""
        return 8 * self.weight_bytes / self.params if self.params else 0.0


def sketch(model: Path | str, home: Path) -> ModelSketch:
    """Of a folder or a GGUF file, or by its name on the hub. Raises BadInput or Unreachable with a sentence."""
    with remarks():  # it is only looked at
        if isinstance(model, str):
            return _on_hub(model, home)
        file = gguf_in(model) if not model.is_file() else model
        if file is not None:
            return _of_gguf(file, home)
        return _of_folder(model, home)


def _of_folder(folder: Path, home: Path) -> ModelSketch:
    words = read_json(folder, CONFIG)
    if is_shard(folder):
        known = read_manifest(folder)
        published = Published(known.name, known.revision, known.fingerprint, known.headers)
    else:
        published = read_published(folder, local_name(folder, home))
    return replace(_sketched(published, words), folder=folder)


def _of_gguf(file: Path, home: Path) -> ModelSketch:
    """One that another program keeps by its hash is called as that program calls it."""
    offer = offer_at(file, offers(home))
    name = offer.title if offer is not None and offer.title else title_of(file.name)
    model, _ = described_gguf(parts_of(file), name)
    return _sketched(Published(name, "", "", model.headers), model.config)


def _on_hub(name: str, home: Path) -> ModelSketch:
    repo, file = repository(name)
    listing = list_hub(repo)
    if file or only_gguf(listing):
        on_hub = gguf_model(listing, file)
        model = read_gguf_headers(on_hub)
        return _sketched(Published(on_hub.name, listing.commit, "", model.headers), model.config)
    headers, small = read_headers(listing, home, (CONFIG,))
    try:
        config = json.loads(small[CONFIG])
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise BrokenModel("{file} of {model} is no JSON object; choose another model", file=CONFIG, model=repo)
    return _sketched(Published(repo, listing.commit, "", headers), config)


def _sketched(published: Published, config: dict[str, Any]) -> ModelSketch:
    """The published model by a configuration, and what machines can make of it."""
    with tempfile.TemporaryDirectory(prefix="together-") as draft:
        folder = Path(draft)
        (folder / CONFIG).write_bytes(json.dumps(config).encode())
        try:
            found = described(folder, published)
        except UnsupportedModel as error:
            return replace(_summed(published, config, None), reason=error.sentence)
        plain = _summed(published, config, found)
        try:
            require_runnable(found)
        except (UnsupportedModel, BrokenModel) as error:
            return replace(plain, reason=error.sentence)
        specs = {PUBLISHED: found.spec} | _converted(folder, published, found.spec)
        return replace(plain, specs=MappingProxyType(specs))


def _summed(published: Published, config: dict[str, Any], found: Described | None) -> ModelSketch:
    tensors = [tensor for header in published.headers for tensor in header.tensors]
    if found is None:
        summary, effective = summarize(config, tensors, None), b""
    else:
        summary = summarize(config, tensors, found.spec, found.matrices)
        effective = json.dumps(found.config, sort_keys=True).encode()
    params = sum(part.params for part in summary.parts)
    layers, active = (sum(getattr(each, key) for each in summary.layers) for key in ("params", "active_params"))
    return ModelSketch(
        name=published.name,
        folder=None,
        family=summary.family,
        context=summary.context or 0,
        params=params,
        weight_bytes=sum(part.bytes for part in summary.parts),
        active=active / layers if layers else 1.0,
        quantization=summary.quantization or "",
        config=effective,
    )


def _converted(folder: Path, published: Published, plain: ModelSpec) -> dict[str, ModelSpec]:
    """By form; nothing of a model that is quantized already, as `in_form` has it."""
    if plain.packings or plain.scaled or plain.norm_weights.gguf or plain.family == TOY:
        return {}
    found = {}
    for form in FORMS[1:]:
        try:
            spec = described(folder, replace(published, headers=_stored(published, form), form=form)).spec
        except TogetherError:  # whoever asks for it hears why
            continue
        if spec.packings:
            found[form] = spec
    return found


def _stored(published: Published, form: str) -> tuple[FileHeader, ...]:
    """The headers of what a machine would make."""
    units = converted_units(published.headers, published.fingerprint, form_of(form)).values()
    model = Headers()
    return tuple(model.check(Path(published.name) / unit.name, unit.header[8:], unit.size) for unit in units)
