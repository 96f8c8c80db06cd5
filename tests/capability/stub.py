"""Capability documents written in Python, served in process, in front of an upstream that writes down what it gets."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn

from toolcrib.capability.capability import AT_HOME, Capability
from toolcrib.core.http import OutboundClient
from upstream_app import App, Asked, Told, app

JSON = {"Content-Type": "application/json"}
OK = Told(b'{"ok":true}', 200, JSON)
DEADLINE_S = 10.0


@dataclass
class Stub:
    """The upstream: what it was asked, and what it answers; `answers` by path go before `answer`."""

    app: App
    answer: Any = field(default_factory=lambda: OK)
    answers: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.app.url

    @property
    def asked(self) -> list[Asked]:
        return self.app.asked

    def only(self) -> Asked:
        """The one request since the last look."""
        assert len(self.asked) == 1, [(a.method, a.target) for a in self.asked]
        return self.asked.pop()

    def nothing(self) -> None:
        assert self.asked == []


@contextlib.asynccontextmanager
async def stub() -> AsyncIterator[Stub]:
    """An upstream that answers `{"ok": true}` unless told otherwise."""
    held: list[Stub] = []

    def answer(asked: Asked) -> Any:
        told = held[0].answers.get(asked.path, held[0].answer)
        return told(asked) if callable(told) else told

    async with app(answer) as served:
        held.append(Stub(served))
        yield held[0]


def api(url: str, *operations: Mapping[str, Any], namespace: str = "up", **more: Any) -> dict[str, Any]:
    """A consumed API; every operation brings its `path`."""
    resources = []
    for number, given in enumerate(operations):
        operation = {"name": "op", "method": "GET", **given}
        path = operation.pop("path", "/thing")
        resources.append({"name": f"r{number}", "path": path, "operations": [operation]})
    return {"type": "http", "namespace": namespace, "baseUri": url, "resources": resources, **more}


def face(*operations: Mapping[str, Any], namespace: str = "shop", **more: Any) -> dict[str, Any]:
    """A REST server; every operation brings its `path`, and calls `up.op` unless it says otherwise
    (`mock` for nothing at all)."""
    resources: dict[str, dict[str, Any]] = {}
    for given in operations:
        operation = {"method": "GET", **given}
        if not {"call", "steps", "ref"} & operation.keys() and not operation.pop("mock", False):
            operation["call"] = "up.op"
        path = operation.pop("path", "/x")
        resource = resources.setdefault(path, {"name": f"r{len(resources)}", "path": path, "operations": []})
        resource["operations"].append(operation)
    return {"type": "rest", "namespace": namespace, "port": 8080, "resources": list(resources.values()), **more}


def tools(*given: Mapping[str, Any], namespace: str = "kit") -> dict[str, Any]:
    """An MCP server."""
    return {"type": "mcp", "namespace": namespace, "port": 8081, "tools": [{"description": "d", **t} for t in given]}


def document(consumes: Any, *exposes: Any, binds: Any = (), **more: Any) -> dict[str, Any]:
    """A capability document."""
    consumed = consumes if isinstance(consumes, list) else [consumes]
    return {
        "naftiko": "1.0.0-alpha2",
        "info": {"label": "Test", "description": "d"},
        "binds": list(binds),
        "capability": {"consumes": consumed, "exposes": list(exposes), **more},
    }


@dataclass
class Face:
    """A capability and a client of its first REST server."""

    capability: Capability
    http: httpx.AsyncClient
    send: Callable[..., Any]

    def rules(self, severity: str = "error") -> set[str]:
        return {finding.rule for finding in self.capability.findings if finding.severity == severity}


def loaded(document: Mapping[str, Any], environ: Mapping[str, str] | None = None, **options: Any) -> Capability:
    return Capability.load("doc.yaml", text=json.dumps(document), environ=environ or {}, **options)


@contextlib.asynccontextmanager
async def serving(
    document: Mapping[str, Any], environ: Mapping[str, str] | None = None, *, timeout_s: float = 30.0, **options: Any
) -> AsyncIterator[Face]:
    """The document's first REST server over ASGI, or only the capability when it has none."""
    outbound = OutboundClient(AT_HOME, timeout_s=timeout_s)
    capability = loaded(document, environ, outbound=outbound, **options)

    async def no_rest(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError(scope)

    rest = capability.rest_app() if capability.plan.rest else no_rest
    transport = httpx.ASGITransport(app=rest)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://face", timeout=DEADLINE_S) as http:
            yield Face(capability, http, http.request)
    finally:
        await capability.close()
        await outbound.close()


def binds(*names: str) -> list[dict[str, Any]]:
    """Variables of the environment in the namespace `env`."""
    return [{"namespace": "env", "keys": {name: name for name in names}}]


def param(name: str, location: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "in": location, **more}


def simple(url: str, consumed: Any = None, exposed: Any = None, **more: Any) -> dict[str, Any]:
    return document(api(url, consumed or {}, **more), face(exposed or {}))


async def raw_get(app: Any, raw_path: str, query: bytes = b"", headers: Any = ()) -> int:
    """A GET whose path is what it is: clients tidy paths up."""
    scope = {
        "type": "http", "method": "GET", "path": raw_path, "raw_path": raw_path.encode("latin-1"),
        "query_string": query, "headers": list(headers), "http_version": "1.1",
    }  # fmt: skip
    sent: list[Any] = []
    asked: list[int] = []

    async def receive() -> Any:
        if asked:
            await asyncio.Event().wait()
        asked.append(1)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    status: int = sent[0]["status"]
    return status


async def wait_for(claim: Any) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not claim():
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def real(app: Any) -> AsyncIterator[str]:
    """The application on a socket of its own."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off", ws="none"))
    task = asyncio.create_task(server.serve())
    await wait_for(lambda: server.started or task.done())
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task
