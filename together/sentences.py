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
    """`str()` is the English text. The sentence without a code is empty, and false.

    The code is a key of the tables below or, for an error's message, the English text with its fields. That has spaces.
    """

    code: str = ""
    values: tuple[tuple[str, Value], ...] = ()

    def text(self, language: str = ENGLISH) -> str:
        """In `language`, or in English where there is no table for that."""
        text = _LANGUAGES.get(language, _ENGLISH).get(self.code) or _ENGLISH.get(self.code, self.code)
        return _Writer(language).vformat(text, (), dict(self.values)) if self.values else text

    def __str__(self) -> str:
        return self.text()

    def __bool__(self) -> bool:
        return bool(self.code)


NOTHING = Sentence()


def say(code: str, **values: Value) -> Sentence:
    """The sentence `code` of the tables, with a value for each of its fields."""
    return Sentence(code, tuple(values.items()))


def template(english: str, **values: Value) -> Sentence:
    """The sentence whose code is its English text; fields as in the tables. Without values it stands as it is."""
    return Sentence(english, tuple(values.items())) if values or " " in english else verbatim(english)


def verbatim(text: str) -> Sentence:
    """Text of another machine or library: the same in every language."""
    return say("verbatim", text=text) if text else NOTHING


class _Writer(Formatter):
    """Fills a text's fields. After the colon stands one of the words below, or a format of Python's.

    Of a tuple, `and` is a list with "and" before its last part, `all` joins sentences to one, and `lines` gives each a
    line; `size`, `ms`: bytes and milliseconds; `sizes 0`: a part of a tuple of sizes, with enough digits to tell them
    apart; `plural one|many`: a word by a number or a tuple's length.
    """

    def __init__(self, language: str) -> None:
        self._language = language

    def format_field(self, value: Any, format_spec: str) -> str:
        word, _, rest = format_spec.partition(" ")
        match word:
            case "all":
                return "; ".join(self.format_field(part, "") for part in value)
            case "lines":
                return "".join(f"\n- {self.format_field(part, '')}" for part in value)
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
    "all": "{sentences:all}",
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
    # Why a node has its layers.
    "takes_all": "{node} takes all {layers} {layers:plural layer|layers}: the whole model fits on it",
    "takes_all_alone": "{node} takes all {layers} {layers:plural layer|layers}: the whole model fits on it, so no "
    "token has to hop",
    "takes": "{node} takes {count} {count:plural layer|layers} ({layers}): at {speed:ms} per layer, {why}{head}",
    "takes_by": "{node} takes {count} {count:plural layer|layers} ({layers}) by {rule}: {ms:ms}{head}",
    "lm_head": "; as the last one it also has the LM head, {ms:ms}",
    "all_it_holds": "as many as it can hold",
    "all_its_memory": "as many as its memory holds",
    "balanced": "so that no stage takes longer than {ms:ms}",
    "faster_ones_full": "what the faster ones leave",
    "none_faster": "none of the others is faster",
    "not_worth": "{machines} {machines:plural machine|machines} would be {gain:.1%} faster, which is not worth {more} "
    "{more:plural machine|machines} more that can fail",
    "cost": "a token takes {token:ms}: {computing:ms} of computing{hops}{slowest}{turns}",
    "cost_hops": " and {ms:ms} on {hops} {hops:plural hop|hops}",
    "cost_slowest": "; with {users} users at once the slowest stage, on {node}, takes {ms:ms}",
    "cost_turns": ", and stages of one machine take turns, {ms:ms} in all",
    "network": "for {tokens_per_second:g} tokens/s each of the {hops} hops needs {mbit_per_s:.0f} Mbit/s and at most "
    "{ms:ms}; for a first token {first_token_s:g} s after {prompt_tokens} tokens of prompt, {prompt_mbit_per_s:.0f} "
    "Mbit/s",
    "sized_less": "sized for a context of {context} and {users} {users:plural user|users}: more does not fit",
    # Why a node has none.
    "left_out": "{node} left out: {why}",
    "out_by": "it gets no layer by {rule}",
    "out_no_layer": "it can hold no layer",
    "out_no_memory": "it has {sizes:sizes 0} to give, and one layer takes {sizes:sizes 1}",
    "out_no_more_layers": "there are no more layers than machines",
    "out_no_ring": "no ring or split that also uses it is possible",
    "out_not_faster": "it would make no token faster",
    "out_slower": "it would make each token {ms:ms} slower",
    "out_not_worth": "it would make each token only {ms:ms} faster, not worth one more machine that can fail",
    # Why there is no plan, and what to do.
    "infeasible": "{error}{suggestions:lines}",
    "too_large": "the model does not fit: the nodes hold {placed} of its {layers} layers{missing}",
    "missing_bytes": "; {size:size} are missing{sizing}",
    "sized": " with a context of {context} for {users} {users:plural user|users}",
    "add_layers": "add a node that holds {layers} {layers:plural layer|layers}, or let the nodes hold that many more",
    "less_context": "lower the context from {context} to {less}",
    "fewer_users": "plan for {fewer} instead of {users} users at once",
    "four_bit": "use 4-bit weights: they take {size:size} less than 16-bit ones",
    "least_model": "use 4-bit weights with a context of {context} for one user",
    "mend_links": "make the unusable links work: between {links:and}",
    "link": "{a} and {b}",
    "add_memory": "add a node with {size:size} free, or free as much on the others",
    "add_nodes": "add nodes with {size:size} free in all, or free memory on these",
    "other_split": "the recommended split fits: {shares}",
    "assigned": "{node}={layers}",
    # What is wrong with a split.
    "gap": "layers {layers} are in no range; the ranges must follow one another",
    "overlap": "the range {layers} starts before layer {reached}, where the one before it ends",
    "wrong_end": "the ranges end at layer {reached}, and the model has {layers} layers",
    "node_twice": "node {node} is named twice; give it one run of layers",
    "no_node": "there is no node {node}; there are: {nodes}",
    "too_many_layers": "node {node}: has {layers} layers, can hold {most}; move some",
    "needs_memory": "node {node}: needs {sizes:sizes 0} for layers {layers}{sizing}, may use {sizes:sizes 1}; lower "
    "the context, give it fewer layers, or add a node",
    "unusable_link": "the link between {a} and {b} cannot be used; put another node between them",
    "memory_together": "the partitions in {pool} need {sizes:sizes 0} together with a context of {context}, they may "
    "use {sizes:sizes 1}; lower context or users, or give them fewer layers",
    "hold_nothing": "{places:and} cannot hold a single layer; free memory there, or ask for fewer partitions",
}
_LANGUAGES = {ENGLISH: _ENGLISH}
