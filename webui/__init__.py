"""The page of a head, made with Gradio, which is imported in the one way that is safe here: modules take `gr` from it.

The import makes an HTTP client from the environment's proxies, which fails on one of an unknown kind. The page only
serves this machine and needs no proxy. The import also reports usage unless that is switched off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

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


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
with _no_proxies():
    import gradio as gr
    from gradio.utils import get_upload_folder

__all__ = ["get_upload_folder", "gr"]
