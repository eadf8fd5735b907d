"""`launch.py update`: a checkout follows a real remote on disk, and what runs begins anew in its place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from installer.steps import Refused
from installer.update import pull
from tests.conftest import RealApp, environment_for, until
from tests.desktop.test_manners import main_of, node
from tests.support.patience import PATIENCE
from tests.test_launch import FILES, Start, environment, first_start, install_log, make_checkout, start
from together.checkout import own_version
from together.desktop.again import order_anew
from together.desktop.updating import finish_update

__all__ = ["environment", "first_start", "start"]  # fixtures


def git(folder: Path, *words: str) -> str:
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
    command = ["git", "-C", str(folder), *who, *words]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path, text: str, file: str = "README.md") -> str:
    (folder / file).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", text)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A publisher's own folder, and beside it `theirs`, a clone of what was published."""
    folder = tmp_path / "published"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "launch.py").write_text("print('old')\n")
    commit(folder, "one")
    git(tmp_path, "clone", "-q", str(folder), str(tmp_path / "theirs"))
    return folder


@pytest.fixture
def theirs(published: Path) -> Path:
    return published.parent / "theirs"


def refused(folder: Path) -> str:
    before = (folder / ".git").exists() and git(folder, "rev-parse", "HEAD")
    with pytest.raises(Refused) as refusal:
        pull(folder)
    said = str(refusal.value)
    assert "\n" not in said
    assert before == ((folder / ".git").exists() and git(folder, "rev-parse", "HEAD"))
    return said


def test_what_is_new_comes(published: Path, theirs: Path) -> None:
    before = git(theirs, "rev-parse", "HEAD")
    assert pull(theirs) == before
    assert git(theirs, "rev-parse", "HEAD") == before  # nothing is new
    (theirs / "mine.txt").write_text("a file that git does not know")
    after = commit(published, "two")
    assert pull(theirs) == before
    assert git(theirs, "rev-parse", "HEAD") == after
    assert (theirs / "mine.txt").read_text() == "a file that git does not know"


def test_changed_files_stay(published: Path, theirs: Path) -> None:
    commit(published, "two")
    (theirs / "README.md").write_text("my own notes")
    said = refused(theirs)
    assert said.startswith("files of the checkout were changed here: README.md; put that aside with git stash, ")
    assert (theirs / "README.md").read_text() == "my own notes"


def test_a_file_where_a_new_one_comes_stays(published: Path, theirs: Path) -> None:
    commit(published, "two", "new.txt")
    (theirs / "new.txt").write_text("mine")
    assert refused(theirs).startswith("git cannot put what is new in its place (")
    assert (theirs / "new.txt").read_text() == "mine"


def test_commits_of_ones_own_stay(published: Path, theirs: Path) -> None:
    own = commit(theirs, "mine", "mine.txt")
    assert pull(theirs) == own  # ahead of its remote, which has nothing new
    commit(published, "two")
    assert "has commits of its own beside new ones of its remote; bring them together first" in refused(theirs)


def test_a_remote_that_is_gone(published: Path, theirs: Path) -> None:
    published.rename(published.parent / "elsewhere")
    assert refused(theirs).startswith("git cannot ask for what is new (")


def test_a_checkout_that_follows_nothing(theirs: Path, tmp_path: Path) -> None:
    git(theirs, "checkout", "-q", "--detach")
    assert "follows no branch of a remote; go back to one first" in refused(theirs)
    (tmp_path / "copy").mkdir()
    assert f"{tmp_path / 'copy'} is no git checkout" in refused(tmp_path / "copy")


def test_without_git(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Refused, match="git is missing, and update needs it"):
        pull(theirs)


def test_the_new_program_installs_and_goes_on(
    first_start: tuple[Path, list[list[str]]], start: Start, tmp_path: Path
) -> None:
    """By its own launch.py, which may differ from the one that was started."""
    published = make_checkout(tmp_path / "published")
    (published / ".gitignore").write_text("/.venv/\n__pycache__/\n")
    git(published, "init", "-q")
    before = commit(published, "one")
    git(tmp_path, "clone", "-q", str(published), str(tmp_path / "theirs"))
    theirs = tmp_path / "theirs"
    (theirs / ".venv").symlink_to(first_start[0] / ".venv")
    (published / "requirements.txt").write_text(FILES["requirements.txt"] + "mypy\n")
    text = (published / "launch.py").read_text()
    (published / "launch.py").write_text(text.replace('"interrupted; ', '"new; ') + "# new\n")
    commit(published, "two")
    done = start(theirs, "update")
    assert done.returncode == 7, done.stderr  # what the stand-in for the app ends with
    assert json.loads(done.stdout)["arguments"] == ["update", "--pulled", before]
    assert "asking for what is new" in done.stderr
    assert "installing 2 packages" in done.stderr
    assert "Successfully installed mypy-1.0" in install_log(theirs)
    (theirs / "README.md").write_text("mine")
    said = start(theirs, "update")
    assert (said.returncode, said.stdout) == (1, "")
    assert "files of the checkout were changed here: README.md; " in said.stderr


# --- what runs --------------------------------------------------------------------------------------------------------


def test_an_app_begins_anew_in_its_place(own_app: RealApp, tmp_path: Path) -> None:
    """With the same process, options and models; nothing of the old one is left."""
    before, stages = own_app.status(), [psutil.Process(pid) for pid in own_app.stage_pids()]
    order_anew(own_app.home)
    log = tmp_path / "log"
    until(lambda: log.read_text().count("page and API: ") == 2, PATIENCE, "it begins anew")
    own_app.url = json.loads((own_app.home / "app.json").read_text())["url"]
    until(lambda: own_app.get("/health").status_code == 200, PATIENCE, "it serves again")
    after = own_app.status()
    assert own_app.process.poll() is None
    assert json.loads((own_app.home / "app.json").read_text())["pid"] == own_app.process.pid
    assert after["serving"]["model"] == before["serving"]["model"] == "toy"
    assert after["nodes"][0]["run"] != before["nodes"][0]["run"]
    assert not any(stage.is_running() for stage in stages)
    assert "stopped, and begins anew with its new version\n" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_node_begins_anew_in_its_place(tmp_path: Path) -> None:
    settings = environment_for(tmp_path / "home")
    with node(settings, tmp_path / "log"):
        order_anew(tmp_path / "home")
        until(lambda: (tmp_path / "log").read_text().count("Ctrl-C stops it") == 2, PATIENCE, "it begins anew")
        assert main_of(settings, "status").stderr.startswith("together: a node runs here, and no app")


def test_the_end_of_an_update_says_what_there_is(
    real_app: RealApp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = own_version()
    finish_update(tmp_path, own.partition("+")[2])
    assert capsys.readouterr().out == f"together {own} is the newest there is\n"
    finish_update(tmp_path, "0123456789abcdef")
    assert capsys.readouterr().out == f"together is {own} now, and was 0123456\n"
    ring = real_app.serving()["ring"]
    done = real_app.command("update", "--pulled", "0123456789abcdef")
    assert (done.returncode, done.stdout) == (0, f"together is {own} now, and was 0123456\n")
    assert real_app.serving()["ring"] == ring  # it has that version, and goes on
    alone = subprocess.run([sys.executable, "-m", "together", "update"], capture_output=True, text=True, check=False)
    assert alone.stderr.startswith("together: update begins in launch.py: ")
