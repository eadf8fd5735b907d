"""Several machines, each with its own folder and address, as far as this system permits networks of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.namespaces import permitted, run_scenario
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.skipif(not permitted(), reason="needs Linux's network namespaces")


@pytest.mark.full  # a minute; machines that join by what is printed are in desktop/test_joining.py
def test_three_machines_join_by_code_and_a_new_code_puts_them_out(tmp_path: Path) -> None:
    run_scenario("tests.trust.hosts:join_load_chat_part_and_meet_again", tmp_path, timeout=5 * PATIENCE)


def test_a_machine_over_a_vpn_is_named_by_its_address_there(tmp_path: Path) -> None:
    run_scenario("tests.trust.hosts:over_a_vpn", tmp_path)
