"""The command line. A command imports what it needs when it runs.

Errors of ours become one sentence on stderr and an exit code: 2 for wrong input, 1 for everything else.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from together.desktop.cli_models import (
    DEFAULTS,
    AsJson,
    Backend,
    Context,
    Host,
    Layers,
    LogLevel,
    Memory,
    Peers,
    SamplingDefault,
    Strategy,
    Users,
    WithParent,
    endpoint_of,
    given,
    model_of,
    request_of,
    running_app,
    settings_with,
)
from together.desktop.cli_models import app as model_commands
from together.desktop.show import print_line, printable
from together.errors import BadInput, BadSetting, TogetherError
from together.settings import Settings

if TYPE_CHECKING:
    from together.cluster_types import Endpoint, NodeStatus
    from together.desktop.client import RunningApp

COMMANDS = "up node chat plan load unload balance forget inspect models pull status stop doctor bench".split()

app = typer.Typer(
    help="Several ordinary machines run one language model. Without a command: up.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(model_commands)


def main(arguments: list[str]) -> int:
    """Run a command line; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without emoji shows "?" instead of failing
    try:
        if not arguments and sys.stdin.isatty() and sys.stdout.isatty() and _show_menu():
            return 0
        if not arguments or arguments[0] not in (*COMMANDS, "-h", "--help"):
            arguments = ["up", *arguments]
        app(arguments, prog_name="together")
    except SystemExit as end:  # how typer says that it is done, or that an option is wrong
        return end.code if isinstance(end.code, int) else 1
    except TogetherError as error:
        print(f"together: {printable(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    except KeyboardInterrupt:
        return 130
    return 0


@app.command()
def up(
    model: Annotated[
        str | None, typer.Option(help="Folder, name or hub id, as org/name  [default: the bundled demo model]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help=f"Page and API, the next free one if taken  [default: {DEFAULTS.port}]")
    ] = None,
    host: Host = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page")] = True,
    local_nodes: Annotated[
        int | None, typer.Option(min=0, max=16, help="Nodes on this machine  [default: 2 for the demo model, else 1]")
    ] = None,
    layers: Layers = None,
    strategy: Strategy = None,
    users: Users = None,
    context: Context = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16  [default: the model's own]")] = None,
    sampling: SamplingDefault = None,
    backend: Backend = None,
    memory: Memory = None,
    peer: Peers = None,
    with_parent: WithParent = False,
    log_level: LogLevel = None,
) -> None:
    """Start the app: page, API, and nodes on this machine."""
    settings = settings_with(
        port=port,
        host=host,
        dtype=dtype,
        backend=backend,
        memory=memory,
        strategy=strategy,
        sampling=sampling,
        log_level=log_level,
    )
    from together.desktop.app import AppOptions, run_app
    from together.models.generation import sampling_mode

    sampling_mode(settings.sampling)
    _warn_if_open(settings)
    found = model_of(model, settings)
    nodes = local_nodes if local_nodes is not None else 2 if model is None else 1
    # The demo shows a ring; by its size one node would do.
    usual = "uniform" if model is None and settings.strategy == DEFAULTS.strategy else settings.strategy
    request = request_of(found, usual, strategy, layers, users, context)
    run_app(settings, AppOptions(found, request, nodes, _endpoints(peer), browser, with_parent))


@app.command()
def node(
    host: Host = None,
    port: Annotated[
        int | None,
        typer.Option(help=f"First of its 16 ports, the next free block if taken  [default: {DEFAULTS.node_port}]"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name in the table  [default: the host name]")] = None,
    peer: Peers = None,
    backend: Backend = None,
    memory: Memory = None,
    with_parent: WithParent = False,
    log_level: LogLevel = None,
) -> None:
    """Lend this machine: a node without a page."""
    settings = settings_with(host=host, node_port=port, name=name, backend=backend, memory=memory, log_level=log_level)
    _warn_if_open(settings)
    asyncio.run(_run_node(settings, _endpoints(peer), with_parent))


@app.command()
def chat(
    prompt: Annotated[str | None, typer.Argument(help="One question  [default: a conversation]")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 is off")] = None,
    top_p: Annotated[float | None, typer.Option(help="1 is off")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be given several times")
    ] = None,
    examples: Annotated[bool, typer.Option("--examples", help="Ask four preset questions")] = False,
    log_level: LogLevel = None,
) -> None:
    """Chat in this terminal, with the running app or with one that ends with the chat."""
    settings = settings_with(log_level=log_level)
    from together.desktop.chat import Talk, talk_on, talk_once
    from together.desktop.client import app_for_a_while
    from together.sentences import EXAMPLES

    options = given(temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=max_tokens, seed=seed, stop=stop)
    with app_for_a_while(settings.home_path) as running:
        talk = Talk(running, options, system)
        questions = EXAMPLES if examples else (prompt,) if prompt is not None else ()
        if not questions:
            talk_on(talk)
        elif code := talk_once(talk, questions):
            raise typer.Exit(code)


@app.command()
def status(
    save: Annotated[
        Path | None, typer.Option(help="Write the living cluster, measured, as a file for plan --cluster")
    ] = None,
    model: Annotated[str | None, typer.Option(help="For --save: whose shape counts  [default: the served one]")] = None,
    as_json: AsJson = False,
    log_level: LogLevel = None,
) -> None:
    """What runs: model, stages, nodes."""
    settings = settings_with(log_level=log_level)
    running = running_app()
    if save is not None:
        _save_cluster(running, model_of(model, settings), save)
    elif as_json:
        print(json.dumps({"url": running.url, **json.loads(running.status_json())}, indent=2))
    else:
        from rich.console import Console

        from together.desktop.show import show_status

        show_status(running.status(), running.url, Console())


def _save_cluster(running: RunningApp, model: str | None, file: Path) -> None:
    """Write the living cluster in the format of `plan --cluster`. Raises BadSetting where the file cannot be."""
    cluster = running.ask("cluster", given(model=model))
    try:
        file.write_text(json.dumps(cluster, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadSetting(
            "--save {file} cannot be written: {why}", file=str(file), why=error.strerror or str(error)
        ) from None
    print(f"saved {file}; see: together plan --cluster {file}")


@app.command()
def stop(log_level: LogLevel = None) -> None:
    """Stop the app and the nodes that it started, even if it hangs."""
    from together.desktop.client import stop_running

    print(f"stopped {stop_running(settings_with(log_level=log_level).home_path).url}")


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Option(help="Folder or name of a model on this machine, for its shape  [default: a 1B model]")
    ] = None,
    host: Host = None,
    backend: Backend = None,
    as_json: AsJson = False,
    log_level: LogLevel = None,
) -> None:
    """What this machine can do, what is wrong, and how to fix it; exit code 1 if something is."""
    from together.desktop.doctor import run_doctor

    raise typer.Exit(run_doctor(settings_with(host=host, backend=backend, log_level=log_level), model, as_json))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Measure this machine: see bench --help."""
    from together.desktop.bench.cli import app as bench_app

    bench_app(context.args, prog_name="together bench")


# --- what commands share ----------------------------------------------------------------------------------------------


def _warn_if_open(settings: Settings) -> None:
    if settings.open_to_network:
        print(
            f"together: warning: listening on {settings.host}: anyone on this network can use it and send it work",
            file=sys.stderr,
        )


def _endpoints(peers: list[str] | None) -> tuple[Endpoint, ...]:
    return tuple(endpoint_of(peer) for peer in peers or ())


async def _run_node(settings: Settings, peers: tuple[Endpoint, ...], with_parent: bool) -> None:
    from together.cluster.node import run_node, say_endpoint
    from together.processes import stop_on_signals

    def started(status: NodeStatus) -> None:
        first, last = status.ports
        print_line(f"node {status.name} listens on {settings.host}, ports {first} to {last}   (Ctrl-C stops it)")
        moved(status)

    def moved(status: NodeStatus) -> None:
        if with_parent:
            print(say_endpoint(status.endpoint), flush=True)

    stopping = asyncio.Event()
    with stop_on_signals(stopping):
        await run_node(settings, peers, with_parent, started, stopping, moved)


def _show_menu() -> bool:
    """The menu, where an app runs; False where none does."""
    from together.desktop.client import find_running

    running = find_running(settings_with().home_path)
    if running is None:
        return False
    from together.desktop.chat import menu_items, run_menu

    run_menu(f"together is running: {running.url}", menu_items(running), input)
    return True
