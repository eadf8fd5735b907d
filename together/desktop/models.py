"""Models of this machine: list, inspect, pull, delete, export. Only what is on the hub needs a network."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from backends.base import BACKENDS
from together.desktop.client import AppStatus, find_running
from together.desktop.show import print_line, print_lines, print_table
from together.errors import BadPlan, BadSetting, BrokenModel, UnsupportedModel
from together.models.config import TOY
from together.models.folder import json_object, read_json
from together.models.generation import SamplingDefaults, read_sampling_defaults
from together.models.headers import Headers
from together.models.manifest import CONFIG, Manifest, describe
from together.models.names import is_model_name
from together.models.reading import Published, read_published
from together.models.spec import ModelSpec, described, require_runnable
from together.models.summary import Summary, summarize
from together.models.units import Unit, fingerprint_of, layer_ranges, units_for, words
from together.settings import load_settings
from together.types import LayerRange, ModelRef
from together.weights.find import known_models, resolve_model
from together.weights.hub import describe_hub, fetch_units
from together.weights.hub_listing import read_remote
from together.weights.store import KnownModel, Store, export, local_name
from together.wording import exact_size_text, quoted

app = typer.Typer(
    add_completion=False, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
AsJson = Annotated[bool, typer.Option("--json", help="For programs")]
Layers = Annotated[str | None, typer.Option(help="Only what a stage of these layers needs, as 0:8  [default: all]")]


@app.callback()
def models(context: typer.Context, as_json: AsJson = False) -> None:
    """Models of this machine: name, size, which layers are here, and which nodes of the running app hold some."""
    if context.invoked_subcommand is None:
        home = load_settings().home_path
        running = find_running(home)
        list_models(home, running.status() if running is not None else None, as_json)


@app.command("pull")
def pull_command(
    name: Annotated[str, typer.Argument(help="Of the hub, as org/name")],
    layers: Layers = None,
) -> None:
    """Get a model from the hub, or some of its layers; goes on where an earlier pull ended."""
    pull(name, layers_of(layers), load_settings().home_path)


@app.command("rm")
def remove_command(
    name: Annotated[str, typer.Argument(help="As `models` lists it")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
) -> None:
    """Delete a model from the app's own folders; folders elsewhere are never touched."""
    if not remove(name, load_settings().home_path, (lambda _: True) if yes else typer.confirm):
        raise typer.Exit(1)


@app.command("export")
def export_command(
    model: Annotated[str, typer.Argument(help="Folder or name")],
    target: Annotated[Path, typer.Argument(help="New folder")],
    layers: Layers = None,
) -> None:
    """Write layers of a model as a folder of its own, with hashes: to carry to another machine."""
    export_layers(model, layers_of(layers), target, load_settings().home_path)


# --- list -------------------------------------------------------------------------------------------------------------


def list_models(home: Path, status: AppStatus | None, as_json: bool) -> None:
    """Models of this machine; with the `status` of a running app also which nodes hold which layers."""
    models = known_models(home)
    nodes: dict[str, dict[str, list[str]]] = {}  # model → node → layers of its stages, as `0:8`
    for node in status.nodes if status is not None else ():
        for stage in node.stages:
            nodes.setdefault(stage.model, {}).setdefault(node.name, []).append(str(stage.layers))
    if as_json:
        print(json.dumps({"models": [model_json(model) for model in models], "nodes": nodes}, indent=2))
        return
    print_table(("model", "size", "layers here", "where"), map(_row, models))
    for name, held in nodes.items():
        print_lines((f"{name}: node {node} holds layers {', '.join(layers)}" for node, layers in held.items()))


def model_json(model: KnownModel) -> dict[str, Any]:
    """The keys stay. `held` are half-open layer ranges, `units` the pieces that are here, also embedding and head."""
    return {
        "name": model.name,
        "path": str(model.folder),
        "fingerprint": model.fingerprint,
        "revision": model.revision,
        "layers": model.layers,
        "held": [[item.start, item.stop] for item in layer_ranges(model.units)],
        "units": list(model.units),
        "whole": model.whole,
        "bytes": model.bytes,
        "fault": model.fault or None,
    }


def _row(model: KnownModel) -> tuple[str, ...]:
    part = "" if model.whole else f" of {model.layers}"
    held = f"broken: {model.fault}" if model.fault else f"{model.held}{part}"
    return model.name, exact_size_text(model.bytes), held, str(model.folder)


# --- pull -------------------------------------------------------------------------------------------------------------


def pull(name: str, layers: LayerRange | None, home: Path) -> None:
    """Fetch a model, or what a stage of `layers` needs of it. After Ctrl-C the same command resumes.

    Raises BadInput, Unreachable or DiskFull.
    """
    if not is_model_name(name) or name.count("/") != 1:
        raise BadSetting("{name} is not the name of a model on the hub; write it as org/name", name=quoted(name))
    store = Store(home)
    manifest = describe_hub(name, store)
    units = units_for(manifest, layers or LayerRange(0, manifest.layers))
    try:
        _fetch(manifest, units, store)
    except KeyboardInterrupt:
        print_line(f"stopped; together models pull {name} resumes it")
        raise
    print_line(f"{name}: {words(unit.name for unit in units)} are in {store.folder(manifest.fingerprint)}")


