"""The toy with other words: a chat template and tags of its own. Knows no test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from tests.support.checksum import VOCABULARY, make_checksum_model
from tests.support.engines import LAYERS


def worded_toy(folder: Path, template: str, tags: Sequence[str], ends: Sequence[int | str]) -> Path:
    """A toy whose `tags` are special tokens; `ends` are the ids or tags that its files name as the end of an answer."""
    make_checksum_model(folder, layers=LAYERS, vocabulary=VOCABULARY + len(tags), quiet_ids=())
    for name in ("tokenizer.json", "tokenizer_config.json"):  # the toy's own end is a word of other families
        file = folder / name
        file.write_text(file.read_text(encoding="utf-8").replace("<|end|>", "<|over|>"), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(tag, special=True, normalized=False) for tag in tags])
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = [tokenizer.token_to_id(end) if isinstance(end, str) else end for end in ends]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    return folder
