"""A stand-in for the Hugging Face Hub on loopback: repositories, LFS uploads, commits and downloads."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from command_line import REPOSITORY, Result

WRITER, READER = "hf_writer", "hf_reader"
LARGE = (".safetensors", ".zip")


@dataclass
class Repository:
    """The commits of a repository, each as the content of every file."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b""}])

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


class HubResult(NamedTuple):
    """The result of a command line, and the modules that were imported by then."""

    result: Result
    modules: list[str]

    @property
    def status(self) -> int:
        return self.result.status

    @property
    def error(self) -> str:
        return self.result.error


class Hub:
    """The state of the server. Repositories are named `models/USER/NAME` or `datasets/USER/NAME`."""

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.before_commit = threading.Event()
        self.commits_allowed = threading.Event()
        self.commits_allowed.set()
        self.drop_commits = threading.Event()

    def create(self, name: str, files: dict[str, bytes]) -> None:
        self.repositories[name] = Repository(False, [files])

    def run(self, *commands: Sequence[object], **environment: Any) -> list[HubResult]:
        """Run command lines one after the other in a process that uses this server; returns their results."""
        process = self.start(*commands, **environment)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return [HubResult(Result(*values), modules) for *values, modules in json.loads(out)]

    def start(
        self, *commands: Sequence[object], home: Path, token: str | None = WRITER, **environment: str
    ) -> subprocess.Popen:
        """Start that process."""
        code = (
            "import cli, contextlib, io, json, sys\nresults = []\n"
            "for line in json.loads(sys.argv[1]):\n"
            "    out, err, status = io.StringIO(), io.StringIO(), 0\n"
            "    sys.argv = ['cli.py', *line]\n"
            "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
            "        try: cli.main()\n"
            "        except SystemExit as end: status = end.code or 0\n"
            "    results.append((status, out.getvalue(), err.getvalue(), sorted(sys.modules)))\n"
            "print(json.dumps(results))"
        )
        tokens = {} if token is None else {"HF_TOKEN": token}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **tokens, **environment}
        inherited = {name: value for name, value in os.environ.items() if not re.match("HF_|HUGGING", name)}
        inherited |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        lines = json.dumps([[str(each) for each in command] for command in commands])
        return subprocess.Popen(
            [sys.executable, "-c", code, lines],
            cwd=REPOSITORY,
            env=inherited | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.commits_allowed.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(/revision/.+)?", path):
            if repository := self._repository(f"{match[1]}/{match[2]}"):
                files = [{"rfilename": name, "size": len(data)} for name, data in repository.files.items()]
                about = {"id": match[2], "sha": repository.sha, "private": repository.private, "siblings": files}
                self._reply(200, about)
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if repository := self._repository(f"{match[1] or 'models/'}{match[2]}"):
                self._send_file(repository, match[4])
        else:
            self._reply(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send_file(self, repository: Repository, name: str) -> None:
        if name not in repository.files:
            self._reply(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        data = repository.files[name]
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": repository.sha}
        headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self._reply(206 if start else 200, data[start:], headers)

    def do_PUT(self) -> None:
        oid = self.path.rpartition("/")[2]
        data = self._body()
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.objects[oid] = data
        self.hub.uploads.append(oid)
        self._reply(200)

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if path == "/api/validate-yaml":
            self._reply(200, {"errors": [], "warnings": []})
        elif self._writer():
            if path == "/api/repos/create":
                content = json.loads(body)
                name = f"{content.get('type', 'model')}s/{content['organization']}/{content['name']}"
                self.hub.repositories[name] = Repository(content.get("visibility") == "private")
                self._reply(200, {"url": f"{self.hub.url}/{name.removeprefix('models/')}"})
            elif re.fullmatch(r"/api/(.+)/preupload/main", path):
                modes = [self._mode(file) for file in json.loads(body)["files"]]
                self._reply(200, {"files": modes})
            elif path.endswith("/info/lfs/objects/batch"):
                objects = [self._object(entry) for entry in json.loads(body)["objects"]]
                self._reply(200, {"transfer": "basic", "objects": objects})
            elif match := re.fullmatch(r"/api/(.+)/commit/main", path):
                self.hub.before_commit.set()
                self.hub.commits_allowed.wait()
                if self.hub.drop_commits.is_set():
                    self.close_connection = True
                    return
                self._commit(self.hub.repositories[match[1]], [json.loads(line) for line in body.splitlines()])
            else:
                self._reply(404)

    @staticmethod
    def _mode(file: dict) -> dict:
        mode = "lfs" if file["path"].endswith(LARGE) else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _object(self, entry: dict) -> dict:
        known = entry["oid"] in self.hub.objects
        actions = {} if known else {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}}
        return {"oid": entry["oid"], "size": entry["size"], **actions}

    def _commit(self, repository: Repository, lines: list[dict]) -> None:
        if lines[0]["value"].get("parentCommit") not in (None, repository.sha):
            self._reply(412)
            return
        files = dict(repository.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                content = self.hub.objects[value["oid"]] if line["key"] == "lfsFile" else b64decode(value["content"])
                files[value["path"]] = content
        repository.commits.append(files)
        url = f"{self.hub.url}/a/b/commit/{repository.sha}"
        self._reply(200, {"commitUrl": url, "commitOid": repository.sha})

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _repository(self, name: str) -> Repository | None:
        token = self._token()
        if token not in (None, WRITER, READER):
            self._reply(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
            return None
        found = self.hub.repositories.get(name)
        if found is None or (found.private and token is None):
            self._reply(404 if token else 401, headers={"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def _writer(self) -> bool:
        if self._token() == WRITER:
            return True
        self._reply(403, headers={"X-Error-Message": "Forbidden"})
        return False

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _reply(self, status: int, content: dict | bytes = b"", headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
