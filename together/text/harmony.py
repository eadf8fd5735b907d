"""Splits an answer in OpenAI's harmony format, while it streams: its channels become reasoning, text and tool calls.

A message is a header, `<|message|>`, its content, and a tag that ends it. The header names the channel, and for a call
also the function. Of the first message, the prompt already has `<|start|>assistant`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from together.text.call_parts import Calls
from together.text.parser import ParsedAnswer, StopFilter
from together.text.thinking import possible_beginning

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
MOST_HEADER = 300  # letters; what goes on for longer is no header
FUNCTIONS = "functions."
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_AFTER = (*_ENDS, START, CHANNEL)  # a message without an end ends where the next one begins
_TAG = re.compile("|".join(map(re.escape, _AFTER)))
_HEADS = (START, CHANNEL, MESSAGE, "to=")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_BETWEEN = "\n\n"  # separates the contents of messages of one kind


class ContentKind(Enum):
    """What a message's content is."""

    REASONING = auto()
    TEXT = auto()
    CALL = auto()


@dataclass(slots=True)
class HarmonyParser:
    """As AnswerParser. `tools` are the names of the functions that the model may call."""

    tools: Collection[str] = ()
    stops: StopFilter = field(default_factory=lambda: StopFilter(()))  # ends the text, never the reasoning
    one_call: bool = False
    tags: Mapping[int, str] = field(default_factory=dict)
    _calls: Calls = field(default_factory=Calls)
    _held: str = ""
    _kind: ContentKind | None = None  # of the message that is being read; None: a header
    _begun: set[ContentKind] = field(default_factory=set)  # kinds that something was given of
    _empty: bool = True  # nothing was given of the message
    _reasoning: str = ""  # certain, not given yet
    _text: str = ""

    @property
    def thinking(self) -> bool:
        return self._kind is ContentKind.REASONING

    @property
    def stopped(self) -> str:
        return self.stops.match

    @property
    def withheld(self) -> int:
        return self.stops.withheld + len(self._held)

    @property
    def called(self) -> bool:
        return self._calls.begun > 0

    @property
    def done(self) -> bool:
        return self.one_call and self._calls.finished > 0

    def push(self, text: str) -> ParsedAnswer:
        self._held += text
        while self._take_header() if self._kind is None else self._take_content():
            pass
        return self._parsed(self.stops.push(self._text))

    def flush(self) -> ParsedAnswer:
        """What was held back, at the end of the answer; the beginning of a header is nothing to show."""
        held, self._held = self._held, ""
        if self._kind is None and held.strip() and not held.lstrip().startswith((START, CHANNEL)):
            self._kind = ContentKind.TEXT
        if self._kind is not None:
            self._give(held)
        if self._kind is ContentKind.CALL and self._empty:  # the token that ends a call is no text
            self._calls.write("{}")
        return self._parsed(self.stops.push(self._text) + self.stops.flush())

    def _parsed(self, text: str) -> ParsedAnswer:
        calls = tuple(call for call in self._calls.take() if not self.one_call or call.index == 0)
        reasoning, self._reasoning, self._text = self._reasoning, "", ""
        return ParsedAnswer(reasoning, text, calls)

    # --- headers ------------------------------------------------------------------------------------------------------

    def _take_header(self) -> bool:
        """Whether a content follows. What cannot become a header is text."""
        header, message, rest = self._held.partition(MESSAGE)
        begun = self._held.lstrip()
        if not begun or (not begun.startswith(_HEADS) and any(head.startswith(begun) for head in _HEADS)):
            return False
        if not begun.startswith(_HEADS) or len(header) > MOST_HEADER or any(tag in header for tag in _ENDS):
            self._kind, self._empty = ContentKind.TEXT, True
            if begun.startswith((START, CHANNEL)):  # or the content would end before it
                self._give(self._held[: self._held.index(">") + 1])
                self._held = self._held[self._held.index(">") + 1 :]
        elif message:
            self._held = rest
            self._begin(header)
        return self._kind is not None

    def _begin(self, header: str) -> None:
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        whom = recipient[1] if recipient else ""
        name, self._empty = whom.removeprefix(FUNCTIONS), True
        if self.tools and (name != whom or name in self.tools):
            self._kind = ContentKind.CALL
            self._calls.begin(name)
        elif channel is not None and channel[1] == "analysis":
            self._kind = ContentKind.REASONING
        else:
            self._kind = ContentKind.TEXT
            self._give(header + MESSAGE if name != whom else "")  # a call that nobody offered is shown as it is

    # --- contents -----------------------------------------------------------------------------------------------------

    def _take_content(self) -> bool:
        """Whether the content ended."""
        held, found = self._held, _TAG.search(self._held)
        stop = len(held) - possible_beginning(held, _AFTER) if found is None else found.start()
        self._give(held[:stop])
        self._held = held[stop:]
        if found is None:
            return False
        if found[0] in _ENDS:
            self._held = held[found.end() :]
        if self._kind is ContentKind.CALL:
            self._calls.write("{}" if self._empty else "")
            self._calls.finish()
        self._kind = None
        return True

    def _give(self, content: str) -> None:
        if not content or self._kind is None:
            return
        before = _BETWEEN if self._empty and self._kind in self._begun else ""
        self._empty = False
        self._begun.add(self._kind)
        if self._kind is ContentKind.CALL:
            self._calls.write(content)
        elif self._kind is ContentKind.REASONING:
            self._reasoning += before + content
        else:
            self._text += before + content
