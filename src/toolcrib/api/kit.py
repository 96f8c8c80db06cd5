"""What the dialects share: transactions at the edge, the caller, strict JSON, and one way to report bad input.

Nothing here knows a dialect's shapes: each dialect gives its own renderer to `install_errors`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Annotated, Any, TypeVar, cast

import asyncpg
import orjson
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from toolcrib.api.deps import Deps
from toolcrib.core.auth import Actor
from toolcrib.core.db import ReadTx, Tx
from toolcrib.core.exchange import BodyTooLarge, read_body
from toolcrib.errors import AppError, Invalid, Kind, NotFound, Unavailable

request_id: ContextVar[str] = ContextVar("request_id", default="-")
Render = Callable[[AppError | None], Response]  # None is an internal error
_MAX_VIOLATIONS = 20
M = TypeVar("M", bound=BaseModel)
DATABASE_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InterfaceError,
    ConnectionError,
    FileNotFoundError,  # the embedded server's socket, while it starts again
)


class MethodNotAllowed(Invalid):
    """The path exists, the method does not."""


def database_unavailable() -> Unavailable:
    """What to answer when one of `DATABASE_AWAY` was raised."""
    return Unavailable("database.unavailable", "The database cannot be reached.")


def deps_of(request: Request) -> Deps:
    """The process's parts."""
    return cast("Deps", request.app.state.deps)


async def _tx(request: Request) -> AsyncIterator[Tx]:
    async with deps_of(request).database.tx() as tx:
        yield tx


async def _read_tx(request: Request) -> AsyncIterator[ReadTx]:
    async with deps_of(request).database.read() as tx:
        yield tx


async def _caller(request: Request) -> Actor:
    return await deps_of(request).sign_in.actor(request.headers.get("authorization"), request.headers.get("x-api-key"))


# scope="function": the transaction ends before the answer is sent, so a failed commit is never answered as a success
InTx = Annotated[Tx, Depends(_tx, scope="function")]
InReadTx = Annotated[ReadTx, Depends(_read_tx, scope="function")]
Caller = Annotated[Actor, Depends(_caller)]
SECURITY = [
    Depends(HTTPBearer(auto_error=False, scheme_name="bearerAuth", description="An API key")),
    Depends(APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="apiKey")),
]


def parse_json(body: bytes) -> Any:
    """The value of a JSON document.

    Raises:
        Invalid: it is not JSON, or has a NUL character, which PostgreSQL cannot store.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Invalid("body.not_json", f"The request body is not JSON: {error}.", field="body") from None
    if b"\\u0000" in body and _has_nul(value):
        raise Invalid("body.nul", "The request body has a NUL character (\\u0000).", field="body")
    return value


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_has_nul(k) or _has_nul(v) for k, v in value.items())
    return isinstance(value, list) and any(map(_has_nul, value))


class _StrictRequest(Request):
    """A request whose body was read and parsed by our rules."""

    def __init__(self, request: Request, body: bytes, value: Any) -> None:
        super().__init__(request.scope, request.receive, request._send)  # noqa: SLF001 - as FastAPI's own examples do
        self._body = body
        self._json = value


class StrictRoute(APIRoute):
    """Signs the caller in before looking at the body, and reads the body by our rules (size, JSON, NUL)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's hook for custom requests."""
        inner = super().get_route_handler()
        has_body = self.body_field is not None
        guarded = any(dependency.dependency is _caller for dependency in self.dependencies) or _uses_caller(self)

        async def handler(request: Request) -> Response:
            if guarded:
                await _caller(request)
            if has_body:
                body = await read_body(request.receive, deps_of(request).max_request_bytes)
                media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
                if body and not (media == "application/json" or media.endswith("+json")):
                    raise Invalid(
                        "body.not_json",
                        f"The body is {media}; send JSON with Content-Type: application/json.",
                        field="body",
                    )
                if body and "content-type" not in request.headers:
                    request.scope["headers"] = [*request.scope["headers"], (b"content-type", b"application/json")]
                request = _StrictRequest(request, body, parse_json(body) if body else None)
            return await inner(request)

        return handler


def _uses_caller(route: APIRoute) -> bool:
    return any(dependency.call is _caller for dependency in route.dependant.dependencies)


def validation_error(errors: Any) -> Invalid:
    """Complaints of pydantic as one error: the first one in the message, all of them in `violations`."""
    violations = []
    for error in list(errors)[:_MAX_VIOLATIONS]:
        location = [part for part in error["loc"] if part not in {"body", "query", "path"}]
        field = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".") or "body"
        message = "is not a known field" if error["type"] == "extra_forbidden" else error["msg"]
        violations.append({"field": field, "description": message})
    first = violations[0]
    return Invalid(
        "input.invalid", f"{first['field']}: {first['description']}", field=first["field"], violations=violations
    )


def checked(model: type[M], value: Any) -> M:
    """`value` as a model. Raises Invalid for the first thing that does not fit."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise validation_error(error.errors()) from None


def _methods(app: FastAPI, path: str) -> str:
    """What a path takes, for the header Allow: the framework names the methods of the first route alone."""
    paths = app.openapi()["paths"].items()
    found = {method.upper() for template, item in paths if compile_path(template)[0].match(path) for method in item}
    return ", ".join(sorted(found))


def install_errors(app: FastAPI, render: Render) -> None:
    """Make `render` the only place that answers errors of this app."""

    async def app_error(_request: Request, error: Exception) -> Response:
        return render(cast("AppError", error))

    async def invalid(_request: Request, error: Exception) -> Response:
        return render(validation_error(cast("RequestValidationError", error).errors()))

    async def http(request: Request, error: Exception) -> Response:
        status = cast("HTTPException", error).status_code
        if status == 405:
            response = render(MethodNotAllowed("request.method", "This path does not take that method."))
            response.headers["Allow"] = _methods(app, request.url.path)
            return response
        if status == 404:
            return render(NotFound("request.path", "There is nothing at this path."))
        return render(Invalid("request.invalid", str(cast("HTTPException", error).detail)))

    async def data(_request: Request, _error: Exception) -> Response:
        return render(Invalid("input.unstorable", "The input has characters or numbers that cannot be stored."))

    async def database_away(_request: Request, _error: Exception) -> Response:
        return render(database_unavailable())

    async def internal(_request: Request, _error: Exception) -> Response:
        return render(None)  # logged once by api/root.py

    handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
        AppError: app_error,
        RequestValidationError: invalid,
        HTTPException: http,
        asyncpg.DataError: data,
        **dict.fromkeys(DATABASE_AWAY, database_away),
        Exception: internal,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def http_status(kind: Kind) -> int:
    """The usual HTTP status of a kind; dialects that differ say so in their own `errors.py`."""
    match kind:
        case Kind.INVALID:
            return 400
        case Kind.UNAUTHENTICATED:
            return 401
        case Kind.INSUFFICIENT_CREDITS:
            return 402
        case Kind.FORBIDDEN | Kind.PLAN_REQUIRED:
            return 403
        case Kind.NOT_FOUND:
            return 404
        case Kind.CONFLICT:
            return 409
        case Kind.RATE_LIMITED:
            return 429
        case Kind.UPSTREAM:
            return 502
        case Kind.UNAVAILABLE:
            return 503


def status_of(error: AppError) -> int:
    """The usual HTTP status of an error, with the finer ones that a kind alone cannot tell."""
    if isinstance(error, BodyTooLarge):
        return 413
    if isinstance(error, MethodNotAllowed):
        return 405
    return http_status(error.kind)
