"""A model's tokenizer as its folder describes it: special words, added words, begin token, ends of text.

tokenizer.json is not all of it: fine-tunes name further words in tokenizer_config.json or added_tokens.json, and ends
of text stand in up to three files.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from together.errors import BrokenModel
from together.models.folder import side_json
from together.quoting import MOST, cut
from together.text.tokenizer_file import read_tokenizer_file

logger = logging.getLogger(__name__)

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MORE_SPECIAL = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
LONGEST_ID = 20  # digits: Python refuses to read thousands of them
MOST_ADDED = 10_000  # words beside tokenizer.json, and ids that they may lie beyond its own


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer with all its words; `special` holds the words a template may name, as `bos_token`."""

    tokenizer: Tokenizer
    special: Mapping[str, str]
    eos: frozenset[int]
    bos: int | None  # the begin token that prompts as they are must start with; None: none

    @classmethod
    def open(cls, folder: Path, config: Mapping[str, Any]) -> Vocabulary:
        """`config` is tokenizer_config.json. Raises BrokenModel."""
        special = special_words(folder, config)
        tokenizer = _open_tokenizer(folder)
        words = _added_words(folder, config, special, tokenizer.get_added_tokens_decoder())
        tokenizer = _with_flags(tokenizer, words)
        _add_words(tokenizer, words, folder.name)
        tokenizer.add_special_tokens([word for word in special.values() if tokenizer.token_to_id(word) is not None])
        return cls(tokenizer, special, _ends(folder, tokenizer, special), _begin(tokenizer, config, special))

    def with_begin(self, text: str, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids of a prompt as it is, with exactly one begin token where the model wants one.

        `ids` are of `text`, with what the tokenizer adds to any text. A text that was rendered by a template brings the
        begin token's word already; then the tokenizer's own is one too many.
        """
        word = self.special.get("bos_token")
        begin = self.tokenizer.token_to_id(word) if word else None
        if begin is None:
            return tuple(ids)
        if word and text.startswith(word):
            return (begin, *_without(begin, ids))
        return tuple(ids) if self.bos is None else (self.bos, *_without(self.bos, ids))


def special_words(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The words of the special tokens by their names; older models keep them in a file of their own."""
    older = side_json(folder, "special_tokens_map.json")
    words = {name: _content(config.get(name)) or _content(older.get(name)) for name in _SPECIAL}
    return {name: word for name, word in words.items() if word}


def _content(word: object) -> str:
    """A word is a text, or an object that has it as its content."""
    found = word.get("content") if isinstance(word, dict) else word
    return found if isinstance(found, str) else ""


def _without(begin: int, ids: Sequence[int]) -> Iterator[int]:
    """`ids` without the begin tokens they start with."""
    rest = iter(ids)
    for token_id in rest:
        if token_id != begin:
            yield token_id
            yield from rest


def _open_tokenizer(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise BrokenModel(
            f"{folder.name} has no tokenizer.json; download the model again, or save it once with a fast tokenizer "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    try:
        tokenizer = Tokenizer.from_buffer(read_tokenizer_file(folder))
    except BrokenModel:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise BrokenModel(
            f"tokenizer.json of {folder.name} cannot be read ({cut(str(error), MOST)}); get this model again"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


# --- added words ------------------------------------------------------------------------------------------------------


def _added_words(
    folder: Path, config: Mapping[str, Any], special: Mapping[str, str], known: Mapping[int, AddedToken]
) -> dict[int, AddedToken]:
    """By id: what added_tokens.json names, and tokenizer_config.json, which knows more of each word and wins.

    `known` are the words of tokenizer.json.
    """
    specials = {*special.values(), *_more_special(config)}
    found: dict[int, AddedToken] = {}
    for word, index in side_json(folder, "added_tokens.json").items():
        if type(index) is int and word:
            same = index in known and known[index].content == word
            found[index] = known[index] if same else AddedToken(word, normalized=False, special=word in specials)
    listed = config.get("added_tokens_decoder")
    for key, entry in (listed if isinstance(listed, dict) else {}).items():
        word = _content(entry)
        if word and key.isdecimal() and len(key) < LONGEST_ID:
            found[int(key)] = _token(word, entry, special=word in specials)
    return dict(sorted(found.items()))


def _token(word: str, entry: object, *, special: bool) -> AddedToken:
    flags = {name: bool(entry.get(name)) for name in _FLAGS} if isinstance(entry, dict) else {"special": special}
    return AddedToken(word, **flags)


def _more_special(config: Mapping[str, Any]) -> Iterator[str]:
    for name in _MORE_SPECIAL:
        words = config.get(name)
        items = list(words.values()) if isinstance(words, dict) else words
        yield from filter(None, map(_content, items if isinstance(items, list) else ()))


def _with_flags(tokenizer: Tokenizer, words: Mapping[int, AddedToken]) -> Tokenizer:
    """The tokenizer, whose added words have the flags that the settings give them; a special one stays special.

    The library leaves a word that it knows as it is, so the tokenizer is made again where one differs.
    """
    known = tokenizer.get_added_tokens_decoder()
    same = {index: token for index, token in words.items() if index in known and known[index].content == token.content}
    wanted = {
        index: _flags(token) | {"special": token.special or known[index].special} for index, token in same.items()
    }
    if all(_flags(known[index]) == flags for index, flags in wanted.items()):
        return tokenizer
    content = json.loads(tokenizer.to_str())
    for entry in content["added_tokens"]:
        entry |= wanted.get(entry["id"], {})
    return Tokenizer.from_str(json.dumps(content))


def _flags(token: AddedToken) -> dict[str, bool]:
    return {name: getattr(token, name) for name in _FLAGS}


def _add_words(tokenizer: Tokenizer, words: Mapping[int, AddedToken], name: str) -> None:
    """The library numbers added words itself, one after the other: ids in between are filled with unused words."""
    size = tokenizer.get_vocab_size()
    last = max(words, default=0)
    if len(words) > MOST_ADDED or last > size + MOST_ADDED:
        raise BrokenModel(
            f"the settings of {name} add {len(words)} words up to token {last} to the {size} of its tokenizer.json, "
            f"which is more than {MOST_ADDED}; get this model again"
        )
    new: list[AddedToken] = []
    for index, token in words.items():
        here = tokenizer.token_to_id(token.content)
        if here is None:
            unused = range(size, index)
            new += (AddedToken(f"\ue000unused-{i}\ue000", normalized=False) for i in unused)
            size += len(unused) + 1
        if here in (None, index):
            new.append(token)
    tokenizer.add_tokens(new)
    for index, token in words.items():
        found = tokenizer.token_to_id(token.content)
        if found != index:
            logger.warning("%.60r of %s is token %s and not %d as its settings say", token.content, name, found, index)


# --- begin and end ----------------------------------------------------------------------------------------------------


def _begin(tokenizer: Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]) -> int | None:
    """The begin token, where the settings ask for one or the tokenizer adds it to any text by itself."""
    begin = tokenizer.token_to_id(special.get("bos_token", ""))
    if begin is None:
        return None
    adds_itself = tokenizer.encode("a", add_special_tokens=True).ids[:1] == [begin]
    return begin if adds_itself or config.get("add_bos_token") is True else None


def _ends(folder: Path, tokenizer: Tokenizer, special: Mapping[str, str]) -> frozenset[int]:
    """End-of-text ids of all files that name some: each may know one that the others lack."""
    found = set()
    for name in ("generation_config.json", "config.json"):
        settings = side_json(folder, name)
        inner = settings.get("text_config")
        for each in (settings, inner if isinstance(inner, dict) else {}):
            ends = each.get("eos_token_id")
            found |= {item for item in (ends if isinstance(ends, list) else [ends]) if type(item) is int and item >= 0}
    own = tokenizer.token_to_id(special.get("eos_token", ""))
    return frozenset(found if own is None else found | {own})
