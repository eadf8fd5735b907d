"""The join code: what is typed comes back, and a slip is found."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from together.errors import BadSetting
from together.trust.code import join_code, secret_of

SECRETS = st.binary(min_size=16, max_size=16)


@given(SECRETS)
def test_what_is_shown_is_taken(secret: bytes) -> None:
    code = join_code(secret)
    assert secret_of(code) == secret
    assert code.startswith("TG-")
    assert len(code.replace("-", "")) == 30


@given(SECRETS, st.randoms())
def test_case_dashes_blanks_and_likely_letters_do_not_count(secret: bytes, chance: random.Random) -> None:
    heard = join_code(secret)[3:].replace("-", chance.choice(["", " ", "-", " - "]))
    heard = heard.replace("0", chance.choice("0Oo")).replace("1", chance.choice("1IlL"))
    assert secret_of(f" tg{heard.lower()}\n") == secret


@given(SECRETS, st.integers(0, 27), st.sampled_from("0123456789ABCDEFGHJKMNPQRSTVWXYZ"))
def test_a_wrong_character_is_noticed(secret: bytes, place: int, other: str) -> None:
    """All but one of 4,096 slips; that one is a stranger's code, whose handshake fails."""
    plain = list(join_code(secret).replace("-", ""))
    plain[2 + place] = other
    try:
        assert secret_of("".join(plain)) == secret or "".join(plain) == join_code(secret_of("".join(plain))).replace(
            "-", ""
        )
    except BadSetting as error:
        assert "a character of the join code is wrong" in str(error)  # noqa: PT017  # most slips, but not all


def test_most_slips_are_noticed() -> None:
    chance, missed = random.Random(1), 0
    for _ in range(2000):
        plain = list(join_code(chance.randbytes(16)).replace("-", ""))
        one, other = chance.sample(range(2, 30), 2)
        plain[one], plain[other] = plain[other], plain[one]
        changed = "".join(plain)
        try:
            missed += join_code(secret_of(changed)).replace("-", "") != changed  # else the two were equal
        except BadSetting:
            continue
    assert missed == 0


@pytest.mark.parametrize(
    "text", ["", "TG", "hello", "TG-" + "0" * 27, "TG-" + "0" * 29, "XX-" + "0" * 28, "TG-" + "U" * 28]
)
def test_what_is_no_code_is_said_without_repeating_it(text: str) -> None:
    with pytest.raises(BadSetting, match="no join code") as caught:
        secret_of(text)
    assert len(text) < 3 or text not in str(caught.value)
