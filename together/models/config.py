"""The families that run here, and a published config.json in one normal form.

Publishers leave keys out, write null, wrap the text model in `text_config`, and spell rope in three ways. `effective`
settles all of that once, with transformers' own defaults, so that every reader sees the same plain values. The normal
form is transformers 5's dialect with nothing left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from together.errors import UnsupportedModel
from together.models.families import ALIASES, BY_NAME, WRAPPERS
from together.models.family import MAX_LAYERS, Family
from together.models.rope import rope_parameters
from together.models.values import MOST_SHOWN, Values
from together.sentences import NOTHING, Sentence, template
from together.wording import cut, quoted

FAMILIES = tuple(BY_NAME)  # each is proven by the conformance test
TOY = "checksum"  # a model for tests of the whole product; runs on its own backend only


def require_family(model: str, family: object) -> None:
    """Raises UnsupportedModel unless `family` is one that real backends run."""
    if not isinstance(family, str) or family not in FAMILIES:
        raise UnsupportedModel(
            "{model} is of the family {family}, which does not run here; choose a model of one of the {count} families "
            "that README lists, as {some}",
            model=model,
            family=quoted(family, MOST_SHOWN),
            count=len(FAMILIES),
            some=_nearest(str(family)),
        )


def _nearest(family: str) -> tuple[str, ...]:
    """Families that are called alike, or the ones that most models are of."""
    return tuple(get_close_matches(family[:MOST_SHOWN], FAMILIES, cutoff=0.5)) or ("llama", "qwen3", "gemma3_text")


_TOY: dict[str, int | None] = dict.fromkeys(
    ("vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings")
)
_NO_LANGUAGE = {  # how class names of models end that write no text
    "ForSequenceClassification": "a classifier or reward model",
    "ForTokenClassification": "a classifier of tokens",
    "ForQuestionAnswering": "a model that marks answers in a text",
    "RewardModel": "a reward model",
    "ForRewardModel": "a reward model",
    "ForMaskedLM": "a model that fills gaps",
    "ForTextEncoding": "an embedding model",
    "ForEmbedding": "an embedding model",
}


def effective(name: str, published: Mapping[str, Any]) -> dict[str, Any]:
    """The text configuration of the model called `name`, in the normal form; the normal form itself stays as it is.

    The test family's own configuration is handed through. Raises UnsupportedModel for what does not run here (family,
    rope, activation) and BrokenModel for a value that is none, both naming the key.
    """
    kind, found = _inner(name, published)
    values = Values(name, found)
    if kind == TOY:
        return {**published, **_counts(values, _TOY), "tie_word_embeddings": values.switch("tie_word_embeddings")}
    family = BY_NAME[kind]
    config = _counts(values, family.counts, _listed(found, family.listed)) | {
        key: values.switch(key) for key in family.switches
    }
    config |= {key: values.switch(key, default=True) for key in family.on}
    config |= {
        "model_type": kind,
        "architectures": _words(published.get("architectures")),
        "rms_norm_eps": values.number("rms_norm_eps", family.epsilon),
        "rope_parameters": rope_parameters(name, found, family, config["max_position_embeddings"]),
        "tie_word_embeddings": _tied(values, published, family),
        "eos_token_id": _ids(published.get("eos_token_id")) or _ids(found.get("eos_token_id")) or None,
        "bos_token_id": None,  # the tokenizer's business
        "pad_token_id": None,  # nobody pads here, and it may lie outside the vocabulary
    }
    activation, usual = family.activation
    config[activation] = values.choice(activation, usual, family.activations)
    config |= family.more(values, config)
    config |= family.vision(Values(name, published), config)
    _check_heads(name, config)
    return config


def text_config(published: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config.json says of its text model apart; empty where it does not wrap one."""
    inner = published.get("text_config")
    return inner if isinstance(inner, dict) else {}


def layer_count(published: Mapping[str, Any]) -> object:
    """What config.json gives as the number of layers, of whatever family; unchecked."""
    for values in (published, text_config(published)):
        family = BY_NAME.get(str(values.get("model_type")))
        found = values.get("num_hidden_layers", _listed(values, family.listed if family else ()))
        if found is not None:
            return found
    return None


