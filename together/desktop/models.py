"""`models`: what this machine has, getting more from the hub, throwing away, exporting layers. Knows no running stage.

All of it works without a network but `pull`.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from together.desktop.client import find_running
from together.desktop.show import one_line, printable
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

Confirm = Callable[[str], bool]

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
    pull_and_say(name, layers, load_settings().home_path)


def pull_and_say(name: str, layers: str | None, home: Path) -> None:
    """`pull` with options as they are typed, its progress on this terminal."""
    pull(name, layers_of(layers), home, _say)


@app.command("rm")
def remove_command(
    name: Annotated[str, typer.Argument(help="As `models` lists it")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
) -> None:
    """Delete a model from the app's own folders; folders elsewhere are never touched."""
    if not remove(name, load_settings().home_path, (lambda _: True) if yes else _confirmed, _say):
        raise typer.Exit(1)


@app.command("export")
def export_command(
    model: Annotated[str, typer.Argument(help="Folder or name")],
    target: Annotated[Path, typer.Argument(help="New folder")],
    layers: Layers = None,
) -> None:
    """Write layers of a model as a folder of its own, with hashes: to carry to another machine."""
    export_layers(model, layers_of(layers), target, load_settings().home_path, _say)


def _confirmed(question: str) -> bool:
    """Asks on the terminal; no answer is no."""
    return typer.confirm(question)


def _say(line: str) -> None:
    print(printable(line), flush=True)


# --- list -------------------------------------------------------------------------------------------------------------


def list_models(home: Path, status: dict[str, Any] | None, as_json: bool) -> None:
    """Models of this machine; with the `status` of a running app also which nodes hold which layers."""
    models = known_models(home)
    nodes = nodes_holding(status) if status is not None else {}
    if as_json:
        print(json.dumps({"models": [model_json(model) for model in models], "nodes": nodes}, indent=2))
        return
    console = Console()
    table = Table("model", "size", "layers here", "where")
    for model in models:
        table.add_row(*(Text(one_line(text)) for text in _row(model)))
    console.print(table)
    for name, held in nodes.items():
        for node, ranges in held.items():
            console.print(Text(one_line(f"{name}: node {node} holds layers {', '.join(ranges)}")))


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


def nodes_holding(status: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Model → node → layer ranges of its stages, as `0:8`, from an app's `/status`."""
    found: dict[str, dict[str, list[str]]] = {}
    for node in status["nodes"]:
        for stage in node["stages"]:
            layers = f"{stage['layers']['start']}:{stage['layers']['stop']}"
            found.setdefault(stage["model"], {}).setdefault(node["name"], []).append(layers)
    return found


def _row(model: KnownModel) -> tuple[str, ...]:
    held = f"broken: {model.fault}" if model.fault else model.held
    if not model.whole and not model.fault:
        held += f" of {model.layers}"
    return model.name, exact_size_text(model.bytes), held, str(model.folder)


# --- pull -------------------------------------------------------------------------------------------------------------


def pull(name: str, layers: LayerRange | None, home: Path, say: Callable[[str], None]) -> None:
    """Fetch a model, or what a stage of `layers` needs of it. Ctrl-C leaves parts, and the same command goes on.

    Raises BadInput, Unreachable or DiskFull.
    """
    if not is_model_name(name) or name.count("/") != 1:
        raise BadSetting(f"{quoted(name)} is not the name of a model on the hub; write it as org/name")
    store = Store(home)
    manifest = describe_hub(name, store)
    units = wanted_units(manifest, layers)
    try:
        _fetch(manifest, units, store)
    except KeyboardInterrupt:
        say(f"stopped; what came is kept, together models pull {name} goes on")
        raise
    say(f"{name}: {words(unit.name for unit in units)} are in {store.folder(manifest.fingerprint)}")


def wanted_units(manifest: Manifest, layers: LayerRange | None) -> tuple[Unit, ...]:
    return units_for(manifest, layers or LayerRange(0, manifest.layers))


def _fetch(manifest: Manifest, units: Sequence[Unit], store: Store) -> None:
    """The main thread draws and hears Ctrl-C, another one fetches."""
    model = ModelRef(manifest.name, "", manifest.fingerprint, manifest.layers, manifest.revision)
    stop, failure = threading.Event(), list[BaseException]()
    with Progress(*_columns(), console=Console(stderr=True)) as bar:
        task = bar.add_task(manifest.name, total=sum(unit.size for unit in units))

        def work() -> None:
            try:
                fetch_units(model, units, store, lambda done, total: bar.update(task, completed=done), stop.is_set)
            except BaseException as error:  # whatever it is, the caller is told
                failure.append(error)

        worker = threading.Thread(target=work, name="pull")
        worker.start()
        try:
            while worker.is_alive():
                worker.join(0.1)
            bar.update(task, completed=sum(unit.size for unit in units) if not failure else None)
        finally:
            stop.set()
            worker.join()
    if failure:
        raise failure[0]


def _columns() -> tuple[Any, ...]:
    name = TextColumn("{task.description}", markup=False)
    return name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()


# --- rm ---------------------------------------------------------------------------------------------------------------


def remove(name: str, home: Path, confirm: Confirm, say: Callable[[str], None]) -> bool:
    """Delete a model from the app's own folders, after `confirm`; False if that said no. Never a folder elsewhere.

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
        say(f"deleted {model.folder}")
    return True


def is_own(folder: Path, home: Path) -> bool:
    """Whether it is the app's: a model in its cache, or a real folder under its `models`, not a link there."""
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


def export_layers(model: str, layers: LayerRange | None, target: Path, home: Path, say: Callable[[str], None]) -> None:
    """Write layers of a model that is on this machine as a folder of its own. Raises BadInput or DiskFull."""
    folder = resolve_model(model, home)
    if isinstance(folder, str):
        raise BadSetting(f"{folder} is not on this machine; get it first: together models pull {folder}")
    manifest = describe(folder, local_name(folder, home))
    made = export(folder, manifest, layers or LayerRange(0, manifest.layers), target)
    size = sum(file.stat().st_size for file in target.iterdir())
    say(f"{made.name}: {words(made.digests)} of {made.layers} layers, {exact_size_text(size)}, are in {target}")


def layers_of(text: str | None) -> LayerRange | None:
    """`"0:8"` → LayerRange(0, 8). Raises BadPlan."""
    if text is None:
        return None
    try:
        return LayerRange.parse(text)
    except ValueError as error:
        raise BadPlan(f"--layers: {error}") from None
