"""Pictures on a first stage: the same logits as transformers' unsplit model, however a prompt is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.base import ShardShape, check_frame
from tests.backends.conftest import Chains, Checkpoints
from tests.backends.test_conformance import BACKENDS
from tests.support.chain import Chain, assert_close, load_shard, new_sequence, row
from tests.support.families import HIDDEN, make_checkpoint, reference_model
from tests.support.mlx_folders import make_plain
from tests.support.vision import EYES, LEAST, MOST, Question, photo, processor, text
from together.errors import BadPlan, FrameRefused
from together.models.eyes import positions_of
from together.models.spec import read_runnable
from together.planning.memory import model_size
from together.text.pictures import Sight
from together.types import Batch, LayerRange, Orders, Row

NAME = "qwen3_vl"
LAYERS = LayerRange(0, 4)
TALL, WIDE = photo(40, 90), photo(90, 37, 1)
ONE = Question.of(text(5), WIDE, text(7, 1))
TWO = Question.of(text(3), TALL, text(4, 1), WIDE, TALL, text(6, 2))
each_last = pytest.mark.parametrize("last", BACKENDS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("size", [(40, 90), (90, 37), (8, 8), (300, 200), (3, 290)])
def test_pictures_get_the_size_and_pixels_that_transformers_gives_them(size: tuple[int, int], kind: str) -> None:
    from io import BytesIO

    from PIL import Image

    from backends.on_torch.vision import patches_of

    data = photo(*size, kind=kind)
    picture = Sight(EYES, LEAST, MOST).read(data)
    wanted = processor()([Image.open(BytesIO(data))], return_tensors="pt")
    assert wanted["image_grid_thw"].tolist() == [[1, 2 * picture.rows, 2 * picture.columns]]
    assert np.abs(patches_of(picture, EYES, 2).numpy() - wanted["pixel_values"].numpy()).max() < 1e-6


@each_last
@pytest.mark.parametrize("cut", [2, 3])
@pytest.mark.parametrize("question", [ONE, TWO], ids=["one", "two"])
def test_a_question_over_two_stages(
    chain: Chains, checkpoint: Checkpoints, question: Question, cut: int, last: str
) -> None:
    ring = chain(NAME, ("torch", last), (cut,))
    assert_close(ring.logits(question.row(new_sequence())), question.reference(checkpoint(NAME)))


@each_last
@pytest.mark.parametrize("size", [1, 5, 9])
def test_chunks_that_end_within_pictures(chain: Chains, checkpoint: Checkpoints, size: int, last: str) -> None:
    """Beside another picture's rows, and with a text that has none."""
    ring, first, other, plain = chain(NAME, ("torch", last), (2,)), new_sequence(), new_sequence(), new_sequence()
    found: dict[int, list[object]] = {first: [], other: [], plain: []}
    asked = {first: TWO, other: ONE, plain: Question.of(text(9, 3))}
    for start in range(0, len(TWO.ids), size):
        rows = [q.row(s, start, min(start + size, len(q.ids))) for s, q in asked.items() if start < len(q.ids)]
        logits = iter(ring.logits(*rows))
        for each in rows:
            found[each.sequence] += [next(logits) for _ in each.token_ids]
    for sequence, question in asked.items():
        assert_close(np.stack(found[sequence]), question.reference(checkpoint(NAME)))  # type: ignore[arg-type]


@each_last
def test_an_answer_goes_on_behind_pictures_and_again_from_within(
    chain: Chains, checkpoint: Checkpoints, last: str
) -> None:
    ring, sequence, answer = chain(NAME, ("torch", last), (2,)), new_sequence(), TWO.greedy(checkpoint(NAME), 6)
    for begin in (0, 12):  # the second time as after a failure
        whole = replace(TWO, ids=TWO.ids + answer)
        found = [ring.logits(whole.row(sequence, begin, len(TWO.ids)))[-1:]]
        for place in range(len(TWO.ids), len(whole.ids) - 1):
            found.append(ring.logits(whole.row(sequence, place, place + 1)))
        drawn = tuple(int(each[-1].argmax()) for each in found)
        assert drawn == answer
        assert_close(np.concatenate(found), TWO.reference(checkpoint(NAME), answer)[len(TWO.ids) - 1 : -1])


def test_positions_are_those_of_transformers(checkpoint: Checkpoints) -> None:
    import torch

    ids = torch.tensor([TWO.ids])
    grid = torch.tensor([[1, 2 * each.rows, 2 * each.columns] for each in TWO.pictures])
    inner = reference_model(checkpoint(NAME)).model
    wanted, _ = inner.get_rope_index(ids, (ids == EYES.token).int(), image_grid_thw=grid)
    assert positions_of(TWO.pictures, 0, len(TWO.ids)) == tuple(map(tuple, wanted[:, 0].tolist()))
    for start in range(0, len(TWO.ids), 7):
        part = positions_of(TWO.pictures, start, start + 7)
        count = len(TWO.ids) - start
        assert [list(axis[:count]) for axis in part] == wanted[:, 0, start : start + 7].tolist()


