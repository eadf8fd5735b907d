"""The `bench` commands: options, then a table or JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from backends.base import Computing
from together.desktop.bench.curves import Places, bench_curves, read_curves
from together.desktop.bench.decode import Comparison, DecodeReport, bench_decode, decode_json
from together.desktop.bench.device import LONG, PEOPLE, SHORT, DeviceLine, DeviceRequest, bench_device
from together.desktop.bench.engine import bench_engine
from together.desktop.bench.estimate import bench_estimate
from together.desktop.bench.llama_cpp import yardstick
from together.desktop.bench.plot import drawing
from together.desktop.bench.rings import BenchRequest
from together.desktop.bench.serve import ServeRequest, bench_overhead, bench_serve, comparable
from together.desktop.bench.sharing import SharingRequest, bench_sharing
from together.desktop.bench.small import Hop, PlanTime, SamplerLine, bench_hop, bench_plan, bench_sampler
from together.desktop.bench.trust import TrustLine, bench_trust
from together.desktop.client import RunningApp, app_for_a_while
from together.desktop.show import GB, cell_text, print_lines, print_table
from together.jsonfile import write_whole
from together.models.form import PUBLISHED, asked_form, form_title
from together.planning.request import parse_dtype
from together.settings import load_settings

app = typer.Typer(help="Measure this machine; --json for programs.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Shape = Annotated[str, typer.Option(help="Whose shape the random weights have.")]
DtypeName = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]
Backend = Annotated[str, typer.Option(help="torch or mlx.")]
Device = Annotated[str, typer.Option(help="The backend's device.")]
Stages = Annotated[int, typer.Option(min=1, help="Stage processes.")]
Prompt = Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")]
New = Annotated[int, typer.Option(min=2, help="Tokens generated.")]
Quantized = Annotated[str | None, typer.Option("--quantize", help="4, 8 or mxfp4  [default: plain weights]")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds; the medians count.")]

Rows = Iterable[Sequence[object]]


@app.command()
def hop(
    repeats: Annotated[int, typer.Option(help="Round trips per line, after a warm-up.")] = 40,
    as_json: AsJson = False,
) -> None:
    """What it costs to pass hidden states to the next stage: the link, and whether compressing them would pay."""
    columns = ("shape", "dtype", "codec", "bytes", "sent", "link", "zlib", "total", "MB/s")
    title = "milliseconds one way: the link, compression, both; MB/s before compression"
    _print_lines(as_json, asyncio.run(bench_hop(repeats)), columns, title)


@app.command()
def decode(
    shape: Shape = "llama-3.2-1b",
    dtype: DtypeName = "bf16",
    backend: Backend = "torch",
    device: Device = "cpu",
    stages: Stages = 2,
    prompt: Prompt = 128,
    new: New = 32,
    rounds: Rounds = 5,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Also measure, in turn: another number of stages, transformers, or llama.cpp=FOLDER with the folder "
            "of its programs, which run over RPC where there are several stages."
        ),
    ] = None,
    quantize: Quantized = None,
    as_json: AsJson = False,
) -> None:
    """Prefill and decode speed over real stage processes on this machine; transformers computes with plain weights."""
    form = asked_form(quantize) or PUBLISHED
    request = BenchRequest(shape, parse_dtype(dtype), backend, device, stages, prompt, new, rounds, form)
    found = asyncio.run(bench_decode(request, [str(stages), *(compare or [])], load_settings().home_path))
    columns = ("", "prefill tok/s", "ratio", "decode tok/s", "ratio", "of reads", "peak GB")
    _print(as_json, decode_json(found), columns, map(_decode_row, found.reports), _title(request))
    if not as_json:
        print_lines(_circumstances(found))


def _decode_row(item: DecodeReport) -> Sequence[object]:
    prefill, decode = (item.prefill_tok_s, item.prefill_ratio), (item.decode_tok_s, item.decode_ratio)
    return item.name, *prefill, *decode, f"{item.of_reads:.0%}", [size / GB for size in item.rss_bytes]


def _circumstances(found: Comparison) -> Iterator[str]:
    """Where each one's time went, what it ran on, and how fast memory is."""
    for item in found.reports:
        times = f", stages {cell_text(item.stage_ms)} ms, hops {item.hop_ms:.2f} ms" if item.stage_ms else ""
        ran = dict.fromkeys(map(_ran_on, item.computing))
        yield f"{item.name}: first token {item.ttft_s:.2f} s{times}; {'; '.join(ran)}"
    yield f"plain memory reads: {found.read_bytes_per_s / GB:.1f} GB/s; `of reads`: the share of what they allow"


