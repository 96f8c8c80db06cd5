"""Tools of capability files: each file is compiled once, at first use, and called in this process.

A file that somebody uploaded reads no other files and no environment: the values of its binds are the tool set's own
secrets, and its requests go through the process's guarded client. Scripts need files, so uploads have none. What a file
may cost is bounded: its size and what it lists, how many are compiled at a time and kept, and the size of results.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from toolcrib.capability.capability import Capability
from toolcrib.capability.findings import CapabilityInvalid, Finding
from toolcrib.capability.plan import PlannedTool
from toolcrib.capability.reply import Reply
from toolcrib.capability.spec import Consumed, ConsumedOperation, Document
from toolcrib.core.http import OutboundClient
from toolcrib.core.mcp_server.tool_result import shaped_result
from toolcrib.domain.adapters import CapabilityAdapter, without_secrets
from toolcrib.errors import Invalid, RateLimited, Unavailable, Upstream

FILE_NAME = "capability.yaml"  # what findings call an uploaded text
_AT_A_TIME = 2  # compilations; a file of a megabyte takes seconds of one processor
_KEPT = 8_000_000  # characters of the files kept compiled; one takes some fifty times its text
_MAX_LISTED = 8 * 2**20  # bytes of all tools of a file as MCP lists them
_MAX_CACHE = 16 * 2**20  # bytes of answers that a file may have kept of one API


@dataclass(slots=True)
class _Kept:
    """A file that is compiled, or about to be."""

    task: asyncio.Task[Capability]
    size: int


class Capabilities:
    """Compiled capability files by the key of their tool set, least recently used out first; used from one event loop.

    Args:
        outbound: sends their requests.
        max_result_bytes: largest answer of an upstream, and largest result of a tool.
    """

    def __init__(self, outbound: OutboundClient, *, max_result_bytes: int) -> None:
        self._outbound = outbound
        self._max_result_bytes = max_result_bytes
        self._kept: dict[str, _Kept] = {}
        self._size = 0
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        self._closing: set[asyncio.Task[None]] = set()

    async def list_tools(self, adapter: CapabilityAdapter) -> tuple[list[dict[str, Any]], list[str]]:
        """Its tools as MCP lists them, and what the file has that cannot be served.

        Raises:
            CapabilityInvalid: the text cannot be served.
            Invalid: it lists too much.
        """
        capability = await self._load(adapter)
        try:
            problems = [f"{_place(f)} {f.message}" for f in capability.findings if f.severity == "error"]
            return _listed(capability), [without_secrets(problem, adapter) for problem in problems]
        finally:
            await capability.close()

    async def call_tool(
        self, key: str, adapter: CapabilityAdapter, name: str, arguments: bytes, *, timeout_s: float
    ) -> tuple[bytes, bool]:
        """Call a tool; returns an MCP tool result in JSON and whether it is an error.

        Raises:
            Invalid: a value is missing or cannot be used.
            AddressRefused: an address that the file leads to is not allowed.
            Upstream: nothing usable came back, a bind has no value, or there is no such tool any more.
        """
        document: Document | None = None
        try:
            async with asyncio.timeout(timeout_s):
                capability = await self._capability(key, adapter)
                document = capability.document
                tool = capability.plan.tools.get(name)
                if tool is None:
                    raise Upstream("tool.gone", f"The capability has no tool {name!r} any more.")
                reply = await tool.run(orjson.loads(arguments))
        except TimeoutError:
            message = f"The capability did not answer within {timeout_s:g} seconds."
            raise Upstream("upstream.timeout", message) from None
        except CapabilityInvalid as error:  # it was judged when it was uploaded: not the caller's fault
            raise Upstream("tool_set.broken", f"The capability cannot be served: {error.message}") from None
        except Invalid as error:
            raise Invalid(error.code, without_secrets(error.message, adapter), field=error.field) from None
        except Unavailable as error:
            raise Upstream(error.code, _reason(error, document)) from None
        except RateLimited as error:  # a result, not a refusal of ours
            raise Upstream(error.code, error.message) from None
        if len(reply.body) > self._max_result_bytes:
            raise Upstream("outbound.too_large", f"The result has more than {self._max_result_bytes} bytes.")
        return _result(tool, reply, adapter)

    async def check(self, adapter: CapabilityAdapter) -> None:
        """Raise Invalid for a text that cannot be served, lists too much, or offers nothing."""
        field = "spec.adapter.capability.source"
        try:
            capability = await self._load(adapter)
            try:
                tools = _listed(capability)
            finally:
                await capability.close()
        except Invalid as error:
            raise Invalid(error.code, error.message, field=field) from None
        if not tools:
            raise Invalid("capability.no_tools", "The capability exposes no tools and no REST operations.", field=field)

    def retire(self, key: str) -> None:
        """Forget a file that is in use no more; calls under way go on."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._size -= kept.size
            closing = asyncio.create_task(_close(kept.task))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Forget them all."""
        for key in list(self._kept):
            self.retire(key)
        await asyncio.gather(*self._closing)

    async def _capability(self, key: str, adapter: CapabilityAdapter) -> Capability:
        kept = self._kept.pop(key, None)
        if kept is None:
            kept = _Kept(asyncio.create_task(self._load(adapter)), len(adapter.source))
            kept.task.add_done_callback(lambda done: self._forget_failed(key, done))
            self._size += kept.size
        self._kept[key] = kept  # the last one now
        while self._size > _KEPT and len(self._kept) > 1:
            self.retire(next(iter(self._kept)))
        return kept.task.result() if kept.task.done() else await asyncio.shield(kept.task)

    def _forget_failed(self, key: str, task: asyncio.Task[Capability]) -> None:
        kept = self._kept.get(key)
        if (task.cancelled() or task.exception() is not None) and kept is not None and kept.task is task:
            del self._kept[key]
            self._size -= kept.size

    async def _load(self, adapter: CapabilityAdapter) -> Capability:
        """Compile in a thread: a large file takes a while."""
        async with self._turns:
            capability = await asyncio.to_thread(
                Capability.load,
                FILE_NAME,
                text=adapter.source,
                environ=adapter.env,
                base_uris=adapter.base_uris,
                outbound=self._outbound,
                files=False,
            )
        greedy = tuple(f for api in capability.document.consumes for f in self._greedy(api))
        if greedy:
            await capability.close()
            raise CapabilityInvalid(greedy)
        return capability

    def _greedy(self, api: Consumed) -> Iterator[Finding]:
        """Settings that would take more memory of this process than its operator allows."""
        places: list[Consumed | ConsumedOperation] = [api, *(o for r in api.resources for o in r.operations)]
        for place in places:
            cache = place.extension.get("cache")
            asked = {
                "maxResponseBytes": (place.extension.get("maxResponseBytes"), self._max_result_bytes),
                "cache.maxBytes": (cache.get("maxBytes") if isinstance(cache, dict) else None, _MAX_CACHE),
            }
            for setting, (value, most) in asked.items():
                if isinstance(value, int) and value > most:
                    message = f"x-toolcrib.{setting} is {value}, above the {most} of this server."
                    yield Finding("limit-exceeded", "error", message, "nothing is served", "ask for less", place.at)


def _result(tool: PlannedTool, reply: Reply, adapter: CapabilityAdapter) -> tuple[bytes, bool]:
    """The reply as a tool result. An error may quote the request with its credentials, which are not shown."""
    body = reply.body
    if reply.status >= 400:
        text = body.decode(errors="surrogateescape")
        body = without_secrets(text, adapter).encode(errors="surrogateescape")
    promised = tool.output_schema is not None
    return shaped_result(reply.status, reply.media or "", body, tool.structured, promised=promised)


def _reason(error: Unavailable, document: Document | None) -> str:
    """What the caller is told; of a bind without value, the name under which the tool set's `env` would have it."""
    if error.code != "bind.unresolved" or document is None:
        return error.message
    keys = {name: key for b in document.binds for v, key in b.keys.items() for name in (v, f"{b.namespace}.{v}")}
    needed = ", ".join(keys.get(name, name.rpartition(".")[2]) for name in error.details.get("variables", ()))
    return f"The capability needs {needed}, which has no value: set it in the env of the tool set."


def _listed(capability: Capability) -> list[dict[str, Any]]:
    """Its tools as MCP lists them. Raises Invalid for more than anybody could list."""
    tools = [_wire(tool) for tool in capability.plan.tools.values()]
    size = 0
    for tool in tools:  # not all at once: they may share what makes them large
        size += len(orjson.dumps(tool))
        if size > _MAX_LISTED:
            message = f"The tools of the capability take more than {_MAX_LISTED} bytes to list."
            raise Invalid("capability.too_large", message)
    return tools


def _place(finding: Finding) -> str:
    return f"{finding.at.file}:{finding.at.line}:{finding.at.column}"


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
