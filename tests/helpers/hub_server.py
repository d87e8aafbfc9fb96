"""A small hub on loopback that speaks the Hugging Face hub's HTTP API, and can misbehave on request.

Model info, tree, resolve (HEAD and GET, ranges, etags, redirects of large files to a second address), and the hub's
errors by `X-Error-Code`. No code of the client is replaced: it is pointed here with HF_ENDPOINT.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".model", ".gguf")


@dataclass
class Repo:
    """One model or data set (`datasets/org/name`): its commits and the names that point to them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, files: dict[str, bytes], *refs: str) -> str:
        """Adds a commit; each of `refs` points to it from now on."""
        content = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in files.items()}, sort_keys=True)
        sha = hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = dict(files)
        self.refs |= dict.fromkeys(refs, sha)
        return sha

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of a folder, as a commit."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class HubServer:
    """`with HubServer() as hub:`; `hub.repos["org/name"] = Repo()`; `hub.url` is the endpoint."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        """method, path and Range header of every request"""
        self.break_once_after: dict[str, int] = {}
        """file -> bytes after which the connection drops, one time"""
        self.break_always_after: dict[str, int] = {}
        """file -> bytes after which the connection drops, every time"""
        self.corrupt: set[str] = set()
        """files that are served with one byte changed"""
        self.down = False
        """answers everything with status 503"""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def storage_url(self) -> str:
        """Where large files lie: another host by name, as the real hub's storage is; the client follows and drops its
        token."""
        return f"http://localhost:{self._server.server_address[1]}"

    def fetched(self, file: str) -> list[str | None]:
        """The Range header of each GET of a file's content."""
        return [ranged for method, path, ranged in self.requests if method == "GET" and path.endswith("/" + file)]

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the requests are in `hub.requests`."""

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            if hub.down:
                self._error(503, "", "out of order")
            elif match := re.fullmatch(
                r"/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)(?:/(revision|tree|paths-info)/(.+))?", path
            ):
                self._api(*match.groups())
            elif match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._resolve(*match.groups())
            elif match := re.fullmatch(r"/cdn/((?:datasets/)?[^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path):
                name, commit, file = match.groups()
                self._content(hub.repos[name].commits[commit][file], file, {})
            else:
                self._error(404, "", "no such page")

        def _repo(self, name: str, revision: str) -> tuple[Repo, str] | None:
            repo = hub.repos.get(name)
            if repo is None:
                self._error(401, "RepoNotFound", "Repository not found")
                return None
            commit = repo.resolve(revision)
            if commit is None:
                self._error(404, "RevisionNotFound", "Invalid rev id: " + revision)
                return None
            return repo, commit

        def _api(self, name: str, what: str | None, revision: str | None) -> None:
            revision, _, below = (revision or "main").partition("/")
            found = self._repo(name, revision)
            if found is None:
                return
            repo, commit = found
            files = {file: data for file, data in repo.commits[commit].items() if file.startswith(below)}
            if below and not files:
                self._error(404, "EntryNotFound", "Entry not found")
                return
            body: Any
            if what == "tree":
                body = [_tree_entry(file, data) for file, data in files.items()]
            elif what == "paths-info":
                asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                body = [_tree_entry(file, files[file]) for file in asked["paths"] if file in files]
            else:
                body = {
                    "id": name.removeprefix("datasets/"),
                    "modelId": name,
                    "sha": commit,
                    "private": False,
                    "gated": "manual" if repo.gated else False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "siblings": [_sibling(file, data) for file, data in files.items()],
                }
            self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json", "X-Repo-Commit": commit})

        def _resolve(self, name: str, revision: str, file: str) -> None:
            found = self._repo(name, revision)
            if found is None:
                return
            repo, commit = found
            if repo.gated:
                self._error(403, "GatedRepo", f"Access to model {name} is restricted")
                return
            data = repo.commits[commit].get(file)
            if data is None:
                self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            elif file.endswith(LARGE):
                sha = hashlib.sha256(data).hexdigest()
                self._send(
                    302,
                    b"",
                    {
                        "Location": f"{hub.storage_url}/cdn/{name}/{commit}/{file}",
                        "X-Repo-Commit": commit,
                        "X-Linked-Etag": f'"{sha}"',
                        "X-Linked-Size": str(len(data)),
                    },
                )
            else:
                self._content(data, file, {"X-Repo-Commit": commit, "ETag": f'"{_git_hash(data)}"'})

        def _content(self, data: bytes, file: str, headers: dict[str, str]) -> None:
            if file in hub.corrupt:
                data = data[:-1] + bytes([data[-1] ^ 1])
            start = 0
            if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
                start = int(match[1])
                headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
            limit = hub.break_always_after.get(file)
            if limit is None and self.command == "GET":
                limit = hub.break_once_after.pop(file, None)
            self._send(206 if start else 200, data[start:], headers, limit)

        def _send(self, status: int, body: bytes, headers: dict[str, str], limit: int | None = None) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body if limit is None else body[:limit])
            if limit is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
            named = {"X-Error-Code": code} if code else {}
            self._send(
                status,
                json.dumps({"error": message}).encode(),
                {**named, "X-Error-Message": message, **(headers or {})},
            )

    return Handler


def _large(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}


def _sibling(file: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": _git_hash(data)}
    return {**entry, "lfs": _large(data)} if file.endswith(LARGE) else entry


def _tree_entry(file: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": file, "size": len(data), "oid": _git_hash(data)}
    if file.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry
