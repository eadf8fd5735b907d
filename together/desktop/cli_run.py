"""The commands about what is served: run, score and ps; and `up` where an app runs already."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from together.cluster_types import NodeState
from together.commands import as_typed
from together.desktop.cli_models import (
    PASSED_ON,
    AsJson,
    LogLevel,
    OfServed,
    Quantize,
    QuantizeHead,
    command,
    given,
    hand_over,
    model_of,
    running_app,
    settings_with,
)
from together.desktop.show import load_and_show, print_line, print_table, working
from together.wording import size_text

if TYPE_CHECKING:
    from together.desktop.app_status import AppServing, AppStatus
    from together.desktop.client import RunningApp

app = typer.Typer()
# What comes after the first word is left as it is, also a "--".
WITH_DASHES = PASSED_ON | {"context_settings": PASSED_ON["context_settings"] | {"allow_interspersed_args": False}}


@command(app, "run")
def run(
    model: Annotated[str, typer.Argument(help="Folder, GGUF file, name or hub id, as org/name")],
    prompt: Annotated[str | None, typer.Argument(help="One question  [default: a conversation]")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt")] = None,
    quantize: Quantize = None,
    quantize_head: QuantizeHead = None,
    log_level: LogLevel = None,
) -> None:
    settings = settings_with(log_level=log_level)
    from together.desktop.chat import Talk, talk_once
    from together.desktop.client import app_for_a_while
    from together.desktop.kept_chat import KeptChats, talk_kept

    form = given(quantize=quantize, quantize_head=quantize_head)
    found = model_of(model, settings)
    with app_for_a_while(settings.home_path, found, form) as running:
        serving = running.status().serving_of(found or model)
        options = given(model=serving.model if serving else None)
        if prompt is None:
            code = talk_kept(KeptChats(running), (), options | given(system=system))
        else:
            code = talk_once(Talk(running, options, system), (prompt,))
        if code:
            raise typer.Exit(code)


@command(app, "score")
def score(
    text: Annotated[str, typer.Argument(metavar="TEXT|FILE", help="A text, a file, or - for standard input")],
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens that the model sees at once  [default: the whole context]")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens from one window to the next  [default: half a window]")
    ] = None,
    model: OfServed = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show every token with its log-probability")] = False,
    as_json: AsJson = False,
    log_level: LogLevel = None,
) -> None:
    from together.desktop.scoring import score_lines, text_of

    running = running_app(log_level)
    body = {"text": text_of(text), **given(window=window, stride=stride, model=model)}
    with working("scoring"):
        found = running.ask("score", body)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for line in score_lines(found, tokens):
        print_line(line)


@command(app, "ps")
def ps(as_json: AsJson = False, log_level: LogLevel = None) -> None:
    status = running_app(log_level).status()
    served = [served_now(status, each.serving) for each in status.models if each.serving.up]
    if as_json:
        print(json.dumps({"models": served}, indent=2))
    elif not served:
        print_line(status.serving.sentence)
    else:
        titles = [each.serving.title for each in status.models if each.serving.up]
        print_table(("model", "nodes and layers", "memory", "since"), map(_row, titles, served))


def _row(title: str, served: dict[str, Any]) -> tuple[str, ...]:
    layers = ", ".join(f"{node} {layers}" for node, layers in served["layers"].items())
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(served["since"])) if served["since"] else ""
    return (title, layers, size_text(served["bytes"]), since)


@command(app, "logs")
def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last")] = 50,
    opens: Annotated[bool, typer.Option("--open", help="Show the folder of the files in a window")] = False,
) -> None:
    settings = settings_with()
    from together.desktop.logs import show_logs

    if opens:
        print_line(str(settings.logs_path))
        typer.launch(str(settings.logs_path))
    else:
        show_logs(settings.logs_path, lines, follow)


@command(app, "keys", **PASSED_ON)
def keys(context: typer.Context) -> None:
    settings_with()
    from together.desktop.keys import app as key_commands

    hand_over(key_commands, context.args, "keys")


@command(app, "tools", **WITH_DASHES)
def tools(context: typer.Context) -> None:
    settings_with()
    from together.desktop.tools import app as tool_commands

    hand_over(tool_commands, context.args, "tools")


def served_now(status: AppStatus, serving: AppServing) -> dict[str, Any]:
    """What `ps` shows of a model: layers by node, bytes that its stages take, and the Unix time it came."""
    living = [node for node in status.nodes if node.state is not NodeState.FAILED]  # others had what they name
    stages = [(node.name, stage) for node in living for stage in node.stages if stage.ring == serving.ring]
    layers: dict[str, list[str]] = {}
    for name, stage in sorted(stages, key=lambda held: held[1].layers):
        layers.setdefault(name, []).append(str(stage.layers))
    return {
        "model": serving.model,
        "form": serving.plan.model.form if serving.plan else "",
        "layers": {name: ", ".join(held) for name, held in layers.items()},
        "bytes": sum(stage.memory_bytes for _, stage in stages),
        "since": serving.since,
    }


def use_running(running: RunningApp, model: str | None, split: dict[str, object], start: Mapping[str, object]) -> None:
    """What `up` does where an app runs: load `model` there, and say which options were in vain.

    `split` are options of a load, `start` those of a start. Raises TogetherError where the model is not loaded; what
    serves goes on.
    """
    print_line(f"together is already running: {running.url}")
    if unused := [*start, *(split if model is None else ())]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        print_line(as_typed(f"not used: {names}; for a new start: python3 launch.py stop, then this command again"))
    if model is None:
        return
    serving = running.status().serving_of(model)
    if not split and serving is not None:
        print_line(f"{serving.title} is served there already")
    else:
        print_line(f"loading {model} there")
        load_and_show(running, {"model": model, **split})
