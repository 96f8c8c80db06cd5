"""The upstream of the tutorial in a thread, writing down what it was asked, and its files served on free ports."""

import contextlib
import importlib.util
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

from capability.recording_upstream import Served, served

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = sorted(EXAMPLES.glob("step-*.yaml"))


def module(name: str) -> ModuleType:
    """A script of the tutorial."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@dataclass
class Observatory:
    """The upstream: its URL, and its requests as `GET /path` with their headers."""

    url: str
    scripts: Any
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def took(self) -> list[str]:
        """What was asked since the last look."""
        asked, self.asked[:] = list(self.asked), []
        return asked


@contextlib.contextmanager
def observing() -> Iterator[Observatory]:
    """Run `examples/upstream.py` on a free port."""
    scripts = module("upstream")

    class Recorded(scripts.Observatory):  # type: ignore[misc, name-defined]
        sessions = scripts.first_session()

        def answer(self, path: list[str], query: dict[str, str], body: bytes) -> tuple[int, Any]:
            observatory.asked.append(f"{self.command} {self.path}")
            observatory.headers.append({name.lower(): value for name, value in self.headers.items()})
            observatory.bodies.append(body)
            status, answer = super().answer(path, query, body)
            return status, answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorded)
    server.daemon_threads = True
    observatory = Observatory(f"http://127.0.0.1:{server.server_port}", scripts)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield observatory
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def copied(folder: Path, *, secrets: bool = True) -> Path:
    """The tutorial's files in a folder of their own, with or without secrets."""
    there = folder / "examples"
    shutil.copytree(EXAMPLES, there, ignore=shutil.ignore_patterns("secrets.yaml", "__pycache__"))
    if secrets:
        shutil.copy(there / "shared" / "secrets.example.yaml", there / "shared" / "secrets.yaml")
    return there


@contextlib.asynccontextmanager
async def step(file: Path, observatory: Observatory) -> AsyncIterator[Served]:
    """Serve a step in front of the observatory."""
    places = {"archive": "/v1", "vault": "/vault", "open-archive": "/open"}
    base_uris = {name: observatory.url + path for name, path in places.items()}
    async with served(file, environ={}, base_uris=base_uris) as running:
        yield running
