"""Chat templates beyond their limits: each fails alone, by its model's name, and the next conversation is rendered."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, until
from tests.support.patience import PATIENCE
from tests.support.tokenizers import byte_level, write_text_files
from together.errors import BadRequest, BrokenModel, NotServing, QueueFull
from together.requests import Message
from together.text import rendering
from together.text.chat_template import ChatTemplate
from together.text.tokenizer import MOST_SOURCE, TextModel

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HELLO = [Message("user", "hello")]
MOST_GROWTH = 300 * 10**6  # bytes


def said(text: str) -> list[Message]:
    return [Message("user", text)]


def on(word: str, body: str) -> str:
    """A template that renders the message, but runs `body` for the message `word`."""
    return "{% if messages[0].content == '" + word + "' %}" + body + "{% else %}<{{ messages[0].content }}>{% endif %}"


@contextmanager
def opened(source: str) -> Iterator[ChatTemplate]:
    template = ChatTemplate("evil", {"default": source}, {})
    template.warm()
    try:
        yield template
    finally:
        template.close()


def child_of(template: ChatTemplate) -> psutil.Process:
    template._renderer._line.submit(int).result()  # what is before it in line is done
    child = template._renderer._child
    assert child is not None
    return psutil.Process(child._process.pid)


CHILD = "together.text.template_process"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that computes without end is given up after a second of a processor."""
    monkeypatch.setattr(rendering, "RENDER", rendering.Limit(1.0, 5.0))


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Collects the sizes of this process, beyond its size at the start, and of its children."""
    own, stop = psutil.Process(), threading.Event()
    before, seen = own.memory_info().rss, [0]

    def watch() -> None:
        while not stop.wait(0.02):
            for process in (own, *own.children()):
                try:
                    if process != own and CHILD not in process.cmdline():
                        continue  # a fork of this process that is not the child yet: it shares all of our memory
                    size = process.memory_info().rss
                except psutil.Error:
                    continue
                seen.append(size - before if process == own else size)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


BOMBS = {
    "endless": (LOOP, "too much time"),
    "power": ("{% set x = 9 ** 9 + messages | length %}{{ x ** x }}", "too much time"),  # no thread of Python runs
    "multiplied": ("{{ messages[0].content * 10**9 }}", "memory"),
    "folded": ("{{ 'a' * 10**10 }}", "memory"),  # Jinja computes constants while it compiles
    "format": ("{{ '%3000000000d' % 1 }}", "memory"),
    "format method": ("{{ '{:>3000000000}'.format(messages[0].content) }}", "memory"),
    "ljust": ("{{ messages[0].content.ljust(3000000000) }}", "memory"),
    "center": ("{{ messages[0].content | center(3000000000) }}", "memory"),
    "joined": ("{{ (range(99999) | list * 1000) | join('xxxxxxxx') }}", "memory"),
    "doubled": (
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "memory",
    ),
    "output": (LOOP.replace("{% endfor %}", "x" * 999 + "{% endfor %}"), "letters"),
    "recursion": ("{% macro f(x) %}{{ f(x + 1) ~ f(x + 2) }}{% endmacro %}{{ f(1) }}", "calls itself"),
    "attributes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "globals": ("{{ cycler.__init__.__globals__.os.getcwd() }}", "unsafe"),
    "long words": ("{{ raise_exception('a' * 10**6) }}", "refuses this conversation: a{200}…"),
}


ALIKE = ("format", "format method", "ljust", "center", "joined", "globals")  # others come to the same limit


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if name in ALIKE else ()) for name in BOMBS]
)
def test_a_conversation_that_takes_too_much_is_refused_alone(name: str, request: pytest.FixtureRequest) -> None:
    body, reason = BOMBS[name]
    if reason == "too much time":
        request.getfixturevalue("hasty")
    with opened(on("bomb", body)) as template, watched_memory() as sizes:
        assert template.render(HELLO).result() == "<hello>"
        began = time.monotonic()
        with pytest.raises(BadRequest, match=f"chat template of evil .*{reason}") as caught:
            template.render(said("bomb")).result()
        assert time.monotonic() - began < PATIENCE
        assert caught.value.param == "messages"
        assert len(str(caught.value)) < 400
        assert template.render(HELLO).result() == "<hello>"
    print(f"{name}: {max(sizes) / 1e6:.0f} MB")
    assert max(sizes) < MOST_GROWTH


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", "nested too deeply"),
        ("{{ " + "not " * 50_000 + "1 }}", "nested too deeply"),
        ("{% if x %}" * 110 + "{% endif %}" * 110, "does not parse|nested too deeply"),
        ("{{ (9 ** 9) ** (9 ** 9) }}", "too much time"),
        ("{{ 1 | nofilter }}", "does not parse.*nofilter"),
    ],
    ids=["brackets", "not", "ifs", "power", "filter"],
)
def test_a_template_that_cannot_be_compiled_is_a_broken_model(
    source: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "too much time":
        monkeypatch.setattr(rendering, "COMPILE", rendering.Limit(1.0, PATIENCE))
    with watched_memory() as sizes, pytest.raises(BrokenModel, match=f"chat template of evil .*({reason})"):
        ChatTemplate("evil", {"default": source}, {})
    assert max(sizes) < MOST_GROWTH


@pytest.mark.usefixtures("hasty")
async def test_requests_behind_a_bomb_are_rendered_and_the_loop_runs_meanwhile() -> None:
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.05)
            beats += 1

    with opened(on("bomb", LOOP)) as template:
        beating = asyncio.create_task(beat())
        words = ["a", "bomb", "b", "c"]
        found = await asyncio.gather(
            *(asyncio.wrap_future(template.render(said(word))) for word in words), return_exceptions=True
        )
        beating.cancel()
    assert isinstance(found.pop(1), BadRequest)
    assert found == ["<a>", "<b>", "<c>"]
    assert beats > 10


async def test_a_request_that_waited_too_long_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "LONGEST_WAIT", 0.5)
    with opened(on("bomb", LOOP)) as template:
        child_of(template)
        bomb = asyncio.wrap_future(template.render(said("bomb")))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await asyncio.wrap_future(template.render(HELLO))
        with pytest.raises(BadRequest):
            await bomb
        assert await asyncio.wrap_future(template.render(HELLO)) == "<hello>"


@pytest.mark.usefixtures("hasty")
def test_a_process_that_somebody_kills_is_replaced() -> None:
    with opened(on("bomb", LOOP)) as template:
        for _ in range(3):
            first = child_of(template)
            first.kill()
            assert template.render(HELLO).result() == "<hello>"
            assert child_of(template) != first
        child = child_of(template)
        bomb = template.render(said("bomb"))
        spent = child.cpu_times().user
        until(lambda: child.cpu_times().user > spent + 0.1, PATIENCE, "it renders")
        child.kill()  # during a request, which is tried again
        with pytest.raises(BadRequest, match="too much time"):
            bomb.result()


def test_closing_ends_what_is_rendered_and_the_next_request_starts_again() -> None:
    template = ChatTemplate("evil", {"default": on("bomb", LOOP)}, {})
    child = template._renderer._child
    assert child is not None
    assert not child.alive  # a model that is only looked at keeps no process
    template.warm()
    process = child_of(template)
    bomb, behind = (template.render(said(word)) for word in ("bomb", "b"))
    until(bomb.running, PATIENCE, "it is rendered")
    template.close()
    for request in (bomb, behind):
        with pytest.raises(NotServing, match="unloaded"):
            request.result(PATIENCE)
    assert not process.is_running()
    assert template.render(HELLO).result() == "<hello>"
    last = child_of(template)
    del template, request, bomb, behind, child
    gc.collect()
    until(lambda: not last.is_running(), PATIENCE, "a template that nobody has ends its process")


@pytest.mark.parametrize(
    "body",
    [
        *(pytest.param(body, marks=pytest.mark.full) for body in ("", LOOP)),
        "{% set x = 9 ** 9 + messages | length %}{{ x ** x }}",
    ],
)
def test_the_process_ends_with_a_parent_that_was_killed(body: str) -> None:
    code = """
