"""Answers as OpenAI's responses: one object, or a stream of typed events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from together.api.answers import chat_logprobs, of_open_call
from together.api.events import event
from together.api.openai_responses.items import FREE_INPUT, closed_thoughts, full_name, short_name
from together.api.openai_responses.requests import ResponsesRequest
from together.api.openai_responses.shapes import (
    ContentOut,
    OutputItem,
    ResponseFault,
    ResponseObject,
    ResponseUsage,
    Status,
)
from together.api.responses import ChatLogprob, answer_for
from together.errors import TogetherError
from together.requests import AnswerChunk, CallDelta, FinishReason, Message, TokenLogprob, ToolCall, Usage


@dataclass(slots=True)
class Written:
    """An item of the answer as it grows."""

    kind: str  # "reasoning", "message", "function_call", "custom_tool_call"
    id: str
    text: str = ""  # of a call: its arguments
    call_id: str = ""
    name: str = ""
    namespace: str = ""
    logprobs: list[ChatLogprob] = field(default_factory=list)
    carried: bool = False  # thoughts also stand there as clients carry them

    def shown(self, status: Status) -> OutputItem:
        item: OutputItem = {"id": self.id, "type": self.kind, "status": status}
        begun = status == "in_progress"
        if self.kind == "message":
            return {**item, "role": "assistant", "content": [] if begun else [self.part()]}
        if self.kind == "reasoning":
            item = {**item, "summary": [], "content": [] if begun else [self.part()]}
            return {**item, "encrypted_content": closed_thoughts(self.text)} if self.carried and not begun else item
        item |= {"call_id": self.call_id, "name": self.name}
        item |= {"namespace": self.namespace} if self.namespace else {}
        if self.kind == "custom_tool_call":
            return {**item, "input": "" if begun else free_input(self.text)}
        return {**item, "arguments": "" if begun else self.text}

    def part(self) -> ContentOut:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}


class ResponseFormatter:
    """One response. `keep` is told of it when it is there, and how it looks then."""

    def __init__(self, model: str, asked: ResponsesRequest, keep: Callable[[ResponseFormatter], None]) -> None:
        self.model = model
        self.id = f"resp_{secrets.token_hex(16)}"
        self.created = int(time.time())
        self.status: Status = "in_progress"
        self._asked = asked
        self._custom = asked.custom()
        self._spaces = {space for _, _, space in asked.offered() if space}
        self._keep = keep
        self._items: list[Written] = []
        self._open = False  # the last item is being written
        self._number = 0  # of the next event
        self._finish: FinishReason | None = None
        self._usage: Usage | None = None
        self._error: Exception | None = None

    def message(self) -> Message:
        """The answer as a turn of the conversation that goes on from it."""
        calls = [item for item in self._items if item.call_id]
        return Message(
            "assistant",
            "".join(item.text for item in self._items if item.kind == "message"),
            "".join(item.text for item in self._items if item.kind == "reasoning"),
            tuple(ToolCall(item.call_id, full_name(item.name, item.namespace), item.text) for item in calls),
        )

    # --- as a stream --------------------------------------------------------------------------------------------------

    def opening(self, count: int) -> Iterator[bytes]:
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self.shown())

    def chunks(self, piece: AnswerChunk) -> Iterator[bytes]:
        more, calls = of_open_call(piece.tool_calls)
        for part in more:
            yield from self._call(part)
        if piece.reasoning:
            yield from self._grow("reasoning", piece.reasoning)
        if piece.text or (piece.logprobs and self._open and self._items[-1].kind == "message"):
            yield from self._grow("message", piece.text, piece.logprobs)  # calls and thoughts have no place for scores
        for part in calls:
            yield from self._call(part)
        if piece.finish is not None:
            self._finish = piece.finish
            yield from self._close()

    def _grow(self, kind: str, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Iterator[bytes]:
        if not self._open or self._items[-1].kind != kind:
            name = f"{'rs' if kind == 'reasoning' else 'msg'}_{secrets.token_hex(12)}"
            yield from self._begin(Written(kind, name, carried=self._asked.carries_thoughts))
        item, scores = self._items[-1], chat_logprobs(logprobs)
        item.text += text
        item.logprobs += scores
        if kind == "reasoning":
            yield self._of_part("response.reasoning_text.delta", delta=text)
        else:
            yield self._of_part("response.output_text.delta", delta=text, logprobs=scores)

    def _begin(self, item: Written) -> Iterator[bytes]:
        yield from self._close()
        self._items.append(item)
        self._open = True
        yield self._of_item("response.output_item.added", item=item.shown("in_progress"))
        if not item.call_id:
            yield self._of_part("response.content_part.added", part=Written(item.kind, item.id).part())

    def _call(self, part: CallDelta) -> Iterator[bytes]:
        if part.id:
            kind = "custom_tool_call" if part.name in self._custom else "function_call"
            name = f"{'ctc' if part.name in self._custom else 'fc'}_{secrets.token_hex(12)}"
            own, space = short_name(part.name, self._spaces)
            yield from self._begin(Written(kind, name, call_id=part.id, name=own, namespace=space))
        item = self._items[-1]
        item.text += part.arguments
        if part.arguments and item.kind == "function_call":
            yield self._of_item("response.function_call_arguments.delta", item_id=item.id, delta=part.arguments)

    def _close(self) -> Iterator[bytes]:
        """End the item that is being written."""
        if not self._open:
            return
        item, self._open = self._items[-1], False
        if item.kind == "function_call":
            yield self._of_item("response.function_call_arguments.done", item_id=item.id, arguments=item.text)
        elif item.kind == "custom_tool_call":
            given = free_input(item.text)
            yield self._of_item("response.custom_tool_call_input.delta", item_id=item.id, delta=given)
            yield self._of_item("response.custom_tool_call_input.done", item_id=item.id, input=given)
        elif item.kind == "reasoning":
            yield self._of_part("response.reasoning_text.done", text=item.text)
        else:
            yield self._of_part("response.output_text.done", text=item.text, logprobs=item.logprobs)
        if not item.call_id:
            yield self._of_part("response.content_part.done", part=item.part())
        yield self._of_item("response.output_item.done", item=item.shown(self._status_of(item)))

    def closing(self, usage: Usage) -> Iterator[bytes]:
        self.end(usage)
        yield self._event(f"response.{self.status}", response=self.shown())

    def failure(self, error: Exception) -> bytes:
        self.fail(error)
        return self._event("response.failed", response=self.shown())

    def _of_item(self, name: str, **values: object) -> bytes:
        return self._event(name, output_index=len(self._items) - 1, **values)

    def _of_part(self, name: str, **values: object) -> bytes:
        return self._of_item(name, item_id=self._items[-1].id, content_index=0, **values)

    def _event(self, name: str, **values: object) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": name, "sequence_number": number, **values}, name)

    # --- whole --------------------------------------------------------------------------------------------------------

    def whole(self, choices: Sequence[Sequence[AnswerChunk]], usage: Usage) -> ResponseObject:
        for piece in choices[0]:
            self.take(piece)
        self.end(usage)
        return self.shown()

    def take(self, piece: AnswerChunk) -> None:
        for _ in self.chunks(piece):
            pass  # its events are not wanted

    def end(self, usage: Usage) -> None:
        self._usage = usage
        self.status = "incomplete" if self._finish == "length" else "completed"
        self._keep(self)

    def fail(self, error: Exception) -> None:
        self._error, self.status = error, "failed"
        self._keep(self)

    def cancel(self) -> None:
        self.status = "cancelled"
        self._keep(self)

    def _status_of(self, item: Written) -> Status:
        cut = self._open or self._finish == "length"  # open: of an answer that was cancelled, or failed
        return "incomplete" if cut and item is self._items[-1] else "completed"

    def shown(self) -> ResponseObject:
        asked, cut = self._asked, self.status == "incomplete"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": self.status,
            "background": bool(asked.background),
            "error": _fault(self._error) if self._error is not None else None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": dict(asked.metadata or {}),
            "model": self.model,
            "output": [item.shown(self._status_of(item)) for item in self._items],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "reasoning": {"effort": asked.reasoning.effort if asked.reasoning else None, "summary": None},
            "store": asked.kept,
            "temperature": asked.temperature,
            "text": {"format": _plain(asked.text.format) if asked.text and asked.text.format else {"type": "text"}},
            "tool_choice": _plain(asked.tool_choice) or "auto",
            "tools": [_plain(tool) for tool in asked.tools or ()],
            "top_p": asked.top_p,
            "truncation": asked.truncation or "disabled",
            "usage": usage_of(self._usage) if self._usage is not None else None,
            "user": asked.user,
        }


def free_input(arguments: str) -> str:
    """The text that a tool with free input was given; what was cut off stays as it was written."""
    try:
        given = json.loads(arguments)
    except ValueError:
        return arguments
    return str(given.get(FREE_INPUT, "")) if isinstance(given, dict) else arguments


def _plain(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    return dump(by_alias=True, exclude_none=True) if dump is not None else value


def _fault(error: Exception) -> ResponseFault:
    if not isinstance(error, TogetherError):
        return {"code": "server_error", "message": "an internal error; the log of together says more"}
    answer = answer_for(error)
    code = "rate_limit_exceeded" if answer.status == 429 else "server_error"
    return {"code": code if answer.status >= 429 else "invalid_prompt", "message": str(error)}


def usage_of(usage: Usage) -> ResponseUsage:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
