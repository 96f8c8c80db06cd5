"""Orkosi's errors: `{"error": {"code", "message"}}` with the usual HTTP status."""

from fastapi.responses import Response

from toolcrib.api.kit import request_id, status_of
from toolcrib.api.render import json_response
from toolcrib.errors import AppError, Kind


def render(error: AppError | None) -> Response:
    """An error as a response; None is an internal one, found in the log by its request id."""
    if error is None:
        return json_response(
            {"error": {"code": "internal", "message": f"internal error (request {request_id.get()})"}}, 500
        )
    body = {"code": error.code, "message": error.message}
    if error.field is not None:
        body["field"] = error.field
    headers = {"WWW-Authenticate": "Bearer"} if error.kind is Kind.UNAUTHENTICATED else {}
    return json_response({"error": body}, status_of(error), headers)
