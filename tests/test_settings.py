"""Settings: defaults, environment, overrides, and what is not a setting."""

from __future__ import annotations

import dataclasses
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from platformdirs.unix import Unix

from together.errors import BadSetting
from together.settings import Settings, default_home, load_settings, parse_bytes


def test_nothing_given_is_the_defaults() -> None:
    assert load_settings({}) == Settings()
    assert load_settings({"PATH": "/bin", "TOGETHERNESS": "1"}) == Settings()


def test_every_setting_can_come_from_the_environment() -> None:
    values = {str: "x", int: "4711", float: "2.5", bool: "yes"}
    defaults = dataclasses.asdict(Settings())
    settings = load_settings({f"TOGETHER_{name.upper()}": values[type(value)] for name, value in defaults.items()})
    expected = {str: "x", int: 4711, float: 2.5, bool: True}
    assert dataclasses.asdict(settings) == {name: expected[type(value)] for name, value in defaults.items()}


def test_an_override_wins_and_none_is_not_given() -> None:
    settings = load_settings({"TOGETHER_PORT": "8001", "TOGETHER_NAME": "studio"}, port=9000, name=None)
    assert (settings.port, settings.name) == (9000, "studio")


def test_the_real_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [key for key in os.environ if key.startswith("TOGETHER_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("TOGETHER_USERS", "9")
    assert load_settings().users == 9


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"TOGETHER_PROT": "1"}, "TOGETHER_PROT is not a setting; known are .*TOGETHER_PORT"),
        ({"TOGETHER_USERS": "many"}, "TOGETHER_USERS='many' is not a whole number"),
        ({"TOGETHER_PORT": "http"}, "TOGETHER_PORT=http cannot be a port"),
        ({"TOGETHER_PORT": "8.5"}, "TOGETHER_PORT=8.5 cannot be a port"),
        ({"TOGETHER_PORT": ""}, "TOGETHER_PORT= cannot be a port"),
        ({"TOGETHER_BALANCE": "perhaps"}, "TOGETHER_BALANCE='perhaps' is not yes or no"),
        ({"TOGETHER_LEASE": "soon"}, "TOGETHER_LEASE='soon' is not a number"),
    ],
)
def test_what_cannot_be_read_is_named(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(BadSetting, match=sentence):
        load_settings(environment)


def test_an_unknown_override_is_named() -> None:
    with pytest.raises(BadSetting, match="colour is not a setting"):
        load_settings({}, colour="red")


@pytest.mark.parametrize(
    ("host", "is_open"),
    [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("10.0.0.2", True)],
)
def test_which_hosts_are_open_to_the_network(host: str, is_open: bool) -> None:
    assert Settings(host=host).open_to_network is is_open


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(home=str(tmp_path)).home_path == tmp_path
    assert Settings().home_path == default_home()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert Settings(home="~/lab").home_path == tmp_path / "lab"


@pytest.mark.skipif(os.name == "nt", reason="the folders of POSIX")
def test_logs_go_where_the_platform_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(home=str(tmp_path)).logs_path == tmp_path / "logs"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert Settings().logs_path == Unix("together").user_log_path
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert Settings().logs_path == Unix("together").user_log_path
    (tmp_path / "Library/Logs").mkdir(parents=True)
    assert Settings().logs_path == tmp_path / "Library/Logs/together"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("512B", 512),
        ("4GB", 4_000_000_000),
        ("4 gb", 4_000_000_000),
        ("1.5kB", 1500),
        ("512MiB", 536_870_912),
        (" 2gib ", 2 * 2**30),
        ("1TB", 10**12),
        ("1e3MB", 10**9),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "-1GB",
        "four GB",
        "4XB",
        "4GBB",
        "4 G B",
        "nan",
        "inf",
        "1e999GB",
        "nanGB",
        "1e303TB",
        "4G",
        "8",
        "0",
        "0XB",
    ],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(BadSetting, match="is not a size; write it as 4GB or 512MiB"):
        parse_bytes(text)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_an_error_of_ours(text: str) -> None:
    with suppress(BadSetting):
        assert parse_bytes(text) >= 0


def test_a_home_is_the_same_for_children_that_start_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings(home="lab").home_path == tmp_path / "lab"
