"""The join code: a cluster's secret as text that is pasted, or read aloud.

`TG-` and seven groups of four characters of Crockford's base32: no letter is taken for a digit, case and dashes do not
count. 128 bits are the secret; 12 are a checksum, so a slip of the pen is found here and not by a handshake.
"""

from __future__ import annotations

import hashlib

from together.errors import BadSetting

PREFIX = "TG"
SECRET_BYTES = 16
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_HEARD = str.maketrans("OIL", "011")  # what is easily read for another one
_CHARACTERS = 28
_GROUP = 4
_CHECK_BITS = 12


def join_code(secret: bytes) -> str:
    """The code of a secret of 16 bytes, as it is shown: `TG-04T7-…`."""
    assert len(secret) == SECRET_BYTES
    number = (int.from_bytes(secret, "big") << _CHECK_BITS) | _check(secret)
    places = range(5 * (_CHARACTERS - 1), -1, -5)
    text = "".join(_ALPHABET[(number >> place) & 31] for place in places)
    return "-".join([PREFIX, *(text[at : at + _GROUP] for at in range(0, _CHARACTERS, _GROUP))])


def secret_of(code: str) -> bytes:
    """The secret of a code that somebody typed or pasted. Raises BadSetting, which never says the code."""
    plain = "".join(character for character in code.upper() if character.isalnum())
    text = plain.removeprefix(PREFIX).translate(_HEARD)
    if not plain.startswith(PREFIX) or len(text) != _CHARACTERS or set(text) - set(_ALPHABET):
        raise BadSetting(
            "that is no join code: it is {prefix}- and {count} letters and digits; python3 launch.py join-code shows "
            "it on a machine that has it",
            prefix=PREFIX,
            count=_CHARACTERS,
        )
    number = 0
    for character in text:
        number = number << 5 | _ALPHABET.index(character)
    secret = (number >> _CHECK_BITS).to_bytes(SECRET_BYTES, "big")
    if number & ((1 << _CHECK_BITS) - 1) != _check(secret):
        raise BadSetting("a character of the join code is wrong; copy it again, or compare it with the other machine's")
    return secret


def _check(secret: bytes) -> int:
    return int.from_bytes(hashlib.sha256(b"together join code" + secret).digest()[:2], "big") >> (16 - _CHECK_BITS)
