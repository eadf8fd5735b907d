"""GGUF files of the tiny families, written by the package `gguf`, and the plain checkpoints that they stand for.

`write_gguf` stores a plain folder's weights as llama.cpp's converter does. `write_judge` has gguf's own dequantizing of
the same bytes under the names of transformers, so that transformers can say what its logits are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind
from pydantic_core import to_json
from safetensors.numpy import load_file, save_file

from tests.support.cases.deepseek import YARN
from tests.support.cases.qwen3_vl import SECTIONS, TOWER
from tests.support.families import BY_NAME, make_checkpoint
from tests.support.gguf_converter import architecture_of, published, stored, write_metadata
from together.models.gguf.refusals import check_nothing_else
from together.models.gguf.sources import SOURCES
from together.models.reading import read_published
from together.models.spec import described as spec_of
from together.weights.imports import config_bytes, described

Array = npt.NDArray[Any]
ChooseKind = Callable[[str, tuple[int, ...]], Kind]
More = Callable[[gguf.GGUFWriter], None]

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
_HYBRID = {"linear_value_head_dim": 32, "linear_num_value_heads": 8}  # four for each of keys
_LATENT = {
    "attention_bias": False,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "moe_intermediate_size": 256,
    "head_dim": 8,
}
_NEMOTRON = {  # no file says how short a step may be, and llama.cpp has no bound
    "mamba_num_heads": 8,
    "mamba_head_dim": 64,
    "time_step_min": 1e-12,
    "mlp_bias": False,
    "use_bias": False,
}
_NEMOTRON_EXPERTS = {"moe_intermediate_size": 256, "moe_shared_expert_intermediate_size": 512}
_MORE: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": _ROPE},
    "gemma3_text": {"query_pre_attn_scalar": 64},  # as all but the largest Gemma 3 have it
    "qwen3_moe": {"moe_intermediate_size": 256, "mlp_only_layers": []},
    "smollm3": {"no_rope_layers": None, "use_sliding_window": False, "sliding_window": None, "layer_types": None},
    "qwen2_moe": {
        "moe_intermediate_size": 256,
        "shared_expert_intermediate_size": 512,
        "use_sliding_window": False,
        "layer_types": None,
    },
    "olmoe": {"norm_topk_prob": False},
    "mixtral": {"sliding_window": None},
    "qwen3_5": _HYBRID,
    "qwen3_next": {
        **_HYBRID,
        "moe_intermediate_size": 256,
        "shared_expert_intermediate_size": 512,
        "mlp_only_layers": [],
    },
    "qwen3_5_moe": {**_HYBRID, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 512},
    "granite4": {"mamba_n_heads": 8, "mamba_d_head": 64, "shared_intermediate_size": 256},
    "granite4-experts": {
        "mamba_n_heads": 8,
        "mamba_d_head": 64,
        "mamba_d_state": 32,
        "mamba_proj_bias": False,
        "intermediate_size": 256,
        "shared_intermediate_size": 512,
    },
    "nemotron_h": {**_NEMOTRON, "mlp_bias": True},
    "nemotron_h-experts": {**_NEMOTRON, **_NEMOTRON_EXPERTS},
    "nemotron_h-latent": {
        **_NEMOTRON,
        **_NEMOTRON_EXPERTS,
        "moe_latent_size": 256,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
    },
    "llama4": {
        "attention_bias": False,
        "intermediate_size": 256,
        "intermediate_size_mlp": 512,
        "no_rope_layers": None,
        "layer_types": None,
        "attention_chunk_size": 8192,
        "floor_scale": 8192,
        "attn_scale": 0.1,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "qwen3_vl": {
        "vision_config": TOWER | {"out_hidden_size": 256},
        "rope_parameters": {**SECTIONS, "mrope_section": [12, 10, 10]},
    },
    "glm4_moe": {"moe_intermediate_size": 256},
    "gemma4_text": {"head_dim": 64, "global_head_dim": 128},
    "gemma4-experts": {"head_dim": 64, "global_head_dim": 128, "moe_intermediate_size": 256},
    "gemma4-shared": {
        "num_hidden_layers": 6,
        "intermediate_size": 256,
        "hidden_size_per_layer_input": 128,
        "head_dim": 32,
        "global_head_dim": 64,
    },
    "deepseek_v3": {
        **_LATENT,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.2,
        "q_lora_rank": 256,
        "rope_parameters": {**YARN, "mscale": 0.7},
    },
    "glm4_moe_lite": _LATENT,
    "gpt_oss": {"layer_types": None},  # windows in every other layer, as files have it without a word
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
    config = _text_of(json.loads((plain / "config.json").read_text(encoding="utf-8")))
    writer = gguf.GGUFWriter(file, architecture_of(config))
    write_metadata(writer, config)
    more(writer)
    random = np.random.default_rng(seed)
    named = {_TEXT.sub("model.", name): array for name, array in load_file(plain / "model.safetensors").items()}
    texts = {name: array for name, array in named.items() if _TOWER not in name}
    for name, array in stored(texts, config, stacked=stacked).items():
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


_TEXT, _TOWER = re.compile(r"model\.language_model\."), ".visual."  # of a wrapper: a file has its text model alone


def _text_of(config: dict[str, Any]) -> dict[str, Any]:
    """Of Nemotron-H with the number of its layers, too, which follows from their list."""
    if "layers_block_type" in config:
        return {"num_hidden_layers": len(config["layers_block_type"]), **config}
    return config | config["text_config"] if "text_config" in config else config


def mixed(name: str, shape: tuple[int, ...]) -> Kind:
    """As Q4_K_M has it, and some plain ones."""
    if _is_small(name):
        return Kind.F32
    if "attn_output" in name or name.endswith((".inp_gate.weight", ".proj.weight")):
        return Kind.F16
    if "attn_k" in name:
        return Kind.BF16
    return Kind.Q6_K if "down" in name or "token" in name or "attn_v" in name else Kind.Q4_K


def every(kind: Kind) -> ChooseKind:
    return lambda name, shape: Kind.F32 if _is_small(name) else kind


def as_published(name: str, shape: tuple[int, ...]) -> Kind:
    """As files of gpt-oss are: experts in MXFP4, the rest in Q8_0."""
    return Kind.F32 if _is_small(name) else Kind.MXFP4 if "_exps" in name else Kind.Q8_0


def _is_small(name: str) -> bool:
    """Routers, convolutions, norms of groups, and biases of stacked experts: the converter leaves them in fp32."""
    return any(part in name for part in ("ffn_gate_inp", "conv1d", "_norm.")) or not name.endswith(".weight")


def write_ollama(file: Path, other: Path) -> Path:
    """A file of gpt-oss as Ollama's own converter writes it, of one that llama.cpp's wrote."""
    reader, writer = gguf.GGUFReader(file), gguf.GGUFWriter(other, "gptoss")
    for key, field in reader.fields.items():
        name = key.replace("gpt-oss.", "gptoss.")
        if not key.startswith(("GGUF.", "general.")) and not name.endswith(_UNSAID):
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        name = tensor.name.replace("post_attention_norm", "ffn_norm").replace("attn_output", "attn_out")
        name = name.removesuffix(".weight") if "attn_sinks" in name else name
        writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return other


_UNSAID = ("expert_feed_forward_length", "rope.scaling.type", "beta_fast", "beta_slow")


def imported(file: Path, folder: Path) -> Path:
    """A folder that stands for the file, without its words."""
    folder.mkdir()
    model, sources = described([file], folder.name)
    (folder / "config.json").write_bytes(config_bytes(model.config))
    (folder / SOURCES).write_bytes(to_json(sources))
    found = spec_of(folder, read_published(folder))
    check_nothing_else(folder.name, found.config, found.tensors)
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
    plainly = load_file(plain / "model.safetensors")
    names = {_TEXT.sub("model.", name): name for name in plainly}
    texts = {name: plainly[own] for name, own in names.items() if _TOWER not in name}
    tensors = {name: array for name, array in plainly.items() if _TOWER in name}
    tensors |= {names[name]: array for name, array in published(found, texts, _text_of(config))}
    save_file({name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    return folder
