"""Published forms of one model write what the plain one writes, and our reading equals transformers' own."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch

from backends.base import in_words
from tests.backends.conftest import Checkpoints
from tests.backends.published import FORMS, edit_config, publish, tensors_of
from tests.support.chain import Chain, assert_close, load_shard, new_sequence, row
from tests.support.families import CASES, LAYERS, VOCAB, make_checkpoint, model_class, prompt_ids, reference_logits
from together.errors import UnsupportedModel
from together.models.config import effective
from together.models.layout import needs
from together.models.names import HEAD
from together.models.spec import read_config, read_runnable
from together.types import LayerRange

BACKENDS = ("torch", "mlx") if find_spec("mlx") else ("torch",)
PROMPT = prompt_ids(24)
NAMES = tuple(case.name for case in CASES)


def logits(folder: Path, backend: str, ranges: tuple[LayerRange, ...] = ()) -> Any:
    ranges = ranges or (LayerRange(0, 1), LayerRange(1, read_config(folder)["num_hidden_layers"]))
    return Chain([load_shard(folder, backend, layers) for layers in ranges]).logits(row(new_sequence(), 0, PROMPT))


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, checkpoint: Checkpoints, tmp_path: Path) -> tuple[Path, Path]:
    """The folder of a form, and that of the plain checkpoint."""
    plain = checkpoint(FORMS[request.param][0])
    return publish(copytree(plain, tmp_path / "model"), request.param), plain


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_form_computes_the_same(form: tuple[Path, Path], backend: str) -> None:
    folder, plain = form
    assert_close(logits(folder, backend), reference_logits(plain, PROMPT))


@pytest.mark.parametrize("dialect", ["new", "old"])
@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_transformers_own(checkpoint: Checkpoints, name: str, dialect: Any) -> None:
    """Every value of the normal form, and the normal form's own reading stays as it is."""
    published = json.loads((checkpoint(name, "fp32", dialect) / "config.json").read_text())
    ours = effective(name, published)
    theirs = model_class(ours["model_type"]).config_class.from_dict(dict(published))
    ignored = ("decoder_sparse_step", "bos_token_id", "pad_token_id", "eos_token_id", "sliding_window")
    for key, value in ours.items():
        if key not in ignored and hasattr(theirs, key):  # classes that compute head_dim themselves have none
            assert getattr(theirs, key) == value, key
    assert effective(name, ours) == ours


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_is_that_of_transformers(checkpoint: Checkpoints, name: str) -> None:
    folder = checkpoint(name)
    saved = {key: tuple(tensor.shape) for key, tensor in tensors_of(folder).items()}
    assert needs(read_config(folder), head=HEAD in saved) == saved


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "qwen3_moe"])
def test_the_layout_with_biases(tmp_path: Path, name: str) -> None:
    more: Any = {"mlp_bias": True} if name == "llama" else {}
    folder = make_checkpoint(tmp_path / "m", name, attention_bias=True, **more)
    saved = {key: tuple(tensor.shape) for key, tensor in tensors_of(folder).items()}
    assert needs(read_config(folder), head=HEAD in saved) == saved
    edit_config(folder, attention_bias=False)
    with pytest.raises(UnsupportedModel, match=r"q_proj\.bias.*attention_bias"):
        read_runnable(folder)


def test_a_sparse_wrapper_has_transformers_defaults(tmp_path: Path) -> None:
    """The words of Gemma 3 4B's own config.json."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    published = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    ours = effective("gemma", published)
    theirs = model_class("gemma3_text").config_class.from_dict(dict(text))
    for key, value in ours.items():
        if key not in ("bos_token_id", "pad_token_id", "eos_token_id", "architectures"):
            assert getattr(theirs, key) == value, key
    assert ours["rope_parameters"]["full_attention"] == {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    assert (ours["num_attention_heads"], ours["head_dim"], ours["tie_word_embeddings"]) == (8, 256, True)


@pytest.mark.parametrize("text", ["gemma3_text", "gemma4_text", "mistral", "ministral3", "llama4_text"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrappers_that_transformers_saved(tmp_path: Path, text: str, backend: str) -> None:
    """A whole model of text and pictures, saved by its own class: its text is what that class computes."""
    model = _with_pictures(text)
    model.save_pretrained(tmp_path / "m")
    judge = model.language_model if text == "llama4_text" else model  # its wrapper's forward asks for pictures
    with torch.inference_mode():
        expected = judge(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0].float().numpy()
    assert_close(logits(tmp_path / "m", backend), np.asarray(expected))


def _with_pictures(family: str) -> Any:
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma4Config,
        Gemma4ForConditionalGeneration,
        Llama4Config,
        Llama4ForConditionalGeneration,
        Mistral3Config,
        Mistral3ForConditionalGeneration,
    )

    torch.manual_seed(0)
    text = {"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": LAYERS}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "max_position_embeddings": 256}
    eyes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    eyes |= {"image_size": 16, "patch_size": 8}
    if family == "gemma3_text":
        config = Gemma3Config(
            text_config=text | {"sliding_window": 8, "pad_token_id": 0, "query_pre_attn_scalar": 24},
            vision_config=eyes,
            image_token_index=VOCAB - 1,
            mm_tokens_per_image=4,
        )
        return Gemma3ForConditionalGeneration(config).eval()
    if family == "gemma4_text":
        wide = {"global_head_dim": 32, "hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision"}
        seeing = eyes | {"head_dim": 8, "num_key_value_heads": 2}
        dense = Gemma4Config(text_config=text | wide | {"sliding_window": 8}, vision_config=seeing, audio_config=None)
        return Gemma4ForConditionalGeneration(dense).eval()
    if family == "llama4_text":  # with Scout's words for layers
        chunks = {"attention_chunk_size": 8, "no_rope_layers": [], "intermediate_size_mlp": 96, "num_local_experts": 3}
        seeing = eyes | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
        whole = Llama4Config(text_config=text | chunks, vision_config=seeing, image_token_index=VOCAB - 1)
        return Llama4ForConditionalGeneration(whole).eval()
    other = Mistral3Config(
        text_config=text | {"model_type": family, "sliding_window": None},
        vision_config=eyes | {"model_type": "pixtral", "head_dim": 8},
        image_token_index=VOCAB - 1,
        tie_word_embeddings=False,
    )
    return Mistral3ForConditionalGeneration(other).eval()


@pytest.mark.parametrize("error", [KeyError("factor"), TypeError("must be real"), AttributeError("no attribute x")])
def test_what_a_library_says_is_a_sentence(error: Exception) -> None:
    said = r"^tiny: transformers does not take this model \(.+\); choose"
    with pytest.raises(UnsupportedModel, match=said), in_words("tiny", "transformers"):
        raise error
