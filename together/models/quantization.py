"""What config.json says of a quantization: its name, and what of it does not run here. Pure.

Shapes of tensors decide how a matrix is packed; this is only what they cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from together.models.config import text_config
from together.models.values import MOST_SHOWN
from together.wording import cut

Zeros = Literal["gptq", "gptq_v2"]  # GPTQ files hold their zero points less one; those of the second version do not
_KEYS = ("quantization_config", "quantization")  # that declare one
_READ = ("gptq", "awq", "compressed-tensors", "fp8", "fbgemm_fp8", "mxfp4")  # methods whose tensors tell what they are
_GPTQ_FORMATS = ("", "gptq", "gptq_v2")
_AWQ_REPACKS = ("gemv", "gemv_fast", "marlin")


def quantization_of(published: Mapping[str, Any]) -> str | None:
    """The name of the quantization that config.json declares, such as gptq or 4-bit; None where it declares none."""
    for key, settings in _declared(published):
        known = settings if isinstance(settings, dict) else {}
        bits = f"{cut(str(known['bits']), MOST_SHOWN)}-bit" if "bits" in known else key
        return cut(str(known.get("quant_method") or bits), MOST_SHOWN)
    return None


def foreign_quantization(published: Mapping[str, Any]) -> str | None:
    """The name of a quantization that no reader here knows; None where the shapes of tensors tell what it is."""
    for _, settings in _declared(published):
        if not isinstance(settings, dict) or not (_is_mlx(settings) or _method(settings) in _READ):
            return quantization_of(published)
        variant = _variant(settings)
        if variant:
            return cut(f"{_method(settings)}, {variant}", MOST_SHOWN)
    return None


def zeros_of(published: Mapping[str, Any]) -> Zeros:
    """How the model's GPTQ matrices, if it has any, hold their zero points."""
    found = [settings for _, settings in _declared(published) if isinstance(settings, dict)]
    return "gptq_v2" if any(_word(settings, "checkpoint_format") == "gptq_v2" for settings in found) else "gptq"


WHOLE_ROWS = -1  # in the place of a group's size: a row is one group


def declared_groups(published: Mapping[str, Any]) -> frozenset[int]:
    """The sizes of groups that a method whose tensors have no other meaning declares; none where it says none.

    MLX's files are not among them: their configurations are often wrong, and whoever reads them goes by the shapes.
    """
    found: set[int] = set()
    for _, settings in _declared(published):
        if isinstance(settings, dict) and not settings.get("dynamic"):  # which has other sizes by module
            found |= {size for size in _sizes(settings) if isinstance(size, int)}
    return frozenset(found)


def _sizes(settings: Mapping[str, Any]) -> Iterator[object]:
    match _method(settings):
        case "gptq" | "awq":
            yield settings.get("group_size", settings.get("q_group_size"))
        case "compressed-tensors":
            parts = settings.get("config_groups")
            for part in parts.values() if isinstance(parts, dict) else ():
                weights = part.get("weights") if isinstance(part, dict) else None
                if isinstance(weights, dict):
                    yield weights.get("group_size") or WHOLE_ROWS


def _declared(published: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for part in (published, text_config(published)):
        for key in _KEYS:
            if part.get(key):
                yield key, part[key]


def _is_mlx(settings: Mapping[str, Any]) -> bool:
    return {"bits", "group_size"} <= settings.keys() and "quant_method" not in settings


def _method(settings: Mapping[str, Any]) -> str:
    return _word(settings, "quant_method")


def _word(settings: Mapping[str, Any], key: str) -> str:
    value = settings.get(key)
    return value.lower() if isinstance(value, str) else ""


def _variant(settings: Mapping[str, Any]) -> str:
    """What a known method does that does not run here: another order of weights, or more than its tensors say."""
    match _method(settings):
        case "gptq":
            stored = _word(settings, "checkpoint_format")
            if settings.get("is_marlin_format") or stored not in _GPTQ_FORMATS:
                return stored if stored not in _GPTQ_FORMATS else "marlin"
            return "desc_act" if settings.get("desc_act") and settings.get("group_size") != -1 else ""
        case "awq":
            version = _word(settings, "version")
            return version if version in _AWQ_REPACKS else ""
        case "compressed-tensors":
            sparsity = settings.get("sparsity_config")
            sparse = _word(sparsity, "format") if isinstance(sparsity, dict) else ""
            if sparse not in ("", "dense"):
                return sparse
            return "transform_config" if settings.get("transform_config") else ""
    return ""
