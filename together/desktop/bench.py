"""The `bench` commands: parse, run, print a table or JSON. Knows no measurement itself."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Annotated

import typer

from together.errors import BadSetting
from together.settings import load_settings
from together.types import DTYPES, Dtype

app = typer.Typer(help="Measure this machine; --json for programs.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def hop(
    repeats: Annotated[int, typer.Option(help="Round trips per line, after a warm-up.")] = 40,
    as_json: AsJson = False,
) -> None:
    """What it costs to pass hidden states to the next stage: the link, and whether compressing them would pay."""
    from together.desktop.bench_hop import bench_hop

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
    from together.desktop.bench_decode import DecodeRequest, bench_decode
    from together.desktop.bench_decode import as_json as to_json

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
    from together.desktop.bench_plan import bench_plan

    lines = bench_plan(repeats)
    if as_json:
        print(json.dumps([asdict(item) for item in lines]))
        return
    print(f"{'nodes':>5} {'layers':>6} {'room':>6} {'people':>6} {'search ms':>9} {'answer ms':>9} machines")
    for item in lines:
        sizes = f"{item.nodes:5} {item.layers:6} {item.room:>6} {item.users:6}"
        print(f"{sizes} {item.search_ms:9.1f} {item.answer_ms:9.1f} {item.machines}")


def _dtype(text: str) -> Dtype:
    for dtype in DTYPES:
        if dtype == text:
            return dtype
    raise BadSetting(f"there is no dtype {text!r}; choose one of {', '.join(DTYPES)}")
