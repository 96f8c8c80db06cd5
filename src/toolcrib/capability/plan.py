"""What a capability file compiles to: everything that is served, ready to be called.

`planner.py` builds it, `calls.py` runs it, `expose/` puts it on the wire. Immutable: swapping a file in
means swapping the whole plan.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from toolcrib.capability.binding import Bound
from toolcrib.capability.binds import Binds
from toolcrib.capability.findings import Finding
from toolcrib.capability.operation import Operation
from toolcrib.capability.reply import Reply, Run
from toolcrib.capability.scripts import Scripts
from toolcrib.capability.spec import Document, Mark, McpServer, RestServer
from toolcrib.capability.templates import PathTemplate
from toolcrib.capability.upstream import Upstream
from toolcrib.errors import AppError

__all__ = ["Plan", "PlannedMcp", "PlannedPrompt", "PlannedResource", "PlannedRest", "PlannedTool", "Reply"]


@dataclass(frozen=True, slots=True)
class PlannedTool:
    """An MCP tool: what it says of itself, and how it runs (raises AppError for what is refused or broken).

    `output_schema` describes the JSON object that a successful reply holds, None when nothing is promised; `structured`
    makes such an object from the parsed reply (scalars brought to the declared types, null where that would lose).
    """

    name: str
    run: Run
    input_schema: dict[str, Any]
    title: str | None = None
    description: str | None = None
    annotations: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    structured: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class PlannedResource:
    """An MCP resource: run with the variables of its URI, or static files below `folder`."""

    name: str
    uri: str  # with {variables} when `variables` is not empty
    variables: tuple[str, ...] = ()
    title: str | None = None
    description: str | None = None
    mime_type: str | None = None
    run: Run | None = None
    folder: str | None = None  # an absolute path


@dataclass(frozen=True, slots=True)
class PlannedPrompt:
    """An MCP prompt: messages with `{{argument}}`, or the text of a file as the only (user) message."""

    name: str
    title: str | None = None
    description: str | None = None
    arguments: tuple[dict[str, Any], ...] = ()  # as MCP lists them: name, title, description, required
    messages: tuple[tuple[str, str], ...] = ()  # role, text
    file: str | None = None  # an absolute path


@dataclass(frozen=True, slots=True)
class PlannedMcp:
    """An MCP server."""

    server: McpServer
    tools: Mapping[str, PlannedTool]
    resources: tuple[PlannedResource, ...] = ()
    prompts: Mapping[str, PlannedPrompt] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlannedRoute:
    """One method of an exposed path.

    `declare` checks and converts the declared inputs. `passes_query` says that query values that nothing took go on.
    """

    method: str
    name: str
    operation_id: str  # "<path> <METHOD>", for metrics
    action: Any  # calls.Action
    declare: Callable[[Any], None] | None
    passes_query: bool
    at: Mark
    bound: tuple[Bound, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedForward:
    """Passes requests on below an upstream's base."""

    upstream: Upstream
    api: Operation  # what every request to it has: base, headers, query
    base: PathTemplate
    trusted: frozenset[str]
    broken: AppError | None = None


@dataclass(frozen=True, slots=True)
class PlannedPath:
    """An exposed path: its segments (a name in braces is a variable), methods, and where the rest goes."""

    path: str
    routes: tuple[PlannedRoute, ...]
    forward: PlannedForward | None = None


@dataclass(frozen=True, slots=True)
class PlannedRest:
    """A REST server."""

    server: RestServer
    paths: tuple[PlannedPath, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a document compiles to. `called` finds anything that can be called by `namespace.name`."""

    document: Document
    binds: Binds
    rest: Mapping[str, PlannedRest]
    mcp: Mapping[str, PlannedMcp]
    tools: Mapping[str, PlannedTool]  # of all MCP servers, or without one the REST operations as tools
    called: Mapping[str, Any]  # calls.Action
    findings: tuple[Finding, ...]
    bound: Mapping[str, tuple[Bound, ...]]  # by the name of the thing exposed
    upstreams: Mapping[str, Upstream]
    scripts: Scripts
