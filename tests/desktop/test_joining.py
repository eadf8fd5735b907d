"""What terminals say of machines that join, and what `--peer` takes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.support.namespaces import permitted, run_scenario
from together.cluster_types import Endpoint, NodeState, NodeStatus, StageState, StageStatus
from together.desktop.joining import (
    GRACE,
    Comings,
    Moves,
    OnceEach,
    Runs,
    app_lines,
    endpoint_of,
    node_reached,
    peers_of,
)
from together.desktop.show import Screen
from together.errors import AppError, BadSetting
from together.head.reach import likely_first
from together.sentences import Sentence, verbatim
from together.settings import Settings
from together.trust.code import join_code
from together.trust.secret import SecretFile
from together.types import LayerRange

CLOSED, OPEN = Settings(), Settings(host="0.0.0.0")


@pytest.mark.full  # tests/cluster/test_membership.py introduces nodes
@pytest.mark.skipif(not permitted(), reason="needs Linux's network namespaces")
def test_machines_join_by_what_is_printed_where_multicast_is_blocked(tmp_path: Path) -> None:
    run_scenario("tests.desktop.joining:by_what_is_printed", tmp_path)


@pytest.mark.skipif(not permitted(), reason="needs Linux's network namespaces")
def test_a_page_where_no_app_answers_is_a_sentence(tmp_path: Path) -> None:
    run_scenario("tests.desktop.joining:refused", tmp_path)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.168.1.20:47536", "192.168.1.20", 47536),
        ("192.168.1.20", "192.168.1.20", 47600),
        ("[::1]:80", "::1", 80),
        ("[::1]", "::1", 47600),
        ("fe80::1", "fe80::1", 47600),
        ("studio", "studio", 47600),
        (" studio.local:47616 ", "studio.local", 47616),
    ],
)
def test_peers(text: str, host: str, port: int) -> None:
    assert endpoint_of(text, 47600) == Endpoint((host,), port)


@pytest.mark.parametrize("wrong", ["", "host:", ":80", "host:x", "host:0", "host:70000", "a b:80", "a:b:80", "a/b"])
def test_what_is_no_peer_is_a_sentence(wrong: str) -> None:
    with pytest.raises(BadSetting, match="is not host:port, as 192"):
        endpoint_of(wrong, 47600)


def test_peers_that_reach_nobody_say_why() -> None:
    with pytest.raises(BadSetting, match="no machine's address"):
        endpoint_of("0.0.0.0:47600", 47600)
    with pytest.raises(BadSetting, match="up takes a node's address"):
        peers_of(["http://127.0.0.1:8765"], CLOSED, of_app=True)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def page_that_says(begin: bytes, rest: bytes, every: float) -> Iterator[str]:
    """The address of a page that answers with `begin`, and then with `rest` again and again."""
    ended = threading.Event()

    def answer(listener: socket.socket) -> None:
        with suppress(OSError), listener.accept()[0] as caller:
            caller.recv(2**16)
            caller.sendall(begin)
            while not ended.wait(every):
                caller.sendall(rest)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    ("begin", "rest", "every"),
    [
        (HEAD, b"X-More: 1\r\n", 0.2),
        (HEAD + b"\r\n", b" ", 0.2),
        (HEAD + b"\r\n", 2**16 * b" ", 0.0),
        (HEAD + b'Content-Length: 41\r\n\r\n{"endpoint": {"addresses": [], "port": 0}}', b"", 0.2),
        (HEAD + b"Content-Length: 4\r\n\r\nnull", b"", 0.2),
    ],
    ids=["headers without end", "a byte now and then", "too much", "no port", "nothing"],
)
def test_a_page_that_is_no_app_s_is_a_sentence_soon(
    begin: bytes, rest: bytes, every: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("together.desktop.other_page.ASK_WITHIN", 1.0)  # it says something more often than that
    with page_that_says(begin, rest, every) as page, pytest.raises(AppError, match="no app of together answers at"):
        peers_of([page], CLOSED, of_app=False)


def test_only_what_listens_on_the_network_is_shown_to_it(tmp_path: Path) -> None:
    here = Endpoint(("192.168.1.20", "172.17.0.1"), 47536)
    assert list(app_lines(replace(CLOSED, home=str(tmp_path)), here, 8765)) == []
    assert not list(tmp_path.iterdir()), "a machine alone needs no join code"
    shown = "\n".join(app_lines(replace(OPEN, home=str(tmp_path)), here, 8765))
    code = join_code(SecretFile(tmp_path).get())
    assert "page for a phone:          https://192.168.1.20:8765" in shown
    assert f"python3 launch.py join {code} node --host 0.0.0.0 --peer 192.168.1.20:47536" in shown
    assert "(this machine is also at 172.17.0.1)" in shown
    assert "0.0.0.0:" not in shown
    assert "page and API ask for a key" in shown


def node_status(*stages: StageStatus, cause: str = "") -> NodeStatus:
    return NodeStatus("1", "vm", "m", Endpoint(("127.0.0.1",), 47600), 1, NodeState.READY, cause, stages=stages)


def stage(layers: LayerRange, state: StageState = StageState.READY) -> StageStatus:
    return StageStatus("ring", 0, "head", "toy", 6, layers, "checksum/cpu", state)


def test_the_likely_address_is_one_of_them() -> None:
    assert set(likely_first(("192.0.2.77", "127.0.0.1"))) == {"192.0.2.77", "127.0.0.1"}


class Clerk:
    """Writes down what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.comings: Comings[str] = Comings(self.tell)

    def tell(self, sentence: Sentence) -> None:
        self.said.append(str(sentence))

    def see(self, present: Iterable[str], now: float, grace: float = GRACE) -> None:
        joined = {name: verbatim(f"{name} came") for name in sorted(present)}
        self.comings.see(joined, lambda name: (verbatim(f"{name} left"), grace), now)


