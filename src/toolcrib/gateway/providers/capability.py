"""Tools of capability files: each file is compiled once, at first use, and called in this process.

A file that somebody uploaded reads no other files and no environment: the values of its binds are the tool set's own
secrets, and its requests go through the process's guarded client. Scripts need files, so uploads have none.
"""

import asyncio
from typing import Any

import orjson

from toolcrib.capability.capability import Capability
from toolcrib.capability.plan import PlannedTool
from toolcrib.core.http import OutboundClient
from toolcrib.core.mcp_server.tool_result import shaped_result
from toolcrib.domain.adapters import Adapter, CapabilityAdapter
from toolcrib.errors import Invalid, RateLimited, Unavailable, Upstream

FILE_NAME = "capability.yaml"  # what findings call an uploaded text
_KEPT = 1000  # compiled files; one takes about as much memory as its text, ten times


class Capabilities:
    """Compiled capability files by the key of their tool set, at most `_KEPT`; used from one event loop."""

    def __init__(self, outbound: OutboundClient) -> None:
        self._outbound = outbound
        self._loaded: dict[str, asyncio.Task[Capability]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def list_tools(self, key: str, adapter: CapabilityAdapter) -> list[dict[str, Any]]:
        """Its tools as MCP lists them.

        Raises:
            CapabilityInvalid: the text cannot be served.
        """
        return [_wire(tool) for tool in (await self._capability(key, adapter)).plan.tools.values()]

    async def call_tool(
        self, key: str, adapter: CapabilityAdapter, name: str, arguments: bytes, *, timeout_s: float
    ) -> tuple[bytes, bool]:
        """Call a tool; returns an MCP tool result in JSON and whether it is an error.

        Raises:
            Invalid: a value is missing or cannot be used.
            Upstream: nothing usable came back, a bind has no value, or there is no such tool any more.
        """
        capability = await self._capability(key, adapter)
        tool = capability.plan.tools.get(name)
        if tool is None:
            raise Upstream("tool.gone", f"The capability has no tool {name!r} any more.")
        try:
            async with asyncio.timeout(timeout_s):
                reply = await tool.run(orjson.loads(arguments))
        except TimeoutError:
            message = f"The capability did not answer within {timeout_s:g} seconds."
            raise Upstream("upstream.timeout", message) from None
        except (Unavailable, RateLimited) as error:  # of the capability's upstream: a result, not a refusal of ours
            raise Upstream(error.code, error.message) from None
        promised = tool.output_schema is not None
        return shaped_result(reply.status, reply.media or "", reply.body, tool.structured, promised=promised)

    async def check(self, adapter: Adapter | None) -> None:
        """Raise Invalid for a capability whose text cannot be served, or offers nothing; other adapters pass."""
        if not isinstance(adapter, CapabilityAdapter):
            return
        field = "spec.adapter.capability.source"
        try:
            capability = await _load(adapter, self._outbound)
        except Invalid as error:
            raise Invalid(error.code, error.message, field=field) from None
        tools = capability.plan.tools
        await capability.close()
        if not tools:
            raise Invalid("capability.no_tools", "The capability exposes no tools and no REST operations.", field=field)

    def retire(self, key: str) -> None:
        """Forget a file that is in use no more."""
        task = self._loaded.pop(key, None)
        if task is not None:
            closing = asyncio.create_task(_close(task))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Forget them all."""
        for key in list(self._loaded):
            self.retire(key)
        await asyncio.gather(*self._closing)

    async def _capability(self, key: str, adapter: CapabilityAdapter) -> Capability:
        task = self._loaded.get(key)
        if task is None:
            while len(self._loaded) >= _KEPT:
                self.retire(next(iter(self._loaded)))
            task = self._loaded[key] = asyncio.create_task(_load(adapter, self._outbound))
            task.add_done_callback(lambda done: self._forget_failed(key, done))
        return await asyncio.shield(task)

    def _forget_failed(self, key: str, task: asyncio.Task[Capability]) -> None:
        if (task.cancelled() or task.exception() is not None) and self._loaded.get(key) is task:
            del self._loaded[key]


async def _load(adapter: CapabilityAdapter, outbound: OutboundClient) -> Capability:
    """Compile in a thread: a large file takes a while."""
    return await asyncio.to_thread(
        Capability.load,
        FILE_NAME,
        text=adapter.source,
        environ=adapter.env,
        base_uris=adapter.base_uris,
        outbound=outbound,
        files=False,
    )


async def _close(task: asyncio.Task[Capability]) -> None:
    try:
        capability = await task
    except Exception:  # noqa: BLE001 - whoever waited for it was told
        return
    await capability.close()


def _wire(tool: PlannedTool) -> dict[str, Any]:
    members = {
        "name": tool.name,
        "title": tool.title,
        "description": tool.description or "",
        "inputSchema": tool.input_schema,
        "outputSchema": tool.output_schema,
        "annotations": tool.annotations,
    }
    return {name: value for name, value in members.items() if value is not None}
