"""A model's chat templates: a conversation becomes the text that the model was trained on."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from together.errors import BadRequest, BrokenModel
from together.requests import Message, Tool, ToolCall
from together.sentences import template
from together.text.rendering import RENDER, Renderer, TemplateFault, TemplateLimit, TemplateRefusal
from together.text.tool_formats import HERMES, ToolFormat, tool_format_of, written
from together.wording import quoted

Turn = dict[str, object]  # a message, a tool or a call as OpenAI's API writes it, which is what templates expect
Render = Callable[[Sequence[Message]], str]

DEFAULT, TOOL_USE = "default", "tool_use"
LOOKED_AT = 16  # system messages searched for in a rendered text: each search reads all of it
# For a model without a template: roles as words, one blank line between turns.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_BETWEEN = "\n\n"  # separates the contents of messages that are merged
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_HOW = f"""\
You can call the functions below where that helps; otherwise answer as usual. For each call write nothing but
{written(HERMES, [("the function's name", '{"a parameter": "its value"}')])}
What a call returned comes back as <tool_response>…</tool_response>.

The functions, with JSON schemas of their arguments:
"""


@dataclass(frozen=True, slots=True)
class _Template:
    source: str
    tool_format: ToolFormat | None  # None: it takes no tools, or writes calls in an unknown format


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
            if tools:
                given["tools"] = offer(tools)
            if "tool_calls" not in template.source:  # it offers tools, and would leave out what was called
                messages = [_spoken(message, template.tool_format) for message in messages]
            return _first_whole(list(one_by_one(messages)) if template.tool_format.single else messages, render)
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
        if any(_arguments(call) is None for call in message.tool_calls):
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
    return _joined(messages, _same_speaker, _BETWEEN)


def _same_speaker(before: Message, message: Message) -> bool:
    return before.role == message.role != "tool" and not before.tool_calls and not message.tool_calls


def _joined(messages: Iterable[Message], joins: Callable[[Message, Message], bool], between: str) -> list[Message]:
    """Join each message to the one before it where `joins(before, message)`."""
    runs: list[list[Message]] = []
    for message in messages:
        if runs and joins(runs[-1][-1], message):
            runs[-1].append(message)
        else:
            runs.append([message])
    return [
        replace(
            run[0],
            content=between.join(filter(None, (message.content for message in run))),
            reasoning=_BETWEEN.join(filter(None, (message.reasoning for message in run))),
        )
        for run in runs
    ]


# --- for templates with tools -----------------------------------------------------------------------------------------


def offer(tools: Iterable[Tool]) -> list[Turn]:
    return [{"type": "function", "function": _function(tool)} for tool in tools]


def _function(tool: Tool) -> Turn:
    parameters = {"type": "object", "properties": {}, **tool.parameters}
    return {"name": tool.name, "description": tool.description, "parameters": parameters}


def turns(messages: Sequence[Message], tool_format: ToolFormat) -> list[Turn]:
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_turn(message, names, tool_format) for message in messages]


def _turn(message: Message, names: Mapping[str, str], tool_format: ToolFormat) -> Turn:
    turn: Turn = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn[tool_format.thoughts] = message.reasoning
    if message.tool_calls and message.reasoning and message.content and tool_format.answer:
        # A harmony template takes one of both beside a call, and writes either as thoughts.
        turn |= {"content": "", tool_format.thoughts: f"{message.reasoning}{_BETWEEN}{message.content}"}
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, tool_format) for call in message.tool_calls]
    if message.role == "tool":
        turn |= {"tool_call_id": _id(message.tool_call_id, tool_format), "name": names.get(message.tool_call_id, "")}
    return turn


def _spoken(message: Message, tool_format: ToolFormat) -> Message:
    """The message with its calls written as the model would write them."""
    if not message.tool_calls:
        return message
    calls = written(tool_format, [(call.name, call.arguments) for call in message.tool_calls])
    return replace(message, content="\n".join(filter(None, (message.content, calls))), tool_calls=())


def _call(call: ToolCall, tool_format: ToolFormat) -> Turn:
    arguments = _arguments(call)  # a model may have written text that is no object: it stays text
    function = {"name": call.name, "arguments": call.arguments if arguments is None else arguments}
    return {"id": _id(call.id, tool_format), "type": "function", "function": function}


def _arguments(call: ToolCall) -> dict[str, object] | None:
    try:
        found = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _id(call_id: str, tool_format: ToolFormat) -> str:
    """The id, shortened by its hash where the template takes short ones only."""
    if not tool_format.short_ids or _SHORT_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def one_by_one(messages: Sequence[Message]) -> Iterator[Message]:
    """Split each message with several calls into one message per call, each followed by its results."""
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        if len(message.tool_calls) < 2:
            yield message
            continue
        end = next((i for i in range(at, len(messages)) if messages[i].role != "tool"), len(messages))
        yield from _apart(message, messages[at:end])
        at = end


def _apart(message: Message, results: Sequence[Message]) -> Iterator[Message]:
    for number, call in enumerate(message.tool_calls):
        turn = replace(message, tool_calls=(call,))
        yield turn if number == 0 else replace(turn, content="", reasoning="")
        yield from (result for result in results if result.tool_call_id == call.id)
    known = {call.id for call in message.tool_calls}
    yield from (result for result in results if result.tool_call_id not in known)


# --- for templates without tools --------------------------------------------------------------------------------------


def without_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Write calls and results as text, and describe `tools` in the first system message.

    Results and the user's message after them become one message of the user: many templates want roles to alternate.
    """
    texts = [
        replace(message, content=_as_text(message), tool_calls=())
        for message in (_with_description(messages, tools) if tools else messages)
    ]
    joined = _joined(texts, lambda before, message: before.role == "tool" and message.role in ("tool", "user"), "\n")
    return [replace(message, role="user") if message.role == "tool" else message for message in joined]


def _with_description(messages: Sequence[Message], tools: Iterable[Tool]) -> list[Message]:
    how = _HOW + "\n".join(json.dumps(_function(tool), ensure_ascii=False) for tool in tools)
    at = next((i for i, message in enumerate(messages) if message.role == "system"), None)
    if at is None:
        return [Message("system", how), *messages]
    first = replace(messages[at], content=f"{messages[at].content}{_BETWEEN}{how}")
    return [*messages[:at], first, *messages[at + 1 :]]


def _as_text(message: Message) -> str:
    if message.role == "tool":
        return f"<tool_response>\n{message.content}\n</tool_response>"
    return _spoken(message, HERMES).content
