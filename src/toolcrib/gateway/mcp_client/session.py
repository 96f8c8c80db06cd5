"""The MCP protocol as a client speaks it, over any transport: opening in either era, calling tools, listing them.

The handshake era (2024-11-05 to 2025-11-25) opens with `initialize`; the modern era (2026-07-28) has no session and
puts its envelope into every request. Which one a server speaks is found out once. We offer no capabilities: a server
that asks us for something gets "method not found". Results are relayed as the bytes that came.
"""

import asyncio
from typing import Any, Protocol, TypeVar

import msgspec
import structlog
from msgspec import UNSET, Raw, UnsetType

from toolcrib.errors import AppError
from toolcrib.gateway.mcp_client.contract import McpResult, McpToolList, McpUpstreamError, OnProgress, plain_text
from toolcrib.gateway.mcp_client.jsonrpc import METHOD_NOT_FOUND, Message, notification_bytes, request_bytes
from toolcrib.gateway.mcp_client.param_headers import ANNOTATION, HeaderPlan, header_value, param_headers, plan_headers

MODERN_VERSION = "2026-07-28"
HANDSHAKE_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")

HEADER_MISMATCH = -32020
UNSUPPORTED_VERSION = -32022

_PROBE_S = 10.0
_MAX_PAGES = 2000

_log = structlog.get_logger(__name__)

T = TypeVar("T")
Headers = tuple[tuple[str, str], ...]


class Transport(Protocol):
    """A way to exchange messages with one server.

    Attributes:
        modern_first: whether to try the modern era before the handshake.
        has_headers: whether requests carry HTTP headers beside the message.
        ended: why no more requests can be sent, or None.
    """

    modern_first: bool
    has_headers: bool

    @property
    def ended(self) -> AppError | None:
        """As above."""

    def adopt(self, version: str | None, *, modern: bool) -> None:
        """From now on speak this version; None before the handshake has settled it."""

    async def request(
        self,
        request_id: int,
        method: str,
        body: bytes,
        deadline: float,
        *,
        on_progress: OnProgress | None = None,
        extra_headers: Headers = (),
    ) -> Message:
        """Send a request, return its response; raises McpUpstreamError, or SessionLost when it was not processed."""

    async def notify(self, body: bytes, deadline: float) -> None:
        """Send a notification."""

    def listen(self, request_id: int, body: bytes | None) -> None:
        """Listen for changes in the background; `body` is the modern era's subscription request."""

    async def close(self) -> None:
        """End the connection; bounded in time."""


class _Info(msgspec.Struct):
    name: str = ""
    version: str = ""


class _ToolsCapability(msgspec.Struct):
    listChanged: bool | None = None  # noqa: N815  the wire's name


class _Capabilities(msgspec.Struct):
    tools: _ToolsCapability | None = None


class _Initialized(msgspec.Struct):
    protocolVersion: str  # noqa: N815  the wire's name
    capabilities: _Capabilities | None = None
    serverInfo: _Info | None = None  # noqa: N815


class _DiscoverMeta(msgspec.Struct):
    info: Raw | UnsetType = msgspec.field(name="io.modelcontextprotocol/serverInfo", default=UNSET)


class _Discovered(msgspec.Struct):
    supportedVersions: list[str]  # noqa: N815  the wire's name
    capabilities: _Capabilities | None = None
    meta: _DiscoverMeta | None = msgspec.field(name="_meta", default=None)


class _Supported(msgspec.Struct):
    supported: list[str]


class _CallResult(msgspec.Struct):
    isError: bool | None = None  # noqa: N815  the wire's name
    resultType: str | None = None  # noqa: N815
    content: list[Raw] | UnsetType = UNSET


class _Page(msgspec.Struct):
    tools: list[Any]
    nextCursor: str | None = None  # noqa: N815  the wire's name


_read_call_result = msgspec.json.Decoder(_CallResult).decode
_encode = msgspec.json.encode


