"""GGUF files of the tiny families, written by the package `gguf`, and the plain checkpoints that they stand for.

`write_gguf` stores a plain folder's weights as llama.cpp's converter does. `write_judge` has gguf's own dequantizing of
the same bytes under the names of transformers, so that transformers can say what its logits are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind
from pydantic_core import to_json
from safetensors.numpy import load_file, save_file

from tests.support.families import BY_NAME, make_checkpoint
from together.models.gguf.sources import SOURCES
from together.weights.imports import config_bytes, described

Array = npt.NDArray[Any]
ChooseKind = Callable[[str, tuple[int, ...]], Kind]
More = Callable[[gguf.GGUFWriter], None]

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
    "qwen3_moe": "qwen3moe",
}
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_SCALES = {  # where fp16 numbers stand in a block
    Kind.Q4_0: (0,), Kind.Q4_1: (0, 2), Kind.Q5_0: (0,), Kind.Q5_1: (0, 2), Kind.Q8_0: (0,), Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,), Kind.MXFP4: (),
}  # fmt: skip
_STEP = {  # a usual scale, so that weights are of the order of 0.05
    Kind.Q4_0: 7e-3, Kind.Q4_1: 7e-3, Kind.Q5_0: 4e-3, Kind.Q5_1: 4e-3, Kind.Q8_0: 5e-4, Kind.Q2_K: 3e-3,
    Kind.Q3_K: 9e-4, Kind.Q4_K: 2e-4, Kind.Q5_K: 1e-4, Kind.Q6_K: 3e-5, Kind.MXFP4: 0,
}  # fmt: skip
SHAPE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 4}
_ROPE = {"rope_type": "default", "rope_theta": 500_000.0}
_MORE: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": _ROPE},
    "gemma3_text": {"query_pre_attn_scalar": 64},  # as all but the largest Gemma 3 have it
    "qwen3_moe": {"moe_intermediate_size": 256, "mlp_only_layers": []},
}
PLAIN = {Kind.F32: np.float32, Kind.F16: np.float16}


def make_plain(folder: Path, name: str, **more: Any) -> Path:
    """A plain checkpoint of a case of families.py, in widths that K-quants take."""
    return make_checkpoint(folder, BY_NAME[name], "fp32", **{**SHAPE, **_MORE.get(name, {}), **more})


def write_gguf(
    plain: Path,
    file: Path,
    choose: ChooseKind,
    *,
    stacked: bool = True,
    seed: int = 0,
    more: More = lambda writer: None,
) -> Path:
    """The plain folder as a GGUF file; matrices that `choose` gives a packed type get random blocks of it.

    `more` writes further metadata.
    """
    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(file, ARCHITECTURES[config["model_type"]])
    _write_metadata(writer, config)
    more(writer)
    random = np.random.default_rng(seed)
    for name, array in _stored(plain, config, stacked=stacked).items():
        kind = choose(name, array.shape) if array.ndim > 1 else Kind.F32
        if kind in PLAIN:
            writer.add_tensor(name, array.astype(PLAIN[kind]))
        elif kind == Kind.BF16:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, random_blocks(kind, array.shape, random), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def mixed(name: str, shape: tuple[int, ...]) -> Kind:
    """As Q4_K_M has it, and some plain ones."""
    if "ffn_gate_inp" in name or "attn_output" in name:
        return Kind.F32 if "inp" in name else Kind.F16
    if "attn_k" in name:
        return Kind.BF16
    return Kind.Q6_K if "down" in name or "token" in name or "attn_v" in name else Kind.Q4_K


def every(kind: Kind) -> ChooseKind:
    return lambda name, shape: Kind.F32 if "ffn_gate_inp" in name else kind


def imported(file: Path, folder: Path) -> Path:
    """A folder that stands for the file, without its words."""
    folder.mkdir()
    model, sources = described([file], folder.name)
    (folder / "config.json").write_bytes(config_bytes(model.config))
    (folder / SOURCES).write_bytes(to_json(sources))
    return folder


def random_blocks(kind: Kind, shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Blocks of random codes under sane scales, for weights of `shape`."""
    weights, nbytes = gguf.GGML_QUANT_SIZES[kind]
    raw = random.integers(0, 256, (*shape[:-1], shape[-1] // weights, nbytes), dtype=np.uint8)
    for at in _SCALES[kind]:
        scales = _STEP[kind] * random.uniform(0.5, 1.5, (*raw.shape[:-1], 1))
        if kind in (Kind.Q4_1, Kind.Q5_1) and at == 2:  # a minimum that balances the codes
            scales *= -7.5 if kind == Kind.Q4_1 else -15.5
        raw[..., at : at + 2] = scales.astype("<f2").view(np.uint8)
    if kind == Kind.MXFP4:
        raw[..., 0] = random.integers(118, 123, raw.shape[:-1])
    return raw.reshape(*shape[:-1], -1)


def write_judge(file: Path, plain: Path, folder: Path) -> Path:
    """A plain folder in fp32 with what the GGUF file's bytes stand for."""
    folder.mkdir()
    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}), encoding="utf-8")
    found = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(file).tensors}
    names = {stored: name for name, stored in _names(load_file(plain / "model.safetensors"), config).items()}
    tensors: dict[str, Array] = {}
    for stored, array in found.items():
        if stored in names:
            tensors[names[stored]] = _published(names[stored], array, config)
        elif len(stored.split(".")) == 5:  # one expert's
            _, layer, part, expert, _ = stored.split(".")
            tensors[f"model.layers.{layer}.mlp.experts.{expert}.{part.removeprefix('ffn_')}_proj.weight"] = array
        elif stored.endswith("_exps.weight"):
            layer, part = stored.split(".")[1:3]
            path = f"model.layers.{layer}.mlp.experts.{{}}.{part.split('_')[1]}_proj.weight"
            tensors |= {path.format(expert): one for expert, one in enumerate(array)}
    save_file({name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    return folder


# --- inside -----------------------------------------------------------------------------------------------------------


def _write_metadata(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if config.get("sliding_window") and config["model_type"] in ("gemma3_text", "mistral"):
        writer.add_sliding_window(config["sliding_window"])
    if "moe_intermediate_size" in config:
        writer.add_expert_count(config.get("num_experts") or config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if config["model_type"] == "gemma3_text":
        writer.add_uint32("gemma3.attention.sliding_window_pattern", config["layer_types"].index("full_attention") + 1)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)


def _names(tensors: Mapping[str, Array], config: Mapping[str, Any]) -> dict[str, str]:
    """Published name → name in GGUF, for all but the experts."""
    parts = _PARTS | (_GEMMA if config["model_type"] == "gemma3_text" else {})
    ends = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    found = {}
    for name in tensors:
        path, _, end = name.rpartition(".")
        if path in ends:
            found[name] = f"{ends[path]}.{end}"
        elif ".experts." not in name:
            _, _, layer, part = path.split(".", 3)
            found[name] = f"blk.{layer}.{parts[part]}.{end}"
    return found


def _stored(plain: Path, config: Mapping[str, Any], *, stacked: bool) -> dict[str, Array]:
    tensors = load_file(plain / "model.safetensors")
    found = {}
    for name, stored in _names(tensors, config).items():
        found[stored] = _as_stored(name, tensors[name], config)
    experts: dict[str, dict[int, Array]] = {}
    for name in tensors:
        if ".experts." in name:
            _, _, layer, _, _, expert, part, _ = name.split(".")
            kind = part.removesuffix("_proj")
            if stacked:
                experts.setdefault(f"blk.{layer}.ffn_{kind}_exps.weight", {})[int(expert)] = tensors[name]
            else:
                found[f"blk.{layer}.ffn_{kind}.{expert}.weight"] = tensors[name]
    return found | {name: np.stack([each[i] for i in sorted(each)]) for name, each in experts.items()}


def _as_stored(name: str, array: Array, config: Mapping[str, Any]) -> Array:
    heads = _heads(name, config)
    if heads:
        return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    return array + 1 if _is_larger(name, config) else array


def _published(name: str, array: Array, config: Mapping[str, Any]) -> Array:
    heads = _heads(name, config)
    if heads:
        return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    return array - 1 if _is_larger(name, config) else array


def _heads(name: str, config: Mapping[str, Any]) -> int:
    if ARCHITECTURES[config["model_type"]] != "llama":
        return 0
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    found: int = heads.get(name.split(".")[-2], 0)
    return found


def _is_larger(name: str, config: Mapping[str, Any]) -> bool:
    return config["model_type"] == "gemma3_text" and name.endswith("norm.weight")
