"""A model's chat templates: where its folder keeps them, which one applies, how it is rendered."""

from __future__ import annotations

import asyncio
import codecs
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from together.errors import BadRequest, BrokenModel
from together.models.folder import read_bytes, read_json
from together.models.manifest import template_names
from together.requests import Message, Tool
from together.text.messages import Turn, culprit, forms, native_turns, offer, plain_turns, told_of
from together.text.rendering import RENDER, TOOK, Renderer, TemplateFault
from together.text.tool_formats import HERMES, ToolFormat, tool_format_of
from together.wording import quoted

logger = logging.getLogger(__name__)

DEFAULT, TOOL_USE = "default", "tool_use"
MOST_SOURCE = 2**19  # bytes of a template; published ones have up to 30 kB
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def find_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """A model's templates by name, from every place that publishers use; `config` is tokenizer_config.json.

    Files of their own win over chat_template.json, and that over the tokenizer's configuration. A model with templates
    and no default uses its first one. Raises BrokenModel for an unknown encoding, and for a template that is none
    or too large.
    """
    found: dict[str, str] = {}
    for name, source in _all(folder, config):
        _check_size(folder, len(source))
        if source.strip():
            found[name] = source
        else:
            logger.warning("an empty chat template of %s is passed over: %.60r", folder.name, name)
    if not found and not isinstance(config.get("chat_template") or "", str):
        raise BrokenModel(f"the chat template of {folder.name} is no text; correct it, or get this model again")
    if found and DEFAULT not in found:
        first = next((name for name in found if name != TOOL_USE), TOOL_USE)
        found[DEFAULT] = found[first]
        logger.warning("%s has no default chat template: %.60r is used", folder.name, first)
    return found


