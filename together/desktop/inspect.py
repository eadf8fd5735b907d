"""`inspect`: what a model is and weighs, from a folder or the hub. Knows no weights: config.json and headers alone."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from backends.base import BACKENDS, LoadRequest
from backends.checks import check_model
from together.cluster.naming import resolve_model
from together.desktop.printable import printable
from together.errors import UnsupportedModel
from together.models.checkpoint import checkpoint_headers
from together.models.families import TOY
from together.models.folder import folder_name, folder_revision, json_object, read_json
from together.models.generation import SamplingDefaults, read_sampling_defaults
from together.models.headers import FileHeader, Headers, TensorInfo
from together.models.hub_listing import read_remote
from together.models.manifest import CONFIG, compose, is_shard, read_manifest
from together.models.original import fingerprint_of
from together.models.space import gigabytes
from together.models.spec import ModelSpec, fingerprint, read_shape, read_spec
from together.models.store import Store
from together.models.summary import Summary, summarize
from together.types import LayerRange

_READ = (CONFIG, "generation_config.json")


@dataclass(frozen=True, slots=True)
class Inspected:
    """A model, its sizes, and whether it runs here; `reason` is the sentence why not."""

    name: str
    path: str | None  # None: it is on the hub
    revision: str
    fingerprint: str
    summary: Summary
    windows: tuple[int | None, ...] | None
    backends: dict[str, bool]
    reason: str | None
    sampling: SamplingDefaults


def run_inspect(model: str, home: Path, as_json: bool) -> int:
    """Print what `model`, a folder, a known name or a hub id, is; the exit code. Raises BadInput or Unreachable."""
    found = resolve_model(model, home)
    inspected = inspect_folder(found) if isinstance(found, Path) else inspect_hub(str(found), home)
    if as_json:
        print(json.dumps(inspected_json(inspected), indent=2))
    else:
        show(inspected, Console())
    return 0


def inspect_folder(folder: Path) -> Inspected:
    """A whole checkpoint, or a shard folder: all layers are described, also those that are not here."""
    config = read_json(folder, CONFIG)
    if is_shard(folder):
        manifest = read_manifest(folder)
        name, revision, headers = manifest.name, manifest.revision, manifest.headers
    else:
        name, revision, headers = folder_name(folder), folder_revision(folder), checkpoint_headers(folder)
    spec, reason = _spec(folder)
    digest = fingerprint(folder)
    sampling = read_sampling_defaults(folder)
    return _inspected(name, str(folder.resolve()), revision, digest, config, headers, spec, reason, sampling)


def inspect_hub(repo_id: str, home: Path) -> Inspected:
    """A model on the hub, by its headers; nothing of it stays but small files in a cache."""
    remote = read_remote(repo_id, home, small=_READ)
    config = json_object(Path(repo_id, CONFIG), remote.small[CONFIG])
    model = Headers()
    headers = tuple(model.check(Path(repo_id, file.name), file.header, file.size) for file in remote.files)
    with tempfile.TemporaryDirectory(prefix="together-") as draft:
        small = Path(draft, "small", repo_id.rpartition("/")[2])
        small.mkdir(parents=True)
        for name, data in remote.small.items():
            (small / name).write_bytes(data)
        spec, reason, sampling = None, _unsupported(small), read_sampling_defaults(small)
        if reason is None:
            store = Store(Path(draft))
            manifest = compose(repo_id, remote.files, remote.small, remote.revision)
            store.begin(manifest, remote.small)
            spec, reason = _spec(store.folder(manifest.fingerprint))
    digest = fingerprint_of(remote.small[CONFIG], remote.files)
    return _inspected(repo_id, None, remote.revision, digest, config, headers, spec, reason, sampling)


def _spec(folder: Path) -> tuple[ModelSpec | None, str | None]:
    reason = _unsupported(folder)
    return (None, reason) if reason else (read_spec(folder), None)


def _unsupported(folder: Path) -> str | None:
    """Why the family does not run here."""
    try:
        read_shape(folder)
    except UnsupportedModel as error:
        return str(error)
    return None


def _inspected(
    name: str,
    path: str | None,
    revision: str,
    digest: str,
    config: dict[str, Any],
    headers: Sequence[FileHeader],
    spec: ModelSpec | None,
    reason: str | None,
    sampling: SamplingDefaults,
) -> Inspected:
    tensors: list[TensorInfo] = [tensor for header in headers for tensor in header.tensors]
    reason = reason or _refusal(spec)
    runs = {TOY} if spec is not None and spec.family == TOY else set(BACKENDS) - {TOY}
    backends = {backend: reason is None and backend in runs for backend in BACKENDS}
    windows = spec.windows if spec is not None else None
    summary = summarize(config, tensors, spec)
    return Inspected(name, path, revision, digest, summary, windows, backends, reason, sampling)


def _refusal(spec: ModelSpec | None) -> str | None:
    """What the backends say to a model whose family they know."""
    if spec is None or spec.family == TOY:
        return None
    try:
        check_model(spec, LoadRequest(Path(), LayerRange(0, spec.layers), "cpu", spec.dtype, 0))
    except UnsupportedModel as error:
        return str(error)
    return None


# --- showing ----------------------------------------------------------------------------------------------------------


def inspected_json(found: Inspected) -> dict[str, Any]:
    """The keys stay; sizes are bytes as stored, None is unknown. Layers have an entry each."""
    summary = found.summary
    plain = ("hidden_size", "vocab_size", "heads", "kv_heads", "head_dim", "context", "dtype", "quantization", "tied")
    return {
        "name": found.name,
        "path": found.path,
        "revision": found.revision,
        "fingerprint": found.fingerprint,
        "family": summary.family,
        "supported": found.reason is None,
        "reason": found.reason,
        "backends": found.backends,
        "layers": len(summary.layers),
        **{key: getattr(summary, key) for key in plain},
        "layer_bytes": [layer.bytes for layer in summary.layers],
        "layer_active_bytes": [layer.active_bytes for layer in summary.layers],
        "embed_bytes": summary.embed.bytes,
        "norm_bytes": summary.norm.bytes,
        "head_bytes": summary.head.bytes,
        "other_bytes": summary.other.bytes,
        "total_bytes": sum(part.bytes for part in summary.parts),
        "kv_bytes_per_token_per_layer": summary.kv_bytes_per_token_per_layer,
        "windows": None if found.windows is None else list(found.windows),
        "experts": summary.experts,
        "experts_per_token": summary.experts_per_token,
        "params": sum(part.params for part in summary.parts),
        "active_params": sum(part.active_params for part in summary.parts),
        "sampling_defaults": found.sampling.json(),
        "sampling_by_author": list(found.sampling.by_author),
    }


def show(found: Inspected, console: Console) -> None:
    """For a person. Names and families are strangers' words, so never markup."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, text in _lines(found):
        table.add_row(Text(label), Text(printable(text)))
    console.print(table)


