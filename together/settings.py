"""Every setting and its default in one frozen dataclass, overridden by TOGETHER_* variables, then the command line."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from together.cluster_types import LOOPBACK
from together.errors import BadSetting
from together.sentences import NOTHING, template

PREFIX = "TOGETHER_"


def default_home() -> Path:
    """The user's cache folder of this platform, without a library: this module is stdlib only."""
    return _user_folder(("LOCALAPPDATA", "AppData/Local"), "Library/Caches", ("XDG_CACHE_HOME", ".cache"))


def default_data() -> Path:
    """The user's folder for what must stay, on this platform; a cache may be emptied."""
    return _user_folder(("LOCALAPPDATA", "AppData/Local"), _SUPPORT, ("XDG_DATA_HOME", ".local/share"))


def default_config() -> Path:
    """The user's folder for what must not be lost with a cache, on this platform."""
    return _user_folder(("APPDATA", "AppData/Roaming"), _SUPPORT, ("XDG_CONFIG_HOME", ".config"))


def default_logs() -> Path:
    """The user's folder for logs on this platform, as the library platformdirs has it."""
    if os.name == "nt":
        return default_data() / "Logs"
    home = Path.home()
    if (home / "Library/Logs").is_dir():
        return home / "Library/Logs/together"
    return Path(os.environ.get("XDG_STATE_HOME", str(home / ".local/state"))) / "together/log"


_SUPPORT = "Library/Application Support"


def _user_folder(windows: tuple[str, str], macos: str, others: tuple[str, str]) -> Path:
    """By a variable, or where it usually is: as on Windows, as on macOS where there is that folder, or as elsewhere."""
    home = Path.home()
    if os.name != "nt" and (home / macos).is_dir():
        return home / macos / "together"
    variable, usual = windows if os.name == "nt" else others
    return Path(os.environ.get(variable, str(home / usual))) / "together"


@dataclass(frozen=True, slots=True)
class Settings:
    """One field per setting; `TOGETHER_PORT=8001` sets `port`, and so on. Times in seconds."""

    home: str = ""  # lock, port file, node ids, bench weights; "" is the user's cache folder
    config: str = ""  # the join code; "" is the home folder if that was given, else the user's folder for settings
    host: str = "127.0.0.1"  # where nodes and pages listen
    hosts: str = ""  # more names, as "chat.example.org,studio.lan": browsers may call the page by them, with a key
    plain_http: bool = False  # the page in the clear also off this machine, for a proxy of your own that encrypts
    port: int = 8765  # page and API for this machine; the next free one if taken; for others the one after it
    node_port: int = 47600  # first block of 16 ports tried for a node
    cluster: str = "default"  # nodes and heads of another cluster name ignore each other
    owner: str = ""  # the head that started this node and alone takes it by itself; "": any head may
    name: str = ""  # this machine's name in the table; "" is the host name
    backend: str = ""  # torch, mlx or checksum; "" picks what fits this machine
    dtype: str = ""  # fp32, bf16, fp16; "" is fp32 for the bundled model, else the checkpoint's own
    exact: bool = False  # quantized weights are multiplied without int8 activations: slower, and as exact as plain ones
    claims: str = ""  # folder where nodes say what memory they use; "" is one for all apps and users of a machine
    memory: str = ""  # what a node may grant, as "8GB"; "" is all that is free, less a reserve
    cache: str = ""  # what models may take of the disk in the home folder, as "200GB"; "" is half of what is free
    sampling: str = "default"  # what holds where a request is silent: the model author's values; "plain": nothing cut
    strategy: str = "recommend"  # how layers are split by default: see `plan --help`
    on_demand: bool = False  # a model that a request names is loaded for it, and the least used one makes room
    aliases: str = ""  # other names of models for requests, as "gpt-4o=org/name,small=demo_model"
    any_model: bool = False  # a request that names no model of this app gets the one that serves
    idle: str = ""  # models that nobody used for so long are unloaded, as "30m"; "": never
    balance: bool = False  # move layers by itself when machines became faster or slower than planned
    context: int = 8192  # tokens a plan is sized for, at most the model's own context
    users: int = 4  # concurrent users a plan is sized for
    max_waiting: int = 256  # requests in the queue before 429
    heartbeat: float = 1.0
    node_timeout: float = 5.0  # no bytes from a node for so long: it is lost
    lease: float = 30.0  # a stage whose head does not renew for so long is freed
    load_timeout: float = 600.0
    step_timeout: float = 120.0
    log_level: str = "WARNING"

    @property
    def home_path(self) -> Path:
        return Path(self.home).expanduser().absolute() if self.home else default_home()

    @property
    def host_names(self) -> tuple[str, ...]:
        return tuple(filter(None, (name.strip() for name in self.hosts.split(","))))

    @property
    def data_path(self) -> Path:
        """Where conversations are kept: in the home folder if one was given."""
        return self.home_path if self.home else default_data()

    @property
    def logs_path(self) -> Path:
        """Where programs note what they do: in the home folder if one was given."""
        return self.home_path / "logs" if self.home else default_logs()

    @property
    def config_path(self) -> Path:
        if self.config:
            return Path(self.config).expanduser().absolute()
        return self.home_path if self.home else default_config()

    @property
    def asks_for_keys(self) -> bool:
        """Whether users come from elsewhere: over the network, or by a name that a proxy has for this app."""
        return self.open_to_network or bool(self.host_names)

    @property
    def open_to_network(self) -> bool:
        return self.host not in LOOPBACK


