"""A model's tokenizer, as its folder describes it, and a lower bound of the tokens in a text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from together.errors import BrokenModel
from together.models.folder import broken, inside, read_bytes, side_json
from together.models.headers import as_utf8
from together.models.remarks import remark
from together.wording import MOST, cut

FILE = "tokenizer.json"
MOST_LETTERS = 200_000  # of added words; Gemma's 6,400 have 100,000
MOST_LISTED = 4 * 2**20  # bytes of the list of added words; Gemma's has 1.2 million
_LISTED = re.compile(rb'"added_tokens"\s*:\s*\[')
# Signs of the file, and how often they may occur. The largest published, Gemma's, has 0.3 million keys, half a million
# lists (of merges) and 1.3 million commas.
_MOST = {b":": 700_000, b"[": 900_000, b",": 3_000_000}
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MORE_SPECIAL = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
LONGEST_ID = 20  # digits: Python refuses to read thousands of them
MOST_ADDED = 10_000  # words in files beside tokenizer.json, and ids that they may lie beyond its own


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer with all its words; `special` holds the words a template may use, as `bos_token`."""

    tokenizer: Tokenizer
    special: Mapping[str, str]
    eos: frozenset[int]
    adds_begin: bool  # prompts must start with the begin token

    @classmethod
    def open(cls, folder: Path, config: Mapping[str, Any]) -> Vocabulary:
        """`config` is tokenizer_config.json. Raises BrokenModel."""
        special = _special_words(folder, config)
        tokenizer = _open_tokenizer(folder)
        words = _added_words(folder, config, special, tokenizer.get_added_tokens_decoder())
        tokenizer = _with_flags(tokenizer, words)
        _add_words(tokenizer, words, folder.name)
        tokenizer.add_special_tokens([word for word in special.values() if tokenizer.token_to_id(word) is not None])
        return cls(tokenizer, special, _ends(folder, tokenizer, special), _adds_begin(tokenizer, config, special))

    def with_begin(self, text: str, ids: Sequence[int]) -> tuple[int, ...]:
        """`ids` of the prompt `text`, with exactly one begin token if the model wants one.

        A text rendered by a template already has the begin token's word; the tokenizer's own is then one too many.
        """
        word = self.special.get("bos_token")
        begin = self.tokenizer.token_to_id(word) if word else None
        if word is None or begin is None or not (self.adds_begin or text.startswith(word)):
            return tuple(ids)
        return (begin, *dropwhile(lambda token_id: token_id == begin, ids))