class Session:
    """One open conversation with one server.

    Attributes:
        modern: whether the server speaks the modern era; None until `open` has found out.
        in_flight: calls under way, counted by the pool for its idle timeout.
        last_used_at: event loop time of the last call.
    """

    def __init__(self, transport: Transport, *, client_version: str, max_tools: int, max_list_bytes: int) -> None:
        self.transport = transport
        self.modern: bool | None = None
        self.version = ""
        self.server_name = ""
        self.server_version = ""
        self.in_flight = 0
        self.last_used_at = 0.0
        self._max_tools = max_tools
        self._max_list_bytes = max_list_bytes
        self._last_id = 0
        self._client_info = _encode({"name": "toolcrib", "version": client_version})
        self._envelope = b""  # members of `_meta` that every request of the modern era carries
        self._has_tools = False
        self._listens = False
        self._header_plans: dict[str, HeaderPlan] = {}

    # -- opening -------------------------------------------------------------------------------------------------------

    async def open(self, deadline: float, *, modern: bool | None = None) -> None:
        """Agree on a protocol version; raises McpUpstreamError.

        Args:
            deadline: event loop time.
            modern: the era that this server spoke last time, tried first; None when we have not met it.
        """
        if self.transport.modern_first if modern is None else modern:
            if not await self._discover(deadline):
                await self._initialize_or_reconsider(deadline)
        else:
            try:
                await self._initialize(deadline)
            except McpUpstreamError as error:
                refused = error.code == "mcp.rpc_error" or error.details.get("status", 401) != 401
                if not refused or self.transport.ended or not await self._discover(deadline):
                    raise
        self.last_used_at = asyncio.get_running_loop().time()

    async def _discover(self, deadline: float) -> bool:
        """Try the modern era; False when the server shows no sign of it."""
        self._envelope = (
            b'"io.modelcontextprotocol/protocolVersion":"%b","io.modelcontextprotocol/clientInfo":%b,'
            b'"io.modelcontextprotocol/clientCapabilities":{}' % (MODERN_VERSION.encode(), self._client_info)
        )
        self.transport.adopt(MODERN_VERSION, modern=True)
        now = asyncio.get_running_loop().time()
        probe_until = min(deadline, now + min(_PROBE_S, max(1.0, (deadline - now) / 3)))
        try:
            message = await self._request("server/discover", b"", probe_until)
            found = _read(message, _Discovered, "server/discover")
        except McpUpstreamError as error:
            self._refuse_if_incompatible(error)
            if _means_other_era(error) and not self.transport.ended:
                return False
            raise
        if MODERN_VERSION not in found.supportedVersions:
            return False
        info = found.meta.info if found.meta else UNSET
        self._adopt(MODERN_VERSION, found.capabilities, _read_info(info), modern=True)
        return True

    def _refuse_if_incompatible(self, error: McpUpstreamError) -> None:
        supported = _supported_versions(error)
        if supported and not {*HANDSHAKE_VERSIONS, MODERN_VERSION}.intersection(supported):
            versions = plain_text(", ".join(supported), 200)
            raise McpUpstreamError(
                "mcp.protocol_error", f"the server speaks MCP versions that Toolcrib does not know: {versions}"
            ) from error

    async def _initialize_or_reconsider(self, deadline: float) -> None:
        try:
            await self._initialize(deadline)
        except McpUpstreamError as error:
            # A server that answered the probe too late has settled on the modern era and says so now.
            if MODERN_VERSION not in _supported_versions(error) or not await self._discover(deadline):
                raise

    async def _initialize(self, deadline: float) -> None:
        self._envelope = b""
        self.transport.adopt(None, modern=False)
        members = b'"protocolVersion":"%b","capabilities":{},"clientInfo":%b' % (
            HANDSHAKE_VERSIONS[-1].encode(),
            self._client_info,
        )
        message = await self._request("initialize", members, deadline)
        answer = _read(message, _Initialized, "initialize")
        if answer.protocolVersion not in HANDSHAKE_VERSIONS:
            version = plain_text(answer.protocolVersion, 40)
            raise McpUpstreamError("mcp.protocol_error", f"the server wants MCP version {version}, which is unknown")
        self._adopt(answer.protocolVersion, answer.capabilities, answer.serverInfo or _Info(), modern=False)
        await self.transport.notify(notification_bytes(b"notifications/initialized", b"{}"), deadline)

    def _adopt(self, version: str, capabilities: _Capabilities | None, info: _Info, *, modern: bool) -> None:
        self.version, self.modern = version, modern
        self.server_name, self.server_version = plain_text(info.name, 200), plain_text(info.version, 100)
        tools = capabilities.tools if capabilities else None
        self._has_tools = tools is not None
        self.transport.adopt(version, modern=modern)
        self._listens = bool(tools and tools.listChanged)

    def listen(self) -> None:
        """Ask to be told when the tools change, if the server offers that."""
        if not self._listens:
            return
        self._last_id += 1
        members = self._params(b'"notifications":{"toolsListChanged":true}', None)
        body = request_bytes(self._last_id, b"subscriptions/listen", members) if self.modern else None
        self.transport.listen(self._last_id, body)

    # -- using ---------------------------------------------------------------------------------------------------------

    async def call_tool(
        self, name: str, arguments: bytes, deadline: float, on_progress: OnProgress | None = None
    ) -> McpResult:
        """Call a tool; `arguments` is one JSON object, sent as it is. Raises McpUpstreamError or SessionLost."""
        members = b'"name":%b,"arguments":%b' % (_encode(name), arguments or b"{}")
        headers: Headers = ()
        if self.modern and self.transport.has_headers:
            headers = self._call_headers(name, arguments)
        try:
            message = await self._request("tools/call", members, deadline, on_progress, headers)
        except McpUpstreamError as error:
            if error.rpc_code != HEADER_MISMATCH or not headers or name in self._header_plans:
                raise
            # The tool wants arguments in headers and we had not seen its schema; nothing was processed.
            await self.list_tools(deadline)
            if name not in self._header_plans:
                raise
            headers = self._call_headers(name, arguments)
            message = await self._request("tools/call", members, deadline, on_progress, headers)
        return _call_result(message)

    def _call_headers(self, name: str, arguments: bytes) -> Headers:
        headers: Headers = (("mcp-name", header_value(name)),)
        if plan := self._header_plans.get(name):
            headers += param_headers(plan, msgspec.json.decode(arguments or b"{}"))
        return headers

    async def list_tools(self, deadline: float) -> McpToolList:
        """All tools, page by page; raises McpUpstreamError or SessionLost."""
        listed = McpToolList(self.version, self.server_name, self.server_version, [])
        names: set[str] = set()
        plans: dict[str, HeaderPlan] = {}
        cursors: set[str] = set()
        cursor: str | None = None
        size = 0
        while True:
            members = b'"cursor":%b' % _encode(cursor) if cursor else b""
            try:
                message = await self._request("tools/list", members, deadline)
            except McpUpstreamError as error:
                if error.rpc_code == METHOD_NOT_FOUND and not self._has_tools:
                    return listed  # a server of prompts or resources only
                raise
            page = _read(message, _Page, "tools/list")
            raw = message.result if isinstance(message.result, Raw) else Raw()
            size += len(memoryview(raw))
            wants_headers = self.modern and self.transport.has_headers and ANNOTATION.encode() in bytes(raw)
            for tool in page.tools:
                _take_tool(tool, listed, names, plans if wants_headers else None)
            self._check_limits(len(names), size)
            cursor = page.nextCursor
            if not cursor:
                break
            if cursor in cursors or len(cursors) >= _MAX_PAGES:
                raise McpUpstreamError("mcp.protocol_error", "the pages of the server's tools/list never end")
            cursors.add(cursor)
        self._header_plans = plans
        if listed.problems:
            _log.warning("mcp.tools_left_out", server=self.server_name, problems=listed.problems[:10])
        return listed

    async def ping(self, deadline: float) -> None:
        """See whether the server answers at all; a JSON-RPC error is an answer. Raises McpUpstreamError."""
        try:
            await self._request("server/discover" if self.modern else "ping", b"", deadline)
        except McpUpstreamError as error:
            if error.code != "mcp.rpc_error":
                raise

    def _check_limits(self, tools: int, size: int) -> None:
        if tools > self._max_tools:
            raise McpUpstreamError("mcp.too_large", f"the server lists more than {self._max_tools} tools")
        if size > self._max_list_bytes:
            raise McpUpstreamError("mcp.too_large", f"the server's list of tools exceeds {self._max_list_bytes} bytes")

    async def close(self) -> None:
        """End the conversation; bounded in time."""
        await self.transport.close()

    # -- messages ------------------------------------------------------------------------------------------------------

    async def _request(
        self,
        method: str,
        members: bytes,
        deadline: float,
        on_progress: OnProgress | None = None,
        headers: Headers = (),
    ) -> Message:
        self._last_id = request_id = self._last_id + 1
        params = self._params(members, request_id if on_progress is not None else None)
        body = request_bytes(request_id, method.encode(), params)
        message = await self.transport.request(
            request_id, method, body, deadline, on_progress=on_progress, extra_headers=headers
        )
        if message.error:
            raise rpc_failure(message)
        return message

    def _params(self, members: bytes, progress_token: int | None) -> bytes:
        if progress_token is None and not self._envelope:
            return b"{%b}" % members
        meta = self._envelope
        if progress_token is not None:
            meta = b'"progressToken":%d%b%b' % (progress_token, b"," if meta else b"", meta)
        return b'{%b%b"_meta":{%b}}' % (members, b"," if members else b"", meta)


