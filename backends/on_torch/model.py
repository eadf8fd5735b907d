"""The transformers model of one layer range from its own tensors, and activations as tensors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from backends.base import LoadRequest
from backends.on_torch.linear import EXPERTS, Bytes, linear_weights, packs, register_experts, speed_up
from backends.on_torch.shard import ATTENTION, TORCH, register_attention
from together.errors import BrokenModel
from together.models.headers import TensorInfo
from together.models.names import EMBED, HEAD, NORM, shifted
from together.models.reading import read_into
from together.models.spec import ModelSpec, needed_tensors, read_config
from together.types import Dtype, LayerRange

_CLASSES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "mistral": ("mistral", "MistralForCausalLM"),
    "gemma3_text": ("gemma3", "Gemma3ForCausalLM"),
    "qwen3_moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
}  # family: module of transformers, class in it
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def model_class(family: str) -> Any:
    """The family's causal LM class; imports its module alone, not all of transformers."""
    module, name = _CLASSES[family]
    return getattr(import_module(f"transformers.models.{module}.modeling_{module}"), name)


def range_config(folder: Path, family: str, layers: LayerRange, *, tied: bool) -> Any:
    """The configuration of a model that has these layers only."""
    raw = read_config(folder)
    kind = model_class(family).config_class
    whole = _config(kind, raw)
    changes: dict[str, Any] = {"num_hidden_layers": len(layers), "tie_word_embeddings": tied, "use_cache": False}
    if getattr(whole, "layer_types", None):
        changes["layer_types"] = whole.layer_types[layers.start : layers.stop]
    if hasattr(whole, "mlp_only_layers"):  # which layers have experts goes by their number in the whole model
        dense = [i for i in range(layers.start, layers.stop) if _is_dense(whole, i)]
        changes |= {"mlp_only_layers": [i - layers.start for i in dense], "decoder_sparse_step": 1}
    return _config(kind, raw | changes)


def _config(kind: Any, values: dict[str, Any]) -> Any:
    try:
        return kind.from_dict(deepcopy(values))
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error


def _is_dense(config: Any, layer: int) -> bool:
    return layer in config.mlp_only_layers or config.num_experts == 0 or (layer + 1) % config.decoder_sparse_step != 0


def read_model(request: LoadRequest, spec: ModelSpec, device: torch.device) -> Any:
    """The request's layers on `device`, ready to run. Raises BrokenModel for missing or misshapen tensors."""
    layers, dtype = request.layers, request.dtype
    first, last = layers.start == 0, layers.stop == spec.layers
    kind, reader = TORCH[dtype], _Reader(TORCH[dtype], device, request.progress)
    needed = needed_tensors(request.folder, layers, request.home)
    infos = {shifted(info.name, layers.start): info for info in needed}
    tied = spec.tied and first and last
    apart = tied and packs(kind, device) and _STORED.get(infos[EMBED].dtype) == kind
    if spec.tied and last and not first:
        infos[HEAD] = infos.pop(EMBED)
    state: dict[str, Any] = {}
    if apart:  # the head is packed; rows of the embedding are looked up in the file, so that neither is there twice
        state[EMBED], infos[HEAD] = _typed(_mapped(infos[EMBED]), infos[EMBED]), infos.pop(EMBED)
    config = range_config(request.folder, spec.family, layers, tied=tied and not apart)
    rows = {name: _Rows(infos[name], reader) for name in _packed_names(spec, config, kind, device) if name in infos}
    reader.total = sum(info.nbytes for info in infos.values())
    shapes = _absent(spec, config) | {name: matrix.shape for name, matrix in rows.items()}
    state |= {name: _Lazy(info, reader) for name, info in infos.items() if name not in rows}
    for name, shape in shapes.items():
        state.setdefault(name, torch.zeros((), dtype=kind).expand(shape))  # takes no memory, and goes again
    model = build(spec, config, state, dtype, device)
    drop_absent(model, first=first, last=last)
    return speed_up(model.to(device), rows)


def _packed_names(spec: ModelSpec, config: Any, kind: torch.dtype, device: torch.device) -> set[str]:
    """The parameters that are not read into the model, but packed part by part."""
    if not packs(kind, device):
        return set()
    with torch.device("meta"):
        return linear_weights(model_class(spec.family)(config))


