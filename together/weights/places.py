"""Where this machine's programs keep models, by their own variables and settings. Reads those settings, nothing else.

As read in the sources of lms and lmstudio-js, of ollama, of llama.cpp and of huggingface_hub.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from together.jsonfile import BrokenFile, read_json
from together.models.folder import read_begin

Environment = Mapping[str, str]

_POINTER = ".lmstudio-home-pointer"
_LONGEST_PATH = 4096  # bytes
_SHARED_OLLAMA = (  # of its installer for Linux, and of distributions whose service has a home of its own
    "/usr/share/ollama/.ollama/models",
    "/var/lib/ollama/.ollama/models",
    "/var/lib/ollama/models",
    "/var/lib/ollama",
)


def hub_cache(environment: Environment | None = None) -> Path:
    """The folder where the hub's own tools keep what they download; see huggingface_hub's environment variables."""
    known = os.environ if environment is None else environment
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if known.get(name):
            return Path(known[name]).expanduser()
    cache = Path(known.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
    return Path(known.get("HF_HOME") or cache / "huggingface").expanduser() / "hub"


def hub_snapshots(cache: Path, name: str, revision: str = "") -> list[Path]:
    """The model's snapshots in the hub's cache: the asked revision first, then what `main` was."""
    root = cache / f"models--{name.replace('/', '--')}"
    main = root / "refs" / "main"
    try:
        current = main.read_text(errors="replace").strip() if main.is_file() else ""
        snapshots = list((root / "snapshots").iterdir())
    except OSError:
        return []
    return sorted(snapshots, key=lambda folder: (folder.name != revision, folder.name != current, folder.name))


def lm_studio_folders(user: Path, environment: Environment) -> list[Path]:
    """LM Studio's folders of models, `PUBLISHER/REPO` in each. `user` is the person's own folder."""
    return [_downloads(home) or home / "models" for home in _lm_studio_homes(user, environment)]


def ollama_folders(user: Path, environment: Environment, system: str = sys.platform) -> list[Path]:
    """Ollama's folders, each with manifests and blobs."""
    own = environment.get("OLLAMA_MODELS", "").strip().strip("\"'")
    if own:
        return [_expanded(own)]
    return [user / ".ollama" / "models", *map(Path, _SHARED_OLLAMA if system.startswith("linux") else ())]


def llama_cpp_folders(user: Path, environment: Environment, system: str = sys.platform) -> list[Path]:
    """What llama.cpp downloaded before it used the hub's cache, and what its server is told to offer."""
    chosen = environment.get("LLAMA_ARG_MODELS_DIR")
    return [*_paths([chosen]), _llama_cpp_cache(user, environment, system)]


def _lm_studio_homes(user: Path, environment: Environment) -> list[Path]:
    """The one that is set, else the one its pointer names, else the present one and that of its first versions."""
    pointer = read_begin(user / _POINTER, _LONGEST_PATH).decode(errors="replace").strip()
    named = _paths([environment.get("LMSTUDIO_HOME"), pointer])
    return named[:1] or [user / ".lmstudio", user / ".cache" / "lm-studio"]


def _downloads(home: Path) -> Path | None:
    """The folder that the person chose for models."""
    file = home / "settings.json"
    try:
        settings = read_json(file, dict[str, Any]) if file.is_file() else None
    except (BrokenFile, OSError):
        return None
    chosen = (settings or {}).get("downloadsFolder")
    return next(iter(_paths([chosen])), None) if isinstance(chosen, str) else None


def _llama_cpp_cache(user: Path, environment: Environment, system: str) -> Path:
    if environment.get("LLAMA_CACHE"):
        return _expanded(environment["LLAMA_CACHE"])
    if system == "win32":
        return Path(environment.get("LOCALAPPDATA") or user / "AppData" / "Local") / "llama.cpp"
    if system == "darwin":
        return user / "Library" / "Caches" / "llama.cpp"
    return Path(environment.get("XDG_CACHE_HOME") or user / ".cache") / "llama.cpp"


def _paths(texts: Iterable[str | None]) -> list[Path]:
    """Those that are whole paths: any other would be relative to wherever this program was started."""
    found = [_expanded(text) for text in texts if text and "\0" not in text]
    return [path for path in found if path.is_absolute()]


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # the home of a user that is not there
        return Path(text)
