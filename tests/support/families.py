"""Tiny random checkpoints of every family, saved by transformers' own classes, with configurations that bite.

Knows no backend of ours: `reference_logits` is the unsplit transformers model, what every backend is compared with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from tests.support.case import Case
from tests.support.cases import found
from together.types import Dtype

LAYERS = 4
VOCAB = 160
HIDDEN = 48
Dialect = Literal["new", "old"]
_TORCH: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,  # so low that the scaling changes positions of a short prompt
}
MILLION_ROPE = {"rope_type": "default", "rope_theta": 1e6}
GEMMA_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1_000_000.0},
}
EMBED_SCALE = 0.3
WINDOW = 8  # Gemma 3: shorter than every prompt of the tests

CASES = (
    Case("llama", "llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False}),
    Case("llama-tied", "llama", {"head_dim": 24, "tie_word_embeddings": True}),
    Case("qwen2", "qwen2", {"rope_parameters": MILLION_ROPE, "tie_word_embeddings": True}),
    Case("qwen3", "qwen3", {"head_dim": 32, "rope_parameters": MILLION_ROPE}),
    Case("mistral", "mistral", {"head_dim": 20, "sliding_window": None}),
    Case(
        "gemma3_text",
        "gemma3_text",
        {
            "head_dim": 24,
            "query_pre_attn_scalar": 20,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": GEMMA_ROPE,
            "tie_word_embeddings": True,
        },
    ),
    Case(
        "qwen3_moe",
        "qwen3_moe",
        {
            "head_dim": 24,
            "moe_intermediate_size": 40,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],  # a dense layer in the middle: its number shifts with a cut
            "rope_parameters": MILLION_ROPE,
        },
    ),
)
MISTRAL_WINDOW = Case("mistral-window", "mistral", {"sliding_window": WINDOW})
MORE = found()  # of families that came later: the default suite proves them by one cut
BY_NAME = {case.name: case for case in (*CASES, MISTRAL_WINDOW, *MORE)}


WRAPPED = {"qwen3_vl_text": "qwen3_vl"}  # text models that transformers has inside of a wrapper alone


def model_class(family: str) -> Any:
    """The wrapper's, where there is no other."""
    outer = WRAPPED.get(family, family)
    folder = model_type_to_module_name(outer)
    wrapper = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(outer, "")
    kind = wrapper if outer in WRAPPED.values() else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]
    return getattr(import_module(f"transformers.models.{folder}.modeling_{folder}"), kind)


def config_for(case: Case, **more: Any) -> Any:
    """The case's configuration object, on the common tiny shape."""
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 80,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    settings = {**shape, **case.settings, **more}
    if case.family not in WRAPPED:
        return model_class(case.family).config_class(**settings)
    outer = {key: settings.pop(key) for key in ("vision_config", "image_token_id", "video_token_id")}
    tied = settings.get("tie_word_embeddings", False)
    return model_class(case.family).config_class(text_config=settings, tie_word_embeddings=tied, **outer)


def make_checkpoint(
    folder: Path,
    case: Case | str,
    dtype: Dtype = "fp32",
    dialect: Dialect = "new",
    shard_size: str = "1GB",
    seed: int = 0,
    **more: Any,
) -> Path:
    """Save the case's model with seeded random weights in `folder`; returns it. `more` overrides configuration keys."""
    case = BY_NAME[case] if isinstance(case, str) else case
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)  # some classes begin with noise, to which `_fill` adds
        model = model_class(case.family)(config_for(case, **more))
    _fill(model, seed)
    model.to(_TORCH[dtype]).save_pretrained(folder, max_shard_size=shard_size)
    if dialect == "old":
        _rewrite_config(folder / "config.json")
    return folder


