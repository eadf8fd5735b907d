"""Checkpoints in the formats of others: GPTQ, AWQ, compressed-tensors and FP8, each with a plain one for transformers.

Codes are packed here by the rules of their libraries, or by the package `compressed-tensors`. What the stored tensors
stand for is said by mlx-lm's own transform (of AWQ's layout, all that it knows), or by that package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.mlx_folders import mlx_lm

Array = npt.NDArray[Any]
Stored = dict[str, Tensor]  # by the ends of names
Write = Callable[[Tensor], tuple[Stored, Tensor]]  # a plain matrix → what is stored, and what it stands for in fp32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ: which output stands where in a word


@dataclass(frozen=True)
class Foreign:
    """A format: how a matrix is written, and what config.json says of it."""

    name: str
    write: Write
    config: Mapping[str, Any]
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # that lie beside each matrix and count for nothing


# --- whole numbers with zero points -----------------------------------------------------------------------------------


def integers(weight: Tensor, bits: int, group: int, *, symmetric: bool) -> tuple[Array, Array, Array]:
    """`[outputs, inputs]` → codes alike, scales and zero points `[outputs, groups]`.

    Scales have seven bits, so that their products with zero points fit into fp16, to which mlx-lm rounds them.
    """
    grouped = weight.float().reshape(len(weight), -1, group)
    most = 2**bits - 1
    if symmetric:
        scales = grouped.abs().amax(-1) * 2 / most
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scales = (high - low) / most
        zeros = (-low / scales).round().clamp(0, most)
    fractions, exponents = torch.frexp(scales)
    scales = torch.ldexp((fractions * 128).round() / 128, exponents)
    codes = (grouped / scales[..., None] + zeros[..., None]).round().clamp(0, most)
    return codes.reshape(weight.shape).int().numpy(), scales.numpy(), zeros.int().numpy()


def packed(codes: Array, bits: int, order: tuple[int, ...] = ()) -> Tensor:
    """`[n, m]` codes → int32 `[n, m·bits/32]`, by shifts as AutoGPTQ and AutoAWQ write them."""
    count = 32 // bits
    words = np.zeros((codes.shape[0], codes.shape[1] // count), np.uint32)
    for place, item in enumerate(order or range(count)):
        words |= codes[:, item::count].astype(np.uint32) << np.uint32(place * bits)
    return torch.from_numpy(words.view(np.int32))


def stored_gptq(codes: Array, scales: Array, zeros: Array, bits: int, *, less: int = 1) -> Stored:
    inputs = codes.shape[1]
    return {
        "qweight": packed(codes, bits).T.contiguous(),  # along the inputs, which come first
        "qzeros": _lessened(packed(zeros.T, bits), bits, less),
        "scales": torch.from_numpy(scales.T.copy()).half(),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // (inputs // scales.shape[1]),
    }


def _lessened(words: Tensor, bits: int, less: int) -> Tensor:
    """As gptqmodel's first version stores zero points: one of each is taken from whole words."""
    ones = np.uint32(sum(less << at for at in range(0, 32, bits)))
    return torch.from_numpy((words.numpy().view(np.uint32) - ones).view(np.int32))


def stored_awq(codes: Array, scales: Array, zeros: Array) -> Stored:
    return {
        "qweight": packed(codes.T, 4, AWQ_ORDER),
        "qzeros": packed(zeros.T, 4, AWQ_ORDER),
        "scales": torch.from_numpy(scales.T.copy()).half(),
    }


def judged_by_mlx(stored: Stored, group: int) -> Tensor:
    """What mlx-lm makes of a matrix in AWQ's layout, widened to fp32."""
    given = {f"m.{end}": mx.array(tensor.numpy()) for end, tensor in stored.items()}
    found, how = mlx_lm()._transform_awq_weights(given, {"bits": 4, "group_size": group})
    scales, biases = (found[f"m.{end}"].astype(mx.float32) for end in ("scales", "biases"))
    weights = mx.dequantize(found["m.weight"], scales, biases, group, how["bits"], dtype=mx.float32)
    return torch.from_numpy(np.array(weights))


