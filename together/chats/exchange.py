"""Conversations as files: JSON with everything, which can be read again, and Markdown of the shown branch."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass, field, replace

from pydantic_core import to_json

from together.chats.bounds import check
from together.chats.files import MOST_FILE, read_file
from together.chats.records import ChatSummary, Conversation, KeptFile
from together.chats.store import ChatStore
from together.errors import BadRequest
from together.jsonfile import decode_json

FORMAT = "together.conversations.v1"
MOST_CHATS = 10_000


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
    format: str = FORMAT
    chats: tuple[ChatCopy, ...] = field(default=())
    left_out: int = 0  # conversations for which there was no room
    before: str = ""  # where there are: the last one that is here, after which another export goes on


def json_of(
    chats: list[tuple[Conversation, list[tuple[KeptFile, bytes]]]], left_out: int = 0, before: str = ""
) -> bytes:
    """An export of conversations with their files."""
    copies = [
        ChatCopy(chat, tuple(FileCopy(file, b64encode(data).decode()) for file, data in files)) for chat, files in chats
    ]
    return to_json(Export(chats=tuple(copies), left_out=left_out, before=before), indent=1, inf_nan_mode="null")


def size_of(chat: Conversation) -> int:
    """About the bytes of it in an export."""
    texts = sum(len(to_json(turn.said)) + 300 for turn in chat.turns)
    return texts + len(to_json(chat.settings)) + 1500 + sum(4 * file.size // 3 + 300 for file in chat.files)


def read_export(data: bytes) -> tuple[ChatCopy, ...]:
    """The conversations of an exported file. Raises BadRequest with what is wrong."""
    try:
        export = decode_json(data, Export)
    except ValueError as error:
        raise BadRequest("this is no export of conversations: {reason}", "file", reason=str(error)) from None
    if export.format != FORMAT:
        raise BadRequest("this file is not of the format {format}; export it with this version", "file", format=FORMAT)
    if len(export.chats) > MOST_CHATS:
        raise BadRequest("a file may have at most {most} conversations", "file", most=MOST_CHATS)
    for copy in export.chats:
        check(copy.conversation)
    return export.chats


def keep_export(store: ChatStore, owner: str, data: bytes) -> list[ChatSummary]:
    """Keep all conversations of an exported file or, where anything is wrong, none. Raises BadRequest."""
    copies = [(copy.conversation, copy.contents()) for copy in read_export(data)]
    return [made.summary for made in store.put(owner, copies)]


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
