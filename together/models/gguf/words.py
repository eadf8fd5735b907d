"""The small files of a model, made of a GGUF file's metadata: tokenizer, its settings, templates, ends of answers.

config.json is not among them: it describes the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from together.models.gguf.header import Value
from together.models.gguf.tokenizer import adds_begin, checked_tokenizer, make_tokenizer
from together.models.gguf.vocabulary import GgufWords
from together.models.names import MAX_NAME, TEMPLATES, is_template

_WHOLE = "tokenizer.huggingface.json"  # few files have it
_TEMPLATE = "tokenizer.chat_template"
_SPECIAL = ("bos", "eos", "unk", "pad", "sep", "mask")
# The author's sampling: what GGUF calls a value, and what generation_config.json does.
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def word_files(metadata: Mapping[str, Value], name: str = "") -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json, generation_config.json and chat templates, by their names in a folder.

    `name` is what errors call the model. Takes seconds, and holds the GIL. Raises UnsupportedModel for words that would
    be read wrongly here, by name, and BrokenModel for metadata that contradict themselves.
    """
    words = GgufWords.of(metadata, name or _title(metadata))
    whole = metadata.get(_WHOLE)
    tokenizer = checked_tokenizer(words, whole) if isinstance(whole, str) else make_tokenizer(words)
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": _json(_settings(words)),
        "generation_config.json": _json(_generation(words, metadata)),
        **dict(_templates(metadata)),
    }


def _title(metadata: Mapping[str, Value]) -> str:
    name = metadata.get("general.name")
    return name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_NAME else "this GGUF file"


def _settings(words: GgufWords) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": adds_begin(words),
        "add_eos_token": words.adds_end is True,
        **{f"{role}_token": words.words[words.roles[role]] for role in _SPECIAL if role in words.roles},
    }


def _generation(words: GgufWords, metadata: Mapping[str, Value]) -> dict[str, object]:
    found: dict[str, object] = {f"{role}_token_id": words.roles[role] for role in ("bos", "pad") if role in words.roles}
    if words.ends:
        found["eos_token_id"] = words.ends
    sampling = dict(_sampling(metadata))
    return {**found, "do_sample": True, **sampling} if sampling else found


def _sampling(metadata: Mapping[str, Value]) -> Iterator[tuple[str, float]]:
    for key, name in _SAMPLING.items():
        value = metadata.get(f"general.sampling.{key}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(f"{value:.6g}") if isinstance(value, float) else value  # they are stored in 32 bits


def _templates(metadata: Mapping[str, Value]) -> Iterator[tuple[str, bytes]]:
    """The usual one, and those with names; a name that cannot be a file's is passed over."""
    for key, source in metadata.items():
        if not isinstance(source, str):
            continue
        if key == _TEMPLATE:
            yield "chat_template.jinja", source.encode()
        file = f"{TEMPLATES}/{key.removeprefix(f'{_TEMPLATE}.')}.jinja"
        if key.startswith(f"{_TEMPLATE}.") and is_template(file):
            yield file, source.encode()


def _json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
