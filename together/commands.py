"""The commands with a line each, and how a person typed `python3 launch.py`: known before anything is installed.

Keeps to the syntax and the library of Python 3.6, because launch.py answers from here whatever Python runs it.
"""

import difflib
import os
import re
import shlex
import shutil
import textwrap
from typing import Dict, List, NamedTuple, Optional, Sequence

from together import __version__

USUAL = "python3 launch.py"  # in the texts of messages
TYPED = "LAUNCHED_AS"  # the variable in which launch.py says how it was typed
HELP = ("-h", "--help")
MEANT = {  # what people type instead, where the spelling tells nothing
    "start": "up",
    "serve": "up",
    "ls": "list",
    "download": "pull",
    "remove": "rm",
    "delete": "rm",
    "kill": "stop",
    "quit": "stop",
    "upgrade": "update",
}

GROUPS = (
    (
        "Start and stop",
        {
            "up": "Start the app: page, API, and nodes on this machine.",
            "node": "Lend this machine: a node without a page.",
            "stop": "Stop the app and the nodes that it started, even if it hangs.",
            "status": "What runs: model, stages, nodes.",
            "ps": "What is served now, in short.",
            "open": "Open the chat in the browser; also open machines, open models and open settings.",
            "machines": "The machines, in a table.",
            "nodes": "The app's own nodes on this machine; nodes start adds one, nodes stop ends one.",
            "copy": "Copy what other programs ask for: copy address (of the API), copy code (the join code).",
            "logs": "What the app and the nodes on this machine noted, the newest last.",
            "tray": "An icon in the tray or menu bar with this menu; up shows one by itself where there are windows.",
            "at-login": "Start the app or a node at login: at-login up or at-login node, with options; at-login off.",
            "update": "Get the newest version of the program, install what it needs, and start anew what runs here.",
            "doctor": "What this machine can do, what is wrong, and how to fix it; exit code 1 if something is.",
        },
    ),
    (
        "Who may come in",
        {
            "join-code": "The code with which other machines join this one; --rotate makes a new one.",
            "join": "Join the machines that have a code; a command after it is run then, as node.",
            "leave": "Belong to no other machines any more.",
            "keys": "Keys for browsers and programs of other machines: keys make NAME, keys list, keys revoke NAME.",
        },
    ),
    (
        "Talk",
        {
            "run": "Load a model, unless it is served, and chat with it, or answer one prompt.",
            "chat": "Chat in this terminal, with the running app or with one that ends with the chat.",
            "tools": "Servers of tools (MCP) for chats: tools add NAME ADDRESS, tools list, tools remove NAME.",
            "score": "How well the served model foretells a text: mean log-probability and perplexity.",
        },
    ),
    (
        "Models",
        {
            "list": "The models on this machine.",
            "pull": "Get a model from the hub, or some of its layers; goes on where an earlier pull ended.",
            "rm": "Delete a model from the app's own folders; folders elsewhere are never touched.",
            "models": "The models on this machine, as list; also models pull, models rm and models export.",
            "convert": "Write a model as a folder in MLX's format, which mlx-lm opens, as it is or quantized.",
            "inspect": "What a model is and weighs, from its headers alone: layers, memory, whether it runs here.",
            "load": "Load a model in the running app, by the recommended plan or a given one.",
            "unload": "Unload a model of the running app; its nodes stay.",
        },
    ),
    (
        "Who takes which layers",
        {
            "plan": "Who would take which layers of a model, and why: on the living machines, or by --cluster on any.",
            "cluster-file": "Write an example of a file for plan --cluster: machines you have or think of buying.",
            "balance": "Move layers as status advises, where machines became slower or faster; answers go on.",
            "forget": "Let plans use all memory of a node again that ran out of it; --texts: what is kept of chats.",
        },
    ),
    (
        "For work on together itself",
        {
            "bench": "Measure this machine: device, hop, decode, engine, serve, plan, estimate, sampler, trust.",
            "audit": "Look up known holes in the packages that are installed; needs a network.",
            "check": "Set up, then ruff, mypy and the sizes of files.",
            "test": "The same and pytest with these arguments; --full adds the long tests.",
        },
    ),
)
LINES: Dict[str, str] = {name: line for _, lines in GROUPS for name, line in lines.items()}
OWN = ("audit", "check", "test")  # of launch.py itself: the app does not know them
NAMES = (*LINES, "help")


