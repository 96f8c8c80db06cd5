"""Structured logs: one event per line, request ids from context, secrets hidden.

Events are `noun.problem`, facts are keywords. JSON when standard error is no terminal (or when asked for), coloured
text otherwise. Standard-library loggers (uvicorn, asyncpg) go through the same chain.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import orjson
import structlog

HIDDEN = "[hidden]"
_SECRET_NAME = re.compile(
    r"(authorization|cookie|password|passwd|secret|token|api[-_]?key|credential|private[-_]?key|x-auth)", re.IGNORECASE
)
_NOT_SECRET = frozenset({"key_id", "api_key_id", "lease_token_lost", "vault_key_id", "progress_token"})
_SECRET_TEXT = re.compile(
    r"(tck_)[0-9A-Za-z]{8,}"  # our own keys
    r"|((?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{6,}"  # credentials in a header
    r"|(://[^/\s:@]+:)[^/\s@]+(?=@)",  # the password in a URL
    re.IGNORECASE,
)


def is_secret_name(name: str) -> bool:
    """Whether a header, argument or log fact of this name is treated as a secret."""
    return name not in _NOT_SECRET and _SECRET_NAME.search(name) is not None


def hide_secrets(text: str) -> str:
    """The text with anything that looks like a credential replaced."""
    return _SECRET_TEXT.sub(lambda m: next(filter(None, m.groups())) + HIDDEN, text)


def redact(value: Any) -> Any:
    """A JSON-like value with members of secret names, and credentials inside text, replaced."""
    if isinstance(value, str):
        return hide_secrets(value)
    if isinstance(value, dict):
        return {k: HIDDEN if is_secret_name(str(k)) and v is not None else redact(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact(v) for v in value]
    return value


def _redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        event[key] = HIDDEN if is_secret_name(key) and value is not None else redact(value)
    return event


def _dumps(value: Any, **_: Any) -> str:
    return orjson.dumps(value, default=str).decode()


def configure_logging(level: str = "info", style: Literal["auto", "json", "text"] = "auto") -> None:
    """Set up structlog and the standard library's root logger; to standard error, never standard output."""
    as_json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,  # before redaction: a traceback quotes messages
        _redact_event,
    ]
    if as_json:
        last.append(structlog.processors.JSONRenderer(_dumps))
    else:
        last.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
