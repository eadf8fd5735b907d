"""Forks on torch share blocks, and what is shared, copied or scattered computes the same."""

from __future__ import annotations

from typing import cast

import numpy as np
import psutil
import pytest
import torch

from backends.layer_caches import REWIND
from backends.on_torch.attention import Step, mix, mix_plainly
from backends.on_torch.cache import BLOCK_TOKENS, BlockCaches
from backends.on_torch.shard import TorchShard
from tests.backends.conftest import Chains, Checkpoints
from tests.support.chain import Chain, assert_close, load_shard, new_sequence, row
from tests.support.families import LAYERS, prompt_ids, reference_logits
from together.models.state import KeysValues, Latent, LayerState
from together.types import Batch, Dtype, Fork, LayerRange, Orders, Row

WHOLE = LayerRange(0, LAYERS)
CPU = torch.device("cpu")


@pytest.fixture
def shard(checkpoint: Checkpoints, request: pytest.FixtureRequest) -> TorchShard:
    """A shard of its own of the model that the test names, `llama` if it names none."""
    return cast(TorchShard, load_shard(checkpoint(getattr(request, "param", "llama")), "torch", WHOLE))


def _kind(shard: TorchShard, *, sliding: bool = False) -> LayerState:
    """What the layers with a window keep, or those without."""
    return next(state for state in shard._caches.kinds if (state.window is not None) == sliding)


def _blocks(shard: TorchShard, *, sliding: bool = False) -> int:
    return shard._caches.kinds[_kind(shard, sliding=sliding)].blocks.used


def _forks(source: int, targets: list[int], length: int) -> Orders:
    return Orders(forks=tuple(Fork(source, target, length) for target in targets))


