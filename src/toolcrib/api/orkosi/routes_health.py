"""Is it up, is it ready, what is it: open to everyone."""

import time
from typing import Any

import asyncpg
from fastapi import APIRouter, Request
from fastapi.responses import Response

from toolcrib import __version__
from toolcrib.api.kit import deps_of
from toolcrib.api.orkosi.wire import Error, HealthResponse, ReadyResponse, VersionResponse
from toolcrib.api.render import json_response

router = APIRouter(prefix="/api", tags=["Health"])
_started = time.monotonic()


def _uptime_s() -> int:
    return int(time.monotonic() - _started)


async def _database_answers(request: Request) -> bool:
    try:
        return bool(await deps_of(request).database.pool.fetchval("SELECT 1", timeout=2) == 1)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False


@router.get("/health", operation_id="getHealth", responses={200: {"model": HealthResponse}, 503: {"model": Error}})
async def health(request: Request) -> Response:
    """Liveness with database, version and uptime; 503 while the database is out of reach."""
    ok = await _database_answers(request)
    body: dict[str, Any] = {
        "status": "ok" if ok else "error",
        "db": "connected" if ok else "error",
        "redis": "not_configured",
        "version": __version__,
        "uptime": _uptime_s(),
    }
    if not ok:
        body["error"] = {"code": "database.unavailable", "message": "The database cannot be reached."}
    return json_response(body, 200 if ok else 503)


@router.get("/ready", operation_id="getReady", responses={200: {"model": ReadyResponse}, 503: {"model": Error}})
async def ready(request: Request) -> Response:
    """Readiness: 200 once the database answers and until this process begins to stop."""
    if deps_of(request).closing.is_set():
        return json_response({"error": {"code": "server.stopping", "message": "This process is stopping."}}, 503)
    if not await _database_answers(request):
        error = {"code": "database.unavailable", "message": "The database cannot be reached."}
        return json_response({"error": error}, 503)
    return json_response({"status": "ok", "db": "connected"})


@router.get("/version", operation_id="getVersion", responses={200: {"model": VersionResponse}})
async def version() -> Response:
    """Version and uptime in seconds."""
    return json_response({"data": {"version": __version__, "uptime": _uptime_s()}})
