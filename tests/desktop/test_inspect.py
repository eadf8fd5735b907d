"""`launch.py inspect`: what a model weighs, from headers alone, whether its family runs here or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.checksum import make_checksum_model
from tests.support.families import make_checkpoint
from tests.support.folders import SHAPES, without, write_model
from tests.support.hub_home import own_home, own_hub
from tests.support.mlx_folders import FORMS, make_plain, write_mlx
from tests.support.pieces import carry, random_model
from together.desktop.cli import main
from together.desktop.inspected import run_inspect
from together.models.config import FAMILIES
from together.models.manifest import describe
from together.models.names import HEAD
from together.weights.find import BUNDLED
from together.weights.store import Store, begin_form
from together.wording import exact_size_text

KEYS = [
    "name", "path", "revision", "fingerprint", "family", "supported", "reason", "backends", "layers", "hidden_size",
    "vocab_size", "heads", "kv_heads", "head_dim", "context", "dtype", "quantization", "tied", "layer_bytes",
    "layer_active_bytes", "embed_bytes", "opening_bytes", "joined", "norm_bytes", "head_bytes", "other_bytes",
    "total_bytes", "held_bytes", "kv_bytes_per_token_per_layer", "windows", "experts", "experts_per_token", "params",
    "active_params", "sampling_defaults", "sampling_by_author",
]  # fmt: skip
REAL = {"torch": True, "mlx": True, "checksum": False}
EXPERTS = {f"model.layers.1.mlp.experts.{e}.{m}.weight": (4, 8) for e in range(4) for m in ("up_proj", "gate_proj")} | {
    "model.layers.1.mlp.gate.weight": (4, 8),
    "model.layers.1.mlp.shared_expert.up_proj.weight": (4, 8),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_home(tmp_path, monkeypatch)


def inspect(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert list(found) == KEYS
    return found


def refused(capsys: pytest.CaptureFixture[str], model: object) -> str:
    assert main(["inspect", str(model)]) == 2
    return capsys.readouterr().err


def test_a_dense_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "tiny")
    found = inspect(capsys, folder)
    assert (found["name"], found["path"], found["family"]) == ("tiny", str(folder), "llama")
    assert "model.layers.0.self_attn.q_proj.weight" in found["reason"], "sizes are told of what cannot run, too"
    assert not found["supported"]
    assert (found["layers"], found["layer_bytes"], found["layer_active_bytes"]) == (2, [192, 320], [192, 320])
    assert (found["embed_bytes"], found["norm_bytes"], found["head_bytes"]) == (256, 16, 256)
    assert (found["other_bytes"], found["total_bytes"], found["tied"]) == (0, 256 + 192 + 320 + 16 + 256, False)
    assert (found["kv_bytes_per_token_per_layer"], found["context"]) == (2 * 1 * 4 * 2, 64)
    assert (found["dtype"], found["quantization"], found["windows"]) == ("bf16", None, [None, None])
    assert (found["params"], found["active_params"], found["experts"]) == (520, 520, None)


def test_a_model_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(capsys, BUNDLED)
    assert (found["supported"], found["reason"], found["backends"]) == (True, None, REAL)


def test_a_tied_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(capsys, write_model(tmp_path / "tied", without(HEAD)))
    assert (found["tied"], found["head_bytes"]) == (True, 0)


def test_of_experts_all_count_for_memory_and_the_chosen_ones_for_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = SHAPES | EXPERTS
    folder = write_model(
        tmp_path / "moe", shapes, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=1, mlp_only_layers=[0]
    )
    found = inspect(capsys, folder)
    experts, others = 8 * 32, 160 + 32 + 32
    assert (found["experts"], found["experts_per_token"]) == (4, 1)
    assert found["layer_bytes"] == [192, 2 * (experts + others)]
    assert found["layer_active_bytes"] == [192, 2 * (experts // 4 + others)]
    assert found["params"] - found["active_params"] == experts * 3 // 4
    assert main(["inspect", str(folder)]) == 0
    assert "4, a token uses 1" in capsys.readouterr().out


def test_an_unsupported_family_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {
        "transformer.wte.weight": (16, 8),
        "transformer.h.0.mlp.c_fc.weight": (8, 8),
        "transformer.h.1.mlp.c_fc.weight": (8, 32),
        "transformer.ln_f.weight": (8,),
        "visual.layers.5.weight": (3, 8),
    }
    llama = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
    config = dict.fromkeys((*llama, "max_position_embeddings"))
    named = {"model_type": "gpt9", "n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 32}
    found = inspect(capsys, write_model(tmp_path / "old", shapes, "F16", **config, **named))
    assert not found["supported"]
    said = f"family 'gpt9', which does not run here; choose a model of one of the {len(FAMILIES)} families that README"
    assert f"{said} lists, as gpt_oss" in found["reason"]
    assert not any(found["backends"].values())
    assert (found["layers"], found["layer_bytes"], found["embed_bytes"]) == (2, [128, 512], 256)
    assert (found["norm_bytes"], found["other_bytes"], found["tied"], found["dtype"]) == (16, 48, True, "fp16")
    assert (found["kv_heads"], found["head_dim"], found["kv_bytes_per_token_per_layer"]) == (2, 4, 32)
    assert (found["context"], found["windows"]) == (32, None)


def test_a_family_with_its_words_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {name.replace("model.", "model.language_model.", 1): shape for name, shape in SHAPES.items()}
    inner = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    folder = write_model(tmp_path / "vl", shapes, model_type="qwen9_vl", num_hidden_layers=None, text_config=inner)
    found = inspect(capsys, folder)
    assert (found["supported"], found["layers"], found["layer_bytes"]) == (False, 2, [192, 320])


def test_what_keeps_together_and_what_a_first_stage_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_checkpoint(tmp_path / "small", "gemma4-shared")
    found = inspect(capsys, folder)
    assert (found["supported"], found["joined"]) == (True, [3, 4, 5])
    assert found["opening_bytes"] == 4 * (160 * 6 * 12 + 6 * 12 * 48 + 12)
    assert found["other_bytes"] == 0
    run_inspect(str(folder), tmp_path, as_json=False)
    said = capsys.readouterr().out
    assert "no stage can begin with layers 3:6: they share keys and values" in said
    assert "60 kB more, for what layers take beside hidden states" in said


def test_a_quantized_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = make_plain(tmp_path / "plain", "qwen3_moe")
    write_mlx(plain, tmp_path / "q4", FORMS["affine-4"])
    capsys.readouterr()  # what mlx-lm says of it
    whole, found = inspect(capsys, plain), inspect(capsys, tmp_path / "q4")
    assert (found["supported"], found["backends"]["torch"], found["backends"]["mlx"]) == (True, True, True)
    assert found["quantization"] == "affine 4 bit, groups of 64; affine 8 bit, groups of 64"  # its routers
    assert (found["params"], found["active_params"]) == (whole["params"], whole["active_params"])
    assert found["total_bytes"] < whole["total_bytes"] / 5
    run_inspect(str(tmp_path / "q4"), tmp_path, as_json=False)
    assert "bits per weight" in capsys.readouterr().out
    made = begin_form(plain, describe(plain), "mlx-affine-4-g64@1", Store(tmp_path))  # its config.json names no bits
    form = inspect(capsys, made)
    assert (form["params"], form["active_params"]) == (whole["params"], whole["active_params"])


def test_codes_without_scales_are_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {name: (*shape[:-1], shape[-1] // 8) if len(shape) > 1 else shape for name, shape in SHAPES.items()}
    settings = {"bits": 4, "group_size": 64}
    found = inspect(capsys, write_model(tmp_path / "q4", shapes, "U32", quantization=settings))
    assert (found["quantization"], found["supported"]) == ("u32", False)
    assert "is quantized (u32)" in found["reason"]
    assert (found["layer_bytes"], found["dtype"]) == ([48, 80], "U32")


def test_the_toy_runs_on_its_own_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(capsys, make_checksum_model(tmp_path / "toy"))
    assert found["backends"] == {"torch": False, "mlx": False, "checksum": True}
    assert found["supported"]


def test_a_shard_folder_describes_the_whole_model(home: Path, tmp_path: Path, capsys: Any) -> None:
    folder = random_model(tmp_path / "tiny")
    manifest = carry(Store(home), folder, "layer-00001.safetensors")
    whole, shard = inspect(capsys, folder), inspect(capsys, Store(home).folder(manifest.fingerprint))
    assert {**whole, "path": ""} == {**shard, "path": ""}


def test_from_the_hub_by_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    folder = random_model(tmp_path / "tiny", SHAPES | {"model.layers.1.mlp.up_proj.weight": (50_000, 8)})
    with own_hub(monkeypatch) as hub:
        commit = hub.add("acme/tiny", folder)
        found = inspect(capsys, "acme/tiny")
        assert hub.served.keys() == {"config.json", "model.safetensors"}
        assert hub.weights_served() < 1300, "the header and samples, no weights"
    local = inspect(capsys, folder)
    reason = local["reason"].replace("tiny has", "acme/tiny has")
    elsewhere = {"name": "acme/tiny", "path": None, "revision": commit, "reason": reason}
    assert found == {**local, **elsewhere}


def test_an_unsupported_family_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    folder = write_model(tmp_path / "x", model_type="gpt9", num_hidden_layers=None, n_layer=2)
    with own_hub(monkeypatch) as hub:
        hub.add("acme/x", folder)
        found = inspect(capsys, "acme/x")
    assert (found["supported"], found["layers"], found["layer_bytes"]) == (False, 2, [192, 320])
    assert "acme/x" in found["name"]


def test_a_table_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "tiny", model_type="[red]evil[/red]")
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "[red]evil[/red], does not run here" in out
    assert "1 of 192 bytes, 1 of 320 bytes" in out
    assert "16 bytes per token and layer, 32 bytes per token" in out
    assert "README lists, as " in out


def test_layers_that_keep_different_things(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of four layers two have a state of a fixed size, one keeps keys and values, and one nothing."""
    folder = make_checkpoint(tmp_path / "tiny", "nemotron_h")
    assert main(["inspect", str(folder)]) == 0
    state = 6 * 16 * 20 * 4 + (6 * 16 + 2 * 2 * 20) * 3 * 4
    size = exact_size_text(2 * 2 * state)
    assert f"384 bytes per token, in 1 of 4 layers, and {size} for each sequence" in capsys.readouterr().out


def test_what_cannot_be_inspected_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "tiny")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "tiny/model.safetensors is broken" in refused(capsys, folder)
    weights.unlink()
    (folder / "pytorch_model.bin").touch()
    assert "only pickle weights" in refused(capsys, folder)
    (folder / "config.json").write_text("[")
    assert "config.json is broken: it is not JSON" in refused(capsys, folder)
    assert "there is no model 'nowhere'" in refused(capsys, "nowhere")
    assert main(["inspect", "acme/tiny"]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_what_is_odd_about_a_model_is_a_note_of_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = make_checksum_model(tmp_path / "toy")
    (toy / "generation_config.json").write_text('{"temperature": 9}')
    assert main(["inspect", str(toy)]) == 0
    said = capsys.readouterr()
    assert "note" in said.out
    assert "has temperature = 9, which is ignored" in " ".join(said.out.split())
    assert said.err == ""
