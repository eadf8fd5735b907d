"""Calls of tools in conversations: a real server of ours, and the model of test_answering, which calls when told to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chats.test_answering import END, ME, Told, answering, new
from tests.conftest import ROOT
from tests.support.patience import PATIENCE
from tests.support.tool_servers import PROGRAM
from together.chats import calls as subject
from together.chats.answering import Answering
from together.chats.calls import DECLINED, CallAnswer
from together.chats.records import ChatSettings, Conversation, NoSuchChat, Said, Turn
from together.errors import BadRequest
from together.requests import AnswerChunk, CallDelta
from together.tools import sessions
from together.tools.servers import ServerFile, ToolServer

FUNCTIONS = '[{"name": "weather", "parameters": {"type": "object"}}]'


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sessions, "CONNECT", PATIENCE)
    ServerFile(tmp_path).add(ToolServer("ours", ME, command=PROGRAM, folder=str(ROOT)))


def calls(told: Told, *made: tuple[str, str]) -> None:
    """The model's next answer calls these tools with these arguments."""
    for number, (name, arguments) in enumerate(made):
        deltas = (CallDelta(number, f"call_{number}_{len(told.asked)}", name), CallDelta(number, arguments=arguments))
        told.says.put_nowait(AnswerChunk("", tool_calls=deltas))
    told.says.put_nowait(END)
    told.says.put_nowait(None)


async def turns(chats: Answering, chat: str, count: int) -> tuple[Turn, ...]:
    """The shown turns, once there are so many and none is being written."""
    async with asyncio.timeout(PATIENCE):
        async for step in chats.watch(ME, chat):
            if isinstance(step, Conversation):
                found = step.branch()
                if len(found) >= count and all(turn.state != "writing" for turn in found):
                    return found
    raise AssertionError("it was deleted")


def states(found: tuple[Turn, ...]) -> list[tuple[str, str]]:
    return [(turn.role, turn.state) for turn in found]


async def test_a_call_waits_for_a_yes_and_the_answer_goes_on_after_it(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats, ChatSettings(servers=("ours",), functions=FUNCTIONS, calls="required"))
        calls(told, ("add", '{"a": 1, "b": 2}'), ("weather", "{}"), ("none", "{}"), ("add", "[]"))
        await chats.ask(ME, chat, "", Said("what is 1 and 2?"))
        found = await turns(chats, chat, 6)
        assert [tool.name for tool in told.asked[0].tool_use.tools][:2] == ["weather", "add"]
        assert told.asked[0].tool_use.required
        asking, failed = ("tool", "asking"), ("tool", "failed")
        assert states(found) == [("user", "done"), ("assistant", "done"), asking, asking, failed, failed]
        assert (found[2].said.server, found[2].said.tool, found[3].said.server) == ("ours", "add", "")
        assert ["no tool 'none'" in found[4].said.note, "no JSON" in found[5].said.note] == [True, True]
        with pytest.raises(BadRequest, match="waits for your word"):
            await chats.ask(ME, chat, found[-1].id, Said("and?"))
        for owner, name, wrong in (("other", found[2].id, "conversation"), (ME, found[1].id, "being made")):
            with pytest.raises(BadRequest, match=wrong):
                await chats.call(owner, chat, name, CallAnswer("once"))
        for name, answer in ((found[2].id, CallAnswer(result="3")), (found[3].id, CallAnswer("always"))):
            with pytest.raises(BadRequest, match="server"):
                await chats.call(ME, chat, name, answer)
        await chats.call(ME, chat, found[2].id, CallAnswer("once"))
        told.say("it is 3")
        await chats.call(ME, chat, found[3].id, CallAnswer(result="sunny"))
        found = await turns(chats, chat, 7)
        assert [turn.said.text for turn in found[2:4]] == ["1 and 2 are 3", "sunny"]
        assert (found[-1].role, found[-1].said.text) == ("assistant", "it is 3")
        last = told.asked[-1]
        assert [message.content for message in last.messages if message.role == "tool"][:2] == [
            "1 and 2 are 3",
            "sunny",
        ]
        assert "This call failed: there is no tool" in last.messages[-2].content
        assert not last.tool_use.required


