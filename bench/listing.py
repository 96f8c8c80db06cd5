"""tools/list of many tools: Toolcrib's pages beside the same list as fixed bytes and from the official SDK's server."""

import http.client
import json
import time
from statistics import median
from typing import Any

import orjson

from bench.servers import Broken, gateway, python_module, temporary_folder

_SIZES = (1_000, 10_000)
_HEADERS = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
_OLD = {"MCP-Protocol-Version": "2025-11-25"}


def measure(times: int) -> list[dict[str, Any]]:
    """A row per size and server."""
    rows = []
    for size in _SIZES:
        with (
            python_module("bench.upstream") as (_, upstream),
            python_module("bench.sdk_server", str(size)) as (_, sdk),
            temporary_folder() as folder,
            gateway(folder / "data") as crib,
        ):
            sync_s = crib.add_mcp("many", f"http://127.0.0.1:{upstream}/mcp/{size}")
            key = {"Authorization": f"Bearer {crib.key}"}
            rows += [
                {
                    "tools": size,
                    "what": "fixed bytes",
                    **_listed(("127.0.0.1", upstream), f"/mcp/{size}", {}, size, times),
                },
                {
                    "tools": size,
                    "what": "Toolcrib",
                    **_listed(crib.address, "/mcp", key, size, times),
                    "sync_s": sync_s,
                },
                {"tools": size, "what": "SDK low-level server", **_listed(("127.0.0.1", sdk), "/mcp", {}, size, times)},
            ]
    return rows


def _listed(address: tuple[str, int], path: str, headers: dict[str, str], size: int, times: int) -> dict[str, Any]:
    """Medians of several listings, each page by page on one connection."""
    connection = http.client.HTTPConnection(*address, timeout=60)
    first, whole = [], []
    try:
        for _ in range(times):
            count = pages = length = 0
            cursor: str | None = None
            took_s = 0.0
            while pages == 0 or cursor:
                params = {"cursor": cursor} if cursor else {}
                body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params})
                began = time.perf_counter()
                connection.request("POST", path, body, _HEADERS | _OLD | headers)
                response = connection.getresponse()
                answer = response.read()
                took_s += time.perf_counter() - began
                if pages == 0:
                    first.append(took_s)
                result = orjson.loads(answer).get("result", {})
                if response.status != 200 or "tools" not in result:
                    raise Broken(f"tools/list: {response.status} {answer[:500]!r}")
                count, pages, length = count + len(result["tools"]), pages + 1, length + len(answer)
                cursor = result.get("nextCursor")
            whole.append(took_s)
            if count != size:
                raise Broken(f"{count} of {size} tools were listed")
    finally:
        connection.close()
    return {"first_ms": median(first) * 1000, "all_ms": median(whole) * 1000, "pages": pages, "bytes": length}
