"""Rope in every published spelling as `rope_parameters` of transformers 5. Pure.

`rope_theta` beside `rope_scaling` (its kind under `type` or `rope_type`), `rope_parameters` for all layers, and Gemma's
one set per kind of layer. Kinds that do not run here are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isclose, isfinite, log, sqrt
from typing import Any

from together.errors import UnsupportedModel
from together.models.family import FULL, SLIDING, Family
from together.models.values import MOST_SHOWN, bad_value
from together.wording import quoted

_LENGTH = "original_max_position_embeddings"
LONG, FACTORS = "longrope", ("short_factor", "long_factor")
BETA = "llama_4_scaling_beta"  # how fast queries grow with their position; 0: not at all
QUERIES_GROW = (BETA, _LENGTH)
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # what each needs, and what it may have
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", _LENGTH), ()),
    "yarn": (
        ("factor", _LENGTH),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (("short_factor", "long_factor", _LENGTH), ("attention_factor", "factor")),
    "proportional": ((), ("factor",)),  # periods by the whole head, of which a part is turned
}


def rope_parameters(name: str, config: Mapping[str, Any], family: Family, context: int) -> dict[str, Any]:
    """Checked parameters: one set, or one for each kind of layer. Raises UnsupportedModel or BrokenModel."""
    new, old = (_table(name, config, key) for key in ("rope_parameters", "rope_scaling"))
    if not (new or old):
        new = dict(family.rope)
    given = old or new
    reader = _Reader(name, config, context, family)
    if family.ropes:
        sets = given if _nested(given) else {FULL: given, SLIDING: {}}
        full, local = (_table(name, sets, kind) or _table(name, family.rope, kind) for kind in (FULL, SLIDING))
        if old and _nested(new):  # one scaling beside the sets of a newer file
            full, local = {**_table(name, new, FULL), **full}, _table(name, new, SLIDING) or local
        given_sets = {SLIDING: local, FULL: full}
        return {kind: reader.read(given_sets[kind], base, theta) for kind, (base, theta) in family.ropes.items()}
    if _nested(given):
        each = [_table(name, given, kind) for kind in (FULL, SLIDING) if given.get(kind)]
        if any(one != each[0] for one in each):
            raise UnsupportedModel(
                "{model} has other rope for some layers, which does not run here in this family", model=name
            )
        given = each[0] if each else {}
    if old and not _nested(new):
        _check_agreement(name, config, new, old)
    return reader.read(given, "rope_theta", family.theta)


def _check_agreement(name: str, config: Mapping[str, Any], new: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """`rope_scaling` counts where there are both, as in transformers: what they say in common must be the same."""
    kinds = [_kind(table) for table in (new, old) if table]
    theta = old.get("rope_theta", config.get("rope_theta"))
    for key, one, other in (("a kind", kinds[0], kinds[-1]), ("a theta", new.get("rope_theta"), theta)):
        if one not in (None, "default", other):
            raise UnsupportedModel(
                "config.json of {model} has {what} of rope in rope_parameters ({new}) and another one beside them "
                "({old}); take config.json from where the model was published",
                model=name,
                what=key,
                new=quoted(one, MOST_SHOWN),
                old=quoted(other, MOST_SHOWN),
            )


def _kind(given: Mapping[str, Any]) -> Any:
    kind = given.get("rope_type") or given.get("type") or "default"
    return LONG if kind == "su" else kind  # so the first files called it


@dataclass(frozen=True, slots=True)
class _Reader:
    name: str
    config: Mapping[str, Any]
    context: int
    family: Family

    def read(self, given: Mapping[str, Any], base: str, theta: float) -> dict[str, Any]:
        """One set; `base` is where older files have its theta."""
        kind = _kind(given)
        if not isinstance(kind, str) or kind not in self.family.rope_kinds:
            raise UnsupportedModel(
                "{model} scales its rope by {kind}, which does not run here; {kinds} do",
                model=self.name,
                kind=quoted(kind, MOST_SHOWN),
                kinds=self.family.rope_kinds,
            )
        part = self._part(given)
        needed, more = KINDS[kind]
        needed = (*needed, *(key for key in self.family.rope_needs if key not in needed))
        known = {key: given[key] for key in (*needed, *more) if given.get(key) is not None}
        for key in ("mscale", "mscale_all_dim"):
            if known.get(key) == 0:  # as good as absent
                del known[key]
        if kind == LONG:
            known[_LENGTH] = self._trained(given)
        if _LENGTH in needed:
            known.setdefault(_LENGTH, self.config.get(_LENGTH) or self.context)
        if kind == "yarn" and "factor" not in known:
            known["factor"] = self.context / self._number(known, _LENGTH)
        found = {key: self._number(known, key) for key in (*needed, *more) if key in known or key in needed}
        if kind == "yarn" and _is_usual(found):
            del found["attention_factor"]
        if kind == LONG:
            found = self._long(found)
        return {"rope_type": kind, "rope_theta": self._theta(given, base, theta), **part, **found}

    def _trained(self, given: Mapping[str, Any]) -> Any:
        """The length that chooses the factors: a class that has one of its own goes by that.

        Raises BrokenModel where the file says two, or none that texts can have.
        """
        length = self.config.get(_LENGTH) or self.family.counts.get(_LENGTH)
        if given.get(_LENGTH) not in (None, length):
            raise bad_value(self.name, _LENGTH, given[_LENGTH])
        if type(length) is int and not 1 < length <= self.context:
            raise bad_value(self.name, _LENGTH, length)
        return length

    def _long(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """With what queries and keys are multiplied by, which follows from lengths where nothing is said."""
        factor = found.get("factor", self.context / found[_LENGTH])
        usual = sqrt(1 + log(factor) / log(found[_LENGTH])) if factor > 1 else 1.0
        factors = {key: value for key, value in found.items() if key != "factor"}
        return {"attention_factor": usual, **factors}

    def _part(self, given: Mapping[str, Any]) -> dict[str, float]:
        """The part of each head that is turned, where that is not all of it."""
        asked = given.get("partial_rotary_factor", self.config.get("partial_rotary_factor"))
        if asked is None and self.config.get(self.family.rotary_width) is not None:
            asked = self._number(self.config, self.family.rotary_width) / self._number(
                {"head_dim": self.config.get("head_dim") or self.family.counts["head_dim"]}, "head_dim"
            )
        part = self.family.rotary if asked is None else asked
        if part == 1:
            return {}
        if not self.family.rotaries:
            raise UnsupportedModel(
                "{model} turns a part of each head by rope, which does not run here", model=self.name
            )
        if type(part) not in (int, float) or not 0 < part <= 1:
            raise bad_value(self.name, "partial_rotary_factor", part)
        return {"partial_rotary_factor": float(part)}

    def _theta(self, given: Mapping[str, Any], base: str, usual: float) -> float:
        values = (given.get("rope_theta"), self.config.get(base), usual)
        return float(self._number({"rope_theta": next(value for value in values if value is not None)}, "rope_theta"))

    def _number(self, values: Mapping[str, Any], key: str) -> Any:
        value: Any = values.get(key)
        if key == "truncate" and isinstance(value, bool):
            return value
        if key in FACTORS:
            return self._factors(key, value)
        if type(value) not in (int, float) or not isfinite(value) or value < 0 or (value == 0 and key != BETA):
            raise bad_value(self.name, key, value)
        return value if key == _LENGTH else float(value)

    def _factors(self, key: str, value: object) -> list[float]:
        if not isinstance(value, list) or not all(type(each) in (int, float) and 0 < each < inf for each in value):
            raise bad_value(self.name, key, value)
        return [float(each) for each in value]


def settled(config: Mapping[str, Any], *, stretched: bool) -> dict[str, Any]:
    """The effective configuration with one set of factors in the place of both, where its rope has two.

    transformers takes the long ones for all tokens of a pass once it is longer than the texts of the training, so that
    keys which are kept would change. Here a ring is loaded for one of both: `stretched`, the long one.
    """
    rope = config["rope_parameters"]
    if rope.get("rope_type") != LONG:
        return dict(config)
    chosen = rope["long_factor" if stretched else "short_factor"]
    return {**config, "rope_parameters": {**rope, **dict.fromkeys(FACTORS, chosen)}}


def trained_length(rope: Mapping[str, Any]) -> int | None:
    """Of effective parameters with two sets of factors: tokens of the texts that the short ones are for."""
    return int(rope[_LENGTH]) if rope.get("rope_type") == LONG else None


def is_stretched(trained: int | None, context: int) -> bool:
    """Whether a ring for sequences up to `context` turns by the factors for long ones."""
    return trained is not None and context > trained


def _is_usual(yarn: Mapping[str, Any]) -> bool:
    """Whether YaRN's attention_factor, which MLX does not take, is what follows from its factor anyway."""
    given = yarn.get("attention_factor")
    if given is None or {"mscale", "mscale_all_dim"} <= yarn.keys():
        return False
    return isclose(given, 0.1 * log(max(yarn["factor"], 1.0)) + 1.0, rel_tol=1e-9)


def _nested(given: Mapping[str, Any]) -> bool:
    return bool(given.keys() & {FULL, SLIDING})


def _table(name: str, values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise bad_value(name, key, found)
    return dict(found)
