"""A picture on its way from the head to a first stage. Pure data, as `types.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in the size in which a model sees it, for `rows` x `columns` tokens, row by row.

    Raises ValueError where its pixels are of another size.
    """

    offset: int  # of its first token in a prompt; in a row it is below 0 where the row begins within it
    rows: int
    columns: int
    side: int  # pixels of the side of the square that each token stands for
    pixels: bytes  # red, green and blue, row by row from the top
    key: str  # the same for the same pixels in the same size and the same owner, and for no others

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.side) <= 0 or len(self.pixels) != 3 * self.side**2 * self.tokens:
            raise ValueError(f"a picture of {self.rows}x{self.columns} parts does not have {len(self.pixels)} bytes")

    @property
    def tokens(self) -> int:
        return self.rows * self.columns
