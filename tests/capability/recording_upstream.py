"""An upstream that writes down every request byte for byte, and capability files served on free ports in front of it."""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from toolcrib.capability.capability import Capability
from toolcrib.capability.serve import CapabilityHost, Where
from upstream_app import App, Asked, Told, app

ANYWHERE = Where(rest_port=0, mcp_port=0, skill_port=0, control_port=0)
DEADLINE_S = 20.0


def fingerprint(method: str, target: str) -> bytes:
    """JSON as no serialiser writes it, different for every request: unchanged bytes can only have been relayed."""
    return f'{{ "via" :"{method} {target}",\n\t"amount": 1.50, "big": 12345678901234567890123, "u": "\\u00e9\\/" }}\n'.encode()


@dataclass
class Recording:
    """The upstream, what it was asked, and the answers that differ from the fingerprint."""

    app: App
    answers: dict[tuple[str, str], Told]

    @property
    def url(self) -> str:
        return self.app.url

    @property
    def asked(self) -> list[Asked]:
        return self.app.asked

    def only(self) -> Asked:
        """The one request that arrived since the last look."""
        assert len(self.asked) == 1, [(a.method, a.target) for a in self.asked]
        return self.asked.pop()


@contextlib.asynccontextmanager
async def recording() -> AsyncIterator[Recording]:
    """Answers 200 with a fingerprint, 201 to POST, 204 to DELETE, unless told otherwise."""
    answers: dict[tuple[str, str], Told] = {}

    def answer(asked: Asked) -> Told:
        special = answers.get((asked.method, asked.path))
        if special is not None:
            return special
        if asked.method == "DELETE":
            return Told(status=204)
        headers = {"Content-Type": "application/json"}
        return Told(fingerprint(asked.method, asked.target), 201 if asked.method == "POST" else 200, headers)

    async with app(answer) as served:
        yield Recording(served, answers)


@dataclass
class Served:
    """A capability file being served: the URL of each kind of server, and a client of its REST server."""

    capability: Capability
    urls: Mapping[str, str]
    rest: httpx.AsyncClient

    async def rpc(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """One raw JSON-RPC request to the MCP server; the whole answer."""
        content = json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params or {}})
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        answer = await self.rest.post(self.urls["mcp"], content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def call(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """The result of a tool."""
        answer = await self.rpc("tools/call", {"name": name, "arguments": arguments or {}})
        assert "result" in answer, answer
        return answer["result"]

    def rules(self) -> set[str]:
        """The rules of the findings."""
        return {finding.rule for finding in self.capability.findings}


@contextlib.asynccontextmanager
async def served(
    file: Path, *, environ: Mapping[str, str], base_uris: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[Served]:
    """Serve a file as `toolcrib capability serve` does, on free ports."""

    def load(path: str, *, text: str | None = None, previous: Capability | None = None) -> Capability:
        return Capability.load(path, text=text, previous=previous, environ=environ, base_uris=base_uris, **options)

    host = CapabilityHost(load, [str(file)], ANYWHERE)
    await host.start()
    try:
        urls = {mount.kind: mount.url for mount in host.mounts}
        async with httpx.AsyncClient(base_url=urls.get("rest", ""), timeout=DEADLINE_S) as rest:
            yield Served(host.capabilities[str(file)], urls, rest)
    finally:
        await host.stop()
