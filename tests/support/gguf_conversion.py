"""What llama.cpp's converter makes of a family whose matrices it parts, joins or reshapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Config = Mapping[str, Any]
Found = Mapping[str, Array]


@dataclass(frozen=True)
class Conversion:
    """`parts` are the tensors that a published one becomes, by what a file calls them; None: it stays one, by its name.

    `whole` undoes that.
    """

    architecture: Callable[[Config], str]
    parts: Callable[[str, Array, Config], dict[str, Array] | None]
    whole: Callable[[str, Found, Config], Array | None]
    settings: Callable[[gguf.GGUFWriter, Config], None]
    more: Callable[[Config], dict[str, Array]] = lambda config: {}  # tensors that nobody published


def mamba_part(name: str, array: Array, groups: int) -> tuple[str, Array] | None:
    """`Mamba2Model.modify_tensors`: what it reshapes, by its name's end in a file; None for any other tensor."""
    match name.rpartition("mamba." if ".mamba." in name else "mixer.")[2]:
        case "conv1d.weight":
            return "ssm_conv1d.weight", array.squeeze(1)
        case "A_log":
            return "ssm_a", -np.exp(array)[:, None]
        case "D":
            return "ssm_d", array[:, None]
        case "norm.weight":
            return "ssm_norm.weight", array.reshape(groups, -1)
    return None


def mamba_whole(name: str, found: Found, start: str) -> Array | None:
    """The same undone; `start` as `blk.3.`."""
    match name.rpartition("mamba." if ".mamba." in name else "mixer.")[2]:
        case "conv1d.weight":
            return found[f"{start}ssm_conv1d.weight"][:, None]
        case "A_log":
            return np.log(-found[f"{start}ssm_a"])[:, 0]
        case "D":
            return found[f"{start}ssm_d"][:, 0]
        case "norm.weight":
            return found[f"{start}ssm_norm.weight"].reshape(-1)
    return None
