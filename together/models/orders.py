"""Which group each input of a GPTQ matrix belongs to, as its `g_idx` says: only groups in a row run here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from together.errors import UnsupportedModel
from together.models.headers import TensorInfo
from together.models.matrices import Matrices, PackedMatrix
from together.models.reading import read_stored


@dataclass(frozen=True, slots=True)
class InputOrder:
    """A tensor `g_idx` `[inputs]`, and how many inputs a group of its matrix has."""

    tensor: TensorInfo
    group: int

    @classmethod
    def of(cls, matrix: PackedMatrix) -> InputOrder | None:
        """None where the matrix, no stack of experts, has no such tensor."""
        tensor, scales = matrix.part("g_idx"), matrix.part("scales")
        return InputOrder(tensor, matrix.shape[-1] // scales.shape[0]) if tensor and scales else None

    def require_plain(self, model: str, stored: bytes | bytearray) -> None:
        """Raises UnsupportedModel where the inputs of a group do not follow one another; `stored` is the tensor."""
        import numpy as np  # who only describes models has no use for it

        found = np.frombuffer(stored, "<i4" if self.tensor.dtype == "I32" else "<i8")
        if not np.array_equal(found, np.arange(len(found)) // self.group):
            raise UnsupportedModel(
                "{model} has its inputs in an order of its own (desc_act), as {key} says, which does not run here; "
                "choose a version without desc_act, or one in AWQ, GGUF or MLX's format",
                model=model,
                key=self.tensor.key,
            )


def orders_in(matrices: Matrices) -> Iterator[InputOrder]:
    """Of all matrices that have one, in the order of the model's layers."""
    for matrix in matrices.packed.values():
        for one in matrix.stored:
            if order := InputOrder.of(one):
                yield order


def check_orders(model: str, matrices: Matrices) -> None:
    """Of a model whose published files are here. Raises UnsupportedModel for an order of its own, and BrokenModel."""
    for order in orders_in(matrices):
        stored = bytearray(order.tensor.nbytes)
        read_stored(order.tensor, memoryview(stored))
        order.require_plain(model, stored)
