"""Checkpoints as people publish them: the same weights under other names, in other files, behind other configurations.

A form takes the folder of a plain checkpoint and changes it in place; the text it writes must stay the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Form = Callable[[Path], None]


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / SINGLE)


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], file: str = SINGLE) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, metadata={"format": "pt"})


def edit_config(folder: Path, *, drop: tuple[str, ...] = (), **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in drop} | changes
    (folder / "config.json").write_text(json.dumps(kept))


def renamed(start: str, head: str = "lm_head.") -> Form:
    """Tensors under another prefix than `model.`, the head under another than `lm_head.`."""

    def change(name: str) -> str:
        return start + name.removeprefix("model.") if name.startswith("model.") else name.replace("lm_head.", head, 1)

    return lambda folder: write_tensors(folder, {change(name): tensor for name, tensor in tensors_of(folder).items()})


def with_unread_keys(folder: Path) -> None:
    """Gemma 4's later layers read those of earlier ones, and are published with their own all the same."""
    names = ("k_proj.weight", "v_proj.weight", "k_norm.weight")
    own = {f"model.layers.5.self_attn.{name}": tensors_of(folder)[f"model.layers.0.self_attn.{name}"] for name in names}
    write_tensors(folder, tensors_of(folder) | own)


def wrapped(kind: str, start: str, head: str) -> Form:
    """A model of text and pictures around the text model."""

    def form(folder: Path) -> None:
        renamed(start, head)(folder)
        pictures = {
            "vision_tower.layers.0.self_attn.q_proj.weight": torch.zeros(3, 5),
            "multi_modal_projector.w": torch.ones(2),
        }
        write_tensors(folder, tensors_of(folder) | pictures)
        text = json.loads((folder / "config.json").read_text())
        outer = {"model_type": kind, "architectures": [f"{kind}ForConditionalGeneration"], "vision_config": {}}
        tied = text.pop("tie_word_embeddings", None)
        text.pop("architectures")
        more = {} if tied is None else {"tie_word_embeddings": tied}
        (folder / "config.json").write_text(json.dumps(outer | more | {"text_config": text}))

    return form


def numbered(folder: Path) -> None:
    """Three numbered files and no index."""
    tensors = list(tensors_of(folder).items())
    (folder / SINGLE).unlink()
    for i in range(3):
        write_tensors(folder, dict(tensors[i::3]), f"model-{i + 1:05}-of-00003.safetensors")


def stale_index(folder: Path) -> None:
    """Three numbered files beside the index of a sharding into two."""
    names = list(tensors_of(folder))
    numbered(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}))


def partial_index(folder: Path) -> None:
    """The index names the first file alone."""
    numbered(folder)
    first = "model-00001-of-00003.safetensors"
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(load_file(folder / first), first)}))


def extras(folder: Path) -> None:
    """Tensors that no layer needs, of every dtype and of odd shapes."""
    kinds = (
        torch.bool,
        torch.uint8,
        torch.int64,
        torch.float64,
        torch.complex64,
        torch.float8_e5m2,
        torch.float8_e4m3fn,
    )
    more = {f"model.layers.0.self_attn.extra_{i}": torch.zeros(3, 2).to(kind) for i, kind in enumerate(kinds)}
    more |= {"model.layers.4.eh_proj.weight": torch.zeros(2, 2), "v_head.summary.weight": torch.zeros(1, 48)}
    more |= {"model.layers.1.self_attn.k_scale": torch.tensor(1.0), "model.rotary_emb.inv_freq": torch.zeros(8)}
    write_tensors(folder, tensors_of(folder) | more)


def encoded(encoding: str, newline: str = "\n") -> Form:
    def form(folder: Path) -> None:
        text = (folder / "config.json").read_text().replace("\n", newline)
        (folder / "config.json").write_bytes(text.encode(encoding))

    return form


def configured(*, drop: tuple[str, ...] = (), **changes: Any) -> Form:
    return lambda folder: edit_config(folder, drop=drop, **changes)


FORMS: dict[str, tuple[str, Form]] = {  # name: the case of families.py it is made of, and the form
    "inner model": ("llama-tied", renamed("")),
    "inner model with a head": ("llama", renamed("")),
    "language_model.model": ("qwen2", renamed("language_model.model.")),
    "language_model with a head": ("qwen3", renamed("language_model.model.", "language_model.lm_head.")),
    "model.language_model": ("llama", renamed("model.language_model.")),
    "compiled": ("llama", renamed("_orig_mod.model.", "_orig_mod.lm_head.")),
    "mistral3": ("mistral", wrapped("mistral3", "language_model.model.", "language_model.lm_head.")),
    "mistral3 of transformers 5": ("mistral", wrapped("mistral3", "model.language_model.", "lm_head.")),
    "mistral3 around ministral3": (
        "ministral3",
        wrapped("mistral3", "language_model.model.", "language_model.lm_head."),
    ),
    "gemma4": ("gemma4_text", wrapped("gemma4", "model.language_model.", "lm_head.")),
    "gemma4 with experts": ("gemma4-experts", wrapped("gemma4", "model.language_model.", "lm_head.")),
    "gemma4, a small one with keys that nobody reads": ("gemma4-shared", with_unread_keys),
    "gemma4, a small one": ("gemma4-shared", wrapped("gemma4", "model.language_model.", "lm_head.")),
    "gemma4, a small one of mlx-lm": (
        "gemma4-shared",
        wrapped("gemma4", "language_model.model.", "language_model.lm_head."),
    ),
    "gemma4 of mlx-lm": ("gemma4_text", wrapped("gemma4", "language_model.model.", "language_model.lm_head.")),
    "gemma3": ("gemma3_text", wrapped("gemma3", "language_model.model.", "language_model.lm_head.")),
    "numbered": ("qwen3_moe", numbered),
    "stale index": ("llama", stale_index),
    "partial index": ("qwen2", partial_index),
    "extras": ("llama-tied", extras),
    "extras with experts": ("qwen3_moe", extras),
    "byte order mark": ("llama", encoded("utf-8-sig")),
    "utf-16": ("gemma3_text", encoded("utf-16")),
    "crlf": ("qwen3", encoded("utf-8", "\r\n")),
    "dtype auto": ("llama", configured(dtype="auto")),
    "no dtype": ("qwen2", configured(drop=("dtype",), torch_dtype=None)),
    "nulls": ("mistral", configured(rope_scaling=None, attention_bias=None, num_labels=None, pad_token_id=None)),
    "odd ids": (
        "qwen3_moe",
        configured(pad_token_id=10**6, eos_token_id="x", bos_token_id=[1], quantization_config=None),
    ),
}


def publish(folder: Path, form: str) -> Path:
    """Change the plain checkpoint in `folder` into this form."""
    FORMS[form][1](folder)
    return folder
