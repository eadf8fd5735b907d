"""The one sampler: turns float32 logits into drawn tokens, the same on every backend and machine.

Order: repetition, presence and frequency penalties, bias → mask → temperature → top-k → top-p → min-p → draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, log

import numpy as np
from numpy.typing import NDArray

from together.errors import BadRequest, FrameRefused
from together.types import Row, Sampled, SampleRequest, Sampling

Floats = NDArray[np.float64]
Ids = NDArray[np.intp]

# splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014); constants as in Vigna's
# public-domain splitmix64.c.
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_64 = 2**64 - 1

_FIRST_LOOK = 512  # tokens looked at first for top-p: real distributions rarely need more
_LUCKY = 2.0**-8  # share of tokens whose noise is always computed exactly when drawing


@dataclass(frozen=True, slots=True)
class Draw:
    """One token to draw. `tokens` are all tokens before it, for penalties alone; `position` is its index."""

    settings: Sampling
    position: int
    tokens: Sequence[int]
    prompt_length: int
    top_logprobs: int = -1
    allowed: bytes | None = None


# --- what backends and the API call -----------------------------------------------------------------------------------


def sample(logits: NDArray[np.float32], draws: Sequence[Draw]) -> list[Sampled]:
    """Draw one token per row of `logits` [n, vocab], without changing them; rows do not depend on each other.

    Raises ValueError for a wrong shape and for a row without a finite maximum (NaN or infinity: the model's fault),
    FrameRefused for a mask that fits another vocabulary or allows nothing, and for a bias outside the vocabulary.
    """
    if logits.ndim != 2 or logits.shape[0] != len(draws):
        raise ValueError(f"logits of shape {logits.shape} do not fit {len(draws)} draws")
    return [_sample(row, draw) for row, draw in zip(logits, draws, strict=True)]


def draws_for(row: Row, cached: Sequence[int]) -> list[Draw]:
    """The draws of a row, one per offset. The first `row.position` of `cached` are the tokens before the row."""
    if row.sample is None:
        return []
    ask = row.sample
    known = [*cached[: row.position], *row.token_ids] if _penalises(ask.settings) else ()
    return [
        Draw(ask.settings, place, known[:place], ask.prompt_length, ask.top_logprobs, ask.allowed)
        for place in (row.position + offset + 1 for offset in ask.offsets)
    ]


def argmax_answers(ask: SampleRequest) -> bool:
    """Whether argmax (lowest id on ties) equals `sample`, so that a backend may stay on its device."""
    plain = ask.settings.greedy and not ask.settings.logit_bias and not _penalises(ask.settings)
    return plain and ask.allowed is None and ask.top_logprobs < 0


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of n answers to a prompt, within 0 … 2**64 − 1; choice 0 keeps `seed`."""
    return _mix(seed + choice * _GOLDEN) if choice else seed


def validate(settings: Sampling, vocabulary: int | None = None) -> None:
    """Raise BadRequest, naming the field in `param`, for a value out of range. `vocabulary` limits ids of a bias."""
    _within("temperature", settings.temperature, 0, 2)
    _within("top_k", settings.top_k, 0, 2**32 - 1)
    _within("top_p", settings.top_p, 0, 1, above=True)
    _within("min_p", settings.min_p, 0, 1)
    _within("repetition_penalty", settings.repetition_penalty, 0, 10, above=True)
    _within("presence_penalty", settings.presence_penalty, -2, 2)
    _within("frequency_penalty", settings.frequency_penalty, -2, 2)
    _within("seed", settings.seed, 0, _64)
    for token, value in settings.logit_bias:
        _within("logit_bias", token, 0, (vocabulary or 2**32) - 1, what="a token id of logit_bias")
        _within("logit_bias", value, -100, 100, what="a value of logit_bias")


def _within(param: str, value: float, low: int, high: int, *, above: bool = False, what: str = "") -> None:
    if not low <= value <= high or (above and value == low):
        wrong = "{what} must be above {low} and at most {high}, not {value}"
        wrong = wrong if above else "{what} must be from {low} to {high}, not {value}"
        raise BadRequest(wrong, param, what=what or param, low=low, high=high, value=value)


# --- one row ----------------------------------------------------------------------------------------------------------


def _sample(raw: NDArray[np.float32], draw: Draw) -> Sampled:
    if not isfinite(raw.max(initial=-inf)):  # the maximum of anything with a NaN is NaN
        raise ValueError("the model's logits have no finite maximum (NaN or infinity); load the model again")
    values = _adjusted(raw, draw)
    if draw.settings.greedy:
        token = int(values.argmax())
    else:
        ids, scores = survivors(values, draw.settings)
        token = int(ids[_gumbel_max(ids, scores, draw.settings.seed, draw.position)])
    if draw.top_logprobs < 0:
        return Sampled(token)
    return _with_logprobs(raw, token, draw.top_logprobs)


def _adjusted(raw: NDArray[np.float32], draw: Draw) -> NDArray[np.float32]:
    """`raw` with penalties, bias and mask (forbidden: −inf)."""
    if not _penalises(draw.settings) and not draw.settings.logit_bias and draw.allowed is None:
        return raw
    values = raw.copy()
    _penalise(values, draw)
    _bias(values, draw.settings.logit_bias)
    if draw.allowed is not None:
        values[~_mask(draw.allowed, len(values))] = -inf
    if not isfinite(values.max()):
        raise FrameRefused("mask and bias leave no token to draw; allow at least one that the model can say")
    return values


def _penalises(settings: Sampling) -> bool:
    return settings.repetition_penalty != 1.0 or settings.presence_penalty != 0.0 or settings.frequency_penalty != 0.0


def _penalise(values: NDArray[np.float32], draw: Draw) -> None:
    """Repetition as in CTRL (Keskar et al. 2019), over all tokens; presence and frequency as OpenAI, over answers."""
    settings = draw.settings
    if not _penalises(settings):
        return
    tokens = np.asarray(draw.tokens, dtype=np.intp)
    if settings.repetition_penalty != 1.0:
        seen = values[tokens]
        values[tokens] = np.where(seen > 0, seen / settings.repetition_penalty, seen * settings.repetition_penalty)
    answer, counts = np.unique(tokens[draw.prompt_length :], return_counts=True)
    values[answer] -= settings.presence_penalty + settings.frequency_penalty * counts


def _bias(values: NDArray[np.float32], bias: tuple[tuple[int, float], ...]) -> None:
    for token, value in bias:
        if not 0 <= token < len(values):
            wrong = "logit_bias names token {token}, the model has {count} tokens"
            raise FrameRefused(wrong, token=token, count=len(values))
        values[token] += value


def _mask(allowed: bytes, vocabulary: int) -> NDArray[np.bool_]:
    """Unpack a mask, whose bit i is token i. It may end early: a padded matrix has more rows than there are tokens."""
    if len(allowed) > (vocabulary + 7) // 8:
        wrong = "the mask has {size} bytes, too many for {count} tokens"
        raise FrameRefused(wrong, size=len(allowed), count=vocabulary)
    known = np.unpackbits(np.frombuffer(allowed, np.uint8), bitorder="little")[:vocabulary]
    bits = np.zeros(vocabulary, np.bool_)  # not unpackbits' count: it leaves an empty mask's bits undefined
    bits[: len(known)] = known
    return bits


# --- which tokens survive ---------------------------------------------------------------------------------------------


def survivors(values: NDArray[np.float32], settings: Sampling) -> tuple[Ids, Floats]:
    """The ids left by temperature, top-k, top-p and min-p, in rising order, and their scores.

    A score is value / temperature, minus the best one, so the best is 0. Of equal values the lower id survives.
    Temperature must not be 0.
    """
    ids = _best(values, settings.top_k) if settings.top_k else np.arange(len(values))
    chosen = values[ids].astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature may leave the best alone
        scores: Floats = (chosen - chosen.max()) / settings.temperature
    ids, scores = _keep(ids, scores, np.flatnonzero(scores > -inf))
    if settings.top_p < 1.0:
        ids, scores = _keep(ids, scores, _nucleus(scores, settings.top_p))
    if settings.min_p > 0.0:
        ids, scores = _keep(ids, scores, np.flatnonzero(scores >= log(settings.min_p)))
    return ids, scores


def _keep(ids: Ids, scores: Floats, places: Ids) -> tuple[Ids, Floats]:
    return (ids, scores) if len(places) == len(ids) else (ids[places], scores[places])


def _best(values: NDArray[np.floating], count: int) -> Ids:
    """The places of the `count` largest values, in rising order; of equal values the lower place."""
    if count >= len(values):
        return np.arange(len(values))
    cut = len(values) - count
    return _at_least(values, np.partition(values, cut)[cut], count)


def _at_least(values: NDArray[np.floating], threshold: np.floating, count: int) -> Ids:
    """Like `_best`, if `threshold` is the `count`-th largest value."""
    above = np.flatnonzero(values > threshold)
    equal = np.flatnonzero(values == threshold)[: count - len(above)]
    return np.sort(np.concatenate((above, equal)))


def _nucleus(scores: Floats, mass: float) -> Ids:
    """The places of the smallest set of best tokens with `mass` of the probability; at least one token.

    It sorts no more of the best than needed, starting with few and growing eightfold.
    """
    target = mass * np.exp(scores).sum()
    size = min(_FIRST_LOOK, len(scores))
    while True:
        cut = len(scores) - size
        best = np.sort(np.partition(scores, cut)[cut:])[::-1] if cut else np.sort(scores)[::-1]
        sums = np.cumsum(np.exp(best))
        if sums[-1] >= target or not cut:
            break
        size = min(8 * size, len(scores))
    count = min(int(np.searchsorted(sums, target)) + 1, size)
    return _at_least(scores, best[count - 1], count)


# --- the draw ---------------------------------------------------------------------------------------------------------


def _gumbel_max(ids: Ids, scores: Floats, seed: int, position: int) -> int:
    """The place of the largest score + Gumbel noise, which draws place i with probability ∝ exp(scores[i]).

    Over a whole vocabulary, two logarithms per token are most of the cost. They are monotonic, so the best total
    is a bound: a token that is neither lucky (noise in the top 1/256) nor within reach of the bound cannot win.
    """
    noise = _uniform(ids, seed, position)
    if len(ids) > 4 * _FIRST_LOOK:
        best = int(scores.argmax())
        reach = scores[best] + _gumbel(noise[best : best + 1]) - _gumbel(np.array([1 - _LUCKY]))
        places = np.flatnonzero((noise >= 1 - _LUCKY) | (scores >= reach))
        return int(places[(scores[places] + _gumbel(noise[places])).argmax()])
    return int((scores + _gumbel(noise)).argmax())


def _gumbel(uniform: Floats) -> Floats:
    result: Floats = -np.log(-np.log(uniform))
    return result


def _uniform(ids: Ids, seed: int, position: int) -> Floats:
    """Noise strictly between 0 and 1: number `id` of the splitmix64 stream of (seed, position)."""
    noise = ids.astype(np.uint64)
    noise += np.uint64(1)
    noise *= np.uint64(_GOLDEN)
    noise += np.uint64(_mix(_mix(seed) + position * _GOLDEN))
    mix64(noise)
    noise >>= np.uint64(12)  # 52 bits: the half below then fits a double's 53 exactly and no value rounds up to 1
    uniform: Floats = (noise.astype(np.float64) + 0.5) * 2.0**-52
    return uniform


def mix64(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer over an array, in place: every bit of a word spreads over all 64."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(_FIRST)
    words ^= words >> np.uint64(27)
    words *= np.uint64(_SECOND)
    words ^= words >> np.uint64(31)
    return words


def _mix(word: int) -> int:
    """`mix64` of the low 64 bits of a Python number."""
    word &= _64
    word = (word ^ (word >> 30)) * _FIRST & _64
    word = (word ^ (word >> 27)) * _SECOND & _64
    return word ^ (word >> 31)


# --- log-probabilities ------------------------------------------------------------------------------------------------


def _with_logprobs(raw: NDArray[np.float32], token: int, count: int) -> Sampled:
    values = raw.astype(np.float64)
    peak = values.max()
    values -= peak + np.log(np.exp(values - peak).sum())
    best = _best(raw, count) if count else np.arange(0)
    best = best[np.argsort(-raw[best], kind="stable")]  # best first, equal ones by the lower id
    return Sampled(token, float(values[token]), tuple((int(i), float(values[i])) for i in best))
