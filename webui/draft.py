"""A split that a user looks at and edits, and what the page shows of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from together.planning.explain import Infeasible
from together.planning.mend import fits, most_of
from together.planning.problem import Assignment, NodeProfile, Problem, Split
from together.planning.report import PlanReport
from together.planning.request import PlanRequest, rescore
from together.sentences import Sentence, say
from together.types import LayerRange
from together.wording import count_text

Shown = dict[str, Any]  # what split.js draws; all texts in it are drawn as text
MOST_DIGITS = 6  # of a layer count


@dataclass(frozen=True, slots=True)
class Draft:
    """The last recommendation. Edits are scored against its problem, so no node is asked again."""

    model: str  # as it was chosen; empty: the one in service then
    name: str  # of the model, for a person
    request: PlanRequest
    answer: PlanReport

    @property
    def problem(self) -> Problem:
        return self.answer.problem

    @property
    def machines(self) -> tuple[NodeProfile, ...]:
        """In ring order, then those that got nothing; a head's machine without a node is none."""
        used = self.answer.split.nodes
        rest = (node for node in self.problem.nodes if node.name not in used and node.max_layers != 0)
        return (*map(self.problem.node, used), *rest)

    @property
    def counts(self) -> tuple[str, ...]:
        """The recommended number of layers of each machine, as its field shows it."""
        taken = {share.node: len(share.layers) for share in self.answer.split.shares}
        return tuple(str(taken.get(machine.name, 0)) for machine in self.machines)


@dataclass(frozen=True, slots=True)
class Edited:
    """A draft with the layer counts as they stand in their fields, one for each machine."""

    draft: Draft
    counts: tuple[str, ...]

    @property
    def is_changed(self) -> bool:
        return self.ranges != Edited(self.draft, self.draft.counts).ranges

    @property
    def numbers(self) -> tuple[int, ...]:
        """The counts; 0 for what is no number."""
        return tuple(_count(text) or 0 for text in self.counts)

    @property
    def ranges(self) -> tuple[LayerRange | None, ...]:
        """Each machine's layers, one run after the other; None for none, and for what is no number."""
        found: list[LayerRange | None] = []
        reached = 0
        for count in self.numbers:
            found.append(LayerRange(reached, reached + count) if count else None)
            reached += count
        return tuple(found)

    @property
    def split(self) -> Split:
        pairs = zip(self.draft.machines, self.ranges, strict=True)
        return Split(tuple(Assignment(machine.name, layers) for machine, layers in pairs if layers is not None))

    def outcome(self) -> PlanReport | list[str]:
        """The split's figures, or every sentence of what is wrong with it."""
        pairs = zip(self.draft.machines, self.counts, strict=True)
        wrong = [f"{machine.name}: {_no_count(text)}" for machine, text in pairs if _count(text) is None]
        if wrong:
            return wrong
        if sum(self.numbers) != self.draft.problem.model.layers:
            return [str(self._unbalanced())]
        scored = rescore(self.draft.problem, self.split)
        return scored if isinstance(scored, PlanReport) else list(map(str, scored))

    def _unbalanced(self) -> Sentence:
        """Who gets what no machine has, or gives back what the model does not have."""
        total, layers = sum(self.numbers), self.draft.problem.model.layers
        if total > layers:
            return say("too_many", total=total, layers=layers, takes=tuple(self._takes(total - layers)))
        return say("too_few", total=total, layers=layers, gives=tuple(self._gives(layers - total)))

    def _gives(self, count: int) -> Iterator[Sentence]:
        """Who can have so many layers more: machines with room, in their order; all for the first one if none has."""
        problem, machines = self.draft.problem, self.draft.machines
        rooms = [most_of(problem, machine, problem.all_layers) for machine in machines]
        free = [max(room - number, 0) for room, number in zip(rooms, self.numbers, strict=True)]
        for machine, most in zip(machines, free if any(free) else [count], strict=False):
            if given := min(most, count):
                yield say("more", count=given, node=machine.name)
            count -= given

    def _takes(self, count: int) -> Iterator[Sentence]:
        """From whom to take so many layers: those with the most of them first."""
        for number, machine in sorted(zip(self.numbers, self.draft.machines, strict=True), key=lambda pair: -pair[0]):
            if taken := min(number, count):
                yield say("take", count=taken, node=machine.name)
            count -= taken

    @property
    def request(self) -> PlanRequest:
        """What loads exactly this; an unchanged recommendation stays one, so that it can follow the machines later."""
        if not self.is_changed:
            return self.draft.request
        return replace(self.draft.request, strategy="custom", assignments=self.split.shares, ratio=())


