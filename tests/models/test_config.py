"""The effective configuration: every spelling of one value is the same value, and what is none is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.folders import CONFIG, write_model
from together.errors import BrokenModel, UnsupportedModel
from together.models.config import effective, layer_count, purpose
from together.models.folder import side_json
from together.models.quantization import quantization_of
from together.models.spec import read_config, read_shape

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def rope(**config: Any) -> Any:
    return effective("m", CONFIG | config)["rope_parameters"]


@pytest.mark.parametrize(
    ("config", "theta"),
    [
        ({}, 10_000.0),
        ({"rope_theta": None, "rope_scaling": None, "rope_parameters": None}, 10_000.0),
        ({"rope_theta": 500_000}, 500_000.0),
        ({"rope_theta": 500_000, "rope_scaling": {"type": "default"}}, 500_000.0),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500_000}}, 500_000.0),
        ({"rope_theta": 500_000, "rope_parameters": {"rope_type": None, "rope_theta": None}}, 500_000.0),
        ({"rope_parameters": {"full_attention": {"rope_theta": 500_000}, "sliding_attention": None}}, 500_000.0),
    ],
)
def test_plain_rope_in_every_spelling(config: dict[str, Any], theta: float) -> None:
    assert rope(**config) == {"rope_type": "default", "rope_theta": theta}


@pytest.mark.parametrize(
    ("scaling", "found"),
    [
        ({"type": "linear", "factor": 4}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope_type": "linear", "type": "x", "factor": 4.0, "tuned": True}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope_type": "llama3", **LLAMA3}, {"rope_type": "llama3", **LLAMA3}),
        ({"type": "yarn", "factor": 2.0, "mscale": 0, "attention_factor": None},
         {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}),
        ({"type": "yarn", "original_max_position_embeddings": 16},
         {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    ],
)  # fmt: skip
def test_scaled_rope_in_every_spelling(scaling: dict[str, Any], found: dict[str, Any]) -> None:
    """Beside the theta, or with it in one table."""
    wanted = found | {"rope_theta": 7.0}
    assert rope(rope_theta=7, rope_scaling=scaling) == wanted
    assert rope(rope_parameters=scaling | {"rope_theta": 7}) == wanted


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 9.0, "rope_scaling": {"type": "linear", "factor": 8}, "rope_local_base_freq": 3},
        {"rope_parameters": {"full_attention": {"type": "linear", "factor": 8, "rope_theta": 9},
                             "sliding_attention": {"rope_theta": 3, "rope_type": None}}},
        {"rope_parameters": {"full_attention": {"rope_theta": 9}, "sliding_attention": {"rope_theta": 3}},
         "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 8, "rope_theta": 9.0}, "rope_local_base_freq": 3.0},
    ],
)  # fmt: skip
def test_gemmas_rope_is_by_kind_of_layer(config: dict[str, Any]) -> None:
    full = {"rope_type": "linear", "rope_theta": 9.0, "factor": 8.0}
    assert rope(model_type="gemma3_text", **config) == {
        "full_attention": full,
        "sliding_attention": {"rope_type": "default", "rope_theta": 3.0},
    }


def test_an_older_table_counts_beside_a_newer_one() -> None:
    """As in transformers: the kind of the newer one, which `default` is too, does not hide the older one's."""
    newer = {"rope_type": "default", "rope_theta": 7.0}
    found = rope(rope_theta=7.0, rope_parameters=newer, rope_scaling={"type": "linear", "factor": 4})
    assert found == {"rope_type": "linear", "rope_theta": 7.0, "factor": 4.0}


