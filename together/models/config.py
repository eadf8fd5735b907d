"""The families that run here, and a published config.json in one normal form.

Publishers leave keys out, write null, wrap the text model in `text_config`, and spell rope in three ways. `effective`
settles all of that once, with transformers' own defaults, so that every reader sees the same plain values. The normal
form is transformers 5's dialect with nothing left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from together.errors import BrokenModel, UnsupportedModel
from together.models.rope import MOST_SHOWN, bad_value, rope_parameters
from together.sentences import NOTHING, Sentence, template
from together.wording import cut, quoted

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "qwen3_moe")  # each is proven by the conformance test
WRAPPERS = {"gemma3": "gemma3_text", "mistral3": "mistral"}  # of text and pictures: the text model's usual family
TOY = "checksum"  # a model for tests of the whole product; runs on its own backend only


def require_family(model: str, family: object) -> None:
    """Raises UnsupportedModel, with the list of what runs, unless `family` is one that real backends run."""
    if not isinstance(family, str) or family not in FAMILIES:
        raise UnsupportedModel(
            "{model} is of the family {family}, which does not run here; choose one of {known}",
            model=model,
            family=quoted(family),
            known=(*FAMILIES, *WRAPPERS),
        )


MAX_LAYERS = 10_000
_LARGEST = 10**9
_COUNTS: dict[str, dict[str, int | None]] = {  # what transformers' classes assume where the file is silent
    "llama": {"vocab_size": 32000, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": None,
              "head_dim": None, "max_position_embeddings": 2048},
    "qwen2": {"vocab_size": 151936, "intermediate_size": 22016, "num_attention_heads": 32, "num_key_value_heads": 32,
              "head_dim": None, "max_position_embeddings": 32768},
    "qwen3": {"vocab_size": 151936, "intermediate_size": 22016, "num_attention_heads": 32, "num_key_value_heads": 32,
              "head_dim": 128, "max_position_embeddings": 32768},
    "mistral": {"vocab_size": 32000, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
                "head_dim": None, "max_position_embeddings": 131072},
    "gemma3_text": {"vocab_size": 262208, "intermediate_size": 9216, "num_attention_heads": 8, "num_key_value_heads": 4,
                    "head_dim": 256, "max_position_embeddings": 131072, "query_pre_attn_scalar": 256},
    "qwen3_moe": {"vocab_size": 151936, "intermediate_size": 6144, "num_attention_heads": 32, "num_key_value_heads": 4,
                  "head_dim": None, "max_position_embeddings": 32768, "moe_intermediate_size": 768,
                  "num_experts_per_tok": 8, "decoder_sparse_step": 1},
    TOY: {"vocab_size": None, "num_attention_heads": None, "num_key_value_heads": None, "head_dim": None,
          "max_position_embeddings": None},
}  # fmt: skip
_EXPERTS = 128  # of qwen3_moe, whose key has two names
_SWITCHES = {  # key: the families that read it
    "attention_bias": ("llama", "qwen3", "qwen3_moe", "gemma3_text"),
    "mlp_bias": ("llama",),
    "norm_topk_prob": ("qwen3_moe",),
}
_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2")
_LAYER_KINDS = ("full_attention", "sliding_attention")
_TYPED_LAYERS = ("qwen2", "qwen3", "gemma3_text")  # families with a kind for each layer
_WINDOW = 4096
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
    family, found = _inner(name, published)
    values = _Values(name, found)
    config = _counts(values, family)
    if family == TOY:
        return {**published, **config, "tie_word_embeddings": values.switch("tie_word_embeddings")}
    config |= {key: values.switch(key) for key, families in _SWITCHES.items() if family in families}
    config |= _windows(values, family, config["num_hidden_layers"])
    config |= {
        "model_type": family,
        "architectures": _words(published.get("architectures")),
        "rms_norm_eps": values.number("rms_norm_eps", 1e-6),
        "rope_parameters": rope_parameters(name, found, family, config["max_position_embeddings"]),
        "tie_word_embeddings": _tied(values, published, family),
        "eos_token_id": _ids(published.get("eos_token_id")) or _ids(found.get("eos_token_id")) or None,
        "bos_token_id": None,  # the tokenizer's business
        "pad_token_id": None,  # nobody pads here, and it may lie outside the vocabulary
    }
    config |= _activation(values, family)
    if family == "gemma3_text":
        config |= {key: values.number(key, None) for key in ("attn_logit_softcapping", "final_logit_softcapping")}
    if family == "qwen3_moe":
        config |= _experts(values, config)
    _check_heads(name, config)
    return config


def text_config(published: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config.json says of its text model apart; empty where it does not wrap one."""
    inner = published.get("text_config")
    return inner if isinstance(inner, dict) else {}


def layer_count(published: Mapping[str, Any]) -> object:
    """What config.json gives as the number of layers, of whatever family; unchecked."""
    given = published.get("num_hidden_layers")
    return text_config(published).get("num_hidden_layers") if given is None else given


def quantization_of(published: Mapping[str, Any]) -> str | None:
    """The name of the quantization that config.json declares, such as gptq or 4-bit; None where it declares none."""
    for part in (published, text_config(published)):
        for key in ("quantization_config", "quantization"):
            settings = part.get(key)
            if settings:
                known = settings if isinstance(settings, dict) else {}
                bits = f"{cut(str(known['bits']), MOST_SHOWN)}-bit" if "bits" in known else key
                return cut(str(known.get("quant_method") or bits), MOST_SHOWN)
    return None


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


