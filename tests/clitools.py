"""A real `toolcrib up` in a process of its own, and commands run as real processes against it."""

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from typer.testing import CliRunner

import toolcrib
from toolcrib.cli.app import app
from toolcrib.cli.failure import CommandFailed

MINI = Path(__file__).parent / "cli" / "servers" / "mini.py"
STDIO = f"{sys.executable} {MINI}"
_PATIENCE_S = 60
_ROOM = 1_000_000_000  # bytes


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@dataclass
class Crib:
    """A data folder, where its server answers (if one runs), and commands on it."""

    data: Path
    url: str = ""
    first: dict[str, Any] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TOOLCRIB_")}
        path = str(Path(toolcrib.__file__).parents[1])  # a relative PYTHONPATH would not do in another folder
        return {**kept, "PYTHONPATH": path, "TOOLCRIB_DATA": str(self.data), "COLUMNS": "140", **more}

    def run(self, *args: str, stdin: str = "", cwd: Path | None = None, **env: str) -> Done:
        """Run a command in a pipe."""
        done = subprocess.run(
            [sys.executable, "-m", "toolcrib", *args],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=cwd,
            env=self.environment(**env),
            timeout=_PATIENCE_S,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def on_terminal(self, *args: str, keys: str = "") -> Done:
        """Run a command whose input and output are a terminal; what it says on standard error comes apart."""
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "toolcrib", *args],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=self.environment(TERM="xterm"),
        ) as process:
            os.close(theirs)
            os.write(ours, keys.encode())
            shown = b""
            with contextlib.suppress(OSError):  # Linux says EIO when the other end is closed
                while chunk := os.read(ours, 65536):
                    shown += chunk
            os.close(ours)
            assert process.stderr is not None
            said = process.stderr.read().decode()
            return Done(process.wait(_PATIENCE_S), shown.decode().replace("\r\n", "\n"), said)


@dataclass(frozen=True)
class Tools:
    """A tool set as `tools add` printed it, and what it said."""

    added: dict[str, Any]
    said: str

    def __getitem__(self, name: str) -> str:
        """The call name of a tool: its own, or behind that of its tool set."""
        return next(t["name"] for t in self.added["tools"] if t["name"].rpartition("__")[2] == name)


def refusal(*args: str) -> tuple[int, str]:
    """Exit code and words of a command line that is refused before anybody is asked; run in this process."""
    result = CliRunner().invoke(app, list(args))
    if isinstance(result.exception, CommandFailed):
        return result.exception.code, str(result.exception)
    return result.exit_code, result.output


@contextlib.contextmanager
def data_folder() -> Iterator[Path]:
    """An empty folder that the account of PostgreSQL can pass through, in memory where there is room."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > _ROOM
    folder = Path(tempfile.mkdtemp(prefix="toolcrib-cli-", dir=memory if roomy else None))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def up(data: Path, **env: str) -> Iterator[Crib]:
    """A running `toolcrib up`."""
    crib = Crib(data)
    with (data / "up.err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "toolcrib", "up", "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            env=crib.environment(**env),
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (data / "up.err").read_text()
        crib.first = json.loads(line)
        crib.url = crib.first["url"]
        yield crib
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=_PATIENCE_S)


class _Upstream(BaseHTTPRequestHandler):
    """Answers every request with what it was."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        request = {
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": self.rfile.read(length).decode(),
        }
        self.seen.append(request)
        body = json.dumps(request).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, *_: Any) -> None:
        pass


@dataclass(frozen=True)
class Upstream:
    """An HTTP API on this machine, and what it was asked."""

    url: str
    seen: list[dict[str, Any]]


@contextlib.contextmanager
def http_api() -> Iterator[Upstream]:
    """A running one."""
    handler = type("Handler", (_Upstream,), {"seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Upstream(f"http://127.0.0.1:{server.server_address[1]}", handler.seen)
        finally:
            server.shutdown()
            thread.join()
