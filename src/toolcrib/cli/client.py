"""The server as a command sees it: one connection, JSON in and out, refusals in the server's own words.

Where it answers and the key come from options or their variables, else from the sign-in file in the data folder. That
file's key goes to the URL it was made for and to no other.
"""

import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from toolcrib import __version__
from toolcrib.cli.failure import FAILED, REFUSED, UNREACHABLE, WRONG, CommandFailed
from toolcrib.cli.options import load_settings
from toolcrib.cli.sign_in_file import read_sign_in

_DEFAULT_URL = "http://127.0.0.1:8700"
_CONNECT_S = 5.0
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class Refused(CommandFailed):
    """The server answered with an error."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, REFUSED if status < 500 else FAILED)
        self.status = status


def path_of(*parts: str) -> str:
    """A path of these segments, each escaped."""
    return "".join("/" + quote(part, safe=":@") for part in parts)


class Server:
    """The server's HTTP API."""

    def __init__(self, url: str, api_key: str | None, *, timeout_s: float = 120) -> None:
        parts = urlsplit(url)
        try:
            usable = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or True)
        except ValueError:
            usable = False
        if not usable:
            raise CommandFailed(f"{url!r} is not the URL of a server, such as {_DEFAULT_URL}.", WRONG)
        if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
            raise CommandFailed("The API key has characters that no key has.", WRONG)
        self.url = url.rstrip("/")
        self._prefix = parts.path.rstrip("/")
        self._key = api_key
        self._timeout_s = timeout_s
        host, port = parts.hostname or "", parts.port
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(host, port, timeout=_CONNECT_S)
            if parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=_CONNECT_S)
        )

    @classmethod
    def find(cls, *, url: str | None, api_key: str | None, data: Path | None) -> "Server":
        """The server that the options name, or the one of this host."""
        saved = read_sign_in(load_settings(data=data).data)
        url = (url or saved.url or _DEFAULT_URL).rstrip("/")
        key = api_key or (saved.api_key if saved.url and _same(url, saved.url) else None)
        return cls(url, key)

    @property
    def local(self) -> bool:
        """Whether the server runs on this machine."""
        return urlsplit(self.url).hostname in _LOOPBACK

    def get(self, path: str, *, expects: str, **query: Any) -> Any:
        """The answer to GET, an object that has the member `expects`; parameters that are None are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._request("GET", f"{path}?{urlencode(given)}" if given else path, None, expects=expects)

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, expects: str, timeout_s: float | None = None
    ) -> Any:
        """The answer to POST, an object that has the member `expects`."""
        return self._request("POST", path, {} if body is None else body, expects=expects, timeout_s=timeout_s)

    def put(self, path: str, body: Mapping[str, Any], *, expects: str) -> Any:
        """The answer to PUT, an object that has the member `expects`."""
        return self._request("PUT", path, body, expects=expects)

    def delete(self, path: str) -> None:
        """Delete what is there."""
        self._request("DELETE", path, None)

    def pages(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Every item of a list that comes by cursor."""
        cursor = None
        while True:
            page = self.get(path, expects="items", cursor=cursor, limit=200, **query)
            yield from page["items"]
            cursor = page["pagination"]["nextCursor"]
            if not cursor:
                return

    def offered_tools(self) -> Iterator[dict[str, Any]]:
        """The tools that this key may call, as MCP describes them; asks for no more than the scope tools:call."""
        params: dict[str, Any] = {}
        while True:
            request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params}
            answer = self.post("/mcp", request, expects="jsonrpc")
            if "error" in answer:
                raise Refused(answer["error"]["message"], 403)
            yield from answer["result"]["tools"]
            if not (cursor := answer["result"].get("nextCursor")):
                return
            params = {"cursor": cursor}

    def _request(
        self, method: str, path: str, body: Any, *, expects: str | None = None, timeout_s: float | None = None
    ) -> Any:
        headers = {"Accept": "application/json", "User-Agent": f"toolcrib-cli/{__version__}"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        try:
            status, text = self._exchange(method, self._prefix + path, content, headers, timeout_s or self._timeout_s)
        except TimeoutError:
            raise CommandFailed(f"The server at {self.url} does not answer.", UNREACHABLE) from None
        except ssl.SSLError as error:
            raise CommandFailed(f"TLS with {self.url} fails: {error.reason or error}.", UNREACHABLE) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise CommandFailed(
                f"The server at {self.url} cannot be reached ({reason}). Start it with `toolcrib up`, or name another"
                " with --url.",
                UNREACHABLE,
            ) from None
        return self._read(status, text, expects)

    def _exchange(
        self, method: str, target: str, content: bytes | None, headers: dict[str, str], timeout_s: float
    ) -> tuple[int, bytes]:
        reused = self._connection.sock is not None
        try:
            if not reused:
                self._connection.connect()
            if isinstance(self._connection.sock, socket.socket):
                self._connection.sock.settimeout(timeout_s)
            self._connection.request(method, target, content, headers)
            response = self._connection.getresponse()
            return response.status, response.read()
        except (http.client.RemoteDisconnected, ConnectionError):
            self._connection.close()
            if not reused or method != "GET":
                raise
            return self._exchange(method, target, content, headers, timeout_s)  # the server had closed an idle one

    def _read(self, status: int, text: bytes, expects: str | None) -> Any:
        try:
            value = json.loads(text) if text else None
        except ValueError:
            value = None
        if 200 <= status < 300:
            if expects is None or (isinstance(value, dict) and expects in value):
                return value
        elif (said := _message(value)) is not None:
            if status == 401:
                said += " Give one with --api-key or TOOLCRIB_API_KEY; `toolcrib key create` makes one."
            raise Refused(said, status)
        raise CommandFailed(
            f"What answers at {self.url} is no Toolcrib server (HTTP {status}). Name the right one with --url.",
            UNREACHABLE,
        )


def _message(value: Any) -> str | None:
    """What an error says, in any of the server's dialects."""
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    inner = error if isinstance(error, dict) else value
    message = inner.get("message")
    return message if isinstance(message, str) else None


def _same(url: str, other: str) -> bool:
    """Whether two URLs lead to the same server; the names of this machine are one."""
    a, b = urlsplit(url), urlsplit(other)
    hosts = {a.hostname, b.hostname}
    return (a.scheme, a.port, a.path.rstrip("/")) == (b.scheme, b.port, b.path.rstrip("/")) and (
        len(hosts) == 1 or hosts <= _LOOPBACK
    )