def _listed(values: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    """How many layers have an entry under one of the keys."""
    lists = (values.get(key) for key in keys)
    return next((len(found) for found in lists if isinstance(found, list | str)), None)


def purpose(config: Mapping[str, Any], *, head: bool) -> Sentence:
    """What a checkpoint is for that is no language model, with its class; empty for one that is, or that is silent.

    `head`: it has an LM head, of its own or tied.
    """
    classes: list[str] = config["architectures"]
    for kind in classes:
        for end, words in _NO_LANGUAGE.items():
            if kind.endswith(end):
                return template("{words} ({kind})", words=template(words), kind=cut(kind, MOST_SHOWN))
    inner = next((kind for kind in classes if kind.endswith("Model")), None)
    if head or inner is None:
        return NOTHING
    said = "a model without an LM head, for embeddings or as a base ({kind})"
    return template(said, kind=cut(inner, MOST_SHOWN))


# --- parts ------------------------------------------------------------------------------------------------------------


def _inner(name: str, published: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The family and the values of the text model, out of its wrapper where it has one."""
    family = published.get("model_type")
    if family == TOY:
        return TOY, published
    if isinstance(family, str) and family in WRAPPERS:
        found = published.get("text_config")
        if not isinstance(found, dict):
            raise UnsupportedModel(
                "config.json of {model} is a {family} without text_config, so its text model is unknown; get this "
                "model again",
                model=name,
                family=family,
            )
        family = found.get("model_type") or WRAPPERS[family]
    else:
        found = published
    family = ALIASES.get(str(family), family)
    require_family(name, family)
    if found.get("use_bidirectional_attention") not in (None, False, *BY_NAME[str(family)].causal_words):
        raise UnsupportedModel(
            "{model} attends in both directions, as embedding models do, which does not run here; choose a causal "
            "model",
            model=name,
        )
    return str(family), found


def _counts(values: Values, counts: Mapping[str, int | None], layers: int | None = None) -> dict[str, Any]:
    """`layers`: how many there are where config.json does not say it."""
    config: dict[str, Any] = {
        "hidden_size": values.count("hidden_size", None),
        "num_hidden_layers": values.count("num_hidden_layers", layers, MAX_LAYERS),
    }
    for key, default in counts.items():
        if key == "num_key_value_heads" and (default is None or values.found.get(key, 0) is None):
            default = config["num_attention_heads"]
        if key == "head_dim" and default is None:
            default = config["hidden_size"] // config["num_attention_heads"]
        config[key] = values.count(key, default)
    return config


def _check_heads(name: str, config: Mapping[str, Any]) -> None:
    """What transformers and rope demand of the shape."""
    heads, groups, dim = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    hidden, fault = config["hidden_size"], NOTHING
    if heads % groups:
        said = "{heads} attention heads and {groups} for keys, which do not divide them"
        fault = template(said, heads=heads, groups=groups)
    elif dim % 2:
        fault = template("an odd head_dim of {dim}, which rope cannot turn", dim=dim)
    elif config["model_type"] in ("llama", "gemma3_text") and hidden % heads:
        fault = template(
            "a hidden_size of {hidden}, which is no multiple of its {heads} heads", hidden=hidden, heads=heads
        )
    if fault:
        raise UnsupportedModel("config.json of {model} has {found}; that does not run here", model=name, found=fault)


def _tied(values: Values, published: Mapping[str, Any], family: Family) -> bool:
    """Whether the head is the embedding, where the checkpoint has no head. A wrapper's own word counts first."""
    outer = published.get("tie_word_embeddings")
    if outer in (True, False) and outer is not None:
        return bool(outer)
    return values.switch("tie_word_embeddings", family.tied or published.get("model_type") in WRAPPERS)


def _ids(value: object) -> list[int]:
    return [item for item in (value if isinstance(value, list) else [value]) if type(item) is int]


def _words(value: object) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