def edit_of(draft: Draft | None, data: object) -> tuple[Edited | None, int | None]:
    """What the browser sent, and the number it gave it; None where that is nothing split.js sends for this draft."""
    counts, serial = (data.get("counts"), data.get("serial")) if isinstance(data, dict) else (None, None)
    if draft is None or not isinstance(counts, list) or len(counts) != len(draft.machines):
        return None, None
    return Edited(draft, tuple(map(str, counts))), serial if isinstance(serial, int) else None


def _count(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS else None


def _no_count(text: str) -> str:
    shown = f"{text[:20]!r} is no number of layers" if text.strip() else "its number of layers is missing"
    return f"{shown}; write a whole number, or 0 for none"


# --- what is shown ----------------------------------------------------------------------------------------------------


def shown_plan(edited: Edited, serial: int | None = None) -> Shown:
    """The editor with its figures. `serial` is the edit that this answers; None replaces whatever is shown."""
    draft, outcome = edited.draft, edited.outcome()
    valid = isinstance(outcome, PlanReport)
    pairs = zip(draft.machines, edited.counts, edited.ranges, strict=True)
    return {
        "kind": "plan",
        "serial": serial,
        "name": draft.name,
        "layers": draft.problem.model.layers,
        "joined": list(draft.problem.model.joined),
        "together": _together(draft.problem),
        "sizing": _sizing(draft.problem),
        "rows": [_row(draft.problem, *pair) for pair in pairs],
        "recommended": list(draft.counts),
        "changed": edited.is_changed,
        "wrong": [] if isinstance(outcome, PlanReport) else outcome,
        "speed": _speed(outcome) if isinstance(outcome, PlanReport) and outcome.score.token_ms > 0 else None,
        "why": list(map(str, draft.answer.why)) if valid and not edited.is_changed else [],
    }


def _together(problem: Problem) -> list[str]:
    """Why the editor passes over some numbers of layers."""
    runs = tuple(map(str, problem.model.runs))
    return [str(say("kept_together", runs=runs))] if runs else []


def _sizing(problem: Problem) -> str:
    users = "one user" if problem.users == 1 else f"{problem.users} users at once"
    return f"{count_text(problem.model.layers, 'layer')}, a context of {problem.context} tokens, {users}"


def _row(problem: Problem, machine: NodeProfile, count: str, layers: LayerRange | None) -> Shown:
    """`room` is null where only layers are counted; ms and bytes are those of no layer, 0, where it has none."""
    room = machine.room_bytes if isfinite(machine.room_bytes) else None
    size = problem.stage_bytes(layers, machine) if layers else 0
    return {
        "node": machine.name,
        "count": count,
        "start": layers.start if layers else 0,
        "stop": layers.stop if layers else 0,
        "ms": problem.stage_ms(machine, layers) if layers else 0,
        "bytes": size,
        "room": room,
        "over": layers is not None and not fits(problem, machine, layers),
    }


def _speed(answer: PlanReport) -> Shown:
    """Tokens per second: for one user alone, for each and for all together where all ask at once."""
    score = answer.score
    return {
        "alone": 1000 / score.token_ms,
        "each": score.tokens_per_second_each,
        "all": score.tokens_per_second,
        "users": score.users,
        "ms": score.token_ms,
    }


def shown_missing(missing: Infeasible) -> Shown:
    return {"kind": "wrong", "wrong": [str(missing.error)], "advice": list(map(str, missing.suggestions))}


def shown_error(text: str) -> Shown:
    return {"kind": "wrong", "wrong": [text], "advice": []}
