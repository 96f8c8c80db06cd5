"""The face of a planned MCP server: tools, resources and prompts of a capability file, over HTTP or standard streams.

The protocol is in `core/mcp_server`. Whatever goes wrong while a tool runs is a result with `isError`, because the
model must see it; unknown names are protocol errors. Signing in is the business of an application around this one.
"""

# ruff: noqa: ARG002 - a face is told more than this one needs

import asyncio
import base64
import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import orjson
import re2  # type: ignore[import-untyped]
import structlog
from starlette.types import Message, Receive, Scope, Send

from toolcrib.capability.expose.mcp_files import guess_type, read_file
from toolcrib.capability.expose.mcp_listing import (
    Pages,
    cache_hints,
    prefix_of,
    prompt_pages,
    resource_pages,
    template_pages,
    tool_pages,
)
from toolcrib.capability.plan import PlannedMcp, PlannedPrompt, PlannedResource, PlannedTool
from toolcrib.core.exchange import ClientGone, Exchange
from toolcrib.core.json_schema import compile_schema, first_complaint
from toolcrib.core.mcp_server.face import About, Asked, Face, Listing, OnProgress
from toolcrib.core.mcp_server.http import McpHttp
from toolcrib.core.mcp_server.standard_streams import Reader, Writer, standard_streams
from toolcrib.core.mcp_server.stdio import McpStdio
from toolcrib.core.mcp_server.tool_result import as_text, failure, media_type, shaped_result
from toolcrib.core.mcp_server.wire import INTERNAL_ERROR, INVALID_PARAMS, Params, RpcError
from toolcrib.errors import AppError, Invalid, NotFound

_log = structlog.get_logger(__name__)
_PATHS: Final = frozenset({"", "/mcp"})
_MAX_URI: Final = 8192  # characters
_VARIABLE: Final = re.compile(r"\{([A-Za-z0-9_]+)\}")
_ARGUMENT: Final = re.compile(r"\{\{([A-Za-z0-9_]+)\}\}")
_NOTHING: Final = re2.compile(r"[^\x00-\x{10ffff}]")  # matches no text
_MAX_SHOWN: Final = 256  # characters of a caller's text in a message


