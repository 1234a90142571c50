"""A Hugging Face hub on loopback, and a store on another port that it sends large files' readers to.

It answers what Deepwell asks: /api/models/ORG/NAME/revision/REV, /refs, /ORG/NAME/resolve/REV/FILE with ranges; and
HEAD, which huggingface_hub's own client wants. Every request is kept; `faults` queues what goes wrong, by the end of
the path, with `store:` before those of the store.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import msgspec
from huggingface_hub.utils import close_session

LARGE = (".safetensors", ".gguf", ".bin", ".deepwell")


class Asked(msgspec.Struct, frozen=True):
    """One request as it came: `where` is hub or store."""

    where: str
    path: str
    token: str | None
    range: str | None


class Fault(msgspec.Struct, frozen=True):
    """What goes wrong once: a status, or a body that is cut, silent after some bytes, changed, whole again, or `short`:
    of so many bytes, and no more announced. `length` is announced instead, or `begin` as the offset of a part."""

    status: int = 0
    headers: dict[str, str] = {}
    cut: int | None = None
    stall: int | None = None
    flip: bool = False
    whole: bool = False
    short: int | None = None
    length: str | None = None
    begin: str | None = None


class FakeHub:
    """`with FakeHub() as hub: hub.put("org/name", {...})`; `hub.endpoint` is what HF_ENDPOINT must be."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.extra: dict[str, list[str]] = {}
        self.commits: dict[str, str] = {}
        self.asked: list[Asked] = []
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.needs_token: str | None = None
        self.lie: Callable[[dict[str, object]], object] = lambda info: info
        """What is told of a repository instead of the truth: bytes are sent as they are."""
        self.range_limit: int | None = None
        """The most bytes that an answer to a range holds."""
        self.released = threading.Event()
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler(name)) for name in ("hub", "store")]
        for server in self._servers:
            server.daemon_threads = True
            server.block_on_close = False
        self.endpoint, self.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> FakeHub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.down()

    def down(self) -> None:
        """Nobody answers any more; connections that the session keeps open are closed too."""
        close_session()
        self.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def put(self, repo: str, files: dict[str, bytes] | Path, commit: str = "a" * 40) -> None:
        if isinstance(files, Path):
            files = {file.relative_to(files).as_posix(): file.read_bytes() for file in files.rglob("*")}
        self.repos[repo], self.commits[repo] = files, commit

    def paths(self, where: str = "hub") -> list[str]:
        return [asked.path for asked in self.asked if asked.where == where]

    def fetched(self) -> list[str]:
        """Names of the files that were asked for, in order."""
        return [path.split("/resolve/")[1].split("/", 1)[1] for path in self.paths() if "/resolve/" in path]

    def _handler(hub, where: str) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                """What huggingface_hub itself asks first; Deepwell never does."""
                self.do_GET()

            def do_GET(self) -> None:
                path = unquote(self.path.partition("?")[0])
                hub.asked.append(Asked(where, path, self.headers["Authorization"], self.headers["Range"]))
                kind = "store:" if where == "store" else ""
                queues = [queue for end, queue in hub.faults.items() if queue and _meant(kind + path, end)]
                fault = queues[0].pop(0) if queues else Fault()
                if fault.status:
                    self.reply(fault.status, b"", fault.headers)
                elif where == "store":
                    self.content(hub.by_digest(path.rpartition("/")[2]), fault)
                elif hub.needs_token and self.headers["Authorization"] != f"Bearer {hub.needs_token}":
                    self.reply(401, b"{}", {"X-Error-Code": "GatedRepo"})
                elif path.startswith("/api/models/"):
                    self.api(path.removeprefix("/api/models/"), fault)
                else:
                    self.resolve(path, fault)

            def api(self, rest: str, fault: Fault) -> None:
                repo = "/".join(rest.split("/")[:2])
                what = rest.removeprefix(repo)
                if repo not in hub.repos:
                    return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                if what == "/refs":
                    refs = {"branches": [{"name": "main", "ref": "refs/heads/main"}], "tags": [{"name": "v1"}]}
                    return self.reply(200, json.dumps(refs).encode(), {})
                if what.removeprefix("/revision/") not in ("main", "v1", hub.commits[repo]):
                    return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                siblings = [hub.sibling(name, content) for name, content in hub.repos[repo].items()]
                siblings += [hub.sibling(name, b"?") for name in hub.extra.get(repo, [])]
                info = {"id": repo, "sha": hub.commits[repo], "siblings": siblings, "gated": False}
                told = hub.lie(info)
                return self.content(told if isinstance(told, bytes) else json.dumps(told).encode(), fault)

            def resolve(self, path: str, fault: Fault) -> None:
                repo, _, rest = path[1:].partition("/resolve/")
                name = rest.partition("/")[2]
                content = hub.repos.get(repo, {}).get(name)
                commit = {"X-Repo-Commit": hub.commits.get(repo, "")}
                if content is None:
                    return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
                if not name.endswith(LARGE):
                    return self.content(content, fault, commit | {"ETag": f'"{hub.sibling(name, content)["blobId"]}"'})
                digest = hashlib.sha256(content).hexdigest()
                linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
                return self.reply(302, b"", commit | linked | {"Location": f"{hub.store}/{digest}"})

            def content(self, content: bytes, fault: Fault, headers: dict[str, str] | None = None) -> None:
                start = 0
                if (asked := self.headers["Range"]) and not fault.whole:
                    start = int(asked.removeprefix("bytes=").removesuffix("-"))
                end = len(content)
                if start and hub.range_limit is not None:
                    end = min(end, start + hub.range_limit)
                body = content[start:end][: fault.short]
                if fault.flip:
                    body = bytes([body[0] ^ 1]) + body[1:]
                self.send_response(206 if start else 200)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                if start:
                    self.send_header("Content-Range", f"bytes {fault.begin or start}-{end - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(body)) if fault.length is None else fault.length)
                self.end_headers()
                if self.command == "HEAD":
                    return
                if fault.cut is None and fault.stall is None:
                    self.wfile.write(body)
                    return
                self.wfile.write(body[: fault.cut if fault.stall is None else fault.stall])
                self.wfile.flush()
                if fault.stall is not None:
                    hub.released.wait(20)
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler

    def by_digest(self, digest: str) -> bytes:
        everything = (content for files in self.repos.values() for content in files.values())
        return next(content for content in everything if hashlib.sha256(content).hexdigest() == digest)

    def sibling(self, name: str, content: bytes) -> dict[str, object]:
        found: dict[str, object] = {"rfilename": name, "size": len(content)}
        found["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if name.endswith(LARGE):
            found["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return found


def _meant(path: str, end: str) -> bool:
    """`store:` alone stands for everything in the store."""
    return path.endswith(end) or (end == "store:" and path.startswith(end))
