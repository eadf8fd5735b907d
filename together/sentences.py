"""Sentences as data: a code and its values, put into a person's language where that person reads them."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter
from typing import Any, Union

from together.commands import as_typed
from together.wording import ms_text, names_text, size_text, sizes_text

# to begin with: on the page, and for `launch.py chat --examples`
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
        text = as_typed(_LANGUAGES.get(language, _ENGLISH).get(self.code) or _ENGLISH.get(self.code, self.code))
        return _Writer(language).vformat(text, (), dict(self.values)) if self.values else text

    def __str__(self) -> str:
        return self.text()

    def __bool__(self) -> bool:
        return bool(self.code)


NOTHING = Sentence()


def say(code: str, **values: Value) -> Sentence:
    """The sentence `code` of the tables, with a value for each of its fields."""
    return Sentence(code, tuple(values.items()))


def english_texts() -> tuple[str, ...]:
    """Those of the table, with their fields."""
    return tuple(_ENGLISH.values())


def template(english: str, **values: Value) -> Sentence:
    """The sentence whose code is its English text; fields as in the tables. Without values it stands as it is."""
    return Sentence(english, tuple(values.items())) if values or " " in english else verbatim(english)


def verbatim(text: str) -> Sentence:
    """Text of another machine or library: the same in every language."""
    return say("verbatim", text=text) if text else NOTHING


class _Writer(Formatter):
    """Fills a text's fields, each in one line: a name that goes on in another one could look like a sentence of ours.

    After the colon stands one of the words below, or a format of Python's.

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
        if isinstance(value, Sentence):
            return value.text(self._language)
        return format(value, format_spec).replace("\r", "\\r").replace("\n", "\\n")


