"""A hub on the loopback interface: repositories in memory, with the parts of the protocol that a download uses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "acme/gated"


class HubServer(ThreadingHTTPServer):
    """Serves ``repositories``: name → file name → content; notes every file that was asked for."""

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.downloaded: list[str] = []

    @property
    def url(self) -> str:
        """What ``HF_ENDPOINT`` is set to."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test's output clean."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/").split("/")
        api = path[:2] == ["api", "models"]
        name, rest = "/".join(path[2:4] if api else path[:2]), path[4:] if api else path[2:]
        if name == GATED:
            return self._refuse(403, "GatedRepo")
        if name not in self.server.repositories:
            return self._refuse(404, "RepoNotFound")
        if len(rest) > 1 and rest[1] not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        files = self.server.repositories[name]
        if api:
            return self._send(json.dumps(_tree(files) if "tree" in rest else _info(name, files)).encode(), body)
        file = "/".join(rest[2:])
        if file not in files:
            return self._refuse(404, "EntryNotFound")
        if body:
            self.server.downloaded.append(file)
        return self._send(files[file], body)

    def _send(self, content: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _info(name: str, files: Mapping[str, bytes]) -> dict[str, object]:
    siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
    return {
        "id": name,
        "modelId": name,
        "sha": COMMIT,
        "siblings": siblings,
        "private": False,
        "tags": [],
        "downloads": 0,
    }


def _tree(files: Mapping[str, bytes]) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for file, content in files.items()
    ]


@contextmanager
def serve(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[HubServer]:
    """A running server, stopped at the end of the block."""
    server = HubServer(repositories)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
