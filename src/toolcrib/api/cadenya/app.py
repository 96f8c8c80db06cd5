"""The Cadenya application: 11 operations, in two editions, under paths from the root."""

import re
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from toolcrib import __version__
from toolcrib.api.cadenya.errors import render
from toolcrib.api.cadenya.routes import include_routes
from toolcrib.api.deps import Deps
from toolcrib.api.kit import install_errors
from toolcrib.api.rest_calls import CALL_PATHS

_KEPT = re.compile(r"%(?=2[fF]|25)")


class _SlashInIds:
    """Keeps `%2F` and `%25` of the path encoded, so that an external id may have a slash; `routes.py` decodes them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path", b"").decode("ascii", "replace")
        if "%" in raw:
            scope = {**scope, "path": unquote(_KEPT.sub("%25", raw.partition("?")[0]))}
        await self._app(scope, receive, send)


def build(deps: Deps) -> FastAPI:
    """The dialect's app; its OpenAPI document is served by `api/root.py`."""
    app = FastAPI(title="Toolcrib: tool sets (Cadenya dialect)", version=__version__, openapi_url=None, docs_url=None)
    app.state.deps = deps
    app.add_middleware(_SlashInIds)
    install_errors(app, render)
    include_routes(app)
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        document["paths"] |= {path: item for path, item in CALL_PATHS.items() if path.startswith("/v1/")}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    return app