@app.command()
def device(
    backend: Annotated[
        str | None, typer.Option(help="torch or mlx  [default: the one that suits this machine]")
    ] = None,
    name: Annotated[str | None, typer.Option("--device", help="The backend's device  [default: the best one]")] = None,
    shape: Annotated[str | None, typer.Option(help="Whose shape the weights have  [default: by the device]")] = None,
    dtype: DtypeName = "bf16",
    context: Annotated[
        int | None, typer.Option(min=LONG, help="Tokens of the long context  [default: by the device]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What one device does, in under four minutes: prompts, tokens, 8 users at once, 4 and 8 bit, two stages."""
    asked = DeviceRequest(backend, name, shape, parse_dtype(dtype), context)
    home = load_settings().home_path
    home.mkdir(parents=True, exist_ok=True)
    found = asyncio.run(bench_device(asked, home))
    speeds = (f"prefill {SHORT}", f"prefill {LONG}", "decode", f"{PEOPLE} at once", f"at {found.far:,}")
    columns = ("weights", "stages", *speeds, "peak GB", "device GB", "ran on")
    reads = f", plain memory reads {found.read_bytes_per_s / GB:.1f} GB/s" if found.read_bytes_per_s else ""
    title = f"{found.shape} {dtype}, {found.device.key} ({found.device.description}){reads}; tokens/s"
    _print(as_json, asdict(found), columns, map(_device_row, found.lines), title)


def _device_row(line: DeviceLine) -> Sequence[object]:
    """With a dash for what was not measured, and why not in the last column."""
    speeds = (line.prefill_tok_s, line.long_prefill_tok_s, line.decode_tok_s, line.together_tok_s, line.far_tok_s)
    peaks = [size / GB for size in line.peak_bytes] or None
    taken = line.device_bytes / GB if line.device_bytes is not None else None
    figures = ("–" if each is None else each for each in (*speeds, peaks, taken))
    return line.weights, line.stages, *figures, "; ".join([*map(_ran_on, line.computing), *filter(None, [line.why])])


def _ran_on(item: Computing) -> str:
    threads = [f"{item.threads} threads"] if item.threads else []
    return ", ".join([*threads, *item.kernels])


@app.command()
def plan(
    repeats: Annotated[int, typer.Option(min=1, help="Searches per line; the median counts.")] = 9,
    as_json: AsJson = False,
) -> None:
    """How long the recommendation takes, on made-up clusters."""
    _print_lines(as_json, bench_plan(repeats))


@app.command()
def sampler(
    repeats: Annotated[int, typer.Option(min=1, help="Draws per line; the median counts.")] = 20,
    as_json: AsJson = False,
) -> None:
    """What drawing the next tokens of 8 users costs at a vocabulary of 128k."""
    _print_lines(as_json, bench_sampler(repeats))


@app.command()
def engine(
    concurrent: Annotated[int, typer.Option("-c", "--concurrent", min=0, help="Users at once; 0 leaves it out.")] = 8,
    shape: Shape = "llama-3.2-1b",
    dtype: DtypeName = "bf16",
    backend: Backend = "torch",
    device: Device = "cpu",
    stages: Stages = 2,
    new: Annotated[int, typer.Option(min=4, help="Tokens generated by each.")] = 32,
    rounds: Rounds = 3,
    long_prompt: Annotated[
        int, typer.Option(min=0, help="Also: another one's tokens while a prompt this long is computed.")
    ] = 0,
    flat: Annotated[bool, typer.Option(help="Also: tokens 1,900 to 2,000 against tokens 10 to 110.")] = False,
    quantize: Quantized = None,
    compare: Annotated[
        str | None, typer.Option(help="Also the same by llama-batched-bench: llama.cpp=FOLDER of its programs.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Many users at once: speed together, gaps during a long prompt, late tokens against early ones."""
    form = asked_form(quantize) or PUBLISHED
    request = BenchRequest(shape, parse_dtype(dtype), backend, device, stages, new=new, rounds=rounds, form=form)
    llama = yardstick(compare) if compare is not None else None
    found = asyncio.run(bench_engine(request, concurrent, long_prompt, flat, load_settings().home_path, llama))
    rows: list[Sequence[object]] = []
    if both := found.together:
        rows.append((f"tokens/s of {both.people} users, of one", both.all_tok_s, both.one_tok_s, both.ratio))
        if them := both.beside:
            rows.append((f"the same by {them.name}", them.all_tok_s, them.one_tok_s, them.all_tok_s / them.one_tok_s))
            rows.append((f"{both.people} users, here and there", both.all_tok_s, them.all_tok_s, them.ratio))
    if gaps := found.long_prompt:
        during = f"{gaps.gaps} gaps during a prompt of {gaps.tokens} ({gaps.first_token_s:.1f} s)"
        rows.append((f"p95 ms of {during}, median before", gaps.p95_ms, gaps.gap_ms, gaps.ratio))
    if late := found.flatness:
        rows.append(("ms per token, 1,900 to 2,000, 10 to 110", late.far_ms, late.near_ms, late.ratio))
        without = late.far_ms - late.attention_ms
        rows.append(("the same without attention", without, late.near_ms, late.ratio_without_attention))
    title = f"{shape} {dtype}, {form_title(form)}, {backend} on {device}, {stages} stages"
    _print(as_json, asdict(found), ("", "measured", "compared with", "ratio"), rows, title)


@app.command()
def trust(
    shape: Shape = "llama-3.2-1b",
    dtype: DtypeName = "bf16",
    backend: Backend = "torch",
    device: Device = "cpu",
    stages: Stages = 2,
    new: New = 32,
    rounds: Rounds = 9,
    as_json: AsJson = False,
) -> None:
    """What encryption and certificates cost: a hop, decoding and a node's start, in turn with plain connections."""
    request = BenchRequest(shape, parse_dtype(dtype), backend, device, stages, new=new, rounds=rounds)
    lines = asyncio.run(bench_trust(request, load_settings().home_path))
    _print_lines(as_json, lines, ("", "plain", "TLS", "difference", "ratio"), f"{_title(request)}; medians of rounds")


@app.command()
def estimate(
    shape: Shape = "llama-3.2-1b",
    dtype: DtypeName = "bf16",
    backend: Backend = "torch",
    device: Device = "cpu",
    stages: Stages = 2,
    prompt: Prompt = 128,
    new: New = 32,
    rounds: Rounds = 5,
    quantize: Quantized = None,
    users: Annotated[int, typer.Option(min=2, help="How many at once, besides one alone.")] = 4,
    as_json: AsJson = False,
) -> None:
    """How right the planner is about this machine: expected and measured speed, for one and several, and memory."""
    form = asked_form(quantize) or PUBLISHED
    request = BenchRequest(shape, parse_dtype(dtype), backend, device, stages, prompt, new, rounds, form)
    found = asyncio.run(bench_estimate(request, load_settings().home_path, users))
    sizes = zip(found.expected_bytes, found.measured_bytes, found.bytes_ratios, strict=True)
    rows = [
        ("ms per token", found.expected_ms, found.measured_ms, found.ms_ratio),
        (f"tokens/s of {users} users", found.expected_tok_s, found.measured_tok_s, found.tok_s_ratio),
    ]
    rows += [(f"stage {index}, GB", size[0] / GB, size[1] / GB, size[2]) for index, size in enumerate(sizes)]
    _print(as_json, asdict(found), ("", "expected", "measured", "ratio"), rows, f"{_title(request)}, {found.name}")


@app.command()
def curves(
    file: Annotated[Path, typer.Argument(help="Where the figures go, as JSON; `bench plot` draws them.")],
    shape: Shape = "llama-3.2-1b",
    dtype: DtypeName = "bf16",
    backend: Backend = "torch",
    device: Device = "cpu",
    quantize: Quantized = None,
    context: Annotated[str, typer.Option(help="Tokens before the answer.")] = "128,512,2048",
    users: Annotated[str, typer.Option(help="How many at once.")] = "1,2,4,8",
    stages: Annotated[str, typer.Option(help="Stages; the least number is that of all else.")] = "1,2,4",
    prompt: Prompt = 128,
    new: New = 16,
    rounds: Rounds = 3,
) -> None:
    """Decode and prefill speed over context, users at once and stages, for a figure."""
    form = asked_form(quantize) or PUBLISHED
    places = Places.parse(context, users, stages)
    request = BenchRequest(shape, parse_dtype(dtype), backend, device, places.stages[0], prompt, new, rounds, form)
    found = asyncio.run(bench_curves(request, places, load_settings().home_path))
    write_whole(file, json.dumps(asdict(found), indent=1).encode() + b"\n")
    print_lines(found.caption)


@app.command()
def plot(
    file: Annotated[Path, typer.Argument(help="What `bench curves` wrote.")],
    image: Annotated[Path, typer.Argument(help="The SVG to write.")],
) -> None:
    """Draw the figures of `bench curves`."""
    write_whole(image, drawing(read_curves(file)).encode())


@app.command()
def serve(
    concurrent: Annotated[int, typer.Option("-c", "--concurrent", min=1, help="Requests at a time.")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="Requests in all.")] = 32,
    prompt: Annotated[int, typer.Option(min=1, help="Words of a prompt.")] = 64,
    new: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 64,
    url: Annotated[str | None, typer.Option(help="A server that runs; else your app, or one for a while.")] = None,
    model: Annotated[str | None, typer.Option(help="Which one, where several models are served.")] = None,
    overhead: Annotated[
        bool, typer.Option(help="Instead: what the server adds to the engine alone, over ROUNDS single requests.")
    ] = False,
    beside: Annotated[
        str | None, typer.Option(help="Instead: one stream of --model, alone and beside -c streams of this model.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds of --overhead (9) or --beside (5); the medians count.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Many programs at once over HTTP: time to the first token, time per token, tokens per second."""
    with _server(url) as address:
        if overhead:
            _overhead(address, prompt, new, rounds or 9, as_json)
        elif beside is not None:
            _sharing(address, SharingRequest(beside, concurrent, prompt, new, rounds or 5, model), as_json)
        else:
            _serve(address, ServeRequest(concurrent, requests, prompt, new, model), as_json)


def _serve(url: str, request: ServeRequest, as_json: bool) -> None:
    found = asyncio.run(bench_serve(url, request))
    title = (
        f"{found.model}: {found.answered} of {found.requests} requests, {request.concurrent} at a time, "
        f"{found.seconds:.1f} s, {found.generated_tokens} tokens, {found.tokens_per_s:.1f} tokens/s"
        + (f", refused: {found.refused}" if found.refused else "")
    )
    lines = (("first token", found.first_token_ms), ("each token", found.per_token_ms), ("request", found.request_ms))
    rows = ((name, item.p50, item.p95, item.p99) for name, item in lines)
    _print(as_json, asdict(found), ("ms", "p50", "p95", "p99"), rows, title)


def _sharing(url: str, request: SharingRequest, as_json: bool) -> None:
    found = asyncio.run(bench_sharing(url, request))
    title = (
        f"one stream of {found.model}, alone and beside {found.streams} of {found.beside} ({found.other_tok_s:.1f} "
        f"tokens/s), {request.new} tokens, median of {found.rounds} alternated rounds"
    )
    rows = (
        ("tokens/s", found.alone_tok_s, found.beside_tok_s, found.speed),
        ("p95 of gaps, ms", found.alone_p95_ms, found.beside_p95_ms, found.p95),
        ("the same, by the median gap alone", found.gap_ms, found.beside_p95_ms, found.p95_of_gap),
    )
    _print(as_json, asdict(found), ("", "alone", "beside", "ratio"), rows, title)


def _overhead(url: str, prompt: int, new: int, rounds: int, as_json: bool) -> None:
    plan = comparable(RunningApp(url, 0).status().serving.plan)
    found = asyncio.run(bench_overhead(url, plan, load_settings().home_path, prompt, new, rounds))
    rows = (
        ("first token", found.first_ms, found.engine_first_ms, found.added_first_ms),
        ("each token", found.per_token_ms, found.engine_per_token_ms, found.added_per_token_ms),
    )
    title = f"{plan.model.name}, {len(plan.stages)} stages, {prompt} + {new} tokens, median of {rounds} rounds"
    _print(as_json, asdict(found), ("ms", "server", "engine alone", "added"), rows, title)


@contextmanager
def _server(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url.rstrip("/").removesuffix("/v1")
        return
    with app_for_a_while(load_settings().home_path) as app:
        yield app.url


def _title(request: BenchRequest) -> str:
    measured = f"{request.prompt} + {request.new} tokens, median of {request.rounds} alternated rounds"
    weights = f", {form_title(request.form)}" if request.form else ""
    return f"{request.shape} {request.dtype}{weights}, {request.backend} on {request.device}, {measured}"


def _print(as_json: bool, data: object, columns: Sequence[str], rows: Rows, title: str = "") -> None:
    if as_json:
        print(json.dumps(data))
        return
    if title:
        print(title)
    print_table(columns, rows)


def _print_lines(
    as_json: bool,
    lines: Sequence[Hop | PlanTime | SamplerLine | TrustLine],
    columns: Sequence[str] = (),
    title: str = "",
) -> None:
    """A line for each item, a column for each field, under the field's name where `columns` are left out."""
    found = [asdict(line) for line in lines]
    names = columns or [name.replace("_", " ") for name in found[0]]
    _print(as_json, found, names, [tuple(item.values()) for item in found], title)
