"""A small hub on loopback that speaks the model hub's HTTP: info, tree, resolve with ranges, a CDN on another port.

Serves folders that a test made, counts the bytes of every file, and can cut, slow down or falsify. Knows no client.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import prod
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.patience import PATIENCE

LARGE = (".safetensors", ".gguf")  # these are LFS files: resolve redirects to the CDN
CHUNK = 4096
_SEARCH = re.compile(r"/api/models")
_INFO = re.compile(r"/api/models/(?P<repo>[^/]+(?:/[^/]+)?)(?:/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/models/(?P<repo>[^/]+(?:/[^/]+)?)/tree/(?P<revision>[^/]+)")
_FILE = re.compile(r"/(?P<cdn>cdn/)?(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class HubServer:
    """What is served and what was asked. Tests change the fields while it runs."""

    repos: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_right"  # opens what is gated
    falsified: dict[str, bytes] = field(default_factory=dict)  # file name → bytes served in place of the file's
    cuts: list[int] = field(default_factory=list)  # each ends one body of a large file after so many bytes
    broken: int = 0  # so many next requests for large files get a 503
    bytes_per_s: float = 0.0  # of each large body; 0 is as fast as it goes
    ranges: bool = True
    asked: list[tuple[str, int, int]] = field(default_factory=list)  # file, start, stop of each body begun
    served: Counter[str] = field(default_factory=Counter)  # file name → bytes of bodies
    requests: list[str] = field(default_factory=list)  # "GET /path"
    cdn_tokens: list[str] = field(default_factory=list)  # authorizations that leaked to the CDN
    url: str = ""
    cdn_url: str = ""
    licences: dict[str, str] = field(default_factory=dict)  # repo → what its card says
    found: list[Any] = field(default_factory=list)  # what each search finds besides repositories with its words
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, repo: str, folder: Path) -> str:
        """Serve a folder; its commit."""
        self.repos[repo] = folder
        return self.commit(repo)

    def commit(self, repo: str) -> str:
        return hashlib.sha1(repo.encode()).hexdigest()

    def content(self, repo: str, name: str) -> bytes:
        return self.falsified.get(name) or (self.repos[repo] / name).read_bytes()

    def weights_served(self) -> int:
        """Bytes of bodies of files with weights."""
        return sum(count for name, count in self.served.items() if name.endswith(LARGE))

    def next_cut(self) -> int | None:
        with self.lock:
            return self.cuts.pop(0) if self.cuts else None

    def next_broken(self) -> bool:
        with self.lock:
            found = self.broken > 0
            self.broken -= found
            return found


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    """A hub and its CDN on free loopback ports, ended after."""
    hub = HubServer()
    servers = [_server(hub), _server(hub)]
    hub.url, hub.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join(PATIENCE)


@lru_cache(maxsize=256)
def _sha256(file: Path, modified_ns: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a throttled body is not waited for

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what tests do."""


