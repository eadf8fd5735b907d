"""A model's chat templates: finding them in its folder, choosing one, rendering a conversation with it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from together.errors import BadRequest, BrokenModel
from together.models.folder import read_bytes, read_json
from together.models.manifest import template_names
from together.requests import Message, Tool
from together.text.messages import culprit, forms, offer, one_by_one, turns, without_tools
from together.text.rendering import RENDER, Renderer, TemplateFault, TemplateLimit, TemplateRefusal
from together.text.tool_formats import HERMES, ToolFormat, tool_format_of
from together.wording import quoted

logger = logging.getLogger(__name__)

DEFAULT, TOOL_USE = "default", "tool_use"
MOST_SOURCE = 2**19  # bytes of a template; published ones have up to 30 kB


def find_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """A model's templates by name, from every place that publishers use; `config` is tokenizer_config.json.

    Template files win over chat_template.json, and that wins over the configuration. Without a default, the first
    template is the default. Raises BrokenModel for an unknown encoding, and a template that is too large or not text.
    """
    found: dict[str, str] = {}
    for name, source in _all(folder, config):
        _check_size(folder, len(source))
        if source.strip():
            found[name] = source
        else:
            logger.warning("%s has an empty chat template, which is ignored: %.60r", folder.name, name)
    if not found and not isinstance(config.get("chat_template") or "", str):
        raise BrokenModel(f"the chat template of {folder.name} is not text; correct it, or get this model again")
    if not found:
        logger.warning("%s has no chat template: roles are written as plain words", folder.name)
    elif DEFAULT not in found:
        first = next((name for name in found if name != TOOL_USE), TOOL_USE)
        found[DEFAULT] = found[first]
        logger.warning("%s has no default chat template: %.60r is used", folder.name, first)
    return found


def _all(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every template with its name; later ones replace earlier ones."""
    yield from _listed(config.get("chat_template"), folder.name)
    yield from _listed(words_json(folder, "chat_template.json").get("chat_template"), folder.name)
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
        logger.warning("%s of %s is empty; it is ignored", name, folder.name)
        return {}
    return read_json(folder, name) if file.is_file() else {}


def _listed(value: object, name: str) -> Iterator[tuple[str, str]]:
    """Yield the one template, the list of named ones, or the mapping of names to templates that `value` is."""
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
                logger.warning("%s lists a chat template that is not text; it is ignored", name)


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
        raise BrokenModel(
            f"{file.name} of {folder.name} is not in UTF-8 (byte {error.start}); save it in UTF-8"
        ) from error


def _check_size(folder: Path, size: int) -> None:
    if size > MOST_SOURCE:
        raise BrokenModel(
            f"the chat template of {folder.name} has {size} bytes, more than {MOST_SOURCE}; get this model again"
        )


# For a model without a template: roles as words, one blank line between turns.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
LOOKED_AT = 16  # system messages searched for in a rendered text: each search reads all of it


@dataclass(frozen=True, slots=True)
class _Template:
    source: str
    tool_format: ToolFormat | None  # None: it takes no tools, or writes calls in an unknown format


