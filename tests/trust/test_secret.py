"""The file of the join code: made once, private, whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cluster import CHECKOUT
from together.errors import AppError
from together.settings import Settings, default_config
from together.trust.certificates import make_leaf
from together.trust.credentials import Credentials, SecretWatch
from together.trust.secret import SecretFile

MANY = """
import sys
from pathlib import Path
from together.trust.secret import SecretFile
print(SecretFile(Path(sys.argv[1])).get().hex())
"""


def test_all_processes_that_start_at_once_have_one_secret(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MANY, str(tmp_path / "config")]
    started = [subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {process.communicate()[0].strip() for process in started}
    assert said == {SecretFile(tmp_path / "config").get().hex()}


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_nobody_else_may_read_it_even_after_a_copy(tmp_path: Path) -> None:
    file = SecretFile(tmp_path)
    secret = file.get()
    assert file.path.stat().st_mode & 0o777 == 0o600
    file.path.chmod(0o644)
    assert file.known() == secret
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_broken_file_is_said_and_never_replaced(tmp_path: Path) -> None:
    file = SecretFile(tmp_path)
    file.path.write_text("TG-nonsense")
    with pytest.raises(AppError, match="holds no join code"):
        file.get()
    assert file.path.read_text() == "TG-nonsense"


def test_joining_is_noticed_once(tmp_path: Path) -> None:
    file = SecretFile(tmp_path)
    watch = SecretWatch(file)
    file.get()
    assert not watch.changed(), "the first secret changes nothing for who spoke with nobody"
    file.put(file.get())
    assert not watch.changed()
    file.rotate()
    assert watch.changed()
    assert not watch.changed()


def test_where_it_lies(tmp_path: Path) -> None:
    assert Settings().config_path == default_config()
    assert Settings(home=str(tmp_path)).config_path == tmp_path
    assert Settings(home="/elsewhere", config=str(tmp_path)).config_path == tmp_path


def test_the_authority_follows_from_the_secret_alone() -> None:
    one, other, stranger = make_leaf(b"a" * 16, "one"), make_leaf(b"a" * 16, "other"), make_leaf(b"b" * 16, "one")
    from cryptography import x509

    def key(pem: str) -> object:
        return x509.load_pem_x509_certificate(pem.encode()).public_key()

    assert key(one.authority) == key(other.authority) != key(stranger.authority)
    assert key(one.certificate) != key(other.certificate)
    assert "PRIVATE" not in repr(one)


def test_a_machine_alone_has_no_secret_and_no_tag(tmp_path: Path) -> None:
    alone = Credentials.of(tmp_path, "node")
    assert alone.leaf_if_member() is None
    assert alone.tag("text") == ""
    assert alone.wrote("text", "")
    assert not list(tmp_path.iterdir())
    alone.leaf  # noqa: B018  # the first certificate makes the secret
    assert alone.leaf_if_member() is not None
    assert alone.wrote("text", alone.tag("text"))
    assert not alone.wrote("text", "")
    assert not alone.wrote("other", alone.tag("text"))
