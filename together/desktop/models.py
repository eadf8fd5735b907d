"""`models`: list the models of this machine, pull, delete, export. Only `pull` needs a network."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from together.desktop.client import AppStatus, find_running
from together.desktop.show import print_line, print_lines, print_table
from together.errors import BadPlan, BadSetting
from together.models.manifest import Manifest, describe
from together.models.names import is_model_name
from together.models.units import Unit, layer_ranges, units_for, words
from together.settings import load_settings
from together.types import LayerRange, ModelRef
from together.weights.find import known_models, resolve_model
from together.weights.hub import describe_hub, fetch_units
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
    nodes = nodes_holding(status) if status is not None else {}
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


def nodes_holding(status: AppStatus) -> dict[str, dict[str, list[str]]]:
    """Model → node → layer ranges of its stages, as `0:8`."""
    found: dict[str, dict[str, list[str]]] = {}
    for node in status.nodes:
        for stage in node.stages:
            found.setdefault(stage.model, {}).setdefault(node.name, []).append(str(stage.layers))
    return found


def _row(model: KnownModel) -> tuple[str, ...]:
    held = f"broken: {model.fault}" if model.fault else model.held
    if not model.whole and not model.fault:
        held += f" of {model.layers}"
    return model.name, exact_size_text(model.bytes), held, str(model.folder)


# --- pull -------------------------------------------------------------------------------------------------------------


def pull(name: str, layers: LayerRange | None, home: Path) -> None:
    """Fetch a model, or what a stage of `layers` needs of it. After Ctrl-C the same command resumes.

    Raises BadInput, Unreachable or DiskFull.
    """
    if not is_model_name(name) or name.count("/") != 1:
        raise BadSetting(f"{quoted(name)} is not the name of a model on the hub; write it as org/name")
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
    """Delete a model from the app's own folders, never elsewhere; False where `confirm` refused.

    Raises BadSetting for a model that is not here, or only in folders that are not the app's.
    """
    found = [model for model in known_models(home) if name in (model.name, model.fingerprint)]
    own = [model for model in found if is_own(model.folder, home)]
    if not own:
        raise BadSetting(_not_own(name, found))
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


def _not_own(name: str, found: Iterable[KnownModel]) -> str:
    places = ", ".join(str(model.folder) for model in found)
    if places:
        return f"{name} is in {places}, which is not this app's own folder; delete it there yourself"
    return f"there is no model {quoted(name)} in this app's folders; see: together models"


# --- export -----------------------------------------------------------------------------------------------------------


def export_layers(model: str, layers: LayerRange | None, target: Path, home: Path) -> None:
    """Write layers of a model that is on this machine as a folder of its own. Raises BadInput or DiskFull."""
    folder = resolve_model(model, home)
    if isinstance(folder, str):
        raise BadSetting(f"{folder} is not on this machine; get it first: together models pull {folder}")
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
        raise BadPlan(f"--layers: {error}") from None
