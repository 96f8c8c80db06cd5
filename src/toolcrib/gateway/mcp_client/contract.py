"""What callers of the MCP client see: which server to reach, what came back, and how it can fail.

Results stay the bytes that the server sent. An error's message is safe to show: text that a server or its standard
error wrote is cut, stripped of control characters and of the endpoint's own secrets before it gets here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from toolcrib.errors import AppError, Upstream

OnProgress = Callable[[bytes], None]

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class McpEndpoint:
    """One way to reach one MCP server with one set of credentials.

    Attributes:
        key: identity for pooling; it must change whenever anything else here changes.
        transport: `auto` tries streamable HTTP and falls back to the HTTP+SSE transport of 2024-11-05.
        headers: sent with every HTTP request; names that the protocol itself uses are ignored.
        env: added to the part of our own environment that a started process may see.
        cwd: working directory of a started process; None means ours.
    """

    key: str
    transport: Literal["auto", "http", "sse", "stdio"]
    url: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    command: str | None = None
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    cwd: str | None = None


@dataclass(slots=True)
class McpResult:
    """The answer to a tool call.

    Attributes:
        result: the JSON object of `result` as the server sent it; it always has a `content` list.
        is_error: whether the tool says that it failed.
    """

    result: bytes
    is_error: bool


@dataclass(slots=True)
class McpToolList:
    """Every tool that a server offers.

    Attributes:
        tools: the tools as sent, unknown members kept, in the server's order, names unique.
        problems: why entries were left out, one sentence each; the rest of the list is still good.
    """

    protocol_version: str
    server_name: str
    server_version: str
    tools: list[dict[str, Any]]
    problems: list[str] = field(default_factory=list)


class McpUpstreamError(Upstream):
    """An MCP server could not be reached, broke the protocol, took too long, or answered with a JSON-RPC error.

    Codes: mcp.unreachable, mcp.timeout, mcp.protocol_error, mcp.process_exited, mcp.too_large, mcp.unauthorized,
    mcp.rpc_error and mcp.closed (the connection ended before the answer came).

    Attributes:
        rpc_code, rpc_message: the server's own error, with mcp.rpc_error only.
        rpc_data: the raw JSON of that error's `data`, or None.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str | None = None,
        rpc_code: int | None = None,
        rpc_message: str | None = None,
        rpc_data: bytes | None = None,
        **details: Any,
    ) -> None:
        super().__init__(code, message, field=field, **details)
        self.rpc_code = rpc_code
        self.rpc_message = rpc_message
        self.rpc_data = rpc_data


ErrorT = TypeVar("ErrorT", bound=AppError)


def again(error: ErrorT) -> ErrorT:
    """The same failure for another waiter: an exception raised several times would gather all their tracebacks."""
    copy = type(error)(error.code, error.message, field=error.field, **error.details)
    if isinstance(error, McpUpstreamError) and isinstance(copy, McpUpstreamError):
        copy.rpc_code, copy.rpc_message, copy.rpc_data = error.rpc_code, error.rpc_message, error.rpc_data
    return copy


class SessionLost(Exception):
    """The server does not know our session, so it did not process the request: open a new one and ask again."""

    def __init__(self, error: McpUpstreamError) -> None:
        super().__init__(error.message)
        self.error = error


def plain_text(text: str, limit: int = 500) -> str:
    """Foreign text made fit for an error message: no control characters or terminal codes, at most `limit` long."""
    text = _CONTROL.sub("", text).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"
