"""Keys at rest, what wrong ones cost, and what ends with a revoked one."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.api.web import client_from_elsewhere
from tests.support.cluster import cluster_settings, running_head, until
from tests.support.patience import PATIENCE
from together.api.access import MOST_ADDRESSES, MOST_WRONG, MOST_WRONG_OF_ALL, WITHIN, WrongKeys, network_of
from together.api.keys import MOST_KEYS, KeyFile, cookie_of
from together.errors import AppError, BadSetting
from together.settings import Settings


@asynccontextmanager
async def open_app(home: Path, own: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """A client of another machine."""
    async with running_head(cluster_settings(home)) as head, client_from_elsewhere(head, own) as client:
        yield client


# --- at rest ----------------------------------------------------------------------------------------------------------


def test_a_key_is_not_in_its_file(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path)
    made, text = keys.make("phone")
    stored = (tmp_path / "keys.json").read_text()
    assert text.startswith("tg-")
    assert text not in stored
    assert text.removeprefix("tg-") not in stored
    assert cookie_of(text) not in stored
    assert KeyFile(tmp_path).by_key(text) == made
    assert KeyFile(tmp_path).by_cookie(cookie_of(text)) == made
    assert keys.by_key(made.digest) is keys.by_cookie(made.cookie) is keys.by_key(cookie_of(text)) is None


@pytest.mark.skipif(os.name == "nt", reason="files have no such modes there")
def test_nobody_else_reads_or_writes_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys, file = KeyFile(tmp_path), tmp_path / "keys.json"
    before = os.umask(0)
    try:
        text = keys.make("phone")[1]
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o622)
    assert keys.by_key(text) is None
    assert "others may write" in caplog.text
    with pytest.raises(AppError, match="others may write"):
        keys.make("another")


def test_a_broken_file_opens_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = KeyFile(tmp_path)
    text = keys.make("phone")[1]
    (tmp_path / "keys.json").write_text('{"keys": [{"id": "x"}]}')
    assert keys.by_key(text) is None
    assert "no key is accepted" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="files have no such modes there")
def test_keys_that_an_earlier_version_kept_in_the_cache_come_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, now = tmp_path / "cache" / "keys.json", tmp_path / "config" / "keys.json"
    settings = Settings(home=str(before.parent), config=str(now.parent))
    text = KeyFile(before.parent).make("phone")[1]
    before.chmod(0o622)
    assert KeyFile.of(settings).by_key(text) is None
    assert "others may write" in caplog.text
    assert not now.exists()
    before.chmod(0o644)
    keys = KeyFile.of(settings)
    assert keys.by_key(text) is not None
    assert stat.S_IMODE(now.stat().st_mode) == 0o600
    assert not before.exists()
    keys.revoke("phone")
    KeyFile(before.parent).make("phone")  # as out of a backup of the cache
    assert KeyFile.of(settings).kept() == ()
    assert "delete that file" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="a program there has no such limit")
def test_a_look_that_fails_once_ends_no_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = KeyFile(tmp_path).make("phone")[1]
    fresh, known = KeyFile(tmp_path), KeyFile(tmp_path)
    assert known.by_key(text) is not None
    another = KeyFile(tmp_path).make("another")[1]
    with no_free_descriptor():
        assert fresh.by_key(text) is None
        assert known.by_key(text) is not None  # as it was before
        assert known.by_key(text) is not None
    assert caplog.text.count("those known hold") == 2
    assert fresh.by_key(text) is not None
    assert known.by_key(another) is not None


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_renewed_key_keeps_its_id_and_its_old_text_opens_nothing(tmp_path: Path) -> None:
    app, keys = KeyFile(tmp_path), KeyFile(tmp_path)
    made, old = keys.make("phone")
    keys.make("another")
    assert app.by_key(old) == made
    renewed, new = keys.renew("phone")
    assert (renewed.id, renewed.name) == (made.id, made.name)
    assert app.by_key(old) is app.by_cookie(cookie_of(old)) is None
    assert app.by_key(new) == app.by_cookie(cookie_of(new)) == renewed
    assert len(app.now()) == 2
    with pytest.raises(BadSetting, match="there is no key 'tablet'"):
        keys.renew("tablet")


def test_a_folder_that_keeps_no_keys_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for change in (KeyFile(tmp_path / "file" / "home").make, KeyFile(tmp_path / "file" / "home").revoke):
        with pytest.raises(AppError, match=r"keys cannot be kept in .*home: .*; make it yours to write"):
            change("phone")


def test_what_another_process_changes_holds_at_once(tmp_path: Path) -> None:
    app, command = KeyFile(tmp_path), KeyFile(tmp_path)
    assert app.now() == ()
    made, text = command.make("phone")
    assert app.by_key(text) == made
    assert command.revoke("phone") == made
    assert app.by_key(text) is None
    assert command.revoke(command.make("phone")[0].id).name == "phone"


@pytest.mark.parametrize("name", ["", " ", "x" * 61, "a\nb", "\x1b[2J"])
def test_a_key_has_a_name_that_can_be_shown(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadSetting, match="1 to 60 letters"):
        KeyFile(tmp_path).make(name)


def test_keys_are_told_apart_and_few(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path)
    keys.make("phone")
    with pytest.raises(BadSetting, match="there is a key 'phone' already"):
        keys.make("phone")
    with pytest.raises(BadSetting, match="there is no key 'tablet'"):
        keys.revoke("tablet")
    for number in range(MOST_KEYS - 1):
        keys.make(f"key {number}")
    with pytest.raises(BadSetting, match="revoke one"):
        keys.make("one more")


# --- wrong ones -------------------------------------------------------------------------------------------------------


def test_wrong_keys_are_counted_by_address_and_over_all_within_a_bound() -> None:
    now = 0.0
    wrong = WrongKeys(lambda: now)
    assert [wrong.note("10.0.0.1") > 0 for _ in range(MOST_WRONG + 1)] == [False] * (MOST_WRONG - 1) + [True] * 2
    assert wrong.note("10.0.0.2") == 0.0
    now = WITHIN
    assert wrong.note("10.0.0.1") == 0.0
    waits = [wrong.note(f"10.1.{number // 250}.{number % 250}") for number in range(3 * MOST_ADDRESSES)]
    assert sum(wait == 0.0 for wait in waits) == MOST_WRONG_OF_ALL - 2
    assert len(wrong) == MOST_ADDRESSES


def test_a_machine_of_ipv6_is_a_network() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of("203.0.113.9") == "203.0.113.9"


async def test_many_wrong_keys_do_not_keep_a_right_one_out(tmp_path: Path) -> None:
    async with open_app(tmp_path) as client:
        key = {"x-api-key": KeyFile(tmp_path).make("phone")[1]}
        replies = [await client.get("/version", headers={"x-api-key": f"tg-{number}"}) for number in range(MOST_WRONG)]
        assert [reply.status_code for reply in replies] == [401] * (MOST_WRONG - 1) + [429]
        assert int(replies[-1].headers["retry-after"]) >= 1
        assert replies[0].json()["error"]["code"] == "invalid_api_key"
        assert replies[-1].json()["error"]["code"] == "too_many_wrong_keys"
        assert (await client.get("/version", headers=key)).status_code == 200
        assert (await client.get("/version")).status_code == 401  # nothing shown is nothing guessed


# --- over HTTP --------------------------------------------------------------------------------------------------------


def shown_keys(*keys: str) -> list[dict[str, str]]:
    return [{"x-api-key": key} for key in keys]


async def test_what_a_revoked_or_renewed_key_has_open_ends(tmp_path: Path) -> None:
    async with open_app(tmp_path) as client:
        keys = KeyFile(tmp_path)
        gone, stays, renewed = (keys.make(name)[1] for name in ("gone", "stays", "renewed"))
        entered = await client.get("/", params={"key": gone})
        cookie = {"cookie": entered.headers["set-cookie"].partition(";")[0]}
        client.cookies.clear()

        async def parts(headers: dict[str, str]) -> int:
            async with client.stream("GET", "/events", headers=headers) as stream:
                assert stream.status_code == 200
                opened.append(headers)
                return len([part async for part in stream.aiter_text() if part])

        opened: list[dict[str, str]] = []
        streams = [asyncio.create_task(parts(shown)) for shown in (cookie, *shown_keys(gone, renewed))]
        other = asyncio.create_task(parts({"x-api-key": stays}))
        await until(lambda: len(opened) == len(streams) + 1)
        keys.revoke("gone")
        keys.renew("renewed")
        assert all(count > 0 for count in await asyncio.wait_for(asyncio.gather(*streams), PATIENCE))
        assert not other.done()
        for shown in (cookie, *shown_keys(gone, renewed)):
            assert (await client.get("/status", headers=shown)).status_code == 401
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)  # the server may have been faster


async def test_the_page_that_asks_for_a_key_takes_one(tmp_path: Path) -> None:
    async with open_app(tmp_path) as client:
        key = KeyFile(tmp_path).make("phone")[1]
        own = {"Origin": str(client.base_url).rstrip("/")}
        asked = (await client.get("/login")).text
        assert 'action="/login"' in asked
        assert "http" not in asked  # it loads nothing
        wrong = await client.post("/login", data={"key": "tg-<script>"}, headers=own)
        assert wrong.status_code == 401
        assert "<script" not in wrong.text
        assert (await client.post("/login", content=b"key=" + b"x" * 10**5, headers=own)).status_code == 401
        assert (await client.post("/login", data={"key": key}, headers={"Origin": "null"})).status_code == 403
        entered = await client.post("/login", data={"key": f" {key}\n"}, headers=own)
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        assert (await client.get("/status")).status_code == 200  # by its cookie
        assert (await client.get("/login")).status_code == 303


async def test_health_tells_a_stranger_only_whether_it_serves(tmp_path: Path) -> None:
    async with open_app(tmp_path) as client:
        assert (await client.get("/health")).json() == {"status": "unavailable"}
        known = {"x-api-key": KeyFile(tmp_path).make("phone")[1]}
        assert set((await client.get("/health", headers=known)).json()) == {"status", "state", "model", "reason"}


async def test_this_user_s_own_programs_have_a_key_of_their_own(tmp_path: Path) -> None:
    async with open_app(tmp_path, "tg-own") as client:
        own = {"Authorization": "Bearer tg-own"}
        assert (await client.post("/control/on-demand", json={"on": False}, headers=own)).status_code == 200
        assert (await client.post("/control/on-demand", json={"on": False})).status_code == 401
