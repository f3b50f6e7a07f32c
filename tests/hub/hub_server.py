"""A Hugging Face hub on this machine: the endpoints that push, pull and load need, with faults on demand."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"
LARGE = 4_000
"""Files of this size go through LFS."""


@dataclass
class Repository:
    """Files by path, at one commit."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    @property
    def commit(self):
        """A hash of all files."""
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass
class Hub:
    """Repositories by id; `break_after` cuts a file's download after so many bytes, as often as `breaks` says."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    break_after: int = 0
    breaks: int = 0
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, path, and bytes of the body that was sent."""
    address: str = ""
    writable: bool = True
    down: bool = False
    """Whether connections are closed without an answer."""
    down_after_break: bool = False

    def fetched(self):
        """The files that were downloaded, and how many bytes of each were sent."""
        found = {}
        for method, path, size in self.requests:
            if method == "GET" and "/resolve/" in path:
                name = path.split("/resolve/")[1].split("/", 1)[1]
                found[name] = found.get(name, 0) + size
        return found


@contextmanager
def running():
    """A hub at an address of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing is printed."""

    def parse_request(self):
        """As usual; of a hub that is down, nothing is answered."""
        if self.hub.down:
            self.close_connection = True
            return False
        return super().parse_request()

    def do_HEAD(self):
        self._file(send=False)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if "/resolve/" in path:
            self._file(send=True)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+).*)?", path):
            self._facts(found[1], found[2])
        else:
            self._reply(404, {"error": "no such endpoint"})

    def do_POST(self):
        path, body = unquote(urlsplit(self.path).path), self._body()
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            modes = {file["path"]: "lfs" if file["size"] >= LARGE else "regular" for file in json.loads(body)["files"]}
            files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            self._reply(200, {"files": files})
        elif path == "/api/validate-yaml":
            self._reply(200, {"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines() if line.strip()])
        else:
            self._reply(404, {"error": "no such endpoint"})

    def do_PUT(self):
        body = self._body()
        self.hub.objects[hashlib.sha256(body).hexdigest()] = body
        self._reply(200, {})

    # ---- what they do

    def _file(self, send):
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", unquote(urlsplit(self.path).path))
        repository = self._repository(found[1])
        if repository is None:
            return
        if found[2] not in ("main", repository.commit):
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        elif found[3] not in repository.files:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repository.commit})
        else:
            self._send(repository, repository.files[found[3]], send)

    def _send(self, repository, content, send):
        start, status = 0, 200
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(asked[1]), 206
        part = content[start:]
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        headers |= {"Accept-Ranges": "bytes", "Content-Length": str(len(part))}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        sent = part if send else b""
        broken = send and self.hub.breaks and self.hub.break_after and len(part) > self.hub.break_after
        if broken:
            self.hub.breaks -= 1
            self.hub.down = self.hub.down_after_break
            sent = part[: self.hub.break_after]
        self._write(status, sent, headers)
        if broken:
            self.close_connection = True
            self.connection.close()

    def _facts(self, name, kind):
        repository = self._repository(name)
        if repository is None:
            return
        files = repository.files
        if kind == "tree":
            entries = [{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in files.items()]
            self._reply(200, entries)
            return
        siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
        self._reply(200, {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings, "tags": []})

    def _create(self, asked):
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"user/{asked['name']}"
        if not self._may_write():
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories.setdefault(name, Repository({".gitattributes": b""}, private=private))
        self._reply(200, {"url": f"{self.hub.address}/{name}", "id": name})

    def _batch(self, asked):
        objects = []
        for each in asked["objects"]:
            actions = {"upload": {"href": f"{self.hub.address}/objects/{each['oid']}"}}
            objects.append(each if each["oid"] in self.hub.objects else each | {"actions": actions})
        self._reply(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name, lines):
        if not self._may_write():
            return
        files = self.hub.repositories[name].files
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.repositories[name].commit
        self._reply(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit})

    # ---- how they answer

    def _authorized(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _may_write(self):
        if self._authorized() and self.hub.writable:
            return True
        status = 403 if self._authorized() else 401
        self._refuse(status, "", "You don't have the rights to write here")
        return False

    def _repository(self, name):
        """The repository, if whoever asks may read it; otherwise the hub's refusal is sent."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._authorized()):
            self._refuse(401 if not self._authorized() else 404, "RepoNotFound", "Repository not found")
            return None
        if repository.gated:
            self._refuse(403, "GatedRepo", "Access to this resource is restricted")
            return None
        return repository

    def _refuse(self, status, code, message, headers=None):
        headers = {"X-Error-Message": message, "Content-Length": "0"} | (headers or {})
        self._write(status, b"", headers | ({"X-Error-Code": code} if code else {}))

    def _reply(self, status, value):
        body = json.dumps(value).encode()
        self._write(status, body, {"Content-Type": "application/json", "Content-Length": str(len(body))})

    def _write(self, status, body, headers):
        self.hub.requests.append((self.command, unquote(urlsplit(self.path).path), len(body)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))