def _special_words(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The words of the special tokens by their names; older models have a file for them."""
    older = side_json(folder, "special_tokens_map.json")
    words = {name: _content(config.get(name)) or _content(older.get(name)) for name in _SPECIAL}
    return {name: word for name, word in words.items() if word}


def _content(word: object) -> str:
    """A word is a text, or an object that has it as its content."""
    found = word.get("content") if isinstance(word, dict) else word
    return found if isinstance(found, str) else ""


def _adds_begin(tokenizer: Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]) -> bool:
    """Whether the settings ask for the begin token, or the tokenizer adds it to any text."""
    begin = tokenizer.token_to_id(special.get("bos_token", ""))
    if begin is None:
        return False
    return config.get("add_bos_token") is True or tokenizer.encode("a", add_special_tokens=True).ids[:1] == [begin]


def _ends(folder: Path, tokenizer: Tokenizer, special: Mapping[str, str]) -> frozenset[int]:
    """The end-of-text ids of all files: each may have one that the others lack."""
    found = set()
    for name in ("generation_config.json", "config.json"):
        settings = side_json(folder, name)
        inner = settings.get("text_config")
        for each in (settings, inner if isinstance(inner, dict) else {}):
            ends = each.get("eos_token_id")
            found |= {item for item in (ends if isinstance(ends, list) else [ends]) if type(item) is int and item >= 0}
    own = tokenizer.token_to_id(special.get("eos_token", ""))
    return frozenset(found if own is None else found | {own})


# --- tokenizer.json ---------------------------------------------------------------------------------------------------


def _open_tokenizer(folder: Path) -> Tokenizer:
    if not (folder / FILE).is_file():
        raise BrokenModel(
            "{model} has no tokenizer.json; download the model again, or save it once with a fast tokenizer "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...))",
            model=folder.name,
        )
    data = _read_tokenizer(folder)
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing narrower
        text = "tokenizer.json of {model} cannot be read ({reason}); get this model again"
        raise BrokenModel(text, model=folder.name, reason=cut(str(error), MOST)) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_tokenizer(folder: Path) -> bytes:
    """The file in UTF-8. Raises BrokenModel if it is larger than any published tokenizer."""
    data, file = read_bytes(folder, FILE), inside(folder, FILE)
    for sign, most in _MOST.items():
        if data.count(sign) > most:
            raise broken(file, f"it has more than {most} of {sign.decode()!r}")
    try:
        data = as_utf8(data)
        letters = _added_letters(data)
    except ValueError as error:
        raise broken(file, f"it is not a tokenizer in JSON ({error})") from error
    if letters > MOST_LETTERS:
        raise broken(file, f"its added words have {letters} letters, more than {MOST_LETTERS}")
    return data


def _added_letters(data: bytes) -> int:
    """Letters of all added words: the library takes seconds for a million. Raises ValueError for too long a list."""
    found = _LISTED.search(data)
    if found is None:
        return 0
    listed = data[found.end() - 1 : found.end() + MOST_LISTED].decode("utf-8", "ignore")
    try:
        words, _ = json.JSONDecoder().raw_decode(listed)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return sum(len(str(word.get("content"))) for word in words if isinstance(word, dict))


# --- added words ------------------------------------------------------------------------------------------------------


def _added_words(
    folder: Path, config: Mapping[str, Any], special: Mapping[str, str], known: Mapping[int, AddedToken]
) -> dict[int, AddedToken]:
    """The words of added_tokens.json by id, replaced by those of tokenizer_config.json, which describes them better.

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
    """Give the tokenizer's added words the flags of the settings; a special word stays special.

    The library ignores a word that it has, so this rebuilds the tokenizer if one differs.
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
    """Add `words`. The library numbers them in a row, so unused words fill the ids in between."""
    size = tokenizer.get_vocab_size()
    last = max(words, default=0)
    if len(words) > MOST_ADDED or last > size + MOST_ADDED:
        raise BrokenModel(
            "the settings of {model} add {count} words, up to token {last}, to the {size} of its tokenizer.json, more "
            "than {most}; get this model again",
            model=name,
            count=len(words),
            last=last,
            size=size,
            most=MOST_ADDED,
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
            remark("%.60r of %s is token %s, not %d as its settings say", token.content, name, found, index)


# --- a lower bound ----------------------------------------------------------------------------------------------------

# All letters of `str.isspace`: more than the library strips, so the bound is never too high.
SPACES = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
# The most letters that canonical composition makes one of: no decomposition has more, which Unicode guarantees.
COMPOSED = 4

_KEEPING = ("Prepend", "Lowercase", "NFD", "NFKD", "ByteLevel")  # normalizers that drop no letter
_COMPOSING = ("NFC", "NFKC")
_SPLITTING = ("ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength")  # pre-tokenizers that drop none
_CHOOSING = ("Split", "Punctuation")  # those that may drop what they split at


@dataclass(frozen=True, slots=True)
class TokenBound:
    """A token has at most `most` letters of a text; 0: unknown."""

    most: int = 0
    skips_spaces: bool = False  # white space may vanish, so it does not count

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenBound:
        """Known for byte-level BPE and BPE with all byte tokens: others drop unknown letters, or make one of many."""
        parts = list(parts_of(tokenizer.normalizer))
        shrinks, longest = _shrinks(parts), _longest(tokenizer)
        if not shrinks or not longest or not _drops_nothing(tokenizer, parts):
            return cls()
        added = tokenizer.get_added_tokens_decoder().values()
        skips = any(part["type"] == "Strip" for part in parts) or any(token.lstrip or token.rstrip for token in added)
        words = [token.content for token in added]
        if tokenizer.normalizer is not None:
            words += [tokenizer.normalizer.normalize_str(word) for word in words]
        return cls(shrinks * max(longest, *map(len, words), 1), skips)

    def least(self, text: str) -> int:
        """The least number of tokens in `text`."""
        if not self.most:
            return 0
        spaces = sum(map(text.count, SPACES)) if self.skips_spaces else 0
        return -(-(len(text) - spaces) // self.most)


def parts_of(
    component: decoders.Decoder | normalizers.Normalizer | pre_tokenizers.PreTokenizer | None,
) -> Iterator[dict[str, Any]]:
    """The single parts of a tokenizer's component, as its file describes them."""
    if component is not None:
        yield from _flat(json.loads(component.__getstate__()))


def _flat(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if part["type"] != "Sequence":
        yield part
    for inner in ("normalizers", "pretokenizers", "decoders"):
        for each in part.get(inner, ()):
            yield from _flat(each)


def _shrinks(normalizers: Iterable[dict[str, Any]]) -> int:
    """How many letters the normalizers may make one of; 0 if unknown."""
    shrinks = 1
    for part in normalizers:
        kind = part["type"]
        if kind in _COMPOSING:
            shrinks *= COMPOSED
        elif kind == "Replace":
            pattern, content = part["pattern"].get("String", ""), part["content"]
            if not pattern or not content or any(letter.isspace() for letter in content):
                return 0
            shrinks *= -(-len(pattern) // len(content))
        elif kind not in (*_KEEPING, "Strip"):
            return 0
    return shrinks


def _longest(tokenizer: Tokenizer) -> int:
    """Letters of the longest word; 0 if ids have gaps, so that some words are unknown.

    It asks for words one by one: to ask for all of them holds the GIL for 0.4 s.
    """
    model = tokenizer.model
    words = map(model.id_to_token, range(tokenizer.get_vocab_size(with_added_tokens=False)))
    lengths = [0 if word is None else len(word) for word in words]
    return max(lengths, default=0) if all(lengths) else 0


def _drops_nothing(tokenizer: Tokenizer, normalizers: Sequence[dict[str, Any]]) -> bool:
    """Whether each letter of the normalized text is in some token, and no token stands for any number of letters."""
    model, parts = tokenizer.model, list(parts_of(tokenizer.pre_tokenizer))
    if not isinstance(model, models.BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    if not all(_keeps(part) for part in parts):
        return False
    if any(part["type"] == "ByteLevel" for part in (*parts, *normalizers)):
        needed = pre_tokenizers.ByteLevel.alphabet()
    elif model.byte_fallback:
        needed = [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        return False
    return all(model.token_to_id(word) is not None for word in needed)


def _keeps(part: dict[str, Any]) -> bool:
    kind = part["type"]
    return kind in _SPLITTING or (kind in _CHOOSING and part.get("behavior") not in (None, "Removed"))
