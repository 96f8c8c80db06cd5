"""Tool sets and tools as the server tells of them, flattened to what commands show; found by name, awaited."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from toolcrib.cli.client import Server, path_of
from toolcrib.cli.failure import CommandFailed
from toolcrib.cli.output import waiting

_ROOT = "/v1/tool_sets"
_NO_OUTCOME = "no_outcome"


@dataclass(frozen=True, slots=True)
class ToolSetEntry:
    """A tool set; `slug` ends the path of its MCP endpoint and stands before `__` in call names."""

    id: str
    name: str
    slug: str
    external_id: str
    kind: str
    target: str
    description: str
    labels: dict[str, str]
    available: int
    filtered: int
    last_sync_at: str | None
    mcp_url: str

    @property
    def path(self) -> str:
        """Where the API has it."""
        return _ROOT + path_of(self.id)


@dataclass(frozen=True, slots=True)
class ToolEntry:
    """A tool; `name` is the one to call it by."""

    name: str
    id: str
    tool_set: str
    tool_set_id: str
    title: str
    status: str
    requires_approval: bool
    description: str
    parameters: dict[str, Any]
    config: dict[str, Any]

    @property
    def path(self) -> str:
        """Where the API has it."""
        return _ROOT + path_of(self.tool_set_id, "tools", self.id)


@dataclass(frozen=True, slots=True)
class SyncOutcome:
    """How a sync ended: `completed`, `failed`, or `no_outcome` when it took longer than somebody wanted to wait."""

    outcome: str
    message: str
    error_type: str = ""

    @property
    def ok(self) -> bool:
        """Whether the tools are up to date."""
        return self.outcome == "completed"


@dataclass(slots=True)
class SyncWatch:
    """Waits for the outcome of a sync that was asked for after this was made."""

    server: Server
    tool_set: ToolSetEntry
    seen: set[str] = field(default_factory=set)

    @classmethod
    def before_asking(cls, server: Server, tool_set: ToolSetEntry) -> "SyncWatch":
        """Remember the events there are, so that only later ones count."""
        return cls(server, tool_set, {event["metadata"]["id"] for event in _newest_events(server, tool_set)})

    def wait(self, timeout_s: float) -> SyncOutcome:
        """The outcome, looked for until then."""
        until = time.monotonic() + timeout_s
        pause_s = 0.05
        with waiting(f"Reading the tools of {self.tool_set.name} ..."):
            while (outcome := self._outcome()) is None:
                if time.monotonic() + pause_s > until:
                    message = f"No outcome within {timeout_s:g} s; is a worker running?"
                    return SyncOutcome(_NO_OUTCOME, message, _NO_OUTCOME)
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, 1.0)
        return outcome

    def _outcome(self) -> SyncOutcome | None:
        """An end counts only after a start: a sync that was under way already may have read the old list."""
        started = False
        for event in reversed(_newest_events(self.server, self.tool_set)):
            if event["metadata"]["id"] in self.seen:
                continue
            match event["event"]["type"]:
                case "sync_started":
                    started = True
                case "sync_completed" if started:
                    return SyncOutcome("completed", event["event"]["syncCompleted"]["message"])
                case "sync_failed" if started:
                    failed = event["event"]["syncFailed"]
                    return SyncOutcome("failed", failed["message"], failed["errorType"])
        return None


def _newest_events(server: Server, tool_set: ToolSetEntry) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.get(f"{tool_set.path}/events", expects="items", sortOrder="desc", limit=20)[
        "items"
    ]
    return found


def tool_set_entry(server: Server, wire: dict[str, Any]) -> ToolSetEntry:
    """A tool set out of the API's form."""
    metadata, info = wire["metadata"], wire["info"]
    adapter = wire["spec"].get("adapter") or {}
    kind = "capability" if "capability" in adapter else adapter.get("type", "")
    mcp = adapter.get("mcp") or {}
    base_uris = (adapter.get("capability") or {}).get("baseUris") or {}
    command = " ".join([mcp["command"], *mcp.get("args", ())]) if mcp.get("command") else ""
    return ToolSetEntry(
        id=metadata["id"],
        name=metadata["name"],
        slug=info["mcpPath"].rpartition("/")[2],
        external_id=metadata["externalId"],
        kind="stdio" if command else kind,
        target=command or mcp.get("url") or (adapter.get("http") or {}).get("baseUrl") or ", ".join(base_uris.values()),
        description=wire["spec"].get("description") or "",
        labels=metadata["labels"],
        available=info["availableTools"],
        filtered=info["omittedTools"],
        last_sync_at=info.get("lastSync"),
        mcp_url=server.url + info["mcpPath"],
    )


