"""Options that several commands share, and the commands about plans and models.

These are plan, load, unload, balance, forget, inspect, models and pull.
"""

from __future__ import annotations

import json
import logging
import sys
from codecs import BOM_UTF8
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from together.cluster_types import Endpoint
from together.desktop.show import Formatter, load_and_show, load_last_and_show, printable
from together.errors import BadPlan, BadSetting
from together.settings import Settings, load_settings

if TYPE_CHECKING:
    from together.desktop.client import RunningApp
    from together.planning.request import PlanRequest

app = typer.Typer()
DOES_NOT_FIT = 3  # exit code
DEFAULTS = Settings()

LogLevel = Annotated[str | None, typer.Option(help=f"DEBUG, INFO, WARNING or ERROR  [default: {DEFAULTS.log_level}]")]
Host = Annotated[str | None, typer.Option(help=f"Where to listen; 0.0.0.0 is the network  [default: {DEFAULTS.host}]")]
Peers = Annotated[list[str] | None, typer.Option("--peer", help="host:port of a node, where machines do not find it")]
WithParent = Annotated[bool, typer.Option("--with-parent", hidden=True)]
Backend = Annotated[str | None, typer.Option(help="torch, mlx or checksum  [default: what fits this machine]")]
Memory = Annotated[str | None, typer.Option(help="What a node may use, as 8GB  [default: all that is free]")]
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


def settings_with(**given: object) -> Settings:
    """Settings with a command's options over them, and the log at their level. Raises BadSetting."""
    settings = load_settings(None, **given)
    level = settings.log_level.upper()
    if level not in logging.getLevelNamesMapping():
        raise BadSetting(
            "there is no log level {name!r}; choose DEBUG, INFO, WARNING or ERROR", name=settings.log_level
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log a line per request
    return settings


def running_app(log_level: str | None = None) -> RunningApp:
    """This user's app. Raises AppError where none runs."""
    from together.desktop.client import require_running

    return require_running(settings_with(log_level=log_level).home_path)


def given(**options: object) -> dict[str, object]:
    """The options that have a value, as the body of a request to the running app."""
    return {name: value for name, value in options.items() if value is not None}


def endpoint_of(text: str) -> Endpoint:
    """`"10.0.0.5:47600"` or `"[::1]:47600"` → Endpoint. Raises BadSetting."""
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadSetting("--peer {text!r} is not host:port, as 192.168.1.20:47600", text=text)
    return Endpoint((host,), int(port))


def model_of(text: str | None, settings: Settings) -> str | None:
    """`--model` as any process of ours understands it. Raises BadSetting where no model can be."""
    if text is None:
        return None
    from together.weights.find import resolve_model

    found = resolve_model(text, settings.home_path)
    return str(found.resolve()) if isinstance(found, Path) else text


def request_of(
    model: str | None,
    usual: str,
    strategy: str | None = None,
    layers: str | None = None,
    users: int | None = None,
    context: int | None = None,
) -> PlanRequest:
    """How a model is to be split; `layers` are checked against the model where it is on this machine.

    Raises BadPlan or BadSetting.
    """
    from together.models.spec import read_spec
    from together.planning.request import parse_request
    from together.planning.score import range_violations
    from together.weights.find import BUNDLED

    request = parse_request(usual, strategy, layers=layers, users=users, context=context)
    folder = BUNDLED if model is None else Path(model)
    if request.assignments and folder.is_dir():
        wrong = range_violations([item.layers for item in request.assignments], read_spec(folder).layers)
        if wrong:
            raise BadPlan("--layers: {wrong}", wrong=wrong[0])
    return request


# --- commands ---------------------------------------------------------------------------------------------------------


@app.command()
def plan(
    model: Annotated[
        str | None, typer.Option(help="On the machines that are there: folder, name or hub id  [default: the served]")
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="Instead, a file that describes model, nodes and links; see status --save")
    ] = None,
    strategy: Strategy = None,
    users: Annotated[int | None, typer.Option(min=1, help="Users at once  [default: what the file says]")] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of each conversation  [default: what the file says]")
    ] = None,
    ratio: Annotated[str | None, typer.Option(help="For ratio: a part for each node in the file, as 3:1")] = None,
    layers: Annotated[
        str | None, typer.Option(help="For custom: a=0:12,b=12:16 (half-open), or a=0-11,b=12-15 (last layers)")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory-per-partition", help="No stage above this, as 4GB")
    ] = None,
    hidden_size: Annotated[int | None, typer.Option(min=1, help="Of the model, for what the network must do")] = None,
    dtype: Annotated[str, typer.Option(help="Of what travels: fp32, bf16 or fp16")] = "bf16",
    wish: Annotated[float, typer.Option("--tokens-per-second", min=0.001, help="What the network is sized for")] = 20,
    prompt: Annotated[int, typer.Option("--prompt-tokens", min=1, help="The prompt it is sized for")] = 1000,
    first_token: Annotated[float, typer.Option(min=0.001, help="Seconds to the first token it is sized for")] = 1,
    as_json: AsJson = False,
) -> None:
    """Who would take which layers of a model, and why: on the living machines, or with --cluster on any."""
    if cluster is None:
        order = given(
            model=model_of(model, settings_with()),
            strategy=strategy,
            users=users,
            context=context,
            ratio=ratio,
            layers=layers,
            max_memory_per_partition=max_memory,
        )
        answer = running_app().ask("plan", order)
        text = answer.pop("text")
    elif model is not None:
        raise BadSetting("--cluster FILE describes the model; leave --model out")
    else:
        from together.planning.report import NetworkTarget
        from together.planning.request import parse_dtype, parse_request

        request = parse_request(
            "recommend", strategy, users=users, context=context, ratio=ratio, layers=layers, max_memory=max_memory
        )
        target = NetworkTarget(wish, prompt, first_token)
        request = replace(request, hidden_size=hidden_size, dtype=parse_dtype(dtype), wish=target)
        answer, text = _plan_file(cluster, request)
    print(json.dumps(answer, indent=2) if as_json else printable(text))
    raise typer.Exit(DOES_NOT_FIT if "error" in answer else 0)