_ENGLISH = {
    "": "",
    "verbatim": "{text}",
    "all": "{sentences:all}",
    # The state of what a head serves.
    "no_model": "no model is loaded; load one in Machines on the page, or with: python3 launch.py up --model FOLDER",
    "loading": "{model} is being loaded: {step}{done}",
    "ready": "{model} is ready on {stages} {stages:plural stage|stages}{busy}",
    "busy": ", {running} answering, {waiting} waiting",
    "done": ", {progress:.0%}",
    "try_again": "{state}; try again in a moment",
    "changing": "{ready}; {step}",
    "recovering": "{model} lost a part of its ring: {cause}. It is being mended: {step}{done}",
    "waiting": "{model} waits for nodes that can run it: {cause}",
    "not_loaded": "{model} could not be loaded",
    # What an answer without text waits for.
    "next_in_queue": "next in the queue",
    "in_queue": "place {place} in the queue",
    "reads_prompt": "reading: {read:,} of {prompt:,} tokens",
    # Why an answer is not whole.
    "cut_at_limit": "the answer was cut off at its limit of {tokens} {tokens:plural token|tokens}; {longer}",
    "cut_by_context": "the answer was cut off after {tokens} {tokens:plural token|tokens}: the context of {context} "
    "tokens is full; begin a new conversation, or make room with: python3 launch.py load MODEL --context {more}",
    "longer_in_command": "for a longer one add: --max-tokens {more}",
    "longer_in_terminal": "to go on, write: continue; for longer ones: python3 launch.py chat --max-tokens {more}",
    "longer_on_page": "to go on, write: continue; for longer ones raise Max tokens in the settings",
    # The same, for the person who started the app and needs no advice to try again.
    "terminal_loading": "loading {model}: {step}",
    "terminal_ready": "{model} is ready on {stages} {stages:plural stage|stages}",
    "terminal_changing": "{model}: {step}",
    "terminal_lost": "{model} lost a part of its ring: {cause}",
    "terminal_mending": "mending {model}: {step}",
    # What a head does at the moment.
    "step_reading": "reading the model",
    "step_machines": "waiting for machines",
    "step_measuring": "measuring the machines",
    "step_ending": "ending {model}",
    "step_loading": "loading the layers",
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
    "room_taken": "{model} was unloaded: {kept} is to be kept, lost a part of its ring, and needed its memory; load "
    "{model} again when there is room",
    "step_room": "the model waits for others to make room",
    "make_room": "unload {model}, which has {size:size}: python3 launch.py unload {model}",
    "lacks_memory": "other programs on {node} need {size:size} more memory than is free there: {remedy}",
    "move_layers": "move {count} {count:plural layer|layers} of {model} to {nodes:and}: python3 launch.py load {model} "
    "--layers {shares}",
    "cable_gain": "{nodes:and} {nodes:plural is|are} on Wi-Fi: with {nodes:plural a cable|cables} {model} would make "
    "about {then:.1f} tokens/s instead of {now:.1f}",
    "on_battery": "{node} runs on its battery, {left} % of it are left, and computes for {models:and}; plug it in",
    "move_away": "or move {model}: python3 launch.py load {model} --layers {shares}",
    "pictures_none": "{model} sees no pictures; send text alone, or load a model that sees, as Qwen3-VL",
    "pictures_later": (
        "{model} sees no pictures here yet: those of its family come next; send text alone, or load Qwen3-VL for them"
    ),
    "pictures_no_tower": (
        "{model} has no vision tower that runs here: send text alone, or take the model as it was published, with its "
        "tower in its files and not quantized"
    ),
    "pictures_otherwise": (
        "{model} asks in {file} for pictures that are prepared otherwise than here; send text alone, or take it from "
        "where it was published"
    ),
    "demand_failed": "{model} could not be loaded because of a bug; see the log, then ask again",
    "engine_failed": "the engine stopped because of a bug in it; see the log, then load the model again",
    "no_room": "{error}; no other machine has room for its layers, and it comes back by itself when one has",
    "not_changed": "the plan was not changed: {error}",
    "silent_stage": "it has not answered for {seconds:.0f} s",
    "cut_link": "it no longer reaches the next stage",
    # Stages that are loaded, joined or lost.
    "this_machine": "this machine",
    "stage": "node {node}: stage {index} (layers {layers})",
    "stage_failed": "{stage}: {cause}",
    "stage_waits": "{stage} waits for {source}",
    "let_go": "the cache was full: {model} in {form} was let go, {size:size}; a load makes it again",
    "let_go_by": "{node}: {let_go}",
    "stage_converts": "{stage} converts its weights, {progress:.0%}",
    "stage_away": "{stage}: its machine has been out of reach for {seconds:.0f} s",
    "waits": "{waits}",
    "job_waits": "it waits for {whom}",
    "job_downloaded": "all of {model} is here, {size:size}; load it when you like",
    "job_quantized": "now {model} is here in {form}; load it in this form when you like",
    "job_converted": "now {model} is a folder in MLX's format, too, {size:size}: {folder}{facts:lines}",
    "job_failed": "the work on {model} failed because of a bug; see the log, then try again",
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
    "node_cut": "its connection broke: it was ended, or its machine cannot be reached",
    "node_replaced": "another node answers at its address",
    # What stopping a node would mean.
    "stop_idle": "{node} runs no layers now, so nothing else changes.",
    "stop_loading": "{model} is being loaded, layers {layers} of it on {node}; without it the load begins again.",
    "stop_moves": "{model} runs layers {layers} on {node}; they move to {nodes:and}, and answers go on.",
    "stop_ends": "{model} runs layers {layers} on {node}, and no other machine has room for them, so {model} stops "
    "until one has.",
    # Machines that come and go, as the terminals of an app and of a node say it.
    "older_version": "{node} runs an older together, {version} where this app is {own}; bring that machine up to date "
    "with: python3 launch.py update",
    "newer_version": "{node} runs a newer together, {version} where this app is {own}; bring this machine up to date "
    "with: python3 launch.py update",
    "other_version": "{node} runs together {version} and this app {own}; they work together. To have one version "
    "everywhere, run on each of them: python3 launch.py update",
    "app_is_newer": "the app on {name} runs a newer together, {version} where this node is {own}; bring this machine "
    "up to date with: python3 launch.py update",
    "node_joined": "{node} joined: {memory:size}, {device}",
    "node_left": "{node} left: it was stopped",
    "node_is_lost": "{node} is {cause}",
    "app_joined": "the app on {name} joined{page}",
    "app_page": ": {url}",
    "app_left": "the app on {name} left",
    "now_at": "this machine is at {addresses:and} now",
    "runs_layers": "runs layers {layers} of {model}",
    "layers_wait": "layers {layers} of {model} wait for {source}",
    "runs_none": "runs no layers any more",
    "peer_silent": "{peer} does not answer yet; trying every {seconds:.0f} s",
    "peer_answers": "{peer} answers now",
    "peer_refused": "{peer}: {why}",
    "node_locked": "the machine at {address} is locked: it has another join code; to see how it can join, run "
    "python3 launch.py join-code",
    "rejoined": "this machine has another join code now, so machines with the old one are out of reach",
    "no_multicast": "machines are not found by themselves here, as multicast fails ({error}); name one with --peer",
    "local_node_failed": "{node} ended: {error}",
    "local_node_ended": "{node} ended with code {exit}",
    "local_node_killed": "{node} was ended by {signal}; the menu starts another one: python3 launch.py",
    # What a token takes, against the plan.
    "pace_alone": "measured: {measured:ms} per token, {rate:.1f} tokens/s for one person alone",
    "pace": "{alone}; expected: {expected:ms}",
    "pace_faster": "{pace}, {factor:.1f} times as long: the machines were slower when they were measured",
    "pace_slower": "{pace}. It is {factor:.1f} times slower: {why}",
    "busy_machine": "other programs use {share:.0%} of the processors of {node}; close them, or give it fewer layers",
    "paging_machine": "{node} lacks memory and reads {size:size} per second back from its disk; close programs there, "
    "or give it fewer layers",
    "local_links": "the messages between the app and its stages take {measured:ms} instead of {expected:ms}; with a "
    "larger model that counts for less",
    "slow_links": "the messages between the app and {nodes:and} take {measured:ms} instead of {expected:ms}; use a "
    "cable instead of Wi-Fi, or move nearer to the router",
    "shares": "{model} and {others:and} share {nodes:and}: while all answer, {model} makes about {rate:.1f} tokens/s "
    "for one person",
    "shares_part": "{model} and {others:and} share {nodes:and}: while all answer, each has a part of the processors",
    "plan_shares": "{others:and} {others:plural computes|compute} on {nodes:and}, too: while all answer, expect about "
    "{rate:.1f} tokens/s",
    "plan_shares_part": "{others:and} {others:plural computes|compute} on {nodes:and}, too: while all answer, each has "
    "a part of the processors",
    "unknown_cause": "most of the time is lost on {node}, which reports no reason; on that machine run: python3 "
    "launch.py doctor",
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
    "last_beside": "{last} {models:and} served beside it, and {models:plural comes|come} with it.",
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
    "cost": "a token takes {token:ms}: {computing:ms} of computing{around} and {ring:ms} on {hops} "
    "{hops:plural hop|hops}{slowest}{turns}",
    "cost_around": ", {ms:ms} for the app and its messages",
    "cost_here": "a token takes {token:ms}: {computing:ms} of computing and {around:ms} for the app and its messages"
    "{slowest}{turns}",
    "cost_shared": "; {users} users at once share steps: one of them gets a token every {ms:ms}",
    "cost_slowest": "; with {users} users at once the slowest stage, on {node}, takes {ms:ms}",
    "cost_turns": ", and stages of one machine take turns, {ms:ms} in all",
    "network": "for {tokens_per_second:g} tokens/s each of the {hops} hops needs {mbit_per_s:.0f} Mbit/s and at most "
    "{ms:ms}; for a first token {first_token_s:g} s after {prompt_tokens} tokens of prompt, {prompt_mbit_per_s:.0f} "
    "Mbit/s",
    "sized_less": "sized for a context of {context} and {users} {users:plural user|users}: more does not fit",
    "fit_fits": "it fits on {nodes:and}, with a context of {context} for {users} {users:plural user|users}",
    "fit_tight": "it fits, and leaves less than {part:.0%} of the memory free: close programs there, or choose fewer "
    "bits",
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
    # What a plan for a file of machines stands on.
    "plan_model": "{model}: {size:size} of weights, and a context of {context} for {users} {users:plural user|users}",
    "plan_bits": "{bits}-bit weights are an estimate: {bits} bits each and half a bit of scales, embedding and LM head "
    "as published",
    "plan_published": "{machines:and}: by published figures, of whose memory bandwidth {share:.0%} is assumed to be "
    "reached; real times may differ by a third",
    "plan_measured": "{machines:and}: as measured",
    "plan_prompt": "a prompt of {tokens} tokens takes about {seconds:.1f} s of computing before the first token",
    # Why there is no plan, and what to do.
    "infeasible": "{error}{suggestions:lines}",
    "too_large": "the model does not fit: the nodes hold {placed} of its {layers} layers{missing}",
    "missing_bytes": "; {size:size} are missing{sizing}",
    "sized": " with a context of {context} for {users} {users:plural user|users}",
    "add_layers": "add a node that holds {layers} {layers:plural layer|layers}, or let the nodes hold that many more",
    "less_context": "lower the context from {context} to {less}",
    "fewer_users": "plan for {fewer} instead of {users} users at once",
    "quantized": "quantize it to {bits} bits, which takes {size:size} less: {option} {bits}",
    "quantized_alone": "quantize it to {bits} bits with a context of {context} for one user: {option} {bits}",
    "mend_links": "make the unusable links work: between {links:and}",
    "link": "{a} and {b}",
    "add_memory": "add a node with {size:size} free, or free as much on the others",
    "add_nodes": "add nodes with {size:size} free in all, or free memory on these",
    "other_split": "the recommended split fits: {shares}",
    "assigned": "{node}={layers}",
    # What is wrong with a split.
    "gap": "layers {layers} are in no range",
    "overlap": "layers {layers} are in two ranges",
    "beyond": "there are no layers {layers}: the model has {most}",
    "joined": "no stage can begin with layer {layer}: it, or one behind it, needs what an earlier layer's stage has",
    "kept_together": "layers {runs:and} stay together on one machine: later ones need what an earlier one's stage has",
    "wrong_order": "the ranges are not in the order of the layers",
    "right_ranges": "right would be {shares}",
    "too_many": "the layers add up to {total}, the model has {layers}; take {takes:and}",
    "take": "{count} from {node}",
    "too_few": "the layers add up to {total}, the model has {layers}; give {gives:and}",
    "more": "{count} more to {node}",
    "node_twice": "node {node} is named twice; give it one run of layers",
    "no_node": "there is no node {node}; there are: {nodes}",
    "too_many_layers": "{node} can hold {most} of its {count} layers; {remedy}",
    "needs_memory": "{node} can hold {most} of its {count} layers: {layers} need {sizes:sizes 0}{sizing}, it may use "
    "{sizes:sizes 1}; {remedy}",
    "give": "give {gifts:and}",
    "gift": "{count} of them to {node}",
    "no_taker": "no other node can hold them; add a node",
    "not_singly": "not every layer can move alone: plan again, lower the context, or add a node",
    "no_memory_elsewhere": "no other node has room for them; lower the context, or add a node",
    "unusable_link": "the link between {a} and {b} cannot be used; put another node between them",
    "memory_together": "the partitions in {pool} need {sizes:sizes 0} together with a context of {context}, they may "
    "use {sizes:sizes 1}; lower context or users, or give them fewer layers",
    "hold_nothing": "{places:and} cannot hold a single layer; free memory there, or ask for fewer partitions",
}
_LANGUAGES = {ENGLISH: _ENGLISH}
