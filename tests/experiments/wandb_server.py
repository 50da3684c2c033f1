"""A W&B server of this machine that stores what it is sent, or misbehaves."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "k" * 40


class WandbServer(ThreadingHTTPServer):
    """Answers what W&B's programs ask of a server that has no runs.

    Attributes:
        fault: `500`, `401`, `hang` or `html` in place of answers; None for none.
        runs: what was asked to be made, by the run's id: the variables of W&B's mutation.
        history: the lines of each run by their number, as W&B's protocol addresses them.
        files: the bytes of each uploaded file.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault: str | None = None
        self.fault_of: str = ""  # only for what is asked with this word
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        self.files: dict[str, bytes] = {}
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find it."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.server_address[1]}", "WANDB_API_KEY": KEY}

    def steps(self, run: str) -> list[dict[str, Any]]:
        """The history of a run, without what W&B adds to its lines."""
        lines = (self.history[run][number] for number in sorted(self.history[run]))
        return [{key: value for key, value in line.items() if not key.startswith("_")} for line in lines]

    def close(self) -> None:
        """Stop, and let go of whoever waits for an answer."""
        self.released.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Programs that end, or are ended, close their connections without a word."""

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What a mutation or a query of W&B's programs gets."""
        if "upsertBucket" in query:
            self.runs.setdefault(variables["name"], {}).update({k: v for k, v in variables.items() if v is not None})
            owner = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": variables["name"], "displayName": "", "config": "{}", "project": owner}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}}
        if "createRunFiles" in query:
            place = f"{self.environment['WANDB_BASE_URL']}/file/{variables['run']}"
            files = [{"name": name, "uploadUrl": f"{place}/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "createArtifact(" in query:
            sequence = {"latestArtifact": {"id": "a"}}
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
        return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def store(self, run: str, files: dict[str, Any]) -> None:
        """Keep the lines that a stream brings, each at its number."""
        history = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        for number, line in enumerate(history["content"], start=history["offset"]):
            self.history[run][number] = json.loads(line)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.read()
        if self.misbehave(body):
            return
        if self.path == "/graphql":
            asked = json.loads(body)
            self.say({"data": self.server.answer(asked["query"], asked.get("variables") or {})})
            return
        if found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self.server.store(found[1], json.loads(body).get("files") or {})
        self.say({"exitcode": None, "limits": {}})

    def do_PUT(self) -> None:
        self.server.files[self.path.removeprefix("/file/")] = self.read()
        self.say({})

    def do_GET(self) -> None:
        if not self.misbehave(b""):
            self.say({})

    def misbehave(self, body: bytes) -> bool:
        fault = self.server.fault if self.server.fault_of.encode() in body else None
        if fault == "hang":
            self.server.released.wait()
        elif fault == "html":
            self.send(200, "text/html", b"<html>Log in to the hotel's network</html>")
        elif fault is not None:
            self.send(int(fault), "application/json", b'{"errors": [{"message": "out of order"}]}')
        return fault is not None

    def read(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def say(self, content: dict[str, Any]) -> None:
        self.send(200, "application/json", json.dumps(content).encode())

    def send(self, code: int, kind: str, content: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