class McpApp:
    """An MCP server; itself the ASGI application."""

    def __init__(
        self, planned: PlannedMcp, *, version: str, max_message_bytes: int, allowed_origins: frozenset[str]
    ) -> None:
        self._face = _PlanFace(planned, version)
        self._closing = asyncio.Event()
        self._max_message_bytes = max_message_bytes
        self._http = McpHttp(
            self._face, max_request_bytes=max_message_bytes, allowed_origins=allowed_origins, closing=self._closing
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve `/mcp` and `/`, or the start and stop of the server."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._http(scope, receive, watched)
        except ClientGone:
            pass
        except Exception:  # noqa: BLE001 - the last net: logged once, answered without a word of it
            _log.exception("mcp.failed", path=scope["path"])
            if not started:
                error = RpcError(INTERNAL_ERROR, "Internal error").body(b"null")
                await Exchange(scope, receive, send).reply(error, 500)

    async def serve_stdio(self, reader: Reader | None = None, writer: Writer | None = None) -> None:
        """Serve one client on a pair of streams until its input ends; without streams, on the standard ones."""
        if reader is not None and writer is not None:
            await McpStdio(self._face, None, writer, max_line_bytes=self._max_message_bytes).serve(reader)
            return
        with standard_streams() as (own_reader, own_writer):
            await McpStdio(self._face, None, own_writer, max_line_bytes=self._max_message_bytes).serve(own_reader)

    def replace(self, planned: PlannedMcp) -> None:
        """Serve another plan from now on; calls under way end as they began, clients hear of lists that changed."""
        for kind in self._face.replace(planned):
            self._face.tell(kind)

    def notify_changed(self) -> None:
        """Tell connected clients to read every list again."""
        for kind in sorted(self._face.about.told()):
            self._face.tell(kind)

    def close(self) -> None:
        """End the streams of connected clients, so that the web server can stop."""
        self._closing.set()


def mcp_app(
    planned: PlannedMcp,
    *,
    version: str,
    max_message_bytes: int = 4 * 1024 * 1024,
    allowed_origins: frozenset[str] = frozenset(),
) -> McpApp:
    """The server of a plan.

    Args:
        planned: what is served.
        version: what the server says of itself.
        max_message_bytes: largest request body, or line on standard streams.
        allowed_origins: web origins other than the server's own that may use it.
    """
    return McpApp(planned, version=version, max_message_bytes=max_message_bytes, allowed_origins=allowed_origins)


class _Tool:
    """A tool with its validator."""

    __slots__ = ("_planned", "_validator")

    def __init__(self, planned: PlannedTool) -> None:
        self._planned = planned
        self._validator = compile_schema(planned.input_schema)

    async def call(self, arguments: bytes) -> bytes:
        """The tool's result; raises Invalid when the arguments do not fit its schema."""
        planned = self._planned
        try:
            values = orjson.loads(arguments)
        except orjson.JSONDecodeError as error:
            raise Invalid("arguments.not_json", f"The arguments are not JSON: {error}.", field="arguments") from None
        if not isinstance(values, dict):
            raise Invalid("arguments.not_object", "The arguments are a JSON object.", field="arguments")
        if complaint := first_complaint(self._validator, values):
            path, reason = complaint
            raise Invalid("arguments.invalid", f"arguments{path}: {reason}", field=f"arguments{path}")
        try:
            reply = await planned.run(values)
        except AppError as error:
            return failure(error.message)
        promised = planned.output_schema is not None
        return shaped_result(reply.status, reply.media or "", reply.body, planned.structured, promised=promised)[0]


class _Served:
    """A plan in the form in which it is served; never changes."""

    def __init__(self, planned: PlannedMcp, version: str) -> None:
        self.planned = planned
        self.hints = cache_hints(planned.server.extension)
        self.tools = {tool.name: _Tool(tool) for tool in planned.tools.values()}
        self.tool_pages = tool_pages(planned, self.hints)
        self.template_pages = template_pages(planned, self.hints)
        self.prompt_pages = prompt_pages(planned, self.hints)
        self.changes = any(resource.folder is not None for resource in planned.resources)  # files come and go
        self.fixed_resources = None if self.changes else resource_pages(planned, self.hints)
        self.concrete = {r.uri: r for r in planned.resources if r.folder is None and not r.variables}
        self.patterns = [
            (resource, prefix_of(resource) if resource.folder is not None else _uri_pattern(resource))
            for resource in planned.resources
            if resource.uri not in self.concrete
        ]
        capabilities: dict[str, dict[str, Any]] = {"tools": {"listChanged": True}}
        if planned.resources:
            capabilities["resources"] = {"listChanged": True}
        if planned.prompts:
            capabilities["prompts"] = {"listChanged": True}
        name = {"name": planned.server.namespace, "version": version}
        self.about = About(name, capabilities, planned.server.description)

    async def resource_pages(self) -> Pages:
        """The resources that there are now."""
        if self.fixed_resources is not None:
            return self.fixed_resources
        return await asyncio.to_thread(resource_pages, self.planned, self.hints)

    def find(self, uri: str) -> tuple[PlannedResource, dict[str, str], str]:
        """The resource behind a URI, with the values of its variables, or the path below its folder.

        Raises:
            RpcError: there is none.
        """
        if resource := self.concrete.get(uri):
            return resource, {}, ""
        if len(uri) <= _MAX_URI:
            for resource, pattern in self.patterns:
                if isinstance(pattern, str):
                    if uri.startswith(pattern):
                        return resource, {}, uri[len(pattern) :]
                elif match := pattern[0].fullmatch(uri):
                    with contextlib.suppress(UnicodeDecodeError):
                        values = [unquote(value, errors="strict") for value in match.groups()]
                        return resource, dict(zip(pattern[1], values, strict=True)), ""
        raise RpcError(INVALID_PARAMS, f"Unknown resource: {uri[:_MAX_SHOWN]}", {"uri": uri[:_MAX_SHOWN]})


class _PlanFace(Face[None]):
    """Translates between MCP and the plan that is served now."""

    def __init__(self, planned: PlannedMcp, version: str) -> None:
        self._version = version
        self._served = _Served(planned, version)
        self._listeners: set[Callable[[Listing], None]] = set()
        self.about = self._served.about

    def replace(self, planned: PlannedMcp) -> list[Listing]:
        """Swap the plan; returns the lists that are not what they were."""
        before, now = self._served, _Served(planned, self._version)
        self._served, self.about = now, now.about
        changed: list[Listing] = []
        if _first(before.tool_pages) != _first(now.tool_pages):
            changed.append("tools")
        resources = before.planned.resources, now.planned.resources
        if [_shown(r) for r in resources[0]] != [_shown(r) for r in resources[1]]:
            changed.append("resources")
        if _first(before.prompt_pages) != _first(now.prompt_pages):
            changed.append("prompts")
        return changed

    def tell(self, kind: Listing) -> None:
        """Let the connected clients know that a list changed."""
        for listener in list(self._listeners):
            listener(kind)

    async def admit(self, exchange: Exchange) -> None:
        if exchange.path.rstrip("/") not in _PATHS:
            raise NotFound("request.path", "There is nothing at this path; MCP is at /mcp.")

    def identity(self, caller: None) -> str:
        return ""  # nobody signs in here; their sessions tell clients apart

    async def check_call(self, asked: Asked[None], params: Params) -> None:
        """No tool of a plan wants its arguments in headers."""

    async def cancel_elsewhere(self, key: str) -> None:
        """There is no other process."""

    async def call_tool(
        self,
        asked: Asked[None],
        name: str,
        arguments: bytes,
        on_progress: OnProgress | None,
    ) -> bytes:
        tool = self._served.tools.get(name)
        if tool is None:
            raise NotFound("tool.unknown", "There is no such tool.")
        try:
            return await tool.call(arguments)
        except AppError:
            raise
        except Exception:  # noqa: BLE001 - the last net: logged once, answered without a word of it
            _log.exception("mcp.tool_failed", tool=name)
            raise RpcError(INTERNAL_ERROR, "Internal error") from None

    async def list_tools(self, asked: Asked[None], cursor: str | None) -> bytes:
        return self._served.tool_pages.page(cursor, modern=asked.modern)

    async def list_resources(self, asked: Asked[None], cursor: str | None) -> bytes:
        return (await self._served.resource_pages()).page(cursor, modern=asked.modern)

    async def list_templates(self, asked: Asked[None], cursor: str | None) -> bytes:
        return self._served.template_pages.page(cursor, modern=asked.modern)

    async def list_prompts(self, asked: Asked[None], cursor: str | None) -> bytes:
        return self._served.prompt_pages.page(cursor, modern=asked.modern)

    async def read_resource(self, asked: Asked[None], uri: str) -> bytes:
        served = self._served
        resource, variables, path = served.find(uri)
        if resource.folder is not None:
            body = await asyncio.to_thread(read_file, resource.folder, path)
            text = as_text(body, "utf-8")
            guessed = guess_type(path) or ("application/octet-stream" if text is None else "text/plain")
            media = resource.mime_type or guessed
        elif resource.run is not None:
            reply = await resource.run(variables)
            body, (media, charset) = reply.body, media_type(reply.media or "")
            text = as_text(body, charset)
            media = (None if reply.is_error else resource.mime_type) or media or "application/json"
        else:
            raise RpcError(INTERNAL_ERROR, "This resource has nothing to read")
        told: dict[str, str] = {"text": text} if text is not None else {"blob": base64.b64encode(body).decode()}
        contents = orjson.dumps({"uri": uri, "mimeType": media, **told})
        return b'{"contents":[%b]%b}' % (contents, served.hints if asked.modern else b"")

    async def get_prompt(self, asked: Asked[None], name: str, arguments: bytes) -> bytes:
        prompt = self._served.planned.prompts.get(name)
        if prompt is None:
            raise RpcError(INVALID_PARAMS, f"Unknown prompt: {name[:_MAX_SHOWN]}")
        values = _prompt_values(prompt, arguments)
        messages = prompt.messages
        if prompt.file is not None:
            messages = (("user", await _file_text(prompt.file)),)
        described = {"description": prompt.description} if prompt.description else {}
        rendered = [{"role": role, "content": {"type": "text", "text": _fill(text, values)}} for role, text in messages]
        return orjson.dumps({**described, "messages": rendered})

    async def on_change(self, caller: None, listener: Callable[[Listing], None]) -> Callable[[], None]:
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)


