"""The lists of an MCP server in bytes: made once per plan, and cut into pages only when they are huge."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from toolcrib.capability.expose.mcp_files import guess_type, list_files
from toolcrib.capability.plan import PlannedMcp, PlannedPrompt, PlannedResource, PlannedTool
from toolcrib.core.mcp_server.wire import INVALID_PARAMS, RpcError

PAGE: Final = 1000  # items


class Pages:
    """A list in pages; a cursor names the last item of the page before."""

    def __init__(self, member: bytes, items: Sequence[tuple[str, bytes]], modern_tail: bytes) -> None:
        self._member, self._items, self._modern_tail = member, items, modern_tail
        ends = range(PAGE, len(items), PAGE)
        self._starts: dict[str | None, int] = {None: 0} | {_cursor(items[end - 1][0]): end for end in ends}
        self._made: dict[tuple[str | None, bool], bytes] = {}

    def __bool__(self) -> bool:
        return bool(self._items)

    def page(self, cursor: str | None, *, modern: bool) -> bytes:
        """The result of a list request.

        Raises:
            RpcError: the cursor is not one that a page returned.
        """
        if (made := self._made.get((cursor, modern))) is None:
            start = self._starts.get(cursor)
            if start is None:
                raise RpcError(INVALID_PARAMS, "The cursor is not one that a page returned", {"field": "cursor"})
            items = self._items[start : start + PAGE]
            more = start + PAGE < len(self._items)
            tail = b',"nextCursor":"%b"' % _cursor(items[-1][0]).encode() if more else b""
            tail += self._modern_tail if modern else b""
            made = b'{"%b":[%b]%b}' % (self._member, b",".join([item for _, item in items]), tail)
            self._made[cursor, modern] = made
        return made


def cache_hints(extension: Mapping[str, Any]) -> bytes:
    """What 2026-07-28 wants to know of every list; `ttlMs` and `cacheScope` of the server's `x-toolcrib` decide it.

    By default nothing is kept: a reload may change everything, and who may see it is decided in front of us.
    """
    ttl, scope = extension.get("ttlMs"), extension.get("cacheScope")
    ttl = ttl if isinstance(ttl, int) and not isinstance(ttl, bool) and ttl >= 0 else 0
    return b',"ttlMs":%d,"cacheScope":"%b"' % (ttl, b"public" if scope == "public" else b"private")


def tool_pages(planned: PlannedMcp, hints: bytes) -> Pages:
    """tools/list, in the order of the file."""
    return Pages(b"tools", [(tool.name, _tool(tool)) for tool in planned.tools.values()], hints)


def template_pages(planned: PlannedMcp, hints: bytes) -> Pages:
    """resources/templates/list."""
    templated = [resource for resource in planned.resources if resource.variables]
    items = [(r.uri, _described(r, uriTemplate=r.uri, mimeType=_mime(r))) for r in templated]
    return Pages(b"resourceTemplates", items, hints)


def resource_pages(planned: PlannedMcp, hints: bytes) -> Pages:
    """resources/list with the files that static folders have now; blocks."""
    items: list[tuple[str, bytes]] = []
    for resource in planned.resources:
        if resource.folder is not None:
            items += _files(resource, resource.folder)
        elif not resource.variables:
            items.append((resource.uri, _described(resource, uri=resource.uri, mimeType=_mime(resource))))
    return Pages(b"resources", items, hints)


def prompt_pages(planned: PlannedMcp, hints: bytes) -> Pages:
    """prompts/list."""
    items = [(p.name, _described(p, arguments=p.arguments or None)) for p in planned.prompts.values()]
    return Pages(b"prompts", items, hints)


def prefix_of(resource: PlannedResource) -> str:
    """What the URIs of a static resource's files begin with."""
    return resource.uri.removesuffix("/") + "/"


def _files(resource: PlannedResource, folder: str) -> Iterable[tuple[str, bytes]]:
    for file in list_files(folder):
        uri = prefix_of(resource) + file.path
        described = {
            "uri": uri,
            "name": f"{resource.name}/{file.path}",
            "title": resource.title,
            "description": resource.description,
            "mimeType": resource.mime_type or guess_type(file.path),
            "size": file.size,
        }
        yield uri, _dumped(described)


def _mime(resource: PlannedResource) -> str:
    return resource.mime_type or "application/json"


def _described(planned: PlannedTool | PlannedResource | PlannedPrompt, **more: Any) -> bytes:
    return _dumped({"name": planned.name, "title": planned.title, "description": planned.description, **more})


def _tool(tool: PlannedTool) -> bytes:
    schema = tool.input_schema if tool.input_schema.get("type") == "object" else {**tool.input_schema, "type": "object"}
    return _described(tool, inputSchema=schema, outputSchema=tool.output_schema, annotations=tool.annotations or None)


def _dumped(members: dict[str, Any]) -> bytes:
    return orjson.dumps({name: value for name, value in members.items() if value is not None})


def _cursor(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")
