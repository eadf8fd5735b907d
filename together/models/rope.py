"""Rope in every published spelling as `rope_parameters` of transformers 5. Pure.

`rope_theta` beside `rope_scaling` (its kind under `type` or `rope_type`), `rope_parameters` for all layers, and Gemma's
one set per kind of layer. Kinds that do not run here are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from together.errors import BrokenModel, UnsupportedModel
from together.wording import quoted

FULL, SLIDING = "full_attention", "sliding_attention"
_LENGTH = "original_max_position_embeddings"
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # what each needs, and what it may have
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", _LENGTH), ()),
    "yarn": (
        ("factor", _LENGTH),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
}
_THETA = 10_000.0
MOST_SHOWN = 60  # characters of a value in an error
_GEMMA_THETA = 1_000_000.0  # of the layers that see everything


def rope_parameters(name: str, config: Mapping[str, Any], family: str, context: int) -> dict[str, Any]:
    """Checked parameters: one set, or for Gemma one per kind of layer. Raises UnsupportedModel or BrokenModel."""
    new, old = (_table(name, config, key) for key in ("rope_parameters", "rope_scaling"))
    given = old or new
    reader = _Reader(name, config, context)
    if family == "gemma3_text":
        sets = given if _nested(given) else {FULL: given, SLIDING: {}}
        full, local = (_table(name, sets, kind) for kind in (FULL, SLIDING))
        if old and _nested(new):  # one scaling beside the sets of a newer file
            full, local = {**_table(name, new, FULL), **full}, _table(name, new, SLIDING) or local
        return {
            SLIDING: reader.read(local, "rope_local_base_freq", _THETA),
            FULL: reader.read(full, "rope_theta", _GEMMA_THETA),
        }
    if _nested(given):
        each = [_table(name, given, kind) for kind in (FULL, SLIDING) if given.get(kind)]
        if any(one != each[0] for one in each):
            raise UnsupportedModel(
                "{model} has other rope for some layers, which does not run here in this family", model=name
            )
        given = each[0] if each else {}
    return reader.read({**new, **old} if not _nested(new) else given, "rope_theta", _THETA)


@dataclass(frozen=True, slots=True)
class _Reader:
    name: str
    config: Mapping[str, Any]
    context: int

    def read(self, given: Mapping[str, Any], base: str, theta: float) -> dict[str, Any]:
        """One set; `base` is where older files have its theta."""
        kind = given.get("rope_type") or given.get("type") or "default"
        if not isinstance(kind, str) or kind not in KINDS:
            raise UnsupportedModel(
                "{model} scales its rope by {kind}, which does not run here; {kinds} do",
                model=self.name,
                kind=quoted(kind, MOST_SHOWN),
                kinds=tuple(KINDS),
            )
        part = given.get("partial_rotary_factor", self.config.get("partial_rotary_factor"))
        if part not in (None, 1):
            raise UnsupportedModel(
                "{model} turns a part of each head by rope, which does not run here", model=self.name
            )
        needed, more = KINDS[kind]
        known = {key: given[key] for key in (*needed, *more) if given.get(key) is not None}
        for key in ("mscale", "mscale_all_dim"):
            if known.get(key) == 0:  # as good as absent
                del known[key]
        if _LENGTH in needed:
            known.setdefault(_LENGTH, self.config.get(_LENGTH) or self.context)
        if kind == "yarn" and "factor" not in known:
            known["factor"] = self.context / self._number(known, _LENGTH)
        found = {key: self._number(known, key) for key in (*needed, *more) if key in known or key in needed}
        return {"rope_type": kind, "rope_theta": self._theta(given, base, theta), **found}

    def _theta(self, given: Mapping[str, Any], base: str, usual: float) -> float:
        values = (given.get("rope_theta"), self.config.get(base), usual)
        return float(self._number({"rope_theta": next(value for value in values if value is not None)}, "rope_theta"))

    def _number(self, values: Mapping[str, Any], key: str) -> Any:
        value: Any = values.get(key)
        if key == "truncate" and isinstance(value, bool):
            return value
        if type(value) not in (int, float) or not isfinite(value) or value <= 0:
            raise bad_value(self.name, key, value)
        return value if key == _LENGTH else float(value)


def bad_value(model: str, key: str, value: object) -> BrokenModel:
    """The error for a value of config.json that is none."""
    return BrokenModel(
        "config.json of {model} has {key} = {value}; take config.json from where the model was published",
        model=model,
        key=key,
        value=quoted(value, MOST_SHOWN),
    )


def _nested(given: Mapping[str, Any]) -> bool:
    return bool(given.keys() & {FULL, SLIDING})


def _table(name: str, values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise bad_value(name, key, found)
    return dict(found)
