"""A model's text side, read from its folder: tokenizer, chat template and grammars.

Imports `tokenizers` alone: 0.15 s and 24 MB, against 1.3 s and 61 MB through transformers.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from together.errors import BrokenModel, ContextTooLong
from together.models.folder import read_bytes, read_json
from together.models.manifest import template_names
from together.models.remarks import remark
from together.processes import trim_memory
from together.requests import Message
from together.sentences import Sentence, say
from together.text.chat_template import DEFAULT, TOOL_USE, ChatTemplate
from together.text.grammar import Grammars
from together.text.pictures import Sight
from together.text.thinking import ThinkTags, think_tags_of
from together.text.tool_formats import tags_in
from together.text.vocabulary import TokenBound, Vocabulary, parts_of
from together.wording import MOST, cut

HEAVY = 200_000  # letters from which texts are encoded one by one: each takes about 0.3 s and 40 MB
THREADS = 4  # texts of one model that are encoded at once
MOST_SOURCE = 2**19  # bytes of a template; published ones have up to 30 kB
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextModel:
    """A model's tokenizer, chat template and grammars.

    `reasoning_tags` are the tags that are special tokens, which no decoder shows; `tool_tags` all that are tokens.
    """

    def __init__(self, name: str, vocabulary: Vocabulary, template: ChatTemplate, thinks: ThinkTags | None) -> None:
        """`thinks`: the tags around what the model may think before it answers."""
        tokenizer = vocabulary.tokenizer
        self.tokenizer = tokenizer
        self.template = template
        self.thinks = thinks
        self.token_bytes = TokenBytes(tokenizer)
        self.reasoning_tags = _added_ids(tokenizer, tags_in(*thinks.both) if thinks else (), special=True)
        self.tool_tags = _added_ids(tokenizer, template.tool_format.tags)
        ends = template.tool_format.ends
        self.eos = vocabulary.eos.union(self.tool_tags[end] for end in ends if end in self.tool_tags)
        self.grammars = Grammars(tokenizer, self.eos, thinks)
        self.sight: Sight | Sentence = say("pictures_none", model=name)  # how it sees pictures, or why it does not
        self._name = name
        self._vocabulary = vocabulary
        self._bound = TokenBound.of(tokenizer)
        # Two pools: a long text keeps its thread to the end, even if its request is cancelled, and delays no short one.
        self._threads = ThreadPoolExecutor(THREADS, "tokenizer")
        self._heavy = ThreadPoolExecutor(1, "long texts")

    @classmethod
    def open(cls, folder: Path) -> TextModel:
        """Read a model folder's text side, no weights. Raises BrokenModel."""
        config = words_json(folder, "tokenizer_config.json")
        vocabulary = Vocabulary.open(folder, config)
        sources = find_templates(folder, config)
        template = ChatTemplate(folder.name, sources, vocabulary.special)
        thinks = think_tags_of(
            sources.get(DEFAULT, ""), lambda word: vocabulary.tokenizer.token_to_id(word) is not None
        )
        return cls(folder.name, vocabulary, template, thinks)

    @property
    def begin(self) -> tuple[int, ...]:
        """The token that comes before any text, if the model wants one."""
        return self._vocabulary.with_begin("", ())

    def prompt_ids(self, messages: Sequence[Message], /, **template_kwargs: object) -> tuple[int, ...]:
        """The conversation in token ids, by the model's template. Blocks; raises as `ChatTemplate.render` does."""
        return self.encode(self.template.render(messages, **template_kwargs).result())

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`; words of special tokens in it become special tokens, none are added."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    async def encode_prompt(self, text: str, context: int | None = None) -> tuple[int, ...]:
        """Like `encode_aside`, with the special tokens that the tokenizer adds to any text: at most one begin token."""
        ids = await self.encode_aside(text, add_special_tokens=True, context=context)
        return self._vocabulary.with_begin(text, ids)

    async def encode_aside(
        self, text: str, add_special_tokens: bool = False, context: int | None = None
    ) -> tuple[int, ...]:
        """Like `encode`, on a thread of this model: a stranger's patterns may take minutes for a short line.

        Raises ContextTooLong for `context` tokens or more, before the text is encoded if its length says so, and
        BrokenModel if the library panics.
        """
        least = self._bound.least(text)
        if context is not None and least >= context:
            raise ContextTooLong(least, context, at_least=True)
        thread = self._heavy if len(text) > HEAVY else self._threads
        encode = partial(_encode, self.tokenizer, self._name, text, add_special_tokens, context)
        return await asyncio.get_running_loop().run_in_executor(thread, encode)


def _encode(
    tokenizer: Tokenizer, name: str, text: str, add_special_tokens: bool, context: int | None
) -> tuple[int, ...]:
    """Encode by the library's one call that releases the GIL, and give the memory of a long text back."""
    try:
        (done,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        if context is not None and len(done) >= context:
            raise ContextTooLong(len(done), context)
        ids = tuple(done.ids)
        del done
        return ids
    except Exception:
        raise
    except BaseException as error:  # a panic of the library, which is no Exception
        words = "the tokenizer of {model} cannot read this text ({reason}); get this model again"
        raise BrokenModel(words, model=name, reason=cut(str(error), MOST)) from error
    finally:
        if len(text) > HEAVY:
            trim_memory()


def _added_ids(tokenizer: Tokenizer, words: Collection[str], special: bool = False) -> dict[str, int]:
    """The ids of the `words` that are added tokens, or special ones only."""
    added = tokenizer.get_added_tokens_decoder().items()
    return {token.content: i for i, token in added if token.content in words and (token.special or not special)}


# --- chat templates of a folder ---------------------------------------------------------------------------------------


def find_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """A model's templates by name, from every place that publishers use; `config` is tokenizer_config.json.

    Template files win over chat_template.json, and that wins over the configuration. Without a default, the first
    template is the default. Raises BrokenModel for an unknown encoding, and a template that is too large or not text.
    """
    found: dict[str, str] = {}
    for name, source in _all_templates(folder, config):
        _check_size(folder, len(source))
        if source.strip():
            found[name] = source
        else:
            remark("%s has an empty chat template, which is ignored: %.60r", folder.name, name)
    if not found and not isinstance(config.get("chat_template") or "", str):
        text = "the chat template of {model} is not text; correct it, or get this model again"
        raise BrokenModel(text, model=folder.name)
    if not found:
        remark("%s has no chat template: roles are written as plain words", folder.name)
    elif DEFAULT not in found:
        first = next((name for name in found if name != TOOL_USE), TOOL_USE)
        found[DEFAULT] = found[first]
        remark("%s has no default chat template: %.60r is used", folder.name, first)
    return found


def _all_templates(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every template with its name; later ones replace earlier ones."""
    for settings in (config, words_json(folder, "chat_template.json")):
        yield from _listed_templates(settings.get("chat_template"), folder.name)
    if (folder / "chat_template.jinja").is_file():
        yield DEFAULT, read_text(folder, "chat_template.jinja")
    for name in template_names(folder):
        yield Path(name).stem, read_text(folder, name)


def words_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object that may hold the chat template; empty if the file is missing or blank.

    Raises BrokenModel for a broken file: without its template a model answers nonsense.
    """
    file = folder / name
    if file.is_file() and not read_bytes(folder, name).strip():
        remark("%s of %s is empty; it is ignored", name, folder.name)
        return {}
    return read_json(folder, name) if file.is_file() else {}


def _listed_templates(value: object, name: str) -> Iterator[tuple[str, str]]:
    """The one template, the list of named ones, or the mapping of names to templates that `value` is."""
    if isinstance(value, str):
        yield DEFAULT, value
    elif isinstance(value, dict):
        yield from ((str(key), text) for key, text in value.items() if isinstance(text, str))
    elif isinstance(value, list):
        for entry in value:
            text = entry.get("template") if isinstance(entry, dict) else None
            if isinstance(text, str):
                yield str(entry.get("name") or DEFAULT), text
            else:
                remark("%s lists a chat template that is not text; it is ignored", name)


def read_text(folder: Path, name: str) -> str:
    """Decode a file as UTF-8, or in the encoding of its byte order mark.

    Raises BrokenModel for another encoding, and for a file that is too large or outside the folder.
    """
    file = folder / name
    _check_size(folder, file.stat().st_size)  # a file that is too large is not read
    data = read_bytes(folder, name)
    try:
        return data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        text = "{file} of {model} is not in UTF-8 (byte {byte}); save it in UTF-8"
        raise BrokenModel(text, file=file.name, model=folder.name, byte=error.start) from error


def _check_size(folder: Path, size: int) -> None:
    if size > MOST_SOURCE:
        text = "the chat template of {model} has {size} bytes, more than {most}; get this model again"
        raise BrokenModel(text, model=folder.name, size=size, most=MOST_SOURCE)


# --- from tokens to bytes and text ------------------------------------------------------------------------------------


class TokenBytes:
    """The bytes of each token, of byte-level tokenizers (GPT-2's alphabet) and of those with byte tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        parts = list(parts_of(tokenizer.decoder))
        self._byte_level = any(item["type"] == "ByteLevel" for item in parts)
        self._byte_tokens = any(item["type"] == "ByteFallback" for item in parts)
        self._spaces = [space for item in parts if (space := _space_of(item))]
        self._added = {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items()}

    def of(self, token_id: int) -> bytes:
        """Empty for ids outside the tokenizer: a model's matrix may be padded."""
        if token_id in self._added:
            return self._added[token_id].encode()
        word = self._tokenizer.id_to_token(token_id)
        if word is None:
            return b""
        if self._byte_level:
            return b"".join(_alphabet().get(letter) or letter.encode() for letter in word)
        if self._byte_tokens and (match := _BYTE.fullmatch(word)):
            return bytes.fromhex(match[1])
        for space in self._spaces:
            word = word.replace(space, " ")
        return word.encode()


def _space_of(decoder: dict[str, Any]) -> str:
    """What stands for a space in the words, where the decoder says so."""
    if decoder["type"] == "Metaspace":
        return str(decoder["replacement"])
    if decoder["type"] == "Replace" and decoder["content"] == " ":
        return str(decoder["pattern"].get("String", ""))
    return ""


@lru_cache(maxsize=1)
def _alphabet() -> dict[str, bytes]:
    """GPT-2's letters for bytes, as in `bytes_to_unicode` of openai/gpt-2, encoder.py.

    Printable bytes are themselves, the others letters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): bytes((byte,)) for byte in printable}
    return letters | {chr(256 + index): bytes((byte,)) for index, byte in enumerate(others)}


class Decoder:
    """Detokenizes one answer, token by token; special tokens are skipped.

    Together the texts equal `tokenizer.decode` of all ids, even if the last character is cut off (U+FFFD).
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        """`before`: the last tokens of a prompt that the answer continues; a space between them is then kept."""
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=_whole(tokenizer, before), skip_special_tokens=True)
        self._pending: list[int] = []  # tokens since the last text

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._pending.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception:  # the library raises nothing narrower; decode at once what it cannot stream
            return self._start_over()
        if text:
            self._pending.clear()
        return text or ""

    def flush(self) -> str:
        """An incomplete character at the end, as U+FFFD."""
        text = self._decode(self._pending)
        self._pending.clear()
        return text

    def _start_over(self) -> str:
        """Byte tokens that make no character invalidate the run before them, which the stream cannot take back."""
        text = self._decode(self._pending)
        self._stream = DecodeStream(ids=self._pending[-1:], skip_special_tokens=True)
        self._pending.clear()
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


def _whole(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """`ids`, or none if they end within a character."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True) if ids else ""
    return list(ids) if text and not text.endswith("\ufffd") else []
