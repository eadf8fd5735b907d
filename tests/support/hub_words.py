"""Tiny model folders in the words of each family's hub originals: same files, same keys, tiny numbers.

Two dialects: "hub", as publishers wrote the files, and "saved", as transformers 5 writes the same model again (other
keys, the template in a file of its own).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from tests.support import hub_templates, hub_tokenizers
from tests.support.families import save_weights
from tests.support.hub_tokenizers import added_tokens_decoder, id_of

LAYERS = 2
PADDING = 5  # published embeddings have more rows than the tokenizer has words
Ids = Callable[[str], int]
Table = dict[str, Any]
HubDialect = Literal["hub", "saved"]
DIALECTS: tuple[HubDialect, ...] = ("hub", "saved")

_COMMON: Table = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
}


@dataclass(frozen=True)
class Words:
    """What a family's files say. A function of ids gets those of the family's own tokenizer."""

    tokenizer: Callable[[], Tokenizer]
    template: str
    config: Callable[[Ids], Table]
    generation: Callable[[Ids], Table]
    tokenizer_config: Table
    special_tokens_map: Table = field(default_factory=dict)
    knows_tools: bool = True


def make_folder(folder: Path, family: str, dialect: HubDialect = "hub") -> Path:
    """Write the family's folder, with random weights."""
    words, made = FAMILIES[family], folder if dialect == "hub" else folder / "as-published"
    made.mkdir(parents=True, exist_ok=True)
    tokenizer = words.tokenizer()
    ids: Ids = partial(id_of, tokenizer)
    tokenizer.save(str(made / "tokenizer.json"))
    size = tokenizer.get_vocab_size() + PADDING
    _write(made, "config", {**_COMMON, **words.config(ids), "vocab_size": size})
    _write(made, "generation_config", {**words.generation(ids), "transformers_version": "4.51.0"})
    described = {"added_tokens_decoder": added_tokens_decoder(tokenizer), "chat_template": words.template}
    _write(made, "tokenizer_config", {**described, **words.tokenizer_config})
    if words.special_tokens_map:
        _write(made, "special_tokens_map", words.special_tokens_map)
    save_weights(made)
    return folder if dialect == "hub" else _saved_again(made, folder)


def _saved_again(published: Path, folder: Path) -> Path:
    for kind in (AutoConfig, GenerationConfig, AutoTokenizer):
        kind.from_pretrained(published).save_pretrained(folder)
    (published / "model.safetensors").rename(folder / "model.safetensors")
    shutil.rmtree(published)
    return folder


def _write(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


# --- Llama 3.2 Instruct -----------------------------------------------------------------------------------------------

_LLAMA_ENDS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")


def _llama_config(ids: Ids) -> Table:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": ids("<|begin_of_text|>"),
        "eos_token_id": [ids(word) for word in _LLAMA_ENDS],
        "head_dim": 16,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    }


def _llama_generation(ids: Ids) -> Table:
    return {
        "bos_token_id": ids("<|begin_of_text|>"),
        "do_sample": True,
        "eos_token_id": [ids(word) for word in _LLAMA_ENDS],
        "temperature": 0.6,
        "top_p": 0.9,
    }


_FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
LLAMA = Words(
    hub_tokenizers.llama,
    hub_templates.LLAMA,
    _llama_config,
    _llama_generation,
    {
        "bos_token": "<|begin_of_text|>",
        "clean_up_tokenization_spaces": True,
        "eos_token": "<|eot_id|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    },
    {
        "bos_token": {"content": "<|begin_of_text|>", **_FLAGS},
        "eos_token": {"content": "<|eot_id|>", **_FLAGS},
    },
)

# --- Qwen 2.5 Instruct, Qwen 3, Qwen 3 MoE ----------------------------------------------------------------------------

_QWEN_TOKENIZER: Table = {
    "add_bos_token": False,
    "add_prefix_space": False,
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "errors": "replace",
    "model_max_length": 131072,
    "pad_token": "<|endoftext|>",
    "split_special_tokens": False,
    "tokenizer_class": "Qwen2Tokenizer",
    "unk_token": None,
}


def _qwen2_config(ids: Ids) -> Table:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": ids("<|endoftext|>"),
        "eos_token_id": ids("<|im_end|>"),
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    }


def _qwen3_config(ids: Ids) -> Table:
    return {
        **_qwen2_config(ids),
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 16,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
    }


def _qwen3_moe_config(ids: Ids) -> Table:
    return {
        **_qwen3_config(ids),
        "architectures": ["Qwen3MoeForCausalLM"],
        "decoder_sparse_step": 1,
        "max_position_embeddings": 262144,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "output_router_logits": False,
        "rope_theta": 10000000,
        "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": False,
    }


def _qwen_generation(**settings: float) -> Callable[[Ids], Table]:
    def generation(ids: Ids) -> Table:
        text = ids("<|endoftext|>")
        ends = [ids("<|im_end|>"), text]
        return {"bos_token_id": text, "do_sample": True, "eos_token_id": ends, "pad_token_id": text, **settings}

    return generation


QWEN2 = Words(
    hub_tokenizers.qwen,
    hub_templates.QWEN2,
    _qwen2_config,
    _qwen_generation(repetition_penalty=1.1, temperature=0.7, top_p=0.8, top_k=20),
    _QWEN_TOKENIZER,
)
QWEN3 = Words(
    hub_tokenizers.qwen,
    hub_templates.QWEN3,
    _qwen3_config,
    _qwen_generation(temperature=0.6, top_k=20, top_p=0.95),
    _QWEN_TOKENIZER,
)
QWEN3_MOE = Words(
    hub_tokenizers.qwen,
    hub_templates.QWEN3_MOE,
    _qwen3_moe_config,
    _qwen_generation(temperature=0.7, top_k=20, top_p=0.8),
    _QWEN_TOKENIZER,
)

# --- Mistral 7B Instruct v0.3 -----------------------------------------------------------------------------------------


def _mistral_config(_ids: Ids) -> Table:
    return {
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
    }


MISTRAL = Words(
    hub_tokenizers.mistral,
    hub_templates.MISTRAL,
    _mistral_config,
    lambda _ids: {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2},
    {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": True,
        "additional_special_tokens": [],
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": None,
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    },
    {
        "bos_token": {"content": "<s>", **_FLAGS},
        "eos_token": {"content": "</s>", **_FLAGS},
        "unk_token": {"content": "<unk>", **_FLAGS},
    },
)

# --- Gemma 3 it -------------------------------------------------------------------------------------------------------


def _gemma_config(_ids: Ids) -> Table:
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 16,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 8,
        "sliding_window_pattern": 2,
    }


GEMMA = Words(
    hub_tokenizers.gemma,
    hub_templates.GEMMA,
    _gemma_config,
    lambda _ids: {
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "do_sample": True,
        "eos_token_id": [1, 106],
        "pad_token_id": 0,
        "top_k": 64,
        "top_p": 0.95,
    },
    {
        "add_bos_token": True,
        "add_eos_token": False,
        "additional_special_tokens": [],
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "extra_special_tokens": {},
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<pad>",
        "sp_model_kwargs": None,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    },
    knows_tools=False,
)

FAMILIES: Mapping[str, Words] = {
    "llama": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "mistral": MISTRAL,
    "gemma3_text": GEMMA,
    "qwen3_moe": QWEN3_MOE,
}