def _lines(found: Inspected) -> list[tuple[str, str]]:
    summary, known = found.summary, inspected_json(found)
    runs = ", ".join(backend for backend, able in found.backends.items() if able)
    lines = [
        ("model", found.name),
        ("where", found.path or f"on the hub, revision {found.revision[:12]}"),
        ("family", f"{summary.family}, runs on {runs}" if runs else f"{summary.family}, does not run here"),
        ("parameters", _parameters(known["params"], known["active_params"])),
        ("weights", f"{gigabytes(known['total_bytes'])} in {summary.dtype}"),
        ("layers", _grouped([layer.bytes for layer in summary.layers])),
        ("embedding", gigabytes(summary.embed.bytes)),
        ("norm", gigabytes(summary.norm.bytes)),
        ("head", "tied to the embedding" if summary.tied else gigabytes(summary.head.bytes)),
        ("KV cache", _kv(summary)),
        ("context", f"{summary.context:,} tokens" if summary.context else "unknown"),
        ("quantization", summary.quantization or "none"),
        ("sampling", _sampling(found.sampling)),
    ]
    if summary.experts:
        active = _grouped([layer.active_bytes for layer in summary.layers])
        lines.insert(6, ("experts", f"{summary.experts}, a token uses {summary.experts_per_token}: {active}"))
    if summary.other.bytes:
        lines.append(("beside", f"{gigabytes(summary.other.bytes)} that belong to no layer"))
    return lines + ([("why not", found.reason)] if found.reason else [])


def _sampling(defaults: SamplingDefaults) -> str:
    """The defaults that the author sets, or ours."""
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
    shown = ", ".join(f"{count} of {gigabytes(size)}" for size, count in runs[:8])
    return shown + (f", and {len(runs) - 8} more runs" if len(runs) > 8 else "")


def _kv(summary: Summary) -> str:
    each = summary.kv_bytes_per_token_per_layer
    if each is None:
        return "unknown"
    return f"{each:,} bytes per token and layer, {gigabytes(each * len(summary.layers))} per token"
