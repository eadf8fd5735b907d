"""Forms: what machines make of a published checkpoint, by a recipe with a version. Pure.

The fingerprint names the published files, the form what was made of them; both together name the bytes that a stage
reads. Headers of the published files say what every converted unit holds, so a form is planned for before it is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Literal, get_args

from together.errors import BadSetting, BrokenModel
from together.models.fused import apart
from together.models.headers import ELEMENT_BYTES, FileHeader, TensorInfo
from together.models.matrices import BIASES, PLAIN, SCALES, Shape, beside
from together.models.names import HEAD, LOOKED_UP
from together.models.packing import FP_PACKINGS, Packing
from together.models.units import ByteRange, Unit, header_of, tensors_by_unit
from together.wording import MOST, cut, quoted

PUBLISHED = ""  # the form of a checkpoint as it is
Quantize = Literal["4", "8", "mxfp4"]
QUANTIZE: tuple[Quantize, ...] = get_args(Quantize)
PLAINLY = "no"  # what is said in place of a quantization, for the published form
HEAD_TOO = ("yes", "no")

_PACKINGS: dict[Quantize, Packing] = {
    "4": Packing("affine", 4, 64),  # the groups that mlx_lm.convert takes by itself
    "8": Packing("affine", 8, 64),
    "mxfp4": FP_PACKINGS["mxfp4"],
}
_VERSION = "@1"  # of the recipe: other bytes are another form
_PLAIN_HEAD = "-plain-head"
_ROUTER = Packing("affine", 8, 64)  # as mlx-lm's MoE classes ask for, whatever the rest is
EXPERT = re.compile(
    r"(.+\.(?:mlp|block_sparse_moe|mixer)|model\.layers\.\d+)\.experts\.(\d+)\.((?:gate|up|down)_proj|w[123])\.weight"
)
ROUTERS = (".mlp.gate.weight", ".block_sparse_moe.gate.weight", ".mixer.gate.weight", ".router.proj.weight")
STACK = ".switch_mlp."  # all experts of a layer, as MLX stores them
CORRECTION = "e_score_correction_bias"  # of a router's scores: beside one, mlx-lm has a router that nothing packs
_LINEAR = ("_proj", ".input_linear", ".output_linear")  # how layers' matrices end
_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}  # Mixtral's names, which others took over


@dataclass(frozen=True, slots=True)
class Form:
    """A quantization by MLX's rules: its packing, and whether embedding and LM head are packed, too."""

    packing: Packing
    head: bool = True

    @property
    def name(self) -> str:
        """As ModelRef carries it: `mlx-affine-4-g64@1`, `mlx-mxfp4-plain-head@1`."""
        return f"mlx-{self.packing.name}{'' if self.head else _PLAIN_HEAD}{_VERSION}"

    @property
    def title(self) -> str:
        """For a person: `4 bit, head plain`."""
        bits = f"{self.packing.bits} bit" if self.packing.mode == "affine" else self.packing.mode
        return bits if self.head else f"{bits}, head plain"


_KNOWN = {form.name: form for packing in _PACKINGS.values() for form in (Form(packing), Form(packing, head=False))}


def form_of(name: str) -> Form:
    """The form of this name. Raises BrokenModel for any other, as another version of this program may send."""
    if name not in _KNOWN:
        raise BrokenModel(
            "{form} is no form of a model that this version makes; update all machines to the same version",
            form=quoted(cut(name, MOST)),
        )
    return _KNOWN[name]


def is_form(name: str) -> bool:
    """Whether it is one that this version knows, or the published one."""
    return name == PUBLISHED or name in _KNOWN


def form_title(name: str) -> str:
    """A form for a person: `as published`, `4 bit, head plain`; of one that is not known, its name."""
    return _KNOWN[name].title if name in _KNOWN else name or "as published"


def version_text(fingerprint: str, form: str) -> str:
    """A model's version for a person: `8f3a12bc90de`, `8f3a12bc90de (4 bit)`."""
    return f"{fingerprint[:12]} ({form_title(form)})" if form else fingerprint[:12]