def load_settings(environment: Mapping[str, str] | None = None, **overrides: object) -> Settings:
    """Defaults < environment < `overrides` (None is "not given"). Raises BadSetting for unknown or unreadable ones."""
    known = {item.name: item for item in fields(Settings)}
    values: dict[str, object] = {}
    for key, text in (os.environ if environment is None else environment).items():
        if key.startswith(PREFIX):
            name = key.removeprefix(PREFIX).lower()
            if name not in known:
                names = tuple(sorted(PREFIX + item.upper() for item in known))
                raise BadSetting("{key} is not a setting; known are {names}", key=key, names=names)
            kind = type(known[name].default)
            values[name] = parse_port(f"{key}={text}", text, name) if name in PORTS else _convert(key, text, kind)
    for name, value in overrides.items():
        if name not in known:
            raise BadSetting("{key} is not a setting", key=name)
        if value is not None:
            values[name] = value
    return Settings(**values)  # type: ignore[arg-type]  # each value was converted to its field's type


# What a port may be. A node takes 16 from its own, and a head one of the 64 below a node's.
PORTS = {"port": range(2**16), "node_port": range(1100, 2**16 - 15)}


def parse_port(given: str, text: str, name: str) -> int:
    """`text` as the setting `name`; `given` is how a person wrote it, as `--port 80801`. Raises BadSetting."""
    allowed, digits = PORTS[name], text.strip()
    port = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 6 else -1
    if port in allowed:
        return port
    free = template("; 0 takes any that is free") if 0 in allowed else NOTHING
    raise BadSetting(
        "{given} cannot be a port; give a number from {first} to {last}{free}",
        given=given,
        first=allowed.start or 1,
        last=allowed.stop - 1,
        free=free,
    )


_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _convert(key: str, text: str, kind: type) -> object:
    if kind is bool:
        if text.strip().lower() not in _BOOLEANS:
            raise BadSetting("{key}={text!r} is not yes or no", key=key, text=text)
        return _BOOLEANS[text.strip().lower()]
    try:
        return kind(text)
    except ValueError:
        number = template("whole number" if kind is int else "number")
        raise BadSetting("{key}={text!r} is not a {number}", key=key, text=text, number=number) from None


_SPANS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_seconds(text: str) -> float:
    """`"30m"` → 1800, also of `s`, `h` and `d`. Raises BadSetting, also without a unit."""
    digits, unit = text.strip()[:-1], text.strip()[-1:].lower()
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 9 and unit in _SPANS):
        raise BadSetting("{text!r} is no time; write it as 30m, 90s or 2h", text=text)
    return int(digits) * _SPANS[unit]


def parse_aliases(text: str) -> dict[str, str]:
    """`"gpt-4o=org/name,small=demo_model"` → what each name stands for. Raises BadSetting."""
    found = {}
    for part in filter(None, text.split(",")):
        name, sign, model = (word.strip() for word in part.partition("="))
        if not (name and sign and model):
            raise BadSetting("{part!r} is no alias; write it as NAME=MODEL", part=part)
        found[name] = model
    return found


_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(text: str) -> int:
    """`"4GB"` → 4_000_000_000, `"512MiB"` → 536_870_912. Raises BadSetting, also without a unit: `8` is never bytes."""
    digits = text.strip().rstrip("BbKkMmGgTtIi ")
    unit = text.strip()[len(digits) :].strip().lower()
    try:
        size = float(digits) * _UNITS.get(unit, math.nan)
    except ValueError:
        size = -1.0
    if not 0 <= size < 2**63:  # nor is "nan" a size
        raise BadSetting("{text!r} is not a size; write it as 4GB or 512MiB", text=text)
    return int(size)
