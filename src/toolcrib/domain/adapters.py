"""Adapters: how a tool set reaches its upstream, what makes one valid, and which of its parts are secrets.

Header values, the environment of a command and the values of a capability's binds are secrets: sealed in the row, and
hidden behind `MASK` for those who may not write them. Writing `MASK` back keeps what is stored.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import msgspec

from toolcrib.core.auth import Actor
from toolcrib.core.db import Row
from toolcrib.core.log import HIDDEN
from toolcrib.core.vault import Vault
from toolcrib.domain.tool_filters import Approvals, ToolFilter, check_filter
from toolcrib.errors import Invalid

MASK = "********"
Transport = Literal["auto", "http", "sse", "stdio"]
_MAX_SOURCE = 1_000_000
_MAX_ENV = 100_000  # characters of names and values
_SHORTEST_SECRET = 6  # shorter ones would hide ordinary words
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BIND = re.compile(r"[^\s=\x00-\x20\x7f]{1,255}")  # files of secrets have keys such as `api-token`
_MAX_BASE_URIS = 200
_OWN_HEADERS = frozenset(  # set by the HTTP client itself, or about one hop only
    {
        *("accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    }
)


class HttpAdapter(msgspec.Struct, frozen=True, omit_defaults=True):
    """An HTTP API: tools add their path to `base_url` and their headers to `headers`."""

    base_url: str | None = None
    headers: dict[str, str] = {}


class McpAdapter(msgspec.Struct, frozen=True, omit_defaults=True):
    """An MCP server behind a URL (streamable HTTP or SSE), or a command that speaks MCP on its standard streams."""

    url: str | None = None
    transport: Transport = "auto"
    headers: dict[str, str] = {}
    command: str | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str | None = None
    include: ToolFilter | None = None
    exclude: ToolFilter | None = None
    approvals: Approvals | None = None


class CapabilityAdapter(msgspec.Struct, frozen=True, omit_defaults=True):
    """A capability file: its text, where the APIs that it consumes are, and (`env`) the values of its binds."""

    source: str
    base_uris: dict[str, str] = {}
    env: dict[str, str] = {}
    include: ToolFilter | None = None
    exclude: ToolFilter | None = None
    approvals: Approvals | None = None


Adapter = HttpAdapter | McpAdapter | CapabilityAdapter
SyncedAdapter = McpAdapter | CapabilityAdapter  # those whose tools somebody else lists
SYNCED_KINDS = ("mcp", "capability")


def check_url(url: str, field: str) -> None:
    """Raise Invalid unless `url` is an absolute http(s) URL without sign-in data or fragment."""
    try:
        parts = urlsplit(url)
        problem = (
            "is not an absolute http or https URL"
            if parts.scheme not in {"http", "https"} or not parts.hostname
            else "carries a user name or password; put credentials into headers"
            if parts.username is not None or parts.password is not None
            else "has a fragment"
            if parts.fragment
            else "has characters that no URL has"
            if len(url) > 2048 or any(ord(c) <= 32 or ord(c) == 127 for c in url) or "\\" in url
            else None
        )
        _ = parts.port
    except ValueError:
        problem = "is not a URL"
    if problem:
        raise Invalid("url.invalid", f"The URL {problem}.", field=field)


def check_headers(headers: Mapping[str, str], field: str) -> None:
    """Raise Invalid for a header that cannot or must not be sent."""
    if len(headers) > 100:
        raise Invalid("headers.too_many", "At most 100 headers.", field=field)
    for name, value in headers.items():
        if not _HEADER.fullmatch(name):
            raise Invalid("headers.name_invalid", f"{name!r} is not a header name.", field=f"{field}.{name}")
        if name.lower() in _OWN_HEADERS:
            raise Invalid("headers.reserved", f"The header {name} is set by Toolcrib itself.", field=f"{field}.{name}")
        check_header_value(value, f"{field}.{name}")


def check_header_value(value: str, field: str) -> None:
    """Raise Invalid for text that no header can carry."""
    if any((ord(c) < 32 and c != "\t") or ord(c) == 127 or ord(c) > 255 for c in value) or len(value) > 8192:
        raise Invalid("headers.value_invalid", "A header value is one line of at most 8192 characters.", field=field)


def check_adapter(actor: Actor, adapter: Adapter | None, *, commands: bool) -> None:
    """Raise Invalid for an adapter that cannot work; `commands` says whether any may run a command.

    Raises:
        Forbidden: it runs a command and the actor lacks `commands:write`.
    """
    if isinstance(adapter, HttpAdapter):
        if adapter.base_url is not None:
            check_url(adapter.base_url, "spec.adapter.http.baseUrl")
            if "?" in adapter.base_url:
                raise Invalid("url.invalid", "The base URL has a query.", field="spec.adapter.http.baseUrl")
        check_headers(adapter.headers, "spec.adapter.http.headers")
    elif isinstance(adapter, McpAdapter):
        _check_mcp(actor, adapter, commands=commands)
    elif isinstance(adapter, CapabilityAdapter):
        _check_capability(adapter)


def _check_capability(adapter: CapabilityAdapter) -> None:
    at = "spec.adapter.capability"
    if not adapter.source.strip() or "\0" in adapter.source or len(adapter.source) > _MAX_SOURCE:
        message = f"A capability is a YAML text of at most {_MAX_SOURCE} characters."
        raise Invalid("capability.source_invalid", message, field=f"{at}.source")
    if len(adapter.base_uris) > _MAX_BASE_URIS:
        raise Invalid("capability.base_uris", f"At most {_MAX_BASE_URIS} base URIs.", field=f"{at}.baseUris")
    for namespace, url in adapter.base_uris.items():
        check_url(url, f"{at}.baseUris.{namespace}")
    if (bad := next((name for name in adapter.env if not _BIND.fullmatch(name)), None)) is not None:
        raise Invalid("env.name_invalid", f"{bad[:100]!r} is not the name of a value.", field=f"{at}.env")
    if sum(len(name) + len(value) for name, value in adapter.env.items()) > _MAX_ENV:
        raise Invalid("env.too_long", f"The values have at most {_MAX_ENV} characters in all.", field=f"{at}.env")
    _check_choice(adapter, at)


def _check_choice(adapter: SyncedAdapter, at: str) -> None:
    check_filter(adapter.include, f"{at}.includeTools")
    check_filter(adapter.exclude, f"{at}.excludeTools")
    if adapter.approvals:
        check_filter(adapter.approvals.only, f"{at}.toolApprovals.only")


def _check_mcp(actor: Actor, adapter: McpAdapter, *, commands: bool) -> None:
    at = "spec.adapter.mcp"
    if (adapter.url is None) == (adapter.command is None):
        raise Invalid("mcp.target", "An MCP adapter needs a url, or a command to run, and not both.", field=f"{at}.url")
    if adapter.command is not None:
        actor.must("commands:write")
        if not commands:
            raise Invalid("mcp.stdio_off", "This server does not run commands (TOOLCRIB_STDIO).", field=f"{at}.command")
        texts = (adapter.command, *adapter.args, *adapter.env.values(), adapter.cwd or "")
        if not adapter.command.strip() or any("\0" in text for text in texts):
            raise Invalid("mcp.command_invalid", "The command is empty or has NUL characters.", field=f"{at}.command")
        if sum(map(len, texts)) > 100_000:
            raise Invalid("mcp.command_long", "The command is longer than 100,000 characters.", field=f"{at}.args")
        if (bad := next((name for name in adapter.env if not _ENV.fullmatch(name)), None)) is not None:
            raise Invalid("mcp.env_invalid", f"{bad!r} is not a variable name.", field=f"{at}.env")
    elif adapter.url is not None:
        if adapter.transport == "stdio":
            raise Invalid("mcp.transport", "The transport stdio needs a command, not a url.", field=f"{at}.transport")
        check_url(adapter.url, f"{at}.url")
    check_headers(adapter.headers, f"{at}.headers")
    _check_choice(adapter, at)


_KINDS = {HttpAdapter: "http", McpAdapter: "mcp", CapabilityAdapter: "capability"}


class Secrets(msgspec.Struct, omit_defaults=True):
    """What is sealed of an adapter."""

    headers: dict[str, str] = {}
    env: dict[str, str] = {}


def split_secrets(adapter: Adapter | None) -> tuple[str | None, dict[str, Any], Secrets]:
    """Kind, what may be shown, and what may not."""
    if adapter is None:
        return None, {}, Secrets()
    shown: dict[str, Any] = msgspec.to_builtins(adapter)
    secrets = Secrets(shown.pop("headers", {}), shown.pop("env", {}))
    return _KINDS[type(adapter)], shown, secrets


def open_adapter(row: Row, vault: Vault, *, reveal: bool, reveal_env: bool | None = None) -> Adapter | None:
    """The adapter of a `tool_set` row; with `reveal` False its secrets are masked.

    `reveal_env` decides for the environment of a command; the values of a capability's binds are like headers.
    """
    if row["kind"] is None:
        return None
    secrets = Secrets()
    if row["sealed"] is not None:
        secrets = msgspec.json.decode(vault.open(row["sealed"], row["id"]), type=Secrets)
    if not reveal:
        secrets.headers = dict.fromkeys(secrets.headers, MASK)
    if not (reveal if reveal_env is None or row["kind"] == "capability" else reveal_env):
        secrets.env = dict.fromkeys(secrets.env, MASK)
    if row["kind"] == "capability":
        return msgspec.convert({**row["config"], "env": secrets.env}, CapabilityAdapter)
    shown = {**row["config"], "headers": secrets.headers}
    if row["kind"] == "http":
        return msgspec.convert(shown, HttpAdapter)
    return msgspec.convert({**shown, "env": secrets.env}, McpAdapter)


def without_secrets(text: str, adapter: Adapter | None) -> str:
    """Text that an upstream wrote, without the secrets that it got from us."""
    if adapter is None:
        return text
    secrets = split_secrets(adapter)[2]
    values = [*secrets.headers.values(), *secrets.env.values()]
    parts = {part for value in values for part in (value, *value.split()) if len(part) >= _SHORTEST_SECRET}
    written = {form for part in parts for form in (part, json.dumps(part)[1:-1], _as_json(part), quote(part, safe=""))}
    for form in sorted(written, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    return text


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def unmask(new: Adapter | None, old: Adapter | None) -> Adapter | None:
    """The new adapter with every masked secret taken from the old one."""
    if new is None:
        return None
    at = f"spec.adapter.{_KINDS[type(new)]}"
    stored = split_secrets(old)[2]
    if not isinstance(new, CapabilityAdapter):
        new = msgspec.structs.replace(new, headers=_keep(new.headers, stored.headers, f"{at}.headers"))
    if not isinstance(new, HttpAdapter):
        new = msgspec.structs.replace(new, env=_keep(new.env, stored.env, f"{at}.env"))
    return new


def _keep(new: dict[str, str], old: dict[str, str], field: str) -> dict[str, str]:
    for name, value in new.items():
        if value == MASK and name not in old:
            raise Invalid(
                "secret.masked", f"{name} has no stored value that the mask could stand for.", field=f"{field}.{name}"
            )
    return {name: old[name] if value == MASK else value for name, value in new.items()}
