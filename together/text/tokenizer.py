"""The model's words: chat template and tokenizer, read from its folder. Knows no request, no ring and no torch.

Uses `tokenizers` and Jinja alone: measured 0.15 s and 24 MB to import, against 1.3 s and 61 MB through transformers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from together.errors import BrokenModel, ContextTooLong
from together.processes import trim_memory
from together.requests import Message
from together.text.chat_template import DEFAULT, PLAIN, TOOL_USE, ChatTemplate, find_templates, words_json
from together.text.detokenizer import TokenBytes
from together.text.grammar import Grammars
from together.text.parser import CLOSE, OPEN
from together.text.vocabulary import TokenBound, Vocabulary
from together.wording import MOST, cut

logger = logging.getLogger(__name__)

HEAVY = 200_000  # letters from which one waits for the other: about 0.3 s and 40 MB
THREADS = 4  # texts of one model that are encoded at once


@dataclass(frozen=True, slots=True)
class TextModel:
    """A model's tokenizer, chat template and end-of-text ids."""

    vocabulary: Vocabulary
    template: ChatTemplate
    has_template: bool  # False: the model brought none, roles are written as plain words
    eos: frozenset[int]
    token_bytes: TokenBytes
    reasoning_tags: Mapping[str, int]  # those among the special tokens, which no decoder shows
    tool_tags: Mapping[str, int]  # those of tool calls, special or not
    thinks: bool  # its words or its template know the tag
    grammars: Grammars
    bound: TokenBound
    heavy: ThreadPoolExecutor  # for very long texts: each takes hundreds of megabytes while it is tokenized
    name: str
    threads: ThreadPoolExecutor  # for the tokenizer: one that hangs holds up nothing but its model

    @property
    def tokenizer(self) -> Tokenizer:
        return self.vocabulary.tokenizer

    @classmethod
    def open(cls, folder: Path) -> TextModel:
        """Read the text side of a model folder, no weights. Raises BrokenModel."""
        config = words_json(folder, "tokenizer_config.json")
        vocabulary = Vocabulary.open(folder, config)
        tokenizer, eos = vocabulary.tokenizer, vocabulary.eos
        sources = find_templates(folder, config)
        source = sources.get(DEFAULT)
        if source is None:
            logger.warning("%s has no chat template: roles are written as plain words", folder.name)
        name, special = folder.name, vocabulary.special
        template = ChatTemplate(name, PLAIN if source is None else source, special, sources.get(TOOL_USE), sources)
        thinks = OPEN in (source or "") or tokenizer.token_to_id(OPEN) is not None
        return cls(
            vocabulary,
            template,
            source is not None,
            eos,
            TokenBytes(tokenizer),
            _added_ids(tokenizer, (OPEN, CLOSE), special=True),
            _added_ids(tokenizer, template.tool_format.tags),
            thinks,
            Grammars(tokenizer, eos, thinks),
            TokenBound.of(tokenizer),
            ThreadPoolExecutor(1, "long texts"),
            folder.name,
            ThreadPoolExecutor(THREADS, thread_name_prefix="tokenizer"),
        )

    def prompt_ids(self, messages: Sequence[Message], /, **template_kwargs: object) -> tuple[int, ...]:
        """The conversation in token ids, by the model's own template. For threads that may wait.

        Raises what `ChatTemplate.render` does.
        """
        return self.encode(self.template.render_now(messages, **template_kwargs))

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of `text` as it is; words of special tokens in it become special tokens, none are added."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    async def encode_prompt(self, text: str, context: int | None = None) -> tuple[int, ...]:
        """Token ids of a prompt as it is, with what the model's tokenizer adds to any text: one begin token at most.

        Raises as `encode_aside` does.
        """
        ids = await self.encode_aside(text, add_special_tokens=True, context=context)
        return self.vocabulary.with_begin(text, ids)

    async def encode_aside(
        self, text: str, add_special_tokens: bool = False, context: int | None = None
    ) -> tuple[int, ...]:
        """As `encode`, in a thread of this model's own, by the one call of the library that lets others run.

        Short texts, too: a tokenizer's patterns are a stranger's, and may take minutes for a line. Very long texts are
        encoded one by one. Raises ContextTooLong for a text of `context` tokens or more, before it is tokenized where
        its length says so; BrokenModel where the library gives up.
        """
        least = self.bound.least(text)
        if context is not None and least >= context:
            raise ContextTooLong(least, context, at_least=True)
        thread = self.heavy if len(text) > HEAVY else self.threads
        encode = partial(_encode, self.tokenizer, self.name, text, add_special_tokens, context)
        return await asyncio.get_running_loop().run_in_executor(thread, encode)


def _encode(
    tokenizer: Tokenizer, name: str, text: str, add_special_tokens: bool, context: int | None
) -> tuple[int, ...]:
    """What a long text took is given back."""
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
    """Which of `words` are tokens of their own; `special`: only those that no decoder shows."""
    added = tokenizer.get_added_tokens_decoder().items()
    return {token.content: i for i, token in added if token.content in words and (token.special or not special)}
