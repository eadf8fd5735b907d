"""What a layer keeps of a sequence, of whatever family: the seam between families, planner and backends. Pure.

Elements are counted in the compute dtype, but for a recurrent state, which is kept in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys and values of every token, of attention that sees everything or the last `window` tokens."""

    heads: int  # of keys and values
    key_dim: int
    value_dim: int
    window: int | None = None

    @property
    def per_token(self) -> int:
        """Elements for each token; a sliding layer counts like a full one."""
        return self.heads * (self.key_dim + self.value_dim)

    @property
    def per_sequence(self) -> int:
        """Elements for each sequence, whatever its length."""
        return 0


@dataclass(frozen=True, slots=True)
class Latent:
    """One vector for each token, of which every head's keys and values are made, with the part of keys that rope turns.

    Backends keep it as it is, and make of it what a step needs.
    """

    rank: int
    turned: int  # by rope: the same for all heads

    window = None

    @property
    def per_token(self) -> int:
        return self.rank + self.turned

    @property
    def per_sequence(self) -> int:
        return 0

    def spreads(self, tokens: int, key: int, value: int) -> bool:
        """Whether keys and values of each head, `key` and `value` wide, cost less to make than to go without.

        Queries of `tokens` that see the same number ask the latent itself otherwise, in wider products.
        """
        saved = 2 * self.rank - key - value
        return tokens * saved > self.rank * (key + value)


@dataclass(frozen=True, slots=True)
class Recurrent:
    """A state of a fixed size, which cannot be truncated: a sum over all tokens, and a convolution's last inputs."""

    state: int  # elements, in fp32
    tail: int  # elements of the convolution's inputs

    window = None

    @property
    def per_token(self) -> int:
        return 0

    @property
    def per_sequence(self) -> int:
        return self.state + self.tail


LayerState = KeysValues | Latent | Recurrent


def endless(state: LayerState) -> LayerState:
    """The same without a window."""
    return replace(state, window=None) if isinstance(state, KeysValues) else state
