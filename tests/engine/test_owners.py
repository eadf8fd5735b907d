"""Caches and owners: what one owner had computed makes nothing faster for another."""

from __future__ import annotations

from dataclasses import replace

from tests.support.frames import answered, next_frame, request, run, scheduler
from together.engine.scheduler import Scheduler
from together.picture import Picture
from together.requests import LOCAL, GenerateRequest, Owner
from together.text.pictures import of_owner

OTHER = Owner("0a1b2c3d")


def of(owner: Owner, length: int = 60, stable: int = 0) -> GenerateRequest:
    return replace(request(length, 5), owner=owner, stable=stable)


def reused(found: Scheduler, asked: GenerateRequest) -> int | None:
    sequence = found.submit(asked)
    run(found)
    return sequence.reused


def test_a_cached_prefix_is_its_owner_s() -> None:
    found = scheduler()
    assert reused(found, of(LOCAL)) == 0
    assert reused(found, of(OTHER)) == 0
    assert reused(found, of(OTHER)) == reused(found, of(LOCAL)) == 59


def test_nobody_waits_for_what_another_owner_computes() -> None:
    found = scheduler(chunk=16)
    first, other, same = (found.submit(of(owner, 200)) for owner in (LOCAL, OTHER, LOCAL))
    found.commit(answered(next_frame(found)))
    assert other.waits_for == 0
    assert same.source is first
    run(found)
    assert (first.reused, other.reused) == (0, 0)


def test_a_state_that_is_kept_for_the_next_turn_is_its_owner_s() -> None:
    found = scheduler(rewind=0)
    assert reused(found, of(LOCAL, stable=40)) == 0
    assert reused(found, of(OTHER, stable=40)) == 0
    assert reused(found, of(OTHER, stable=40)) == reused(found, of(LOCAL, stable=40)) == 40


def test_one_owner_s_are_forgotten() -> None:
    found = scheduler()
    for owner in (LOCAL, OTHER):
        reused(found, of(owner))
    assert found.prefixes.forget(LOCAL) == 1
    assert found.prefixes.forget(LOCAL) == 0
    assert [prefix.owner for prefix in found.prefixes.held.values()] == [OTHER]
    assert reused(found, of(LOCAL)) == 0
    assert reused(found, of(OTHER)) == 59


def test_a_picture_of_another_owner_is_another_picture() -> None:
    picture = Picture(0, 1, 1, 1, bytes(3), "0a")
    assert of_owner(picture, LOCAL) == picture
    keys = {of_owner(picture, owner).key for owner in (LOCAL, OTHER, Owner("other"))}
    assert len(keys) == 3
    assert all(int(key, 16) for key in keys)  # as caches know it
