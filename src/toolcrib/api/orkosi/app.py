"""The Orkosi application; today health, version and the record of tool calls, under `/api`."""

from typing import Any

from fastapi import FastAPI

from toolcrib import __version__
from toolcrib.api.deps import Deps
from toolcrib.api.kit import install_errors
from toolcrib.api.orkosi.errors import render
from toolcrib.api.orkosi.routes_calls import router as calls
from toolcrib.api.orkosi.routes_health import router as health
from toolcrib.api.rest_calls import CALL_PATHS


def build(deps: Deps) -> FastAPI:
    """The dialect's app; its OpenAPI document is served by `api/root.py`."""
    app = FastAPI(title="Toolcrib: main API (Orkosi dialect)", version=__version__, openapi_url=None, docs_url=None)
    app.state.deps = deps
    install_errors(app, render)
    app.include_router(health)
    app.include_router(calls)
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        document["paths"].setdefault("/api/tools/{name}/call", CALL_PATHS["/api/tools/{name}/call"])
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    return app
