"""Names of tensors, units, files and models, and one canonical name per tensor. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

EMBED = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"
LAYER_EMBED = "model.embed_tokens_per_layer.weight"  # of all layers: what they take beside the hidden states
LOOKED_UP = (EMBED, LAYER_EMBED)

EMBED_UNIT = "embed.safetensors"
OPENING_UNIT = "opening.safetensors"  # what only a first stage has, beside the embedding, which may be the head, too
NORM_UNIT = "norm.safetensors"
HEAD_UNIT = "head.safetensors"
MANIFEST = "manifest.json"  # next to units
TEMPLATES = "additional_chat_templates"  # the one folder that a model's folder has: templates besides the usual one

_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.(.+)")
_LAYER_UNIT = re.compile(r"layer-(\d{5,6})\.safetensors")
_COMPUTED = "rotary_emb.inv_freq"  # old checkpoints store what every implementation computes
_OPENING = ("embed_tokens_per_layer.", "per_layer_model_projection.", "per_layer_projection_norm.")
_ENDS = {"model.embed_tokens.": EMBED_UNIT, "model.norm.": NORM_UNIT, "lm_head.": HEAD_UNIT}
_ENDS |= {f"model.{name}": OPENING_UNIT for name in (*_OPENING, "visual.")}
_MODEL = re.compile(r"[\w.-]+(?:/[\w.-]+(?:/[\w.-]+\.(?i:gguf))?)?")
_HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)"
    r"(?:/tree/main|/(?:blob|resolve)/main/(?:[^/?#]+/)*([\w.-]+\.(?i:gguf)))?/?(?:[?#].*)?"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[0-9a-f]{64}(?:\.[a-z0-9@-]{1,60})?")
MAX_NAME = 200  # characters of a model's or file's name


def layer_of(name: str) -> int | None:
    """The decoder layer a tensor belongs to; None for embedding, norm, head and anything else."""
    match = _LAYER.fullmatch(name)
    return int(match[1]) if match else None


def shifted(name: str, by: int) -> str:
    """`name` with its layer number lowered by `by`, as a shard that starts at layer `by` counts."""
    match = _LAYER.fullmatch(name)
    return f"model.layers.{int(match[1]) - by}.{match[2]}" if match else name


def is_computed(name: str) -> bool:
    """Whether implementations compute this tensor themselves, so that nobody reads it."""
    return name.endswith(_COMPUTED)


def unit_of(tensor: str) -> str | None:
    """The unit a tensor belongs to; None for what no stage reads."""
    if is_computed(tensor):
        return None
    layer = layer_of(tensor)
    if layer is not None:
        return layer_unit(layer)
    return next((unit for start, unit in _ENDS.items() if tensor.startswith(start)), None)


def layer_unit(layer: int) -> str:
    return f"layer-{layer:05d}.safetensors"


def unit_layer(unit: str) -> int | None:
    """The layer of a unit; None for embedding, norm and head."""
    match = _LAYER_UNIT.fullmatch(unit)
    return int(match[1]) if match else None


def is_plain(name: str) -> bool:
    """Whether `name` can only be a file directly in a folder, on every system."""
    bad = name in ("", ".", "..") or any(sign in "/\\:" or not sign.isprintable() for sign in name)
    return not bad and len(name) <= MAX_NAME


def is_gguf(name: str) -> bool:
    """Whether a file of this name is one in the format GGUF."""
    return name.lower().endswith(".gguf")


def is_template(name: str) -> bool:
    """Whether `name` can only be a template in the folder for them, as `additional_chat_templates/tool_use.jinja`."""
    folder, _, file = name.partition("/")
    return folder == TEMPLATES and is_plain(file) and file.endswith(".jinja")


def is_model_name(name: str) -> bool:
    """Whether `name` is a model's name, as `tiny`, `org/name` or `org/name/file.gguf`.

    Nothing in it could lead out of a folder.
    """
    known = len(name) <= MAX_NAME and _MODEL.fullmatch(name) is not None
    return known and not {".", ".."} & set(name.split("/"))


def hub_id(text: str) -> str:
    """`text`, or the model's name in it where it is the address of a page on the hub, as a browser shows it.

    Of a repository it is `org/name`, of a GGUF file in it `org/name/file.gguf`.
    """
    page = _HUB_PAGE.fullmatch(text.strip())
    if page is None:
        return text
    return f"{page[1]}/{page[2]}" if page[2] else page[1]


def is_hub_name(name: str) -> bool:
    """Whether the hub can have a model of this name: `org/name`, or `org/name/file.gguf`."""
    return is_model_name(name) and "/" in name


def repository(name: str) -> tuple[str, str]:
    """Of a model's name on the hub its repository, and its file there: empty where the repository is the model."""
    org, _, rest = name.partition("/")
    own, _, file = rest.partition("/")
    return (f"{org}/{own}" if own else org), file


