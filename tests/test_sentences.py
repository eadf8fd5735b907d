"""The table of sentences: every code that the program says is in it, with exactly the values that its text asks for."""

import ast
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

from tests.support.sizes import sources
from together import errors
from together.errors import BadPlan, BadRequest, NotServing, StageLost
from together.sentences import _ENGLISH, NOTHING, Sentence, say, verbatim
from together.view import Serving, ServingState

ROOT = Path(__file__).resolve().parent.parent
# The rooms whose errors carry a template and values.
TEMPLATES = (
    "backends",
    "together/api",
    "together/cluster",
    "together/desktop",
    "together/engine",
    "together/head",
    "together/models",
    "together/planning",
    "together/ring",
    "together/scripting",
    "together/text",
    "together/trust",
    "together/weights",
    "webui",
)


def said() -> dict[str, list[tuple[str, set[str]]]]:
    """Code → where it is said and with the names of which values; calls of `say` with a literal code alone."""
    found: dict[str, list[tuple[str, set[str]]]] = {}
    sources = [path for room in ("together", "backends", "webui") for path in (ROOT / room).rglob("*.py")]
    for path in sources:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports = [
            node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "together.sentences"
        ]
        if not any(alias.name == "say" for node in imports for alias in node.names):
            continue
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id="say"), args=[ast.Constant(value=str(code))], keywords=keywords):
                    place = f"{path.relative_to(ROOT)}:{node.lineno}"
                    found.setdefault(code, []).append((place, {keyword.arg or "**" for keyword in keywords}))
    return found


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def test_every_sentence_has_its_text_and_every_text_its_sentence() -> None:
    calls = said()
    assert set(calls) == set(_ENGLISH) - {"", "verbatim"}
    for code, places in calls.items():
        for place, values in places:
            asked = fields(_ENGLISH[code]) & values if "**" in values else fields(_ENGLISH[code])
            assert values - {"**"} == asked, f"{place} says {code!r} with other values"


def test_values_are_written_by_their_formats() -> None:
    limit = say("memory_limit", node="a", sizes=(10**9, 9 * 10**8), device="cpu", cause="x", minutes=1, quoted="a")
    assert "with 1.0 GB on cpu" in str(limit)
    assert "at most 0.9 GB of it for another 1 minute or" in str(limit)
    gone = say("last_plan_gone", model="toy", shares=(say("share", node="a", layers="0:3"), "b"), gone=("a", "b"))
    assert str(gone).startswith("Last: toy on a 0:3, b. a and b are not here now")


def test_a_sentence_is_a_value() -> None:
    assert say("silent_stage", seconds=45.0) == say("silent_stage", seconds=45.0)
    assert len({say("cut_link"), say("cut_link"), NOTHING}) == 2
    assert not NOTHING
    assert not verbatim("")
    assert str(NOTHING) == ""


def test_a_stranger_s_braces_are_text() -> None:
    cause = verbatim("{model} {0} {text.__class__}")
    assert str(say("not_changed", error=cause)) == "the plan was not changed: {model} {0} {text.__class__}"


def test_errors_offer_their_sentence() -> None:
    known, plain = NotServing(say("no_last_plan")), StageLost("it is gone", "why", 0)
    assert known.sentence == say("no_last_plan")
    assert str(known) == str(known.sentence)
    assert plain.sentence == Sentence("it is gone")


def test_the_message_of_an_error_is_a_template_and_its_values() -> None:
    gap = BadPlan("layer {layer} is missing; add it to {nodes:and}", layer=3, nodes=("a", "b{c}"))
    assert str(gap) == "layer 3 is missing; add it to a and b{c}"
    assert gap.sentence.values == (("layer", 3), ("nodes", ("a", "b{c}")))
    assert str(BadPlan("a stranger's {text} without values")) == "a stranger's {text} without values"
    assert str(BadPlan("waits")) == "waits"  # a message is no code of the tables
    assert str(BadRequest("{field} is missing", "messages", field="role")) == "role is missing"


def raised() -> Iterator[tuple[str, ast.Call]]:
    """Every place in the rooms named above that makes an error of ours, with the call."""
    names = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    for room in TEMPLATES:
        for path in sources(room):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                    yield f"{path.relative_to(ROOT).as_posix()}:{node.lineno}", node


def test_errors_carry_templates_with_exactly_their_values() -> None:
    """A message that is put together where it is raised has one language for good."""
    own = {"param", "cause", "index", "stage", "joining", "reachable", "fault", "node", "retry_after", "at_least"}
    for place, call in raised():
        values = {keyword.arg or "**" for keyword in call.keywords} - own
        match call.args:
            case [ast.JoinedStr() | ast.BinOp(), *_]:
                pytest.fail(f"{place}: the message is a text put together; give a template and values")
            case [ast.Constant(value=str(text)), *_] if "**" not in values:
                assert values == (fields(text) if values else set()), place


@pytest.mark.parametrize("state", ServingState)
def test_every_state_has_a_sentence(state: ServingState) -> None:
    assert isinstance(Serving(state, "toy", cause=verbatim("no memory")).sentence, Sentence)
    assert str(Serving(state, "toy").sentence)
