"""How a script wants a model split, and what it may ask of an answer."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_type_hints

from together.errors import BadPlan, BadRequest, BadSetting
from together.head.model import ModelHandle, open_model
from together.planning.problem import Assignment
from together.planning.request import PlanRequest
from together.planning.strategies import STRATEGIES
from together.requests import GenerateRequest, Message
from together.sampling import validate
from together.scripting.placing import PartitionPlan, PartitionRequest, place
from together.scripting.thread import LoopThread
from together.settings import Settings, load_settings, parse_bytes
from together.text.tokenizer import TextModel
from together.types import LayerRange, Sampling

Prompt = str | Sequence[Message | Mapping[str, str]]

_WHOLE = ("max_tokens", "top_k", "seed")
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


class Options(TypedDict, total=False):
    """What is left out is as the model's author set it; `max_tokens` is up to the context then.

    `temperature` 0 is greedy; the same `seed` gives the same answer.
    """

    max_tokens: int | None
    stop: str | Sequence[str]
    ignore_eos: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None


def make_request(text: TextModel, defaults: Sampling, prompt: Prompt, **options: Unpack[Options]) -> GenerateRequest:
    """A question, or a conversation, by the model's own template;

    `defaults` hold where `options` are silent. Raises BadRequest naming the field.
    """
    _check_types(options)
    sampling = _sampling(options, defaults)
    validate(sampling)
    return GenerateRequest(
        text.prompt_ids(_messages(prompt)),
        sampling,
        options.get("max_tokens"),
        _stop(options.get("stop", ())),
        options.get("ignore_eos", False),
    )


def _sampling(options: Options, defaults: Sampling) -> Sampling:
    seed = options.get("seed")
    given: dict[str, Any] = {name: value for name, value in options.items() if name in (*_NUMBERS, "top_k")}
    return replace(
        defaults,
        **given,
        logit_bias=tuple(options.get("logit_bias", {}).items()),
        seed=secrets.randbits(63) if seed is None else seed,
    )


def _check_types(options: Options) -> None:
    known = get_type_hints(Options)
    for name, value in options.items():
        if name not in known:
            raise BadRequest(f"there is no option {name!r}; known are {', '.join(known)}", name)
        if name in _WHOLE and value is not None and type(value) is not int:
            raise BadRequest(f"{name} must be a whole number, not {value!r}", name)
        if name in _NUMBERS and type(value) not in (int, float):
            raise BadRequest(f"{name} must be a number, not {value!r}", name)
        if name == "logit_bias" and not isinstance(value, Mapping):
            raise BadRequest(f"logit_bias maps token ids to numbers, as {{42: -5.0}}, not {value!r}", name)


def _stop(stop: str | Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(stops) or {type(text) for text in stops} - {str}:
        raise BadRequest("stop: a text, or several, none of them empty", "stop")
    return stops


def _messages(prompt: Prompt) -> list[Message]:
    if isinstance(prompt, str):
        return [Message("user", prompt)]
    return [_message(index, turn) for index, turn in enumerate(prompt)]


def _message(index: int, turn: Message | Mapping[str, str]) -> Message:
    match turn:
        case Message():
            return turn
        case {"role": str(role), "content": str(content)}:
            return Message(role, content)
    raise BadRequest(f"messages.{index} must have a role and a content, both texts, not {turn!r}", "messages")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStrategy:
    """Who takes which layers. Raises BadPlan or BadSetting for values that contradict one another.

    `num_partitions`: stage processes; "uniform", "ratio" and "custom" take exactly so many, the others at most. Left
    out, it follows from the values below, or is the number of this machine's devices.
    `strategy_type`: "recommend" (best by measured speed and free memory), "uniform", "memory", "compute", "mixed",
    "ratio", or "custom". Speeds are those of a device that one partition has to itself.
    `custom_boundaries`: for "custom", a pair per partition with its first and its last layer, both included, as
    [(0, 15), (16, 31)]; or half-open ranges, as [LayerRange(0, 16), LayerRange(16, 32)].
    `target_devices`: a device per partition as torch names them, as ["cuda:0", "cpu"]; one may stand several times.
    `max_memory_per_partition`: as "4GB". `ratio`: for "ratio", as [3, 1] or "3:1".
    `context`: tokens of a prompt and its answer. `users`: how many such contexts memory is granted for.
    `dtype`: "fp32", "bf16" or "fp16"; left out, the checkpoint's own. `backend`: "torch" or "mlx"; left out, what fits
    this machine.
    """

    num_partitions: int | None = None
    strategy_type: str = "recommend"
    custom_boundaries: Sequence[tuple[int, int] | LayerRange] | None = None
    target_devices: Sequence[str] | None = None
    max_memory_per_partition: str | None = None
    ratio: Sequence[float] | str | None = None
    context: int | None = None
    users: int | None = None
    dtype: str | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        if self.strategy_type not in STRATEGIES:
            known = ", ".join(STRATEGIES)
            raise BadSetting(f"there is no strategy_type {self.strategy_type!r}; choose one of {known}")
        for name in ("num_partitions", "context", "users"):
            _check_count(name, getattr(self, name))
        if isinstance(self.target_devices, str):
            raise BadSetting(f"target_devices is a list of names, as [{self.target_devices!r}]")
        self._check_needed("custom", "custom_boundaries", "a pair of layers per partition, as [(0, 15), (16, 31)]")
        self._check_needed("ratio", "ratio", "a part per partition, as [3, 1]")
        _wanted(self)

    def plan(self, model: str | PathLike[str]) -> PartitionPlan:
        """The split of a model by this strategy, without loading anything.

        `model` is a folder, a name that this machine knows, or org/name on the hub (its headers are read there). Raises
        BadPlan (gap, overlap, unknown device, too many partitions), NotEnoughMemory, or what opening a model raises.
        """
        with LoopThread() as thread:
            return thread.run(open_and_place(model, self, settings_of(self)))[1]

    def ranges(self, model: str | PathLike[str]) -> tuple[LayerRange, ...]:
        """The layers of each partition, half-open. Raises as `plan` does."""
        return self.plan(model).ranges

    def _check_needed(self, strategy: str, field: str, what: str) -> None:
        is_given = getattr(self, field) is not None
        if self.strategy_type == strategy and not is_given:
            raise BadSetting(f"strategy_type {strategy!r} needs {field}: {what}")
        if self.strategy_type != strategy and is_given:
            raise BadSetting(f"{field} is for strategy_type {strategy!r}, not {self.strategy_type!r}; leave one out")


def settings_of(strategy: PartitionStrategy) -> Settings:
    """The app's settings (TOGETHER_* variables count) with what the strategy says of dtype and backend."""
    return load_settings(dtype=strategy.dtype, backend=strategy.backend)


