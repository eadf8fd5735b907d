"""The command line. A command imports what it needs when it runs.

Errors of ours become one sentence on stderr and an exit code: 2 for wrong input, 1 for everything else.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from together import commands
from together.desktop.cli_cluster import app as cluster_commands
from together.desktop.cli_desk import app as desk_commands
from together.desktop.cli_models import (
    DEFAULTS,
    PASSED_ON,
    AsJson,
    Backend,
    Cache,
    Context,
    Host,
    Layers,
    LogLevel,
    Memory,
    OfServed,
    Peers,
    Quantize,
    QuantizeHead,
    SamplingDefault,
    Strategy,
    Users,
    WithParent,
    command,
    given,
    hand_over,
    model_of,
    request_of,
    running_app,
    settings_with,
)
from together.desktop.cli_models import app as model_commands
from together.desktop.cli_run import app as run_commands
from together.desktop.cli_run import use_running
from together.desktop.cli_trust import app as trust_commands
from together.desktop.ports import node_port, page_port
from together.desktop.show import print_aside, print_line, working
from together.errors import BadInput, BadSetting, TogetherError
from together.models.generation import ANSWER_LIMIT
from together.settings import parse_aliases, parse_seconds
from together.wording import reason_of

if TYPE_CHECKING:
    from together.desktop.client import RunningApp

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
app.add_typer(cluster_commands)
app.add_typer(desk_commands)
app.add_typer(model_commands)
app.add_typer(run_commands)
app.add_typer(trust_commands)


def main(arguments: list[str]) -> int:
    """Run a command line; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without emoji shows "?" instead of failing
    try:
        if not arguments and sys.stdin.isatty() and sys.stdout.isatty() and _show_menu():
            return 0
        if (reply := commands.reply(arguments)) is not None:
            print(reply.text, file=sys.stderr if reply.code else sys.stdout)
            return reply.code
        return app(commands.command_of(arguments), prog_name=commands.launch(), standalone_mode=False) or 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except TogetherError as error:
        print_aside(f"together: {error}")
        return 2 if isinstance(error, BadInput) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has read enough
        return 1
    except (typer.Abort, EOFError):  # a question that got no answer
        print("together: nothing was done", file=sys.stderr)
        return 1
    except typer.TyperException as error:  # a command line that cannot be read
        print_aside(f"together: {_misread(error, commands.command_of(arguments)[0])}")
        return 2


def _misread(error: typer.TyperException, command: str) -> str:
    """One sentence for what typer shows as a box."""
    context, option = getattr(error, "ctx", None), getattr(error, "option_name", "")
    path = context.command_path if context is not None else commands.launch(command)
    said = error.format_message().rstrip(".")
    if option in ("--port", "--host") and context is not None and context.info_name not in ("up", "node"):
        said = f"{option} is for up and node; every other command finds the running app by itself"
    return f"{said[:1].lower()}{said[1:]}; see: {path} --help"


