"""Row R9: machines whose address changes while they run, and loads whose machines are out of reach for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.namespaces import may_slow, permitted, run_scenario

pytestmark = pytest.mark.skipif(not permitted(), reason="needs Linux's network namespaces")


@pytest.mark.full  # test_nodes.py has a node with a new address, and here is a stage that moves
def test_machines_that_move_come_back_and_answers_go_on(tmp_path: Path) -> None:
    print(run_scenario("tests.reliability.moves:found_by_multicast", tmp_path))


@pytest.mark.full  # as the one whose answers go on
def test_machines_that_move_come_back_where_multicast_is_blocked(tmp_path: Path) -> None:
    print(run_scenario("tests.reliability.moves:without_multicast", tmp_path))


def test_a_stage_that_moves_is_not_taken_for_frozen(tmp_path: Path) -> None:
    run_scenario("tests.reliability.moves:asked_while_it_moves", tmp_path)


slow = pytest.mark.skipif(not may_slow(), reason="needs tc with tbf, for a network slow enough to be cut in time")


@pytest.mark.full  # tests/head/test_trying_again.py waits for nodes
@slow
def test_a_load_waits_for_machines_that_are_gone_for_seconds(tmp_path: Path) -> None:
    print(run_scenario("tests.reliability.moves:a_load_is_cut_for_seconds", tmp_path))


@slow
@pytest.mark.full
def test_a_load_waits_for_machines_that_are_gone_for_a_minute(tmp_path: Path) -> None:
    """Longer than a lease: the node frees the stage, and gets its order again."""
    print(run_scenario("tests.reliability.moves:a_load_is_cut_for_a_minute", tmp_path, timeout=300.0))


@slow
@pytest.mark.full
def test_a_source_that_moves_while_it_gives_goes_on_giving(tmp_path: Path) -> None:
    print(run_scenario("tests.reliability.moves:a_source_moves_while_it_gives", tmp_path))
