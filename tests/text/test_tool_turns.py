"""Conversations with tools for templates: as they read them, or told of in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.support.tokenizers import CHATML, byte_level, write_text_files
from together.requests import Message, Tool, ToolCall
from together.text.tokenizer import TextModel
from together.text.tool_formats import HERMES
from together.text.tool_turns import one_by_one, turns

TOOLS = (
    Tool("f", "Does it.", {"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string"}}}),
    Tool("g"),
)
ASKED = Message("user", "Do it")
CALLED = Message("assistant", "", tool_calls=(ToolCall("call_1", "f", '{"a": 1}'), ToolCall("call_2", "g", "")))
TALK = (ASKED, CALLED, Message("tool", "one", tool_call_id="call_1"), Message("tool", "two", tool_call_id="call_2"))


def rendered(folder: Path, template: str, messages: Sequence[Message], tools: Sequence[Tool] = TOOLS) -> str:
    model = TextModel.open(write_text_files(folder, byte_level(), template))
    return model.template.render(messages, tools).result()


def test_a_template_that_knows_tools_gets_them_as_dictionaries(tmp_path: Path) -> None:
    template = (
        "{% for t in tools or [] %}[{{ t.function.name }} {{ t.function.parameters.type }}]{% endfor %}"
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}"
        "<tool_call>{{ c.function.name }}{% for k, v in c.function.arguments | items %} {{ k }}={{ v + 1 }}{% endfor %}"
        "{% endfor %}{% if m.role == 'tool' %}({{ m.name }} {{ m.tool_call_id }}){% endif %};{% endfor %}"
    )
    wanted = "user:Do it;assistant:<tool_call>f a=2<tool_call>g;tool:one(f call_1);tool:two(g call_2);"
    assert rendered(tmp_path, template, TALK) == "[f object][g object]" + wanted
    assert rendered(tmp_path, template, TALK, ()) == wanted


def test_a_template_that_takes_one_call_in_a_turn_gets_them_one_by_one(tmp_path: Path) -> None:
    template = (
        "{{ tools | length }}{% for m in messages %}{{ m.role }}:{{ m.content }}"
        "{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one') }}{% endif %}"
        '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": }{% endif %};{% endfor %}'
    )
    said = rendered(tmp_path, template, TALK)
    f = 'assistant:{"name": "f", "parameters": };'
    assert said == f"2user:Do it;{f}tool:one;{f.replace('f', 'g')}tool:two;"


def test_results_that_belong_to_no_call_are_kept() -> None:
    stray = Message("tool", "stray", tool_call_id="call_9")
    told = [message.content for message in one_by_one((*TALK[:2], stray, *TALK[2:], ASKED))]
    assert told == ["Do it", "", "one", "", "two", "stray", "Do it"]


def test_ids_are_made_short_where_the_template_asks_for_it(tmp_path: Path) -> None:
    template = (
        "{% for t in tools or [] %}{% endfor %}[TOOL_CALLS]{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.id }};{% endfor %}{% if m.role == 'tool' %}{{ m.tool_call_id }};{% endif %}{% endfor %}"
    )
    short = Message("tool", "x", tool_call_id="abcDEF123")
    ids = rendered(tmp_path, template, (*TALK, short)).removeprefix("[TOOL_CALLS]").split(";")
    assert ids[:2] == ids[2:4]
    assert ids[0] != ids[1]
    assert all(len(each) == 9 and each.isalnum() for each in ids[:5])
    assert ids[4] == "abcDEF123"


def test_arguments_that_are_no_object_stay_text(tmp_path: Path) -> None:
    template = "{% if tools %}{% endif %}<tool_call>{{ messages[0].tool_calls[0].function.arguments }}"
    broken = Message("assistant", "", tool_calls=(ToolCall("c", "f", '{"a": '),))
    assert rendered(tmp_path, template, [broken]) == '<tool_call>{"a": '


def test_a_template_of_its_own_for_tools_is_used_for_them(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "D{{ messages[0].content }}"},
        {"name": "tool_use", "template": "T{{ tools | length }}<tool_call>"},
    ]
    write_text_files(tmp_path / "one", byte_level(), None, chat_template=named)
    write_text_files(tmp_path / "two", byte_level(), "D{{ messages[0].content }}")
    more = tmp_path / "two" / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text(named[1]["template"], encoding="utf-8")
    for folder in ("one", "two"):
        template = TextModel.open(tmp_path / folder).template
        assert template.render([ASKED]).result() == "DDo it"
        assert template.render([ASKED], TOOLS).result() == "T2<tool_call>"
        assert template.tool_format == HERMES


def test_a_template_that_offers_tools_and_knows_no_calls_gets_them_in_the_text(tmp_path: Path) -> None:
    template = "{{ tools | length }}<|tool_call|>{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    calls = '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]'
    said = rendered(tmp_path, template, TALK)
    assert said == f"2<|tool_call|>user:Do it;assistant:{calls};tool:one;tool:two;"


def test_results_go_into_the_turn_of_their_calls_where_the_template_looks_for_them_there(tmp_path: Path) -> None:
    template = (
        "{{ tools | length }}<|tool_call><tool_call|>{% for m in messages %}{{ m.role }}:{{ m.tool_calls | length }}"
        "{% for r in m.tool_responses or [] %}({{ r.name }} {{ r.response | tojson }}){% endfor %};{% endfor %}"
    )
    talk = (*TALK[:3], Message("tool", '{"x": 1}', tool_call_id="call_2"), ASKED)
    said = rendered(tmp_path / "a", template, talk)
    assert said == '2<|tool_call><tool_call|>user:0;assistant:2(f "one")(g {"x": 1});user:0;'
    said = rendered(tmp_path / "b", template.replace("tool_responses", "others"), talk)
    assert said == "2<|tool_call><tool_call|>user:0;assistant:2;tool:0;tool:0;user:0;"


def test_a_template_that_knows_calls_and_no_tools_is_told_of_them_in_its_own_format(tmp_path: Path) -> None:
    template = (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' and message['content'] is none %}!{% endif %}"
        "{{ message.role }}:{{ message.content }}{% for call in message.tool_calls or [] %}<｜tool▁calls▁begin｜>"
        "{{ call.function.name + call.function.arguments }}{% endfor %}~{% endfor %}"
    )
    system, *turns = rendered(tmp_path, template, (ASKED, replace(CALLED, content="Yes."), *TALK[2:])).split("~")
    assert system.startswith("system:You can call the functions below")
    assert "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>the function's name<｜tool▁sep｜>{" in system
    assert turns[:2] == ["user:Do it", "assistant:Yes."]
    calls = '<｜tool▁calls▁begin｜>f{"a": 1}<｜tool▁calls▁begin｜>g{}'
    assert turns[2:] == [f"!assistant:None{calls}", "tool:one", "tool:two", ""]


# --- templates that know no tools -------------------------------------------------------------------------------------


def test_without_tools_in_the_template_a_system_text_tells_of_them(tmp_path: Path) -> None:
    said = rendered(tmp_path, CHATML, (Message("system", "Be brief."), *TALK, Message("user", "And?")))
    system, user, assistant, results, *_ = said.split("<|im_start|>")[1:]
    assert system.startswith("system\nBe brief.\n\nYou can call")
    assert '{"name": "f", "description": "Does it.", "parameters": {' in system
    assert user == "user\nDo it<|im_end|>\n"
    calls = ('{"name": "f", "arguments": {"a": 1}}', '{"name": "g", "arguments": {}}')
    assert assistant == "assistant\n" + "\n".join(f"<tool_call>\n{c}\n</tool_call>" for c in calls) + "<|im_end|>\n"
    answers = "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in ("one", "two"))
    assert results == f"user\n{answers}\nAnd?<|im_end|>\n"
    assert rendered(tmp_path, CHATML, [ASKED], ()) == "<|im_start|>user\nDo it<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_without_a_system_turn_is_told_in_the_users(tmp_path: Path) -> None:
    template = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + (
        "{{ m.role }}:{{ m.content }};{% endfor %}"
    )
    said = rendered(tmp_path, template, [ASKED])
    assert said.startswith("user:You can call")
    assert said.endswith("\n\nDo it;")
    said = rendered(tmp_path, template, [Message("system", "x"), ASKED])
    assert said.startswith("user:x\n\nYou can call")
    assert said.endswith("\n\nDo it;")


def test_calls_in_a_way_that_is_not_known_are_told_of_in_words(tmp_path: Path) -> None:
    template = "{{ tools | tojson }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    said = rendered(tmp_path, template, [ASKED])
    assert said.startswith("nullsystem:You can call")


def test_results_are_named_by_the_last_call_of_their_id() -> None:
    """Clients number the calls of each answer anew."""
    said: list[Message] = []
    for name, result in (("weather", "sunny"), ("clock", "noon")):
        said += [Message("assistant", "", tool_calls=(ToolCall("call_0", name, "{}"),))]
        said.append(Message("tool", result, tool_call_id="call_0"))
    names = [turn["name"] for turn in turns(said, HERMES, "") if turn["role"] == "tool"]
    assert names == ["weather", "clock"]