import sys
from together.text.chat_template import ChatTemplate
from together.requests import Message
from together.text import rendering
rendering.RENDER = rendering.Limit(60.0, 6.0)
template = ChatTemplate("evil", {"default": "x" + sys.argv[1]}, {})
template.warm()
template._renderer.submit(lambda: None).result()
print(template._renderer._child._process.pid, flush=True)
template.render([Message("user", "hello")]).result()
input()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code, body], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    if body:
        until(lambda: child.cpu_times().user > 0.3, PATIENCE, "it renders")
    parent.kill()
    parent.communicate()
    until(lambda: not child.is_running(), PATIENCE, "the child is gone")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals for other processes")
def test_a_process_that_is_frozen_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "RENDER", rendering.Limit(2.0, 0.5))
    with opened(on("bomb", LOOP)) as template:
        child_of(template).send_signal(signal.SIGSTOP)
        with pytest.raises(BadRequest, match="too much time"):
            template.render(said("x" * 500_000)).result()  # more than a pipe holds
        assert template.render(HELLO).result() == "<hello>"


def test_a_long_template_of_macros_is_compiled_once() -> None:
    macro = "{% macro mN(x, y=1) %}{% if x == N %}a{{ x }}b{% else %}{{ y | trim }}{% endif %}{% endmacro %}\n"
    source = "".join(macro.replace("N", str(i)) for i in range(500)) + " " * 360_000 + "{{ m7(7) }}"
    assert len(source) > 400_000
    with opened(source) as template:
        child = child_of(template)
        compiled = child.cpu_times().user
        for _ in range(10):
            assert template.render(HELLO).result().endswith("a7b")
        assert child_of(template) == child
        spent = child.cpu_times().user - compiled
    print(f"compiled in {compiled:.1f} s of the processor, 10 renderings in {spent:.2f} s")
    assert spent < compiled