def rpc_failure(message: Message, **details: Any) -> McpUpstreamError:
    """The server's JSON-RPC error as an exception."""
    error = message.error
    if not error:
        return McpUpstreamError("mcp.protocol_error", "the server answered with an empty error", **details)
    text = plain_text(error.message or "") or f"error {error.code}"
    data = bytes(error.data) if isinstance(error.data, Raw) else None
    return McpUpstreamError(
        "mcp.rpc_error", text, rpc_code=error.code, rpc_message=error.message or "", rpc_data=data, **details
    )


def _means_other_era(error: McpUpstreamError) -> bool:
    """Whether a failed probe may mean only that the server does not know the modern era."""
    match error.code:
        case "mcp.rpc_error" | "mcp.protocol_error" | "mcp.timeout" | "mcp.closed" | "mcp.too_large":
            return True
        case "mcp.unauthorized":
            return error.details.get("status") == 403  # a filter that knows only the other era's methods
        case _:
            return "status" in error.details  # it answered, whatever it said


def _supported_versions(error: McpUpstreamError) -> list[str]:
    if error.rpc_code != UNSUPPORTED_VERSION or error.rpc_data is None:
        return []
    try:
        return msgspec.json.decode(error.rpc_data, type=_Supported).supported
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []


def _read_info(raw: Raw | UnsetType) -> _Info:
    """The server's name for itself: for display only, so a malformed one is as good as none."""
    try:
        return _Info() if raw is UNSET else msgspec.json.decode(raw, type=_Info)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Info()


