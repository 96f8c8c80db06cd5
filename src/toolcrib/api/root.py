"""The front door: which application a path belongs to, request ids, metrics, and the last net for what went wrong."""

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import asyncpg
import structlog
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolcrib import __version__
from toolcrib.api.kit import DATABASE_AWAY, database_unavailable, request_id
from toolcrib.api.orkosi.errors import render
from toolcrib.api.render import json_response
from toolcrib.api.rest_calls import is_call
from toolcrib.core import telemetry
from toolcrib.core.db import Database
from toolcrib.core.exchange import ClientGone, Exchange
from toolcrib.core.ids import new_id
from toolcrib.errors import NotFound
from toolcrib.queue import queue

_log = structlog.get_logger(__name__)
_ASSETS = "/docs/assets/"
_DOCS_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Toolcrib API</title>
<meta name="viewport" content="width=device-width"><style>body{font:16px/1.5 system-ui;margin:3rem auto;max-width:40rem;
padding:0 1rem}code{background:#eee;padding:.1em .3em;border-radius:3px}</style><h1>Toolcrib API</h1>
<ul>ITEMS</ul><p>MCP is at <code>/mcp</code> and <code>/mcp/{tool set}</code>, metrics at <code>/metrics</code>. Sign in
with <code>Authorization: Bearer &lt;API key&gt;</code> or <code>X-API-Key</code>.</p></html>"""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")


class Root:
    """The ASGI application that a process serves."""

    def __init__(
        self,
        *,
        database: Database,
        mcp: ASGIApp,
        cadenya: FastAPI,
        cadenya_calls: ASGIApp,
        orkosi: FastAPI,
        orkosi_calls: ASGIApp,
    ) -> None:
        self._database = database
        self._mcp, self._cadenya, self._orkosi = mcp, cadenya, orkosi
        self._cadenya_calls, self._orkosi_calls = cadenya_calls, orkosi_calls
        self._assets = StaticFiles(packages=[("fastapi_offline", "static")])  # a docs page asks nobody else's server
        self._documents: Mapping[str, FastAPI] = {"cadenya": cadenya, "orkosi": orkosi}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the start and stop of the server."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        rid = _asked_id(scope) or new_id("req")
        token = request_id.set(rid)
        dialect, app = self._route(scope["path"], scope["method"])
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                telemetry.http_requests(dialect, message["status"]).inc()
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", rid.encode())]
            await send(message)

        try:
            await app(scope, receive, send_with_id)
        except ClientGone:
            pass
        except DATABASE_AWAY as error:
            with structlog.contextvars.bound_contextvars(request_id=rid):
                _log.warning("request.database_unavailable", path=scope["path"], error=type(error).__name__)
            if not started:
                await render(database_unavailable())(scope, receive, send_with_id)
        except Exception:  # noqa: BLE001 - the last net: logged once, answered without a word of it
            with structlog.contextvars.bound_contextvars(request_id=rid):
                _log.exception("request.failed", method=scope["method"], path=scope["path"])
            if not started:
                await render(None)(scope, receive, send_with_id)
        finally:
            request_id.reset(token)

    def _route(self, path: str, method: str) -> tuple[str, ASGIApp]:
        if path == "/mcp" or path.startswith("/mcp/"):
            return "mcp", self._mcp
        if path.startswith(("/v1/tool_sets", "/v1/workspaces/")):
            # by method too: a tool may be addressed as `external_id:call`
            return "cadenya", self._cadenya_calls if method == "POST" and is_call(path) else self._cadenya
        if path.startswith("/api/"):
            tools = path.startswith("/api/tools/") and is_call(path)
            return "orkosi", self._orkosi_calls if tools else self._orkosi
        return "root", self._own

    async def _own(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        path = exchange.path
        if exchange.method not in {"GET", "HEAD"}:
            await render(NotFound("request.path", "There is nothing at this path."))(scope, receive, send)
        elif path == "/metrics":
            await exchange.reply(await self._metrics(), media=b"text/plain; version=0.0.4; charset=utf-8")
        elif path == "/":
            await json_response(self._index())(scope, receive, send)
        elif path.startswith("/openapi/") and (app := self._documents.get(path[9:].removesuffix(".json"))):
            await json_response(app.openapi())(scope, receive, send)
        elif path.startswith("/docs/") and path[6:] in self._documents:
            page = get_swagger_ui_html(
                openapi_url=f"/openapi/{path[6:]}.json",
                title=f"Toolcrib {path[6:]}",
                swagger_js_url=f"{_ASSETS}swagger-ui-bundle.js",
                swagger_css_url=f"{_ASSETS}swagger-ui.css",
                swagger_favicon_url=f"{_ASSETS}favicon.png",
            )
            await page(scope, receive, send)
        elif path.startswith(_ASSETS):
            await self._asset(scope, receive, send)
        elif path in {"/docs", "/docs/"}:
            await exchange.reply(self._docs_page(), media=b"text/html; charset=utf-8")
        else:
            await render(NotFound("request.path", "There is nothing at this path."))(scope, receive, send)

    async def _metrics(self) -> bytes:
        """All metrics; the queue's are counted now, and left out while the database is away."""
        counts: list[queue.QueueCount] = []
        with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            async with self._database.read() as tx:
                counts = await queue.stats(tx)
        telemetry.JOBS.clear()
        for count in counts:
            telemetry.JOBS.labels(count.queue, count.state).set(count.count)
        return generate_latest()

    async def _asset(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._assets({**scope, "path": scope["path"].removeprefix(_ASSETS[:-1])}, receive, send)
        except HTTPException:
            await render(NotFound("request.path", "There is nothing at this path."))(scope, receive, send)

    def _index(self) -> dict[str, Any]:
        return {
            "name": "toolcrib",
            "version": __version__,
            "mcp": "/mcp",
            "health": "/api/health",
            "docs": "/docs",
            "openapi": [f"/openapi/{name}.json" for name in self._documents],
        }

    def _docs_page(self) -> bytes:
        items = "".join(f'<li><a href="/docs/{name}">{app.title}</a></li>' for name, app in self._documents.items())
        return _DOCS_PAGE.replace("ITEMS", items).encode()


def _asked_id(scope: Scope) -> str | None:
    """The client's own request id, if it sent one that can be kept."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if _REQUEST_ID.fullmatch(text) else None
    return None


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing starts or stops here: `wiring` owns every resource."""
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