def asked_as(name: str) -> str:
    """What a person asks for to get this form, without its head: `4`, `8`, `mxfp4`, or `no` for as published."""
    if name not in _KNOWN:
        return PLAINLY
    return next(asked for asked, packing in _PACKINGS.items() if packing == _KNOWN[name].packing)


def form_options(name: str) -> str:
    """What `rm` is given for exactly this form: ` --quantize 4 --quantize-head no`."""
    head = "" if name not in _KNOWN or _KNOWN[name].head else " --quantize-head no"
    return f" --quantize {asked_as(name)}{head}"


def asked_form(quantize: str | None, head: str | None = None) -> str | None:
    """The name of the form that a person asks for: `4`, `8`, `mxfp4`, or `no` for as published.

    `head` is `yes` or `no`. None where nothing is asked. Raises BadSetting for anything else.
    """
    if head is not None and head not in HEAD_TOO:
        raise BadSetting("--quantize-head {asked} is neither yes nor no", asked=quoted(cut(head, MOST)))
    asked = quantize.strip().lower() if quantize is not None else None
    if asked in (None, PLAINLY):
        if head is not None:
            raise BadSetting("--quantize-head is for a model that is quantized; add --quantize 4, 8 or mxfp4")
        return None if asked is None else PUBLISHED
    found = next((_PACKINGS[known] for known in QUANTIZE if known == asked), None)
    if found is None:
        shown = quoted(cut(quantize or "", MOST))
        raise BadSetting("--quantize {asked} is not known; choose 4, 8 or mxfp4, or no", asked=shown)
    return Form(found, head != "no").name


