"""What one model is: sizes, shapes, and whether it runs here, from a folder or from the hub's headers alone."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from backends.base import BACKENDS
from together.errors import BrokenModel, UnsupportedModel
from together.models.config import TOY
from together.models.folder import json_object, read_json
from together.models.generation import SamplingDefaults, read_sampling_defaults
from together.models.gguf.sources import imported_file
from together.models.headers import Headers
from together.models.manifest import CONFIG, is_shard
from together.models.matrices import Matrices
from together.models.orders import check_orders
from together.models.reading import Published, read_published
from together.models.spec import ModelSpec, described, require_runnable
from together.models.summary import Summary, summarize
from together.models.units import fingerprint_of
from together.planning.held import held_bytes, unpacked_bytes
from together.types import DTYPE_BYTES, LayerRange
from together.weights.hub_remote import read_remote
from together.weights.store import local_name
from together.wording import exact_size_text


@dataclass(frozen=True, slots=True)
class Inspected:
    """A model, its sizes, and whether it runs here; `reason` is the sentence why not."""

    path: str | None  # None: it is on the hub
    published: Published
    summary: Summary
    spec: ModelSpec | None  # None: its family is unknown
    reason: str | None
    sampling: SamplingDefaults

    @property
    def backends(self) -> dict[str, bool]:
        """Which of ours run it."""
        runs = {TOY} if self.spec is not None and self.spec.family == TOY else set(BACKENDS) - {TOY}
        return {backend: self.reason is None and backend in runs for backend in BACKENDS}

    @property
    def held(self) -> dict[str, int]:
        """Bytes of memory that the weights take on each backend that runs it, where they are packed."""
        if self.spec is None or not self.spec.packings:
            return {}
        weights, dtype = self.spec.stage_weights(LayerRange(0, self.spec.layers)), self.spec.dtype
        return {name: held_bytes(weights, dtype, name) for name, able in self.backends.items() if able}


def inspect_folder(folder: Path, home: Path) -> Inspected:
    """A whole checkpoint, or a shard folder: all layers are described, even those that are not here."""
    config, published = read_json(folder, CONFIG), read_published(folder, local_name(folder, home))
    return _inspected(str(folder.resolve()), folder, config, published)


def inspect_hub(name: str, home: Path) -> Inspected:
    """A model on the hub, by its headers; only small files stay, in a cache."""
    remote = read_remote(name, home, small=(CONFIG, "generation_config.json"))
    config = json_object(Path(remote.name, CONFIG), remote.small[CONFIG])
    model = Headers()
    headers = tuple(model.check(Path(remote.name, file.name), file.header, file.size) for file in remote.files)
    digest = fingerprint_of(remote.small[CONFIG], remote.files)
    published = Published(remote.name, remote.revision, digest, headers)
    with tempfile.TemporaryDirectory(prefix="together-") as draft:
        small = Path(draft, remote.name.rpartition("/")[2])
        small.mkdir()
        for name, data in remote.small.items():
            (small / name).write_bytes(data)
        return _inspected(None, small, config, published)


def _inspected(path: str | None, folder: Path, config: dict[str, Any], published: Published) -> Inspected:
    """`folder` has the small files."""
    spec, reason = None, None
    matrices = Matrices({})
    try:
        found = described(folder, published)
        spec, matrices = found.spec, found.matrices
        require_runnable(found)
        if path and not is_shard(folder):
            check_orders(spec.name, matrices)
    except (UnsupportedModel, BrokenModel) as error:
        if spec is None and isinstance(error, BrokenModel):
            raise
        reason = str(error)
    tensors = [tensor for header in published.headers for tensor in header.tensors]
    summary = summarize(config, tensors, spec, matrices)
    return Inspected(path, published, summary, spec, reason, read_sampling_defaults(folder))


def inspected_json(found: Inspected) -> dict[str, Any]:
    """Sizes are bytes as stored, None is unknown; layers have an entry each. Programs rely on the keys."""
    summary, published = found.summary, found.published
    plain = ("hidden_size", "vocab_size", "heads", "kv_heads", "head_dim", "context", "dtype", "quantization", "tied")
    return {
        "name": published.name,
        "path": found.path,
        "revision": published.revision,
        "fingerprint": published.fingerprint,
        "family": summary.family,
        "supported": found.reason is None,
        "reason": found.reason,
        "backends": found.backends,
        "layers": len(summary.layers),
        **{key: getattr(summary, key) for key in plain},
        "layer_bytes": [layer.bytes for layer in summary.layers],
        "layer_active_bytes": [layer.active_bytes for layer in summary.layers],
        "embed_bytes": summary.embed.bytes,
        "opening_bytes": summary.opening.bytes,
        "joined": list(summary.joined),
        "norm_bytes": summary.norm.bytes,
        "head_bytes": summary.head.bytes,
        "other_bytes": summary.other.bytes,
        "total_bytes": sum(part.bytes for part in summary.parts),
        "held_bytes": found.held,
        "kv_bytes_per_token_per_layer": summary.kv_bytes_per_token_per_layer,
        "windows": None if found.spec is None else list(found.spec.windows),
        "experts": summary.experts,
        "experts_per_token": summary.experts_per_token,
        "params": sum(part.params for part in summary.parts),
        "active_params": sum(part.active_params for part in summary.parts),
        "sampling_defaults": found.sampling.json(),
        "sampling_by_author": list(found.sampling.by_author),
    }


def inspected_lines(found: Inspected) -> list[tuple[str, str]]:
    """What is worth knowing of it, each with what it is."""
    summary, known = found.summary, inspected_json(found)
    runs = ", ".join(backend for backend, able in found.backends.items() if able)
    lines = [
        ("model", found.published.name),
        ("where", _where(found)),
        ("family", f"{summary.family}, runs on {runs}" if runs else f"{summary.family}, does not run here"),
        ("parameters", _parameters(known["params"], known["active_params"])),
        ("weights", f"{exact_size_text(known['total_bytes'])}{_density(known, summary)}"),
        ("layers", _grouped([layer.bytes for layer in summary.layers])),
        ("embedding", exact_size_text(summary.embed.bytes)),
        ("norm", exact_size_text(summary.norm.bytes)),
        ("head", "tied to the embedding" if summary.tied else exact_size_text(summary.head.bytes)),
        ("KV cache", _kv(summary, found.spec)),
        ("context", f"{summary.context:,} tokens" if summary.context else "unknown"),
        ("quantization", f"{_blocks(found)}{summary.quantization or 'none'}"),
        ("sampling", _sampling(found.sampling)),
    ]
    if summary.experts:
        active = _grouped([layer.active_bytes for layer in summary.layers])
        lines.insert(6, ("experts", f"{summary.experts}, a token uses {summary.experts_per_token}: {active}"))
    if summary.opening.bytes:
        size = exact_size_text(summary.opening.bytes)
        lines.append(("first stage", f"{size} more, for what layers take beside hidden states"))
    if summary.joined:
        lines.append(("cuts", f"no stage can begin with layers {_runs(summary.joined)}: they share keys and values"))
    if found.held:
        lines.append(("in memory", _in_memory(found)))
    if summary.other.bytes:
        lines.append(("other", f"{exact_size_text(summary.other.bytes)} that belong to no layer"))
    return lines + ([("why not", found.reason)] if found.reason else [])


def _where(found: Inspected) -> str:
    if found.path is None:
        return f"on the hub, revision {found.published.revision[:12]}"
    return imported_file(Path(found.path)) or found.path


def _density(known: dict[str, Any], summary: Summary) -> str:
    """What the weights are stored in: a dtype, or bits per weight where they are packed."""
    if summary.quantization is None or not known["params"]:
        return f" in {summary.dtype}"
    return f", {8 * known['total_bytes'] / known['params']:.2f} bits per weight"


def _blocks(found: Inspected) -> str:
    """The names that GGUF has for types of weights, the most bytes first; empty for other files."""
    sizes: Counter[str] = Counter()
    for tensor in (tensor for header in found.published.headers for tensor in header.tensors):
        if tensor.gguf and len(tensor.shape) > 1:
            sizes[tensor.dtype] += tensor.nbytes
    return f"GGUF {', '.join(name for name, _ in sizes.most_common())}: " if sizes else ""


def _in_memory(found: Inspected) -> str:
    """What each backend holds of the weights, and what it holds plain."""
    assert found.spec is not None
    weights, said = found.spec.stage_weights(LayerRange(0, found.spec.layers)), []
    for backend, size in found.held.items():
        plain = unpacked_bytes(weights, found.spec.dtype, backend)
        more = f", of which {exact_size_text(plain)} are weights in groups of 16, which it holds plain" if plain else ""
        said.append(f"{exact_size_text(size)} on {backend}{more}")
    return "; ".join(said)


def _sampling(defaults: SamplingDefaults) -> str:
    names = defaults.by_author or ("temperature", "top_p")
    values = ", ".join(f"{name} {getattr(defaults.sampling, name):g}" for name in names)
    return f"{values} ({'set by its author' if defaults.by_author else 'its author sets none'})"


def _parameters(total: int, active: int) -> str:
    return _count(total) if active == total else f"{_count(total)}, of which a token uses {_count(active)}"


def _count(number: int) -> str:
    for unit, scale in (("billion", 10**9), ("million", 10**6), ("thousand", 10**3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return str(number)


def _grouped(sizes: list[int]) -> str:
    """`16 of 121 MB`, or `1 of 30 MB, 26 of 585 MB`: runs of equal layers."""
    runs = [(size, len(list(run))) for size, run in groupby(sizes)]
    shown = ", ".join(f"{count} of {exact_size_text(size)}" for size, count in runs[:8])
    return shown + (f", and {len(runs) - 8} more runs" if len(runs) > 8 else "")


def _kv(summary: Summary, spec: ModelSpec | None) -> str:
    """What a sequence takes: layers of one model may keep different things, or nothing."""
    each = summary.kv_bytes_per_token_per_layer
    sizes = [] if spec is None else [state.per_token * DTYPE_BYTES[spec.dtype] for state in spec.states]
    if spec is not None and len(set(sizes)) > 1:
        kept = [size for size in sizes if size]
        fixed = sum(state.sequence_bytes(spec.dtype) for state in spec.states)
        shown = f"{exact_size_text(sum(kept))} per token, in {len(kept)} of {len(sizes)} layers"
        return shown + (f", and {exact_size_text(fixed)} for each sequence" if fixed else "")
    if each is None:
        return "unknown"
    return f"{each:,} bytes per token and layer, {exact_size_text(each * len(summary.layers))} per token"


def _runs(layers: Sequence[int]) -> str:
    """`14:35`, or several of them."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    stops = [layer + 1 for layer in layers if layer + 1 not in layers]
    return ", ".join(f"{start}:{stop}" for start, stop in zip(starts, stops, strict=True))