def test_variables_and_texts_arrive_as_they_are() -> None:
    words = ["é🗼", "\ud83d half", "\ud83d\ude00", "a\nb\r\u2028", '"\\', "\x00"]
    values = {"numbers": [2**80, 0.1, -0.0, math.inf], "none": None, "yes": True}
    source = "{{ messages[0].content }}|{{ numbers }}|{{ none }}|{{ yes }}|{{ numbers | tojson }}"
    with opened(source) as template:
        for word in words:
            wanted = f"{word}|{values['numbers']}|None|True|{json.dumps(values['numbers'])}"
            assert template.render(said(word), **values).result() == wanted
        with pytest.raises(BadRequest, match="cannot be given to the chat template"):
            template.render(HELLO, numbers=object()).result()
        deep: list[object] = []
        for _ in range(10_000):
            deep = [deep]
        with pytest.raises(BadRequest, match="recursion"):
            template.render(HELLO, numbers=deep).result()


# --- what is found in a folder ----------------------------------------------------------------------------------------


def test_a_template_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    write_text_files(tmp_path / "large", byte_level(), "{# " + "x" * 25_000_000 + " #}")
    with (
        watched_memory() as sizes,
        pytest.raises(BrokenModel, match=f"large has 25000006 bytes, more than {MOST_SOURCE};"),
    ):
        TextModel.open(tmp_path / "large")
    assert max(sizes) < 10**8


def test_retiring_ends_the_process_once_what_was_asked_is_rendered() -> None:
    """A model that is read again still renders the conversations that wait for the old template."""
    template = ChatTemplate("m", {"default": "{{ messages[0].content }}"}, {})
    template.warm()
    child = child_of(template)
    asked = [template.render(said(word)) for word in ("a", "b", "c")]
    template.retire()
    assert [request.result() for request in asked] == ["a", "b", "c"]
    until(lambda: not child.is_running(), PATIENCE, "the child has left")
