"""What a split asks of the network: bytes per hop, and the speed each link needs for wished figures. Pure arithmetic.

The head's ids are small change beside hidden states; all hops count alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from together.types import DTYPE_BYTES, Dtype

COMMUNICATION_SHARE = 0.2  # of a token's time may pass on the links: communication to computation is 1 : 4


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person would like: tokens per second in the answer, and a prompt's first token after so many seconds."""

    tokens_per_second: float = 20.0
    prompt_tokens: int = 1000
    first_token_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Network:
    """Needs of each link, one way: for the wished tokens/s its speed and ms per hop, and its speed for the prompt."""

    hops: int
    bytes_per_token_and_hop: int
    mbit_per_s: float
    ms: float
    prompt_mbit_per_s: float


def network_of(hidden_size: int, dtype: Dtype, hops: int, wish: Wish) -> Network:
    """One after another, all hops of a token may take 1/5 of its time, and all hops of the prompt the wished time."""
    size = hidden_size * DTYPE_BYTES[dtype]
    if hops == 0:
        return Network(0, size, 0.0, 0.0, 0.0)
    hop_s = COMMUNICATION_SHARE / wish.tokens_per_second / hops
    prompt_bits = 8 * size * wish.prompt_tokens * hops
    return Network(hops, size, 8 * size / hop_s / 1e6, hop_s * 1e3, prompt_bits / wish.first_token_s / 1e6)
