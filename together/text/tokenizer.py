"""A model's text side, read from its folder: tokenizer, chat template and grammars, without torch or transformers.

It imports `tokenizers` alone: measured 0.15 s and 24 MB, against 1.3 s and 61 MB through transformers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from together.errors import BrokenModel, ContextTooLong
from together.processes import trim_memory
from together.requests import Message
from together.text.chat_template import DEFAULT, ChatTemplate, find_templates, words_json
from together.text.detokenizer import TokenBytes
from together.text.grammar import Grammars
from together.text.parser import CLOSE, OPEN
from together.text.vocabulary import TokenBound, Vocabulary
from together.wording import MOST, cut

HEAVY = 200_000  # letters from which texts are encoded one by one: each takes about 0.3 s and 40 MB
THREADS = 4  # texts of one model that are encoded at once


class TextModel:
    """A model's tokenizer, chat template and grammars.

    `reasoning_tags` are those that are special tokens, which no decoder shows; `tool_tags` are all that are tokens.
    """

    def __init__(self, name: str, vocabulary: Vocabulary, template: ChatTemplate, thinks: bool) -> None:
        """`thinks`: the model may reason before it answers."""
        tokenizer = vocabulary.tokenizer
        self.tokenizer = tokenizer
        self.eos = vocabulary.eos
        self.template = template
        self.thinks = thinks
        self.token_bytes = TokenBytes(tokenizer)
        self.reasoning_tags = _added_ids(tokenizer, (OPEN, CLOSE), special=True)
        self.tool_tags = _added_ids(tokenizer, template.tool_format.tags)
        self.grammars = Grammars(tokenizer, vocabulary.eos, thinks)
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
        thinks = OPEN in sources.get(DEFAULT, "") or vocabulary.tokenizer.token_to_id(OPEN) is not None
        return cls(folder.name, vocabulary, template, thinks)

    def prompt_ids(self, messages: Sequence[Message], /, **template_kwargs: object) -> tuple[int, ...]:
        """The conversation in token ids, by the model's template. Blocks. Raises as `ChatTemplate.render` does."""
        return self.encode(self.template.render_now(messages, **template_kwargs))

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
        reason = cut(str(error), MOST)
        raise BrokenModel(f"the tokenizer of {name} cannot read this text ({reason}); get this model again") from error
    finally:
        if len(text) > HEAVY:
            trim_memory()


def _added_ids(tokenizer: Tokenizer, words: Sequence[str], special: bool = False) -> dict[str, int]:
    """The ids of those `words` that are added tokens, or special ones only."""
    added = tokenizer.get_added_tokens_decoder().items()
    return {token.content: i for i, token in added if token.content in words and (token.special or not special)}