def _absent(spec: ModelSpec, config: Any) -> dict[str, tuple[int, ...]]:
    """What a range may lack, although the model's class has it."""
    matrix = (spec.vocab_size, spec.hidden_size)
    shapes = {EMBED: matrix, NORM: matrix[1:], HEAD: matrix}
    if config.tie_word_embeddings:
        del shapes[HEAD]
    return shapes


def build(spec: ModelSpec, config: Any, state: Mapping[str, Any], dtype: Dtype, device: torch.device) -> Any:
    """transformers' own loading of `state` into the family's class, on the CPU, with what runs best on `device`."""
    register_attention()
    register_experts()
    with _quiet_and_in_order():
        model, info = model_class(spec.family).from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=TORCH[dtype],
            attn_implementation=ATTENTION,
            experts_implementation=EXPERTS if device.type == "cpu" else None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # checked below, in words of ours
        )
    _check_loaded(spec.name, info)
    return model.eval().requires_grad_(False)


def _check_loaded(name: str, info: Mapping[str, Any]) -> None:
    """transformers fills what is missing with random numbers: that is not the model."""
    texts = {
        "missing_keys": "{model} lacks {key}; get this model again",
        "mismatched_keys": "{model} has the wrong shape for {key}; get this model again",
    }
    for what, text in texts.items():
        if info[what]:
            key = sorted(info[what], key=str)[0]
            raise BrokenModel(text, model=name, key=key if isinstance(key, str) else key[0])


def drop_absent(model: Any, *, first: bool, last: bool) -> None:
    if not first:
        model.model.embed_tokens = None
    if not last:
        model.model.norm = nn.Identity()
        model.lm_head = None


@dataclass(slots=True)
class _Reader:
    """Reads tensors in the compute dtype, and tells how far it is."""

    dtype: torch.dtype
    device: torch.device
    progress: Callable[[float], None]
    total: int = 0
    done: int = 0

    def read(self, info: TensorInfo) -> Tensor:
        tensor = _typed(self._bytes(info), info).to(self.dtype)
        self.count(info.nbytes)
        return tensor

    def count(self, nbytes: int) -> None:
        self.done += nbytes
        self.progress(self.done / self.total)

    def _bytes(self, info: TensorInfo) -> Tensor:
        """Read where the weights stay in this memory; only mapped where they go on to an accelerator's."""
        if self.device.type != "cpu":
            return _mapped(info)
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        read_into(info, raw.numpy().data)
        return raw


def _mapped(info: TensorInfo) -> Tensor:
    """A tensor's bytes; they take no memory but what is looked at, which the system may take back."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # nobody writes
        return torch.from_numpy(np.memmap(info.file, np.uint8, "r", info.start, (info.nbytes,)))


def _typed(raw: Tensor, info: TensorInfo) -> Tensor:
    kind = _STORED.get(info.dtype)
    if kind is None:
        raise BrokenModel(
            "{file} stores {tensor} as {dtype}; get this model again",
            file=info.file.name,
            tensor=info.name,
            dtype=info.dtype,
        )
    return raw.view(kind).reshape(info.shape)


@dataclass(frozen=True, slots=True)
class _Rows:
    """A matrix of the checkpoint, read by rows where it is packed."""

    info: TensorInfo
    reader: _Reader

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    def read(self, start: int, stop: int, room: Bytes) -> Tensor:
        first, size = self.info.start, self._row_bytes
        shape = (stop - start, self.shape[1])
        part = replace(self.info, shape=shape, start=first + start * size, stop=first + stop * size)
        raw = room[: part.nbytes]
        read_into(part, raw.data)
        return _typed(torch.from_numpy(raw), part)

    def packed(self, start: int, stop: int) -> None:
        self.reader.count((stop - start) * self._row_bytes)

    @property
    def _row_bytes(self) -> int:
        return self.info.nbytes // self.shape[0]


@dataclass(frozen=True, slots=True)
class _Lazy:
    """Stands for a tensor in a state dict: transformers asks for `[...]` when it comes to it."""

    info: TensorInfo
    reader: _Reader

    def __getitem__(self, _: object) -> Tensor:
        return self.reader.read(self.info)


@contextmanager
def _quiet_and_in_order() -> Iterator[None]:
    """No bars or reports; tensors one after the other, or a pool of threads reads all before the first is in place."""
    from transformers.utils import logging

    key = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")
            yield
    finally:
        logging.set_verbosity(level)
        os.environ.pop(key) if before is None else os.environ.update({key: before})