@command(app, "up")
def up(
    model: Annotated[
        str | None, typer.Option(help="Folder, GGUF file, name or hub id, as org/name  [default: the bundled demo]")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            parser=page_port, metavar="PORT", help=f"Page and API, the next free if taken  [default: {DEFAULTS.port}]"
        ),
    ] = None,
    host: Host = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="With --host: the page in the clear, for a proxy of your own")
    ] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page")] = True,
    tray: Annotated[bool, typer.Option("--tray/--no-tray", help="Show an icon in the tray or menu bar")] = True,
    local_nodes: Annotated[
        int | None, typer.Option(min=0, max=16, help="Nodes on this machine  [default: 2 for the demo model, else 1]")
    ] = None,
    layers: Layers = None,
    strategy: Strategy = None,
    users: Users = None,
    context: Context = None,
    quantize: Quantize = None,
    quantize_head: QuantizeHead = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16  [default: the model's own]")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Quantized weights: no int8 activations; slower")] = False,
    sampling: SamplingDefault = None,
    backend: Backend = None,
    memory: Memory = None,
    cache: Cache = None,
    on_demand: Annotated[bool, typer.Option("--on-demand", help="Load the model that a request names")] = False,
    alias: Annotated[
        list[str] | None, typer.Option(help="Another name for requests, as gpt-4o=org/name; may be given several times")
    ] = None,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Whatever model a request names, the one that serves answers")
    ] = False,
    idle: Annotated[str | None, typer.Option(help="Unload what nobody used so long, as 30m  [default: never]")] = None,
    peer: Peers = None,
    with_parent: WithParent = False,
    again: Annotated[bool, typer.Option("--again", hidden=True)] = False,
    log_level: LogLevel = None,
) -> None:
    settings = settings_with(
        on_demand=on_demand or None,
        aliases=",".join(alias) if alias else None,
        any_model=any_model or None,
        idle=idle,
        port=port,
        host=host,
        plain_http=plain_http or None,
        dtype=dtype,
        exact=exact or None,
        backend=backend,
        memory=memory,
        cache=cache,
        strategy=strategy,
        sampling=sampling,
        log_level=log_level,
    )
    from together.desktop.app import AppOptions, open_browser, run_app
    from together.desktop.joining import peers_of
    from together.models.generation import sampling_mode
    from together.weights.room import cache_limit

    sampling_mode(settings.sampling)
    cache_limit(settings)
    parse_aliases(settings.aliases)
    parse_seconds(settings.idle) if settings.idle else None
    found = model_of(model, settings)
    nodes = local_nodes if local_nodes is not None else 2 if model is None else 1
    # The demo shows a ring; by its size one node would do.
    usual = "uniform" if model is None and settings.strategy == DEFAULTS.strategy else settings.strategy
    request = request_of(found, usual, strategy, layers, users, context, quantize, quantize_head)
    peers = peers_of(peer, settings, of_app=True)
    running = run_app(
        settings, AppOptions(found, request, nodes, peers, browser and not again, tray, with_parent, again)
    )
    if running is not None:
        split = given(strategy=strategy, layers=layers, users=users, context=context)
        split |= given(quantize=quantize, quantize_head=quantize_head)
        start = given(
            port=port, host=host, plain_http=plain_http or None, local_nodes=local_nodes, dtype=dtype, sampling=sampling
        )
        start |= given(on_demand=on_demand or None, alias=alias or None, any_model=any_model or None)
        start |= given(idle=idle)
        start |= given(exact=exact or None, backend=backend, memory=memory, cache=cache, peer=peer or None)
        use_running(running, found, split, start)
        open_browser(running.link, browser)


