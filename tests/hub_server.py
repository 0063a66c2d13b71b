"""A small Hugging Face Hub on the loopback address: what the real client asks of it to push and load models.

It keeps repositories, branches and commits in memory, and takes safetensors as LFS objects, as the Hub does. A fault
that a test sets (`cut_downloads`, `refuse_uploads`, `lose_commits`) stays until the test takes it back.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import yaml

TOKEN, OWNER = "hf_ours", "org"


@dataclass
class Repository:
    """Commits, newest last, each with all its files; the branches point to them by number."""

    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    messages: list[str] = field(default_factory=lambda: ["initial commit"])
    branches: dict[str, int] = field(default_factory=lambda: {"main": 0})

    def find(self, revision: str) -> int | None:
        ids = {commit_id(number): number for number in range(len(self.commits))}
        return self.branches.get(revision, ids.get(revision))

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.branches["main"]]


def commit_id(number: int) -> str:
    return hashlib.sha1(str(number).encode()).hexdigest()


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

    def handle_error(self, request, client_address) -> None:  # a dropped connection is what the test asked for
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) if self.command != "PUT" else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", TOKEN) and not path.startswith("/lfs/"):
            return self.refuse(401, message="Invalid credentials in Authorization header")
        for method, pattern, answer in ROUTES:
            if method == self.command.replace("HEAD", "GET") and (found := re.fullmatch(pattern, path)):
                return answer(self, body, bool(token), *found.groups())
        return self.refuse(404, message=f"No such route: {path}")

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def chunk(self) -> bytes:
        content = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return content

    def send(self, content: bytes, status: int = 200, end: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:end])

    def reply(self, answer: object, status: int = 200) -> None:
        self.send(json.dumps(answer).encode(), status, Content_Type="application/json")

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"X_Error_Code": code} if code else {}
        content = json.dumps({"error": message or code}).encode()
        self.send(content, status, X_Error_Message=message or code, Content_Type="application/json", **headers)

    def drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    # ------------------------------------------------------------------------------------------------ the account

    def whoami(self, body: bytes, known: bool) -> None:
        if not known:
            return self.refuse(401, message="Invalid username or password.")
        access = {"accessToken": {"displayName": "test", "role": "write"}}
        return self.reply({"type": "user", "name": OWNER, "fullname": OWNER, "orgs": [], "auth": access})

    def create(self, body: bytes, known: bool) -> None:
        wanted = json.loads(body)
        if not known:
            return self.refuse(401, message="Invalid username or password.")
        owner = wanted.get("organization") or OWNER
        if owner != OWNER:
            return self.refuse(403, message=f"You don't have the rights to create a model under the namespace {owner}")
        name = f"{owner}/{wanted['name']}"
        taken = name in self.server.repositories
        private = wanted.get("private", False) or wanted.get("visibility") == "private"
        self.server.repositories.setdefault(name, Repository(private=private))
        answer = {"url": f"{self.server.url}/{name}", "name": name, "id": name}
        return self.reply(
            answer | ({"error": "You already created this model repo"} if taken else {}), 409 if taken else 200
        )

    def validate(self, body: bytes, known: bool) -> None:
        """The part of the Hub's check of a card that can be told from outside."""
        errors = []
        try:
            data = yaml.safe_load(re.match(r"---\n(.*?)\n---", json.loads(body)["content"], re.DOTALL)[1])
            for result in [result for model in data.get("model-index", []) for result in model["results"]]:
                if not {"type", "name"} <= set(result["dataset"]) or "type" not in result["task"]:
                    errors.append('"model-index" needs the type and name of a dataset')
                errors += ["a metric needs a value"] * sum("value" not in metric for metric in result["metrics"])
            if data.get("license") == "other" and not data.get("license_name"):
                errors.append('"license_name" is required with "license: other"')
        except (TypeError, KeyError, yaml.YAMLError) as error:
            errors.append(f"the metadata cannot be read: {error!r}")
        self.reply({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    # --------------------------------------------------------------------------------------------------- uploads

    def preupload(self, body: bytes, known: bool, name: str, revision: str) -> None:
        if self.writable(name, known):
            files = [
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for path in (file["path"] for file in json.loads(body)["files"])
            ]
            self.reply({"files": files})

    def batch(self, body: bytes, known: bool, name: str) -> None:
        if self.writable(name, known):
            objects = json.loads(body)["objects"]
            for wanted in objects:
                if wanted["oid"] not in self.server.objects:
                    wanted["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
            self.reply({"transfer": "basic", "objects": objects})

    def put(self, body: bytes, known: bool, oid: str) -> None:
        if self.server.refuse_uploads:
            self.rfile.read(10)
            return self.drop()
        self.server.objects[oid] = self.rfile.read(int(self.headers["Content-Length"]))
        return self.send(b"")

    def commit(self, body: bytes, known: bool, name: str, revision: str) -> None:
        if self.server.lose_commits:
            return self.drop()
        repository = self.writable(name, known)
        if repository is None:
            return None
        if revision not in repository.branches:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = dict(repository.commits[repository.branches[revision]])
        for key, value in ((line["key"], line["value"]) for line in map(json.loads, body.splitlines())):
            if key == "header":
                repository.messages.append(value["summary"])
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            else:
                files = {path: content for path, content in files.items() if not path.startswith(value["path"])}
        repository.commits.append(files)
        repository.branches[revision] = len(repository.commits) - 1
        oid = commit_id(repository.branches[revision])
        return self.reply({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"})

    # ------------------------------------------------------------------------------------------------- downloads

    def info(self, body: bytes, known: bool, name: str, revision: str | None = None) -> None:
        found = self.readable(name, known, revision or "main")
        if found is not None:
            number, files = found
            siblings = [{"rfilename": path} for path in files]
            private = self.server.repositories[name].private
            self.reply({"id": name, "sha": commit_id(number), "private": private, "siblings": siblings, "tags": []})

    def tree(self, body: bytes, known: bool, name: str, revision: str) -> None:
        if (found := self.readable(name, known, revision)) is not None:
            entries = [
                {"type": "file", "path": path, "size": len(content), **ids(path, content)}
                for path, content in found[1].items()
            ]
            self.reply(entries)

    def resolve(self, body: bytes, known: bool, name: str, revision: str, path: str) -> None:
        found = self.readable(name, known, revision)
        if found is None:
            return None
        number, files = found
        headers = {"X_Repo_Commit": commit_id(number)}
        if path not in files:
            return self.refuse(404, "EntryNotFound")
        content, identity = files[path], ids(path, files[path])
        headers |= {"ETag": f'"{identity["oid"]}"', "Accept_Ranges": "bytes"}
        if "lfs" in identity:
            headers |= {"X_Linked_Etag": f'"{identity["lfs"]["oid"]}"', "X_Linked_Size": str(len(content))}
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        content, cut = content[start:], self.server.cut_downloads > 0 and self.command == "GET"
        self.server.cut_downloads -= cut
        self.send(content, 206 if start else 200, end=len(content) // 2 if cut else None, **headers)
        return self.drop() if cut else None

    def readable(self, name: str, known: bool, revision: str) -> tuple[int, dict[str, bytes]] | None:
        """Number and files of a commit, or None after an answer that says why not."""
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not known):
            self.refuse(404 if known else 401, "RepoNotFound", "Repository not found")
            return None
        number = repository.find(revision)
        if number is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return number, repository.commits[number]

    def writable(self, name: str, known: bool) -> Repository | None:
        if known and name.startswith(f"{OWNER}/") and name in self.server.repositories:
            return self.server.repositories[name]
        self.refuse(403 if known else 401, message="You may not write here")
        return None

    def log_message(self, *args: object) -> None:
        pass


def ids(path: str, content: bytes) -> dict:
    """What a file is called by: git's name of the blob and, of an LFS object, its sha256."""
    blob = {"oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
    if not path.endswith(".safetensors"):
        return blob
    return blob | {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}


MODEL = r"([\w.-]+/[\w.-]+?)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{MODEL}/preupload/(.+)", Handler.preupload),
    ("POST", f"/{MODEL}[.]git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/(\w+)", Handler.put),
    ("POST", f"/api/models/{MODEL}/commit/(.+)", Handler.commit),
    ("GET", f"/api/models/{MODEL}(?:/revision/(.+))?", Handler.info),
    ("GET", f"/api/models/{MODEL}/tree/([^/]+)", Handler.tree),
    ("GET", f"/{MODEL}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def running_hub(url: str):
    """A Hub in a thread, until the block ends."""
    hub = Hub(url)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