async def open_and_place(
    model: str | PathLike[str], strategy: PartitionStrategy, settings: Settings
) -> tuple[ModelHandle, PartitionPlan]:
    """A model's text side and the split of its layers."""
    opened = await open_model(Path(model) if isinstance(model, PathLike) else model, settings)
    return opened, await place(opened, _wanted(strategy), settings)


def _wanted(strategy: PartitionStrategy) -> PartitionRequest:
    ranges, parts = _ranges(strategy.custom_boundaries), _parts(strategy.ratio)
    devices = tuple(strategy.target_devices or ())
    counts = {"custom_boundaries": len(ranges), "ratio": len(parts), "target_devices": len(devices)}
    size = strategy.max_memory_per_partition
    request = PlanRequest(
        strategy=strategy.strategy_type,
        users=strategy.users,
        context=strategy.context,
        ratio=parts,
        assignments=tuple(Assignment("", layers) for layers in ranges),
        max_bytes=None if size is None else parse_bytes(size),
    )
    return PartitionRequest(request, _count(strategy.num_partitions, counts), devices)


def _count(asked: int | None, counts: dict[str, int]) -> int:
    """The number of partitions, where all that give one agree; 0 where nothing does. Raises BadPlan."""
    given = {name: count for name, count in {"num_partitions": asked or 0, **counts}.items() if count}
    if len(set(given.values())) > 1:
        said = ", ".join(f"{name} for {count}" for name, count in given.items())
        raise BadPlan(f"the strategy contradicts itself on the number of partitions: {said}; give one per partition")
    return next(iter(given.values()), 0)


def _ranges(boundaries: Sequence[tuple[int, int] | LayerRange] | None) -> list[LayerRange]:
    if boundaries is None:
        return []
    if not boundaries:
        raise BadPlan("custom_boundaries is empty; give a pair of layers per partition, as [(0, 15), (16, 31)]")
    return [item if isinstance(item, LayerRange) else _inclusive(item) for item in boundaries]


def _inclusive(pair: object) -> LayerRange:
    match pair:
        case (int(first), int(last)):
            if not 0 <= first <= last:
                raise BadPlan(f"custom_boundaries: ({first}, {last}) is not a first and a last layer, counted from 0")
            return LayerRange(first, last + 1)
    raise BadPlan(f"custom_boundaries: {pair!r} is neither a pair of layers, as (0, 15), nor a LayerRange")


def _parts(ratio: Sequence[float] | str | None) -> tuple[float, ...]:
    if ratio is None:
        return ()
    try:
        parts = tuple(float(part) for part in (ratio.split(":") if isinstance(ratio, str) else ratio))
    except (TypeError, ValueError):
        parts = ()
    if not parts or not all(isfinite(part) and part > 0 for part in parts):
        raise BadPlan(f"ratio {ratio!r} is not numbers above 0, one per partition, as [3, 1] or '3:1'")
    return parts


def _check_count(name: str, value: object) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise BadSetting(f"{name} must be a whole number, at least 1, not {value!r}")
