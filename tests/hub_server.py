"""A Hugging Face Hub on loopback, for tests that use the unmodified clients.

It keeps repositories in memory and answers the routes that `huggingface_hub`, `transformers` and `datasets`
call to make, fill, read and delete them, with the status codes and headers their errors are made from.
Large files take the LFS way, so clients must set `HF_HUB_DISABLE_XET=1`. Not here: pull requests, spaces,
organisations, the dataset viewer, lists of commits and refs, answers of more than one page.

    with HubServer() as hub:
        hub.add_user("alice", "alice-token")
        hub.add_repo("dataset", "alice/pets", {"train.csv": "text,label\\nwoof,dog\\n"})
        hub.fail("POST", "/api/repos/create", status=503)

Who may do what: the owner of a namespace reads and writes in it, unless the token is read-only. Everybody
reads a public repository. Everybody sees the page of a gated one, but only its owner gets its files. A
private one does not exist for others. An unknown token is refused everywhere, also where none is needed.
"""

import base64
import hashlib
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".parquet", ".arrow", ".zip", ".png", ".jpg", ".wav", ".flac")
LFS_SIZE = 10 * 1024 * 1024
REPO_ID = r"\w[\w.-]*(/\w[\w.-]*)?"
CARD_FIELDS = {"datasets": REPO_ID, "base_model": REPO_ID, "language": r"[a-z]{2,3}(-\w+)?|code|multilingual"}
API = r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>(?:[^/]+/)?[^/]+)"
GIT = r"/(?:(?P<kind>dataset|space)s/)?(?P<repo_id>(?:[^/]+/)?[^/]+)"
COMMIT_COUNTER = itertools.count()


@dataclass(frozen=True)
class Request:
    """One request as the server saw it; `path` is unquoted, `user` is None without a token that is known."""

    method: str
    path: str
    user: str | None
    can_write: bool = field(repr=False)
    query: dict[str, list[str]] = field(repr=False)
    headers: Any = field(repr=False)  # a mapping that ignores case
    body: bytes = field(repr=False)


@dataclass
class Failure:
    """What `HubServer.fail` asked for, and how often it is still due."""

    method: str
    path: re.Pattern
    status: int | None
    cut: bool
    stall_seconds: float
    applied: bool
    after: int
    times: float


@dataclass(frozen=True)
class Commit:
    """All files of a repository at one moment."""

    sha: str
    title: str
    files: dict[str, bytes]
    parent: "Commit | None"
    date: str


