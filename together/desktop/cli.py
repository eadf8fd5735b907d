"""The command line: words and options, nothing else. Imports what a command needs only when that command runs.

Errors of ours become one sentence on stderr and an exit code: 2 for wrong input, 1 for everything else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from together.desktop.cli_models import app as model_commands
from together.desktop.options import (
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
    running_app,
    settings_with,
)
from together.desktop.show import printable
from together.errors import BadInput, TogetherError
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
        if not arguments and (running := _app_for_menu()) is not None:
            _menu(running)
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
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
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
    from together.models.generation import sampling_mode

    sampling_mode(settings.sampling)
    _warn_if_open(settings)
    from together.desktop.app import AppOptions, run_app
    from together.desktop.arguments import model_of, request_of

    found = model_of(model, settings)
    nodes = local_nodes if local_nodes is not None else 2 if model is None else 1
    # The demo is there to show a ring: for its size alone one node would do.
    usual = "uniform" if model is None and settings.strategy == DEFAULTS.strategy else settings.strategy
    request = request_of(found, usual, strategy, layers, users, context)
    options = AppOptions(found, request, nodes, _endpoints(peer), browser, with_parent)
    run_app(settings, options, _say)


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
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
    log_level: LogLevel = None,
) -> None:
    """Lend this machine: a node without a page."""
    settings = settings_with(host=host, node_port=port, name=name, backend=backend, memory=memory, log_level=log_level)
    _warn_if_open(settings)
    import asyncio

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
    """Chat in this terminal, with the running app or one for the time."""
    settings = settings_with(log_level=log_level)
    from together.desktop.chat import Talk, talk_on, talk_once
    from together.desktop.temporary_app import app_for_a_while
    from webui.presets import PRESETS

    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
        "stop": stop,
    }
    options: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    with app_for_a_while(settings.home_path, _say_aside) as running:
        talk = Talk(running, options, system)
        questions = PRESETS if examples else (prompt,) if prompt is not None else ()
        code = talk_once(talk, questions) if questions else talk_on(talk)
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
    running = running_app(settings)
    if save is not None:
        from together.desktop.arguments import model_of
        from together.desktop.plan import save_cluster

        save_cluster(running, model_of(model, settings), save)
        print(f"saved {save}; see: together plan --cluster {save}")
        return
    if as_json:
        import json

        print(json.dumps({"url": running.url, **running.status()}, indent=2))
        return
    _show(running)


@app.command()
def stop(log_level: LogLevel = None) -> None:
    """Stop the app and the nodes that it started, also where it hangs."""
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
    from together.desktop.doctor.show import run_doctor

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
    from together.desktop.arguments import endpoint_of

    return tuple(endpoint_of(peer) for peer in peers or ())


async def _run_node(settings: Settings, peers: tuple[Endpoint, ...], with_parent: bool) -> None:
    import asyncio

    from together.cluster.local import say_endpoint
    from together.cluster.node import run_node
    from together.desktop.signals import stop_on_signals

    def started(status: NodeStatus) -> None:
        first, last = status.ports
        _say(f"node {status.name} listens on {settings.host}, ports {first} to {last}   (Ctrl-C stops it)")
        moved(status)

    def moved(status: NodeStatus) -> None:
        if with_parent:
            print(say_endpoint(status.endpoint), flush=True)

    stopping = asyncio.Event()
    with stop_on_signals(stopping):
        await run_node(settings, peers, with_parent, started, stopping, moved)


def _show(running: RunningApp) -> None:
    from rich.console import Console

    from together.desktop.show import show_status

    show_status(running.status(), running.url, Console())


def _app_for_menu() -> RunningApp | None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None

    from together.desktop.client import find_running

    return find_running(settings_with().home_path)


def _menu(running: RunningApp) -> None:
    import webbrowser

    from together.desktop.chat import Talk, talk_on
    from together.desktop.loading import load_last_and_show
    from together.desktop.menu import Actions, items, run_menu

    def node_action(action: str) -> Callable[[], None]:
        def act() -> None:
            running.control("nodes", {"action": action})
            _say({"start": "a node is starting", "stop": "a node was stopped"}[action])

        return act

    def open_page() -> None:
        _say(running.url)
        webbrowser.open(running.url)

    def chat_here() -> None:
        talk_on(Talk(running, {}))

    actions = Actions(
        open_page,
        chat_here,
        lambda: _show(running),
        lambda: load_last_and_show(running),
        node_action("start"),
        node_action("stop"),
        running.stop,
    )
    run_menu(f"together is running: {running.url}", items(actions), input, _say)


def _say(line: str) -> None:
    print(printable(line), flush=True)


def _say_aside(line: str) -> None:
    """For what is not the answer: a pipe behind stdout gets the answer only."""
    print(printable(line), file=sys.stderr, flush=True)
