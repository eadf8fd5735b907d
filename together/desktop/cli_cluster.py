"""The commands about machines, also those one does not own: plan and cluster-file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from together.commands import launch
from together.desktop.cli_models import (
    AsJson,
    Beside,
    Quantize,
    QuantizeHead,
    Strategy,
    command,
    given,
    model_of,
    running_app,
    settings_with,
)
from together.desktop.show import print_table, printable, working
from together.errors import BadSetting
from together.wording import reason_of

app = typer.Typer()
DOES_NOT_FIT = 3  # exit code


@command(app, "plan")
def plan(
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder, GGUF file, name, hub id or a well-known model  [default: the served; what the file says]"
        ),
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="Not on the machines that run: a file that names machines; see cluster-file")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="With --cluster: weights of so many bits, as 4")] = None,
    quantize: Quantize = None,
    quantize_head: QuantizeHead = None,
    beside: Beside = False,
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
    if cluster is None:
        if bits is not None:
            raise BadSetting("--bits goes with --cluster; for the machines that run it is --quantize 4, 8 or mxfp4")
        running = running_app()
        served = model is not None and running.status().serving_of(model) is not None
        order = given(
            model=model if served else model_of(model, settings_with()),
            strategy=strategy,
            users=users,
            context=context,
            ratio=ratio,
            layers=layers,
            max_memory_per_partition=max_memory,
            quantize=quantize,
            quantize_head=quantize_head,
            beside=beside or None,
        )
        with working("measuring the machines and their links"):
            answer = running.ask("plan", order)
        text = answer.pop("text")
    else:
        if quantize is not None or quantize_head is not None:
            raise BadSetting("--quantize is for the machines that run; with --cluster it is --bits, as --bits 4")
        from together.desktop.cluster_plan import plan_file
        from together.planning.report import NetworkTarget
        from together.planning.request import parse_dtype, parse_request

        request = parse_request(
            "recommend", strategy, users=users, context=context, ratio=ratio, layers=layers, max_memory=max_memory
        )
        target = NetworkTarget(wish, prompt, first_token)
        request = replace(request, hidden_size=hidden_size, dtype=parse_dtype(dtype), wish=target)
        answer, text = plan_file(cluster, request, model, bits, settings_with())
    print(json.dumps(answer, indent=2) if as_json else printable(text))
    raise typer.Exit(DOES_NOT_FIT if "error" in answer else 0)


EXAMPLE = """\
# Machines you have or think of buying, and the model to plan for. Plan it with:
#   {plan}
# All kinds of machines, with their figures: {kinds}

model = "Llama-3.3-70B"        # a well-known model, a folder, or a model of the hub as "org/name"
weights = "4 bit"              # leave it out to plan for the weights as published, in 16 bits
context = 4096                 # tokens of each conversation
users = 1                      # conversations at once
network = "gigabit ethernet"   # or "wifi", "2.5 Gbit", "10 Gbit", "thunderbolt"
# measured = "saved.json"      # kinds may also be names of your own machines: in a file of status --save, or of the
                               # app that runs; then what was measured counts

[[machines]]                   # the first machine runs the app
name = "my PC"
kind = "DDR5-5600"             # the PC's own memory and processor; "this machine" measures the one you sit at
memory = "32 GB"

[[machines]]
name = "RTX 3090"
kind = "RTX 3090"
inside = "my PC"               # a graphics card: no network between it and its PC

[[machines]]
name = "Mac mini"
kind = "Mac mini M4 16 GB"

# A machine that no kind fits, by its figures. "usable" is what layers may have of its memory.
# [[machines]]
# name = "old server"
# memory = "64 GB"
# usable = "56 GB"
# bandwidth = "68 GB/s"
# tflops = 0.5
# network = "wifi"

# A way that differs from the network above, over something else or measured:
# [[links]]
# a = "my PC"
# b = "Mac mini"
# network = "thunderbolt"      # or ms = 0.6, or network = "none"
"""


@command(app, "cluster-file")
def cluster_file(
    file: Annotated[Path | None, typer.Argument(help="The file to write")] = None,
    kinds: Annotated[bool, typer.Option("--kinds", help="List the kinds of machines, with their figures")] = False,
) -> None:
    if kinds:
        show_kinds()
        return
    target = file or Path("cluster.toml")
    planning = launch(f"plan --cluster {shlex.quote(str(target))}")
    try:
        with target.open("x", encoding="utf-8") as out:
            out.write(EXAMPLE.format(plan=planning, kinds=launch("cluster-file --kinds")))
    except FileExistsError:
        message = "{file} is there already; name another file, or delete that one"
        raise BadSetting(message, file=str(target)) from None
    except OSError as error:
        message = "{file} cannot be written: {why}"
        raise BadSetting(message, file=str(target), why=reason_of(error)) from None
    print(printable(f"wrote {target}; change it, then: {planning}"))


def show_kinds() -> None:
    """A table of the kinds, the networks, what is assumed, and where each figure is published."""
    from together.planning.kinds_table import KINDS
    from together.planning.network import WIRES

    rows = [(kind.name, _sizes(kind.sizes), f"{kind.gb_per_s:g}", f"{kind.tflops:g}") for kind in KINDS]
    print_table(("kind", "sold with, in GB", "memory GB/s", "TFLOP/s"), [*rows, *_cores()])
    print()
    wires = [(name, f"{wire.gbit_per_s:g}", f"{wire.ms:g}") for name, wire in WIRES.items()]
    print_table(("network", "Gbit/s", "ms one way"), wires)
    print(printable("\n".join(["", *_assumed(), "", "published by:", *_sources()])))


def _sizes(sizes: tuple[float, ...]) -> str:
    return ", ".join(f"{size:g}" for size in sizes) or "any: write it"


def _cores() -> Iterator[tuple[str, str, str, str]]:
    """Processors by the number of their cores."""
    from together.planning.kinds import CORE_GB_PER_S, CORES, MOST_GB_PER_S

    for instructions, tflops in CORES.items():
        speed = f"{CORE_GB_PER_S} a core, at most {MOST_GB_PER_S}"
        yield f"N cores {instructions}", "any: write it", speed, f"{tflops:g} a core"


def _assumed() -> Iterator[str]:
    from together.planning.kinds import Memory
    from together.planning.machines import REACHED, REACHED_FLOPS

    yield "Published figures are peaks, so plans assume that layers reach a part of them (measured machines need none):"
    yield f"- {REACHED:.0%} of the memory bandwidth for each token, {REACHED_FLOPS:.0%} of the TFLOP/s for a prompt"
    card, system, mac, large = Memory.OWN.usable(1), Memory.SYSTEM.usable(1), Memory.APPLE.usable(1), Memory.APPLE
    yield (
        f"- of the memory {card:.0%} on a graphics card, {system:.0%} in a PC, {mac:.0%} on a Mac, "
        f"{large.usable(36) / 36:.0%} on one with 36 GB or more; a line usable = in the file says it better"
    )


def _sources() -> Iterator[str]:
    """A line for each source, after the kinds that it is of."""
    from together.planning.kinds import CORES, CORES_SOURCE
    from together.planning.kinds_table import KINDS

    for source, kinds in groupby(KINDS, lambda kind: kind.source):
        yield f"- {', '.join(dict.fromkeys(kind.name for kind in kinds))}: {source}"
    yield f"- cores with {', '.join(CORES)}: {CORES_SOURCE}"
