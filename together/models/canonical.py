"""One name for each tensor of a decoder, whatever the publisher's prefix. Pure: names in, names out.

Canonical are `model.embed_tokens.…`, `model.layers.N.…`, `model.norm.…` and `lm_head.…`. Checkpoints of an inner model
lack `model.`, those of models with pictures have `language_model.` before or behind it. Which prefix holds follows from
all names of a model, so every machine decides alike; a model in canonical names keeps them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

_WRAPS = r"((?:(?:model|language_model|text_model|module|_orig_mod|base_model)\.)*)"
_PART = re.compile(_WRAPS + r"(embed_tokens\.|layers\.\d{1,6}\.|norm\.).+")
_HEAD = re.compile(_WRAPS + r"(lm_head\..+)")
_USUAL = "model."


def canonical_names(names: Iterable[str]) -> Mapping[str, str]:
    """Stored name → canonical name, for the tensors of the decoder; the others are not in it."""
    known = list(names)
    prefix = _prefix(known)
    found = {name: _USUAL + name[len(prefix) :] for name in known if _is_part(name, prefix)}
    return found | _heads(known)


def _prefix(names: list[str]) -> str:
    """What stands before `layers` and `embed_tokens`: the usual if any embedding has it, else what most have."""
    counts: Counter[str] = Counter()
    embeds = set()
    for name in names:
        match = _PART.fullmatch(name)
        if match:
            counts[match[1]] += 1
            if match[2] == "embed_tokens.":
                embeds.add(match[1])
    order = sorted(counts, key=lambda prefix: (prefix not in embeds, prefix != _USUAL, -counts[prefix], prefix))
    return order[0] if order else _USUAL


def _is_part(name: str, prefix: str) -> bool:
    match = _PART.fullmatch(name)
    return match is not None and match[1] == prefix


def _heads(names: list[str]) -> dict[str, str]:
    matches = [match for match in map(_HEAD.fullmatch, names) if match]
    best = min((match[1] for match in matches), key=lambda prefix: (len(prefix), prefix), default="")
    return {match[0]: match[2] for match in matches if match[1] == best}