def test_who_is_back_soon_never_left() -> None:
    clerk = Clerk()
    for now in range(20):
        clerk.see({"a"} if now % 2 else {"a", "b"}, float(now))
    assert clerk.said == ["a came", "b came"]
    clerk.see({"a"}, 20.0)
    clerk.see({"a"}, 19.0 + GRACE)
    clerk.see({"a"}, 40.0)
    clerk.see({"a", "b"}, 50.0)
    assert clerk.said == ["a came", "b came", "b left", "b came"]


def test_a_goodbye_is_said_at_once() -> None:
    clerk = Clerk()
    clerk.see({"a"}, 0.0)
    clerk.see((), 0.1, grace=0.0)
    assert clerk.said == ["a came", "a left"]


def test_what_machines_need_is_said_once_as_long_as_it_lasts() -> None:
    clerk = Clerk()
    news = OnceEach[str](clerk.tell)
    one, other = {"anna": verbatim("anna needs 1 GB")}, {"berta": verbatim("berta needs 1 GB")}
    for now in (one, {"anna": verbatim("anna needs 2 GB")}, one | other, other, one | other):
        news.look(now)
    assert clerk.said == ["anna needs 1 GB", "berta needs 1 GB", "anna needs 1 GB"]


def test_a_node_says_which_layers_it_runs_when_that_changes() -> None:
    clerk = Clerk()
    runs = Runs(clerk.tell)
    one, other = stage(LayerRange(0, 3)), stage(LayerRange(4, 6))
    for status in (
        node_status(),
        node_status(stage(LayerRange(0, 3), StageState.LOADING)),
        *(
            node_status(replace(stage(LayerRange(0, 3), StageState.LOADING), waiting=f"studio: nothing came for {s} s"))
            for s in (10, 11, 12)
        ),
        node_status(one),
        node_status(one),
        node_status(one, other),
        node_status(other, cause="layers 0:3 of toy: no memory"),
        node_status(),
        node_status(),
    ):
        runs.look(status)
    assert clerk.said == [
        "layers 0:3 of toy wait for studio: nothing came for 10 s",
        "runs layers 0:3 of toy",
        "runs layers 4:6 of toy",
        "layers 0:3 of toy: no memory",
        "runs no layers any more",
    ]


def test_a_machine_that_moved_says_so_once_it_stays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    old, gone, new = (Endpoint((address,), 47600) for address in ("10.0.0.1", "127.0.0.1", "10.0.0.9"))
    moves = Moves(Screen(), old, partial(node_reached, Settings(home=str(tmp_path))))
    for now, at in enumerate((old, gone, new, old, gone, *[gone] * 9, new)):
        moves.look(at, float(now))
    assert capsys.readouterr().out == ""
    for now in range(15, 30):
        moves.look(new, float(now))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "this machine is at 10.0.0.9 now"
    assert said[1].endswith(" up --host 0.0.0.0 --peer 10.0.0.9:47600")
    assert len(said) == 2
