"""Whether a GPTQ model on the hub has its inputs in an order of their own, by a small range of each layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from together.models.manifest import Manifest
from together.models.names import layer_of
from together.models.orders import InputOrder, orders_in
from together.models.reading import read_published
from together.models.spec import described
from together.weights.hub_listing import SAMPLE_STREAMS, reached
from together.weights.hub_ranges import RemoteFile, read_range


def check_hub_orders(manifest: Manifest, folder: Path) -> None:
    """One `g_idx` of each layer is fetched, some kilobytes; the others are looked at when a stage reads them.

    `folder` is the model's in the store. Raises UnsupportedModel, Unreachable or BrokenModel.
    """
    if not any(b"g_idx" in file.header for file in manifest.files):
        return  # as nearly all: large headers are not described once more for nothing
    orders = list(_one_of_each_layer(orders_in(described(folder, read_published(folder)).matrices)))
    with ThreadPoolExecutor(SAMPLE_STREAMS, "hub") as pool, reached(manifest.name):
        for order, stored in zip(orders, pool.map(lambda one: _fetched(one, manifest), orders), strict=True):
            order.require_plain(manifest.name, stored)


def _one_of_each_layer(orders: Iterable[InputOrder]) -> Iterator[InputOrder]:
    """Quantizers order the inputs of all matrices of a layer, or of none."""
    seen: set[int | None] = set()
    for order in orders:
        layer = layer_of(order.tensor.name)
        if layer not in seen:
            seen.add(layer)
            yield order


def _fetched(order: InputOrder, manifest: Manifest) -> bytes:
    tensor = order.tensor
    size = next(file.size for file in manifest.files if file.name == tensor.file.name)
    file = RemoteFile(manifest.name, manifest.revision, tensor.file.name, size)
    return b"".join(read_range(file, tensor.start, tensor.start + tensor.nbytes))
