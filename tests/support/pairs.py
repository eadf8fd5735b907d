"""Compares two checkouts by one bench command, in alternated runs: the median and the quartiles of the pairs' ratios.

    python -m tests.support.pairs BEFORE AFTER FIGURE[,FIGURE] [--pairs 9] -- decode --shape tiny

A FIGURE is a path into the command's JSON: `runs.0.decode_tokens_per_s`. Ratios are AFTER / BEFORE.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def measure(checkout: Path, command: list[str], figures: list[str], home: str) -> list[float]:
    """One run's figures. Raises CalledProcessError."""
    around = {**os.environ, "PYTHONPATH": str(checkout), "TOGETHER_HOME": home}
    run = [sys.executable, "-m", "together", "bench", *command, "--json"]
    answer = subprocess.run(run, cwd=checkout, env=around, stdout=subprocess.PIPE, check=True)
    found = json.loads(answer.stdout)
    return [float(_at(found, figure.split("."))) for figure in figures]


def _at(value: Any, path: list[str]) -> Any:
    for step in path:
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def compare(before: Path, after: Path, figures: list[str], command: list[str], pairs: int) -> None:
    """Print each figure's ratios. Either checkout begins every other pair: a drift of the machine evens out."""
    ratios: dict[str, list[float]] = {figure: [] for figure in figures}
    with tempfile.TemporaryDirectory() as home:
        measure(before, command, figures, home)  # makes what both read
        for pair in range(pairs):
            order = (before, after) if pair % 2 == 0 else (after, before)
            one = {checkout: measure(checkout, command, figures, home) for checkout in order}
            for index, figure in enumerate(figures):
                ratios[figure].append(one[after][index] / one[before][index])
            print(f"pair {pair + 1}: {one[before]} -> {one[after]}", file=sys.stderr, flush=True)
    for figure, found in ratios.items():
        low, middle, high = statistics.quantiles(found, n=4)
        print(f"{figure}: {middle:.3f} (quartiles {low:.3f} and {high:.3f}, {pairs} pairs)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("figures")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    before, after = asked.before.resolve(), asked.after.resolve()
    compare(before, after, asked.figures.split(","), asked.command, asked.pairs)


if __name__ == "__main__":
    main()