def gptq(bits: int, group: int, *, symmetric: bool = True, less: int = 1) -> Write:
    def write(weight: Tensor) -> tuple[Stored, Tensor]:
        whole = group if group > 0 else weight.shape[1]
        codes, scales, zeros = integers(weight, bits, whole, symmetric=symmetric)
        stored = stored_gptq(codes, scales, zeros, bits, less=less)
        if bits == 4 and whole <= 128:  # all that MLX has products for
            return stored, judged_by_mlx(stored_awq(codes, scales, zeros), whole)
        wide = (codes - np.repeat(zeros, whole, 1)) * np.repeat(scales, whole, 1)
        return stored, torch.from_numpy(wide.astype(np.float32))

    return write


def awq(group: int) -> Write:
    def write(weight: Tensor) -> tuple[Stored, Tensor]:
        stored = stored_awq(*integers(weight, 4, group, symmetric=False))
        return stored, judged_by_mlx(stored, group)

    return write


# --- compressed-tensors -----------------------------------------------------------------------------------------------


def compressed(format: str, **arguments: Any) -> Write:
    """By the package itself: its scales, its packing, and its reading of them in fp32."""
    how = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=how)

    def write(weight: Tensor) -> tuple[Stored, Tensor]:
        library = BaseCompressor.get_value_from_registry(format)
        stored = library.compress({"weight": weight.float(), **_scales(weight.float(), how)}, scheme)
        wide = {name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for name, tensor in stored.items()}
        return stored, library.decompress(wide, scheme)["weight"].float()

    return write


def nvfp4(weight: Tensor) -> tuple[Stored, Tensor]:
    """The package unpacks them in bf16: here in fp32, by its own functions."""
    how = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16,
                           scale_dtype=torch.float8_e4m3fn, zp_dtype=torch.float8_e4m3fn)  # fmt: skip
    scheme = QuantizationScheme(targets=["Linear"], weights=how)
    library = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    stored = library.compress({"weight": weight.float(), **_scales(weight.float(), how)}, scheme)
    codes = unpack_fp4_from_uint8(stored["weight_packed"], *weight.shape, dtype=torch.float32)
    scale, scale_all = stored["weight_scale"].float(), stored["weight_global_scale"]
    return stored, dequantize(codes, scale, args=how, global_scale=scale_all, dtype=torch.float32)


def _scales(weight: Tensor, how: QuantizationArgs) -> Stored:
    outputs, inputs = weight.shape
    if how.block_structure is not None:
        height, width = how.block_structure
        rows, columns = -(-outputs // height), -(-inputs // width)
        padded = torch.zeros(rows * height, columns * width)
        padded[:outputs, :inputs] = weight
        grouped = padded.reshape(rows, height, columns, width).transpose(1, 2).flatten(2)
    elif how.strategy == "tensor":
        grouped = weight.reshape(1, -1)
    else:
        grouped = weight.reshape(outputs, -1, how.group_size or inputs)
    low, high = grouped.amin(-1), grouped.amax(-1)
    if how.strategy == "tensor_group":
        scale_all = torch.tensor([6 * 448 / float(weight.abs().max())])
        scale, _ = calculate_qparams(low, high, how, global_scale=scale_all)
        return {"weight_scale": scale.float(), "weight_global_scale": scale_all}
    scale, zeros = calculate_qparams(low, high, how)
    return {"weight_scale": scale.bfloat16(), "weight_zero_point": zeros}


def fp8_blocks(weight: Tensor) -> tuple[Stored, Tensor]:
    """As DeepSeek and Qwen publish it; read by the package's converter of such files."""
    how = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}
    found, _ = compressed("naive-quantized", **how)(weight)
    stored = {"weight": found["weight"], "weight_scale_inv": found["weight_scale"].float() * 1.0009765625}
    reader = FP8BlockDequantizer(targets=["re:.*"], weight_block_size=[128, 128], dtype=torch.float32)
    return stored, reader.process({f"m.{end}": tensor for end, tensor in stored.items()})["m.weight"]


