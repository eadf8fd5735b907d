"""What a script may ask of an answer, checked, as the engine's request. Knows no ring."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack, get_type_hints

from together.errors import BadRequest
from together.requests import GenerateRequest, Message
from together.sampling import validate
from together.text.tokenizer import TextModel
from together.types import Sampling

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
