"""What a layer keeps of a sequence, of whatever family: the seam between families, planner and backends. Pure.

Keys, values and the tail of a convolution are kept in the compute dtype, a recurrent state in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from together.types import BLOCK, DTYPE_BYTES, Dtype

MOST_PER_SEQUENCE = 4096  # tokens that a sequence counts for at most beside its own


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys and values of every token, of attention that sees everything or the last `window` tokens.

    `chunked`: a token sees none of those before the last multiple of `window`, fewer than a window's.
    """

    heads: int  # of keys and values
    key_dim: int
    value_dim: int
    window: int | None = None
    chunked: bool = False

    @property
    def slides(self) -> int | None:
        """How many last tokens a token sees, where no chunk says it."""
        return None if self.chunked else self.window

    @property
    def chunk(self) -> int | None:
        return self.window if self.chunked else None

    @property
    def per_token(self) -> int:
        """Elements for each token, in the compute dtype; a sliding layer counts like a full one."""
        return self.heads * (self.key_dim + self.value_dim)

    def sequence_bytes(self, dtype: Dtype) -> int:
        """Bytes for each sequence, whatever its length."""
        return 0


@dataclass(frozen=True, slots=True)
class Latent:
    """One vector for each token, of which every head's keys and values are made, with the part of keys that rope turns.

    Backends keep it as it is, and make of it what a step needs.
    """

    rank: int
    turned: int  # by rope: the same for all heads

    window = slides = chunk = None

    @property
    def per_token(self) -> int:
        return self.rank + self.turned

    def sequence_bytes(self, dtype: Dtype) -> int:
        return 0

    def spreads(self, tokens: int, key: int, value: int) -> bool:
        """Whether keys and values of each head, `key` and `value` wide, cost less to make than to go without.

        Queries of `tokens` that see the same number ask the latent itself otherwise, in wider products.
        """
        saved = 2 * self.rank - key - value
        return tokens * saved > self.rank * (key + value)


@dataclass(frozen=True, slots=True)
class Recurrent:
    """A sum over all tokens, and a convolution's last inputs: of a fixed size, and neither can be truncated.

    By the gated delta rule, or by Mamba-2's, whose `B` and `C` are keys and queries, and whose `x` are values.
    """

    heads: int  # of values, each with a state
    key_dim: int
    value_dim: int
    channels: int  # of the convolution
    tail: int  # inputs of it that the next token needs

    window = None

    @property
    def per_token(self) -> int:
        return 0

    def sequence_bytes(self, dtype: Dtype) -> int:
        """Twice: a step that fails leaves behind what was there before it."""
        return 2 * self.state_bytes(dtype)

    def state_bytes(self, dtype: Dtype) -> int:
        return self.heads * self.key_dim * self.value_dim * 4 + self.channels * self.tail * DTYPE_BYTES[dtype]


@dataclass(frozen=True, slots=True)
class Borrowed:
    """Nothing of its own: queries ask the keys and values of a layer before, which takes no bytes a second time."""

    kept: KeysValues  # what that layer keeps
    back: int  # how many layers before

    @property
    def window(self) -> int | None:
        return self.kept.window

    @property
    def per_token(self) -> int:
        return 0

    def sequence_bytes(self, dtype: Dtype) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Nothing:
    """Of a layer that looks at each token by itself, as one that is an MLP alone."""

    window = None

    @property
    def per_token(self) -> int:
        return 0

    def sequence_bytes(self, dtype: Dtype) -> int:
        return 0


LayerState = KeysValues | Latent | Recurrent | Borrowed | Nothing


def recurrent_widths(states: Sequence[LayerState]) -> list[int]:
    """How wide is what recurrent layers project a token to: the inputs of a convolution, and a gate of each value."""
    return [each.channels + each.heads * each.value_dim for each in states if isinstance(each, Recurrent)]


def sequence_tokens(states: Sequence[LayerState], dtype: Dtype) -> int:
    """Tokens that a sequence counts for beside its own, in whole blocks: what a whole model's fixed sizes are worth.

    They are the same for each of its stages, whatever layers it has: a ring admits by one number.
    """
    token = sum(state.per_token for state in states) * DTYPE_BYTES[dtype]
    fixed = sum(state.sequence_bytes(dtype) for state in states)
    worth = -(-fixed // max(token, 1))
    return min(-(-worth // BLOCK) * BLOCK, MOST_PER_SEQUENCE)


@dataclass(frozen=True, slots=True)
class CacheSize:
    """What layers keep of sequences, counted in tokens alone: a state of a fixed size is worth so many of them."""

    token_bytes: int  # of each token that is counted: 1 at least, or layers that keep nothing would have no end
    per_sequence: int  # tokens that each sequence counts for beside its own, in whole blocks of BLOCK

    @classmethod
    def of(cls, states: Sequence[LayerState], dtype: Dtype, per_sequence: int) -> CacheSize:
        """Of some layers of a model, whose sequences count for `per_sequence` tokens: each is worth what it must be."""
        token = sum(state.per_token for state in states) * DTYPE_BYTES[dtype]
        fixed = sum(state.sequence_bytes(dtype) for state in states)
        worth = -(-fixed // per_sequence) if per_sequence else 0
        return cls(max(token, worth, 1), per_sequence)

    def nbytes(self, tokens: int, sequences: int) -> int:
        """Of so many tokens, in whole blocks, of so many sequences."""
        return self.token_bytes * (tokens + self.per_sequence * sequences)


def cache_bytes(states: Sequence[LayerState], dtype: Dtype) -> tuple[tuple[int, int], ...]:
    """Of each layer bytes by the token and by the sequence: no range of them needs more than its layers together."""
    own = sequence_tokens(states, dtype)
    sizes = [CacheSize.of((state,), dtype, own) for state in states]
    return tuple((size.token_bytes, size.nbytes(0, 1)) for size in sizes)


def endless(state: LayerState) -> LayerState:
    """The same without a window."""
    if isinstance(state, Borrowed):
        return replace(state, kept=replace(state.kept, window=None))
    return replace(state, window=None, chunked=False) if isinstance(state, KeysValues) else state