def tool_entry(wire: dict[str, Any], tool_set: str) -> ToolEntry:
    """A tool out of the API's form; `tool_set` is the slug of its tool set."""
    spec, info = wire["spec"], wire["info"]
    return ToolEntry(
        name=info["callName"],
        id=wire["metadata"]["id"],
        tool_set=tool_set,
        tool_set_id=info["toolSet"]["id"],
        title=(spec["config"].get("mcp") or spec["config"].get("capability") or {}).get("toolTitle") or "",
        status=spec["status"].removeprefix("TOOL_STATUS_").lower(),
        requires_approval=spec["requiresApproval"],
        description=spec["description"],
        parameters=spec["parameters"],
        config=spec["config"],
    )


def tool_sets(server: Server) -> Iterator[ToolSetEntry]:
    """Every tool set of the workspace, oldest first."""
    return (tool_set_entry(server, wire) for wire in server.pages(_ROOT, includeInfo="true"))


def find_tool_set(server: Server, name: str) -> ToolSetEntry:
    """The tool set with this id, external id, slug or name.

    Raises:
        CommandFailed: there is none, or there are several of that name.
    """
    if found := _matching(list(tool_sets(server)), name):
        return found
    raise CommandFailed(f"There is no tool set {name!r}; `toolcrib tools sets` lists those there are.")


def _matching(known: list[ToolSetEntry], name: str) -> ToolSetEntry | None:
    for tool_set in known:
        if name in {tool_set.id, tool_set.external_id}:
            return tool_set
    named = [tool_set for tool_set in known if name in {tool_set.slug, tool_set.name}]
    if len(named) > 1:
        raise CommandFailed(f"Several tool sets are called {name!r}; name one by its id: {_ids(named)}.")
    return named[0] if named else None


def _ids(found: list[ToolSetEntry]) -> str:
    return ", ".join(tool_set.id for tool_set in found)


def tools_of(server: Server, tool_set: ToolSetEntry) -> Iterator[ToolEntry]:
    """Every tool of a tool set, archived ones included."""
    pages = server.pages(f"{tool_set.path}/tools", includeInfo="true")
    return (tool_entry(wire, tool_set.slug) for wire in pages)


def find_tool(server: Server, name: str) -> ToolEntry:
    """The tool with this call name or id.

    Raises:
        CommandFailed: there is none.
    """
    for tool_set in tool_sets(server):
        for tool in tools_of(server, tool_set):
            if name in {tool.name, tool.id}:
                return tool
    raise CommandFailed(f"There is no tool {name!r}; `toolcrib tools list` lists those there are.")


def find_tool_or_set(server: Server, name: str) -> ToolEntry | ToolSetEntry:
    """What goes by this name, a tool set or a tool.

    Raises:
        CommandFailed: nothing does, or both do.
    """
    known = list(tool_sets(server))
    tool_set = _matching(known, name)
    for candidate in known:
        for tool in tools_of(server, candidate):
            if name not in {tool.name, tool.id}:
                continue
            if tool_set is not None:
                raise CommandFailed(
                    f"Both a tool set and a tool are called {name!r}; name one by its id: {tool_set.id}, {tool.id}."
                )
            return tool
    if tool_set is None:
        raise CommandFailed(f"There is neither a tool set nor a tool {name!r}.")
    return tool_set


def as_dict(entry: ToolSetEntry | ToolEntry | SyncOutcome) -> dict[str, Any]:
    """For JSON."""
    return asdict(entry)