@dataclass(frozen=True, slots=True)
class _Values:
    """Values of one config.json, checked; null is as good as absent."""

    name: str
    found: Mapping[str, Any]

    def count(self, key: str, default: int | None, most: int = _LARGEST) -> int:
        value = self.found.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            value = default
        if type(value) is not int or not 0 < value <= most:
            raise bad_value(self.name, key, value)
        return value

    def number(self, key: str, default: float | None) -> float | None:
        value = self.found.get(key)
        if value is None:
            return default
        if type(value) not in (int, float) or not isfinite(value) or value <= 0:
            raise bad_value(self.name, key, value)
        return float(value)

    def switch(self, key: str) -> bool:
        value = self.found.get(key)
        if value not in (None, True, False):
            raise bad_value(self.name, key, value)
        return bool(value)


def _inner(name: str, published: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The family and the values of the text model, out of its wrapper where it has one."""
    family = published.get("model_type")
    if family == TOY:
        return TOY, published
    if isinstance(family, str) and family in WRAPPERS:
        found = published.get("text_config")
        if not isinstance(found, dict):
            raise UnsupportedModel(
                "config.json of {model} is a {family} without text_config, so its text model is unknown; families that "
                "run here: {families}",
                model=name,
                family=family,
                families=(*FAMILIES, *WRAPPERS),
            )
        family = found.get("model_type") or WRAPPERS[family]
    else:
        found = published
    require_family(name, family)
    if found.get("use_bidirectional_attention"):
        raise UnsupportedModel(
            "{model} attends in both directions, as embedding models do, which does not run here; choose a causal "
            "model",
            model=name,
        )
    return str(family), found


def _counts(values: _Values, family: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "hidden_size": values.count("hidden_size", None),
        "num_hidden_layers": values.count("num_hidden_layers", None, MAX_LAYERS),
    }
    for key, default in _COUNTS[family].items():
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


def _tied(values: _Values, published: Mapping[str, Any], family: str) -> bool:
    """Whether the head is the embedding, where the checkpoint has no head. A wrapper's own word counts first."""
    outer = published.get("tie_word_embeddings")
    if outer in (True, False) and outer is not None:
        return bool(outer)
    if values.found.get("tie_word_embeddings") is not None:
        return values.switch("tie_word_embeddings")
    return family == "gemma3_text" or published.get("model_type") in WRAPPERS


def _windows(values: _Values, family: str, layers: int) -> dict[str, Any]:
    """Sliding windows by the family's own rules: the window, and which layers have it."""
    if family == "llama":
        return {}
    qwen = family.startswith("qwen")
    used = values.switch("use_sliding_window") if qwen else True
    given = values.found.get("sliding_window", _WINDOW)
    if given is None and family == "gemma3_text":
        raise bad_value(values.name, "sliding_window", None)
    window = values.count("sliding_window", _WINDOW) if used and given is not None else None
    found: dict[str, Any] = {"sliding_window": window}
    if qwen:
        found["use_sliding_window"] = used
    if family in _TYPED_LAYERS:
        kinds = _layer_kinds(values, family, layers)
        found["layer_types"] = kinds if window is not None else ["full_attention"] * layers
    return found


def _layer_kinds(values: _Values, family: str, layers: int) -> list[str]:
    kinds = values.found.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise BrokenModel(
                "config.json of {model} lists layer_types for other layers than its {layers}; take config.json from "
                "where the model was published",
                model=values.name,
                layers=layers,
            )
        odd = next((kind for kind in kinds if kind not in _LAYER_KINDS), None)
        if odd is not None:
            raise UnsupportedModel(
                "{model} has layers of the kind {odd}; {kinds:and} run here",
                model=values.name,
                odd=_short(odd),
                kinds=_LAYER_KINDS,
            )
        return list(kinds)
    if family == "gemma3_text":
        key = "sliding_window_pattern" if "sliding_window_pattern" in values.found else "_sliding_window_pattern"
        pattern = values.count(key, 6)
        sliding = [(layer + 1) % pattern != 0 for layer in range(layers)]
    else:
        first = values.found.get("max_window_layers")
        if first is not None and (type(first) is not int or first < 0):
            raise bad_value(values.name, "max_window_layers", first)
        sliding = [layer >= (28 if first is None else first) for layer in range(layers)]
    return ["sliding_attention" if item else "full_attention" for item in sliding]


def _activation(values: _Values, family: str) -> dict[str, str]:
    key, usual = ("hidden_activation", "gelu_pytorch_tanh") if family == "gemma3_text" else ("hidden_act", "silu")
    found = values.found.get(key) or usual
    if found not in _ACTIVATIONS:
        raise UnsupportedModel(
            "{model} has {key} {found}; {known} run here",
            model=values.name,
            key=key,
            found=_short(found),
            known=_ACTIVATIONS,
        )
    return {key: found}


def _experts(values: _Values, config: Mapping[str, Any]) -> dict[str, Any]:
    """Experts of a layer, and the layers that have none."""
    layers, step = config["num_hidden_layers"], config["decoder_sparse_step"]
    key = next(
        (key for key in ("num_experts", "num_local_experts") if values.found.get(key) is not None), "num_experts"
    )
    experts = 0 if values.found.get(key) == 0 else values.count(key, _EXPERTS)
    listed = values.found.get("mlp_only_layers") or []
    if not isinstance(listed, list) or not all(type(item) is int for item in listed):
        raise bad_value(values.name, "mlp_only_layers", listed)
    if 0 < experts < config["num_experts_per_tok"]:
        raise bad_value(values.name, "num_experts_per_tok", config["num_experts_per_tok"])
    dense = [i for i in range(layers) if i in listed or experts == 0 or (i + 1) % step != 0]
    return {"num_experts": experts, "mlp_only_layers": dense, "decoder_sparse_step": 1}


def _ids(value: object) -> list[int]:
    return [item for item in (value if isinstance(value, list) else [value]) if type(item) is int]


def _words(value: object) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _short(value: object) -> str:
    return quoted(value, MOST_SHOWN)
