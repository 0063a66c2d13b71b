"""A small Hugging Face Hub on the loopback address: what the real client asks of it to push and load.

It keeps repositories and commits in memory, those of data and Spaces under the names `datasets/org/name` and
`spaces/org/name`, and takes safetensors and Parquet as LFS objects, as the Hub does. A fault that a test sets
(`cut_downloads`, `refuse_uploads`, `lose_commits`, `lose_answers`, `meanwhile`) stays until the test takes it back.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

TOKEN, OWNER = "hf_ours", "org"
LFS = (".safetensors", ".parquet")
REPOSITORY = r"((?:datasets/|spaces/)?[\w.-]+/[\w.-]+?)"
ROUTES: list[tuple[str, Callable]] = []


@dataclass
class Repository:
    """A branch, main, of commits, the newest last: each is all its files."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    messages: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]


def commit_id(number: int) -> str:
    return hashlib.sha1(str(number).encode()).hexdigest()


def names_of(path: str, content: bytes) -> dict[str, Any]:
    """What a file is called by: git's name of the blob and, of an LFS object, its sha256."""
    blob = {"oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return {**blob, "lfs": lfs} if path.endswith(LFS) else blob


class Hub(ThreadingHTTPServer):
    """The server; `repositories` is what it holds, `requests` what it was asked."""

    daemon_threads = True

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", urlparse(url).port), Handler)
        self.url = url
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.requests: list[str] = []
        self.cut_downloads = 0.0  # so many more end in the middle
        self.refuse_uploads = False  # the connection drops in the midst of an LFS object
        self.lose_commits = False  # the connection drops before a commit is taken
        self.lose_answers = False  # … after it was taken
        self.meanwhile: Callable[[], None] = lambda: None  # what others do just before a commit
        self.variables: dict[str, dict[str, str]] = {}  # of Spaces

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of dropped connections, which a test asked for."""


class Refused(Exception):  # noqa: N818
    """An answer of the Hub that is no success: status, X-Error-Code, message."""


class Dropped(Exception):  # noqa: N818
    """The connection ends here."""


def route(pattern: str) -> Callable:
    """Answer requests of a method and path such as `POST /api/repos/create`; groups become arguments."""
    return lambda answer: ROUTES.append((pattern.replace("REPOSITORY", REPOSITORY), answer))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.known = token == TOKEN
        try:
            self.body = self.read_body()
            if token and not self.known:
                raise Refused(401, "", "Invalid credentials in Authorization header")
            for pattern, answer in ROUTES:
                if found := re.fullmatch(pattern, f"{self.command.replace('HEAD', 'GET')} {path}"):
                    return answer(self, *found.groups())
            raise Refused(404, "", f"No such route: {path}")
        except Refused as refused:
            status, code, message = refused.args
            headers = {"X-Error-Code": code} if code else {}
            return self.send(json.dumps({"error": message}).encode(), status, {**headers, "X-Error-Message": message})
        except Dropped:
            self.close_connection = True
            return self.connection.close()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def read_body(self) -> bytes:
        if self.command == "PUT" and self.server.refuse_uploads:
            self.rfile.read(10)
            raise Dropped
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, content: bytes, status: int, headers: dict[str, str], end: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:end])

    def reply(self, answer: Any, status: int = 200) -> None:
        self.send(json.dumps(answer).encode(), status, {"Content-Type": "application/json"})

    def log_message(self, *args: Any) -> None:
        """Keep the output of the tests to themselves."""

    def readable(self, name: str, revision: str = "main") -> tuple[str, dict[str, bytes]]:
        """Name and files of a commit."""
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self.known):
            raise Refused(404 if self.known else 401, "RepoNotFound", "Repository not found")
        newest = commit_id(len(repository.commits) - 1)
        for number, files in enumerate(repository.commits):
            if commit_id(number) == (newest if revision == "main" else revision):
                return commit_id(number), files
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def writable(self, name: str) -> Repository:
        if not self.known or name.split("/")[-2] != OWNER:
            raise Refused(403 if self.known else 401, "", f"You may not write to {name}")
        self.readable(name)
        return self.server.repositories[name]

    @route("POST /api/repos/create")
    def create(self) -> None:
        wanted = json.loads(self.body)
        folder = f"{wanted['type']}s/" if wanted.get("type", "model") != "model" else ""
        name = f"{folder}{wanted.get('organization') or OWNER}/{wanted['name']}"
        if not self.known or name.split("/")[-2] != OWNER:
            raise Refused(403 if self.known else 401, "", f"You may not create {name}")
        taken, private = name in self.server.repositories, wanted.get("visibility") == "private"
        self.server.repositories.setdefault(name, Repository(private or wanted.get("private", False)))
        self.reply({"url": f"{self.server.url}/{name}", "name": name}, 409 if taken else 200)

    @route("POST /api/validate-yaml")
    def validate(self) -> None:
        """Refuse cards that the Hub refuses, as far as that can be told without reading YAML."""
        metadata = re.match(r"---\n(.+?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        errors = [] if metadata else ["the card has no metadata"]
        if metadata and "license: other" in metadata[1] and "license_name: " not in metadata[1]:
            errors.append('"license_name" is required with "license: other"')
        self.reply({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    @route("POST /api/(?:models/)?REPOSITORY/preupload/(.+)")
    def preupload(self, name: str, revision: str) -> None:
        self.writable(name)
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = ["lfs" if path.endswith(LFS) else "regular" for path in paths]
        files = zip(paths, modes, strict=True)
        self.reply({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in files]})

    @route("POST /REPOSITORY[.]git/info/lfs/objects/batch")
    def batch(self, name: str) -> None:
        self.writable(name)
        objects = json.loads(self.body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.server.objects:
                wanted["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
        self.reply({"transfer": "basic", "objects": objects})

    @route(r"PUT /lfs/(\w+)")
    def put(self, oid: str) -> None:
        self.server.objects[oid] = self.body
        self.reply({})

    @route("POST /api/(?:models/)?REPOSITORY/commit/main")
    def commit(self, name: str) -> None:
        if self.server.lose_commits:
            raise Dropped
        self.server.meanwhile()
        repository = self.writable(name)
        files = dict(repository.files)
        for line in map(json.loads, self.body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, commit_id(len(repository.commits) - 1)):
                    raise Refused(412, "", "A commit has happened since")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            else:
                del files[value["path"]]
        repository.commits.append(files)
        repository.messages.append(message)
        if self.server.lose_answers:
            raise Dropped
        oid = commit_id(len(repository.commits) - 1)
        self.reply({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"})

    @route("POST /api/REPOSITORY/variables")
    def variable(self, name: str) -> None:
        self.writable(name)
        wanted = json.loads(self.body)
        self.server.variables.setdefault(name, {})[wanted["key"]] = wanted["value"]
        self.reply({})

    @route("GET /api/(?:models/)?REPOSITORY(?:/revision/(.+))?")
    def info(self, name: str, revision: str | None) -> None:
        commit, files = self.readable(name, revision or "main")
        private = self.server.repositories[name].private
        self.reply({"id": name, "sha": commit, "private": private, "siblings": [{"rfilename": path} for path in files]})

    @route("GET /api/(?:models/)?REPOSITORY/tree/([^/]+)(?:/(.+))?")
    def tree(self, name: str, revision: str, folder: str | None) -> None:
        """What lies in a folder: with `recursive` all files below it, else those right in it and its folders."""
        start = f"{folder}/" if folder else ""
        files = {path: it for path, it in self.readable(name, revision)[1].items() if path.startswith(start)}
        folders: list[str] = []
        if "recursive=true" not in self.path.lower():
            folders = sorted({start + path.removeprefix(start).split("/")[0] for path in files} - set(files))
            files = {path: it for path, it in files.items() if "/" not in path.removeprefix(start)}
        listed = [{"type": "directory", "path": path, "oid": commit_id(0), "size": 0} for path in folders]
        named = [{"type": "file", "path": path, "size": len(it), **names_of(path, it)} for path, it in files.items()]
        self.reply([*listed, *named])

    @route("GET /REPOSITORY/resolve/([^/]+)/(.+)")
    def resolve(self, name: str, revision: str, path: str) -> None:
        commit, files = self.readable(name, revision)
        if path not in files:
            raise Refused(404, "EntryNotFound", f"No such file: {path}")
        content, names = files[path], names_of(path, files[path])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{names["oid"]}"', "Accept-Ranges": "bytes"}
        if "lfs" in names:
            headers |= {"X-Linked-Etag": f'"{names["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        cut = self.command == "GET" and self.server.cut_downloads > 0
        self.send(content[start:], 206 if start else 200, headers, (len(content) - start) // 2 if cut else None)
        if cut:
            self.server.cut_downloads -= 1
            raise Dropped


@contextmanager
def running_hub(url: str) -> Iterator[Hub]:
    """A Hub in a thread, until the block ends."""
    with Hub(url) as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()