def _prompt_values(prompt: PlannedPrompt, arguments: bytes) -> dict[str, str]:
    """The arguments of a prompt as texts; raises RpcError when a required one is missing."""
    values = orjson.loads(arguments)
    if not isinstance(values, dict):
        raise RpcError(INVALID_PARAMS, "The arguments of a prompt are a JSON object")
    for argument in prompt.arguments:
        if argument.get("required") and values.get(argument["name"]) is None:
            raise RpcError(INVALID_PARAMS, f"The prompt needs the argument {argument['name']!r}")
    return {name: v if isinstance(v, str) else orjson.dumps(v).decode() for name, v in values.items() if v is not None}


def _fill(text: str, values: Mapping[str, str]) -> str:
    """The text with arguments put in, once: a value is never looked at again, an unknown name stays as it is."""
    return _ARGUMENT.sub(lambda match: values.get(match[1], match[0]), text)


async def _file_text(path: str) -> str:
    try:
        return (await asyncio.to_thread(Path(path).read_bytes)).decode(errors="replace")
    except OSError as error:
        _log.warning("mcp.prompt_unreadable", file=path, error=type(error).__name__)
        raise RpcError(INTERNAL_ERROR, "The file of this prompt cannot be read") from None


def _uri_pattern(resource: PlannedResource) -> tuple[Any, list[str]]:
    """What matches the URIs of a template, and the names of its groups; a variable is one segment.

    RE2, because variables may stand side by side, and another engine would try all ways to divide a text among them.
    """
    parts, names = [], []
    end = 0
    for match in _VARIABLE.finditer(resource.uri):
        if match[1] in resource.variables:
            parts += [re2.escape(resource.uri[end : match.start()]), "([^/]+)"]
            names.append(match[1])
            end = match.end()
    try:
        return re2.compile("".join([*parts, re2.escape(resource.uri[end:])])), names
    except re2.error:
        _log.warning("mcp.uri_too_long", resource=resource.name, effect="it cannot be read")
        return _NOTHING, names


def _first(pages: Pages) -> tuple[bytes, bool]:
    return pages.page(None, modern=False), bool(pages)


def _shown(resource: PlannedResource) -> tuple[Any, ...]:
    return resource.name, resource.uri, resource.title, resource.description, resource.mime_type, resource.folder


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing starts or stops here."""
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
