"""How much of its quality a model keeps in 8 and 4 bits: perplexity and bits per weight, on each backend that is here.

Takes a plain model (a folder or a name), others to compare with it as they are, and a text of your own in UTF-8:
.venv/bin/python examples/compare_quantized.py MODEL --text FILE
Without them it scores a sentence by the bundled model.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))  # so that it runs from any folder

from together.errors import TogetherError  # noqa: E402
from together.scripting import PartitionStrategy, partition  # noqa: E402

BACKENDS = [name for name in ("torch", "mlx") if find_spec(name)]
ROW = "{:<40} {:<8} {:>15} {:>12} {:>12}"
TEXT = "The capital of France is Paris."


def main(models: list[str], text: str) -> None:
    print(ROW.format("model", "backend", "bits per weight", "perplexity", "to the first"))
    forms = [(models[0], None), (models[0], "8"), (models[0], "4"), *((model, None) for model in models[1:])]
    for backend in BACKENDS:
        first = 0.0
        for model, quantize in forms:
            name = Path(model).name + (f" --quantize {quantize}" if quantize else "")
            try:
                bits, perplexity = measure(model, quantize, backend, text)
            except TogetherError as error:  # its message is a sentence: what is wrong, and what to do
                print(f"{name} on {backend}: {error}")
                continue
            first = first or perplexity
            figures = f"{bits:.2f}", f"{perplexity:.4f}", f"{perplexity / first:.4f}"
            print(ROW.format(name, backend, *figures), flush=True)


def measure(model: str, quantize: str | None, backend: str, text: str) -> tuple[float, float]:
    """Bits per weight, and the perplexity of the text in windows of at most 512 tokens."""
    strategy = PartitionStrategy(num_partitions=1, backend=backend, context=513, users=1, quantize=quantize)
    with partition(Path(model) if Path(model).is_dir() else model, strategy) as loaded:
        return loaded.plan.bits_per_weight, loaded.score(text).perplexity


if __name__ == "__main__":
    words, text = sys.argv[1:], TEXT
    if "--text" in words:
        place = words.index("--text")
        text = Path(words[place + 1]).read_text(encoding="utf-8")
        del words[place : place + 2]
    main(words or [str(CHECKOUT / "examples" / "demo_model")], text)
