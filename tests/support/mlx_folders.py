"""Checkpoints in MLX's format, written by mlx-lm's own functions, and the plain ones that compute the same.

`write_mlx` quantizes a plain folder as `mlx_lm.convert` does. `write_judge` widens the result by the rules of
`together.weights.quantize`, under the names of transformers, so that transformers can say what its logits are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from math import inf
from pathlib import Path
from shutil import copy
from typing import Any, cast
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from safetensors.numpy import save_file

from tests.support.case import Case
from tests.support.families import BY_NAME, make_checkpoint, wide_heads
from tests.support.mlx_names import published_tensors
from tests.support.widen import dequantize
from together.models.codes import Floats
from together.models.families import BY_NAME as BY_FAMILY
from together.models.family import FULL, LINEAR
from together.models.form import stack_of
from together.models.packing import Mode, packing_of
from together.types import Dtype

INDEX = "model.safetensors.index.json"
Settings = dict[str, Any]
Choice = bool | Settings  # whether a module is quantized, or how, where it differs from the others
Choose = Callable[[str, Any], Choice]  # by the module's path

# Widths in which groups of 128 fit, except that of Gemma's o_proj, 96: it stays plain in groups of 64.
SHAPE = {"hidden_size": 128, "intermediate_size": 256}
_MORE: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32},
    "llama-tied": {"head_dim": 32},
    "mistral": {"head_dim": 32},
    "gemma3_text": {"head_dim": 24},
    "qwen3_moe": {"head_dim": 32, "moe_intermediate_size": 128},
}


@dataclass(frozen=True, slots=True)
class MlxForm:
    """What `mlx_lm.convert` is told: the usual packing, and, by a module's path, what differs from it."""

    name: str
    mode: Mode
    bits: int
    group: int
    choose: Choose | None = None

    def __str__(self) -> str:
        return self.name


def by_width(path: str, module: Any) -> Choice:
    """3, 5 and 6 bits, in groups of 32, 64 and 128, as far as a matrix is wide enough for them."""
    width = module.weight.shape[-1]
    for ends, settings in _WIDTHS.items():
        if path.endswith(ends) and width % settings["group_size"] == 0:
            return {**settings, "mode": "affine"}
    return True


_WIDTHS: dict[tuple[str, ...], Settings] = {
    ("v_proj", "down_proj"): {"group_size": 64, "bits": 6},
    ("q_proj", "lm_head"): {"group_size": 128, "bits": 6},
    ("gate_proj", "embed_tokens"): {"group_size": 32, "bits": 5},
    ("k_proj",): {"group_size": 128, "bits": 5},
    (".gate",): {"group_size": 64, "bits": 8},
}


def ends_plain(path: str, module: Any) -> Choice:
    """Embedding and head stay as they are."""
    return not path.endswith(("embed_tokens", "lm_head"))


FORMS = {
    form.name: form
    for form in (
        MlxForm("affine-4", "affine", 4, 64),
        MlxForm("affine-8", "affine", 8, 64),
        MlxForm("mixed", "affine", 3, 32, by_width),
        MlxForm("mxfp4", "mxfp4", 4, 32),
        MlxForm("nvfp4", "nvfp4", 4, 16),
        MlxForm("mxfp8", "mxfp8", 8, 32),
        MlxForm("ends-plain", "affine", 4, 32, ends_plain),
        *(MlxForm(f"affine-{bits}-g{group}", "affine", bits, group) for bits in (2, 3, 5, 6) for group in (32, 64)),
        *(MlxForm(f"affine-{bits}-g128", "affine", bits, 128) for bits in (2, 3, 4, 5, 6, 8)),
    )
}


def make_plain(folder: Path, name: str, dtype: Dtype = "fp32", **more: Any) -> Path:
    """A plain checkpoint of a case of families.py, in widths that can be quantized."""
    case: Case = BY_NAME[name]
    return make_checkpoint(folder, case, dtype, **{**SHAPE, **_MORE.get(name, {}), **case.wide, **more})


