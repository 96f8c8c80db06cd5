"""The Cadenya application: 11 operations, in two editions, under paths from the root."""

from typing import Any

from fastapi import FastAPI

from toolcrib import __version__
from toolcrib.api.cadenya.errors import render
from toolcrib.api.cadenya.routes import include_routes
from toolcrib.api.deps import Deps
from toolcrib.api.kit import install_errors
from toolcrib.api.rest_calls import CALL_PATHS


def build(deps: Deps) -> FastAPI:
    """The dialect's app; its OpenAPI document is served by `api/root.py`."""
    app = FastAPI(title="Toolcrib: tool sets (Cadenya dialect)", version=__version__, openapi_url=None, docs_url=None)
    app.state.deps = deps
    install_errors(app, render)
    include_routes(app)
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        for path in ("/v1/tool_sets/{toolSetId}/tools/{id}:call",):
            document["paths"].setdefault(path, CALL_PATHS[path])
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    return app
