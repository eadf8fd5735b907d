"""A model's chat templates: a conversation becomes the text that the model was trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from together.errors import BadRequest, BrokenModel
from together.requests import Message, Tool
from together.sentences import template
from together.text.rendering import RENDER, Renderer, TemplateFault, TemplateLimit, TemplateRefusal
from together.text.tool_formats import HERMES, ToolFormat, tool_format_of
from together.text.tool_turns import (
    BETWEEN,
    CALLS,
    fitted,
    joined,
    object_of,
    offer,
    turns,
    with_description,
    without_tools,
)
from together.wording import quoted

Render = Callable[[Sequence[Message]], str]

DEFAULT, TOOL_USE = "default", "tool_use"
LOOKED_AT = 16  # system messages searched for in a rendered text: each search reads all of it
# For a model without a template: roles as words, one blank line between turns.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True, slots=True)
class _Template:
    source: str
    tool_format: ToolFormat | None  # None: it knows neither tools nor calls, or writes these in an unknown format
    takes_tools: bool


class ChatTemplate:
    """A model's chat templates, with the process that renders them."""

    def __init__(self, name: str, sources: Mapping[str, str], special: Mapping[str, str]) -> None:
        """Compile the templates for chats and for tools; blocks meanwhile.

        `name` is the model's; `sources` are its templates by name; `special` holds words that templates may use, such
        as `bos_token`. Raises BrokenModel for a syntax error and for a template beyond a limit, NotServing without a
        process.
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
        self._renderer.close()  # many models are only opened for a plan

    @property
    def tool_format(self) -> ToolFormat:
        return self._tools.tool_format or HERMES

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self._sources.values())

    def render(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), chosen: str | None = None, /, **variables: object
    ) -> Future[str]:
        """The conversation as text, up to where the assistant continues; `chosen` names one of the model's templates.

        If the template refuses the conversation, or leaves out a system message, an equivalent form is rendered
        (`forms`). The future raises BadRequest if the template refuses all forms or takes too much time or memory,
        QueueFull while others take long.
        """
        return self._renderer.submit(partial(self._choose, messages, tools, chosen, variables))

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
            if tools and template.takes_tools:
                given["tools"] = offer(tools)
            elif tools:
                messages = with_description(messages, tools, template.tool_format)
            return _first_whole(fitted(messages, template.tool_format, template.source), render)
        except TemplateFault as fault:
            raise self._refusal(fault, messages) from fault
        except (TypeError, ValueError, RecursionError) as error:
            reason = str(error) or type(error).__name__
            text = "the conversation cannot be given to the chat template: {reason}"
            raise BadRequest(text, "messages", reason=reason) from error

    def _template_for(self, messages: Sequence[Message], tools: Sequence[Tool], chosen: str | None) -> _Template:
        if chosen is None:
            has_calls = any(message.tool_calls or message.role == "tool" for message in messages)
            return self._tools if tools or has_calls else self._plain
        if chosen not in self._sources:
            raise BadRequest(
                "chat_template names one of the model's own templates ({names}), not {chosen}",
                "chat_template",
                names=tuple(self._sources) or "none",
                chosen=quoted(chosen),
            )
        return self._compiled(self._sources[chosen])

    def _compiled(self, source: str) -> _Template:
        try:
            takes_tools = self._renderer.compile(source)
        except TemplateLimit as limit:
            text = "the chat template of {model} cannot be used: it {limit}; get this model again"
            raise BrokenModel(text, model=self._name, limit=str(limit)) from limit
        except TemplateRefusal as fault:
            text = "the chat template of {model} does not parse ({fault}); correct it, or get this model again"
            raise BrokenModel(text, model=self._name, fault=str(fault)) from fault
        return _Template(source, tool_format_of(source) if takes_tools or CALLS in source else None, takes_tools)

    def _render(
        self, template: _Template, given: Mapping[str, object], until: float, messages: Sequence[Message]
    ) -> str:
        """All forms of a conversation share one time limit."""
        if time.monotonic() > until:
            raise TemplateLimit("time")
        conversation = turns(messages, template.tool_format or HERMES, template.source)
        return self._renderer.render(template.source, {**self._special, **given, "messages": conversation})

    def _refusal(self, fault: TemplateFault, messages: Sequence[Message]) -> BadRequest:
        values = {"model": self._name, "fault": str(fault)}
        if isinstance(fault, TemplateLimit):
            return BadRequest(
                "the chat template of {model} cannot render this conversation: it {fault}; shorten it, or load another "
                "model",
                "messages",
                **values,
            )
        refusal = template("the chat template of {model} refuses this conversation: {fault}", **values)
        index = culprit(messages)
        if index is None:
            return BadRequest(refusal, "messages")
        where = f"messages.{index}"
        return BadRequest("{where}: {refusal}", where, where=where, refusal=refusal)


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


# --- for templates that refuse a conversation -------------------------------------------------------------------------


def forms(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The conversation as it is, then up to three equivalent forms that more templates accept.

    First, messages of one role in a row become one; then also later system messages become the user's; then all do.
    """
    leading = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    late_as_user = [*messages[:leading], *map(_system_as_user, messages[leading:])]
    seen: list[list[Message]] = []
    for form in (list(messages), *map(_merged, (messages, late_as_user, map(_system_as_user, messages)))):
        if form not in seen:
            seen.append(form)
            yield form


def culprit(messages: Sequence[Message]) -> int | None:
    """The message that a template most likely refuses: arguments are no JSON object, a late system, a repeated role."""
    for index, message in enumerate(messages):
        if any(object_of(call) is None for call in message.tool_calls):
            return index
    for index in range(1, len(messages)):
        before, role = messages[index - 1].role, messages[index].role
        if role == "system" or before == role != "tool":
            return index
    return None


def _system_as_user(message: Message) -> Message:
    return replace(message, role="user") if message.role == "system" else message


def _merged(messages: Iterable[Message]) -> list[Message]:
    """Merge messages of one role in a row, except tool results and messages with calls."""
    return joined(messages, _same_speaker, BETWEEN)


def _same_speaker(before: Message, message: Message) -> bool:
    return before.role == message.role != "tool" and not before.tool_calls and not message.tool_calls
