"""What no module may do, wherever it stands: run what it read, trust a file's own code, speak in the clear.

Reads source only. What the linter finds too (S301, S307) is here as well, so that a `noqa` does not let it in.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sizes import PROGRAM, ROOT, sources

# Modules that make objects of bytes, and so run what these say.
LOADERS = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
RUNS = {"eval", "exec", "compile", "__import__"}  # builtins
# Functions by their module's name, which may be another's by any name but these.
CALLS = {
    "torch.load": "a checkpoint of torch is a pickle: read safetensors",
    "torch.jit.load": "it holds code",
    "torch.hub.load": "it fetches code and runs it",
    "yaml.load": "it makes any object",
    "yaml.unsafe_load": "it makes any object",
    "os.system": "a shell reads it",
    "os.popen": "a shell reads it",
    "ssl._create_unverified_context": "nobody is checked",
}
NAMES = {"trust_remote_code", "allow_pickle"}  # of parameters: never given, not even as False
VALUES = {"shell": True, "verify": False, "check_hostname": False}  # parameters that are never given so
ATTRIBUTES = {"CERT_NONE"}
# A link in the clear: made where it is decided that it stays on this machine, and nowhere else.
IN_THE_CLEAR = {"insecure_channel": "together/ring/rpc.py", "add_insecure_port": "together/ring/rpc.py"}


def banned(text: str, file: str = "x.py") -> list[str]:
    """What in a module's source is banned, by line."""
    return [f"{file}:{line}: {what}" for line, what in _found(ast.parse(text), file)]


def _found(tree: ast.AST, file: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    if alias.name.partition(".")[0] in LOADERS:
                        yield node.lineno, f"import {alias.name}"
            case ast.ImportFrom(module=str(module), names=names):
                if module.partition(".")[0] in LOADERS:
                    yield node.lineno, f"from {module}"
                for alias in names:
                    if f"{module}.{alias.name}" in CALLS:
                        yield node.lineno, f"{module}.{alias.name}: {CALLS[f'{module}.{alias.name}']}"
            case ast.Name(id=name, ctx=ast.Load()) if name in RUNS:
                yield node.lineno, name
            case ast.Attribute(attr=name):
                if (dotted := _dotted(node)) in CALLS:
                    yield node.lineno, f"{dotted}: {CALLS[dotted]}"
                if name in ATTRIBUTES or (name in RUNS and _dotted(node) == f"builtins.{name}"):
                    yield node.lineno, name
                if name in IN_THE_CLEAR and file != IN_THE_CLEAR[name]:
                    yield node.lineno, f"{name}: only in {IN_THE_CLEAR[name]}"
            case ast.keyword(arg=str(name), value=value):
                if name in NAMES or (name in VALUES and _is(value, VALUES[name])):
                    yield value.lineno, f"{name}=…"


def _is(value: ast.expr, what: bool) -> bool:
    return isinstance(value, ast.Constant) and value.value is what


def _dotted(node: ast.expr) -> str:
    match node:
        case ast.Attribute(value=value, attr=name):
            return f"{_dotted(value)}.{name}"
        case ast.Name(id=name):
            return name
    return ""


def test_no_module_runs_what_it_reads_or_speaks_in_the_clear() -> None:
    files = [*sources(*PROGRAM, "installer", "examples"), ROOT / "launch.py"]
    assert len(files) > 250
    found = []
    for path in files:
        found += banned(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import marshal as m",
        "def later():\n    import dill.source",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "from torch import load",
        "read = torch.load",
        "eval('1')",
        "run = exec",
        "builtins.eval('1')",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=False)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "httpx.get(url, verify=False)",
        "context.verify_mode = ssl.CERT_NONE",
        "grpc.aio.insecure_channel(at)",
        "server.add_insecure_port(at)",
    ],
)
def test_it_is_found(line: str) -> None:
    assert len(banned(line)) == 1, line


@pytest.mark.parametrize(
    "line",
    [
        "mx.eval(x)",
        "model.eval()",
        "re.compile('x')",
        "renderer.compile(x)",
        "yaml.safe_load(x)",
        "run(x, shell=False)",
    ],
)
def test_what_only_looks_like_it_is_not(line: str) -> None:
    assert banned(line) == []


def test_the_one_place_in_the_clear_is_where_it_says() -> None:
    for name, file in IN_THE_CLEAR.items():
        assert name in Path(ROOT, file).read_text(encoding="utf-8")