def test_eight_answers_to_a_long_prompt_hold_little_more_than_one(shard: TorchShard) -> None:
    ring, ids = Chain([shard]), prompt_ids(2000)
    ring.results(Batch((row(1, 0, ids, "none"),)))
    one = _blocks(shard)
    targets = list(range(2, 9))
    ring.results(Batch(tuple(row(each, 1999, ids[1999:], "last") for each in targets), _forks(1, targets, 1999)))
    assert one == -(-2000 // BLOCK_TOKENS)
    assert _blocks(shard) <= 1.2 * one
    assert shard._ledger.used == _blocks(shard) * BLOCK_TOKENS


@pytest.mark.parametrize("shard", ["gemma3_text"], indirect=True)
def test_sliding_layers_stop_growing_and_truncations_give_back(shard: TorchShard) -> None:
    ring, ids, rooms, window = Chain([shard]), prompt_ids(1280), [], _kind(shard, sliding=True).window
    assert window is not None
    for position in range(0, 1280, 128):
        ring.results(Batch((row(1, position, ids[position : position + 128], "last"),)))
        rooms.append((_blocks(shard), _blocks(shard, sliding=True)))
    assert [full for full, _ in rooms] == [-(-stop // BLOCK_TOKENS) for stop in range(128, 1281, 128)]
    assert max(sliding for _, sliding in rooms) <= (window + REWIND + 128) // BLOCK_TOKENS + 2
    ring.results(Batch((row(1, 1025, ids[:1], "last"),)))
    assert _blocks(shard) == -(-1026 // BLOCK_TOKENS)
    ring.results(Batch((), Orders(drops=(1,))))
    assert _blocks(shard) == _blocks(shard, sliding=True) == 0


@pytest.mark.parametrize("shard", ["llama", "gemma3_text", "mistral-window"], indirect=True)
def test_forks_go_their_own_ways(shard: TorchShard, checkpoint: Checkpoints, request: pytest.FixtureRequest) -> None:
    """In one step: forks of one length and of another, their source, and others; then back into what is shared."""
    folder = checkpoint(request.node.callspec.params["shard"])
    ring, ids = Chain([shard]), prompt_ids(100)
    ring.results(Batch((row(1, 0, ids[:90], "none"), row(9, 0, ids[:40], "none"))))
    ring.results(Batch((), _forks(1, [2, 3], 85)))
    ring.results(Batch((), _forks(1, [4], 64)))
    rows = (row(2, 85, (7,)), row(9, 40, (6,)), row(3, 85, (8,)), row(1, 90, (9,)), row(4, 64, (5,)))
    texts = ((*ids[:85], 7), (*ids[:40], 6), (*ids[:85], 8), (*ids[:90], 9), (*ids[:64], 5))
    assert_close(ring.logits(*rows), np.concatenate([reference_logits(folder, text)[-1:] for text in texts]))
    back = ring.logits(row(2, 50, (3,)), row(1, 60, ids[60:]))
    wanted = (reference_logits(folder, (*ids[:50], 3))[-1:], reference_logits(folder, ids)[60:])
    assert_close(back, np.concatenate(wanted))
    assert_close(ring.logits(row(3, 86, (4,))), reference_logits(folder, (*ids[:85], 8, 4))[-1:])


def test_what_forks_share_is_read_once(shard: TorchShard) -> None:
    ring, ids, targets = Chain([shard]), prompt_ids(640), list(range(2, 9))
    ring.results(Batch((row(1, 0, ids, "none"),)))
    ring.results(Batch((), _forks(1, targets, 639)))
    rows = [Row(each, 639, (5,)) for each in targets]
    singles = Step.of(shard._caches, rows, CPU).layouts[_kind(shard)].singles
    assert singles is not None
    shared = 639 // BLOCK_TOKENS * BLOCK_TOKENS
    assert sum(len(part.places) for part in singles.parts) == shared + 7 * (640 - shared)


def test_a_step_reads_a_sequence_in_one_piece_where_it_lies_in_one(shard: TorchShard) -> None:
    ring = Chain([shard])
    for position in range(0, 192, 16):
        ring.results(Batch(tuple(row(each, position, prompt_ids(16), "none") for each in (1, 2, 3))))
    singles = Step.of(shard._caches, [Row(each, 192, (5,)) for each in (1, 2, 3)], CPU).layouts[_kind(shard)].singles
    assert singles is not None
    assert [len(part.places) for part in singles.parts] == [193, 193, 193]
    assert singles.order is None


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_scattered_sequences_compute_the_same(chain: Chains, checkpoint: Checkpoints, name: str) -> None:
    """Blocks in many pieces: a chunk, and one token, of sequences that lie in the gaps that others left."""
    ring, ids = Chain([load_shard(checkpoint(name), "torch", WHOLE)]), prompt_ids(400, seed=5)
    shard = cast(TorchShard, ring.shards[0])
    for kind in shard._caches.kinds.values():
        kind.blocks._taken[:-1:2] = True  # nobody's, and never free: no two blocks lie side by side
    a, b = new_sequence(), new_sequence()
    ring.results(Batch((row(a, 0, ids[:300], "none"), row(b, 0, ids[:77], "none"))))
    found = ring.logits(row(a, 300, ids[300:]), row(b, 77, ids[77:78]))
    wanted = reference_logits(checkpoint(name), ids)
    assert_close(found, np.concatenate((wanted[300:], wanted[77:78])))
    assert_close(ring.logits(row(a, 399, ids[399:]), row(b, 78, ids[78:79])), wanted[[399, 78]])


def test_growing_moves_nothing(shard: TorchShard) -> None:
    ring, ids = Chain([shard]), prompt_ids(1024)
    before = [pool.data_ptr() for _, pool in shard._caches.layers.values()]
    ring.results(Batch((row(1, 0, ids[:40], "none"),)))
    first = shard._caches.kinds[_kind(shard)].blocks.tables[1][:2]
    kept = shard._caches.layers[0][1][:, :, :40].clone()
    for position in range(40, 1000, 96):
        ring.results(Batch((row(1, position, ids[position : position + 96], "none"),)))
    assert [pool.data_ptr() for _, pool in shard._caches.layers.values()] == before
    assert shard._caches.kinds[_kind(shard)].blocks.tables[1][:2] == first
    assert torch.equal(shard._caches.layers[0][1][:, :, :40], kept)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 12), (8, 4, 700, 64), (1, 32, 1100, 80)], ids=str)
def test_the_kernel_is_the_reference(dtype: Dtype, shape: tuple[int, int, int, int]) -> None:
    """`[heads, queries, tokens, head_dim]`; what is mixed, and the sums by which parts are put together."""
    heads, queries, tokens, width = shape
    made = torch.Generator().manual_seed(0)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    asked = torch.randn(heads, queries, width, generator=made).to(kind)
    keys, values = torch.randn(2, heads, tokens + 9, width, generator=made).to(kind)[:, :, 4:-5]
    found, wanted = mix(asked, keys, values, width**-0.5), mix_plainly(asked, keys, values, width**-0.5)
    bound = 1e-5 if dtype == "fp32" else 1e-2
    for one, other in zip(found, wanted, strict=True):
        assert float((one.float() - other.float()).abs().max()) <= bound * float(other.float().abs().max())


def test_free_memory_goes_back_to_the_system_and_what_is_held_stays() -> None:
    """Pools are written once, as a busy stage's are; then only one sequence is left in the middle of them."""
    state, process = KeysValues(heads=2, key_dim=64, value_dim=64), psutil.Process()
    caches = BlockCaches([state] * 2, torch.float32, CPU, 2**14)
    pools = caches.kinds[state].pools
    for sequence in range(3):
        caches.write([Row(sequence, 0, (0,) * 5000, None)])
    for pool in pools:
        pool.copy_(torch.rand(pool.shape))
    (kept,) = caches.kinds[state].blocks.runs([1], [0], [5000])
    held = slice(kept[0].start, kept[-1].stop)
    before, full = [pool[:, :, held].clone() for pool in pools], process.memory_info().rss
    caches.drop(0)
    caches.drop(2)
    caches.trim()
    freed = full - process.memory_info().rss
    assert freed > 0.6 * sum(pool.nbytes for pool in pools)
    for pool, copy in zip(pools, before, strict=True):
        assert torch.equal(pool[:, :, held], copy)


def test_a_latents_memory_goes_back_too() -> None:
    state, process = Latent(rank=512, turned=64), psutil.Process()
    caches = BlockCaches([state], torch.float32, CPU, 2**14)
    (pool,) = caches.kinds[state].pools
    pool[0].fill_(1.0)
    full = process.memory_info().rss
    caches.trim()
    assert full - process.memory_info().rss > 0.9 * pool[0].nbytes


@pytest.mark.parametrize("shard", ["llama", "gemma3_text", "qwen3_next"], indirect=True)
def test_sequences_go_on_after_memory_was_given_back(
    shard: TorchShard, checkpoint: Checkpoints, request: pytest.FixtureRequest
) -> None:
    """Those that were there, one that shares with them, and one that is written where others were."""
    folder = checkpoint(request.node.callspec.params["shard"])
    ring, ids = Chain([shard]), prompt_ids(200)
    ring.results(Batch((row(1, 0, ids[:150], "none"), row(2, 0, ids[50:], "none"))))
    ring.results(Batch((), Orders(drops=(2,), forks=(Fork(1, 3, 150),), trim=True)))
    found = ring.logits(row(1, 150, ids[150:]), row(3, 150, (7,)), row(4, 0, ids[100:180]))
    wanted = (
        reference_logits(folder, ids)[150:],
        reference_logits(folder, (*ids[:150], 7))[150:],
        reference_logits(folder, ids[100:180]),
    )
    assert_close(found, np.concatenate(wanted))