async def test_what_was_allowed_runs_and_what_was_not_is_told(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats, ChatSettings(servers=("ours", "gone")))
        calls(told, ("add", '{"a": 1, "b": 1}'), ("evil__b_name__b_", '{"n": 1}'))
        await chats.ask(ME, chat, "", Said("?"))
        found = await turns(chats, chat, 4)
        assert "no server of tools 'gone'" in found[1].said.note
        await chats.call(ME, chat, found[2].id, CallAnswer("always"))
        calls(told, ("add", '{"a": 2, "b": 2}'), ("leave", '{"n": 1}'))  # what the answer after these says
        await chats.call(ME, chat, found[3].id, CallAnswer("no"))
        found = await turns(chats, chat, 7)
        assert found[3].said.text == DECLINED
        assert states(found)[-2:] == [("tool", "done"), ("tool", "asking")]
        assert found[-2].said.text == "2 and 2 are 4"
        told.say("that failed")
        await chats.call(ME, chat, found[-1].id, CallAnswer("once"))
        found = await turns(chats, chat, 8)
        assert (found[-2].state, "does not answer" in found[-2].said.note) == ("failed", True)
        assert "This call failed: the server ours" in told.asked[-1].messages[-1].content
        assert found[-1].said.text == "that failed"


async def test_a_call_that_waits_survives_a_restart_and_one_that_runs_can_be_stopped(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats, ChatSettings(servers=("ours",)))
        calls(told, ("slow", '{"n": 1}'))
        await chats.ask(ME, chat, "", Said("?"))
        name = (await turns(chats, chat, 3))[2].id
    async with answering(tmp_path, told) as chats:
        assert states(await turns(chats, chat, 3))[-1] == ("tool", "asking")
        await chats.call(ME, chat, name, CallAnswer("once"))
        await chats.stop(ME, chat, name)
        assert states(await turns(chats, chat, 3))[-1] == ("tool", "stopped")
        await chats.call(ME, chat, name, CallAnswer("once"))
    async with answering(tmp_path, told) as chats:
        assert states(await turns(chats, chat, 3))[-1] == ("tool", "cut")
        told.say("well")
        await chats.call(ME, chat, name, CallAnswer("no"))
        assert (await turns(chats, chat, 4))[-1].said.text == "well"
        await chats.delete(ME, chat)
        with pytest.raises(NoSuchChat):
            await chats.call(ME, chat, name, CallAnswer("once"))


async def test_rounds_are_bounded_and_the_last_answer_has_no_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "MOST_ROUNDS", 2)
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats, ChatSettings(functions=FUNCTIONS, json_schema='{"type": "object"}'))
        calls(told, ("weather", "{}"))
        parent = ""
        await chats.ask(ME, chat, parent, Said("?"))
        for count in (3, 5):
            found = await turns(chats, chat, count)
            calls(told, ("weather", "{}")) if count == 3 else told.say("enough")
            await chats.call(ME, chat, found[-1].id, CallAnswer(result="rain"))
        assert (await turns(chats, chat, 6))[-1].said.text == "enough"
        assert [len(asked.tool_use.tools) for asked in told.asked] == [1, 1, 0]
        assert all(asked.grammar is not None for asked in told.asked)
        await chats.work(lambda store: store.use(ME, chat, ChatSettings(functions="[")))
        with pytest.raises(BadRequest, match="no JSON in line 1"):
            await chats.ask(ME, chat, "", Said("?"))


async def test_where_no_answer_can_begin_after_a_call_one_says_why(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats, ChatSettings(functions=FUNCTIONS))
        calls(told, ("weather", "{}"))
        await chats.ask(ME, chat, "", Said("?"))
        found = await turns(chats, chat, 3)
        told.refusal = BadRequest("nothing serves")
        await chats.call(ME, chat, found[-1].id, CallAnswer(result="rain"))
        last = (await turns(chats, chat, 4))[-1]
        assert (last.state, last.said.note) == ("failed", "nothing serves")
