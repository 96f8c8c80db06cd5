"""The kinds of failure that every part of Toolcrib raises and every edge renders.

An `AppError` carries a message that is safe to show to the caller. Any other exception is a bug: edges answer
"internal error" with a request id and log it once. No HTTP status appears below `api/`; each dialect maps `Kind` to its
own statuses and shapes in one exhaustive `match`.
"""

from enum import StrEnum
from typing import Any, ClassVar


class Kind(StrEnum):
    """What sort of failure it is; decides the status at each edge."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    INSUFFICIENT_CREDITS = "insufficient_credits"
    PLAN_REQUIRED = "plan_required"
    RATE_LIMITED = "rate_limited"
    UPSTREAM = "upstream"
    UNAVAILABLE = "unavailable"


class AppError(Exception):
    """A failure that the caller may be told about.

    Attributes:
        code: machine-readable `noun.problem`, for example `tool_set.name_missing`.
        message: one sentence for the caller; never contains a secret.
        field: path of the offending input field (`spec.adapter.mcp.url`), or None.
        details: further facts, JSON-serialisable.
    """

    kind: ClassVar[Kind]

    def __init__(self, code: str, message: str, *, field: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.details = details


class Invalid(AppError):
    """The input breaks a rule; `field` names where."""

    kind = Kind.INVALID


class Unauthenticated(AppError):
    """No credentials, or credentials that are unknown, expired or revoked."""

    kind = Kind.UNAUTHENTICATED


class Forbidden(AppError):
    """The caller is known but lacks a scope or role."""

    kind = Kind.FORBIDDEN


class NotFound(AppError):
    """The thing does not exist for this caller (it may exist in another workspace)."""

    kind = Kind.NOT_FOUND


class Conflict(AppError):
    """The change clashes with what is stored."""

    kind = Kind.CONFLICT


class InsufficientCredits(AppError):
    """The balance does not cover the call."""

    kind = Kind.INSUFFICIENT_CREDITS


class PlanRequired(AppError):
    """The caller's plan does not include this."""

    kind = Kind.PLAN_REQUIRED


class RateLimited(AppError):
    """Too many requests; try again later."""

    kind = Kind.RATE_LIMITED


class Upstream(AppError):
    """A system that Toolcrib called failed, answered garbage, or took too long."""

    kind = Kind.UPSTREAM


class Unavailable(AppError):
    """Toolcrib itself cannot serve this now (shutting down, database away)."""

    kind = Kind.UNAVAILABLE
