"""Options that several commands share, and the commands about plans and models.

These are load, unload, balance, forget, inspect, convert, models, list, pull and rm. What each does in a line is in
together/commands.py.
"""

from __future__ import annotations

import logging
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from together.commands import LINES, as_typed, launch
from together.desktop.show import Formatter, load_and_show, load_last_and_show, print_line
from together.errors import BadPlan, BadSetting
from together.processes import FILED
from together.settings import Settings, load_settings
from together.wording import count_text, reason_of

if TYPE_CHECKING:
    from together.desktop.client import RunningApp
    from together.planning.request import PlanRequest

app = typer.Typer()
DEFAULTS = Settings()

LogLevel = Annotated[str | None, typer.Option(help=f"DEBUG, INFO, WARNING or ERROR  [default: {DEFAULTS.log_level}]")]
Host = Annotated[str | None, typer.Option(help=f"Where to listen; 0.0.0.0 is the network  [default: {DEFAULTS.host}]")]
Peers = Annotated[
    list[str] | None, typer.Option("--peer", help="As the other machine prints it, where it is not found")
]
WithParent = Annotated[bool, typer.Option("--with-parent", hidden=True)]
Backend = Annotated[str | None, typer.Option(help="torch, mlx or checksum  [default: what fits this machine]")]
Memory = Annotated[str | None, typer.Option(help="What a node may use, as 8GB  [default: all that is free]")]
Cache = Annotated[str | None, typer.Option(help="What models may take of the disk, as 200GB  [default: half of it]")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs")]
Strategy = Annotated[
    str | None, typer.Option(help="recommend, uniform, memory, compute, mixed, ratio or custom  [default: recommend]")
]
Users = Annotated[int | None, typer.Option(min=1, help=f"Users at once  [default: {DEFAULTS.users}, or what fits]")]
SamplingDefault = Annotated[
    str | None,
    typer.Option("--sampling", help="Where a request is silent: default is the author's values, plain cuts nothing"),
]
Context = Annotated[
    int | None, typer.Option(min=1, help=f"Tokens of each conversation  [default: {DEFAULTS.context}, or what fits]")
]
Layers = Annotated[
    str | None, typer.Option(help="Layers of each stage, as studio=0:8,mini=8:16 or 0:8,8:16  [default: recommended]")
]

Quantize = Annotated[
    str | None, typer.Option(help="4, 8 or mxfp4: machines quantize a plain model  [default: as published]")
]
QuantizeHead = Annotated[
    str | None, typer.Option(help="no: with --quantize, leave embedding and LM head plain  [default: yes]")
]
Beside = Annotated[bool, typer.Option("--beside", help="What is served goes on  [default: it is replaced]")]
Served = Annotated[str | None, typer.Argument(help="Which one, where several models are served, as status names it")]
OfServed = Annotated[
    str | None, typer.Option("--model", help="Which one, where several models are served, as status names it")
]


def settings_with(**given: object) -> Settings:
    """Settings with a command's options over them, and the log at their level. Raises BadSetting."""
    settings = load_settings(None, **given)
    level = settings.log_level.upper()
    if level not in logging.getLevelNamesMapping():
        raise BadSetting(
            "there is no log level {name!r}; choose DEBUG, INFO, WARNING or ERROR", name=settings.log_level
        )
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.getLevelNamesMapping()[level] >= logging.WARNING  # for a person, not for who looks for a bug
    handler.setFormatter(Formatter("together: %(message)s" if plain else "%(levelname)s %(name)s: %(message)s"))
    handler.setLevel(level)  # a file may hear more
    logging.getLogger(FILED).propagate = False
    logging.basicConfig(level=level, handlers=[handler])
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log a line per request
    return settings


PASSED_ON: dict[str, Any] = {  # for a command whose own app reads its options, and is loaded only then
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    "add_help_option": False,
}


def command(app: typer.Typer, name: str, **more: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command under the name and with the line that people find in the list of commands."""
    return app.command(name, help=LINES[name], **more)


def hand_over(app: typer.Typer, arguments: Sequence[str], name: str = "") -> None:
    """Let another command line read on; `name` is what it is called after `python3 launch.py`."""
    if code := app(list(arguments), prog_name=launch(name), standalone_mode=False):
        raise typer.Exit(code)


def running_app(log_level: str | None = None) -> RunningApp:
    """This user's app. Raises AppError where none runs."""
    from together.desktop.client import require_running

    return require_running(settings_with(log_level=log_level).home_path)


def given(**options: object) -> dict[str, object]:
    """The options that have a value, as the body of a request to the running app."""
    return {name: value for name, value in options.items() if value is not None}


def model_of(text: str | None, settings: Settings) -> str | None:
    """`--model` as any process of ours understands it. Raises BadSetting where no model can be."""
    if text is None:
        return None
    from together.weights.find import resolve_model

    found = resolve_model(text, settings.home_path)
    return str(found.resolve()) if isinstance(found, Path) else found


def request_of(
    model: str | None,
    usual: str,
    strategy: str | None = None,
    layers: str | None = None,
    users: int | None = None,
    context: int | None = None,
    quantize: str | None = None,
    quantize_head: str | None = None,
) -> PlanRequest:
    """How a model is to be split, and its form; `layers` are checked against the model where it is on this machine.

    Raises BadPlan or BadSetting.
    """
    from together.models.form import asked_form
    from together.models.remarks import remarks
    from together.models.spec import read_spec
    from together.planning.request import parse_request
    from together.planning.score import range_violations
    from together.weights.find import BUNDLED

    how = parse_request(usual, strategy, layers=layers, users=users, context=context)
    request = replace(how, form=asked_form(quantize, quantize_head))
    folder = BUNDLED if model is None else Path(model)
    if request.assignments and folder.is_dir():
        with remarks():  # they are the app's to say
            spec = read_spec(folder)
            wrong = range_violations(request.assignments, spec.layers, spec.joined)
        if wrong:
            raise BadPlan("--layers: {wrong:all}", wrong=tuple(wrong))
    return request


# --- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SavedStage:
    """Layers `start` to `stop`, half-open, of one node."""

    node: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """A file of `plan --json`: who takes which layers, and what it was made for where it says so."""

    stages: tuple[SavedStage, ...]
    context: int | None = None
    users: int | None = None

    @property
    def layers(self) -> str:
        """As `--layers` takes them."""
        return ",".join(f"{stage.node}={stage.start}:{stage.stop}" for stage in self.stages)


def saved_plan(file: Path) -> SavedPlan:
    """Raises BadSetting for anything that `plan --json` does not write."""
    from together.jsonfile import decode_json

    try:
        return decode_json(file.read_bytes().removeprefix(BOM_UTF8), SavedPlan)
    except (OSError, ValueError) as error:
        raise BadSetting(
            "--plan {file} is not what python3 launch.py plan --json writes ({error})",
            file=str(file),
            error=reason_of(error),
        ) from None


@command(app, "load")
def load(
    model: Annotated[
        str | None,
        typer.Argument(help="Folder, GGUF file, name or hub id, as org/name  [default: the last one, as it was]"),
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="A file of plan --json: who takes which layers")] = None,
    strategy: Strategy = None,
    layers: Layers = None,
    users: Users = None,
    context: Context = None,
    quantize: Quantize = None,
    quantize_head: QuantizeHead = None,
    beside: Beside = False,
    keep: Annotated[
        bool | None, typer.Option("--keep/--no-keep", help="No other model may have its memory  [default: as before]")
    ] = None,
    log_level: LogLevel = None,
) -> None:
    settings = settings_with(log_level=log_level)
    form = given(quantize=quantize, quantize_head=quantize_head, beside=beside or None, keep=keep)
    if model is None:
        if form or given(plan=plan, strategy=strategy, layers=layers, users=users, context=context):
            raise BadSetting("these options are for a model: name it, as python3 launch.py load org/name")
        load_last_and_show(running_app())
        return
    if plan is not None:
        if layers is not None or strategy is not None:
            raise BadSetting("--plan says who takes which layers; leave --layers and --strategy out")
        saved = saved_plan(plan)
        layers, context, users = saved.layers, context or saved.context, users or saved.users
    running = running_app()
    name = model if running.status().serving_of(model) is not None else model_of(model, settings)
    order = given(model=name, strategy=strategy, layers=layers, users=users, context=context)
    load_and_show(running, order | form)


@command(app, "unload")
def unload(model: Served = None, log_level: LogLevel = None) -> None:
    running_app(log_level).ask("unload", given(model=model))
    print("unloaded")


@command(app, "balance")
def balance(model: Served = None, log_level: LogLevel = None) -> None:
    load_and_show(running_app(log_level), given(model=model), action="balance")


@command(app, "forget")
def forget(
    node: Annotated[str | None, typer.Argument(help="Its name or id, as status shows it")] = None,
    texts: Annotated[
        bool, typer.Option("--texts", help="What the app keeps of chats: conversations, pictures, caches")
    ] = False,
    key: Annotated[str | None, typer.Option(help="With --texts: of one key alone, or local  [default: all]")] = None,
    log_level: LogLevel = None,
) -> None:
    if (node is None) != texts or (key is not None and not texts):
        raise BadSetting("name a node, or give --texts, with --key NAME for one key's: python3 launch.py help forget")
    if node is None:
        _forget_texts(key, log_level)
        return
    running_app(log_level).ask("forget", {"node": node})
    print_line(as_typed(f"the next plan may use all memory of {node}; to make one now: python3 launch.py load"))


def _forget_texts(key: str | None, log_level: str | None) -> None:
    from together.api.keys import KeyFile
    from together.desktop.keys import owner_of

    running = running_app(log_level)
    order = given(owner=owner_of(key, KeyFile.of(settings_with())) if key is not None else None)
    whose = "of everybody" if key is None else f"of {key}"
    typer.confirm(f"Delete all conversations and presets {whose}, and forget their texts?", abort=True)
    gone = running.ask("forget-texts", order)
    names = {"chats": "conversation", "caches": "cached text"}
    print_line(f"gone are {', '.join(count_text(gone[name], what) for name, what in names.items())}")


@command(app, "inspect")
def inspect(
    model: Annotated[str, typer.Argument(help="Folder, GGUF file, name or hub id, as org/name")],
    as_json: AsJson = False,
    log_level: LogLevel = None,
) -> None:
    settings = settings_with(log_level=log_level)
    from together.desktop.inspected import run_inspect

    run_inspect(model, settings.home_path, as_json)


@command(app, "convert")
def convert(
    model: Annotated[str, typer.Argument(help="Folder, GGUF file or name of a model on this machine")],
    folder: Annotated[Path, typer.Argument(help="A new folder")],
    quantize: Annotated[
        str | None, typer.Option(help="4, 8 or mxfp4: quantize what is plain or has more bits  [default: no]")
    ] = None,
    quantize_head: QuantizeHead = None,
    log_level: LogLevel = None,
) -> None:
    settings = settings_with(log_level=log_level)
    from together.desktop.convert import run_convert

    run_convert(model, folder, quantize, quantize_head, settings.home_path)


def _models(*arguments: str, name: str = "") -> None:
    settings_with()
    from together.desktop.models import app as models_app

    hand_over(models_app, arguments, name)


@command(app, "models", **PASSED_ON)
def models(context: typer.Context) -> None:
    _models(*context.args, name="models")


@command(app, "list", **PASSED_ON)
def list_(context: typer.Context) -> None:
    _models("list", *context.args)


@command(app, "pull", **PASSED_ON)
def pull(context: typer.Context) -> None:
    _models("pull", *context.args)


@command(app, "rm", **PASSED_ON)
def rm(context: typer.Context) -> None:
    _models("rm", *context.args)