def is_sha256(text: str) -> bool:
    return _SHA256.fullmatch(text) is not None


def is_model_key(text: str) -> bool:
    """Whether it can be the key of a model, as `types.model_key` writes it: a name of a folder on every system."""
    return _KEY.fullmatch(text) is not None


def model_name(text: str) -> str:
    """`text` as a model's name: what such a name must not hold becomes a dash."""
    kept = re.sub(r"[^\w.-]+", "-", text)[:MAX_NAME]
    return kept if is_model_name(kept) else "model"


_WRAPS = r"((?:(?:model|language_model|text_model|module|_orig_mod|base_model|backbone)\.)*)"
_PARTS = (r"embed_tokens\.", r"embeddings\.(?=\w+$)", r"layers\.\d{1,6}\.", r"norm\.", r"norm_f\.")
_PART = re.compile(rf"{_WRAPS}({'|'.join((*_PARTS, *map(re.escape, _OPENING)))}).+")
_OTHER = {"embeddings.": "embed_tokens.", "norm_f.": "norm."}  # what some families call them
_HEAD = re.compile(_WRAPS + r"(lm_head\..+)")
_TOWER = re.compile(r"(?:model\.)?(visual\..+)")
_TOWERS = "visual.deepstack_merger_list."  # such a tower runs here; others are passed over
_USUAL = "model."
_EXPERTS = re.compile(r"(\.mlp|\.feed_forward)\.experts\.((?:gate|up|down)_proj\.)|\.experts\.switch_glu\.")
_UNGATED = {".switch_mlp.fc1.": ".switch_mlp.up_proj.", ".switch_mlp.fc2.": ".switch_mlp.down_proj."}


def canonical_names(names: Iterable[str]) -> Mapping[str, str]:
    """Stored name → canonical name, for the tensors of the decoder; the others are not in it."""
    known = list(names)
    prefix = _prefix(known)
    found = {name: _USUAL + _usual(name[len(prefix) :]) for name in known if _is_part(name, prefix)}
    return found | _heads(known) | _tower(known)


def _usual(name: str) -> str:
    """By the usual names of modules, and of all experts of a projection in one, which MLX calls otherwise somewhere."""
    for other, usual in _OTHER.items():
        if name.startswith(other):
            return usual + name.removeprefix(other)
    for other, usual in _UNGATED.items():
        name = name.replace(other, usual)
    return _EXPERTS.sub(r"\1.switch_mlp.\2", name)


def _prefix(names: list[str]) -> str:
    """What stands before `layers` and `embed_tokens`: the usual if any embedding has it, else what most have."""
    counts: Counter[str] = Counter()
    embeds = set()
    for name in names:
        match = _PART.fullmatch(name)
        if match:
            counts[match[1]] += 1
            if match[2] in ("embed_tokens.", "embeddings."):
                embeds.add(match[1])
    order = sorted(counts, key=lambda prefix: (prefix not in embeds, prefix != _USUAL, -counts[prefix], prefix))
    return order[0] if order else _USUAL


def _is_part(name: str, prefix: str) -> bool:
    match = _PART.fullmatch(name)
    return match is not None and match[1] == prefix


def _heads(names: list[str]) -> dict[str, str]:
    matches = [match for match in map(_HEAD.fullmatch, names) if match]
    best = min((match[1] for match in matches), key=lambda prefix: (len(prefix), prefix), default="")
    return {match[0]: match[2] for match in matches if match[1] == best}


def _tower(names: list[str]) -> dict[str, str]:
    """Of a vision tower that runs here."""
    matches = [match for match in map(_TOWER.fullmatch, names) if match]
    runs = any(match[1].startswith(_TOWERS) for match in matches)
    return {match[0]: _USUAL + match[1] for match in matches} if runs else {}


def is_tower_part(name: str) -> bool:
    """Whether a stored tensor belongs to a vision tower, where one is there that runs here."""
    return _TOWER.fullmatch(name) is not None
