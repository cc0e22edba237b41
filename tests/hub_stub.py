"""A stub of the hub's HTTP on 127.0.0.1: who a token belongs to, repositories, and uploads as git LFS and as commits.

What it answers was read from huggingface_hub 2.4, `hf_api.py`, `lfs.py` and `_commit_api.py`.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_stub"
COMMIT = "0" * 39 + "1"


@dataclass
class HubStub:
    """What the stub is to do, and what it was sent."""

    role: str = "write"
    refused: tuple[str, ...] = ()
    """Parts of paths whose requests are answered with 403."""
    seconds: float = 0.0
    """How long every upload takes."""
    made: list[dict[str, Any]] = field(default_factory=list)
    """The repositories that were asked for."""
    files: dict[str, bytes] = field(default_factory=dict)
    """All uploaded files."""
    commits: list[tuple[str, list[str]]] = field(default_factory=list)
    """Message and paths of each commit."""
    asked: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    """Contents of LFS files by hash."""
    address: str = ""

    def environment(self, token: str = TOKEN) -> dict[str, str]:
        """Return the variables that make huggingface_hub use the stub."""
        return {
            "HF_ENDPOINT": self.address, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip


@contextmanager
def running_hub() -> Iterator[HubStub]:
    """Run a stub in threads."""
    stub = HubStub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stub))
    server.daemon_threads = True
    stub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()


def _handler(stub: HubStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_PUT(self) -> None:
            self._serve()

        def log_message(self, *_: object) -> None: ...

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            stub.asked.append(f"{self.command} {self.path}")
            if self.path.startswith("/lfs/"):
                time.sleep(stub.seconds)
                stub.stored[self.path.removeprefix("/lfs/")] = body
                self._answer(200, {})
            elif any(part in self.path for part in stub.refused):
                self._answer(403, {"error": "the stub refuses"})
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._answer(401, {"error": "Invalid username or password."})
            else:
                self._answer(200, _answer_of(stub, self.path.partition("?")[0], body))

        def _answer(self, status: int, value: object) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    return Handler


def _answer_of(stub: HubStub, path: str, body: bytes) -> object:
    if path == "/api/whoami-v2":
        return {
            "type": "user", "name": "me", "orgs": [{"name": "ours"}],
            "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": stub.role}},
        }  # fmt: skip
    if path == "/api/repos/create":
        stub.made.append(json.loads(body))
        owner = stub.made[-1].get("organization") or "me"
        return {"url": f"{stub.address}/{owner}/{stub.made[-1]['name']}", "id": "1"}
    if path == "/api/validate-yaml":
        return {"errors": [], "warnings": []}
    if "/preupload/" in path:
        files = [
            {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(("safetensors", "png")) else "regular",
             "shouldIgnore": False, "oid": None}
            for one in json.loads(body)["files"]
        ]  # fmt: skip
        return {"files": files}
    if path.endswith("/info/lfs/objects/batch"):
        objects = json.loads(body)["objects"]
        upload = [
            {**one, "actions": {"upload": {"href": f"{stub.address}/lfs/{one['oid']}", "header": {}}}}
            for one in objects
        ]
        return {"transfer": "basic", "objects": upload}
    if "/commit/" in path:
        repository = path.removeprefix("/api/models/").partition("/commit/")[0]
        return _commit(stub, repository, [json.loads(line) for line in body.splitlines()])
    raise AssertionError(f"the stub does not know {path}")


def _commit(stub: HubStub, repository: str, lines: list[dict[str, Any]]) -> object:
    paths = []
    for line in lines:
        value = line["value"]
        if line["key"] == "header":
            message = value["summary"]
            continue
        paths.append(value["path"])
        is_file = line["key"] == "file"
        stub.files[value["path"]] = base64.b64decode(value["content"]) if is_file else stub.stored[value["oid"]]
    stub.commits.append((message, sorted(paths)))
    return {"success": True, "commitOid": COMMIT, "commitUrl": f"{stub.address}/{repository}/commit/{COMMIT}"}
