"""The tests' server of tools (`mcp_server.py`), as a program and at an address. Knows no test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.conftest import ROOT, free_ports, until
from tests.support.patience import PATIENCE
from together.ring.rpc import is_free

PROGRAM = (sys.executable, "-m", "tests.support.mcp_server")


@contextmanager
def serving_tools() -> Iterator[str]:
    """Its address, as long as it serves."""
    port = free_ports(1)
    with subprocess.Popen([*PROGRAM, str(port)], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: process.poll() is not None or not is_free("127.0.0.1", port), PATIENCE, "the server is there")
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.kill()