def _server(hub: HubServer) -> _Server:
    return _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: HubServer

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if _SEARCH.fullmatch(path):
            return self._search(parse_qs(urlsplit(self.path).query))
        for pattern, answer in ((_FILE, self._file), (_TREE, self._tree), (_INFO, self._info)):
            match = pattern.fullmatch(path)
            if match:
                if match["repo"] not in self.hub.repos:
                    # As the real one: who shows no token does not learn whether a repository exists.
                    return self._refuse(404 if self._token() else 401, "RepoNotFound", "Repository not found")
                return answer(match)
        return self._refuse(404, "", "no such route")

    def _token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    # --- api ----------------------------------------------------------------------------------------------------------

    def _info(self, match: re.Match[str]) -> None:
        repo, revision = match["repo"], match["revision"]
        if revision not in (None, "main", self.hub.commit(repo)):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = [self._sibling(repo, name) for name in self._names(repo)]
        gated = "manual" if repo in self.hub.gated else False
        known: dict[str, Any] = {
            "_id": "1",
            "id": repo,
            "modelId": repo,
            "private": False,
            "gated": gated,
            "tags": [],
            "downloads": 0,
        }
        return self._json({**known, "sha": self.hub.commit(repo), "siblings": siblings})

    def _search(self, asked: dict[str, list[str]]) -> None:
        """As the real one: names that have the words, with what `expand` asks for."""
        words = asked.get("search", [""])[0].lower()
        known = [self._listed(repo) for repo in self.hub.repos if words in repo.lower()]
        return self._json([*known, *self.hub.found])

    def _listed(self, repo: str) -> dict[str, Any]:
        folder = self.hub.repos[repo]
        config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
        counts: Counter[str] = Counter()
        for file in folder.glob("*.safetensors"):
            with file.open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            for tensor in header.values():
                counts[tensor["dtype"]] += prod(tensor["shape"])
        kind = "safetensors" if counts else "gguf"
        licence = self.hub.licences.get(repo)
        return {
            "_id": "1",
            "id": repo,
            "gated": "manual" if repo in self.hub.gated else False,
            "tags": [kind, "text-generation", *([f"license:{licence}"] if licence else [])],
            "config": {"model_type": config.get("model_type", "")},
            "safetensors": {"parameters": dict(counts), "total": counts.total()},
            "downloads": 7,
            "likes": 3,
            "lastModified": "2026-01-02T03:04:05.000Z",
        }

    def _sibling(self, repo: str, name: str) -> dict[str, Any]:
        size, digest = self._facts(repo, name)
        found: dict[str, Any] = {"rfilename": name, "size": size, "blobId": digest[:40]}
        return found | ({"lfs": {"sha256": digest, "size": size, "pointerSize": 130}} if name.endswith(LARGE) else {})

    def _tree(self, match: re.Match[str]) -> None:
        found = []
        for name in self._names(match["repo"]):
            size, digest = self._facts(match["repo"], name)
            entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": digest[:40]}
            if name.endswith(LARGE):
                entry["lfs"] = {"oid": digest, "size": size, "pointerSize": 130}
            found.append(entry)
        return self._json(found)

    def _names(self, repo: str) -> list[str]:
        folder = self.hub.repos[repo]
        return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())

    def _facts(self, repo: str, name: str) -> tuple[int, str]:
        """Size and sha256 as published, whatever is served."""
        file = self.hub.repos[repo] / name
        return file.stat().st_size, _sha256(file, file.stat().st_mtime_ns)

    # --- files --------------------------------------------------------------------------------------------------------

    def _file(self, match: re.Match[str]) -> None:
        repo, name = match["repo"], match["file"]
        if match["cdn"]:
            if self.headers.get("authorization"):
                self.hub.cdn_tokens.append(self._token())
            return self._body(repo, name, {})
        if repo in self.hub.gated and self._token() != self.hub.token:
            code = 403 if self._token() else 401
            return self._refuse(code, "GatedRepo", f"Access to model {repo} is restricted")
        if name not in self._names(repo):
            return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": self.hub.commit(repo)})
        size, digest = self._facts(repo, name)
        known = {"X-Repo-Commit": self.hub.commit(repo), "ETag": f'"{digest[:40]}"'}
        if not name.endswith(LARGE):
            return self._body(repo, name, known)
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(size)}
        return self._empty(302, {**known, **linked, "Location": self.hub.cdn_url + "/cdn" + self.path})

    def _body(self, repo: str, name: str, headers: dict[str, str]) -> None:
        if name.endswith(LARGE) and self.hub.next_broken():
            return self._empty(503, {})
        data = self.hub.content(repo, name)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        start, stop, code = 0, len(data), 200
        if asked and self.hub.ranges:
            start, stop, code = int(asked[1]), min(len(data), int(asked[2] or len(data)) + 1), 206
            if start >= len(data):
                return self._empty(416, {"Content-Range": f"bytes */{len(data)}"})
            headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        self._head(code, {**headers, "Accept-Ranges": "bytes", "Content-Length": str(stop - start)})
        if self.command == "GET":
            self.hub.asked.append((name, start, stop))
            self._send(name, data[start:stop])
        return None

    def _send(self, name: str, body: bytes) -> None:
        large = name.endswith(LARGE)
        cut = self.hub.next_cut() if large else None
        end = len(body) if cut is None else min(cut, len(body))
        for position in range(0, end, CHUNK):
            piece = body[position : min(end, position + CHUNK)]
            with self.hub.lock:
                self.hub.served[name] += len(piece)
            self.wfile.write(piece)
            if large and self.hub.bytes_per_s:
                time.sleep(len(piece) / self.hub.bytes_per_s)
        if cut is not None:
            self.close_connection = True

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, code: int, error: str, message: str, headers: dict[str, str] | None = None) -> None:
        self._empty(code, {"X-Error-Code": error, "X-Error-Message": message, **(headers or {})})

    def _empty(self, code: int, headers: dict[str, str]) -> None:
        self._head(code, {**headers, "Content-Length": "0"})

    def _head(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
