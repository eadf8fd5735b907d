"""Stands in for llama.cpp's programs, which no test can install: scripts that print what the real ones printed.

`python -m tests.support.llama_programs FOLDER` records that anew, with the real programs of FOLDER, into
`tests/desktop/llama_programs.json`: of the shape `tiny`, by the arguments that say what is measured.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from together.desktop.bench.llama_cpp import BATCHED, BENCH, SERVERS
from together.desktop.bench.llama_gguf import random_gguf
from together.models.form import PUBLISHED

RECORDED = Path(__file__).parent.parent / "desktop" / "llama_programs.json"
PROMPT, NEW, PEOPLE, SHORT = 40, 8, 3, 32  # tokens of `bench decode`; users of `bench engine` and their prompts
MEASURED = {
    BENCH: (("-p", str(PROMPT), "-n", "0", "-d", "0"), ("-p", "0", "-n", str(NEW), "-d", str(PROMPT))),
    BATCHED: (("-npp", str(SHORT), "-ntg", str(NEW), "-npl", f"1,{PEOPLE}"),),
}
MORE = {BENCH: ("-r", "1", "-o", "json"), BATCHED: ("-c", "120", "--output-format", "jsonl")}
_HEAD = f"""#!{sys.executable}
import json, socket, sys
given = sys.argv[1:]
def value(name):
    return given[given.index(name) + 1]
"""
_PRINT = """
for asked, printed in json.load(open({file!r}))[{name!r}].items():
    if all(value(word) == then for word, then in zip(asked.split()[::2], asked.split()[1::2])):
        open(value("-m"), "rb").close()
        print(printed, end="")
        sys.exit()
sys.exit("nobody recorded " + " ".join(given))
"""
_SERVE = """
server = socket.create_server((value("-H"), int(value("-p"))))
while True:
    server.accept()[0].close()
"""


def stand_in(folder: Path, *names: str) -> Path:
    """A folder with the programs of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        play = _SERVE if name in SERVERS else _PRINT.format(file=str(RECORDED), name=name)
        write_program(folder / name, _HEAD + play)
    return folder


def write_program(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    file.chmod(0o755)


def says(file: Path, output: str, code: int = 0, error: str = "") -> None:
    """A program that prints this, whatever it is asked."""
    words = f"print({output!r}); print({error!r}, file=sys.stderr); sys.exit({code})\n"
    write_program(file, f"#!{sys.executable}\nimport sys\n{words}")


def main() -> None:
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as home:
        model = random_gguf("tiny", "fp32", PUBLISHED, Path(home))
        found = {
            name: {" ".join(asked): _printed(folder / name, model, (*asked, *MORE[name])) for asked in tests}
            for name, tests in MEASURED.items()
        }
    RECORDED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _printed(program: Path, model: Path, arguments: tuple[str, ...]) -> str:
    command = [str(program), "-m", str(model), "-t", "2", "-ngl", "0", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return re.sub(re.escape(str(model)), "model.gguf", done.stdout)


if __name__ == "__main__":
    main()