# --- what a converted unit holds --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a converted unit's file; `dtype` as safetensors writes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """What becomes of one matrix (or of all experts' matrices of one kind, stacked) or of a tensor that stays.

    `name` is that of the plain tensor: packed, `PATH.weight` gets `PATH.scales` beside it, and `PATH.biases`.
    """

    name: str
    sources: tuple[TensorInfo, ...]
    packing: Packing | None
    stacked: bool = False

    @property
    def dtype(self) -> str:
        """Of the plain tensor, as safetensors writes it."""
        return self.sources[0].dtype

    @property
    def tensors(self) -> tuple[Stored, ...]:
        """Each tensor that it becomes: codes, scales, and biases where there are some."""
        shape = self.sources[0].shape
        above = (len(self.sources), *shape[:-1]) if self.stacked else shape[:-1]
        if self.packing is None:
            return (
                Stored(self.name, self.dtype, (*above, *shape[-1:]), sum(source.nbytes for source in self.sources)),
            )
        groups, scales = (*above, self.packing.groups(shape[-1])), beside(self.name, SCALES)
        codes = _stored(self.name, "U32", (*above, self.packing.words(shape[-1])))
        if self.packing.mode == "affine":
            biases = _stored(beside(self.name, BIASES), self.dtype, groups)
            return codes, _stored(scales, self.dtype, groups), biases
        return codes, _stored(scales, "U8", groups)


def stack_of(key: str) -> str:
    """The matrix of all experts that the one of an expert is a part of; any other name as it is."""
    match = EXPERT.fullmatch(key)
    return f"{match[1]}{STACK}{_MIXTRAL.get(match[3], match[3])}.weight" if match else key


def targets_of(tensors: Iterable[TensorInfo], form: Form) -> tuple[Target, ...]:
    """What becomes of a plain unit's tensors, which have their canonical names: the matrices that mlx-lm quantizes.

    Of experts in one tensor those with biases stay as they are: their gates and ups take turns (gpt-oss).
    """
    experts: dict[str, dict[int, TensorInfo]] = {}
    stored = {tensor.name: tensor for tensor in tensors}
    each = ([tensor] if f"{name}_bias" in stored else apart(tensor) for name, tensor in stored.items())
    found, plain = [], tuple(chain.from_iterable(each))
    corrected = {
        tensor.name.removesuffix(CORRECTION) + "weight" for tensor in plain if tensor.name.endswith(CORRECTION)
    }
    for tensor in plain:
        match = EXPERT.fullmatch(tensor.name)
        if match:
            experts.setdefault(stack_of(tensor.name), {})[int(match[2])] = tensor
        else:
            packing = None if tensor.name in corrected else _packing_of(tensor, form)
            found.append(Target(tensor.name, (tensor,), packing))
    for name, numbered in experts.items():
        ordered = tuple(numbered[number] for number in sorted(numbered))
        if sorted(numbered) != list(range(len(numbered))) or len({(t.dtype, t.shape) for t in ordered}) > 1:
            found += [Target(tensor.name, (tensor,), None) for tensor in ordered]  # whoever needs them refuses them
        else:
            found.append(Target(name, ordered, _packing_of(ordered[0], form), stacked=True))
    return tuple(found)


def stored_order(targets: Iterable[Target]) -> list[tuple[Target, Stored]]:
    """Each target's tensors in the order of the file.

    Codes first, since their scales are made with them and kept until then; wide elements before others, so that each
    tensor is aligned.
    """
    found = [(target, tensor) for target in targets for tensor in target.tensors]
    return sorted(found, key=lambda item: _rank(item[1]))


def converted_units(headers: Sequence[FileHeader], fingerprint: str, form: Form) -> dict[str, Unit]:
    """All units of a model in this form by name, by its published headers alone."""
    units = tensors_by_unit(headers)
    metadata = {"format": "mlx", "fingerprint": fingerprint, "form": form.name}
    return {
        name: converted_unit(name, targets_of((tensor for _, tensor in tensors), form), metadata)
        for name, tensors in units.items()
    }


def converted_unit(name: str, targets: Iterable[Target], metadata: Mapping[str, str]) -> Unit:
    """The file of one unit: its only piece is itself, for it lies in no published file.

    Raises BrokenModel where two of its tensors have one name.
    """
    stored = [tensor for _, tensor in stored_order(targets)]
    if len({tensor.name for tensor in stored}) != len(stored):
        message = "{unit} holds quantized matrices beside plain ones of the same names; choose another model"
        raise BrokenModel(message, unit=name)
    header = header_of([(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes) for tensor in stored], metadata)
    size = sum(tensor.nbytes for tensor in stored)
    return Unit(name, header, (ByteRange(name, len(header), len(header) + size),) if size else ())


def _packing_of(tensor: TensorInfo, form: Form) -> Packing | None:
    """How a plain unit's tensor is packed; None for what stays as it is."""
    fits = len(tensor.shape) == 2 and tensor.dtype in PLAIN
    return packing_for(tensor.name, tensor.shape, form) if fits else None


def packing_for(name: str, shape: Shape, form: Form) -> Packing | None:
    """How a matrix of `shape`, experts first where they are stacked, is packed; None for what stays plain.

    As mlx-lm's `quantize_model` has it: linear layers, embedding and head whose rows are whole groups.
    """
    path = name.removesuffix(".weight")
    if path == name or len(shape) < 2:
        return None
    router = name.endswith(ROUTERS)
    wanted = form.head if name in (*LOOKED_UP, HEAD) else router or path.endswith(_LINEAR)
    packings = {form.packing, _ROUTER} if router else {form.packing}
    whole = all(shape[-1] % packing.group == 0 for packing in packings)
    return (_ROUTER if router else form.packing) if wanted and whole else None


def _stored(name: str, dtype: str, shape: tuple[int, ...]) -> Stored:
    return Stored(name, dtype, shape, prod(shape) * ELEMENT_BYTES[dtype])


def _rank(tensor: Stored) -> tuple[bool, int, str]:
    return (tensor.dtype != "U32", -ELEMENT_BYTES.get(tensor.dtype, 1), tensor.name)