def _fetch(manifest: Manifest, units: Sequence[Unit], store: Store) -> None:
    """A thread fetches, so that the main thread is free to draw and to take Ctrl-C."""
    model = ModelRef(manifest.name, "", manifest.fingerprint, manifest.layers, manifest.revision)
    total = sum(unit.size for unit in units)
    stop = threading.Event()
    name = TextColumn("{task.description}", markup=False)
    columns = name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar, ThreadPoolExecutor(1, "pull") as pool:
        task = bar.add_task(manifest.name, total=total)
        fetched = pool.submit(
            fetch_units, model, units, store, lambda done, _: bar.update(task, completed=done), stop.is_set
        )
        try:
            while not wait([fetched], timeout=0.1).done:
                pass  # on Windows, Ctrl-C does not end a wait without a timeout
            fetched.result()
        finally:
            stop.set()
        bar.update(task, completed=total)


# --- rm ---------------------------------------------------------------------------------------------------------------


def remove(name: str, home: Path, confirm: Callable[[str], bool]) -> bool:
    """Delete a model from the app's own folders alone; False where `confirm` refused. Raises BadSetting elsewhere."""
    found = [model for model in known_models(home) if name in (model.name, model.fingerprint)]
    own = [model for model in found if is_own(model.folder, home)]
    if not found:
        raise BadSetting("there is no model {name} in this app's folders; see: together models", name=quoted(name))
    if not own:
        raise BadSetting(
            "{name} is in {places}, which is not this app's own folder; delete it there yourself",
            name=name,
            places=tuple(str(model.folder) for model in found),
        )
    size = exact_size_text(sum(model.bytes for model in own))
    if not confirm(f"Delete {name}, {size}, from {', '.join(str(model.folder) for model in own)}?"):
        return False
    for model in own:
        _delete(model, home)
        print_line(f"deleted {model.folder}")
    return True


def is_own(folder: Path, home: Path) -> bool:
    """Whether it is a model in the app's cache, or a real folder under its `models`, not a link there."""
    if folder.is_symlink():
        return False
    root, place = home.resolve(), folder.resolve()
    return place.parent == root / "shards" or root / "models" in place.parents


def _delete(model: KnownModel, home: Path) -> None:
    if model.folder.parent.name == "shards" and model.folder.parent.resolve() == home.resolve() / "shards":
        Store(home).remove(model.folder.name)
    else:
        shutil.rmtree(model.folder)
    shutil.rmtree(home / "hub" / f"models--{model.name.replace('/', '--')}", ignore_errors=True)  # its small files


# --- export -----------------------------------------------------------------------------------------------------------


def export_layers(model: str, layers: LayerRange | None, target: Path, home: Path) -> None:
    """Write layers of a model that is on this machine as a folder of its own. Raises BadInput or DiskFull."""
    folder = resolve_model(model, home)
    if isinstance(folder, str):
        raise BadSetting("{model} is not on this machine; get it first: together models pull {model}", model=folder)
    manifest = describe(folder, local_name(folder, home))
    made = export(folder, manifest, layers or LayerRange(0, manifest.layers), target)
    size = sum(file.stat().st_size for file in target.iterdir())
    print_line(f"{made.name}: {words(made.digests)} of {made.layers} layers, {exact_size_text(size)}, are in {target}")


def layers_of(text: str | None) -> LayerRange | None:
    """`"0:8"` → LayerRange(0, 8). Raises BadPlan."""
    if text is None:
        return None
    try:
        return LayerRange.parse(text)
    except ValueError as error:
        raise BadPlan("--layers: {error}", error=str(error)) from None


# --- inspect ----------------------------------------------------------------------------------------------------------


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


def run_inspect(model: str, home: Path, as_json: bool) -> None:
    """Print what `model`, a folder, a known name or a hub id, is. Raises BadInput or Unreachable."""
    found = resolve_model(model, home)
    inspected = inspect_folder(found, home) if isinstance(found, Path) else inspect_hub(found, home)
    if as_json:
        print(json.dumps(inspected_json(inspected), indent=2))
    else:
        print_table(("", ""), _lines(inspected))


def inspect_folder(folder: Path, home: Path) -> Inspected:
    """A whole checkpoint, or a shard folder: all layers are described, even those that are not here."""
    config, published = read_json(folder, CONFIG), read_published(folder, local_name(folder, home))
    return _inspected(str(folder.resolve()), folder, config, published)


def inspect_hub(repo_id: str, home: Path) -> Inspected:
    """A model on the hub, by its headers; only small files stay, in a cache."""
    remote = read_remote(repo_id, home, small=(CONFIG, "generation_config.json"))
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
        return _inspected(None, small, config, published)


def _inspected(path: str | None, folder: Path, config: dict[str, Any], published: Published) -> Inspected:
    """`folder` has the small files."""
    spec, reason = None, None
    try:
        found = described(folder, published)
        spec = found.spec
        require_runnable(found)
    except (UnsupportedModel, BrokenModel) as error:
        if spec is None and isinstance(error, BrokenModel):
            raise
        reason = str(error)
    tensors = [tensor for header in published.headers for tensor in header.tensors]
    summary = summarize(config, tensors, spec)
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
        "norm_bytes": summary.norm.bytes,
        "head_bytes": summary.head.bytes,
        "other_bytes": summary.other.bytes,
        "total_bytes": sum(part.bytes for part in summary.parts),
        "kv_bytes_per_token_per_layer": summary.kv_bytes_per_token_per_layer,
        "windows": None if found.spec is None else list(found.spec.windows),
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
        ("model", found.published.name),
        ("where", found.path or f"on the hub, revision {found.published.revision[:12]}"),
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
        lines.append(("other", f"{exact_size_text(summary.other.bytes)} that belong to no layer"))
    return lines + ([("why not", found.reason)] if found.reason else [])


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


def _kv(summary: Summary) -> str:
    each = summary.kv_bytes_per_token_per_layer
    if each is None:
        return "unknown"
    return f"{each:,} bytes per token and layer, {exact_size_text(each * len(summary.layers))} per token"
