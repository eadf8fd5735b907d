"""Where programs keep models, by their own variables and settings, on every system."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.other_programs import put
from together.weights.places import hub_cache, llama_cpp_folders, lm_studio_folders, ollama_folders


def test_lm_studios_folder(tmp_path: Path) -> None:
    now, first = tmp_path / ".lmstudio", tmp_path / ".cache" / "lm-studio"
    assert lm_studio_folders(tmp_path, {}) == [now / "models", first / "models"]
    elsewhere = tmp_path / "elsewhere"
    put(tmp_path / ".lmstudio-home-pointer", f"{elsewhere}\n".encode())
    assert lm_studio_folders(tmp_path, {}) == [elsewhere / "models"]
    assert lm_studio_folders(tmp_path, {"LMSTUDIO_HOME": str(tmp_path / "set")}) == [tmp_path / "set" / "models"]


def test_the_folder_that_lm_studio_was_told_to_download_to(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    put(tmp_path / ".lmstudio" / "settings.json", json.dumps({"downloadsFolder": str(disk), "x": 1}).encode())
    assert lm_studio_folders(tmp_path, {})[0] == disk


@pytest.mark.parametrize(
    "settings",
    [b"", b"\xff", b"[]", b"{}", b'{"downloadsFolder": 1}', b'{"downloadsFolder": "models"}', b"[" * 100_000,
     b'{"downloadsFolder": "a\\u0000b"}', b" " * 2**21],
    ids=range(9),
)  # fmt: skip
def test_settings_that_say_no_folder(tmp_path: Path, settings: bytes) -> None:
    put(tmp_path / ".lmstudio" / "settings.json", settings)
    assert lm_studio_folders(tmp_path, {})[0] == tmp_path / ".lmstudio" / "models"


@pytest.mark.parametrize("pointer", [b"", b"models", b"../x", b"~no-such-user/x", b"\xff", b"\0"])
def test_a_pointer_that_points_nowhere(tmp_path: Path, pointer: bytes) -> None:
    put(tmp_path / ".lmstudio-home-pointer", pointer)
    assert lm_studio_folders(tmp_path, {})[0] == tmp_path / ".lmstudio" / "models"


@pytest.mark.skipif(os.name == "nt", reason="no named pipes among files")
def test_a_pipe_in_place_of_settings_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / ".lmstudio").mkdir()
    os.mkfifo(tmp_path / ".lmstudio" / "settings.json")
    os.mkfifo(tmp_path / ".lmstudio-home-pointer")
    assert lm_studio_folders(tmp_path, {})[0] == tmp_path / ".lmstudio" / "models"


def test_ollamas_folders(tmp_path: Path) -> None:
    own = tmp_path / ".ollama" / "models"
    assert ollama_folders(tmp_path, {}, "darwin") == ollama_folders(tmp_path, {}, "win32") == [own]
    first, *shared = ollama_folders(tmp_path, {}, "linux")
    assert first == own
    assert Path("/usr/share/ollama/.ollama/models") in shared
    assert Path("/var/lib/ollama") in shared
    assert ollama_folders(tmp_path, {"OLLAMA_MODELS": ' "/disk/models" '}, "linux") == [Path("/disk/models")]


def test_llama_cpps_folders(tmp_path: Path) -> None:
    assert llama_cpp_folders(tmp_path, {}, "linux") == [tmp_path / ".cache" / "llama.cpp"]
    assert llama_cpp_folders(tmp_path, {"XDG_CACHE_HOME": "/c"}, "linux") == [Path("/c/llama.cpp")]
    assert llama_cpp_folders(tmp_path, {}, "darwin") == [tmp_path / "Library" / "Caches" / "llama.cpp"]
    assert llama_cpp_folders(tmp_path, {"LOCALAPPDATA": "/l"}, "win32") == [Path("/l/llama.cpp")]
    for system in ("linux", "darwin", "win32"):
        assert llama_cpp_folders(tmp_path, {"LLAMA_CACHE": "/d"}, system) == [Path("/d")]
    chosen = tmp_path / "served"
    served = llama_cpp_folders(tmp_path, {"LLAMA_ARG_MODELS_DIR": str(chosen), "LLAMA_CACHE": "/d"}, "linux")
    assert served == [chosen, Path("/d")]


def test_the_hubs_cache() -> None:
    assert hub_cache({"HF_HUB_CACHE": "/a"}) == Path("/a")
    assert hub_cache({"HF_HOME": "/b"}) == Path("/b/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    assert hub_cache({}) == Path.home() / ".cache" / "huggingface" / "hub"
