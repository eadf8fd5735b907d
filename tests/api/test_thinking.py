"""Thoughts and any bytes over HTTP: tags never show, characters never break, counts stay the tokenizer's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from tests.api.conftest import Heads
from tests.api.test_chat import PATH, chunks_of
from tests.api.web import client_of
from tests.support.checksum import VOCABULARY, expected_tokens, make_checksum_model
from tests.support.cluster import by_hand
from tests.text.test_thinking import parted
from together.requests import Message
from together.text.tokenizer import TextModel
from together.types import Sampling

CLOSING = 262
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 120,
    "seed": 6,
    "ignore_eos": True,
    "temperature": 1.0,
    "top_p": 1.0,
    "logit_bias": {str(CLOSING): 3.0},
}
SAMPLING = Sampling(1.0, seed=6, logit_bias=((CLOSING, 3.0),))


def thinking_toy(folder: Path, quiet_ids: Iterable[int] = range(256, VOCABULARY), **config: Any) -> Path:
    """A toy that says any byte, and the closing tag at times; its template opens the thoughts unless told not to."""
    make_checksum_model(folder, quiet_ids=tuple(i for i in quiet_ids if i != CLOSING), **config)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    file = folder / "tokenizer_config.json"
    read = json.loads(file.read_text())
    read["chat_template"] += "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
    file.write_text(json.dumps(read))
    return folder


async def test_thoughts_and_any_bytes(tmp_path: Path, head_with: Heads) -> None:
    toy = thinking_toy(tmp_path / "toy")
    text = TextModel.open(toy)
    opened = text.prompt_ids([Message("user", "Hello")])
    closed = text.prompt_ids([Message("user", "Hello")], enable_thinking=False)
    ids = expected_tokens(toy, opened, 120, SAMPLING)
    thought, answer = parted(text.tokenizer.decode(ids), opened=True)
    assert thought
    assert "\ufffd" in thought + answer  # bytes that are no character, too
    assert max(map(ord, answer)) > 127
    async with head_with() as head:
        await head.load(toy, by_hand("0:2,2:4"))
        async with client_of(head) as client:
            whole = (await client.post(PATH, json=ASKED)).json()
            raw = (await client.post(PATH, json=ASKED | {"stream": True})).content
            without = ASKED | {"chat_template_kwargs": {"enable_thinking": False}}
            plain = (await client.post(PATH, json=without)).json()
    message = whole["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (thought, answer)
    usage = whole["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(opened), 120)
    assert usage["completion_tokens_details"] == {"reasoning_tokens": ids.index(CLOSING) + 1}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks_of(raw)]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == thought
    assert "".join(delta.get("content", "") for delta in deltas) == answer
    unthought = text.tokenizer.decode(expected_tokens(toy, closed, 120, SAMPLING))
    assert plain["choices"][0]["message"] == {"role": "assistant", "content": unthought, "refusal": None}