@dataclass
class Repo:
    """A repository: the newest commit of each branch and tag, and every commit by its sha."""

    kind: str
    repo_id: str
    private: bool = False
    gated: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """The namespace; of a repository without one its own name, which is nobody's."""
        return self.repo_id.split("/")[0]

    @property
    def url_path(self) -> str:
        """Where a browser would find it."""
        return self.repo_id if self.kind == "model" else f"{self.kind}s/{self.repo_id}"

    def commit(self, files: dict[str, bytes], title: str, branch: str = "main") -> Commit:
        """Make `files` the new content of `branch`."""
        parent, date = self.branches.get(branch), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        content = [next(COMMIT_COUNTER), title, sorted((path, hash_of(path, files[path])) for path in files)]
        sha = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.branches[branch] = self.commits[sha] = Commit(sha, title, files, parent, date)
        return self.commits[sha]

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a full sha names."""
        commits = {**self.commits, **self.tags, **self.branches}
        if revision not in commits:
            raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commits[revision]


class Answer(Exception):
    """What goes back to the client. An exception too, so that a refusal can leave a route from anywhere."""

    def __init__(self, body: Any = None, *, status: int = 200, headers: dict[str, str] | None = None):
        super().__init__(status, body)
        self.status, self.headers = status, {"Content-Type": "application/json"} | (headers or {})
        self.body = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()


def refusal(status: int, message: str, code: str = "", headers: dict | None = None, **body: Any) -> Answer:
    """An error answer; from `code` the clients choose the class of the exception they raise."""
    headers = {"X-Error-Message": message.encode("ascii", "backslashreplace").decode()} | (headers or {})
    if code:
        headers["X-Error-Code"] = code
    return Answer({"error": message, **body}, status=status, headers=headers)


def is_lfs(path: str, size: int) -> bool:
    """Whether this server wants a file sent as a large file."""
    return path.endswith(LFS_SUFFIXES) or size > LFS_SIZE


def hash_of(path: str, data: bytes) -> str:
    """The hash clients compare with their copy: SHA-256 for a large file, git's SHA-1 of a blob otherwise."""
    if is_lfs(path, len(data)):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def describe(path: str, commit: Commit) -> dict:
    """A file or folder as the tree routes list it, dated by the commit that was asked for."""
    entry = {"path": path, "lastCommit": {"id": commit.sha, "title": commit.title, "date": commit.date}}
    if path not in commit.files:
        return entry | {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
    size, oid = len(commit.files[path]), hash_of(path, commit.files[path])
    lfs = {"oid": oid, "sha256": oid, "size": size, "pointerSize": 130} if is_lfs(path, size) else None
    return entry | {"type": "file", "oid": oid[:40], "size": size, "lfs": lfs}


def read_card(readme: str) -> tuple[dict, list[str]]:
    """The metadata block of a README, and what the Hub refuses in it (here: ids of repositories, languages)."""
    block = re.match(r"---\r?\n(.*?)\r?\n---", readme, flags=re.DOTALL)
    try:
        data = dict((yaml.safe_load(block[1]) if block else None) or {})
    except (yaml.YAMLError, TypeError, ValueError) as error:
        return {}, [f"cannot be read: {error}"]
    errors = []
    for name, pattern in CARD_FIELDS.items():
        values = data.get(name) or []
        for value in values if isinstance(values, list) else [values]:
            if not re.fullmatch(pattern, str(value)):
                errors.append(f'"{name}" with value "{value}" is not valid')
    return data, errors


ROUTES: list[tuple[str, re.Pattern, str, Callable]] = []


def route(method: str, path: str, access: str = "") -> Callable:
    """Register a `HubServer` method for a whole, still quoted path, whose named groups become its arguments.

    With an `access` of "page", "files" or "write" it gets a `repo` that the user has this access to, in place
    of `kind` and `repo_id`. The first route that fits answers.
    """
    return lambda function: ROUTES.append((method, re.compile(path), access, function)) or function


class HubServer:
    """The server. `url` is what `HF_ENDPOINT` must be; `requests` holds every request it ever got."""

    def __init__(self, port: int = 0):
        """Starts nothing. Port 0 takes a free one, which stays the same when the server is started again."""
        self.port = port
        self.requests: list[Request] = []
        self._users: dict[str, tuple[str, bool]] = {}
        self._repos: dict[tuple[str, str], Repo] = {}
        self._large_files: dict[str, bytes] = {}
        self._failures: list[Failure] = []
        self._lock = threading.RLock()
        self.connections: set[socket.socket] = set()

    @property
    def url(self) -> str:
        """The address; its port is known from the first start on."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Serve in the background until `stop` or the end of the process."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), type("Bound", (Handler,), {"hub": self}))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop serving, also on the connections that clients keep open; the repositories stay."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # What tests arrange and look at.

    def add_user(self, name: str, token: str, *, can_write: bool = True) -> None:
        """Give the owner of the namespace `name` one more token, a read-only one with `can_write=False`."""
        self._users[token] = (name, can_write)

    def add_repo(
        self, kind: str, repo_id: str, files: dict[str, bytes | str] | Path, *, private=False, gated=False
    ) -> str:
        """Commit `files`, or all that is in a folder, as the whole content of main; return the commit's sha.

        The repository is made if need be; calling this again gives it a second revision.
        """
        if isinstance(files, Path):
            paths = [path for path in files.rglob("*") if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        content = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
        with self._lock:
            repo = self._repos.setdefault((kind, repo_id), Repo(kind, repo_id))
            repo.private, repo.gated = private, gated
            return repo.commit(content, "update" if repo.commits else "initial commit").sha

    def files(self, kind: str, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository; KeyError if there is none of this name."""
        return dict(self._repos[kind, repo_id].at(revision).files)

    def commits(self, kind: str, repo_id: str) -> list[str]:
        """The titles of the commits on main, newest first; KeyError if there is no such repository."""
        titles, commit = [], self._repos[kind, repo_id].at("main")
        while commit:
            titles.append(commit.title)
            commit = commit.parent
        return titles

    def fail(
        self,
        method: str,
        path_pattern: str,
        *,
        status: int | None = None,
        cut=False,
        stall_seconds: float = 0,
        after=0,
        times: float = 1,
        applied=False,
    ) -> None:
        """Let `times` requests fail that have this method and a match of the pattern in their path, `after` so many.

        They get either `status`, or their connection `cut`: after half of the body when a file is downloaded,
        before any answer otherwise. Or the second half of a body comes `stall_seconds` late. With `applied` a request
        takes effect all the same and only its answer is lost, which is how a blind retry makes a second commit.
        `times=math.inf` fails for good.
        """
        if (status is not None) + cut + bool(stall_seconds) != 1:
            raise ValueError("give one of status, cut=True and stall_seconds")
        with self._lock:
            pattern = re.compile(path_pattern)
            self._failures.append(Failure(method, pattern, status, cut, stall_seconds, applied, after, times))

    def clear_failures(self) -> None:
        """Forget the failures that did not happen yet."""
        with self._lock:
            self._failures.clear()

    # From a request to its answer.

    def receive(self, method: str, target: str, headers: Any, body: bytes) -> tuple[Answer, float, float]:
        """The answer to one request, how much of it to send (below 1 the connection is cut after it), and for how many
        seconds to stop in its middle."""
        url, token = urlsplit(target), headers.get("Authorization", "").removeprefix("Bearer ")
        user, can_write = self._users.get(token, (None, False))
        request = Request(method, unquote(url.path), user, can_write, parse_qs(url.query), headers, body)
        is_file = method == "GET" and "/resolve/" in request.path
        answer = refusal(401, "Invalid credentials in Authorization header")
        with self._lock:
            self.requests.append(request)
            failure = self._due_failure(request)
            if (user or not token) and (failure is None or failure.applied or failure.stall_seconds or is_file):
                answer = self._answer(request, url.path)
        if failure and failure.status:
            answer = refusal(failure.status, "a failure the test asked for")
        part = is_file / 2 if failure and failure.cut else 1
        return answer, part, failure.stall_seconds if failure else 0

    def _due_failure(self, request: Request) -> Failure | None:
        for failure in self._failures:
            if failure.times and failure.method == request.method and failure.path.search(request.path):
                if failure.after:
                    failure.after -= 1
                    continue
                failure.times -= 1
                return failure
        return None

    def _answer(self, request: Request, path: str) -> Answer:
        try:
            for method, pattern, access, function in ROUTES:
                if method == request.method.replace("HEAD", "GET") and (match := pattern.fullmatch(path)):
                    parts = {name: unquote(part or "") for name, part in match.groupdict().items()}
                    if access:
                        parts["repo"] = self._repo(request, parts.pop("kind"), parts.pop("repo_id"), access)
                    return function(self, request, **parts)
            raise refusal(404, f"no route for {request.method} {path}")
        except Answer as answer:
            return answer
        except Exception as error:
            return refusal(501, f"error in the test server: {error!r}")

    def _repo(self, request: Request, kind: str, repo_id: str, access: str) -> Repo:
        repo, owner = self._repos.get((kind or "model", repo_id)), repo_id.split("/")[0]
        if repo is None or (repo.private and request.user != owner):
            raise refusal(404 if request.user else 401, "Repository not found", "RepoNotFound")
        if access == "files" and repo.gated and request.user != owner:
            raise refusal(403 if request.user else 401, "Access is restricted", "GatedRepo")
        if access == "write":
            self._check_write(request, owner)
        return repo

    def _check_write(self, request: Request, owner: str | None) -> None:
        if request.user is None:
            raise refusal(401, "Invalid username or password.")
        if request.user != owner or not request.can_write:
            raise refusal(403, f"This token has no right to write to the namespace {owner}")

    # The routes.

    @route("GET", "/api/whoami-v2")
    def _whoami(self, request: Request) -> Answer:
        if request.user is None:
            raise refusal(401, "Invalid username or password.")
        token = {"displayName": "test", "role": "write" if request.can_write else "read"}
        auth = {"type": "access_token", "accessToken": token}
        return Answer({"type": "user", "name": request.user, "orgs": [], "auth": auth})

    @route("POST", "/api/validate-yaml")
    def _validate_card(self, request: Request) -> Answer:
        data, errors = read_card(json.loads(request.body)["content"])
        warnings = [] if data or errors else ["empty or missing yaml metadata in repo card"]
        messages = {"errors": errors, "warnings": warnings}
        body = {kind: [{"message": text} for text in texts] for kind, texts in messages.items()}
        return Answer(body, status=400 if errors else 200)

    @route("POST", "/api/repos/create")
    def _create_repo(self, request: Request) -> Answer:
        wanted = json.loads(request.body)
        owner, kind = wanted.get("organization") or request.user, wanted.get("type") or "model"
        self._check_write(request, owner)
        new = Repo(kind, f"{owner}/{wanted['name']}", private=wanted.get("visibility") == "private")
        url = f"{self.url}/{new.url_path}"
        if (kind, new.repo_id) in self._repos:
            raise refusal(409, f"You already created this {kind} repo", url=url)
        self._repos[kind, new.repo_id] = new
        new.commit({".gitattributes": b"*.safetensors filter=lfs -text\n"}, "initial commit")
        return Answer({"url": url})

    @route("DELETE", "/api/repos/delete")
    def _delete_repo(self, request: Request) -> Answer:
        wanted = json.loads(request.body)
        repo_id = f"{wanted.get('organization') or request.user}/{wanted['name']}"
        repo = self._repo(request, wanted.get("type"), repo_id, "write")
        del self._repos[repo.kind, repo_id]
        return Answer()

    @route("GET", f"{API}/auth-check", access="files")
    @route("GET", f"{API}/auth-check/write", access="write")
    def _check_access(self, request: Request, repo: Repo) -> Answer:
        return Answer()

    @route("POST", f"{API}/branch/(?P<name>[^/]+)", access="write")
    def _create_branch(self, request: Request, repo: Repo, name: str) -> Answer:
        if name in repo.branches:
            raise refusal(409, f"Reference already exists: refs/heads/{name}")
        repo.branches[name] = repo.at(json.loads(request.body).get("startingPoint", "main"))
        return Answer()

    @route("POST", f"{API}/tag/(?P<revision>[^/]+)", access="write")
    def _create_tag(self, request: Request, repo: Repo, revision: str) -> Answer:
        name = json.loads(request.body)["tag"]
        if name in repo.tags:
            raise refusal(409, f"Reference already exists: refs/tags/{name}")
        repo.tags[name] = repo.at(revision)
        return Answer()

    @route("GET", f"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", access="page")
    def _list_tree(self, request: Request, repo: Repo, revision: str, folder: str) -> Answer:
        commit, start, paths = repo.at(revision), f"{folder}/" if folder else "", set()
        for path in commit.files:
            if path.startswith(start):
                parts = path.removeprefix(start).split("/")
                depth = len(parts) if request.query.get("recursive") == ["true"] else 1
                paths |= {start + "/".join(parts[: length + 1]) for length in range(depth)}
        if folder and not paths:
            raise refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        return Answer([describe(path, commit) for path in sorted(paths)])

    @route("POST", f"{API}/paths-info/(?P<revision>[^/]+)", access="page")
    def _list_paths(self, request: Request, repo: Repo, revision: str) -> Answer:
        commit, asked = repo.at(revision), parse_qs(request.body.decode()).get("paths", [])
        exists = {path for path in asked if any(f"{file}/".startswith(f"{path}/") for file in commit.files)}
        return Answer([describe(path, commit) for path in sorted(exists)])

    @route("POST", f"{API}/preupload/(?P<revision>[^/]+)", access="write")
    def _choose_upload_modes(self, request: Request, repo: Repo, revision: str) -> Answer:
        present, files = repo.at(revision).files, json.loads(request.body)["files"]
        for file in files:
            path = file["path"]
            file["uploadMode"] = "lfs" if is_lfs(path, file["size"]) else "regular"
            file["oid"] = hash_of(path, present[path]) if path in present else None
            file["shouldIgnore"] = False
        return Answer({"files": files})

    @route("POST", rf"{GIT}\.git/info/lfs/objects/batch", access="write")
    def _choose_lfs_uploads(self, request: Request, repo: Repo) -> Answer:
        objects = json.loads(request.body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self._large_files:
                url = f"{self.url}/lfs/{wanted['oid']}"
                wanted["actions"] = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
        return Answer({"transfer": "basic", "objects": objects})

    @route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
    def _receive_large_file(self, request: Request, oid: str) -> Answer:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise refusal(400, "the content does not have the hash it was announced with")
        self._large_files[oid] = request.body
        return Answer()

    @route("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify")
    def _verify_large_file(self, request: Request, oid: str) -> Answer:
        return Answer(status=200 if oid in self._large_files else 404)

    @route("POST", f"{API}/commit/(?P<branch>[^/]+)", access="write")
    def _commit(self, request: Request, repo: Repo, branch: str) -> Answer:
        head, title = repo.at(branch), ""
        files = dict(head.files)
        for line in request.body.splitlines():
            item = json.loads(line)
            key, value, path = item["key"], item["value"], item["value"].get("path", "").rstrip("/")
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit", head.sha) != head.sha:
                    raise refusal(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[path] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self._large_files:
                    raise refusal(400, f"{path} was not uploaded before its commit")
                files[path] = self._large_files[value["oid"]]
            else:  # deletedFile or deletedFolder
                kept = {file: files[file] for file in files if not f"{file}/".startswith(f"{path}/")}
                if len(kept) == len(files):
                    raise refusal(404, "A file with this name doesn't exist", "EntryNotFound")
                files = kept
        sha = repo.commit(files, title, branch).sha
        return Answer({"commitOid": sha, "commitUrl": f"{self.url}/{repo.url_path}/commit/{sha}"})

    @route("GET", API, access="page")
    @route("GET", f"{API}/revision/(?P<revision>[^/]+)", access="page")
    def _describe_repo(self, request: Request, repo: Repo, revision: str = "main") -> Answer:
        commit = repo.at(revision)
        card, _ = read_card(commit.files.get("README.md", b"").decode())
        entries = [describe(path, commit) for path in sorted(commit.files)]
        info = {key: card.get(key) for key in ("pipeline_tag", "library_name", "model-index")}
        info |= {"id": repo.repo_id, "author": repo.owner, "sha": commit.sha, "lastModified": commit.date}
        info |= {"private": repo.private, "gated": "auto" if repo.gated else False, "cardData": card}
        info["tags"] = card.get("tags") or []
        info["siblings"] = [entry | {"rfilename": entry["path"], "blobId": entry["oid"]} for entry in entries]
        return Answer(info)

    @route("GET", f"{GIT}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", access="files")
    def _send_file(self, request: Request, repo: Repo, revision: str, path: str) -> Answer:
        commit = repo.at(revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise refusal(404, "Entry not found", "EntryNotFound", headers)
        data = commit.files[path]
        headers |= {"ETag": f'"{hash_of(path, data)}"', "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if not asked:
            return Answer(data, headers={**headers, "Accept-Ranges": "bytes"})
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if start > end:
            raise refusal(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return Answer(data[start : end + 1], status=206, headers=headers)


class Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, sends what the server's `hub` answers or a part of it."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the client to acknowledge its headers

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client may leave at any time
            super().handle()

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer, part, stall_seconds = self.hub.receive(self.command, self.path, self.headers, body)
        self.close_connection = self.close_connection or part < 1
        if part == 0:
            return
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": len(answer.body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = answer.body[: int(len(answer.body) * part)]
        if stall_seconds:
            half = len(sent) // 2
            self.wfile.write(sent[:half])
            self.wfile.flush()
            time.sleep(stall_seconds)
            sent = sent[half:]
        self.wfile.write(sent)

    do_HEAD = do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def log_message(self, *_: object) -> None:
        """Nothing: `HubServer.requests` is the log."""
