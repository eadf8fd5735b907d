"""What every strategy would make of a model on this machine, without loading it.

Takes a folder, or org/name of the hub, and how many parts: .venv/bin/python examples/compare_splits.py MODEL 3
"""

from __future__ import annotations

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))  # so that it runs from any folder

from together.errors import TogetherError  # noqa: E402
from together.scripting import PartitionStrategy  # noqa: E402


def main(model: str = str(CHECKOUT / "examples" / "demo_model"), partitions: str = "2") -> None:
    for kind in ("recommend", "uniform", "memory", "compute", "mixed"):
        try:
            plan = PartitionStrategy(num_partitions=int(partitions), strategy_type=kind).plan(model)
        except TogetherError as error:  # its message is a sentence: what is wrong, and what to do
            print(f"{kind}: {error}")
            continue
        print(f"{kind}: {', '.join(map(str, plan.partitions))}")
        print(*(f"  {sentence}" for sentence in plan.why), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
