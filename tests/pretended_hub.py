"""A server on this machine that answers the requests which ganlab makes of the Hugging Face Hub."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from loopback import answering

TOKEN = "hf_secret"


@dataclass
class Hub:
    """What the server has, and the faults that it makes on purpose."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """The files of each repository."""
    private: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Large files that were sent, by sha256."""
    status: int = 0
    """Of a refusal of every request; 0 for none."""
    cuts: bool = False
    """Whether it ends every connection in the middle of a file."""
    altered: str = ""
    """The name of a file whose bytes are not those that it describes."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and token of each request."""
    address: str = ""

    def commit(self, name: str) -> str:
        """The name of the newest commit: it depends on the files alone."""
        files = self.repositories[name]
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def sibling(self, name: str, file: str) -> dict[str, Any]:
        """What the Hub says of a file; weights are stored with Git LFS."""
        content = self.repositories[name][file]
        found: dict[str, Any] = {
            "rfilename": file,
            "size": len(content),
            "blobId": git_sha1(content),
        }
        if file.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            found["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 134}
        return found


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving_hub(hub: Hub) -> Iterator[Hub]:
    """Context in which the hub answers at `hub.address`."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with answering(Handler) as hub.address:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._note()
        path = unquote(urlsplit(self.path).path)
        if self._refuses():
            return
        if "/tree/" in path:
            self._list(path.removeprefix("/api/models/").partition("/tree/")[0])
        elif path.startswith("/api/models/"):
            self._describe(path.removeprefix("/api/models/"))
        else:
            self._send_file(path)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path)
        if self._refuses():
            return
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            head = json.loads(body)["content"].split("---\n")[1]
            known = yaml.safe_load(head)["library_name"] == "ganlab"
            self._answer({"errors": [] if known else [{"message": "no library"}], "warnings": []})
        elif "/preupload/" in path:
            self._sort(json.loads(body)["files"])
        elif path.endswith("/info/lfs/objects/batch"):
            self._take(json.loads(body)["objects"])
        elif "/commit/" in path:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            self._commit(name, [json.loads(line) for line in body.splitlines()])
        else:
            self.send_error(404)

    def do_PUT(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._refuses():
            self.hub.blobs[hashlib.sha256(body).hexdigest()] = body
            self._answer({})

    def _note(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.asked.append((self.command, self.path, token))

    def _refuses(self) -> bool:
        if self.hub.status:
            self.send_error(self.hub.status)
        return bool(self.hub.status)

    def _answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        url = f"{self.hub.address}/{name}"
        if name in self.hub.repositories:
            self._answer({"url": url, "error": "it is there"}, 409)
            return
        self.hub.repositories[name] = {}
        self.hub.private |= {name} if wanted.get("visibility") == "private" else set()
        self._answer({"url": url, "name": name, "id": name})

    def _describe(self, rest: str) -> None:
        name, _, revision = rest.partition("/revision/")
        if name not in self.hub.repositories:
            self._missing("RepoNotFound")
        elif revision not in ("", "main", self.hub.commit(name)):
            self._missing("RevisionNotFound")
        else:
            files = self.hub.repositories[name]
            self._answer({
                "id": name, "sha": self.hub.commit(name), "private": name in self.hub.private,
                "siblings": [self.hub.sibling(name, file) for file in files],
            })  # fmt: skip

    def _list(self, name: str) -> None:
        found = [self.hub.sibling(name, file) for file in self.hub.repositories[name]]
        self._answer([
            {"type": "file", "path": f["rfilename"], "size": f["size"], "oid": f["blobId"]}
            | ({"lfs": f["lfs"] | {"oid": f["lfs"]["sha256"]}} if "lfs" in f else {})
            for f in found
        ])  # fmt: skip

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _sort(self, files: list[dict[str, Any]]) -> None:
        modes = [
            {"path": file["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
            for file in files
        ]  # fmt: skip
        self._answer({"files": modes})

    def _take(self, objects: list[dict[str, Any]]) -> None:
        for each in objects:
            href = f"{self.hub.address}/put/{each['oid']}"
            each["actions"] = {"upload": {"href": href}}
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = self.hub.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        oid = self.hub.commit(name)
        self._answer({"commitUrl": f"{self.hub.address}/{name}/commit/{oid}", "commitOid": oid})

    def _send_file(self, path: str) -> None:
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        content = self.hub.repositories.get(name, {}).get(file)
        if content is None:
            self._missing("EntryNotFound")
            return
        described = self.hub.sibling(name, file)
        digest = described["lfs"]["sha256"] if "lfs" in described else described["blobId"]
        if file == self.hub.altered:
            content = bytes([content[0] ^ 1]) + content[1:]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", revision)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if self.hub.cuts else content)
