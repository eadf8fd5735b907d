"""The import rules of the design: who may import whom, and which process stays light.

Reads source only, apart from the last tests, which start real interpreters; knows nothing of what the modules do.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent

# From the bottom up, a line per floor. A module may import its own room and everything in the lines above it; on the
# first two floors also its neighbours. Tests and examples are free.
WORDS = tuple(
    f"together.{name}"
    for name in (
        "commands",
        "checkout",
        "picture",
        "types",
        "cluster_types",
        "view",
        "requests",
        "errors",
        "sentences",
        "settings",
        "wording",
        "processes",
        "jsonfile",
    )
)
LAYERS = (
    WORDS,
    ("together.models", "together.planning", "together.sampling"),
    ("backends", "together.trust"),
    ("together.ring",),
    ("together.weights",),
    ("together.cluster", "together.engine"),
    ("together.text",),
    ("together.tools",),
    ("together.chats",),
    ("together.head",),
    ("together.scripting",),
    ("together.api", "webui", "together.desktop"),
)
NEIGHBOURLY = 2
ACROSS = {("webui", "together.api.guard"), ("webui", "together.api.visitors")}  # the page keeps the API's rules of HTTP
FREE = ("together.__main__", "together.desktop")  # they start everything, so they may import all of ours

STDLIB_ONLY = tuple(name for name in WORDS if name != "together.jsonfile")
PURE_ENGINE = tuple(f"together.engine.{name}" for name in ("scheduler", "cost", "sequence"))
PURE = ("together.planning", "together.sampling", *PURE_ENGINE)
NETWORK = ("asyncio", "grpc", "http", "select", "selectors", "socket", "ssl")
CHANCE = ("datetime", "numpy.random", "random", "secrets", "time")
PROCESSES = ("concurrent", "multiprocessing", "subprocess", "threading")
IMPURE = (*NETWORK, *CHANCE, *PROCESSES, "mlx", "mlx_lm", "torch")

# What a library may be imported by: modules or packages, or a start of their names where that ends with "*".
LIBRARIES = {
    "torch": ("backends.on_torch",),
    "onnxruntime": ("backends.on_torch",),
    "transformers": ("backends.on_torch", "together.text.tokenizer"),
    "mlx": ("backends.on_mlx",),
    "mlx_lm": ("backends.on_mlx",),
    "gradio": ("webui",),
    "gguf": ("together.desktop.bench.llama_gguf",),
    "jinja2": ("together.text.template_process",),
    "markdown_it": ("together.chats.markup",),
    "mdit_py_plugins": ("together.chats.markup",),
    "pygments": ("together.chats.markup",),
    "latex2mathml": ("together.chats.formulas",),
    "pystray": ("together.desktop.pystray_icon",),
    "mcp": ("together.tools.session_process",),
    "pypdf": ("together.chats.pdf_process",),
    "google.protobuf": ("together.ring.wire",),
    "cryptography": ("together.trust.certificates", "together.trust.page"),
}
MESSAGES = ("together.ring.wire",)  # may import *_pb2
STUBS = ("together.ring", "together.cluster")  # may import *_pb2_grpc, the edges of the services


@dataclass(frozen=True, slots=True)
class Import:
    """`module` imports `target`, both with dots, at `line` of its file."""

    module: str
    target: str
    line: int


def within(name: str, package: str) -> bool:
    if package.endswith("*"):
        return name.startswith(package[:-1])
    return name == package or name.startswith(package + ".")


def within_any(name: str, packages: tuple[str, ...]) -> bool:
    return any(within(name, package) for package in packages)


def sources(root: Path) -> dict[str, Path]:
    """Every module of ours under `root` by its dotted name, without the generated ones."""
    found = {}
    for package in ("together", "backends", "webui"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if not parts[-1].endswith(("_pb2", "_pb2_grpc")):
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, path: Path) -> Iterator[Import]:
    """All imports of a file, also those inside functions and those by a literal name through importlib."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        for target in targets(node, package):
            yield Import(module, target, getattr(node, "lineno", 0))


def targets(node: ast.AST, package: str) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=base, names=names, level=level):
            above = package.split(".")[: len(package.split(".")) + 1 - level] if level else []
            start = ".".join([*above, base] if base else above)
            return [f"{start}.{alias.name}" for alias in names]  # a module or a name in one: both lie within `start`
        case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
            called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            return [name] if called in ("import_module", "__import__") else []
    return []


def place(name: str) -> tuple[int, str] | None:
    """The layer and the entry of LAYERS that a module of ours belongs to."""
    for height, entries in enumerate(LAYERS):
        for entry in entries:
            if within(name, entry):
                return height, entry
    return None


def ours(name: str) -> bool:
    return within_any(name, ("together", "backends", "webui", "tests", "examples"))


def complaint(found: Import) -> str | None:
    """Which rule an import breaks, None where it breaks none."""
    return _layers(found) if ours(found.target) else _libraries(found)


def _layers(found: Import) -> str | None:
    if within_any(found.target, ("tests", "examples")):
        return "the app does not need its tests or examples"
    if within(found.target, "together.ring") and found.target.split(".")[2:3]:
        name = found.target.split(".")[2]
        if name.endswith("_pb2") and found.module not in MESSAGES:
            return "protobuf messages only in together/ring/wire.py"
        if name.endswith("_pb2_grpc") and not within_any(found.module, STUBS):
            return "gRPC stubs only at the edges of ring and cluster"
    if within_any(found.module, FREE) or found.target.startswith("together.__"):
        return None
    here, there = place(found.module), place(found.target)
    if here is None or there is None:
        return (
            None
            if found.module == "together"
            else f"{found.target} has no place in the layers that {found.module} sees"
        )
    if any(within(found.module, one) and within(found.target, other) for one, other in ACROSS):
        return None
    if here[1] == there[1] or there[0] < here[0] or here[0] == there[0] < NEIGHBOURLY:
        return None
    return f"{here[1]} lies below or beside {there[1]}"


