"""A small stand-in for the Hugging Face hub on this machine: datasets as folders, served as its API serves them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Mirror:
    """Serves `folders` (repository id -> folder). `sent` has the bytes that were sent of each file."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = folders
        self.sent: dict[str, int] = {}
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                mirror.answer(self)

            do_HEAD = do_POST = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        length = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(length).decode()
        for repository, folder in self.folders.items():
            api, files = f"/api/datasets/{repository}", f"/datasets/{repository}/resolve/"
            if path == api or path.startswith(f"{api}/"):
                return self._api(request, path[len(api) :].strip("/"), repository, folder, body)
            if path.startswith(files):
                return self._file(request, folder, path[len(files) :].partition("/")[2])
        return self._send(request, 404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})

    def _api(self, request: Any, rest: str, repository: str, folder: Path, body: str) -> None:
        what, _, tail = rest.partition("/")
        if what in ("", "revision"):
            siblings = [{"rfilename": entry["path"]} for entry in self._entries(folder, "", True)]
            found = {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            return self._send(request, 200, {**found, "downloads": 0, "likes": 0, "disabled": False, "gated": False})
        if what == "tree":
            below = tail.partition("/")[2]
            return self._send(request, 200, self._entries(folder, below, "recursive=true" in request.path.lower()))
        if what == "paths-info":
            asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            listed = {entry["path"]: entry for entry in self._entries(folder, "", True)}
            return self._send(request, 200, [listed[name] for name in asked if name in listed])
        return self._send(request, 404, {"error": what})

    def _entries(self, folder: Path, below: str, recursive: bool) -> list[dict[str, Any]]:
        found = []
        for path in sorted((folder / below).rglob("*") if recursive else (folder / below).glob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_dir():
                found.append({"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
                continue
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lfs = {"oid": digest, "size": path.stat().st_size, "pointerSize": 100}
            found.append({"type": "file", "path": name, "oid": digest[:40], "size": path.stat().st_size, "lfs": lfs})
        return found

    def _file(self, request: Any, folder: Path, name: str) -> None:
        if not (folder / name).is_file():
            return self._send(request, 404, {"error": name}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        data = (folder / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        status, span = 200, request.headers.get("Range")
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1 if last else len(data), len(data))
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
            status, data = 206, data[int(first) : end]
        if request.command == "GET":
            self.sent[name] = self.sent.get(name, 0) + len(data)
        return self._send(request, status, data, headers)

    def _send(self, request: Any, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            request.send_header(name, value)
        if not isinstance(body, bytes):
            request.send_header("Content-Type", "application/json")
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)
