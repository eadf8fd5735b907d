"""Conversations that templates refuse as sent: they are merged, moved to the user's turn, or a message is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from together.errors import BadRequest
from together.requests import Message, ToolCall
from together.text.chat_template import ChatTemplate, culprit, forms

LOOP = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
FIRST_ONLY = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}"
    "{{ m.role[0] }}:{{ m.content }};{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + FIRST_ONLY
SILENT = "{% for m in messages if m.role != 'system' %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
ALTERNATING = (
    "{% set ns = namespace(before='') %}{% for m in messages %}"
    "{% if m.role == ns.before %}{{ raise_exception('twice') }}{% endif %}"
    "{% set ns.before = m.role %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
)


def turns(text: str) -> list[Message]:
    """`"s:A u:B"` as messages."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [Message(roles[part[0]], part[2:]) for part in text.split()]


@contextmanager
def counted(owner: object, name: str) -> Iterator[list[str]]:
    """Count the calls of a method."""
    calls: list[str] = []
    method = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        calls.append(name)
        return method(*arguments)

    setattr(owner, name, call)
    yield calls
    setattr(owner, name, method)


def rendered(source: str, messages: Sequence[Message]) -> str:
    with closing(ChatTemplate("m", {"default": source}, {})) as template:
        return template.render(messages).result()


@pytest.mark.parametrize(
    ("source", "sent", "text"),
    [
        (LOOP, "s:A s:B u:C", "s:A;s:B;u:C;"),  # a template that takes it gets it as it is
        (FIRST_ONLY, "s:A s:B u:C", "s:A\n\nB;u:C;"),
        (FIRST_ONLY, "s:A u:B a:C s:D u:E", "s:A;u:B;a:C;u:D\n\nE;"),
        (FIRST_ONLY, "u:B s:D", "u:B\n\nD;"),
        (NO_SYSTEM, "s:A u:B", "u:A\n\nB;"),
        (NO_SYSTEM, "s:A s:B u:C a:D u:E", "u:A\n\nB\n\nC;a:D;u:E;"),
        (NO_SYSTEM, "s:A", "u:A;"),
        (SILENT, "s:A u:B", "u:A\n\nB;"),  # left out without a word
        (SILENT, "u:B s:A a:C u:D", "u:B\n\nA;a:C;u:D;"),
        (ALTERNATING, "u:A u:B a:C", "u:A\n\nB;a:C;"),
        (ALTERNATING, "s:A u:B a:C a:D u:E", "s:A;u:B;a:C\n\nD;u:E;"),
    ],
)
def test_a_template_gets_a_form_that_it_takes(source: str, sent: str, text: str) -> None:
    assert rendered(source, turns(sent)) == text


def test_a_system_text_that_another_turn_quotes_is_still_seen_to_be_left_out() -> None:
    messages = [Message("system", "French"), Message("user", "I speak French and English")]
    assert rendered(SILENT, messages) == "u:French\n\nI speak French and English;"


def test_a_system_text_that_a_template_rewrites_is_not_taken_for_left_out() -> None:
    assert rendered("{% for m in messages %}{{ m.content | upper }};{% endfor %}", turns("s:abc u:d")) == "ABC;D;"


NEVER = "{{ raise_exception('never') }}"


@pytest.mark.parametrize(
    ("sent", "where"),
    [
        ("s:A u:B a:C s:D u:E", "messages.3"),
        ("u:A u:B", "messages.1"),
        ("s:A s:B u:C", "messages.1"),
        ("s:A u:B a:C u:D", "messages"),
    ],
)
def test_a_refusal_names_the_message(sent: str, where: str) -> None:
    with pytest.raises(BadRequest, match=f"^{where if '.' in where else 'the chat template'}.*never") as caught:
        rendered(NEVER, turns(sent))
    assert caught.value.param == where


@pytest.mark.parametrize("arguments", ["{", "[1]", '"x"', "null", '{"a": 1'])
def test_arguments_that_are_no_object_are_named_where_a_template_cannot_take_them(arguments: str) -> None:
    source = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | items | list }}"
    source += "{% endfor %}{% endfor %}{{ tools }}<tool_call>"
    calls = (ToolCall("1", "f", arguments),)
    talk = [Message("user", "Hi"), Message("assistant", "", tool_calls=calls), Message("tool", "ok", tool_call_id="1")]
    with pytest.raises(BadRequest, match="refuses") as caught:
        rendered(source, talk)
    assert caught.value.param == "messages.1"
    assert culprit([Message("user", "Hi"), Message("assistant", "", tool_calls=(ToolCall("1", "f", ""),))]) is None


messages_of = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.sampled_from(["A", "B", "C", "D"])),
    min_size=1,
)


@given(messages_of)
def test_no_form_loses_a_word_or_its_order_within_a_role(messages: list[Message]) -> None:
    whole = [message.content for message in messages]
    for form in forms(messages):
        said = [word for message in form for word in message.content.split("\n\n")]
        assert sorted(said) == sorted(whole)
        spoken = [m.content for m in messages if m.role == "assistant"]
        assert [w for m in form if m.role == "assistant" for w in m.content.split("\n\n")] == spoken
    last = list(forms(messages))[-1]
    assert all(before.role != after.role for before, after in pairwise(last))


def test_thousands_of_turns_cost_a_fixed_number_of_renders() -> None:
    """One request must not delay all others: it is rendered at most twice per form."""
    messages = [Message("system", f"{'ab' * 190}{i:05d}") for i in range(9000)] + [Message("user", "hi")]
    with (
        closing(ChatTemplate("m", {"default": SILENT}, {})) as template,
        counted(template._renderer, "render") as renders,
    ):
        text = template.render(messages).result()
    assert all(message.content in text for message in messages[::1000])
    assert len(renders) <= 8


# --- named templates --------------------------------------------------------------------------------------------------


def test_a_request_may_choose_one_of_the_models_templates_by_name() -> None:
    named = {"default": "D{{ messages[0].content }}", "rag": "R{{ messages[0].content }}"}
    with closing(ChatTemplate("m", named, {})) as template:
        assert template.render(turns("u:x")).result() == "Dx"
        assert template.render(turns("u:x"), (), "rag").result() == "Rx"
        for name in ("other", "{{ 7 * 7 }}" * 100):
            with pytest.raises(BadRequest, match=r"own templates \(default, rag\)") as caught:
                template.render(turns("u:x"), (), name).result()
            assert caught.value.param == "chat_template"
            assert len(str(caught.value)) < 400