def write_mlx(plain: Path, folder: Path, form: MlxForm | None, *, files: int = 1, prefix: str = "") -> Path:
    """Quantize `plain` into `folder`, or only rewrite it where there is no `form`; returns the folder.

    `prefix` stands before the paths of config.json's overrides.
    """
    utils = mlx_lm()
    words = _hub_words(plain)
    fused, prefix_read = words.get("model_type") == "qwen3_5_moe", _PREFIXES.get(words.get("model_type", ""), "")
    with patch("mlx.core.load", _loaded(mx.load, fused=fused, prefix=prefix_read)):
        model, config = utils.load_model(plain, lazy=True, model_config=words)
    if form is not None:
        how = (form.group, form.bits, form.mode)
        model, config = utils.quantize_model(model, config, *how, quant_predicate=form.choose)
    with patch.object(utils, "make_shards", lambda weights: _shards(weights, files)):  # its own limit is 5 GB
        utils.save_model(folder, model)
    if prefix:
        config["quantization"] = {
            prefix + key if isinstance(value, dict) else key: value for key, value in config["quantization"].items()
        }
    utils.save_config(config, folder / "config.json")
    for file in plain.iterdir():  # the tokenizer and what else lies beside the weights
        if not (folder / file.name).exists() and not file.name.endswith((".safetensors", INDEX)):
            copy(file, folder / file.name)
    return folder


def _loaded(load: Callable[[str], Any], *, fused: bool, prefix: str) -> Callable[[str], dict[str, mx.array]]:
    """mlx-lm expects experts that are fused as its own conversions of them; transformers saves them otherwise.

    `fused`: it does not know those of this family one by one. `prefix`: what it wants before names.
    """

    def loaded(file: str) -> dict[str, mx.array]:
        weights = {f"{prefix}{name}": array for name, array in _unfused(load(file))}
        return dict(_stacked(weights)) if fused else weights

    return loaded


def _stacked(weights: Mapping[str, mx.array]) -> Iterator[tuple[str, mx.array]]:
    """Experts one by one as MLX has them."""
    for name, array in weights.items():
        stack = stack_of(name)
        if stack == name:
            yield name, array
        elif ".experts.0." in name:
            count = sum(stack_of(other) == stack for other in weights)
            yield stack, mx.stack([weights[name.replace(".experts.0.", f".experts.{i}.")] for i in range(count)])


def _unfused(weights: Mapping[str, mx.array]) -> Iterator[tuple[str, mx.array]]:
    for name, array in weights.items():
        match = _FUSED.fullmatch(name)
        if match is None:
            yield name, array
            continue
        projection, end = match[2], "bias" if match[3] else "weight"
        turned = array if match[3] else mx.swapaxes(array, 1, 2)
        parts = {"gate_proj": turned[:, 0::2], "up_proj": turned[:, 1::2]}
        for part, values in parts.items() if projection == "gate_up_proj" else [(projection, turned)]:
            yield f"{match[1]}.{part}.{end}", mx.contiguous(values)


_FUSED = re.compile(r"(.+\.mlp\.experts)\.(gate_up_proj|down_proj)(_bias)?")