class ChatTemplate:
    """Turns a conversation into the text that the model was trained on."""

    def __init__(self, name: str, sources: Mapping[str, str], special: Mapping[str, str]) -> None:
        """Compile the default template and the one for tools of `sources`, which are by name; blocks meanwhile.

        `name` is the model's, for errors. `special` are words that templates may use, as `bos_token`.

        Raises BrokenModel for a syntax error and for a template beyond a limit, NotServing without a process.
        """
        self._name = name
        self._sources = dict(sources)
        self._special = dict(special)
        self._renderer = Renderer()
        plain = sources.get(DEFAULT, PLAIN)
        self._plain, self._tools = (
            self._renderer.submit(partial(self._compiled, source)).result()
            for source in (plain, sources.get(TOOL_USE, plain))
        )
        self._renderer.close()  # many models are opened only to be planned for

    @property
    def tool_format(self) -> ToolFormat:
        return self._tools.tool_format or HERMES

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), chosen: str | None = None, /, **variables: object
    ) -> str:
        """The conversation as text, up to where the assistant continues; `chosen` names one of the model's templates.

        If the template refuses the conversation, or leaves out a system message, an equivalent form is rendered
        (`messages.forms`). Raises BadRequest if the template refuses all forms or takes too much time or memory,
        QueueFull while others take long.
        """
        return await asyncio.wrap_future(self._rendered(messages, tools, chosen, variables))

    def render_now(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), chosen: str | None = None, /, **variables: object
    ) -> str:
        """Like `render`, but blocks."""
        return self._rendered(messages, tools, chosen, variables).result()

    def warm(self) -> None:
        """Start the renderer in the background, so that the first conversation does not wait for it."""
        sources = {self._plain.source, self._tools.source}
        self._renderer.submit(lambda: [self._renderer.compile(source) for source in sources])

    def close(self) -> None:
        """End the renderer; waiting conversations fail with NotServing. A later one starts it again."""
        self._renderer.close()

    def retire(self) -> None:
        """Like `close`, once all waiting conversations are rendered."""
        self._renderer.retire()

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Tool], chosen: str | None, variables: Mapping[str, object]
    ) -> Future[str]:
        return self._renderer.submit(partial(self._choose, messages, tools, chosen, variables))

    # --- on the renderer's thread -------------------------------------------------------------------------------------

    def _choose(
        self, messages: Sequence[Message], tools: Sequence[Tool], chosen: str | None, variables: Mapping[str, object]
    ) -> str:
        template = self._template_for(messages, tools, chosen)
        given: dict[str, object] = {"add_generation_prompt": True, "tools": None, "documents": None, **variables}
        render = partial(self._render, template, given, time.monotonic() + RENDER.clock)
        try:
            if template.tool_format is None:
                return _first_whole(without_tools(messages, tools), render)
            if tools:
                given["tools"] = offer(tools)
            return _first_whole(list(one_by_one(messages)) if template.tool_format.single else messages, render)
        except TemplateFault as fault:
            raise self._refusal(fault, messages) from fault
        except (TypeError, ValueError, RecursionError) as error:
            reason = str(error) or type(error).__name__
            raise BadRequest(f"the conversation cannot be given to the chat template: {reason}", "messages") from error

    def _template_for(self, messages: Sequence[Message], tools: Sequence[Tool], chosen: str | None) -> _Template:
        if chosen is None:
            has_calls = any(message.tool_calls or message.role == "tool" for message in messages)
            return self._tools if tools or has_calls else self._plain
        if chosen not in self._sources:
            names = ", ".join(self._sources) or "none"
            raise BadRequest(
                f"chat_template names one of the model's own templates ({names}), not {quoted(chosen)}", "chat_template"
            )
        return self._compiled(self._sources[chosen])

    def _compiled(self, source: str) -> _Template:
        start = f"the chat template of {self._name}"
        try:
            takes_tools = self._renderer.compile(source)
        except TemplateLimit as limit:
            raise BrokenModel(f"{start} cannot be used: it {limit}; get this model again") from limit
        except TemplateRefusal as fault:
            raise BrokenModel(f"{start} does not parse ({fault}); correct it, or get this model again") from fault
        return _Template(source, tool_format_of(source) if takes_tools else None)

    def _render(
        self, template: _Template, given: Mapping[str, object], until: float, messages: Sequence[Message]
    ) -> str:
        """All forms of a conversation share one time limit."""
        if time.monotonic() > until:
            raise TemplateLimit("time")
        conversation = turns(messages, template.tool_format or HERMES)
        return self._renderer.render(template.source, {**self._special, **given, "messages": conversation})

    def _refusal(self, fault: TemplateFault, messages: Sequence[Message]) -> BadRequest:
        start = f"the chat template of {self._name}"
        if isinstance(fault, TemplateLimit):
            text = f"{start} cannot render this conversation: it {fault}; shorten it, or load another model"
            return BadRequest(text, "messages")
        index = culprit(messages)
        if index is None:
            return BadRequest(f"{start} refuses this conversation: {fault}", "messages")
        where = f"messages.{index}"
        return BadRequest(f"{where}: {start} refuses this conversation: {fault}", where)


Render = Callable[[Sequence[Message]], str]


def _first_whole(messages: Sequence[Message], render: Render) -> str:
    """Render the first form that keeps all system messages; if none does, the first form that is not refused."""
    refused: TemplateRefusal | None = None
    text: str | None = None
    for form in forms(messages):
        try:
            found = render(form)
        except TemplateRefusal as fault:
            refused = refused or fault
            continue
        if not _leaves_out(form, found, render):
            return found
        text = found if text is None else text
    if text is None:
        assert refused is not None
        raise refused
    return text


def _leaves_out(form: Sequence[Message], text: str, render: Render) -> bool:
    """Whether `text` stays the same without the system messages that are not found in it."""
    systems = [index for index, message in enumerate(form) if message.role == "system" and message.content.strip()]
    unseen = {index for index in systems[:LOOKED_AT] if not _holds(text, form, form[index].content.strip())}
    if not unseen:
        return False
    try:
        return render([message for index, message in enumerate(form) if index not in unseen]) == text
    except TemplateRefusal:
        return False


def _holds(text: str, form: Sequence[Message], content: str) -> bool:
    """Whether `content` is in the text as often as in the messages: another message may quote it."""
    return text.count(content) >= sum(content in message.content for message in form)
