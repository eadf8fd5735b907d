"""Conversations as files: JSON with everything, which can be read again, and Markdown of the shown branch."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass, field, replace

from together.chats.bounds import check
from together.chats.files import MOST_FILE, read_file
from together.chats.pieces import json_of_parts, plain, without
from together.chats.records import Conversation, KeptFile
from together.chats.rows import Copy
from together.errors import BadRequest
from together.jsonfile import decode_json

FORMAT = "together.conversations.v1"
MOST_CHATS = 10_000
MOST_IMPORT = 64 * 2**20  # bytes
MOST_EXPORT = MOST_IMPORT * 3 // 4  # bytes, as they are estimated


@dataclass(frozen=True, slots=True)
class FileCopy:
    """A file with its bytes in base64."""

    file: KeptFile
    data: str


@dataclass(frozen=True, slots=True)
class ChatCopy:
    conversation: Conversation
    files: tuple[FileCopy, ...] = ()

    def contents(self) -> list[tuple[KeptFile, bytes]]:
        """What each file is, its bytes say: an export may come from anybody. Raises BadRequest."""
        try:
            decoded = [(copy.file, b64decode(copy.data, validate=True)) for copy in self.files]
        except ValueError:
            raise BadRequest("a file of this export is damaged: it is no base64", "file") from None
        made = []
        for given, data in decoded:
            if len(data) > MOST_FILE:
                raise BadRequest("a file of this export has more than {most} MB", "file", most=MOST_FILE // 2**20)
            file, content = read_file(given.name, data)
            tokens = given.tokens if given.tokens is not None and 0 <= given.tokens <= len(content) else None
            made.append((replace(file, id=given.id, tokens=tokens), content))
        return made


@dataclass(frozen=True, slots=True)
class Export:
    format: str = ""  # any JSON object without it is no export
    chats: tuple[ChatCopy, ...] = field(default=())
    left_out: int = 0  # conversations for which there was no room
    before: str = ""  # where there are: the last one that is here, after which another export goes on
    files_left_out: int = 0  # of the conversations that are here: there was no room for them


def json_of(chats: list[Copy], left_out: int = 0, before: str = "") -> bytes:
    """An export of conversations with those of their files that are given."""
    copies = [
        ChatCopy(chat, tuple(FileCopy(file, b64encode(data).decode()) for file, data in files)) for chat, files in chats
    ]
    export = Export(FORMAT, tuple(copies), left_out, before, files_left_out(chats))
    return json_of_parts(export, (Export, ChatCopy, FileCopy, Conversation))


def files_left_out(chats: list[Copy]) -> int:
    """How many files these copies lack."""
    return sum(len(chat.files) - len(files) for chat, files in chats)


def size_of(chat: Conversation) -> int:
    """About the bytes of it in an export, without its files."""
    return sum(len(plain(turn.said)) + 300 for turn in chat.turns) + len(plain(chat.settings)) + 1500


def size_of_file(file: KeptFile) -> int:
    """About the bytes of it in an export."""
    return 4 * file.size // 3 + 400


def fitting(chat: Conversation, room: int = MOST_EXPORT) -> tuple[KeptFile, ...]:
    """Those of its files that an export has `room` for beside its texts, the small ones first.

    Raises BadRequest where there is none for the texts: nothing could read such a file again.
    """
    left = room - size_of(chat)
    if left < 0:
        text = "the texts of this conversation have more than {most} MB, which no import reads; export it as Markdown"
        raise BadRequest(text, "id", most=room // 2**20)
    fit = set[str]()
    for file in sorted(chat.files, key=lambda file: file.size):
        if (left := left - size_of_file(file)) < 0:
            break
        fit.add(file.id)
    return tuple(file for file in chat.files if file.id in fit)


def copies_in(data: bytes) -> list[Copy]:
    """The conversations of an exported file with their files. Raises BadRequest with what is wrong."""
    try:
        rest, chats = without(data, "chats")
        export = decode_json(rest, Export)
        if export.format != FORMAT:
            text = "this file is not of the format {format}; export it with this version"
            raise BadRequest(text, "file", format=FORMAT)
        if len(chats) > MOST_CHATS:
            raise BadRequest("a file may have at most {most} conversations", "file", most=MOST_CHATS)
        copies = [decode_json(chat, ChatCopy) for chat in chats]
    except ValueError as error:
        raise BadRequest("this is no export of conversations: {reason}", "file", reason=str(error)) from None
    for copy in copies:
        check(copy.conversation)
    return [(copy.conversation, copy.contents()) for copy in copies]


def markdown_of(chat: Conversation) -> str:
    """The shown branch to read; what was thought is folded as a quotation."""
    parts = [f"# {chat.summary.title}"]
    if chat.settings.system:
        parts.append(f"## System\n\n{chat.settings.system}")
    names = {file.id: file.name for file in chat.files}
    for turn in chat.branch():
        said, heading = turn.said, _HEADINGS[turn.role]
        body = [f"> {line}".rstrip() for line in said.reasoning.splitlines()]
        body += [""] if body else []
        body += [f"Attached: {names.get(file, file)}" for file in said.files]
        body += [f"Calls `{call.name}` with `{call.arguments}`" for call in said.calls]
        model = f" ({said.model})" if said.model else ""
        parts.append(f"## {heading}{model}\n\n" + "\n".join([*body, said.text]).strip())
    return "\n\n".join(parts) + "\n"


_HEADINGS = {"user": "Question", "assistant": "Answer", "tool": "Result of a tool"}
