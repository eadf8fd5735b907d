"""Layers that read others' keys and values, and take inputs of the first stage: what travels, and who holds what.

That the numbers are right is `test_conformance.py`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from backends.base import LAYER_INPUTS, ShardShape, check_frame
from tests.backends.conftest import Checkpoints
from tests.backends.test_conformance import BACKENDS
from tests.support.chain import load_shard, new_sequence, row
from tests.support.families import HIDDEN, VOCAB
from together.errors import BadPlan, FrameRefused
from together.models.names import LAYER_EMBED, OPENING_UNIT, layer_of
from together.models.needed import needed_tensors
from together.models.spec import read_runnable
from together.models.state import Borrowed, KeysValues
from together.planning.memory import model_size
from together.types import Activation, Batch, LayerRange, NamedTensor

NAME, EACH, LAYERS = "gemma4-shared", 12, 6
FIRST, LAST = LayerRange(0, 2), LayerRange(2, LAYERS)
OPENING = VOCAB * LAYERS * EACH + LAYERS * EACH * HIDDEN + EACH  # elements
Change = Callable[[Activation], Activation]


def test_layers_that_read_others_keep_nothing_and_stay_with_them(checkpoint: Checkpoints) -> None:
    spec = read_runnable(checkpoint(NAME))
    kept = [state for state in spec.states if isinstance(state, KeysValues)]
    assert spec.states == (*kept, Borrowed(kept[3], 1), Borrowed(kept[2], 3))
    assert [state.window for state in spec.states] == [None, 8, None, 8, 8, None]
    assert spec.joined == (3, 4, 5)
    assert spec.cache_size(LAST, "fp32").token_bytes == 4 * sum(state.per_token for state in kept[2:])
    size = model_size(spec, "fp32")
    assert size.joined == (3, 4, 5)
    assert size.caches[4:] == ((1, 0), (1, 0))  # a byte for a token, so that any stage has a capacity
    assert [spec.tail(count) for count in range(1, LAYERS + 1)] == [4, 4, 4, 4, 5, 6]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layers", [LayerRange(0, 3), LayerRange(4, LAYERS)], ids=str)
def test_a_shard_on_one_side_of_them_is_refused(checkpoint: Checkpoints, backend: str, layers: LayerRange) -> None:
    with pytest.raises(BadPlan, match=r"no stage can begin with layer [34]: .*; plan again"):
        load_shard(checkpoint(NAME), backend, layers)


def test_the_first_stage_alone_holds_what_the_inputs_are_made_of(checkpoint: Checkpoints) -> None:
    folder = checkpoint(NAME)
    spec = read_runnable(folder)
    assert spec.tied
    assert spec.opening_weights.plain == OPENING
    last = {tensor.name for tensor in needed_tensors(folder, LAST, folder.parent).plain}
    first = {tensor.name for tensor in needed_tensors(folder, FIRST, folder.parent).plain}
    whole = {tensor.name for tensor in needed_tensors(folder, LayerRange(0, LAYERS), folder.parent).plain}
    assert first | last == whole
    assert {name for name in first - last if layer_of(name) is None} == {
        LAYER_EMBED,
        "model.per_layer_model_projection.weight",
        "model.per_layer_projection_norm.weight",
    }
    assert not any(".4.self_attn.k_" in name or ".5.self_attn.v_" in name for name in whole)
    alone, *parts = (spec.stage_bytes(layers, "fp32") for layers in (LayerRange(0, LAYERS), FIRST, LAST))
    assert alone == sum(parts) - 4 * VOCAB * HIDDEN  # the tied matrix is in both
    size = model_size(spec, "fp32")
    assert size.embed_bytes - size.tied_bytes == 4 * OPENING


def test_they_are_a_unit_of_their_own(checkpoint: Checkpoints) -> None:
    """A tied head's stage would fetch the large embedding of all layers with the small one."""
    from together.models.manifest import describe
    from together.models.units import units_for

    manifest = describe(checkpoint(NAME))
    names = [[unit.name for unit in units_for(manifest, layers)] for layers in (FIRST, LAST)]
    assert names[0][:2] == ["embed.safetensors", OPENING_UNIT]
    assert OPENING_UNIT not in names[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_later_layers_take_travels(checkpoint: Checkpoints, backend: str) -> None:
    folder, batch = checkpoint(NAME), Batch((row(new_sequence(), 0, (5, 6, 7)),))
    for stop in (1, 2):
        shard = load_shard(folder, backend, LayerRange(0, stop))
        sent = shard.step(batch, None).activation
        shard.close()
        assert sent is not None
        assert (sent.tokens, sent.width) == (3, HIDDEN)
        assert [(other.name, other.width) for other in sent.others] == [(LAYER_INPUTS, (LAYERS - stop) * EACH)]
    assert read_runnable(folder).state_width == HIDDEN + (LAYERS - 1) * EACH


def _with(**changes: object) -> Change:
    return lambda given: replace(given, others=(replace(given.others[0], **changes),))  # type: ignore[arg-type]


WIDE = NamedTensor(LAYER_INPUTS, "fp32", 5, bytes(4 * 5 * 3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda given: replace(given, others=()), "the frame lacks the tensor 'layer_inputs', which this stage takes"),
        (_with(name="deep"), "the frame has the tensor 'deep', and this stage takes layer_inputs"),
        (lambda given: replace(given, others=(WIDE,)), r"'layer_inputs' is \(.*5.*\), this stage takes \(.*48.*\)"),
        (_with(dtype="bf16", data=bytes(2 * 48 * 3)), r"'layer_inputs' is \(.*bf16.*\), this stage takes \(.*fp32.*\)"),
        (_with(data=b"\xff" * (4 * 48 * 3)), "infinite values or values that are no numbers"),
    ],
)
def test_frames_without_the_right_inputs_are_refused(checkpoint: Checkpoints, change: Change, said: str) -> None:
    shape = ShardShape.of(read_runnable(checkpoint(NAME)), LAST, "fp32")
    batch = Batch((row(new_sequence(), 0, (5, 6, 7)),))
    other = NamedTensor(LAYER_INPUTS, "fp32", 48, bytes(4 * 48 * 3))
    good = Activation("fp32", 3, HIDDEN, bytes(4 * HIDDEN * 3), (other,))
    check_frame(shape, batch, good)
    with pytest.raises(FrameRefused, match=said):
        check_frame(shape, batch, change(good))
