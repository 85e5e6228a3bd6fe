"""A test double of the Hub: an HTTP server on loopback that answers the real `huggingface_hub` client.

```python
with HubServer() as hub:
    env = {**os.environ, **hub.environment(cache)}  # for a process that talks to it
```

It supports Git and Git LFS files, branches, private repositories, and a single token with write access to all. As on
the Hub, LFS files are served by another host (`localhost`, while the API is at `127.0.0.1`), and files that exist
already are not uploaded again.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_stand_in"


@dataclass
class Repository:
    """Commits, each a whole tree (path -> content), and the branches that point to them."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        parent = self.branches.get(branch, "")
        listing = "".join(f"{path} {git_oid(content)}\n" for path, content in sorted(files.items()))
        sha = hashlib.sha1(f"{parent}\n{listing}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class HubServer:
    """
    The server, which runs inside the `with` block.

    Attributes:
        repositories: name -> `Repository`; the names of Spaces begin with spaces/.
        requests: "METHOD PATH" of all requests so far.
        uploads: the path or SHA-256 of every file whose content was uploaded.
        fail_uploads: the number of coming uploads of LFS files to cut off after the first kilobyte.
        served: SHA-256 -> the content to serve instead of that LFS file.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.uploads: list[str] = []
        self.fail_uploads = 0
        self.served: dict[str, bytes] = {}
        self.large_files: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Environment variables for a process that uses this server, the given token, and caches in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_TOKEN": token or "",
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }


def captions_of_process(hub: HubServer, folder: Path, code: str, *arguments: str, **environment: str) -> list:
    """Runs `code` in a new process that uses this Hub, and parses the JSON that it prints after "captions: "."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **hub.environment(folder / "fresh"), **environment},
        capture_output=True,
        text=True,
        timeout=500,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    (captions,) = re.findall("^captions: (.*)$", done.stdout, re.MULTILINE)
    return json.loads(captions)


def git_oid(content: bytes) -> str:
    """The id of a file's content: the SHA-1 of its Git blob, or the SHA-256 of an LFS file."""
    if is_large(content):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(content: bytes) -> bool:
    return b"\0" in content[:512] or len(content) > 10_000_000


class _Error(Exception):
    def __init__(self, status: int, code: str | None = None, message: str = "", **headers: str):
        named = {"X-Error-Code": code, "X-Error-Message": message, **headers}
        self.status, self.headers = status, {name: value for name, value in named.items() if value}


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        self.path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {self.path}")
        self.unread = True
        for methods, pattern, respond in _ROUTES:
            if self.command in methods.split() and (match := re.fullmatch(pattern, self.path)):
                try:
                    with self.hub.lock:
                        respond(self, **match.groupdict())
                except _Error as error:
                    if self.unread:
                        self.body()  # or the next request on this connection would begin with it
                    self.send(b"{}", error.status, error.headers)
                return
        self.body()
        self.send(b"{}", 501)

    def send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, content: Any, status: int = 200) -> None:
        self.send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def body(self) -> bytes:
        self.unread = False
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def repository(self, name: str, write: bool = False) -> Repository:
        """The repository, if it exists and the client may read it."""
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        found = self.hub.repositories.get(name)
        if write and not authorised:
            raise _Error(401, message="Invalid username or password.")
        if found is None or found.private and not authorised:
            # Who may not see it does not learn that it exists.
            raise _Error(404 if authorised else 401, "RepoNotFound", "Repository not found")
        return found

    def commit_of(self, repository: Repository, revision: str) -> str:
        if (sha := repository.find(revision)) is None:
            raise _Error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    # Repositories

    def who_am_i(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Error(401, message="Invalid username or password.")
        self.send_json({"type": "user", "name": "org", "orgs": []})

    def create(self) -> None:
        wanted = json.loads(self.body())
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Error(401, message="Invalid username or password.")
        kind = wanted.get("type") or "model"
        if kind == "space" and not wanted.get("sdk"):
            raise _Error(400, message="A Space needs an SDK.")
        name = f"{'spaces/' if kind == 'space' else ''}{wanted.get('organization') or 'org'}/{wanted['name']}"
        url = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        if name in self.hub.repositories:
            self.send_json({**url, "error": f"You already created this {kind} repo"}, 409)
            return
        repository = self.hub.repositories[name] = Repository(wanted.get("visibility") == "private")
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.send_json(url)

    def validate_card(self) -> None:
        content = json.loads(self.body())["content"]
        known = content.startswith("---\n") and "\n---" in content[4:]
        self.send_json({"errors": [], "warnings": [] if known else [{"message": "empty or missing yaml metadata"}]})

    def create_branch(self, name: str, branch: str) -> None:
        wanted = json.loads(self.body() or b"{}")
        repository = self.repository(name, write=True)
        if branch in repository.branches:
            self.send_json({"error": "Reference already exists"}, 409)
            return
        repository.branches[branch] = self.commit_of(repository, wanted.get("startingPoint") or "main")
        self.send_json({})

    def describe(self, name: str, revision: str | None = None) -> None:
        repository = self.repository(name)
        sha = self.commit_of(repository, revision or "main")
        siblings = [{"rfilename": path, "size": len(content)} for path, content in repository.commits[sha].items()]
        self.send_json({"id": name, "sha": sha, "private": repository.private, "tags": [], "siblings": siblings})

    def tree(self, name: str, revision: str, folder: str | None = None) -> None:
        repository = self.repository(name)
        sha = self.commit_of(repository, revision)
        inside = {
            path: content for path, content in repository.commits[sha].items() if path.startswith(f"{folder or ''}")
        }
        if not inside:
            raise _Error(404, "EntryNotFound", f"{folder} does not exist", **{"X-Repo-Commit": sha})
        self.send_json([self.entry(path, content) for path, content in inside.items()])

    def paths_info(self, name: str, revision: str) -> None:
        repository = self.repository(name)
        files = repository.commits[self.commit_of(repository, revision)]
        wanted = json.loads(self.body())["paths"]
        self.send_json([self.entry(path, files[path]) for path in wanted if path in files])

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        lfs = {"oid": git_oid(content), "size": len(content), "pointerSize": 128} if is_large(content) else None
        return {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)} | (
            {"lfs": lfs} if lfs else {}
        )

    # Uploads

    def before_upload(self, name: str, revision: str) -> None:
        wanted = json.loads(self.body())["files"]
        repository = self.repository(name, write=True)
        there = repository.commits[self.commit_of(repository, revision)]
        files = []
        for file in wanted:
            # Decided by a sample of the content and its size.
            large = is_large(base64.b64decode(file["sample"])) or file["size"] > 10_000_000
            mode = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            files.append(mode | ({"oid": git_oid(there[file["path"]])} if file["path"] in there else {}))
        self.send_json({"files": files})

    def large_file_actions(self, name: str) -> None:
        wanted = json.loads(self.body())["objects"]
        self.repository(name, write=True)
        objects = []
        for each in wanted:
            actions = {"upload": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}"}}
            actions["verify"] = {"href": f"{self.hub.endpoint}/verify/{each['oid']}"}
            objects.append(each if each["oid"] in self.hub.large_files else {**each, "actions": actions})
        self.send_json({"transfer": "basic", "objects": objects})

    def upload(self, sha256: str) -> None:
        if self.hub.fail_uploads:
            self.hub.fail_uploads -= 1
            self.rfile.read(1024)
            self.close_connection = True
            self.connection.close()
            return
        content = self.body()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise _Error(400, message="The content does not match its SHA-256")
        self.hub.uploads.append(sha256)
        self.hub.large_files[sha256] = content
        self.send(b"")

    def verify(self, sha256: str) -> None:
        self.body()
        if sha256 not in self.hub.large_files:
            raise _Error(404, message="Not uploaded")
        self.send_json({})

    def commit(self, name: str, revision: str) -> None:
        lines = [json.loads(line) for line in self.body().splitlines() if line]
        repository = self.repository(name, write=True)
        files = dict(repository.commits[self.commit_of(repository, revision)])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                self.hub.uploads.append(value["path"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    raise _Error(400, message=f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(revision, files)
        self.send_json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}"})

    # Downloads

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.repository(name)
        sha = self.commit_of(repository, revision)
        content = repository.commits[sha].get(path)
        headers = {"X-Repo-Commit": sha}
        if content is None:
            raise _Error(404, "EntryNotFound", f"{path} does not exist", **headers)
        oid = git_oid(content)
        if is_large(content):
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            self.send(b"", 302, {**headers, "Location": f"http://localhost:{self.hub.port}/lfs/{oid}"})
        else:
            self.send(content, 200, {**headers, "ETag": f'"{oid}"'})

    def download(self, sha256: str) -> None:
        if "Authorization" in self.headers:
            raise _Error(400, message="The token was sent to another host")
        self.send(self.hub.served.get(sha256, self.hub.large_files[sha256]), 200, {"ETag": f'"{sha256}"'})


# Repositories of Spaces are called spaces/ORG/NAME here; in addresses of the API, models are in a folder too.
_NAME, _REVISION = r"(?P<name>(spaces/)?[\w.-]+/[\w.-]+)", r"(?P<revision>.+?)"
_ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.who_am_i),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_card),
    ("GET", rf"/api/(models/)?{_NAME}(/revision/{_REVISION})?", _Handler.describe),
    ("GET", rf"/api/(models/)?{_NAME}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler.tree),
    ("POST", rf"/api/(models/)?{_NAME}/paths-info/{_REVISION}", _Handler.paths_info),
    ("POST", rf"/api/(models/)?{_NAME}/branch/(?P<branch>.+)", _Handler.create_branch),
    ("POST", rf"/api/(models/)?{_NAME}/preupload/{_REVISION}", _Handler.before_upload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.large_file_actions),
    ("PUT", r"/lfs/(?P<sha256>\w+)", _Handler.upload),
    ("POST", r"/verify/(?P<sha256>\w+)", _Handler.verify),
    ("POST", rf"/api/(models/)?{_NAME}/commit/{_REVISION}", _Handler.commit),
    ("GET HEAD", rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("GET HEAD", r"/lfs/(?P<sha256>\w+)", _Handler.download),
]