@pytest.mark.parametrize(
    ("newer", "named"),
    [({"rope_type": "llama3", **LLAMA3}, "a kind of rope"), ({"rope_theta": 5000.0}, "a theta of rope")],
)
def test_tables_that_disagree_are_refused(newer: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        rope(rope_theta=7.0, rope_parameters=newer, rope_scaling={"type": "linear", "factor": 4})


@pytest.mark.parametrize("kind", ["mrope", "longrope", "dynamic", "su", "yarn2", ["linear"], 3])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_unknown_rope_is_named(kind: object, key: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"rope by .*(default, linear, llama3, yarn do)"):
        rope(**{key: {"rope_type": kind, "factor": 2.0}})


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"rope_scaling": {"type": "linear"}}, "factor = None"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor = '4'"),
        ({"rope_scaling": {"type": "llama3", **LLAMA3, "low_freq_factor": -1}}, "low_freq_factor = -1"),
        ({"rope_theta": "1e6"}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear'"),
        ({"rms_norm_eps": None, "hidden_size": None}, "hidden_size = None"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small'"),
        ({"attention_bias": "no"}, "attention_bias = 'no'"),
        ({"model_type": "gemma3_text", "sliding_window": None}, "sliding_window = None"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": -1}, "max_window_layers = -1"),
        ({"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 8}, "num_experts_per_tok = 8"),
        ({"model_type": "qwen3_moe", "num_experts": 10**9}, "num_experts = 1000000000"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": ["1"]}, "mlp_only_layers"),
    ],
)
def test_a_value_that_is_none_is_named(config: dict[str, Any], named: str) -> None:
    with pytest.raises(BrokenModel) as caught:
        effective("m", CONFIG | config)
    assert named in str(caught.value)
    assert "get this model again" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"hidden_act": "swiglu"}, "swiglu"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 4}, "3 attention heads"),
        ({"head_dim": 5}, "odd head_dim of 5"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 4}, "no multiple of its 3"),
        ({"partial_rotary_factor": 0.5}, "part of each head"),
        ({"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["full_attention", "chunked"]}, "chunked"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "both directions"),
        ({"model_type": "mistral3"}, "without text_config"),
        ({"model_type": "mistral3", "text_config": {"model_type": "mistral4"}}, "mistral4"),
        ({"model_type": "llava", "text_config": {"model_type": "llama"}}, "llava"),
    ],
)
def test_what_does_not_run_is_named(config: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        effective("m", CONFIG | config)


def test_a_wrapper_stands_for_its_text_model() -> None:
    text = CONFIG | {"model_type": "mistral", "sliding_window": None}
    outer = {
        "model_type": "mistral3",
        "vision_config": {"hidden_size": 5},
        "architectures": ["X"],
        "eos_token_id": [2, 3],
    }
    found = effective("m", outer | {"text_config": text})
    assert (found["model_type"], found["num_hidden_layers"], found["eos_token_id"]) == ("mistral", 2, [2, 3])
    assert layer_count(outer | {"text_config": text}) == 2
    assert found["tie_word_embeddings"], "the wrapper's class ties where nobody says anything"
    for more, tied in (({"tie_word_embeddings": False}, False), ({"tie_word_embeddings": None}, True)):
        assert effective("m", outer | more | {"text_config": text})["tie_word_embeddings"] is tied
    inner = text | {"tie_word_embeddings": False}
    assert effective("m", outer | {"text_config": inner})["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    ("family", "tied"), [("llama", False), ("qwen3", False), ("mistral", False), ("gemma3_text", True)]
)
def test_silence_about_the_head_is_the_familys_default(family: str, tied: bool) -> None:
    assert effective("m", CONFIG | {"model_type": family})["tie_word_embeddings"] is tied


@pytest.mark.parametrize("word", ["auto", None, ["bfloat16"], {"a": 1}, "int8"])
def test_a_dtype_that_is_none_is_passed_over(tmp_path: Path, word: object) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"dtype": word, "torch_dtype": "float16"}))
    assert read_shape(folder).dtype == "fp16"
    assert "dtype" not in read_config(folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    folder = write_model(tmp_path / "m")
    text = json.dumps(CONFIG, indent=1).replace("\n", "\r\n")
    (folder / "config.json").write_bytes(text.encode(encoding))
    (folder / "generation_config.json").write_bytes('{"eos_token_id": [5]}'.encode(encoding))
    assert read_shape(folder).layers == 2
    assert side_json(folder, "generation_config.json") == {"eos_token_id": [5]}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"eos_token_id": 2,}', "\0\0"])
def test_a_broken_side_file_is_a_warning(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "generation_config.json").write_text(text)
    assert side_json(folder, "generation_config.json") == {}
    assert "generation_config.json" in caplog.text


@pytest.mark.parametrize(
    ("classes", "head", "words"),
    [
        ("LlamaForSequenceClassification", True, "classifier"),
        ("Qwen2ForRewardModel", True, "reward"),
        ("MistralForTokenClassification", False, "classifier of tokens"),
        ("LlamaModel", False, "LlamaModel"),
        ("LlamaModel", True, None),
        ("LlamaForCausalLM", False, None),
        (None, False, None),
    ],
)
def test_what_a_checkpoint_is_for(classes: str | None, head: bool, words: str | None) -> None:
    found = purpose(effective("m", CONFIG | {"architectures": [classes]}), head=head)
    assert words in str(found) if words else not found


def test_quantization_is_found_in_a_wrapper_too() -> None:
    assert quantization_of({"text_config": {"quantization_config": {"quant_method": "awq"}}}) == "awq"
    assert quantization_of({"quantization": {"bits": 4}, "text_config": {}}) == "4-bit"
    assert quantization_of({"quantization_config": None}) is None
