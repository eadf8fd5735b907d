"""The `bench` commands: parse, run, print a table or JSON. Knows no measurement itself."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from together.errors import BadSetting
from together.settings import load_settings
from together.types import DTYPES, Dtype

if TYPE_CHECKING:
    from together.desktop.bench.serve import ServeRequest

app = typer.Typer(help="Measure this machine; --json for programs.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def hop(
    repeats: Annotated[int, typer.Option(help="Round trips per line, after a warm-up.")] = 40,
    as_json: AsJson = False,
) -> None:
    """What it costs to pass hidden states to the next stage: the link, and whether compressing them would pay."""
    from together.desktop.bench.hop import bench_hop

    hops = asyncio.run(bench_hop(repeats))
    if as_json:
        print(json.dumps([asdict(item) for item in hops]))
        return
    columns = f"{'sent kB':>8} {'transmission':>12} {'compression':>11} {'total ms':>8} MB/s"
    print(f"{'shape':>10} {'dtype':>5} {'codec':>5} {columns}")
    for item in hops:
        shape = f"{item.shape[0]}×{item.shape[1]}"
        times = f"{item.transmission_ms:12.2f} {item.compression_ms:11.2f} {item.total_ms:8.2f}"
        print(f"{shape:>10} {item.dtype:>5} {item.codec:>5} {item.sent_bytes / 1e3:8.1f} {times} {item.mb_per_s:.0f}")


@app.command()
def decode(
    shape: Annotated[str, typer.Option(help="Whose shape the random weights have.")] = "llama-3.2-1b",
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "bf16",
    backend: Annotated[str, typer.Option(help="torch or mlx.")] = "torch",
    device: Annotated[str, typer.Option(help="The backend's device.")] = "cpu",
    stages: Annotated[int, typer.Option(min=1, help="Stage processes.")] = 2,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 128,
    new: Annotated[int, typer.Option(min=2, help="Tokens generated.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the medians count.")] = 5,
    compare: Annotated[
        list[str] | None, typer.Option(help="Also measure, in turn: another number of stages, or transformers.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prefill and decode speed over real stage processes on this machine."""
    from together.desktop.bench.decode import DecodeRequest, bench_decode
    from together.desktop.bench.decode import as_json as to_json

    request = DecodeRequest(shape, _dtype(dtype), backend, device, prompt, new, rounds)
    reports = asyncio.run(bench_decode(request, [str(stages), *(compare or [])], load_settings().home_path))
    if as_json:
        print(json.dumps(to_json(reports)))
        return
    print(f"{shape} {dtype}, {backend} on {device}, {prompt} + {new} tokens, median of {rounds} alternated rounds")
    for report in reports:
        stage_ms = ", ".join(f"{ms:.1f}" for ms in report.stage_ms)
        print(
            f"{report.name:>14}: prefill {report.prefill_tok_s:.1f} tok/s, decode {report.decode_tok_s:.2f} tok/s, "
            f"first token {report.ttft_s:.2f} s"
            + (f", stages {stage_ms} ms, hop {report.hop_ms:.2f} ms" if stage_ms else "")
            + f", peak {', '.join(f'{size / 1e9:.2f} GB' for size in report.rss_bytes)}"
        )
    for report in reports[1:]:
        print(f"decode, {reports[0].name} / {report.name}: {reports[0].decode_tok_s / report.decode_tok_s:.3f}")


@app.command()
def plan(
    repeats: Annotated[int, typer.Option(min=1, help="Searches per line; the median counts.")] = 9,
    as_json: AsJson = False,
) -> None:
    """How long the recommendation takes, on made-up clusters."""
    from together.desktop.bench.plan import bench_plan

    lines = bench_plan(repeats)
    if as_json:
        print(json.dumps([asdict(item) for item in lines]))
        return
    print(
        f"{'nodes':>5} {'layers':>6} {'room':>6} {'people':>6} {'head':>4} {'search ms':>9} {'answer ms':>9} machines"
    )
    for item in lines:
        sizes = f"{item.nodes:5} {item.layers:6} {item.room:>6} {item.users:6} {item.lm_head:4g}"
        print(f"{sizes} {item.search_ms:9.1f} {item.answer_ms:9.1f} {item.machines}")


