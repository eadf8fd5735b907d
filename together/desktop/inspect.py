"""`inspect`: what a model is and weighs, from a folder or the hub. Knows no weights: config.json and headers alone."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from backends.base import BACKENDS
from together.desktop.show import print_table
from together.errors import BrokenModel, UnsupportedModel
from together.models.families import TOY
from together.models.files import Published, read_published
from together.models.fingerprint import fingerprint_of
from together.models.folder import json_object, read_json
from together.models.generation import SamplingDefaults, read_sampling_defaults
from together.models.headers import Headers, TensorInfo
from together.models.manifest import CONFIG
from together.models.spec import Described, described, require_runnable
from together.models.summary import Summary, summarize
from together.weights.find import resolve_model
from together.weights.hub_listing import read_remote
from together.weights.store import local_name
from together.wording import exact_size_text

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


def run_inspect(model: str, home: Path, as_json: bool) -> None:
    """Print what `model`, a folder, a known name or a hub id, is. Raises BadInput or Unreachable."""
    found = resolve_model(model, home)
    inspected = inspect_folder(found, home) if isinstance(found, Path) else inspect_hub(found, home)
    if as_json:
        print(json.dumps(inspected_json(inspected), indent=2))
    else:
        print_table(("", ""), _lines(inspected))


def inspect_folder(folder: Path, home: Path) -> Inspected:
    """A whole checkpoint, or a shard folder: all layers are described, also those that are not here."""
    config, published = read_json(folder, CONFIG), read_published(folder, local_name(folder, home))
    found, sampling = _found(folder, published), read_sampling_defaults(folder)
    return _inspected(str(folder.resolve()), config, published, found, sampling)


def inspect_hub(repo_id: str, home: Path) -> Inspected:
    """A model on the hub, by its headers; nothing of it stays but small files in a cache."""
    remote = read_remote(repo_id, home, small=_READ)
    config = json_object(Path(repo_id, CONFIG), remote.small[CONFIG])
    model = Headers()
    headers = tuple(model.check(Path(repo_id, file.name), file.header, file.size) for file in remote.files)
    digest = fingerprint_of(remote.small[CONFIG], remote.files)
    published = Published(repo_id, remote.revision, digest, headers)
    with tempfile.TemporaryDirectory(prefix="together-") as draft:
        small = Path(draft, repo_id.rpartition("/")[2])
        small.mkdir()
        for name, data in remote.small.items():
            (small / name).write_bytes(data)
        return _inspected(None, config, published, _found(small, published), read_sampling_defaults(small))


def _found(folder: Path, published: Published) -> Described | str:
    """The model, or the sentence why its family does not run here."""
    try:
        return described(folder, published)
    except UnsupportedModel as error:
        return str(error)


def _inspected(
    path: str | None,
    config: dict[str, Any],
    published: Published,
    found: Described | str,
    sampling: SamplingDefaults,
) -> Inspected:
    tensors: list[TensorInfo] = [tensor for header in published.headers for tensor in header.tensors]
    spec = None if isinstance(found, str) else found.spec
    reason = found if isinstance(found, str) else _refusal(found)
    runs = {TOY} if spec is not None and spec.family == TOY else set(BACKENDS) - {TOY}
    backends = {backend: reason is None and backend in runs for backend in BACKENDS}
    return Inspected(
        published.name,
        path,
        published.revision,
        published.fingerprint,
        summarize(config, tensors, spec),
        spec.windows if spec is not None else None,
        backends,
        reason,
        sampling,
    )


def _refusal(found: Described) -> str | None:
    """Why a model of a known family does not run here."""
    try:
        require_runnable(found)
    except (UnsupportedModel, BrokenModel) as error:
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


def _lines(found: Inspected) -> list[tuple[str, str]]:
    summary, known = found.summary, inspected_json(found)
    runs = ", ".join(backend for backend, able in found.backends.items() if able)
    lines = [
        ("model", found.name),
        ("where", found.path or f"on the hub, revision {found.revision[:12]}"),
        ("family", f"{summary.family}, runs on {runs}" if runs else f"{summary.family}, does not run here"),
        ("parameters", _parameters(known["params"], known["active_params"])),
        ("weights", f"{exact_size_text(known['total_bytes'])} in {summary.dtype}"),
        ("layers", _grouped([layer.bytes for layer in summary.layers])),
        ("embedding", exact_size_text(summary.embed.bytes)),
        ("norm", exact_size_text(summary.norm.bytes)),
        ("head", "tied to the embedding" if summary.tied else exact_size_text(summary.head.bytes)),
        ("KV cache", _kv(summary)),
        ("context", f"{summary.context:,} tokens" if summary.context else "unknown"),
        ("quantization", summary.quantization or "none"),
        ("sampling", _sampling(found.sampling)),
    ]
    if summary.experts:
        active = _grouped([layer.active_bytes for layer in summary.layers])
        lines.insert(6, ("experts", f"{summary.experts}, a token uses {summary.experts_per_token}: {active}"))
    if summary.other.bytes:
        lines.append(("beside", f"{exact_size_text(summary.other.bytes)} that belong to no layer"))
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
    shown = ", ".join(f"{count} of {exact_size_text(size)}" for size, count in runs[:8])
    return shown + (f", and {len(runs) - 8} more runs" if len(runs) > 8 else "")


def _kv(summary: Summary) -> str:
    each = summary.kv_bytes_per_token_per_layer
    if each is None:
        return "unknown"
    return f"{each:,} bytes per token and layer, {exact_size_text(each * len(summary.layers))} per token"