def _read(message: Message, shape: type[T], method: str) -> T:
    if not isinstance(message.result, Raw):
        raise McpUpstreamError("mcp.protocol_error", f"the server's answer to {method} has no result")
    try:
        return msgspec.json.decode(message.result, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        reason = plain_text(str(exc), 200)
        raise McpUpstreamError("mcp.protocol_error", f"the server's answer to {method} is malformed: {reason}") from exc


def _call_result(message: Message) -> McpResult:
    if not isinstance(message.result, Raw):
        raise McpUpstreamError("mcp.protocol_error", "the server's answer to tools/call has no result")
    raw = bytes(message.result)
    try:
        if not raw.isascii():
            raw.decode()  # msgspec does not look inside what it leaves raw
        answer = _read_call_result(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        reason = plain_text(str(exc), 200)
        raise McpUpstreamError(
            "mcp.protocol_error", f"the server's answer to tools/call is malformed: {reason}"
        ) from exc
    if answer.resultType not in {None, "complete"}:
        kind = plain_text(str(answer.resultType), 40)
        raise McpUpstreamError(
            "mcp.protocol_error", f"the server answered tools/call with a '{kind}' result, which was not offered to it"
        )
    if answer.content is UNSET:
        # Required by the protocol, forgotten by some servers, insisted on by some clients.
        raw = b'{"content":[]%b%b' % (b"" if raw[1:].lstrip() == b"}" else b",", raw[1:])
    return McpResult(raw, answer.isError is True)


def _take_tool(tool: Any, listed: McpToolList, names: set[str], plans: dict[str, HeaderPlan] | None) -> None:
    """Add a tool to the list, or the reason why it was left out."""
    name = tool.get("name") if isinstance(tool, dict) else None
    if not isinstance(name, str) or not name:
        listed.problems.append("a tool without a name was left out")
    elif name in names:
        listed.problems.append(f"'{plain_text(name, 100)}' is listed twice; the first one counts")
    elif not isinstance(tool.get("inputSchema"), dict):
        listed.problems.append(f"'{plain_text(name, 100)}' has no inputSchema and was left out")
    else:
        try:
            plan = plan_headers(tool["inputSchema"]) if plans is not None else ()
        except ValueError as exc:
            listed.problems.append(f"'{plain_text(name, 100)}' was left out: {plain_text(str(exc), 200)}")
            return
        if plan and plans is not None:
            plans[name] = plan
        names.add(name)
        listed.tools.append(tool)