def _libraries(found: Import) -> str | None:
    top = found.target.partition(".")[0]
    if within_any(found.module, PURE) and within_any(found.target, IMPURE):
        return "a pure module: no sockets, no framework tensors, no clock, no global random"
    if within_any(found.module, STDLIB_ONLY) and top not in sys.stdlib_module_names:
        return "the shared words need the standard library only"
    for library, allowed in LIBRARIES.items():
        if within(found.target, library) and not within_any(found.module, allowed):
            return f"{library} only in {', '.join(allowed)}"
    return None


def violations(root: Path) -> list[str]:
    broken = []
    for module, path in sources(root).items():
        for found in imports_of(module, path):
            reason = complaint(found)
            if reason:
                broken.append(f"{path.relative_to(root)}:{found.line}: {module} imports {found.target}: {reason}")
    return broken


def test_every_module_keeps_the_import_rules() -> None:
    assert violations(ROOT) == []


def test_every_module_has_a_place() -> None:
    homeless = [name for name in sources(ROOT) if name != "together" and not within_any(name, FREE) and not place(name)]
    assert homeless == [], "add them to the layout of the design and to LAYERS"


BAD = {
    "together/types.py": "import numpy",
    "together/errors.py": "from together.planning import score",
    "together/settings.py": "import platformdirs",
    "together/planning/score.py": "def plan():\n    import time",
    "together/planning/problem.py": "from numpy import random",
    "together/models/spec.py": "from together import ring",
    "together/models/hub.py": "from ..cluster import agent",
    "together/ring/links.py": "from together.ring import together_pb2",
    "together/ring/stage.py": "import importlib\nbackend = importlib.import_module('torch')",
    "together/cluster/agent.py": "if True:\n    import torch.nn",
    "together/cluster/membership.py": "from together.engine import engine",
    "together/engine/scheduler.py": "from asyncio import Queue",
    "together/engine/engine.py": "from transformers import AutoTokenizer",
    "together/head.py": "from webui import page",
    "together/api/routes.py": "import gradio as gr",
    "together/api/responses.py": "from google.protobuf import message",
    "together/sampling.py": "import torch",
    "backends/on_mlx/shard.py": "import torch",
    "backends/on_torch/shard.py": "import mlx.core as mx",
    "backends/checksum.py": "from together.ring import wire",
    "webui/page.py": "from together.ring import together_pb2_grpc",
    "webui/chat.py": "import tests.support",
    "webui/models.py": "from together.api import routes",
}
GOOD = {
    "together/__init__.py": "from together import errors",
    "together/__main__.py": "from together.desktop import cli\nfrom together.cluster import agent",
    "together/planning/score.py": "import math\n\nimport numpy as np\n\nfrom ..models.spec import ModelSpec",
    "together/ring/wire.py": "from google.protobuf import message\n\nfrom . import links, together_pb2",
    "together/ring/stage.py": "import importlib\n\nfrom backends import base\nbackend = importlib.import_module(name)",
    "together/cluster/agent.py": "import grpc\n\nfrom together.ring import together_pb2_grpc",
    "together/text/tokenizer.py": "from transformers import PreTrainedTokenizerFast",
    "together/head.py": "from together import __version__\nfrom together.engine import engine",
    "together/desktop/tray.py": "from together.api import routes\nfrom webui import page",
    "backends/on_torch/attention.py": "import torch\nfrom together import sampling",
    "webui/page.py": "import gradio as gr\n\nfrom together.head.head import Head",
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n", encoding="utf-8")
    return root


@pytest.mark.parametrize("name", BAD)
def test_the_checker_finds_a_broken_rule(name: str, tmp_path: Path) -> None:
    found = violations(write(tmp_path, {name: BAD[name]}))
    assert len(found) == 1
    assert found[0].startswith(str(Path(name)))


def test_the_checker_allows_what_the_design_allows(tmp_path: Path) -> None:
    assert violations(write(tmp_path, GOOD)) == []


def loaded_by(modules: list[str]) -> set[str]:
    """The top-level modules that a new interpreter holds after importing `modules`."""
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code, *modules]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    assert answer.returncode == 0, answer.stderr
    return set(answer.stdout.rpartition("LOADED")[2].split())


def test_a_node_is_light() -> None:
    heavy = {"torch", "mlx", "mlx_lm", "transformers", "gradio"}
    assert loaded_by(["together.cluster.agent", "together.cluster.discovery"]) & heavy == set()


def test_a_head_is_light() -> None:
    page = [name for name in sources(ROOT) if within_any(name, ("together.api", "webui", "together.head.head"))]
    loaded = loaded_by(["together.head.head", "together.desktop.cli", *page])
    assert loaded & {"torch", "mlx", "mlx_lm"} == set()
    assert "together" in loaded


def test_the_process_that_renders_templates_is_jinja_and_little_else() -> None:
    allowed = {*sys.stdlib_module_names, "jinja2", "markupsafe", "together"}
    loaded = {name for name in loaded_by(["together.text.template_process"]) if not name.startswith("_")}
    bare = loaded_by([])  # what the interpreter's environment loads at its start
    assert loaded - bare - allowed == set()
    assert "asyncio" not in loaded


def test_the_command_line_is_light() -> None:
    """A node starts through it and is to stay small, `status` is to answer at once: the page loads where it is used."""
    heavy = {"torch", "mlx", "mlx_lm", "transformers", "gradio"}
    assert loaded_by(["together.desktop.cli"]) & heavy == set()
