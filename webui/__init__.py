"""The page of a head, made with Gradio, which is imported in the one way that is safe here: modules take `gr` from it.

The import makes an HTTP client from the environment's proxies, which fails on one of an unknown kind. The page only
serves this machine and needs no proxy. The import also reports usage unless that is switched off, and takes a third of
its time to write type stubs of every component beside it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@contextmanager
def _no_proxies() -> Iterator[None]:
    """Hide the proxy variables while the block runs; the system's own settings are bypassed as well."""
    hidden = {name: value for name, value in os.environ.items() if name.lower() in _PROXIES}
    bypass = os.environ.get("no_proxy")
    for name in hidden:
        del os.environ[name]
    os.environ["no_proxy"] = "*"
    try:
        yield
    finally:
        del os.environ["no_proxy"]
        os.environ.update(hidden if bypass is None else hidden | {"no_proxy": bypass})


@contextmanager
def _no_stubs() -> Iterator[None]:
    """While the block runs, Gradio's components have no file, and to those it gives no stubs."""
    found = inspect.getfile

    def getfile(object: Any) -> str:
        if isinstance(object, type) and object.__module__.startswith("gradio."):
            raise OSError("no stubs")
        return found(object)

    inspect.getfile = getfile
    try:
        yield
    finally:
        inspect.getfile = found


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
with _no_proxies(), _no_stubs():
    import gradio as gr
    from gradio.utils import get_upload_folder

__all__ = ["get_upload_folder", "gr"]
