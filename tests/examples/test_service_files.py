"""The container file and the service files for a node without a screen: they can be read, and what they run exists."""

from __future__ import annotations

import configparser
import json
import plistlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from together.desktop.cli_desk import check_words
from together.settings import load_settings

FOLDER = ROOT / "examples/service"
# https://docs.docker.com/reference/dockerfile/
INSTRUCTIONS = set("FROM RUN COPY WORKDIR ENV VOLUME EXPOSE STOPSIGNAL ENTRYPOINT CMD".split())
ANALYZE = shutil.which("systemd-analyze")


def behind_launch(words: list[str]) -> list[str]:
    place = next(index for index, word in enumerate(words) if word.endswith("launch.py"))
    return words[place + 1 :]


def instructions() -> list[tuple[str, str]]:
    lines = (FOLDER / "Containerfile").read_text(encoding="utf-8").splitlines()
    found = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return [(name, rest) for name, rest in found]


def test_the_container_file_can_be_read() -> None:
    assert {name for name, _ in instructions()} <= INSTRUCTIONS
    assert instructions()[0][0] == "FROM"
    for name, rest in instructions():
        if name in ("ENTRYPOINT", "CMD", "VOLUME") and rest.startswith("["):
            assert all(isinstance(word, str) for word in json.loads(rest))
        if name == "COPY":
            source, _ = rest.split()
            assert (ROOT / source / "launch.py").is_file()
    text = (FOLDER / "Containerfile").read_text(encoding="utf-8")
    assert "-f examples/service/Containerfile ." in text


def test_what_the_container_runs_exists() -> None:
    found = dict(instructions())
    entry, usual = json.loads(found["ENTRYPOINT"]), json.loads(found["CMD"])
    check_words(behind_launch([*entry, *usual]))
    (installs,) = (json.loads(rest) for name, rest in instructions() if name == "RUN" and rest.startswith("["))
    check_words(behind_launch(installs))
    home = load_settings(dict(rest.split("=", 1) for name, rest in instructions() if name == "ENV")).home_path
    assert str(home) == found["VOLUME"]
    text = (FOLDER / "Containerfile").read_text(encoding="utf-8")
    (typed,) = re.findall(r"^#   docker run .* together (join .*)$", text, re.MULTILINE)
    check_words(shlex.split(typed))


def test_nothing_of_this_machine_goes_into_the_container() -> None:
    """As .gitignore has it, also where the image is built in a checkout that was used."""
    left_out = (FOLDER / "Containerfile.dockerignore").read_text(encoding="utf-8").split()
    assert {".venv", "**/__pycache__"} <= set(left_out)


def test_the_unit_of_systemd() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # as systemd reads it
    unit.read_string((FOLDER / "together-node.service").read_text(encoding="utf-8"))
    service = unit["Service"]
    check_words(behind_launch(service["ExecStart"].split()))
    name, _, value = service["Environment"].partition("=")
    assert str(load_settings({name: value}).home_path) == f"/var/lib/{service['StateDirectory']}"


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze, which reads units, is not here")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    """Its program lies elsewhere here, which alone it may complain of."""
    assert ANALYZE is not None
    text = (FOLDER / "together-node.service").read_text(encoding="utf-8")
    (tmp_path / "together-node.service").write_text(text.replace("/usr/bin/python3", "/bin/true"))
    line = [ANALYZE, "--man=no", "verify", str(tmp_path / "together-node.service")]
    read = subprocess.run(line, capture_output=True, text=True, check=False)
    assert "together-node.service" not in read.stderr, read.stderr


def test_the_daemon_of_macos() -> None:
    daemon = plistlib.loads((FOLDER / "together-node.plist").read_bytes())
    check_words(behind_launch(daemon["ProgramArguments"]))
    assert daemon["RunAtLoad"] is True