@app.command()
def sampler(
    repeats: Annotated[int, typer.Option(min=1, help="Draws per line; the median counts.")] = 20,
    as_json: AsJson = False,
) -> None:
    """What drawing the next tokens of 8 people costs at a vocabulary of 128k."""
    from together.desktop.bench.sampler import bench_sampler

    lines = bench_sampler(repeats)
    if as_json:
        print(json.dumps([asdict(item) for item in lines]))
        return
    print(f"{'settings':>24} {'rows':>4} {'vocabulary':>10} {'ms':>7} {'slowest':>7}")
    for item in lines:
        print(f"{item.settings:>24} {item.rows:4} {item.vocabulary:10} {item.ms:7.2f} {item.slowest_ms:7.2f}")


@app.command()
def engine(
    concurrent: Annotated[int, typer.Option("-c", "--concurrent", min=0, help="People at once; 0 leaves it out.")] = 8,
    shape: Annotated[str, typer.Option(help="Whose shape the random weights have.")] = "llama-3.2-1b",
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "bf16",
    backend: Annotated[str, typer.Option(help="torch or mlx.")] = "torch",
    device: Annotated[str, typer.Option(help="The backend's device.")] = "cpu",
    stages: Annotated[int, typer.Option(min=1, help="Stage processes.")] = 2,
    new: Annotated[int, typer.Option(min=4, help="Tokens generated by each.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the medians count.")] = 3,
    long_prompt: Annotated[
        int, typer.Option(min=0, help="Also: another one's tokens while a prompt this long is computed.")
    ] = 0,
    flat: Annotated[bool, typer.Option(help="Also: tokens 1,900 to 2,000 against tokens 10 to 110.")] = False,
    as_json: AsJson = False,
) -> None:
    """Many people at once: speed together, gaps beside a long prompt, late tokens against early ones."""
    from together.desktop.bench.engine import EngineRequest, bench_engine

    request = EngineRequest(shape, _dtype(dtype), backend, device, stages, concurrent, new, rounds, long_prompt, flat)
    report = asyncio.run(bench_engine(request, load_settings().home_path))
    if as_json:
        print(json.dumps(asdict(report)))
        return
    print(f"{shape} {dtype}, {backend} on {device}, {stages} stages")
    if both := report.together:
        print(f"{both.people} people: {both.all_tok_s:.1f} tok/s, one: {both.one_tok_s:.1f} tok/s, {both.ratio:.2f} ×")
    if gaps := report.long_prompt:
        print(
            f"beside a prompt of {gaps.tokens} tokens ({gaps.first_token_s:.1f} s): p95 of {gaps.gaps} gaps "
            f"{gaps.p95_ms:.0f} ms, median without {gaps.gap_ms:.0f} ms, {gaps.ratio:.2f} ×"
        )
    if late := report.flatness:
        print(
            f"tokens 1,900 to 2,000: {late.far_ms:.1f} ms each, 10 to 110: {late.near_ms:.1f} ms, {late.ratio:.2f} ×; "
            f"without {late.attention_ms:.1f} ms of attention {late.ratio_without_attention:.2f} ×"
        )


@app.command()
def estimate(
    shape: Annotated[str, typer.Option(help="Whose shape the random weights have.")] = "llama-3.2-1b",
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "bf16",
    backend: Annotated[str, typer.Option(help="torch or mlx.")] = "torch",
    device: Annotated[str, typer.Option(help="The backend's device.")] = "cpu",
    stages: Annotated[int, typer.Option(min=1, help="Stage processes.")] = 2,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 128,
    new: Annotated[int, typer.Option(min=2, help="Tokens generated.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the medians count.")] = 5,
    as_json: AsJson = False,
) -> None:
    """How right the planner is about this machine: expected and measured ms per token and memory per stage."""
    from together.desktop.bench.decode import DecodeRequest
    from together.desktop.bench.estimate import bench_estimate

    request = DecodeRequest(shape, _dtype(dtype), backend, device, prompt, new, rounds)
    found = asyncio.run(bench_estimate(request, stages, load_settings().home_path))
    if as_json:
        print(json.dumps(asdict(found) | {"ms_ratio": found.ms_ratio, "bytes_ratios": found.bytes_ratios}))
        return
    print(f"{shape} {dtype}, {backend} on {device}, {found.name}, {prompt} + {new} tokens, median of {rounds} rounds")
    print(f"ms per token: expected {found.expected_ms:.1f}, measured {found.measured_ms:.1f}: {found.ms_ratio:.3f}")
    for index, ratio in enumerate(found.bytes_ratios):
        sizes = found.expected_bytes[index] / 1e9, found.measured_bytes[index] / 1e9
        print(f"stage {index} memory: expected {sizes[0]:.3f} GB, measured {sizes[1]:.3f} GB: {ratio:.3f}")


