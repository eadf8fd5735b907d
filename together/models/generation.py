"""What holds where nobody says how to answer: the author's generation_config.json, and ours for what that leaves open.

A request's own fields always win. Field names and meanings are those of transformers' GenerationConfig.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from together.errors import BadSetting
from together.models.folder import side_json
from together.models.remarks import remark
from together.types import Sampling

GENERATION_CONFIG = "generation_config.json"
SamplingMode = Literal["default", "plain"]
MODES: tuple[SamplingMode, ...] = get_args(SamplingMode)

PLAIN = Sampling()  # temperature 1 and nothing cut off, as in OpenAI's API
USUAL = Sampling(temperature=0.7, top_p=0.95)  # for a model without values of its author
ANSWER_LIMIT = 2048  # tokens of an answer in terminal and page; a program's has none but the context

# The fields that an author may set, with their valid values. The names are also those of `Sampling`.
_VALID: dict[str, Callable[[float], bool]] = {
    "temperature": lambda value: 0 <= value <= 2,
    "top_k": lambda value: -1 <= value < 2**31 and value == int(value),
    "top_p": lambda value: 0 < value <= 1,
    "min_p": lambda value: 0 <= value <= 1,
    "repetition_penalty": lambda value: 0 < value <= 10,
}
SAMPLING_FIELDS = tuple(_VALID)
_DRAWING = frozenset(SAMPLING_FIELDS) - {"repetition_penalty"}  # without effect on greedy decoding


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """The values for what a request leaves open; `by_author` names the fields that generation_config.json sets."""

    sampling: Sampling = USUAL
    by_author: tuple[str, ...] = ()

    def json(self) -> dict[str, float]:
        return {name: getattr(self.sampling, name) for name in SAMPLING_FIELDS}


def sampling_mode(text: str) -> SamplingMode:
    """Raises BadSetting for an unknown mode."""
    for mode in MODES:
        if mode == text:
            return mode
    raise BadSetting("--sampling is default or plain, not {mode!r}", mode=text[:200])


def read_sampling_defaults(folder: Path, mode: SamplingMode = "default") -> SamplingDefaults:
    """The defaults of the model in `folder`; `plain` ignores its author. A broken file is logged and ignored."""
    if mode == "plain":
        return SamplingDefaults(PLAIN)
    return sampling_defaults(side_json(folder, GENERATION_CONFIG), folder.name)


def sampling_defaults(config: Mapping[str, Any], name: str) -> SamplingDefaults:
    """Read a generation configuration. Null is no value; a value out of range is logged and ignored.

    `do_sample: false` is greedy. If the author sets anything about drawing, the fields left open are neutral.
    """
    values = {field: config[field] for field in SAMPLING_FIELDS if _is_usable(config.get(field), field, name)}
    if config.get("do_sample") is False:
        kept = {field: value for field, value in values.items() if field not in _DRAWING}
        return SamplingDefaults(_sampling(replace(PLAIN, temperature=0.0), kept), ("temperature", *kept))
    draws = config.get("do_sample") is True or bool(_DRAWING & values.keys())
    return SamplingDefaults(_sampling(PLAIN if draws else USUAL, values), tuple(values))


def _sampling(base: Sampling, values: Mapping[str, float]) -> Sampling:
    given: dict[str, Any] = {field: float(value) for field, value in values.items()}
    if "top_k" in given:
        given["top_k"] = max(int(given["top_k"]), 0)
    return replace(base, **given)


def _is_usable(value: object, field: str, name: str) -> bool:
    if value is None:
        return False
    usable = type(value) in (int, float) and _VALID[field](value)  # type: ignore[arg-type]
    if not usable:
        remark("%s of %s has %s = %.50r, which is ignored", GENERATION_CONFIG, name, field, value)
    return usable
