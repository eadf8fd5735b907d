"""LiteLLM against the bundled model on a ring of two stages, from a virtual environment of its own.

It wants an older huggingface_hub than together has, so the two cannot be installed side by side.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.api.test_clients import ANSWER, ASKED, MODEL
from tests.conftest import RealApp

INSTALL_WITHIN = 400.0  # seconds
CLIENT = """
import asyncio, json, sys
import litellm

asked = json.loads(sys.argv[1])
whole = litellm.completion(**asked)
parts = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
later = asyncio.run(litellm.acompletion(**asked))
try:
    litellm.completion(**asked | {"model": "openai/nobody"})
    error = ""
except litellm.NotFoundError as refused:
    error = str(refused)
print(json.dumps({
    "whole": whole.choices[0].message.content,
    "finish": whole.choices[0].finish_reason,
    "tokens": whole.usage.completion_tokens,
    "streamed": "".join(part.choices[0].delta.content or "" for part in parts if part.choices),
    "streamed_tokens": [part.usage.completion_tokens for part in parts if getattr(part, "usage", None)],
    "later": later.choices[0].message.content,
    "error": error,
}))
"""


@pytest.fixture(scope="module")
def litellm_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with LiteLLM and nothing of ours."""
    folder = tmp_path_factory.mktemp("litellm") / "venv"
    try:
        run(sys.executable, "-m", "venv", str(folder))
        python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "litellm>=1.80,<2")
    except (subprocess.SubprocessError, OSError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        pytest.skip(f"LiteLLM cannot be installed here: {said.rpartition(chr(10))[2]}")
    return python


def run(*command: str, **variables: str) -> str:
    """What it says. Raises SubprocessError."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | variables
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=INSTALL_WITHIN, check=True, cwd=Path.home()
    )
    return done.stdout


@pytest.mark.full
@pytest.mark.timeout(INSTALL_WITHIN * 2)
def test_litellm_chats_and_streams(litellm_python: Path, demo_app: RealApp) -> None:
    asked = {"model": f"openai/{MODEL}", "api_base": f"{demo_app.url}/v1", "api_key": "none", "messages": ASKED}
    apart = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"}  # it would ask the internet for prices
    said = run(str(litellm_python), "-c", CLIENT, json.dumps(asked | {"temperature": 0}), **apart)
    found: dict[str, Any] = json.loads(said.strip().rpartition("\n")[2])
    assert [found[key] for key in ("whole", "streamed", "later")] == [ANSWER] * 3
    assert found["finish"] == "stop"
    assert found["streamed_tokens"][-1] == found["tokens"] > 3
    assert "nobody" in found["error"]
