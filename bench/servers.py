"""Starts what is measured, and ends it: Toolcrib, our small servers, nginx. Nothing outlives its `with` block."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
_PATIENCE_S = 60


class Broken(Exception):
    """Something that is measured did not do what it is measured at."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's account can pass through when we are root."""
    with tempfile.TemporaryDirectory(prefix="toolcrib-bench-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@contextmanager
def started(*command: str, log: Path | None = None) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A process and the JSON line with which it says that it serves."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOOLCRIB_")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT / "src"), environment.get("PYTHONPATH"))))
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("w")) if log else None
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment
        )
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                said = log.read_text()[-2000:] if log else ""
                raise Broken(f"{' '.join(command)} ended with {process.wait(_PATIENCE_S)} before it served\n{said}")
            yield process, json.loads(line)
        finally:
            stop(process)


def stop(process: subprocess.Popen[str]) -> float:
    """End a process as Ctrl-C would; returns the seconds it took."""
    began = time.perf_counter()
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    took_s = time.perf_counter() - began
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
    return took_s


@contextmanager
def python_module(name: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """One of our small servers and its port."""
    with started(sys.executable, "-m", name, *arguments) as (process, line):
        yield process, int(line["port"])


@dataclass(slots=True)
class Gateway:
    """A running Toolcrib."""

    process: subprocess.Popen[str]
    url: str
    key: str

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 80

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer to a request; raises Broken for anything but success."""
        status, answer = request(
            self.address, method, path, None if body is None else json.dumps(body).encode(), self.key
        )
        if status != 200:
            raise Broken(f"{method} {path}: {status} {answer[:500]!r}")
        return json.loads(answer)

    def add_mcp(self, name: str, url: str) -> float:
        """Add an MCP server as a tool set; returns the seconds until its tools are there."""
        began = time.perf_counter()
        adapter = {"mcp": {"url": url}}
        made = self.ask("POST", "/v1/tool_sets", {"metadata": {"name": name}, "spec": {"adapter": adapter}})
        while True:
            events = self.ask("GET", f"/v1/tool_sets/{made['metadata']['id']}/events?limit=20")["items"]
            ended = next((e["event"] for e in events if e["event"]["type"] != "sync_started"), None)
            if ended:
                break
            if time.perf_counter() - began > _PATIENCE_S:
                raise Broken(f"the tools of {url} never came")
            time.sleep(0.01)
        if ended["type"] != "sync_completed":
            raise Broken(f"the tools of {url} could not be read: {ended}")
        return time.perf_counter() - began

    def add_http(self, name: str, url: str, tool: str, path: str, parameters: dict[str, Any]) -> None:
        """Add an HTTP API with one tool that POSTs its arguments."""
        spec: dict[str, Any] = {"adapter": {"http": {"baseUrl": url}}}
        made = self.ask("POST", "/v1/tool_sets", {"metadata": {"name": name}, "spec": spec})
        spec = {
            "config": {"http": {"requestMethod": "POST", "path": path}},
            "description": "",
            "parameters": parameters,
            "status": "TOOL_STATUS_AVAILABLE",
        }
        self.ask("POST", f"/v1/tool_sets/{made['metadata']['id']}/tools", {"metadata": {"name": tool}, "spec": spec})


@contextmanager
def gateway(data: Path, *, key: str | None = None) -> Iterator[Gateway]:
    """`toolcrib up` on a data folder; `key` is known from its first start."""
    command = (sys.executable, "-m", "toolcrib", "up", "--data", str(data), "--port", "0", "--json")
    with started(*command, log=data.with_name(data.name + ".log")) as (process, line):
        yield Gateway(process, line["url"], line["api_key"] or key or "")


def request(
    address: tuple[str, int], method: str, path: str, body: bytes | None = None, key: str | None = None
) -> tuple[int, bytes]:
    """Status and body of one request on a connection of its own."""
    connection = http.client.HTTPConnection(*address, timeout=_PATIENCE_S)
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@contextmanager
def nginx(folder: Path, port: int, server: str, upstream: str = "") -> Iterator[int]:
    """One nginx worker that listens on a port; yields the pid of its master."""
    folder.mkdir()
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"""{"user root;" if os.geteuid() == 0 else ""}
worker_processes 1;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
{temporary}{upstream}
  server {{ listen 127.0.0.1:{port}; {server} }}
}}
"""
    )
    process = subprocess.Popen(
        [shutil.which("nginx") or "nginx", "-p", str(folder), "-c", "nginx.conf", "-e", f"{folder}/error.log"],
        text=True,
    )
    try:
        _await_port(port, process)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_PATIENCE_S)


def has_nginx() -> bool:
    """Whether nginx is installed."""
    return shutil.which("nginx") is not None


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _await_port(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise Broken("nginx did not start") from None
            time.sleep(0.01)
        else:
            return
