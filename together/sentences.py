"""Sentences as data: a code and its values, put into a person's language where that person reads them."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import Any, Union

from together.wording import ms_text, names_text, size_text, sizes_text

# to begin with: on the page, and for `together chat --examples`
EXAMPLES = (
    "What is the capital of France?",
    "What is 7 plus 5?",
    "How many meters are in 3 kilometers?",
    "What is a node?",
)

Value = Union[str, int, float, "Sentence", tuple["Value", ...]]

ENGLISH = "en"


@dataclass(frozen=True, slots=True)
class Sentence:
    """`str()` is the English text. The sentence without a code is empty, and false."""

    code: str = ""
    values: tuple[tuple[str, Value], ...] = ()

    def text(self, language: str = ENGLISH) -> str:
        """In `language`, or in English where there is no table for that."""
        table = _LANGUAGES.get(language, _ENGLISH)
        return _Writer(language).vformat(table.get(self.code, _ENGLISH[self.code]), (), dict(self.values))

    def __str__(self) -> str:
        return self.text()

    def __bool__(self) -> bool:
        return bool(self.code)


NOTHING = Sentence()


def say(code: str, **values: Value) -> Sentence:
    """The sentence `code` of the tables, with a value for each of its fields."""
    return Sentence(code, tuple(values.items()))


def verbatim(text: str) -> Sentence:
    """Text of another machine or library: the same in every language."""
    return say("verbatim", text=text) if text else NOTHING


class _Writer(Formatter):
    """Fills a text's fields. After the colon stands one of the words below, or a format of Python's.

    `and`: a list with "and" before its last part; `size`, `ms`: bytes and milliseconds; `sizes 0`: a part of a tuple of
    sizes, with enough digits to tell them apart; `plural one|many`: a word by a number or a tuple's length.
    """

    def __init__(self, language: str) -> None:
        self._language = language

    def format_field(self, value: Any, format_spec: str) -> str:
        word, _, rest = format_spec.partition(" ")
        match word:
            case "and":
                return names_text([self.format_field(part, "") for part in value])
            case "size":
                return size_text(value)
            case "sizes":
                return sizes_text(*value)[int(rest)]
            case "ms":
                return ms_text(value)
            case "plural":
                one, many = rest.split("|")
                return one if (len(value) if isinstance(value, tuple) else value) == 1 else many
        if isinstance(value, tuple):
            return ", ".join(self.format_field(part, format_spec) for part in value)
        return value.text(self._language) if isinstance(value, Sentence) else format(value, format_spec)


_ENGLISH = {
    "": "",
    "verbatim": "{text}",
    # The state of what a head serves.
    "no_model": "no model is loaded; load one on the page or start with: python3 launch.py up --model FOLDER",
    "loading": "{model} is being loaded ({step}, {progress:.0%}); try again in a moment",
    "ready": "{model} is ready on {stages} {stages:plural stage|stages}, {running} answering, {waiting} waiting",
    "changing": "{ready}; {step}",
    "recovering": "{model} lost a part of its ring and is being mended ({step}, {progress:.0%}): {cause}",
    "waiting": "{model} waits for nodes that can run it: {cause}",
    "not_loaded": "{model} could not be loaded",
    # What a head does at the moment.
    "step_reading": "reading the model",
    "step_machines": "waiting for machines",
    "step_measuring": "measuring the machines",
    "step_ending": "ending {model}",
    "step_loading": "loading",
    "step_waiting": "{step}; {waiting}",
    "step_retry": "trying again ({count} of {most}): {error}",
    "step_other_split": "planning again: the last split does not fit any more",
    "step_looking": "looking for what is left",
    "step_missing": "loading what is missing",
    "step_changing": "changing which node runs which layers",
    # Why nothing is served.
    "load_stopped": "loading {model} was stopped; load it again",
    "load_given_up": "loading {model} was given up because the model was unloaded",
    "unloaded": "the model was unloaded; load it again",
    "engine_failed": "the engine stopped because of a bug in it; see the log, then load the model again",
    "no_room": "{error}; no other machine has room for its layers. It comes back by itself when one has",
    "not_changed": "the plan was not changed: {error}",
    "silent_stage": "it has not answered for {seconds:.0f} s",
    "cut_link": "it no longer reaches the next stage",
    # Stages that are loaded, joined or lost.
    "this_machine": "this machine",
    "stage": "node {node}: stage {index} (layers {layers})",
    "stage_lost": "{stage} is lost: {cause}",
    "stage_failed": "{stage}: {cause}",
    "stage_waits": "{stage} waits for {source}",
    "stage_away": "{stage}: its machine has been out of reach for {seconds:.0f} s",
    "waits": "{waits}",
    "stage_unknown": "its node no longer knows it",
    "ended_loading": "its node ended it while it was loaded",
    "lost_loading": "its node was lost while it was loaded",
    "no_progress": "it was not ready after {seconds:.0f} s without progress",
    "node_stopped": "its node was stopped",
    "node_restarted": "its node was restarted and no longer holds it",
    "moved": "{machine} is at {addresses:and} now; its links are opened again",
    # How a process or a node ended.
    "ended_code": "its process ended with code {exit}: {said}",
    "said_nothing": "it said nothing",
    "ended_by_memory": "its process was ended by {signal}: it ran out of memory, {proof}",
    "kernel_log": "the kernel's log names it",
    "cgroup_count": "its cgroup counts it",
    "killed": "its process was ended by {signal}: killed from outside",
    "ended_by_signal": "its process was ended by {signal}",
    "not_started": "its process cannot be started: {error}",
    "layers_failed": "layers {layers} of {model}: {cause}",
    "node_lost": "lost: {cause}",
    "node_silent": "no sign of life for {seconds:.0f} s",
    "node_replaced": "another node answers at its address",
    # Advice, offers and limits.
    "better_split": "{node} is {speed} than planned, compared with the other nodes; with {layers} the model would be "
    "{gain:.0%} faster",
    "slower": "{factor:.1f} times slower",
    "faster": "{factor:.1f} times faster",
    "no_better_split": "the machines do as planned; there is no better split to move to",
    "share": "{node} {layers}",
    "last_plan": "Last: {model} on {shares}.",
    "last_plan_gone": "Last: {model} on {shares}. {gone:and} {gone:plural is|are} not here now, so loading it makes a "
    "new plan.",
    "no_last_plan": "no model was loaded here before; choose one: python3 launch.py load MODEL",
    "memory_limit": "{node}: a stage with {sizes:sizes 0} on {device} ran out of memory ({cause}), so plans use at "
    "most {sizes:sizes 1} of it for another {minutes} {minutes:plural minute|minutes} or until the node starts again. "
    "To use all of it now: python3 launch.py forget {quoted}",
}
_LANGUAGES = {ENGLISH: _ENGLISH}
