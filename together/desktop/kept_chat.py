"""A conversation in a terminal that the head keeps: the same ones as a page has."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from pydantic_core import to_json, to_jsonable_python

from together.chats.records import ChatSettings, ChatSummary, Conversation, Grown, Pending, Turn
from together.desktop.chat import INTERRUPTED, Shown, talk_on
from together.desktop.client import ChatDelta, RunningApp
from together.desktop.kept_calls import goes_on_with
from together.desktop.show import one_line
from together.errors import AppError
from together.jsonfile import decode_json
from together.models.generation import ANSWER_LIMIT
from together.requests import Usage, cut_short
from together.sentences import Sentence, say

DAY = 86_400.0  # seconds


@dataclass(frozen=True, slots=True)
class ChatList:
    """What `GET /conversations` gives."""

    conversations: tuple[ChatSummary, ...]
    warning: str = ""  # what is wrong with the file that keeps them


@dataclass(frozen=True, slots=True)
class KeptChats:
    """The kept conversations of a running app. Methods raise AppError with its own sentence, or Unreachable."""

    app: RunningApp

    def recent(self) -> ChatList:
        return decode_json(self.app.request("GET", "/conversations"), ChatList)

    def get(self, chat: str) -> Conversation:
        return decode_json(self.app.request("GET", f"{_path(chat)}"), Conversation)

    def create(self, settings: ChatSettings) -> str:
        body = {"settings": to_jsonable_python(settings)}
        return decode_json(self.app.request("POST", "/conversations", body), Conversation).summary.id

    def use(self, chat: str, settings: ChatSettings) -> None:
        self.app.request("PATCH", f"{_path(chat)}", {"settings": to_jsonable_python(settings)})

    def ask(self, chat: str, parent: str, text: str) -> str:
        """The id of the answer that begins."""
        answer = self.app.request("POST", f"{_path(chat)}/turns", {"parent": parent, "text": text})
        return str(json.loads(answer)["answer"]["id"])

    def stop(self, chat: str, turn: str) -> None:
        self.app.request("POST", f"{_path(chat)}/turns/{turn}/stop", {})

    def word(self, chat: str, turn: str, word: dict[str, object]) -> None:
        """What the user says to a call of a tool."""
        self.app.request("POST", f"{_path(chat)}/turns/{turn}/call", word)

    def watch(self, chat: str) -> Generator[Conversation | Pending | Grown]:
        """The conversation, again when it changes, and where its answers are; ends when it is deleted."""
        for event in self.app.events(f"{_path(chat)}/events"):
            if "gone" in event:
                return
            yield _step(event)


def _path(chat: str) -> str:
    return f"/conversations/{quote(chat, safe='')}"


def _step(event: dict[str, Any]) -> Conversation | Pending | Grown:
    if "pending" in event:
        return decode_json(to_json(event["pending"]), Pending)
    if "grown" in event:
        return decode_json(to_json(event["grown"]), Grown)
    return decode_json(to_json(event["chat"]), Conversation)


@dataclass(slots=True)
class KeptTalk:
    """A conversation that begins with its first question, or goes on where `chat`, its id, ended."""

    chats: KeptChats
    settings: ChatSettings
    chat: str = ""
    _last: str = field(default="", init=False)  # the turn that a question follows

    @classmethod
    def going_on(cls, chats: KeptChats, chat: str, options: dict[str, Any]) -> KeptTalk:
        """`chat`, with those of its settings changed that are in `options`. Raises AppError."""
        kept = chats.get(chat)
        talk = cls(chats, replace(kept.settings, **options), chat)
        talk._last = kept.leaf
        if talk.settings != kept.settings:
            chats.use(chat, talk.settings)
        return talk

    def ask(self, question: str, longer: Sentence) -> bool:
        """As `Talk.ask`; an answer that was stopped stays part of the conversation. Raises AppError or Unreachable."""
        self.chat = self.chat or self.chats.create(self.settings)
        answer, shown = self.chats.ask(self.chat, self._last, question), Shown()
        try:
            turn = self._follow(answer, shown)
            while turn.said.calls and turn.state == "done":
                shown.end()
                if not (answer := goes_on_with(self.chats, self.chat, turn)):
                    self._last = self.chats.get(self.chat).leaf
                    return True
                shown = Shown()
                turn = self._follow(answer, shown)
        except KeyboardInterrupt:
            self.chats.stop(self.chat, answer)
            turn = self.chats.get(self.chat).find(answer)
            shown.add(ChatDelta(turn.said.text[len(shown.text) :]))  # what is kept is what was shown
        if turn.state == "failed":
            shown.end()
            raise AppError(turn.said.note)
        self._last = turn.id
        shown.end(self._remark(turn, longer))
        return turn.state != "stopped"

    def _follow(self, answer: str, shown: Shown) -> Turn:
        """Show an answer until it has ended, here or in a browser."""
        text = reasoning = ""
        with closing(self.chats.watch(self.chat)) as steps:
            for step in steps:
                if isinstance(step, Pending):
                    if step.turn == answer:
                        shown.wait(step.progress)
                    continue
                if isinstance(step, Grown):
                    if step.turn == answer:
                        shown.add(ChatDelta(step.text, step.reasoning))
                        text, reasoning = text + step.text, reasoning + step.reasoning
                    continue
                turn = step.find(answer)
                shown.add(ChatDelta(turn.said.text[len(text) :], turn.said.reasoning[len(reasoning) :]))
                text, reasoning = turn.said.text, turn.said.reasoning
                if turn.state != "writing":
                    return turn
        raise AppError("this conversation was deleted meanwhile")

    def _remark(self, turn: Turn, longer: Sentence) -> str:
        figures = turn.said.figures
        if figures is None:
            return {"stopped": "stopped", "cut": "cut off: together ended meanwhile"}.get(turn.state, "")
        usage = Usage(figures.prompt_tokens, figures.tokens)
        limit = self.settings.max_tokens or ANSWER_LIMIT
        return str(cut_short(turn.said.finish, usage, limit if limit > 0 else None, longer))


def talk_kept(
    chats: KeptChats, questions: Sequence[str], options: dict[str, Any], chat: str | None = None, goes_on: bool = False
) -> int:
    """Ask `questions` in one conversation, or what is typed where there are none; the exit code.

    The conversation is `chat`, the latest one where it `goes_on`, or a new one. Raises AppError.
    """
    options = options | {name: tuple(options[name]) for name in ("stop", "servers") if name in options}
    if chat is None and goes_on:
        chat = _latest(chats.recent())
    talk = KeptTalk.going_on(chats, chat, options) if chat else KeptTalk(chats, ChatSettings(**options))
    limit = talk.settings.max_tokens or ANSWER_LIMIT
    if not questions:
        talk_on(talk, limit)
    for question in questions:
        if not talk.ask(question, say("longer_in_command", more=2 * limit)):
            return INTERRUPTED
    return 0


def _latest(chats: ChatList) -> str:
    if not chats.conversations:
        raise AppError("there is no conversation to continue; begin one with: python3 launch.py chat")
    return max(chats.conversations, key=lambda chat: chat.changed).id


def list_lines(chats: ChatList, now: float) -> Iterator[str]:
    """A line per conversation, the latest first: when it changed, its title, its id for `--continue`."""
    if chats.warning:
        yield one_line(chats.warning)
    for chat in sorted(chats.conversations, key=lambda chat: -chat.changed):
        yield f"{_age(now - chat.changed):>9}  {one_line(chat.title)}  {chat.id}"
    if not chats.conversations:
        yield "no conversations yet: python3 launch.py chat begins one"


def _age(seconds: float) -> str:
    if seconds < DAY:
        hours, minutes = int(seconds // 3600), int(seconds // 60)
        return f"{hours} h ago" if hours else f"{max(minutes, 0)} min ago"
    return time.strftime("%Y-%m-%d", time.localtime(time.time() - seconds))