class Reply(NamedTuple):
    """What is said without starting anything: on stdout with code 0, else on stderr."""

    text: str
    code: int


def launch(arguments: str = "") -> str:
    """`python3 launch.py ARGUMENTS` as this person types it."""
    words = os.environ.get(TYPED) or ("py launch.py" if os.name == "nt" else USUAL)
    return f"{words} {arguments}".rstrip()


def as_typed(text: str) -> str:
    """A message's text, with the command as this person types it."""
    return text.replace(USUAL, launch()) if USUAL in text else text


def typed(line: Sequence[str], script: str) -> str:
    """How launch.py was started, by the process's own command line.

    `py` of Windows and shims start a Python by its whole path, which nobody typed.
    """
    python = line[0] if line else ""
    if os.path.isabs(python):
        python = "py" if os.name == "nt" else os.path.basename(python)
    if not re.match(r"(.*/)?py(thon[\d.]*)?(\.exe)?$", python):
        python = "py" if os.name == "nt" else "python3"
    if os.name == "nt":
        return " ".join(f'"{word}"' if " " in word else word for word in (python, script))
    return f"{shlex.quote(python)} {shlex.quote(script)}"


def command_of(arguments: Sequence[str]) -> List[str]:
    """The command line in full: `help up` is `up --help`, and options alone are for `up`."""
    if len(arguments) > 1 and arguments[0] == "help":
        return [arguments[1], "--help"]
    if not arguments or arguments[0] not in LINES:
        return ["up", *arguments]
    return list(arguments)


def reply(arguments: Sequence[str]) -> Optional[Reply]:
    """The answer to a command line that asks for help or the version, or is no command; None for all others."""
    first = arguments[0] if arguments else ""
    word = arguments[1] if first == "help" and len(arguments) > 1 else first
    if first in HELP or word == "help" or (first == "help" and (not word or word.startswith("-"))):
        return Reply(overview(), 0)
    if first in ("-V", "--version"):
        return Reply("together " + __version__, 0)
    if word and not word.startswith("-") and word not in NAMES:
        return Reply(unknown(word), 2)
    return None


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command's options are asked for."""
    own = arguments[: list(arguments).index("--")] if "--" in arguments else arguments
    return bool(arguments) and (arguments[0] == "help" or any(word in HELP for word in own))


def line_before_installing(command: str) -> str:
    """What is known of a command while typer is not there."""
    shown = f"{launch(command)}: {LINES[command]}"
    if command in OWN:
        return shown
    return f"{shown}\nIts options are shown once together is installed, which the first start does: {launch()}"


def overview() -> str:
    """All commands, as wide as the terminal."""
    width = min(shutil.get_terminal_size().columns, 110)
    parts = [
        f"together {__version__}: several ordinary machines run one language model.\n",
        f"{launch()} [COMMAND] [OPTIONS]",
        "Without a command: up; where the app runs already, a menu.",
    ]
    for title, lines in GROUPS:
        parts.append("\n" + title)
        parts += [_paragraph(name, line, width) for name, line in lines.items()]
    parts.append("\nThe options of a command: {}. The version: --version.".format(launch("help COMMAND")))
    return "\n".join(parts)


def _paragraph(name: str, line: str, width: int) -> str:
    indent = f"  {name:13}"
    return textwrap.fill(line, max(width, 40), initial_indent=indent, subsequent_indent=" " * len(indent))


def unknown(word: str) -> str:
    """The sentence for a word that is no command, with the nearest one."""
    near = MEANT.get(word) or next(iter(difflib.get_close_matches(word.lower(), NAMES, 1)), "")
    shown = word if word.isprintable() and len(word) <= 60 else ascii(word[:60])
    if near:
        hint = f"; did you mean {launch(near)}?"
    elif "/" in word or os.sep in word:
        hint = "; to load a model: {}.".format(launch("run " + shown))
    else:
        hint = "."
    return "together: there is no command {}{} The commands: {}.".format(shown, hint, ", ".join(NAMES))