def test_the_first_stage_counts_its_tower(checkpoint: Checkpoints) -> None:
    folder = checkpoint(NAME)
    spec = read_runnable(folder)
    assert spec.eyes == EYES
    assert spec.joined == (1,)
    first, last = (spec.stage_bytes(layers, "fp32") for layers in (LayerRange(0, 2), LayerRange(2, 4)))
    tower = sum(parameter.numel() for parameter in reference_model(folder).model.visual.parameters())
    assert spec.opening_weights.plain == tower
    assert first - last == 4 * (tower - HIDDEN)  # both have the tied matrix
    assert model_size(spec, "fp32").embed_bytes > 4 * tower


def test_layers_that_the_tower_gives_something_to_stay_together(checkpoint: Checkpoints) -> None:
    with pytest.raises(BadPlan, match="no stage can begin with layer 1"):
        load_shard(checkpoint(NAME), "torch", LayerRange(0, 1))


@pytest.mark.parametrize("backend", [each for each in BACKENDS if each != "torch"])
def test_other_backends_see_nothing_and_say_so(checkpoint: Checkpoints, backend: str) -> None:
    shard = load_shard(checkpoint(NAME), backend, LAYERS)
    with pytest.raises(FrameRefused, match="has pictures, and this stage sees none"):
        shard.step(Batch((ONE.row(1),)), None)
    shard.close()


def changed(question: Question, **changes: object) -> Row:
    return replace(question.row(1), **changes)  # type: ignore[arg-type]


SHIFTED = tuple(replace(picture, offset=picture.offset + 1) for picture in ONE.pictures)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (changed(ONE, pictures=SHIFTED), "other tokens than its pictures have parts"),
        (changed(ONE, pictures=ONE.pictures * 2), "a picture that does not lie in it"),
        (changed(ONE, pictures=(replace(ONE.pictures[0], offset=-900),)), "a picture that does not lie in it"),
        (changed(TWO, pictures=TWO.pictures[:2]), "other tokens than its pictures have parts"),
        (changed(ONE, positions=()), "other tokens than its pictures have parts"),
        (changed(ONE, positions=ONE.row(1).positions[:1]), "positions on 1 axes, and this model takes 3"),
        (changed(ONE, positions=((1,), (1,), (1,))), "positions that are not one for each of its tokens"),
    ],
)
def test_rows_whose_pictures_do_not_fit_are_refused(checkpoint: Checkpoints, asked: Row, said: str) -> None:
    shape = replace(ShardShape.of(read_runnable(checkpoint(NAME)), LAYERS, "fp32"), eyes=EYES)
    check_frame(shape, Batch((ONE.row(1), TWO.row(2))), None)
    with pytest.raises(FrameRefused, match=said):
        check_frame(shape, Batch((asked,), Orders()), None)


def test_half_precision_is_near(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "plain", NAME, "bf16")
    shards = [load_shard(folder, "torch", layers, "bf16") for layers in (LayerRange(0, 2), LayerRange(2, 4))]
    found, wanted = Chain(shards).logits(ONE.row(new_sequence())), ONE.reference(folder)
    assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted)


@pytest.mark.skipif("mlx" not in BACKENDS, reason="MLX is not installed")
def test_a_quantized_model_keeps_its_tower(tmp_path: Path) -> None:
    """By a form of our own, which packs the matrices of layers; a rounded text is near what it was."""
    from tests.backends.test_own_forms import write_form

    plain, folder = make_plain(tmp_path / "plain", NAME), tmp_path / "ours"
    write_form(plain, folder, "8")
    spec = read_runnable(folder)
    assert spec.eyes == EYES
    assert spec.opening_weights == read_runnable(plain).opening_weights
    assert spec.packings
    found = Chain([load_shard(folder, "torch", LAYERS)]).logits(ONE.row(new_sequence()))
    wanted = ONE.reference(plain)
    assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted)


def test_a_text_alone_is_as_before(chain: Chains, checkpoint: Checkpoints) -> None:
    """Whether or not its rows name positions."""
    ids = text(20)
    ring = chain(NAME, ("torch", "torch"), (2,))
    plain = ring.logits(row(new_sequence(), 0, ids))
    named = ring.logits(replace(row(new_sequence(), 0, ids), positions=positions_of((), 0, 20)))
    assert np.array_equal(plain, named)