def _plan_file(file: Path, request: PlanRequest) -> tuple[dict[str, Any], str]:
    """The plan for a cluster file, or what is missing, for programs and for a person. Raises BadInput."""
    from together.planning.cluster_file import parse_cluster
    from together.planning.explain import Infeasible
    from together.planning.report import answer_json, answer_text, missing_json
    from together.planning.request import plan_for

    try:
        problem = parse_cluster(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting("--cluster {file} cannot be read: {error}", file=str(file), error=str(error)) from None
    outcome = plan_for(request, problem)
    if isinstance(outcome, Infeasible):
        return missing_json(outcome), str(outcome.sentence)
    return answer_json(outcome), answer_text(outcome)


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
            "--plan {file} is not what together plan --json writes ({error})", file=str(file), error=str(error)
        ) from None


@app.command()
def load(
    model: Annotated[
        str | None, typer.Argument(help="Folder, name or hub id, as org/name  [default: the last one, as it was]")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="A file of plan --json: who takes which layers")] = None,
    strategy: Strategy = None,
    layers: Layers = None,
    users: Users = None,
    context: Context = None,
    log_level: LogLevel = None,
) -> None:
    """Load a model in the running app, by the recommended plan or a given one."""
    settings = settings_with(log_level=log_level)
    if model is None:
        if given(plan=plan, strategy=strategy, layers=layers, users=users, context=context):
            raise BadSetting("these options are for a model: name it, as together load org/name")
        load_last_and_show(running_app())
        return
    if plan is not None:
        if layers is not None or strategy is not None:
            raise BadSetting("--plan says who takes which layers; leave --layers and --strategy out")
        saved = saved_plan(plan)
        layers, context, users = saved.layers, context or saved.context, users or saved.users
    order = given(model=model_of(model, settings), strategy=strategy, layers=layers, users=users, context=context)
    load_and_show(running_app(), order)


@app.command()
def unload(log_level: LogLevel = None) -> None:
    """Unload the model of the running app; its nodes stay."""
    running_app(log_level).ask("unload", {})
    print("unloaded")


@app.command()
def balance(log_level: LogLevel = None) -> None:
    """Move layers as status advises, where machines became slower or faster; answers in progress go on."""
    load_and_show(running_app(log_level), {}, action="balance")


@app.command()
def forget(
    node: Annotated[str, typer.Argument(help="Its name or id, as status shows it")], log_level: LogLevel = None
) -> None:
    """Let plans use all memory of a node again that ran out of it; by itself that happens after ten minutes."""
    running_app(log_level).ask("forget", {"node": node})
    print(f"the next plan may use all memory of {printable(node)}; to make one now: together load")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Folder, name or hub id, as org/name")],
    as_json: AsJson = False,
    log_level: LogLevel = None,
) -> None:
    """What a model is and weighs, from its headers alone: layers, memory, whether it runs here."""
    settings = settings_with(log_level=log_level)
    from together.desktop.models import run_inspect

    run_inspect(model, settings.home_path, as_json)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def models(context: typer.Context) -> None:
    """Models of this machine: models, models pull ORG/NAME, models rm NAME, models export MODEL DIR."""
    settings_with()
    from together.desktop.models import app as models_app

    models_app(context.args, prog_name="together models")


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="Of the hub, as org/name")],
    layers: Annotated[str | None, typer.Option(help="Only what a stage of these layers needs, as 0:8")] = None,
    log_level: LogLevel = None,
) -> None:
    """Get a model from the hub, as models pull does."""
    settings = settings_with(log_level=log_level)
    from together.desktop.models import layers_of
    from together.desktop.models import pull as pull_model

    pull_model(name, layers_of(layers), settings.home_path)
