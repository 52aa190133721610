"""Snapshots of Hub models, from a server on the loopback interface that answers as the Hub does."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

COMMITS = {"main": "1" * 40, "v1": "2" * 40}
WANTED = {
    "config.json": b"{}",
    "README.md": b"# A model",
    "merges.txt": b"a b",
    "source.spm": b"pieces",
    "spiece.model": b"pieces",
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
    "model.safetensors": b"tensors",
}
UNWANTED = [
    "pytorch_model.bin", "weights.pt", "tf_model.h5", "model.fp16.safetensors", "model.fp32-00001-of-00002.safetensors",
    "onnx/config.json", "onnx/model.safetensors",
]  # fmt: skip
# Of other repositories: what may be had, or not at all.
OTHERS: dict[str, dict[str, bytes]] = {
    "ctranslate2": {"config.json": b"{}", "vocabulary.txt": b"a", "model.bin": b"variables"},
    "pickled": {"config.json": b"{}", "pytorch_model.bin": b"never", "tf_model.h5": b"never", "onnx/a.onnx": b"never"},
    "empty": {"config.json": b"{}"},
}


class Hub(BaseHTTPRequestHandler):
    """`org/model` with two revisions, `org/gated` which lists its files and gives none, and `OTHERS`."""

    asked: list[str]

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        if "/org/" in self.path:
            self.asked.append(self.path)
        match self.path.partition("?")[0].strip("/").split("/"):
            case ["api", "models", "org", "model" | "gated", "revision", revision] if revision in COMMITS:
                siblings = [{"rfilename": name} for name in [*WANTED, *UNWANTED]]
                self.send_json({"id": "org/model", "sha": COMMITS[revision], "siblings": siblings})
            case ["api", "models", "org", "model" | "gated", "revision", _]:
                self.refuse(404, "RevisionNotFound")
            case ["api", "models", "org", "model" | "gated", "tree", _]:
                self.send_json([self.entry(name) for name in [*WANTED, *UNWANTED]])
            case ["api", "models", "org", name, "revision", _] if name in OTHERS:
                siblings = [{"rfilename": file} for file in OTHERS[name]]
                self.send_json({"id": f"org/{name}", "sha": COMMITS["main"], "siblings": siblings})
            case ["api", "models", "org", name, "tree", _] if name in OTHERS:
                self.send_json([self.entry(file, OTHERS[name]) for file in OTHERS[name]])
            case ["org", name, "resolve", commit, file] if file in OTHERS.get(name, {}):
                self.send(OTHERS[name][file], "application/octet-stream", commit)
            case ["org", "gated", "resolve", *_]:
                self.refuse(403, "GatedRepo")
            case ["org", "model", "resolve", commit, *name] if "/".join(name) in WANTED:
                self.send(content(commit, "/".join(name)), "application/octet-stream", commit)
            case ["org", "model", "resolve", *_]:
                self.refuse(404, "EntryNotFound")
            case _:
                self.refuse(401, "RepoNotFound")

    def entry(self, name: str, files: dict[str, bytes] = WANTED) -> dict[str, object]:
        blob = files.get(name, b"never sent")
        return {"type": "file", "path": name, "size": len(blob), "oid": hashlib.sha1(blob).hexdigest()}

    def send_json(self, value: object) -> None:
        self.send(json.dumps(value).encode(), "application/json", "")

    def send(self, body: bytes, kind: str, commit: str) -> None:
        self.send_response(200)
        etag = hashlib.sha1(body).hexdigest()
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "ETag": f'"{etag}"', "X-Repo-Commit": commit}
        self.finish_with(headers, body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.finish_with({"X-Error-Code": code, "Content-Length": "0"}, b"")

    def finish_with(self, headers: dict[str, str], body: bytes) -> None:
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def content(commit: str, name: str) -> bytes:
    return b"v1 " + WANTED[name] if commit == COMMITS["v1"] and name == "model.safetensors" else WANTED[name]


@dataclass
class Client:
    """Calls `snapshot` in a process of its own, since huggingface_hub reads its settings when it is imported."""

    endpoint: str
    cache: Path
    asked: list[str]

    CODE = (
        "import sys; from heedful.export.hub import snapshot; from heedful.runtime.errors import CheckpointError\n"
        "try: print(snapshot(sys.argv[1], *sys.argv[2:]))\n"
        "except CheckpointError as error: sys.exit(f'CheckpointError: {error}')"
    )

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        own = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env |= own | {"NO_PROXY": "127.0.0.1", "PYTHONWARNINGS": "error"} | settings
        command = [sys.executable, "-c", self.CODE, *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    def snapshot(self, *arguments: str, **settings: str) -> Path:
        done = self.run(*arguments, **settings)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    def error(self, *arguments: str, **settings: str) -> str:
        """The message of the one-sentence error."""
        done = self.run(*arguments, **settings)
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("CheckpointError: ")
        return last.removeprefix("CheckpointError: ")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"asked": asked}))
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Client(f"http://127.0.0.1:{server.server_port}", tmp_path / "hf", asked)
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_snapshot_holds_the_safe_files_only(client: Client) -> None:
    folder = client.snapshot("org/model")
    assert folder.name == COMMITS["main"]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == WANTED
    assert not [path for path in client.asked if path.endswith((".bin", ".pt", ".h5"))]


def test_a_revision_and_the_cache(client: Client) -> None:
    folder = client.snapshot("org/model", "v1")
    assert folder.name == COMMITS["v1"]
    assert (folder / "model.safetensors").read_bytes() == b"v1 tensors"
    client.asked.clear()
    assert client.snapshot("org/model", COMMITS["v1"]) == folder
    assert client.snapshot("org/model", "v1", HF_HUB_OFFLINE="1") == folder
    assert client.asked == []


def test_a_model_of_ctranslate2(client: Client) -> None:
    folder = client.snapshot("org/ctranslate2")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == OTHERS["ctranslate2"]
    client.asked.clear()
    assert client.snapshot("org/ctranslate2", HF_HUB_OFFLINE="1") == folder
    assert client.asked == []


def test_no_weights_that_are_read(client: Client) -> None:
    error = client.error("org/pickled")
    assert error.startswith("org/pickled has no model.safetensors, only pytorch_model.bin, tf_model.h5, which")
    assert 'CLASS.from_pretrained("org/pickled").save_pretrained(FOLDER)' in error
    assert "refs/pr/N" in error
    assert client.error("org/empty") == "org/empty has no model.safetensors and no other weights: name another model"
    assert not [path for path in client.asked if path.endswith((".bin", ".h5", ".onnx"))]


NO_SERVER = "http://127.0.0.1:9"  # The discard port: nothing listens.


@pytest.mark.parametrize(
    ("arguments", "settings", "reason"),
    [
        (["org/absent"], {}, "cannot get org/absent from the Hugging Face Hub: it does not exist or is private"),
        (["org/model", "v9"], {}, "cannot get org/model at revision v9 .*: it has no such revision"),
        (["org/gated"], {}, "cannot get org/gated .*: access to it is gated"),
        (["org/--model"], {}, "cannot get org/--model .*: it is no valid model id"),
        (["org/model"], {"HF_HUB_OFFLINE": "1"}, "cannot get org/model .*: the Hub cannot be reached and the cache"),
        (["org/model"], {"HF_ENDPOINT": NO_SERVER}, "cannot get org/model .*: the Hub cannot be reached and the cache"),
    ],
    ids=["absent", "revision", "gated", "invalid", "offline", "unreachable"],
)
def test_what_cannot_be_had(client: Client, arguments: list[str], settings: dict[str, str], reason: str) -> None:
    assert re.match(reason, client.error(*arguments, **settings))
