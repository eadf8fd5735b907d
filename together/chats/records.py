"""What is kept of a conversation: plain data, as the store, the page and an exported file have it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from together.errors import BadRequest, TogetherError
from together.models.generation import ANSWER_LIMIT
from together.requests import FinishReason, PromptProgress, ToolCall
from together.types import Sampling
from together.wording import cut, quoted

TITLE = 80  # letters of a title
NEW = "New chat"  # until the first question
MOST_NAME = 100  # letters of a name that a user gives
MOST_TEXT = 2**20  # letters of a turn

Role = Literal["user", "assistant", "tool"]
Calls = Literal["auto", "required"]  # "required": the first answer to a question calls a tool
# "cut": the head ended while it was written; "asking": a call of a tool that waits for a user's yes, or for its result
State = Literal["writing", "done", "stopped", "cut", "failed", "asking"]


def new_id() -> str:
    return secrets.token_hex(12)


class NoSuchChat(BadRequest):
    """A conversation, turn, file or preset that its owner does not have."""


class ChatsBroken(TogetherError):
    """The database file cannot be used; the message says where it is kept."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How a conversation is answered; None means what the model's author or this program has by default."""

    model: str = ""  # "": the only one that serves
    system: str = ""
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None  # None: another one for each answer
    max_tokens: int | None = None  # -1: until the context is full
    stop: tuple[str, ...] = ()
    thinking: bool | None = None  # where the model's template has such a switch
    servers: tuple[str, ...] = ()  # of tools, by name, that the model may call
    functions: str = ""  # whose results the user gives, as `tools.offers.functions_of` reads them
    calls: Calls = "auto"
    json_schema: str = ""  # of answers; "": they are text
    preset: str = ""  # the name of what these were taken from, for the page

    @property
    def limit(self) -> int | None:
        """Tokens of an answer; None: up to the context. Raises BadRequest for 0."""
        if self.max_tokens == 0:
            raise BadRequest("Max tokens is at least 1, or empty for {usual}", "max_tokens", usual=ANSWER_LIMIT)
        return ANSWER_LIMIT if self.max_tokens is None else self.max_tokens if self.max_tokens > 0 else None

    def sampling(self, defaults: Sampling, seed: int) -> Sampling:
        """`defaults` with what is set here; `seed` where none is."""
        own = {name: value for name in _SAMPLED if (value := getattr(self, name)) is not None}
        return replace(defaults, **{"seed": seed, **own})


_SAMPLED = tuple(item.name for item in fields(Sampling) if item.name != "logit_bias")


@dataclass(frozen=True, slots=True)
class Figures:
    """What an answer took; times in seconds."""

    prompt_tokens: int
    tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    tokens_per_s: float = 0.0
    first_token: float = 0.0
    queued: float = 0.0
    total: float = 0.0
    machines: tuple[str, ...] = ()  # the names of those that took part, in the order of their layers


@dataclass(frozen=True, slots=True)
class Said:
    """The content of a turn. Which fields count depends on the role."""

    text: str = ""
    reasoning: str = ""
    thought: float = 0.0  # seconds
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""  # of a tool's result: the call that it answers
    server: str = ""  # and of which server the tool is; "": a function of the conversation
    tool: str = ""  # and what that server calls it
    files: tuple[str, ...] = ()  # the ids of files that go with a question
    model: str = ""  # which one answered
    figures: Figures | None = None
    finish: FinishReason | None = None  # why the model ended it
    note: str = ""  # for a person: why it ended early
    edited: bool = False  # an answer as its user wrote it


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn at its place in the tree; turns with the same parent are versions of one another."""

    id: str
    parent: str  # "": the first one
    role: Role
    state: State
    created: float  # seconds since 1970
    said: Said


@dataclass(frozen=True, slots=True)
class Grown:
    """What was added to an answer since the last one of these."""

    turn: str
    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()  # all so far, where there is anything new


@dataclass(frozen=True, slots=True)
class Pending:
    """Where an answer is that has no text yet."""

    turn: str
    progress: PromptProgress


@dataclass(frozen=True, slots=True)
class ChatSummary:
    """A conversation in a list. `hit` is a part of its text that was searched for."""

    id: str
    title: str
    pinned: bool
    created: float
    changed: float
    hit: str = ""


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file that goes with questions of one conversation. `kind` is its media type, `tokens` of its text if known."""

    id: str
    name: str
    kind: str
    size: int
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """All of one: every version of every turn, the last of the shown branch, and its settings."""

    summary: ChatSummary
    settings: ChatSettings = field(default_factory=ChatSettings)
    leaf: str = ""  # the id of the last turn that is shown; "": nothing was said yet
    turns: tuple[Turn, ...] = ()  # oldest first, so that a parent comes before its children
    files: tuple[KeptFile, ...] = ()

    def find(self, turn: str) -> Turn:
        """Raises NoSuchChat."""
        found = next((each for each in self.turns if each.id == turn), None)
        if found is None:
            raise NoSuchChat("this conversation has no turn {turn}", "turn", turn=quoted(cut(turn)))
        return found

    def branch(self, leaf: str | None = None) -> tuple[Turn, ...]:
        """The turns from the first one to `leaf`, by default to the shown one. Raises NoSuchChat."""
        by_id = {turn.id: turn for turn in self.turns}
        at, found = self.leaf if leaf is None else leaf, []
        while at:
            turn = by_id.get(at) or self.find(at)
            found.append(turn)
            at = turn.parent
        return tuple(reversed(found))

    def last_below(self, turn: str) -> str:
        """The end of the newest branch through `turn`: what is shown when a user steps to another version."""
        newest = {each.parent: each.id for each in self.turns}
        while (child := newest.get(turn)) is not None:
            turn = child
        return turn


def title_of(text: str) -> str:
    """A title from the first question: its first line, cut between words."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = " ".join(line.split())
    if len(line) <= TITLE:
        return line or NEW
    start = line[: TITLE - 1].rpartition(" ")[0]
    return f"{start if len(start) > TITLE // 2 else line[: TITLE - 1]}…"


def checked_name(name: str, param: str) -> str:
    """A name that a user gives. Raises BadRequest where it is empty or too long."""
    name = " ".join(name.split())
    if not 0 < len(name) <= MOST_NAME:
        raise BadRequest("{field} has 1 to {most} letters", param, field=param, most=MOST_NAME)
    return name