def _hub_words(plain: Path) -> dict[str, Any]:
    """What mlx-lm asks for: hubs' words, which transformers 5 does not write any more."""
    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    if config.get("per_layer_config"):
        return wide_heads(config)
    if "text_config" in config:
        inner = config["text_config"]
        return {"text_config": inner | {"rope_theta": inner["rope_parameters"]["rope_theta"]}}
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    found = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    found |= {"head_dim": width, "rotary_dim": int(width * rope.get("partial_rotary_factor", 1.0))}
    found["shared_intermediate_size"] = config.get("shared_intermediate_size", 0)
    found |= {"first_k_dense_replace": config["mlp_layer_types"].count("dense")} if "mlp_layer_types" in config else {}
    found |= {"rope_scaling": None} if rope.get("rope_type") == "default" else {}
    found |= {"rope_scaling": rope} if config["model_type"] == "llama4_text" else {}
    found |= {"num_experts": config["num_local_experts"]} if "num_local_experts" in config else {}
    kinds = config.get("layer_types") or ()
    if config["model_type"] == "granitemoehybrid":
        found["layer_types"] = ["mamba" if kind == LINEAR else "attention" for kind in kinds]
        found |= {"time_step_limit": (0.0, inf), "position_embedding_type": config["position_embedding_type"] or "nope"}
        found |= {} if config["num_local_experts"] else {"intermediate_size": config["shared_intermediate_size"]}
    found |= {"mamba_proj_bias": config["use_bias"]} if config["model_type"] == "nemotron_h" else {}
    found |= {"full_attention_interval": kinds.index(FULL) + 1} if LINEAR in kinds else {}
    wrapper = _WRAPPERS.get(config["model_type"])
    return found if wrapper is None else {"model_type": wrapper, "text_config": config | found}


_WRAPPERS = {  # mlx-lm knows their text models by these
    "qwen3_5_text": "qwen3_5",
    "qwen3_5_moe_text": "qwen3_5_moe",
    "llama4_text": "llama4",
}
_PREFIXES = {"llama4": "language_model."}  # of tensors' names, which it does not add by itself


@cache
def mlx_lm() -> Any:
    """`mlx_lm.utils`, kept from lowering this process's limit of open files for good."""
    with patch("resource.setrlimit"):
        return import_module("mlx_lm.utils")


def _shards(weights: Mapping[str, mx.array], files: int) -> list[dict[str, mx.array]]:
    """In runs, as mlx-lm divides them: a matrix and its scales may lie in different files."""
    parts = np.array_split(np.array(list(weights)), files)
    return [{str(name): weights[str(name)] for name in part} for part in parts]


# --- the judge --------------------------------------------------------------------------------------------------------


def write_judge(folder: Path, plain: Path, judge: Path) -> Path:
    """The folder in MLX's format, made from `plain`, with its weights widened to fp32 under transformers' names."""
    judge.mkdir()
    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    if "text_config" in config:  # which computes a text alone as Qwen3 does
        config = config["text_config"] | {"model_type": "qwen3", "tie_word_embeddings": config["tie_word_embeddings"]}
    (judge / "config.json").write_text(json.dumps(config | {"dtype": "float32"}), encoding="utf-8")
    found = _whole(widened(folder, _widths(plain)), config)
    family = BY_FAMILY[config["model_type"]]
    ends = {f"model.{usual}.weight": f"model.{own}.weight" for usual, own in family.ends.items()}
    published = {ends.get(name, name): values for name, values in published_tensors(found, family)}
    save_file(published, judge / "model.safetensors", {"format": "pt"})
    return judge


def widened(folder: Path, widths: Mapping[str, int]) -> dict[str, Floats]:
    """Every matrix, norm and bias of a folder in MLX's format, in fp32, by its name there.

    `widths`: the inputs of every matrix, by its path.
    """
    stored = stored_arrays(folder)
    found = {}
    for name, array in stored.items():
        path = name.removesuffix(".weight")
        scales, biases = stored.get(f"{path}.scales"), stored.get(f"{path}.biases")
        if path != name and scales is not None:
            packing = packing_of(widths[path], array.shape[-1], scales.shape[-1], biases=biases is not None)
            assert packing is not None, name
            factors = np.array(scales) if biases is None else _floats(scales)
            found[name] = dequantize(np.array(array), factors, None if biases is None else _floats(biases), packing)
        elif not name.endswith((".scales", ".biases")):
            found[name] = _floats(array)
    return found


