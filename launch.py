"""Starts together from a fresh checkout: makes .venv, installs what this machine needs, hands over to the app.

It needs the standard library only and keeps to the syntax of Python 3.6, so that an old Python gets a sentence and not
a SyntaxError; so do the modules that it imports: `installer/`, and `together/commands.py`, which is all it knows of the
app. What needs no installation (help, the version, a word that is no command) is answered without one.

    python3 launch.py                        start the app
    python3 launch.py ARGS...                the same as `python -m together ARGS...`
    python3 launch.py update                 what its remote has of the program, installed and started anew
    python3 launch.py audit                  known holes in what is installed: asks the package index
    python3 launch.py check                  ruff, mypy and the sizes of files: seconds
    python3 launch.py test [--full] [ARGS]   the same and pytest ARGS; --full adds the long tests

All that launch.py itself has to say goes to stderr, but for the help that was asked for: stdout belongs to the app.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence

ROOT = Path(__file__).resolve().parent
if str(ROOT) not in sys.path:  # as under PYTHONSAFEPATH
    sys.path.insert(0, str(ROOT))

try:
    from installer.environment import prepare, read_stamp, venv_python
    from installer.machine import this_machine, unsupported
    from installer.steps import Refused, say
    from installer.update import pull
    from together import commands
except ImportError as missing:
    sys.exit(f"together: {missing.name} is missing beside launch.py; get the whole checkout of together")


def app_environment(root: Path) -> Dict[str, str]:
    """The app runs in the person's own folder, finds its packages in the checkout, and never in that folder."""
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def start_app(root: Path, arguments: Sequence[str]) -> int:
    command = [str(venv_python(root)), "-m", "together", *list(arguments)]
    if os.name == "posix":
        os.execve(command[0], command, app_environment(root))
    app = subprocess.Popen(command, env=app_environment(root))  # Windows cannot replace a process
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches the app as well, and the app decides
            return app.wait()


def update(root: Path) -> int:
    """The second half is the new program's own: it installs what it needs, and starts what runs anew."""
    before = pull(root)
    command = [sys.executable, str(root / "launch.py"), "update", "--pulled", before]
    return subprocess.call(command)


CHECKS = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["tests.support.sizes"])


def pytest_command(arguments: Sequence[str]) -> List[str]:
    marker = ["-m", ""] if "--full" in arguments else []  # overrides the -m of pyproject.toml
    chosen = [argument for argument in arguments if argument != "--full"]
    # All of them run four files at a time, also on two cores: most wait for processes that start or are lost.
    return ["pytest", "-q", *marker, *(chosen or ["-n", "4", "--dist", "loadfile", "--no-loadscope-reorder"])]


def run_steps(root: Path, steps: Sequence[List[str]]) -> int:
    """Runs every step, also after one that failed. Returns 0 only where all passed."""
    failed = []
    for command in steps:
        say(" ".join(command))
        if subprocess.call([str(venv_python(root)), "-m", *command], cwd=str(root)):
            failed.append(" ".join(command[:2]))
    say("failed: " + ", ".join(failed) if failed else "all passed")
    return 1 if failed else 0


def answer(arguments: Sequence[str], root: Path) -> Optional[int]:
    """Says what needs no installation, and returns the exit code; None for everything else."""
    reply = commands.reply(arguments)
    if reply is None and commands.asks_for_help(arguments):
        command = commands.command_of(arguments)
        if command[0] not in commands.OWN and read_stamp(root):
            return start_app(root, command)
        reply = commands.Reply(commands.line_before_installing(command[0]), 0)
    if reply is None:
        return None
    print(reply.text, file=sys.stderr if reply.code else sys.stdout)
    return reply.code


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    try:
        os.environ[commands.TYPED] = commands.typed(getattr(sys, "orig_argv", ()), sys.argv[0])
        answered = answer(arguments, root)
        return run(arguments, root) if answered is None else answered
    except Refused as reason:
        say(str(reason))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next start goes on from here")
        return 130
    except BrokenPipeError:  # whoever read the help has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at its end
        return 0
    except OSError as reason:  # a folder that cannot be read, a process that cannot be started
        say(f"cannot start: {reason}")
        return 1


def run(arguments: Sequence[str], root: Path) -> int:
    machine = this_machine()
    sentence = unsupported(machine)
    if sentence:
        raise Refused(sentence)
    verb = arguments[0] if arguments else ""
    if list(arguments) == ["update"]:
        return update(root)
    prepare(root, machine, verb in commands.OWN)
    if verb == "audit":
        return subprocess.call([str(venv_python(root)), "-m", "installer.audit"], cwd=str(root))
    if verb in commands.OWN:
        return run_steps(root, [*CHECKS, *([pytest_command(arguments[1:])] if verb == "test" else [])])
    return start_app(root, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
