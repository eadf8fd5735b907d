"""What may be in a conversation that comes from outside: a page, a program or an exported file."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, is_dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from together.chats.records import MOST_NAME, MOST_TEXT, Calls, ChatSettings, Conversation
from together.errors import BadRequest
from together.jsonfile import first_fault
from together.tools.offers import MOST_EDITED
from together.tools.servers import MOST_SERVERS

MOST_TURNS = 10_000  # of one conversation
MOST_FILES = 32  # of one question
MOST_NOTE = 10_000  # letters of a note
MOST_MODEL = 200  # letters of a model's name


class SettingsBody(BaseModel):
    """As `ChatSettings`; null or left out means the default."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(default="", max_length=MOST_MODEL)
    system: str = Field(default="", max_length=MOST_TEXT)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    max_tokens: Literal[-1] | Annotated[int, Field(ge=1, lt=2**31)] | None = None
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default=[], max_length=16)
    thinking: bool | None = None
    servers: list[Annotated[str, Field(max_length=MOST_NAME)]] = Field(default=[], max_length=MOST_SERVERS)
    functions: str = Field(default="", max_length=MOST_EDITED)
    calls: Calls = "auto"
    json_schema: str = Field(default="", max_length=MOST_EDITED)
    preset: str = Field(default="", max_length=MOST_NAME)

    def settings(self) -> ChatSettings:
        return ChatSettings(**{**self.model_dump(), "stop": tuple(self.stop), "servers": tuple(self.servers)})


def check(chat: Conversation) -> None:
    """Whether a conversation of an exported file may be kept. Raises BadRequest."""
    try:
        lists = {name: list(getattr(chat.settings, name)) for name in ("stop", "servers")}
        SettingsBody.model_validate({**asdict(chat.settings), **lists})
    except ValidationError as error:
        text = "the settings of a conversation of this export are wrong: {reason}"
        raise BadRequest(text, "file", reason=first_fault(error)) from None
    _check_tree(chat)
    if not _sound(chat):
        text = "this export is damaged: a number of it is none, or a text has more than {most} letters"
        raise BadRequest(text, "file", most=MOST_TEXT)
    for said in (turn.said for turn in chat.turns):
        if len(said.files) > MOST_FILES or len(said.note) > MOST_NOTE or len(said.model) > MOST_MODEL:
            text = (
                "a turn of this export is larger than any of ours: it has at most {files} files, "
                "{note} letters of a note and {model} of a model's name"
            )
            raise BadRequest(text, "file", files=MOST_FILES, note=MOST_NOTE, model=MOST_MODEL)


def _check_tree(chat: Conversation) -> None:
    """Each turn comes after its parent, so that the tree is one."""
    seen = {""}
    for turn in chat.turns:
        if turn.parent not in seen or turn.id in seen:
            raise BadRequest("this export is damaged: its turns do not make a tree", "file")
        seen.add(turn.id)
    if chat.leaf not in seen or len(chat.turns) > MOST_TURNS:
        text = "this export is damaged: a conversation has at most {most} turns, and ends with one of them"
        raise BadRequest(text, "file", most=MOST_TURNS)


def _sound(value: object) -> bool:
    """Whether all numbers in a record are finite and all texts of a length that is kept."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return len(value) <= MOST_TEXT
    if isinstance(value, tuple):
        return all(map(_sound, value))
    return not is_dataclass(value) or all(_sound(getattr(value, item.name)) for item in fields(value))


def title_from(given: str) -> str:
    """A title of another program: one line, as long as a user's may be."""
    return " ".join(given.split())[:MOST_NAME]
