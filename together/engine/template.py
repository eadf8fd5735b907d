"""A model's own chat template, and how it is rendered. Knows no token ids and no Jinja.

Templates are strangers' code: another process compiles and renders them, within limits (`rendering.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from together.engine.rendering import TOOK, Renderer, TemplateFault
from together.engine.tool_styles import HERMES, ToolStyle, style_of
from together.engine.turns import Turn, native_turns, offer, plain_turns, told_of
from together.errors import BadRequest, BrokenModel
from together.requests import Message, Tool

# For a model without a template: roles as words, one blank line between turns.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_AGAIN = "get this model again"


class ChatTemplate:
    """Turns a conversation into the text that the model was trained on."""

    def __init__(self, name: str, source: str, special: Mapping[str, str], tool_source: str | None = None) -> None:
        """`special` are the words a template may name, as `bos_token`; `tool_source` is another template for tools.

        `name` is the model's, for errors. Blocks while the templates are compiled. Raises BrokenModel for a syntax
        error and for what takes too much, NotServing where the system gives no process.
        """
        self._name = name
        self._renderer = Renderer()
        self._plain = self._side(source)
        self._tools = self._plain if tool_source is None else self._side(tool_source)
        self._special = dict(special)
        self._renderer.close()  # many a model is opened to be planned for only

    @property
    def style(self) -> ToolStyle:
        """How this model writes tool calls."""
        return self._tools.style or HERMES

    async def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), /, **variables: object) -> str:
        """The conversation as text, up to where the assistant goes on.

        Raises BadRequest if the template refuses it or takes too much time or memory for it, QueueFull while others
        take long.
        """
        return await asyncio.wrap_future(self._rendered(messages, tools, variables))

    def render_now(self, messages: Sequence[Message], tools: Sequence[Tool] = (), /, **variables: object) -> str:
        """As `render`, for threads that may wait."""
        return self._rendered(messages, tools, variables).result()

    def warm(self) -> None:
        """Start the process that renders in the background, so that the first conversation need not wait for it."""
        sources = {self._plain.source, self._tools.source}
        self._renderer.submit(lambda: [self._renderer.compile(source) for source in sources])

    def close(self) -> None:
        """End the process that renders; what is being rendered ends with NotServing."""
        self._renderer.close()

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Tool], variables: Mapping[str, object]
    ) -> Future[str]:
        return self._renderer.submit(partial(self._choose, messages, tools, variables))

    # --- in the renderer's line ---------------------------------------------------------------------------------------

    def _choose(self, messages: Sequence[Message], tools: Sequence[Tool], variables: Mapping[str, object]) -> str:
        has_calls = any(message.calls or message.role == "tool" for message in messages)
        side = self._tools if tools or has_calls else self._plain
        try:
            if side.style is not None:
                given = {"tools": offer(tools)} if tools else {}
                return self._render(side.source, native_turns(messages, side.style), {**variables, **given})
            if not tools:
                return self._render(side.source, plain_turns(messages), variables)
            return self._told(side.source, messages, tools, variables)
        except TemplateFault as fault:
            raise self._refusal(fault) from fault
        except (TypeError, ValueError, RecursionError) as error:
            reason = str(error) or type(error).__name__
            raise BadRequest(f"the conversation cannot be given to the chat template: {reason}", "messages") from error

    def _told(
        self, source: str, messages: Sequence[Message], tools: Sequence[Tool], variables: Mapping[str, object]
    ) -> str:
        """Tools in words, in the system's turn; in the first one of the user for templates that know no system."""
        try:
            return self._render(source, plain_turns(told_of(messages, tools)), variables)
        except TemplateFault as fault:
            if fault.kind in TOOK or any(message.role == "system" for message in messages):
                raise
        return self._render(source, plain_turns(told_of(messages, tools, "user")), variables)

    def _render(self, source: str, turns: Sequence[Turn], variables: Mapping[str, object]) -> str:
        known: dict[str, object] = {"add_generation_prompt": True, "tools": None, "documents": None}
        return self._renderer.render(source, {**self._special, **known, **variables, "messages": turns})

    def _refusal(self, fault: TemplateFault) -> BadRequest:
        start = f"the chat template of {self._name}"
        if fault.kind in TOOK:
            text = f"{start} cannot render this conversation: it {TOOK[fault.kind]}; shorten it, or load another model"
        else:
            text = f"{start} refuses this conversation: {fault.reason}"
        return BadRequest(text, "messages")

    def _side(self, source: str) -> _Side:
        try:
            wants_tools = self._renderer.submit(partial(self._renderer.compile, source)).result()
        except TemplateFault as fault:
            raise self._broken(fault) from fault
        return _Side(source, style_of(source) if wants_tools else None)

    def _broken(self, fault: TemplateFault) -> BrokenModel:
        start = f"the chat template of {self._name}"
        if fault.kind in TOOK:
            return BrokenModel(f"{start} cannot be used: it {TOOK[fault.kind]}; {_AGAIN}")
        return BrokenModel(f"{start} does not parse ({fault.reason}); correct it, or {_AGAIN}")


@dataclass(frozen=True, slots=True)
class _Side:
    """A template; `style` is how it writes calls, None where it takes no tools or its calls are unknown here."""

    source: str
    style: ToolStyle | None
