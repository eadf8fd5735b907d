"""`--quantize` in a real app: the demo model in 4 bit on two nodes, then in 8; what is refused while it serves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, RealApp, run_up
from tests.support.lightest import LIGHTEST
from together.errors import BadSetting
from together.head.load import KeptRequest, LastPlan
from together.head.plan import open_model
from together.models.manifest import describe
from together.settings import Settings
from together.weights.converting import make_units
from together.weights.store import Store

DEMO = ROOT / "examples" / "demo_model"
QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
FOUR, EIGHT = "mlx-affine-4-g64@1", "mlx-affine-8-g64@1"
SPLIT = "0:4,4:8"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def app(home: Path) -> Iterator[RealApp]:
    """Its cache has room for one form of the model, and not for two."""
    arguments = ("--model", str(DEMO), "--quantize", "4", "--backend", LIGHTEST, "--layers", SPLIT, "--dtype", "fp32")
    most = sum(unit.size for unit in describe(DEMO).in_form(EIGHT).units.values()) * 5 // 4
    with run_up(home, *arguments, "--cache", f"{most}B") as app:
        yield app


def answer(app: RealApp) -> str:
    reply = app.post("/v1/chat/completions", QUESTION | {"max_tokens": 20}).json()
    said: str = reply["choices"][0]["message"]["content"]
    return said


def served(app: RealApp) -> dict[str, Any]:
    plan: dict[str, Any] = app.serving()["plan"]
    return plan


def ok(app: RealApp, path: str, order: dict[str, str]) -> None:
    assert app.post(path, order).status_code == 200


def folder_of(home: Path, form: str) -> Path:
    return home / "home" / "shards" / describe(DEMO).in_form(form).key


def test_a_quantized_model_answers_from_units_that_were_made_once(app: RealApp, home: Path) -> None:
    assert "Paris" in answer(app)
    assert served(app)["model"]["form"] == FOUR
    assert "demo_model (4 bit)" in app.command("ps").stdout
    assert "demo_model (4 bit) is ready on 2 stages" in app.command("status").stdout
    assert "demo_model (4 bit) is served there already" in app.command("up", "--model", str(DEMO)).stdout
    folder = folder_of(home, FOUR)
    assert len(list(folder.glob("*.safetensors"))) == 8 + 2


def test_a_quantized_model_is_not_quantized_again(app: RealApp, home: Path) -> None:
    refuse(app, {"model": str(folder_of(home, FOUR)), "quantize": "8"}, "is quantized already (affine 4 bit")


@pytest.mark.full
def test_another_split_keeps_the_form_and_another_form_keeps_no_stage(app: RealApp, home: Path) -> None:
    times = {file.name: file.stat().st_mtime_ns for file in folder_of(home, FOUR).glob("*.safetensors")}
    before = app.stage_pids()
    ok(app, "/control/load", {"layers": "0:5,5:8"})
    assert served(app)["model"]["form"] == FOUR
    assert {file.name: file.stat().st_mtime_ns for file in folder_of(home, FOUR).glob("*.safetensors")} == times

    loaded = app.command("load", str(DEMO), "--quantize", "8", "--layers", SPLIT)
    assert loaded.stdout.count("the cache was full: demo_model in 4 bit was let go") == 1
    assert not folder_of(home, FOUR).exists()
    assert served(app)["model"]["form"] == EIGHT
    assert not set(app.stage_pids()) & set(before)
    assert "Paris" in answer(app)

    same = app.stage_pids()
    ok(app, "/control/load", {"model": str(DEMO), "quantize": "8", "layers": SPLIT})
    assert app.stage_pids() == same


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"quantize": "5"}, "choose 4, 8 or mxfp4"),
        ({"quantize_head": "no"}, "add --quantize"),
        ({"quantize": "4", "quantize_head": "maybe"}, "neither yes nor no"),
    ],
)
def test_a_wrong_quantization_is_refused(app: RealApp, order: dict[str, str], said: str) -> None:
    refuse(app, {"model": str(DEMO)} | order, said)


async def test_converted_units_serve_on_where_the_published_files_are_gone(tmp_path: Path) -> None:
    settings, store = Settings(home=str(tmp_path)), Store(tmp_path)
    plain = tmp_path / "models" / "mine"
    shutil.copytree(DEMO, plain, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    opened = await open_model("mine", settings, FOUR)
    assert (opened.ref.path, opened.ref.form, opened.remarks) == (str(plain.resolve()), FOUR, ())
    make_units(store, plain, opened.ref.key, list(describe(opened.folder).units), lambda done: None)
    shutil.rmtree(plain)

    last = LastPlan(1, opened.ref, "fp32", 1024, 1, KeptRequest(), ())
    assert last.place == "mine"
    for form in (FOUR, None):
        again = await open_model("mine", settings, form)
        assert again.ref.key == opened.ref.key
        assert again.folder == store.folder(opened.ref.key)
        assert again.remarks == (() if form else ("mine is here in 4 bit only",))
    with pytest.raises(BadSetting, match="mine is here in 4 bit only; load it without --quantize no"):
        await open_model("mine", settings, "")


def refuse(app: RealApp, order: dict[str, str], said: str) -> None:
    """What serves goes on."""
    before = app.stage_pids()
    reply = app.post("/control/load", order)
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]
    assert app.stage_pids() == before
    assert "Paris" in answer(app)
