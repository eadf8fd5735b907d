"""Every sentence that a person can meet, read as a person would: tables, errors, help texts, and all text in the code.

The page's texts are read by tests/webui, those of a running app's commands by tests/desktop.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
import typer

from tests.support.reading import RULES, faults
from tests.support.sizes import sources
from tests.test_sentences import raised
from together import commands
from together.desktop.bench.cli import app as bench_app
from together.desktop.cli import app
from together.sentences import _ENGLISH, NOTHING, Sentence, Value, say, template

ROOT = Path(__file__).resolve().parent.parent
SIZES = (9_100_000_000, 7_800_000_000)
# What the fields of these names hold; others hold their name, with an X before it.
VALUES: dict[str, Value] = {
    "node": "studio",
    "name": "mini",
    "machine": "studio",
    "a": "studio",
    "b": "mini",
    "layers": "0:15",
    "asked": "0:15",
    "model": "toy",
    "shares": (say("share", node="studio", layers="0:15"), say("share", node="mini", layers="15:28")),
    "links": (say("link", a="studio", b="mini"), say("link", a="mini", b="laptop")),
    "gifts": (say("gift", count=3, node="mini"), say("gift", count=1, node="laptop")),
    "gives": (say("more", count=3, node="mini"), say("more", count=1, node="laptop")),
    "takes": (say("take", count=3, node="mini"), say("take", count=1, node="laptop")),
    "index": 1,
    "stage": say("stage", node="studio", index=1, layers="0:15"),
    "source": say("this_machine"),
}
# Fields of the table that hold another sentence of it, by its code; without one they are empty.
PARTS = {
    "head": "lm_head",
    "slowest": "cost_slowest",
    "turns": "cost_turns",
    "missing": "missing_bytes",
    "sizing": "sized",
    "busy": "busy",
    "done": "done",
    "page": "app_page",
    "remedy": "give",
    "step": "step_measuring",
    "ready": "ready",
    "state": "loading",
    "proof": "kernel_log",
    "let_go": "let_go",
}
# What happens, as fields named `cause`, `error` and the like tell it; and the sentences that tell it on to others.
LEAVES = (
    "silent_stage cut_link node_silent node_stopped node_restarted killed ended_by_signal no_progress too_large".split()
)
OUTER = "node_lost stage_failed".split()
TELLS = ("cause", "error", "why", "reason", "said", "state", "waits", "waiting")


def fields_of(text: str) -> dict[str, list[str]]:
    """Field → its formats."""
    found: dict[str, list[str]] = {}
    for _, name, spec, _ in Formatter().parse(text):
        if name is not None:
            found.setdefault(name, []).append(spec or "")
    return found


def value_of(name: str, specs: list[str], count: int) -> Value:
    words = {spec.partition(" ")[0] for spec in specs}
    if "sizes" in words:
        return SIZES
    if name in VALUES:
        return VALUES[name]
    if words & {"and", "all", "lines"}:
        return ("studio", "mini") if count > 1 else ("studio",)
    if "plural" in words:
        return count
    if "size" in words:
        return SIZES[0]
    return 3.5 if words & {"ms"} or any(re.search(r"[fg%,d]$", spec) for spec in specs) else f"X{name}"


def sentence_of(code: str, count: int = 2, /, **values: Value) -> Sentence:
    """A sentence of the table, or a template, with representative values where none are given."""
    parts = PARTS if code in _ENGLISH else {}
    found = {
        name: sentence_of(parts[name], count) if name in parts else value_of(name, specs, count)
        for name, specs in fields_of(_ENGLISH.get(code, code)).items()
    }
    found |= {name: value for name, value in values.items() if name in found and not isinstance(found[name], tuple)}
    return Sentence(code, tuple(found.items()))


def causes() -> Iterator[Sentence]:
    """What is told by others: alone, told on once, and by a stage, as far as the sentence about all of a model."""
    alone = [sentence_of(code) for code in LEAVES]
    yield from alone
    for outer in OUTER:
        told = [sentence_of(outer, cause=cause) for cause in alone]
        yield from told
        yield from (sentence_of("stage_failed", cause=cause) for cause in told)
        yield from (sentence_of("no_room", error=sentence_of("stage_failed", cause=cause)) for cause in told)


def readings(code: str) -> Iterator[str]:
    """A sentence with one and with several of what it counts, and with everything that it may tell on."""
    yield from (str(sentence_of(code, count)) for count in (1, 2))
    if code in _ENGLISH:
        yield str(sentence_of(code, **dict.fromkeys(PARTS, NOTHING)))
    if any(name in TELLS for name in fields_of(_ENGLISH.get(code, code))):
        told = [] if code in OUTER else causes()  # those are told on already
        yield from (str(sentence_of(code, **dict.fromkeys(TELLS, cause))) for cause in told)


def wrong(code: str) -> list[str]:
    return [f"{code}: {fault}" for text in readings(code) for fault in faults(text)]


def test_the_sentences_of_the_table_read_well() -> None:
    assert [fault for code in _ENGLISH for fault in wrong(code)] == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("node node {node} is lost", "a doubled word"),
        ("{node} is lost: lost: {cause}", "a doubled word"),
        ("{node} holds layers 0–14", "another notation of layers"),
        ("{node} holds layers 0-14 of {model}", "another notation of layers"),
        ("layers 0 to 14 are on {node}", "another notation of layers"),
        ("0.0 kB of 23 GB", "a number of nothing"),
        ("it takes None layers", "a value that was never there"),
        ("for 4 people", "people"),
        ("WARNING: {node} is slow", "a log's prefix"),
        ("ERROR together.head.head: {node} is slow", "a log's prefix"),
        ("{node}  is slow", "two spaces"),
        ("{node} is slow..", "doubled punctuation"),
        ("{node} is slow; ; {cause}", "doubled punctuation"),
        ("9f86d081884c7d65 is slow", "an id instead of a name"),
        ("start it with: together node", "a command as nobody types it"),
        ("{node} does not answer (Socket closed)", "a library's own words"),
    ],
)
def test_a_sentence_that_reads_badly_is_found(text: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_ENGLISH, "bad", text)
    found = wrong("bad")
    assert found
    assert all(line.startswith(f"bad: {rule}, ") for line in found)


def templates() -> Iterator[tuple[str, str]]:
    """Where an error, or a part of one, is made, with its text."""
    for place, call in raised():
        match call.args:
            case [ast.Constant(value=str(text)), *_] if call.keywords:
                yield place, text
    for path in sources("together", "backends", "webui", "installer"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="template"), args=[ast.Constant(value=str(text))]) if " " in text:
                    yield f"{path.relative_to(ROOT).as_posix()}:{node.lineno}", text


def test_the_errors_of_the_program_read_well() -> None:
    found = list(templates())
    assert len(found) > 150
    assert [f"{place}: {fault}" for place, text in found for shown in readings(text) for fault in faults(shown)] == []


def helps(command: Any, name: str) -> Iterator[tuple[str, str]]:
    context = typer.Context(command, info_name=name)
    for parameter in command.params:
        yield f"{name} {parameter.name}", (getattr(parameter, "help", None) or "").replace("  [default", " [default")
    yield name, command.help or ""
    for inner in getattr(command, "commands", {}).values():
        yield from helps(inner, f"{name} {inner.name}")
    assert context.command is command


def test_the_help_texts_read_well() -> None:
    found = [*helps(typer.main.get_command(app), "launch.py"), *helps(typer.main.get_command(bench_app), "bench")]
    found += [("help", line) for line in commands.LINES.values()]
    assert len(found) > 100
    assert [f"{name}: {fault}" for name, text in found for fault in faults(text)] == []


# Text in code is put together and filled elsewhere, so only what is wrong in any part of a text is looked for.
ANYWHERE = {"another notation of layers", "people", "a library's own words", "a command as nobody types it"}


def texts() -> Iterator[tuple[str, str]]:
    """Every text in the program's code that is no docstring, and the page's own."""
    for path in [*sources("together", "backends", "webui", "installer"), ROOT / "launch.py"]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                yield f"{path.relative_to(ROOT).as_posix()}:{node.lineno}", node.value
    for path in sorted((ROOT / "webui").rglob("*.js")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            yield f"{path.relative_to(ROOT).as_posix()}:{number}", line.partition("//")[0]


def test_no_text_in_the_code_holds_what_none_may() -> None:
    apart = tuple(set(RULES) - ANYWHERE)
    assert [f"{place}: {fault}" for place, text in texts() for fault in faults(text, apart)] == []


def test_representative_values_are_filled_in() -> None:
    assert str(sentence_of("takes_all")) == "studio takes all 0:15 layers: the whole model fits on it"
    assert str(sentence_of("{count} {count:plural node|nodes} of {Xnodes}")).startswith("2 nodes of X")
    assert faults(str(template("{a} and {b}", a="studio", b="mini"))) == []
