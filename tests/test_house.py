"""Rules of the whole house: the length of files, one meaning per class name, and what decisions may read."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.support.sizes import PROGRAM, ROOT, sources, too_long

MAY_READ_SETTINGS = ("together/head", "together/cluster", "together/desktop", "together/scripting", "together/settings")
TEXTS = {"cause", "message", "error", "reason", "waiting", "exception", "failure", "detail", "details"}


def test_no_file_is_too_long() -> None:
    assert too_long() == []


def test_a_public_class_name_has_one_meaning() -> None:
    places = defaultdict(list)
    for path in sources(*PROGRAM):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(ROOT).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_settings_are_read_at_the_edges_only() -> None:
    """What lies below is given what it needs, so that a test or a script may give it something else."""
    readers = []
    for path in sources(*PROGRAM):
        name = path.relative_to(ROOT).as_posix()
        if "load_settings(" in path.read_text(encoding="utf-8") and not name.startswith(MAY_READ_SETTINGS):
            readers.append(name)
    assert readers == []


def read_words(tree: ast.AST) -> Iterator[int]:
    """Lines that ask whether a text lies in an error, a cause or the like, equals one, or how one begins or ends."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, ops=[ast.In() | ast.NotIn()], comparators=[right]):
                found = _literal(left) and _is_message(right)
            case ast.Compare(left=left, ops=[ast.Eq() | ast.NotEq()], comparators=[right]):
                found = (_literal(left) and _is_message(right)) or (_literal(right) and _is_message(left))
            case ast.Call(func=ast.Attribute(value=value, attr="startswith" | "endswith")):
                found = _is_message(value)
            case _:
                continue
        if found:
            yield node.lineno


def _literal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != ""


def _is_message(node: ast.expr) -> bool:
    """An expression that holds the words of an error: `str(error)`, `status.cause`, `failure.text.lower()`."""
    match node:
        case ast.Call(func=ast.Name(id="str"), args=[argument]):
            return _is_message(argument) or _named(argument) in ("e", "exc", "err")
        case ast.Call(func=ast.Attribute(value=value, attr="lower" | "casefold" | "strip")):
            return _is_message(value)
    return _named(node) in TEXTS


def _named(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_no_decision_reads_the_words_of_a_message() -> None:
    found = []
    for path in sources(*PROGRAM):
        text = path.read_text(encoding="utf-8")
        for number in read_words(ast.parse(text)):
            line = text.splitlines()[number - 1].strip()
            found.append(f"{path.relative_to(ROOT).as_posix()}:{number}: {line}")
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        'if "ran out of memory" in cause: pass',
        'if "ran out of memory" in str(error): pass',
        'if "memory" not in status.cause.lower(): pass',
        'if str(error).startswith("node"): pass',
        'if failure.cause == "gone": pass',
    ],
)
def test_such_a_line_is_found(line: str) -> None:
    assert list(read_words(ast.parse(line))) == [1]


@pytest.mark.parametrize("line", ['if "a" in names: pass', "if cause: pass", 'if cause != "": pass', "x = f'{cause}'"])
def test_other_lines_are_not(line: str) -> None:
    assert list(read_words(ast.parse(line))) == []