@app.command()
def serve(
    concurrent: Annotated[int, typer.Option("-c", "--concurrent", min=1, help="Requests at a time.")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="Requests in all.")] = 32,
    prompt: Annotated[int, typer.Option(min=1, help="Words of a prompt.")] = 64,
    new: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 64,
    url: Annotated[str | None, typer.Option(help="A server that runs; else your app, or one for a while.")] = None,
    overhead: Annotated[
        bool, typer.Option(help="Instead: what the server adds to the engine alone, over ROUNDS single requests.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of --overhead; the medians count.")] = 9,
    as_json: AsJson = False,
) -> None:
    """Many programs at once over HTTP: time to the first token, time per token, tokens per second."""
    from together.desktop.bench.serve import ServeRequest

    with _server(url) as address:
        if overhead:
            _overhead(address, prompt, new, rounds, as_json)
        else:
            _serve(address, ServeRequest(concurrent, requests, prompt, new), as_json)


def _serve(url: str, request: ServeRequest, as_json: bool) -> None:
    from together.desktop.bench.serve import bench_serve

    found = asyncio.run(bench_serve(url, request))
    if as_json:
        print(json.dumps(asdict(found)))
        return
    print(
        f"{found.model}: {found.answered} of {found.requests} requests, {request.concurrent} at a time, "
        f"{found.seconds:.1f} s, {found.generated_tokens} tokens, {found.tokens_per_s:.1f} tokens/s"
        + (f", refused: {found.refused}" if found.refused else "")
    )
    lines = (("first token", found.first_token_ms), ("each token", found.per_token_ms), ("request", found.request_ms))
    print(f"{'ms':>12} {'p50':>9} {'p95':>9} {'p99':>9}")
    for name, item in lines:
        print(f"{name:>12} {item.p50:9.1f} {item.p95:9.1f} {item.p99:9.1f}")


def _overhead(url: str, prompt: int, new: int, rounds: int, as_json: bool) -> None:
    from together.desktop.bench.serve import bench_overhead, plan_of
    from together.desktop.client import RunningApp

    plan = plan_of(RunningApp(url, 0).status())
    found = asyncio.run(bench_overhead(url, plan, load_settings().home_path, prompt, new, rounds))
    added = {"added_first_ms": found.added_first_ms, "added_per_token_ms": found.added_per_token_ms}
    if as_json:
        print(json.dumps(asdict(found) | added))
        return
    print(f"{plan['model']['name']}, {len(plan['stages'])} stages, {prompt} + {new} tokens, median of {rounds} rounds")
    print(f"first token: {found.first_ms:.1f} ms, engine alone {found.engine_first_ms:.1f} ms")
    print(f"each token: {found.per_token_ms:.2f} ms, engine alone {found.engine_per_token_ms:.2f} ms")


@contextmanager
def _server(url: str | None) -> Iterator[str]:
    from together.desktop.temporary_app import app_for_a_while

    if url is not None:
        yield url.rstrip("/").removesuffix("/v1")
        return
    with app_for_a_while(load_settings().home_path, lambda line: print(line, file=sys.stderr)) as app:
        yield app.url


def _dtype(text: str) -> Dtype:
    for dtype in DTYPES:
        if dtype == text:
            return dtype
    raise BadSetting(f"there is no dtype {text!r}; choose one of {', '.join(DTYPES)}")
