"""Models of this machine: list, pull, delete, export. Only what is on the hub needs a network."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from together.commands import LINES, as_typed
from together.desktop.app_status import AppStatus
from together.desktop.client import find_running
from together.desktop.show import print_line, print_lines, print_table, progress_bars, working
from together.errors import BadPlan, BadSetting
from together.models.form import asked_form, form_title
from together.models.manifest import Manifest, describe
from together.models.names import hub_id, is_hub_name
from together.models.units import Unit, layer_ranges, units_for, words
from together.sentences import template
from together.settings import load_settings
from together.types import LayerRange
from together.weights.find import known_models, resolve_model
from together.weights.hub import describe_hub, fetch_units
from together.weights.offers import offers, offers_named
from together.weights.removal import delete_model, is_own
from together.weights.room import CacheRoom, cache_limit
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
        list_command(as_json)


@app.command("list", help=LINES["list"])
def list_command(as_json: AsJson = False) -> None:
    home = load_settings().home_path
    running = find_running(home)
    list_models(home, running.status() if running is not None else None, as_json)


@app.command("pull", help=LINES["pull"])
def pull_command(
    name: Annotated[str, typer.Argument(help="Of the hub, as org/name or org/name/file.gguf")],
    layers: Layers = None,
) -> None:
    pull(name, layers_of(layers), load_settings().home_path)


@app.command("rm", help=LINES["rm"])
def remove_command(
    name: Annotated[str, typer.Argument(help="As `models` lists it")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
    quantize: Annotated[
        str | None, typer.Option(help="Only this form: 4, 8, mxfp4, or no for the published one  [default: all]")
    ] = None,
    quantize_head: Annotated[str | None, typer.Option(help="no: the form whose embedding and head are plain")] = None,
) -> None:
    form = asked_form(quantize, quantize_head)
    if not remove(name, load_settings().home_path, (lambda _: True) if yes else typer.confirm, form):
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
    begun = [model for model in models if model.units or model.fault or not model.form]  # others were only planned for
    print_table(("model", "form", "size", "layers here", "where"), map(_row, begun))
    for name, held in nodes.items():
        print_lines((f"{name}: node {node} holds layers {', '.join(layers)}" for node, layers in held.items()))


def model_json(model: KnownModel) -> dict[str, Any]:
    """The keys stay. `held` are half-open layer ranges, `units` the pieces that are here, also embedding and head.

    `program` is whose files they are, if another program's. A model without a fingerprint was not read yet.
    """
    return {
        "name": model.name,
        "path": str(model.folder),
        "file": model.file or None,
        "program": model.program or None,
        "fingerprint": model.fingerprint,
        "form": model.form,
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
    return model.name, form_title(model.form), exact_size_text(model.bytes), held, model.where


# --- pull -------------------------------------------------------------------------------------------------------------


def pull(name: str, layers: LayerRange | None, home: Path) -> None:
    """Fetch a model, or what a stage of `layers` needs of it. After Ctrl-C the same command resumes.

    Raises BadInput, Unreachable or DiskFull.
    """
    name = hub_id(name)
    if not is_hub_name(name):
        message = "{name} is not the name of a model on the hub; write it as org/name, or org/name/file.gguf"
        raise BadSetting(message, name=quoted(name))
    store = Store(home)
    with working(f"asking the hub what {name} is"):
        manifest = describe_hub(name, store)
    units = units_for(manifest, layers or LayerRange(0, manifest.layers))
    room = CacheRoom(home, cache_limit(load_settings()), lambda gone: print_line(str(gone.sentence)))
    room.make(manifest.key, *store.lacking(manifest.key, units))
    try:
        _fetch(manifest, units, store)
    except KeyboardInterrupt:
        print_line(as_typed(f"stopped; python3 launch.py pull {name} resumes it"))
        raise
    print_line(f"{manifest.name}: {words(unit.name for unit in units)} are in {store.folder(manifest.fingerprint)}")


def _fetch(manifest: Manifest, units: Sequence[Unit], store: Store) -> None:
    """A thread fetches, so that the main thread is free to draw and to take Ctrl-C."""
    model = manifest.ref()
    total = sum(unit.size for unit in units)
    stop = threading.Event()
    name = TextColumn("{task.description}", markup=False)
    columns = name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with progress_bars(*columns) as bar, ThreadPoolExecutor(1, "pull") as pool:
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


# --- rm ---------------------------------------------------------------------------------------------------------------


def remove(name: str, home: Path, confirm: Callable[[str], bool], form: str | None = None) -> bool:
    """Delete a model in all its forms, or in one, from the app's own folders alone; False where `confirm` refused.

    Raises BadSetting elsewhere.
    """
    found = _named(name, home)
    if found and form is not None:
        forms = tuple(dict.fromkeys(form_title(model.form) for model in found))
        found = [model for model in found if model.form == form]
        if not found:
            message = "{name} is not here in the form {form}; it is here: {forms}"
            raise BadSetting(message, name=quoted(name), form=quoted(form_title(form)), forms=forms)
    own = [model for model in found if not model.unread and is_own(model.folder, home)]
    if not own:
        raise _not_ours(name, found)
    if not confirm(_question(name, own)):
        return False
    for model in own:
        delete_model(model, home)
        print_line(f"deleted {model.folder}" + (f"; {model.file} stays" if model.file else ""))
    return True


def _named(name: str, home: Path) -> list[KnownModel]:
    """The models of this name or fingerprint, else those that another program calls so."""
    known = known_models(home)
    found = [model for model in known if name and name in (model.name, model.fingerprint)]
    meant = offers_named(name, offers(home))
    files, titles = {str(offer.weights) for offer in meant}, {offer.title for offer in meant}
    return found or [one for one in known if one.file in files and (one.unread or one.name in titles)]


def _not_ours(name: str, found: Sequence[KnownModel]) -> BadSetting:
    if not found:
        return BadSetting(
            "there is no model {name} in this app's folders; see: python3 launch.py list", name=quoted(name)
        )
    programs = tuple(dict.fromkeys(model.program for model in found if model.program))
    if all(model.unread and not model.program for model in found):
        return BadSetting(
            "{name} is a file that was not loaded yet, {places}: there is nothing of it to forget; delete the file "
            "yourself if you do not want it",
            name=name,
            places=tuple(str(model.folder) for model in found),
        )
    return BadSetting(
        "{name} is in {places}, which is not this app's own folder; delete it {how}",
        name=name,
        places=tuple(model.file or str(model.folder) for model in found),
        how=template("with {programs:and}", programs=programs) if programs else template("there yourself"),
    )


def _question(name: str, own: Sequence[KnownModel]) -> str:
    places = ", ".join(str(model.folder) for model in own)
    if all(model.file for model in own):
        return f"Forget {name}, which was read from {own[0].file}, in {places}? The file stays."
    return f"Delete {name}, {exact_size_text(sum(model.bytes for model in own if not model.file))}, from {places}?"


# --- export -----------------------------------------------------------------------------------------------------------


def export_layers(model: str, layers: LayerRange | None, target: Path, home: Path) -> None:
    """Write layers of a model that is on this machine as a folder of its own. Raises BadInput or DiskFull."""
    folder = resolve_model(model, home)
    if isinstance(folder, str):
        raise BadSetting("{model} is not on this machine; get it first: python3 launch.py pull {model}", model=folder)
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
