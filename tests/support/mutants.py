"""Messages that are nearly right: words of the wire, changed by hypothesis as bytes are in transit or by a liar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Kind = tuple[Callable[[Any], bytes], st.SearchStrategy[Any]]  # how words of a kind are encoded, and the words


def mutants(kinds: Sequence[Kind], count: int) -> list[bytes]:
    """`count` messages of any of the kinds, the same ones every time: some as they are, most of them changed."""
    return [data for _, data in mutants_of(kinds, count)]


def mutants_of(kinds: Sequence[Kind], count: int) -> list[tuple[int, bytes]]:
    """The same, with the number of each one's kind."""
    found: list[tuple[int, bytes]] = []

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        kind = data.draw(st.integers(0, len(kinds) - 1))
        encode, words = kinds[kind]
        found.append((kind, data.draw(_changed(encode(data.draw(words))))))

    collect()
    assert len(found) >= count / 2, "hypothesis found few"
    return found


def _changed(data: bytes) -> st.SearchStrategy[bytes]:
    places = st.integers(0, max(0, len(data) - 1))
    return st.one_of(
        st.just(data),
        st.binary(max_size=64),
        st.builds(lambda at: data[:at], places),
        st.builds(lambda at, byte: data[:at] + bytes([byte]) + data[at + 1 :], places, st.integers(0, 255)),
        st.builds(lambda at, more: data[:at] + more + data[at:], places, st.binary(min_size=1, max_size=16)),
        st.builds(lambda one, other: data[min(one, other) :] + data[: max(one, other)], places, places),
    )
