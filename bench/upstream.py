"""A fast upstream: a fixed JSON answer at any path, a ship at /ships, MCP at /mcp (one tool) and /mcp/<n> (n tools).

Both eras of MCP, and as much HTTP/1.1 as a load needs: requests framed by Content-Length, keep-alive, pipelining.
"""

import asyncio
import json
import re
import sys
from functools import cache
from typing import Any

import orjson
import uvloop

from bench.capability.ship import SHIP

ANSWER = b'{"city":"Lisbon","temperature":21.5,"condition":"light rain"}'
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Name of the city"},
        "units": {"type": "string", "enum": ["metric", "imperial"], "description": "Units of the answer"},
    },
    "required": ["city"],
}
ARGUMENTS = b'{"city":"Lisbon","units":"metric"}'
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_TEXT = orjson.dumps(ANSWER.decode())
_RESULT = b'"content":[{"type":"text","text":' + _TEXT + b'}],"structuredContent":' + ANSWER + b',"isError":false'
_INFO = {"name": "bench", "version": "1"}
_META = orjson.dumps({"io.modelcontextprotocol/serverInfo": _INFO})
_MODERN_RESULT = b'{"resultType":"complete","_meta":' + _META + b"," + _RESULT + b"}"
_OLD_RESULT = b"{" + _RESULT + b"}"


def tools(count: int) -> list[dict[str, Any]]:
    """Tools as an MCP server lists them, some 400 bytes each."""
    described = "Current weather at a place: temperature, wind, precipitation and a short description of the sky."
    return [
        {
            "name": f"weather_{i:05d}" if count > 1 else "weather",
            "title": f"Weather {i}",
            "description": described,
            "inputSchema": PARAMETERS,
            "annotations": {"readOnlyHint": True},
        }
        for i in range(count)
    ]


@cache
def _listed(count: int, *, modern: bool) -> bytes:
    result: dict[str, Any] = {"tools": tools(count)}
    if modern:
        result |= {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", "_meta": orjson.loads(_META)}
    return orjson.dumps(result)


class Upstream(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data = data = self._data + data if self._data else data
        answers = []
        while (end := data.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(data, 0, end)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(data) < whole:
                break
            answers.append(_answer(data[: data.find(b"\r\n")], data[end + 4 : whole]))
            self._data = data = data[whole:]
        if answers:
            self._transport.write(b"".join(answers))


def _answer(line: bytes, body: bytes) -> bytes:
    method, path, _ = line.split(b" ")
    if not path.startswith(b"/mcp"):
        return _http(b"200 OK", SHIP if path.startswith(b"/ships") else ANSWER)
    if method != b"POST":
        return _http(b"405 Method Not Allowed", b"")
    message = orjson.loads(body)
    if "id" not in message:
        return _http(b"202 Accepted", b"")
    number = int(path.rpartition(b"/")[2]) if path.count(b"/") > 1 else 1
    modern = "_meta" in message.get("params", {}) and b"2026-07-28" in body
    result = _result(message["method"], number, modern=modern)
    id_ = orjson.dumps(message["id"])
    if result is None:
        error = b'{"code":-32601,"message":"Method not found"}'
        return _http(b"200 OK", b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (id_, error))
    return _http(b"200 OK", b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (id_, result))


def _result(method: str, number: int, *, modern: bool) -> bytes | None:
    match method:
        case "tools/call":
            return _MODERN_RESULT if modern else _OLD_RESULT
        case "tools/list":
            return _listed(number, modern=modern)
        case "initialize":
            return orjson.dumps({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": _INFO})
        case "server/discover":
            discovered = {"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
            return orjson.dumps(discovered | {"_meta": orjson.loads(_META)})
        case _:
            return None


def _http(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Upstream, "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        uvloop.run(_serve())
    except KeyboardInterrupt:
        sys.exit(0)
