"""Is the server's port free, and if not, who has it? Part of `toolcrib check`."""

import errno
import http.client
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from toolcrib.cli.findings import Finding
from toolcrib.core.files import read_private
from toolcrib.settings import Settings

_LISTENING = "0A"  # TCP state in /proc/net/tcp


def look_at_port(settings: Settings) -> Finding:
    """The port that `up` and `serve` would listen on, or the server that listens already."""
    place = f"{settings.host}:{settings.port}"
    if running := _own_server(settings.data):
        answer = _version_at(str(running["url"]))
        if answer is None:
            detail = f"process {running['pid']} holds the data folder, but {running['url']} does not answer"
            return Finding("server", "fail", detail, "Look at its log, or stop that process.")
        return Finding("server", "ok", f"Toolcrib {answer} runs: process {running['pid']} at {running['url']}")
    if settings.port == 0:
        return Finding("server", "ok", "not running; it will take a free port")
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        return _taken(settings, place, error)
    return Finding("server", "ok", f"not running; {place} is free")


def _taken(settings: Settings, place: str, error: OSError) -> Finding:
    if error.errno != errno.EADDRINUSE:
        return Finding(
            "server", "fail", f"cannot listen on {place}: {error.strerror}", "Choose another TOOLCRIB_HOST or _PORT."
        )
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104 - asked, not bound
    url = f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
    mend = "Stop it, or choose another TOOLCRIB_PORT."
    if version := _version_at(url):
        detail = f"Toolcrib {version} answers at {place}, but not on this data folder"
        return Finding("server", "warn", detail, mend)
    return Finding("server", "fail", f"{place} is taken by {_holder(settings.port) or 'another program'}", mend)


def _own_server(data: Path) -> dict[str, Any] | None:
    """What the running `up` noted in the data folder, if it is alive."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        note: dict[str, Any] = json.loads(read_private(data / "up.json") or "")
        try:
            os.kill(int(note["pid"]), 0)
        except PermissionError:  # alive, and another user's
            return note
        return note if note["url"] else None
    return None


def _version_at(url: str) -> str | None:
    """The version of the Toolcrib that answers there."""
    parts = urlsplit(url)
    make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = make(parts.hostname or "", parts.port, timeout=3)
    try:
        connection.request("GET", f"{parts.path}/api/version")
        return str(json.loads(connection.getresponse().read(10_000))["data"]["version"])
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _holder(port: int) -> str | None:
    """The process that listens on a port, as far as Linux tells this user."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text("ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        with suppress(OSError):
            if any(str(file.readlink()) in inodes for file in (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text('utf-8', 'replace').strip()})"
    return None
