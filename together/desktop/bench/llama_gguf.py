"""A GGUF file with random weights in a shape, for llama.cpp's programs. It has no words: they draw tokens by number."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from together.desktop.bench.shapes import SHAPES, ModelShape, noise_tile, require_shape
from together.errors import BadSetting
from together.models.form import PUBLISHED, asked_form, form_title
from together.types import Dtype

Raw = npt.NDArray[Any]
_PLAIN: dict[Dtype, str] = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
_QUANTIZED = {asked_form("4"): "Q4_0", asked_form("8"): "Q8_0"}  # as many bits a weight as those forms have
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_kind(dtype: Dtype, form: str) -> str:
    """llama.cpp's name for such weights. Raises BadSetting for a form that it has nothing like."""
    if form == PUBLISHED:
        return _PLAIN[dtype]
    if form not in _QUANTIZED:
        raise BadSetting(
            "llama.cpp has nothing like weights in {form}; compare with it in plain weights, or with --quantize 4 or 8",
            form=form_title(form),
        )
    return _QUANTIZED[form]


def random_gguf(name: str, dtype: Dtype, form: str, home: Path) -> Path:
    """The file of a shape, all matrices in the same kind; written on first use.

    Raises BadSetting where the shape or the kind is not known, or the package `gguf` is not installed.
    """
    require_shape(name)
    kind = gguf_kind(dtype, form)
    file = home / "bench" / f"{name}-{kind}.gguf"
    if not file.is_file():
        part = file.with_suffix(".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        _write(_library(), part, SHAPES[name], kind)
        part.replace(file)
    return file


def _library() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise BadSetting(
            "writing a model for llama.cpp needs the package gguf; install it with: {python} -m pip install gguf",
            python=sys.executable,
        ) from error
    return gguf


def _write(gguf: Any, file: Path, shape: ModelShape, kind: str) -> None:
    writer = gguf.GGUFWriter(file, "llama")
    _write_metadata(writer, shape)
    sizes = {_stored(name): size for name, size in shape.tensors().items()}
    matrix, vector = (gguf.GGMLQuantizationType[each] for each in (kind, "F32"))  # it takes norms in fp32 alone
    for name, size in sizes.items():
        raw = matrix if len(size) > 1 else vector
        block, nbytes = gguf.GGML_QUANT_SIZES[raw]
        row = size[-1] // block * nbytes
        writer.add_tensor_info(name, (*size[:-1], row), np.dtype(np.uint8), prod(size[:-1]) * row, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    tile = gguf.quants.quantize(noise_tile(), matrix).view(np.uint8).ravel()
    for size in sizes.values():
        writer.write_tensor_data(_weights(size, tile, gguf.GGML_QUANT_SIZES[matrix]))
    writer.close()


def _weights(size: tuple[int, ...], tile: Raw, packed: tuple[int, int]) -> Raw:
    """The bytes of one tensor: a norm's ones, or the tile as often as it takes."""
    block, nbytes = packed
    if len(size) == 1:
        return np.ones(size, "<f4").view(np.uint8)
    return np.resize(tile, prod(size) // block * nbytes)


def _write_metadata(writer: Any, shape: ModelShape) -> None:
    config = shape.config("bf16")
    writer.add_block_count(shape.layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("none")  # so that it asks for no words


def _stored(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`."""
    path, _, end = name.rpartition(".")
    if path in _ENDS:
        return f"{_ENDS[path]}.{end}"
    _, _, layer, part = path.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.{end}"