def save_weights(folder: Path, seed: int = 0) -> None:
    """model.safetensors with seeded random weights, in bf16, for the config.json that stands in `folder`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = model_class(config["model_type"])
    model = kind(kind.config_class.from_pretrained(folder))
    _fill(model, seed)
    with TemporaryDirectory(dir=folder) as aside:  # transformers writes its own config.json beside the weights
        model.to(torch.bfloat16).save_pretrained(aside)
        (Path(aside) / "model.safetensors").rename(folder / "model.safetensors")


def _fill(model: Any, seed: int) -> None:
    """Weights whose logits differ clearly; biases and norms too, which plain initialisation leaves at 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "embed_tokens" in name:
                noise *= EMBED_SCALE  # small, or a tied model's best next token is the last one again
            if name.endswith("A_log"):
                # States that last: where they fade within a token, transformers' own rule is off by 8e-6 of a logit.
                parameter.copy_(noise * 0.7 - 1.5)
            elif parameter.dim() > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5 * 1.5)
            else:
                parameter.add_(noise * 0.2)
            if name.endswith("q_norm.weight") and model.config.model_type == "gemma4_text":
                parameter.mul_(len(parameter) ** -0.5)  # as training does, where scores are not scaled
        for name, buffer in model.named_buffers():
            if name.endswith(("e_score_correction_bias", "layer_scalar")):
                buffer.add_(torch.randn(buffer.shape, generator=generator) * 0.2)


def _rewrite_config(file: Path) -> None:
    """The dialect of configs on hubs: rope keys at the top, Gemma's layer kinds as a pattern, `torch_dtype`."""
    config = json.loads(file.read_text())
    if config["model_type"] == "gemma4_text":  # there was no older rope of this one
        changed = config | wide_heads(config) | {"torch_dtype": config.pop("dtype")}
        file.write_text(json.dumps(changed | {"per_layer_config": None}, indent=2))
        return
    if "text_config" in config:  # sections of a rope have always been beside it
        inner = config["text_config"]
        rope = inner.pop("rope_parameters")
        changed = inner | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
        file.write_text(json.dumps(config | {"text_config": changed}, indent=2))
        return
    rope = config.pop("rope_parameters", None) or {}
    if "full_attention" in rope:
        local, rope = rope["sliding_attention"], rope["full_attention"]
        if config["model_type"] == "gemma3_text":
            config["rope_local_base_freq"] = local["rope_theta"]
            kinds = config.pop("layer_types")
            config["sliding_window_pattern"] = kinds.index("full_attention") + 1
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    config["rope_scaling"] = scaling if scaling.get("rope_type", "default") != "default" else None
    config["torch_dtype"] = config.pop("dtype", "float32")
    config.pop("_sliding_window_pattern", None)
    file.write_text(json.dumps(config, indent=2))


def wide_heads(config: Mapping[str, Any]) -> dict[str, Any]:
    """Heads of Gemma 4's layers that see everything, in hubs' words."""
    wide = config["per_layer_config"][str(config["num_hidden_layers"] - 1)]
    return {"global_head_dim": wide["head_dim"], "num_global_key_value_heads": wide.get("num_key_value_heads")}


@lru_cache(maxsize=64)
def reference_model(folder: Path) -> Any:
    """The unsplit transformers model in fp32, on CPU."""
    family = json.loads((folder / "config.json").read_text())["model_type"]
    model = model_class(family).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def reference_logits(folder: Path, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """`[len(ids), vocab]` logits of the unsplit model in fp32, without any cache."""
    with torch.inference_mode():
        logits: torch.Tensor = reference_model(folder)(torch.tensor([list(ids)]), use_cache=False).logits[0]
    return logits.float().numpy()


def reference_greedy(folder: Path, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """The next `count` tokens by argmax of the unsplit model, each from a full pass."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(reference_logits(folder, ids)[-1].argmax()))
    return tuple(ids[len(prompt) :])


def prompt_ids(length: int, seed: int = 0) -> tuple[int, ...]:
    """Seeded random token ids."""
    return tuple(int(i) for i in np.random.default_rng(seed).integers(3, VOCAB, length))
