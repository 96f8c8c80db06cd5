"""What the server asks of whoever serves tools through it: the `Face`, and what it tells the face about a request.

A face translates between MCP and what it serves; eras, transports, batches, cancellation and streams are not its
business. Results are JSON in bytes, as the handshake era has them (members of the modern era's lists aside).
"""

# ruff: noqa: ARG002 - what a face leaves out takes its arguments all the same

from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, Protocol, TypeVar

import orjson

from toolcrib.core.exchange import Exchange
from toolcrib.core.mcp_server import wire

C = TypeVar("C")
Listing = Literal["tools", "resources", "prompts"]
OnProgress = Callable[[bytes], None]  # takes the parameters of a progress notification


class About:
    """What a server says of itself, put into bytes once.

    Attributes:
        capabilities: as MCP names them; `listChanged` in one of them promises news.
        meta: the member of every result of the modern era that names the server.
        discovered: the result of server/discover.
        realm: names the server where a client is asked to sign in.
    """

    __slots__ = ("_server_info", "capabilities", "discovered", "instructions", "meta", "realm")

    def __init__(
        self, server_info: Mapping[str, str], capabilities: Mapping[str, Mapping[str, Any]], instructions: str | None
    ) -> None:
        self._server_info = dict(server_info)
        self.capabilities = capabilities
        self.instructions = {"instructions": instructions} if instructions else {}
        self.meta = b'"_meta":{"%bserverInfo":%b}' % (wire.META.encode(), orjson.dumps(self._server_info))
        self.realm = "".join(c for c in server_info["name"] if c.isascii() and c.isprintable() and c not in '"\\')
        discovered = {
            "supportedVersions": [wire.MODERN],
            "capabilities": capabilities,
            **self.instructions,
            "ttlMs": 3_600_000,
            "cacheScope": "public",
        }
        self.discovered = orjson.dumps(discovered)

    def initialized(self, version: str) -> bytes:
        """The result of initialize."""
        result = {"protocolVersion": version, "capabilities": self.capabilities, "serverInfo": self._server_info}
        return orjson.dumps({**result, **self.instructions})

    def told(self) -> frozenset[Listing]:
        """The listings whose changes clients are told of."""
        kinds: tuple[Listing, ...] = ("tools", "resources", "prompts")
        return frozenset(kind for kind in kinds if self.capabilities.get(kind, {}).get("listChanged"))


class Asked(Generic[C]):
    """Around a message: who sent it and in which dialect of MCP.

    Attributes:
        session: the id of a handshake session; None without one, and in the modern era.
        headers: of the HTTP request, names in lower case; empty on standard streams.
    """

    __slots__ = ("caller", "headers", "modern", "session", "version")

    def __init__(self, caller: C, version: str, session: str | None, headers: Mapping[str, str]) -> None:
        self.caller = caller
        self.version = version
        self.modern = version not in wire.HANDSHAKE_VERSIONS
        self.session = None if self.modern else session
        self.headers = headers


class Face(Protocol[C]):
    """What is served. Faces inherit from it, and leave out the methods that their capabilities do not promise.

    Every method may raise AppError or `wire.RpcError`, which become JSON-RPC errors.
    """

    about: About

    async def admit(self, exchange: Exchange) -> C:
        """Who asks and for what, from the head of an HTTP request; NotFound means that nothing is at this path."""
        ...

    def identity(self, caller: C) -> str:
        """Tells callers apart, so that none can cancel another's requests."""
        ...

    async def check_call(self, asked: Asked[C], params: wire.Params) -> None:
        """Refuse a tools/call of the modern era for its headers, before anything of an answer is sent."""
        ...

    async def call_tool(self, asked: Asked[C], name: str, arguments: bytes, on_progress: OnProgress | None) -> bytes:
        """A tool result; `arguments` are JSON of any type.

        Raises:
            NotFound: there is no such tool.
            Invalid: it does not take these arguments; answered as a result, so that the model can mend them.
        """
        ...

    async def list_tools(self, asked: Asked[C], cursor: str | None) -> bytes:
        """One page of tools."""
        ...

    async def list_resources(self, asked: Asked[C], cursor: str | None) -> bytes:
        """One page of resources."""
        raise wire.method_not_found("resources/list")

    async def list_templates(self, asked: Asked[C], cursor: str | None) -> bytes:
        """One page of resource templates."""
        raise wire.method_not_found("resources/templates/list")

    async def read_resource(self, asked: Asked[C], uri: str) -> bytes:
        """The contents of a resource."""
        raise wire.method_not_found("resources/read")

    async def list_prompts(self, asked: Asked[C], cursor: str | None) -> bytes:
        """One page of prompts."""
        raise wire.method_not_found("prompts/list")

    async def get_prompt(self, asked: Asked[C], name: str, arguments: bytes) -> bytes:
        """The messages of a prompt; `arguments` are JSON of any type."""
        raise wire.method_not_found("prompts/get")

    async def complete(self, asked: Asked[C], params: wire.Params) -> bytes:
        """Values that an argument of a prompt or a template could take."""
        raise wire.method_not_found("completion/complete")

    async def on_change(self, caller: C, listener: Callable[[Listing], None]) -> Callable[[], None]:
        """Call `listener(...)` whenever a listing may have changed for this caller; returns the way to stop that."""
        return lambda: None

    async def cancel_elsewhere(self, key: str) -> None:
        """Pass on that a request is cancelled which this process does not run; others hand it to `cancel`."""
        ...
