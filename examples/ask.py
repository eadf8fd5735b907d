"""Ask a running app from another program, over its OpenAI-compatible API: python examples/ask.py "What is a node?"

Any OpenAI client works the same way with base_url="http://127.0.0.1:8765/v1"; this one needs httpx only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import httpx

URL = "http://127.0.0.1:8765/v1/chat/completions"


def ask(question: str, url: str = URL) -> Iterator[str]:
    """The answer, piece by piece. Raises httpx.HTTPError where no app runs or no model is loaded."""
    body = {"messages": [{"role": "user", "content": question}], "stream": True}
    client = httpx.Client(trust_env=False, timeout=60)  # the app is on this machine: no proxy
    with client, client.stream("POST", url, json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "")


if __name__ == "__main__":
    for piece in ask(" ".join(sys.argv[1:]) or "What is the capital of France?"):
        print(piece, end="", flush=True)
    print()
