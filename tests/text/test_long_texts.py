"""The memory for tokenizing a long text is given back, whether or not the text fits. In child processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from together.weights.find import BUNDLED

ROOT = Path(__file__).resolve().parents[2]
LEFT = 50 * 10**6  # bytes
SCRIPT = """
import asyncio, sys
import psutil
from pathlib import Path
from together.text.tokenizer import TextModel
from together.errors import ContextTooLong

def memory():
    return psutil.Process().memory_info().rss

async def encode(model, text, context):
    try:
        return len(await model.encode_aside(text, context=context))
    except ContextTooLong as error:
        assert "at least" not in str(error), "it was tokenized"
        return error.tokens

model = TextModel.open(Path(sys.argv[1]))
text = "hello world, this is a text. " * 40_000
asyncio.run(encode(model, text[:1000], None))
before = memory()
tokens = [asyncio.run(encode(model, text, int(sys.argv[2]))) for _ in range(2)]
print(memory() - before, *tokens)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries give back by themselves")
@pytest.mark.parametrize("context", [200_000, 10**7])
def test_what_a_long_text_took_is_given_back(context: int) -> None:
    """A million letters, which are at least 100,000 to 200,000 tokens by their length alone."""
    command = [sys.executable, "-c", SCRIPT, str(BUNDLED), str(context)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    left, *tokens = map(int, done.stdout.split())
    assert tokens[0] == tokens[1] > 200_000
    assert left < LEFT
