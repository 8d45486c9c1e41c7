"""A Hugging Face Hub on this machine: it serves some files, answers with an error, or not at all."""

import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

CLOSED, SILENT = "closed", "silent"
COMMIT = "0" * 40


@contextmanager
def hub(
    answer: int | str, cache: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes] | None = None
) -> Iterator[list[str]]:
    """Make huggingface_hub use a local Hub and an empty cache. Yields the requests it gets, as "METHOD /path".

    `answer` is the status for all files but `files`, CLOSED for a closed port, or SILENT for one that never answers.
    """
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(f"{self.command} {self.path}")
            content = next((data for name, data in (files or {}).items() if self.path.endswith(f"/{name}")), None)
            root = self.path == "/" and answer == 404
            self.send_response(200 if content is not None or root else int(answer))
            content = content or b""
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with socket.socket() if isinstance(answer, str) else ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if isinstance(server, ThreadingHTTPServer):
            port = server.server_address[1]
            Thread(target=server.serve_forever, daemon=True).start()
        else:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
            if answer == SILENT:
                server.listen()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
        template = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("data_cache.system.downloads.PATIENCE", 0.5)
        try:
            yield requests
        finally:
            if isinstance(server, ThreadingHTTPServer):
                server.shutdown()