_INT4 = {"num_bits": 4, "type": "int"}
_FP8 = {"num_bits": 8, "type": "float"}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
_COMPRESSED = {"quant_method": "compressed-tensors", "ignore": ["lm_head"], "quantization_status": "compressed"}
_CACHES = {"k_scale": torch.tensor(2.0), "input_scale": torch.tensor(0.5)}
FORMATS = {
    each.name: each
    for each in (
        Foreign("gptq-4", gptq(4, 128), {"quantization_config": _GPTQ}),
        Foreign("gptq-4-channel", gptq(4, -1), {"quantization_config": _GPTQ | {"group_size": -1, "desc_act": True}}),
        Foreign("gptq-8", gptq(8, 32, symmetric=False),
                {"quantization_config": _GPTQ | {"group_size": 32}}),  # its bits are not what it says
        Foreign("gptq-2", gptq(2, 32, symmetric=False), {"quantization_config": _GPTQ | {"bits": 2, "group_size": 32}}),
        Foreign("gptq-v2", gptq(4, 64, symmetric=False, less=0),
                {"quantization_config": _GPTQ | {"group_size": 64, "checkpoint_format": "gptq_v2"}}),
        Foreign("awq", awq(128), {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "GEMM"}}),
        Foreign("awq-undeclared", awq(32), {}),
        Foreign("int4", compressed("pack-quantized", strategy="group", group_size=128, **_INT4),
                {"quantization_config": _COMPRESSED}, _CACHES),
        Foreign("int4-asymmetric", compressed("pack-quantized", strategy="group", group_size=64, symmetric=False,
                                              **_INT4), {"quantization_config": _COMPRESSED}),
        Foreign("int4-channel", compressed("pack-quantized", strategy="channel", **_INT4),
                {"quantization_config": _COMPRESSED}),
        Foreign("int8-packed", compressed("pack-quantized", strategy="group", group_size=256, num_bits=8, type="int"),
                {"quantization_config": _COMPRESSED}),
        Foreign("int8", compressed("int-quantized", strategy="channel", num_bits=8, type="int"),
                {"quantization_config": _COMPRESSED}, _CACHES),
        Foreign("nvfp4", nvfp4, {"quantization_config": _COMPRESSED}),
        Foreign("fp8-blocks", fp8_blocks, {"quantization_config": {"quant_method": "fp8"}}, _CACHES),
        Foreign("fp8-compressed-blocks", compressed("naive-quantized", strategy="block", block_structure=[128, 128],
                                                    **_FP8), {"quantization_config": _COMPRESSED}),
        Foreign("fp8-channel", compressed("float-quantized", strategy="channel", **_FP8),
                {"quantization_config": _COMPRESSED}, _CACHES),
        Foreign("fp8-tensor", compressed("float-quantized", strategy="tensor", **_FP8),
                {"quantization_config": _COMPRESSED}, _CACHES),
    )
}  # fmt: skip


def write_foreign(plain: Path, place: Path, format: Foreign) -> tuple[Path, Path]:
    """`plain` with the matrices of its layers in this format, and its judge: plain, in fp32. All else is in fp16."""
    stored: Stored = {}
    judged: Stored = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = tensor.half()
            judged[name] = stored[name].float()
            continue
        found, judged[name] = format.write(tensor)
        start = name.removesuffix("weight")
        stored |= {f"{start}{end}": part.contiguous() for end, part in found.items()}
        stored |= {f"{start}{end}": part.clone() for end, part in format.extras.items()}
    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    said = {"packed": config | {"dtype": "float16", **format.config}, "judge": config | {"dtype": "float32"}}
    for folder, tensors in (("packed", stored), ("judge", judged)):
        (place / folder).mkdir()
        (place / folder / "config.json").write_text(json.dumps(said[folder]), encoding="utf-8")
        kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(kept, place / folder / "model.safetensors", {"format": "pt"})
    return place / "packed", place / "judge"