@command(app, "node")
def node(
    host: Host = None,
    port: Annotated[
        int | None,
        typer.Option(
            parser=node_port,
            metavar="PORT",
            help=f"First of its 16 ports, the next free block if taken  [default: {DEFAULTS.node_port}]",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name in the table  [default: the host name]")] = None,
    peer: Peers = None,
    backend: Backend = None,
    memory: Memory = None,
    cache: Cache = None,
    with_parent: WithParent = False,
    log_level: LogLevel = None,
) -> None:
    takes = given(memory=memory, cache=cache)
    settings = settings_with(host=host, node_port=port, name=name, backend=backend, log_level=log_level, **takes)
    from together.desktop.joining import peers_of, run_node_here
    from together.weights.room import cache_limit

    cache_limit(settings)
    raise typer.Exit(run_node_here(settings, peers_of(peer, settings, of_app=False), with_parent))


@command(app, "chat")
def chat(
    prompt: Annotated[str | None, typer.Argument(help="One question  [default: a conversation]")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 is off")] = None,
    top_p: Annotated[float | None, typer.Option(help="1 is off")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help=f"Longest answer, in tokens; -1: until the context is full  [default: {ANSWER_LIMIT}]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be given several times")
    ] = None,
    examples: Annotated[bool, typer.Option("--examples", help="Ask four preset questions")] = False,
    goes_on: Annotated[bool, typer.Option("--continue", help="Go on with the latest conversation")] = False,
    conversation: Annotated[str | None, typer.Option(help="Go on with this one, by its id in --list")] = None,
    lists: Annotated[bool, typer.Option("--list", help="Show the latest conversations")] = False,
    tools: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Let it call tools of this server; see: tools list")
    ] = None,
    model: OfServed = None,
    log_level: LogLevel = None,
) -> None:
    settings = settings_with(log_level=log_level)
    from together.desktop.chat import Talk, talk_once
    from together.desktop.client import app_for_a_while
    from together.desktop.kept_chat import KeptChats, list_lines, talk_kept
    from together.sentences import EXAMPLES

    if lists:
        for line in list_lines(KeptChats(running_app(log_level)).recent(), time.time()):
            print_line(line)
        return
    options = given(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop, model=model)
    questions = EXAMPLES if examples else (prompt,) if prompt is not None else ()
    with app_for_a_while(settings.home_path) as running:
        if not questions or goes_on or conversation or tools:
            kept = options | given(system=system, max_tokens=max_tokens, servers=tools)
            code = talk_kept(KeptChats(running), questions, kept, conversation, goes_on)
        else:
            code = talk_once(Talk(running, options, system, max_tokens or ANSWER_LIMIT), questions)
        if code:
            raise typer.Exit(code)


@command(app, "status")
def status(
    save: Annotated[
        Path | None, typer.Option(help="Write the living cluster, measured, as a file for plan --cluster")
    ] = None,
    model: Annotated[str | None, typer.Option(help="For --save: whose shape counts  [default: the served one]")] = None,
    line: Annotated[
        bool, typer.Option("--line", help="One line: what is served, and how many machines are there")
    ] = False,
    as_json: AsJson = False,
    log_level: LogLevel = None,
) -> None:
    settings = settings_with(log_level=log_level)
    from together.desktop.keys import page_of, reached_at

    if line:
        from together.desktop.client import find_running
        from together.desktop.entries import status_line

        found = find_running(settings.home_path)
        print_line(status_line(found.status() if found else None))
        return
    running = running_app()
    if save is not None:
        _save_cluster(running, model_of(model, settings), save)
    elif as_json:
        at = {"url": running.url, "network": page_of(running), "plain_http": running.plain}
        print(json.dumps({**at, **json.loads(running.status_json())}, indent=2))
    else:
        from rich.console import Console

        from together.desktop.show import show_status

        show_status(running.status(), running.url, Console(), reached_at(running))


def _save_cluster(running: RunningApp, model: str | None, file: Path) -> None:
    """Write the living cluster in the format of `plan --cluster`. Raises BadSetting where the file cannot be."""
    with working("measuring the machines and their links"):
        cluster = running.ask("cluster", given(model=model))
    try:
        file.write_text(json.dumps(cluster, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadSetting("--save {file} cannot be written: {why}", file=str(file), why=reason_of(error)) from None
    print_line(commands.as_typed(f"saved {file}; see: python3 launch.py plan --cluster {file}"))


@command(app, "stop")
def stop(log_level: LogLevel = None) -> None:
    from together.desktop.client import stop_running

    print(f"stopped {stop_running(settings_with(log_level=log_level).home_path).url}")


@command(app, "doctor")
def doctor(
    model: Annotated[
        str | None, typer.Option(help="Folder or name of a model on this machine, for its shape  [default: a 1B model]")
    ] = None,
    host: Host = None,
    backend: Backend = None,
    as_json: AsJson = False,
    report: Annotated[
        Path | None, typer.Option(help="Write a file that a stranger may see: no names, addresses, paths or texts")
    ] = None,
    log_level: LogLevel = None,
) -> None:
    from together.desktop.doctor import run_doctor

    settings = settings_with(host=host, backend=backend, log_level=log_level)
    raise typer.Exit(run_doctor(settings, model, as_json, report))


@command(app, "bench", **PASSED_ON)
def bench(context: typer.Context) -> None:
    from together.desktop.bench.cli import app as bench_app

    hand_over(bench_app, context.args, "bench")


# --- what commands share ----------------------------------------------------------------------------------------------


def _show_menu() -> bool:
    """The menu, where an app runs; False where none does."""
    from together.desktop.client import find_running

    settings = settings_with()
    running = find_running(settings.home_path)
    if running is None:
        return False
    from together.desktop.menu import Menu, run_menu

    run_menu(f"together is running: {running.url}", Menu(running, settings, input, main).items, input)
    return True
