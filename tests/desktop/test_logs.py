"""What the app and its nodes note in the home folder, and `logs`, which shows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, RealApp
from tests.support.patience import PATIENCE
from together.desktop.cli import main
from together.desktop.logs import BEGINS, BYTES, last_lines, new_lines

NOTES = """
import logging, sys
from pathlib import Path
from together.desktop.cli_models import settings_with
from together.desktop.logs import keep_log
settings_with(log_level=sys.argv[2])
keep_log(Path(sys.argv[1]) / "logs", "app")
"""


def noting(home: Path, code: str, level: str = "WARNING") -> str:
    """What a process shows that keeps a log at that level of its terminal."""
    command = [sys.executable, "-c", NOTES + code, str(home), level]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert said.returncode == 0, said.stderr
    return said.stderr


def kept(home: Path) -> str:
    return (home / "logs" / "app.log").read_text()


def test_the_app_notes_what_it_and_its_nodes_do(real_app: RealApp) -> None:
    said = real_app.command("logs", "--lines", "1000")
    assert said.returncode == 0
    lines = said.stdout.splitlines()
    assert all(map(BEGINS.match, lines)), lines
    assert lines == sorted(lines, key=lambda line: line[:23])
    assert sum("INFO said: page and API: " in line for line in lines) == 1
    for name, layers in (("-1", "0:2"), ("-2", "2:4")):  # noted in the nodes' own processes
        stage = rf"INFO .*{name} together\.cluster\.supervisor: stage \d, layers {layers} of toy: READY$"
        assert any(re.search(stage, line) for line in lines), lines
    assert "INFO" not in (real_app.home.parent / "log").read_text()  # its terminal
    assert len(real_app.command("logs", "-n", "2").stdout.splitlines()) == 2


def test_logs_follow(real_app: RealApp) -> None:
    command = [sys.executable, "-m", "together", "logs", "--follow", "--lines", "1"]
    with subprocess.Popen(command, cwd=ROOT, env=real_app.environment, text=True, stdout=subprocess.PIPE) as following:
        try:
            assert following.stdout is not None
            assert following.stdout.readline()  # it has begun
            body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
            answer = real_app.post("/v1/chat/completions", body).json()
            assert f"chat {answer['id']} by toy: length" in following.stdout.readline()
        finally:
            following.terminate()


def test_without_a_file_it_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOGETHER_HOME", str(tmp_path))
    assert main(["logs"]) == 1
    assert capsys.readouterr().err == (
        f"together: nothing is noted yet: the app and the nodes of this machine write to {tmp_path / 'logs'}\n"
    )
    assert main(["logs", "--lines", "-1"]) == 2


def test_the_file_hears_more_than_the_terminal(tmp_path: Path) -> None:
    code = """
logging.getLogger("together.x").info("quiet")
logging.getLogger("together.x").debug("too quiet")
logging.getLogger("other").info("another library")
logging.getLogger("other").warning("loud \\x1b[2J")
"""
    assert noting(tmp_path, code) == "together: loud \\x1b[2J\n"
    assert [line[24:] for line in kept(tmp_path).splitlines()] == [
        "INFO together.x: quiet",
        "WARNING other: loud \\x1b[2J",
    ]
    noting(tmp_path, code, "DEBUG")
    assert "DEBUG together.x: too quiet" in kept(tmp_path)


def test_the_files_are_bounded(tmp_path: Path) -> None:
    noting(tmp_path, 'for i in range(4000): logging.getLogger("together").info("%05d" + 500 * "x", i)')
    files = sorted((tmp_path / "logs").iterdir())
    assert [file.name for file in files] == ["app.log", "app.log.1"]
    assert all(file.stat().st_size <= BYTES for file in files)
    lines = last_lines(tmp_path / "logs", 1900)
    assert [re.findall(r"together: (\d+)x", line) for line in lines] == [[f"{i:05}"] for i in range(2100, 4000)]


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    said = noting(tmp_path, 'print("goes on", file=sys.stderr)')
    assert said.startswith(f"together: no log is kept in {tmp_path / 'logs'}: ")
    assert said.endswith("\ngoes on\n")


def test_several_files_are_one_by_time(tmp_path: Path) -> None:
    at = "2026-01-01 10:00:0{},000 INFO x: {}"
    first = [at.format(1, "one"), "Traceback", "  of one", at.format(3, "three")]
    (tmp_path / "app.log").write_text("\n".join(first) + "\n")
    (tmp_path / "node-1.log").write_text(at.format(2, "two") + "\n")
    assert last_lines(tmp_path, 9) == [*first[:3], at.format(2, "two"), first[3]]
    assert last_lines(tmp_path, 2) == [at.format(2, "two"), first[3]]
    assert last_lines(tmp_path, 0) == []


def test_new_lines_are_whole_and_a_file_may_begin_anew(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    sizes: dict[Path, int] = {}
    file.write_text("one\ntw")
    assert list(new_lines(tmp_path, sizes)) == ["one"]
    assert list(new_lines(tmp_path, sizes)) == []
    with file.open("a") as more:
        more.write("o\nthree\n")
    assert list(new_lines(tmp_path, sizes)) == ["two", "three"]
    file.write_text("four\n")
    assert list(new_lines(tmp_path, sizes)) == ["four"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_file_may_begin_anew_while_it_is_read(tmp_path: Path) -> None:
    """Between its renaming and its new beginning it is listed and not there, as a link to nothing is."""
    (tmp_path / "app.log").symlink_to("nothing")
    (tmp_path / "node-1.log").write_text("one\n")
    assert last_lines(tmp_path, 5) == ["one"]
    assert list(new_lines(tmp_path, {})) == ["one"]


def test_a_child_goes_on_without_a_parent_that_hears_it() -> None:
    code = """
import logging, os, sys
from together.desktop.logs import note_to_parent
note_to_parent()
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
logging.getLogger("together").info("nobody hears this")
sys.stderr.write("goes on")
os._exit(0)
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert (said.returncode, said.stderr) == (0, "goes on")