def stored_arrays(folder: Path) -> dict[str, mx.array]:
    """All tensors of a folder, lazily; out of a wrapper of text and pictures, and Nemotron-H's by the usual names."""
    files = [cast(dict[str, mx.array], mx.load(str(file))) for file in sorted(folder.glob("*.safetensors"))]
    each = ((name.replace("model.language_model.", "model."), array) for file in files for name, array in file.items())
    found = {name.removeprefix("language_model."): array for name, array in each}
    for published, usual in _NEMOTRON:
        found = {name.replace(published, usual): array for name, array in found.items()}
    return found


_NEMOTRON = (
    ("backbone.embeddings.", "model.embed_tokens."),
    ("backbone.norm_f.", "model.norm."),
    ("backbone.", "model."),
    (".switch_mlp.fc1.", ".switch_mlp.up_proj."),
    (".switch_mlp.fc2.", ".switch_mlp.down_proj."),
)


def _widths(plain: Path) -> dict[str, int]:
    """The inputs of every matrix of a plain folder, by the path that MLX gives it."""
    shapes = {name: array.shape for name, array in _unfused(stored_arrays(plain))}
    turned = [name for name in shapes if ".feed_forward.experts." in name]  # Llama 4's, inputs before outputs
    shapes |= {name: (shapes[name][0], shapes[name][2], shapes[name][1]) for name in turned}
    paths = {stack_of(name).removesuffix(".weight"): name for name in shapes}
    for name in turned:
        parts = ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)
        paths |= {f"{name.rpartition('.')[0]}.{part}": name for part in parts}
    for name in shapes:  # Granite's experts, which mlx-lm takes apart
        path, linear, _ = name.partition("put_linear.weight")
        if linear:
            parts = ("down_proj",) if path.endswith("out") else ("gate_proj", "up_proj")
            paths |= {f"{path.rpartition('.')[0]}.switch_mlp.{part}": name for part in parts}
            paths |= {f"{path.rpartition('.shared_mlp.')[0]}.mlp.{part}": name for part in parts}
    for name in [name for name in shapes if name.endswith((".experts.gate_up_proj", ".experts.down_proj"))]:
        start = name.rpartition(".")[0]
        parts = ("down_proj",) if name.endswith("down_proj") else ("gate_proj", "up_proj")
        paths |= {f"{start}.switch_glu.{part}": name for part in parts}  # in mlx-lm's files, and in our own
        paths |= {f"{start.removesuffix('.experts')}.switch_mlp.{part}": name for part in parts}
    found = {path: shapes[name][-1] for path, name in paths.items()}
    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    for path in [path for path in found if path.endswith(_HEADS)]:
        start = path.removesuffix(_HEADS)
        found |= {f"{start}embed_q": config["qk_nope_head_dim"], f"{start}unembed_out": config["kv_lora_rank"]}
    return found


_HEADS = "kv_b_proj"  # which mlx-lm has as two matrices of each head


def _whole(weights: Mapping[str, Floats], config: Mapping[str, Any]) -> dict[str, Floats]:
    """With the matrix that makes keys and values of a latent as it is published."""
    found = dict(weights)
    for name in [name for name in weights if name.endswith("embed_q.weight")]:
        start = name.removesuffix("embed_q.weight")
        keys, values = found.pop(name), found.pop(f"{start}unembed_out.weight")
        both = np.concatenate((keys.swapaxes(1, 2), values), axis=1)
        found[f"{start}{_HEADS}.weight"] = both.reshape(-1, config["kv_lora_rank"])
    return found


def _floats(array: mx.array) -> Floats:
    return np.array(array.astype(mx.float32))


def convert(plain: Path, folder: Path, **more: Any) -> Path:
    """`mlx_lm.convert --quantize` of a folder with a tokenizer; returns the new folder."""
    mlx_lm()
    import_module("mlx_lm.convert").convert(str(plain), str(folder), quantize=True, **more)
    return folder
