"""Cadenya's errors: google.rpc.Status `{code, message, details}` with the usual HTTP status."""

from typing import Any

from fastapi.responses import Response

from toolcrib.api.kit import request_id, status_of
from toolcrib.api.render import json_response
from toolcrib.errors import AppError, Kind

_TYPE = "type.googleapis.com/google.rpc."


def rpc_code(kind: Kind) -> int:
    """The gRPC code of a kind."""
    match kind:
        case Kind.INVALID:
            return 3
        case Kind.NOT_FOUND:
            return 5
        case Kind.CONFLICT:
            return 6
        case Kind.FORBIDDEN:
            return 7
        case Kind.RATE_LIMITED:
            return 8
        case Kind.INSUFFICIENT_CREDITS | Kind.PLAN_REQUIRED:
            return 9
        case Kind.UPSTREAM | Kind.UNAVAILABLE:
            return 14
        case Kind.UNAUTHENTICATED:
            return 16


def render(error: AppError | None) -> Response:
    """An error as a response; None is an internal one, found in the log by its request id."""
    if error is None:
        message = f"internal error (request {request_id.get()})"
        return json_response({"code": 13, "message": message, "details": []}, 500)
    details: list[dict[str, Any]] = [{"@type": _TYPE + "ErrorInfo", "reason": error.code, "domain": "toolcrib"}]
    violations = error.details.get("violations")
    if violations is None and error.field is not None:
        violations = [{"field": error.field, "description": error.message}]
    if violations:
        details.append({"@type": _TYPE + "BadRequest", "fieldViolations": violations})
    headers = {"WWW-Authenticate": "Bearer"} if error.kind is Kind.UNAUTHENTICATED else {}
    body = {"code": rpc_code(error.kind), "message": error.message, "details": details}
    return json_response(body, status_of(error), headers)
