"""Queries and keys turned by their positions in one call, where a family's own function makes twelve."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, reduce
from inspect import unwrap
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from backends.on_torch.compiled import FLOATS, Code, CompiledLoop, lanes
from backends.on_torch.program import ProgramDraft

_NAME = "apply_rotary_pos_emb"  # of the function in a family's module, which its attention calls
_GIVEN = "q", "k", "cos", "sin"  # that it takes first; some families' turns one of the two
_TASK = 16  # of tokens' queries or keys, that a thread takes at a time
_SAMPLE = 3  # tokens

Turn = Callable[..., tuple[Tensor, Tensor]]


class Rotation:
    """Takes the place of `plain`, which still computes what the loop does not take."""

    def __init__(self, plain: Turn, heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> None:
        self._plain, self._dtype = plain, dtype
        self._heads, self._kv_heads, self._width = heads, kv_heads, width
        self._loop = _loop(dtype, heads, kv_heads, width)

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        """`[1, heads, tokens, width]` and `[1, kv_heads, tokens, width]` by angles `[1, tokens, width]`."""
        if more or not self._takes(q, k, cos, sin):
            return self._plain(q, k, cos, sin, *more)
        tokens, counts = q.shape[2], (self._heads, self._kv_heads)
        turned, keys = (torch.empty(1, tokens, count, self._width, dtype=self._dtype) for count in counts)
        places = (part.data_ptr() for part in (q, k, cos, sin, turned, keys))
        self._loop(2 * tokens, _TASK, q.stride(2), k.stride(2), *places)
        return turned.transpose(1, 2), keys.transpose(1, 2)

    def draft(self, draft: ProgramDraft, given: tuple[Tensor, ...], turned: Tensor, keys: Tensor) -> None:
        """Let a program turn `q` and `k` by `cos` and `sin`, all `[tokens, width of all heads]`."""
        q, k, cos, sin = given
        places = (part.data_ptr() for part in (q, k, cos, sin, turned, keys))
        draft.add(self._loop, 2 * len(q), _TASK, q.stride(0), k.stride(0), *places)

    def _takes(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
        """Whether all have these shapes, and heads lie side by side."""
        tokens, width = q.shape[2], self._width
        return (
            q.dtype == k.dtype == cos.dtype == sin.dtype == self._dtype
            and q.shape == (1, self._heads, tokens, width)
            and k.shape == (1, self._kv_heads, tokens, width)
            and cos.shape == sin.shape == (1, tokens, width)
            and q.stride(1) == k.stride(1) == width
            and q.stride(3) == k.stride(3) == 1
            and cos.is_contiguous()
            and sin.is_contiguous()
        )


def fuse_rotations(model: nn.Module, dtype: torch.dtype) -> None:
    """Let attention call a `Rotation` where that computes what its family's function does: by a trial of it.

    Only these modules call it: the family's own module, and other models of it, stay as they are.
    """
    module: Any
    for module in model.modules():
        kind: Any = type(module)
        plain = _called(kind)
        if plain is not None and hasattr(module, "head_dim"):  # else rope turns a part that lies apart
            config = module.config
            heads = config.num_attention_heads, config.num_key_value_heads
            rotation = rotation_for(plain, *heads, module.head_dim, dtype)
            if rotation is not None:
                module.__class__, module.rotation = _calling(kind, rotation), rotation


@cache
@torch.inference_mode()
def rotation_for(plain: Turn, heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> Rotation | None:
    """None where nothing can be compiled, or where `plain` takes other angles or finds another number in a sample."""
    if lanes() == 0 or width % 2 or width // 2 < lanes() or dtype not in FLOATS:
        return None
    generator = torch.Generator().manual_seed(0)
    shapes = (heads, width), (kv_heads, width), (width,), (width,)
    q, k, cos, sin = (torch.randn(1, _SAMPLE, *shape, generator=generator).to(dtype) for shape in shapes)
    given = q.transpose(1, 2), k.transpose(1, 2), cos, sin
    rotation = Rotation(plain, heads, kv_heads, width, dtype)
    try:
        wanted = plain(*given)
    except RuntimeError:  # of other shapes: some families have one angle for both halves
        return None
    return rotation if all(torch.equal(*both) for both in zip(rotation(*given), wanted, strict=True)) else None


def _called(kind: type[nn.Module]) -> Turn | None:
    """The function of that name which the class's `forward` calls."""
    forward = unwrap(kind.forward)
    if not isinstance(forward, FunctionType) or _NAME not in forward.__code__.co_names:
        return None
    found = forward.__globals__.get(_NAME)
    return found if isinstance(found, FunctionType) and found.__code__.co_varnames[:4] == _GIVEN else None


@cache
def _calling(kind: Any, rotation: Rotation) -> Any:
    """The class with the same `forward`, which finds the rotation by that name, and all else as before."""
    given: Any = unwrap(kind.forward)
    known = {**given.__globals__, _NAME: rotation}
    forward = FunctionType(given.__code__, known, given.__name__, given.__defaults__, given.__closure__)
    forward.__kwdefaults__ = given.__kwdefaults__
    return type(kind.__name__, (kind,), {"forward": forward})


@cache
def _loop(dtype: torch.dtype, heads: int, kv_heads: int, width: int) -> CompiledLoop:
    """For each token queries and then keys. Values: from token to token of each; each, angles, what becomes of each."""
    code = Code()
    build, half = code.build, width // 2
    strides = [code.field(place) for place in (3, 4)]
    queries, keys, cos, sin, turned, turned_keys = (code.field(place, pointer=True) for place in range(5, 11))

    def place(*terms: Any) -> Any:
        return build.mul(reduce(build.add, terms), code.number(dtype.itemsize))

    def rounded(value: Any, pointer: Any, here: Any) -> Any:
        code.write(dtype, value, pointer, here)
        return code.read(dtype, pointer, here)

    with code.loop(code.start, code.stop, 1) as (index, _):
        token, last = build.lshr(index, code.number(1)), build.and_(index, code.number(1))
        second = build.icmp_signed("==", last, code.number(1))
        given, stride, out = (
            build.select(second, key, query) for query, key in ((queries, keys), strides, (turned, turned_keys))
        )
        row = build.select(second, code.number(kv_heads * width), code.number(heads * width))
        start, to, angle = (build.mul(token, each) for each in (stride, row, code.number(width)))
        with code.loop(code.number(0), code.number(half), lanes()) as (at, _):
            first = code.least(at, code.number(half - lanes()))  # the last vector overlaps the one before
            ends = first, build.add(first, code.number(half))
            cosines, sines = ([code.read(dtype, part, place(angle, end)) for end in ends] for part in (cos, sin))
            with code.loop(code.number(0), row, width) as (head, _):
                low, high = (code.read(dtype, given, place(start, head, end)) for end in ends)
                across = build.fneg(high), low
                for end, value, other, cosine, sine in zip(ends, (low, high), across, cosines, sines, strict=True):
                    here = place(to, head, end)
                    parts = [build.fmul(value, cosine), build.fmul(other, sine)]
                    whole = build.fadd(*(rounded(part, out, here) for part in parts))
                    code.write(dtype, whole, out, here)
    return code.finish()