def _all(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every template with its name; a later one of the same name counts."""
    yield from _listed(config.get("chat_template"), folder.name)
    yield from _listed(words_json(folder, "chat_template.json").get("chat_template"), folder.name)
    if (folder / "chat_template.jinja").is_file():
        yield DEFAULT, read_text(folder, "chat_template.jinja")
    for name in template_names(folder):
        yield Path(name).stem, read_text(folder, name)


def words_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object that may hold the chat template; empty where the file is missing or has nothing in it.

    Without its template a model answers nonsense, so a broken file is an error. Raises BrokenModel naming it.
    """
    file = folder / name
    if file.is_file() and not read_bytes(folder, name).strip():
        logger.warning("%s of %s is empty; it is passed over", name, folder.name)
        return {}
    return read_json(folder, name) if file.is_file() else {}


def _listed(value: object, name: str) -> Iterator[tuple[str, str]]:
    """One template, a list of named ones, or a table of them; what is none of these is warned about."""
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
                logger.warning("%s lists a chat template that is none; it is passed over", name)


def read_text(folder: Path, name: str) -> str:
    """A text in UTF-8, or in what its byte order mark names; line ends as Jinja has them.

    Raises BrokenModel naming the file where it is in another encoding, too large, or no file of this folder.
    """
    file = folder / name
    _check_size(folder, file.stat().st_size)  # a file that is too large is not read
    data = read_bytes(folder, name)
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    try:
        return data.removeprefix(mark).decode(encoding)
    except UnicodeDecodeError as error:
        raise BrokenModel(
            f"{file.name} of {folder.name} is not in UTF-8 (byte {error.start}); save it in UTF-8"
        ) from error


def _check_size(folder: Path, size: int) -> None:
    if size > MOST_SOURCE:
        raise BrokenModel(
            f"the chat template of {folder.name} has {size} bytes, {MOST_SOURCE} are the most; get this model again"
        )


# For a model without a template: roles as words, one blank line between turns.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_AGAIN = "get this model again"
LOOKED_AT = 16  # system messages that are looked for in a rendered text: each costs a look at all of it
NONE: Mapping[str, str] = MappingProxyType({})
Turns = Callable[[Sequence[Message]], list[Turn]]


class ChatTemplate:
    """Turns a conversation into the text that the model was trained on."""

    def __init__(
        self,
        name: str,
        source: str,
        special: Mapping[str, str],
        tool_source: str | None = None,
        named: Mapping[str, str] = NONE,
    ) -> None:
        """`special` are the words a template may name, as `bos_token`; `tool_source` is another template for tools.

        `named` are all of the model's templates, by the names that a request may choose.

        `name` is the model's, for errors. Blocks while the templates are compiled. Raises BrokenModel for a syntax
        error and for what takes too much, NotServing where the system gives no process.
        """
        self._name = name
        self._renderer = Renderer()
        self._plain = self._side(source)
        self._tools = self._plain if tool_source is None else self._side(tool_source)
        self._special = dict(special)
        self._named = dict(named)
        self._renderer.close()  # many a model is opened to be planned for only

    @property
    def tool_format(self) -> ToolFormat:
        """How this model writes tool calls."""
        return self._tools.tool_format or HERMES

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), chosen: str | None = None, /, **variables: object
    ) -> str:
        """The conversation as text, up to where the assistant goes on; `chosen` names one of the model's templates.

        A conversation that the template refuses, or whose system message it leaves out, is given in another form that
        says the same (`message_forms`). Raises BadRequest if the template refuses all of them or takes too much time or
        memory, QueueFull while others take long.
        """
        return await asyncio.wrap_future(self._rendered(messages, tools, chosen, variables))

    def render_now(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), chosen: str | None = None, /, **variables: object
    ) -> str:
        """As `render`, for threads that may wait."""
        return self._rendered(messages, tools, chosen, variables).result()

    def warm(self) -> None:
        """Start the process that renders in the background, so that the first conversation need not wait for it."""
        sources = {self._plain.source, self._tools.source}
        self._renderer.submit(lambda: [self._renderer.compile(source) for source in sources])

    def close(self) -> None:
        """End the process that renders; what is being rendered ends with NotServing."""
        self._renderer.close()

    def retire(self) -> None:
        """As `close`, once what was asked so far is rendered."""
        self._renderer.retire()

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Tool], chosen: str | None, variables: Mapping[str, object]
    ) -> Future[str]:
        return self._renderer.submit(partial(self._choose, messages, tools, chosen, variables))

    # --- in the renderer's line ---------------------------------------------------------------------------------------

    def _choose(
        self, messages: Sequence[Message], tools: Sequence[Tool], chosen: str | None, variables: Mapping[str, object]
    ) -> str:
        side = self._side_for(messages, tools, chosen)
        try:
            if side.tool_format is not None:
                given = {"tools": offer(tools)} if tools else {}
                turns = partial(native_turns, tool_format=side.tool_format)
                return self._shaped(side.source, turns, messages, {**variables, **given})
            told = told_of(messages, tools) if tools else messages
            return self._shaped(side.source, plain_turns, told, variables)
        except TemplateFault as fault:
            raise self._refusal(fault, messages) from fault
        except (TypeError, ValueError, RecursionError) as error:
            reason = str(error) or type(error).__name__
            raise BadRequest(f"the conversation cannot be given to the chat template: {reason}", "messages") from error

    def _side_for(self, messages: Sequence[Message], tools: Sequence[Tool], chosen: str | None) -> _Side:
        if chosen is None:
            has_calls = any(message.tool_calls or message.role == "tool" for message in messages)
            return self._tools if tools or has_calls else self._plain
        if chosen not in self._named:
            names = ", ".join(self._named) or "none"
            raise BadRequest(
                f"chat_template names one of the model's own templates ({names}), not {quoted(chosen)}", "chat_template"
            )
        source = self._named[chosen]
        try:
            return _Side(source, tool_format_of(source) if self._renderer.compile(source) else None)
        except TemplateFault as fault:
            raise self._broken(fault) from fault

    def _shaped(
        self, source: str, turns_of: Turns, messages: Sequence[Message], variables: Mapping[str, object]
    ) -> str:
        """In the first form that the template takes whole; where it leaves out a system message in all, as sent.

        All forms share one limit of time: whoever is behind in line waits for no more than that.
        """
        refused: TemplateFault | None = None
        text: str | None = None
        until = time.monotonic() + RENDER.clock
        for form in forms(messages):
            try:
                found = self._render(source, turns_of(form), variables, until)
            except TemplateFault as fault:
                if fault.kind in TOOK:
                    raise
                refused = refused or fault
                continue
            if not self._leaves_out(source, turns_of, form, found, variables, until):
                return found
            text = found if text is None else text
        if text is None:
            assert refused is not None
            raise refused
        return text

    def _leaves_out(
        self,
        source: str,
        turns_of: Turns,
        form: Sequence[Message],
        text: str,
        variables: Mapping[str, object],
        until: float,
    ) -> bool:
        """Whether the text is the same without the system messages that are not found in it."""
        systems = [index for index, message in enumerate(form) if message.role == "system" and message.content.strip()]
        unseen = {index for index in systems[:LOOKED_AT] if not _holds(text, form, form[index].content.strip())}
        if not unseen:
            return False
        rest = [message for index, message in enumerate(form) if index not in unseen]
        try:
            return self._render(source, turns_of(rest), variables, until) == text
        except TemplateFault as fault:
            if fault.kind in TOOK:
                raise
            return False

    def _render(self, source: str, turns: Sequence[Turn], variables: Mapping[str, object], until: float) -> str:
        if time.monotonic() > until:
            raise TemplateFault("time")
        known: dict[str, object] = {"add_generation_prompt": True, "tools": None, "documents": None}
        return self._renderer.render(source, {**self._special, **known, **variables, "messages": turns})

    def _refusal(self, fault: TemplateFault, messages: Sequence[Message]) -> BadRequest:
        start = f"the chat template of {self._name}"
        if fault.kind in TOOK:
            text = f"{start} cannot render this conversation: it {TOOK[fault.kind]}; shorten it, or load another model"
            return BadRequest(text, "messages")
        index = culprit(messages)
        if index is None:
            return BadRequest(f"{start} refuses this conversation: {fault.reason}", "messages")
        where = f"messages.{index}"
        return BadRequest(f"{where}: {start} refuses this conversation: {fault.reason}", where)

    def _side(self, source: str) -> _Side:
        try:
            wants_tools = self._renderer.submit(partial(self._renderer.compile, source)).result()
        except TemplateFault as fault:
            raise self._broken(fault) from fault
        return _Side(source, tool_format_of(source) if wants_tools else None)

    def _broken(self, fault: TemplateFault) -> BrokenModel:
        start = f"the chat template of {self._name}"
        if fault.kind in TOOK:
            return BrokenModel(f"{start} cannot be used: it {TOOK[fault.kind]}; {_AGAIN}")
        return BrokenModel(f"{start} does not parse ({fault.reason}); correct it, or {_AGAIN}")


def _holds(text: str, form: Sequence[Message], content: str) -> bool:
    """Whether `content` stands in the text as often as in the messages: one of them may quote it."""
    return text.count(content) >= sum(content in message.content for message in form)


@dataclass(frozen=True, slots=True)
class _Side:
    """A template; `tool_format` is how it writes calls, None where it takes no tools or its calls are unknown here."""

    source: str
    tool_format: ToolFormat | None
