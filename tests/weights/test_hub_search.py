"""Searches of a hub on loopback: what is said of each model, which lies are not believed, and which hub is asked."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.support.folders import write_model
from tests.support.hub import HubServer
from together.errors import BadSetting, Unreachable
from together.weights.hub_search import hub_access, keep_token, search_hub

SIZE = sum((16 * 8, 12 * 8, 20 * 8, 2, 8, 16 * 8))


def test_what_is_said_of_a_model(hub: HubServer, tmp_path: Path) -> None:
    hub.add("acme/tiny-chat", write_model(tmp_path / "tiny"))
    hub.add("acme/odd-chat", write_model(tmp_path / "odd", model_type="never_heard_of"))
    hub.add("acme/other", tmp_path / "tiny")
    hub.gated.add("acme/odd-chat")
    hub.licences["acme/tiny-chat"] = "apache-2.0"
    tiny, odd = search_hub("  CHAT ")
    assert (tiny.name, tiny.gated, tiny.licence, tiny.family, tiny.runs) == (
        "acme/tiny-chat", False, "apache-2.0", "llama", True,
    )  # fmt: skip
    assert (tiny.params, tiny.bytes, tiny.downloads, tiny.likes, tiny.changed) == (SIZE, 2 * SIZE, 7, 3, "2026-01-02")
    assert (odd.gated, odd.licence, odd.runs) == (True, "", False)
    assert search_hub("nothing of this name") == ()


@pytest.mark.parametrize(
    "item",
    [
        5,
        None,
        {"id": "no-organisation", "tags": ["safetensors"]},
        {"id": "../../etc/passwd", "tags": ["safetensors"]},
        {"id": "a/b\n", "tags": ["safetensors"]},
        {"id": 7, "tags": ["safetensors"]},
        {"id": "a/pictures", "tags": ["safetensors", "text-to-image"]},
        {"id": "a/nothing", "tags": []},
        {"id": "a/no-tags", "tags": "safetensors"},
    ],
)
def test_what_is_no_model_is_passed_over(hub: HubServer, item: object) -> None:
    hub.found = [item]
    assert search_hub("a") == ()


def test_lies_are_not_believed(hub: HubServer) -> None:
    lies: dict[str, Any] = {"safetensors": {"parameters": {"BF16": -5, "X": "y"}, "total": 1e99}, "config": []}
    hub.found = [{"id": "a/b", "tags": ["safetensors", 5, "license:" + "x" * 5000], "downloads": "many", **lies}]
    (found,) = search_hub("a")
    assert (found.params, found.bytes, found.downloads, found.family, found.runs) == (0, 0, 0, "", None)
    assert len(found.licence) <= 200


def test_no_words_and_no_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ("", "  ", "x" * 201):
        with pytest.raises(BadSetting, match="a search has 1 to 200 characters"):
            search_hub(words)
    assert hub_access().mirror
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match=r"the hub at http://127\.0\.0\.1:9 does not answer"):
        search_hub("tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_access().offline
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE forbids the hub; unset it"):
        search_hub("tiny")


def test_a_token_is_kept_for_its_owner_alone(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(constants.HF_TOKEN_PATH)
    assert not hub_access().token
    keep_token(" hf_right\n")
    assert (file.read_text(), hub_access().token) == ("hf_right", True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for wrong in ("two words", "x", "ä" * 20):
        with pytest.raises(BadSetting, match="that is no token of the hub"):
            keep_token(wrong)
    keep_token("")
    assert not file.exists()
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(BadSetting, match="HF_TOKEN is set where the app was started"):
        keep_token("hf_right")
