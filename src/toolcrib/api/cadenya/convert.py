"""Pure translations between Cadenya's words and the domain."""

from datetime import UTC, datetime
from typing import Any, Literal

from toolcrib.api.cadenya.wire import (
    CreateTool,
    CreateToolSet,
    McpToolFilter,
    StringMatcher,
    ToolApprovals,
    ToolSetAdapter,
    ToolSpecConfig,
)
from toolcrib.core.auth import Actor
from toolcrib.core.paging import Page
from toolcrib.domain.adapters import Adapter, CapabilityAdapter, HttpAdapter, McpAdapter
from toolcrib.domain.tool_filters import Approvals, Matcher, ToolFilter
from toolcrib.domain.tool_sets import Identity, Profile, ToolSet, ToolSetDraft, ToolSetEvent
from toolcrib.domain.tools import CapabilityConfig, HttpConfig, McpConfig, Status, Tool, ToolConfig, ToolDraft
from toolcrib.errors import Invalid

Edition = Literal["published", "later"]

# ---- from the wire ---------------------------------------------------------------------------------------------------

_STATUSES: dict[str, Status] = {
    "TOOL_STATUS_UNSPECIFIED": "available",
    "TOOL_STATUS_AVAILABLE": "available",
    "TOOL_STATUS_FILTERED": "filtered",
    "TOOL_STATUS_ARCHIVED": "archived",
}
STATES: dict[str, Status] = {
    "STATE_AVAILABLE": "available",
    "STATE_OMITTED": "filtered",
    "STATE_ARCHIVED": "archived",
}
_ATTRIBUTES: dict[str, Literal["name", "title", "description"]] = {
    "ATTRIBUTE_UNSPECIFIED": "name",
    "ATTRIBUTE_NAME": "name",
    "ATTRIBUTE_TITLE": "title",
    "ATTRIBUTE_DESCRIPTION": "description",
}
_ATTRIBUTES_OUT = {"name": "ATTRIBUTE_NAME", "title": "ATTRIBUTE_TITLE", "description": "ATTRIBUTE_DESCRIPTION"}


def from_wire_filter(wire: McpToolFilter | None) -> ToolFilter | None:
    """A filter over upstream tools."""
    if wire is None:
        return None
    matchers = []
    for item in wire.filters or ():
        m = item.matcher or StringMatcher()
        matchers.append(
            Matcher(
                attribute=_ATTRIBUTES[item.attribute],
                exact=m.exact,
                contains=m.contains,
                starts_with=m.startsWith,
                ends_with=m.endsWith,
                regex=m.regex,
                case_sensitive=bool(m.caseSensitive),
            )
        )
    return ToolFilter("or" if wire.operator == "OPERATOR_OR" else "and", tuple(matchers))


def from_wire_adapter(wire: ToolSetAdapter | None) -> Adapter | None:
    """The adapter, or None. Raises Invalid when several kinds are given."""
    if wire is None:
        return None
    if [wire.http, wire.mcp, wire.capability, wire.bare].count(None) < 3:
        raise Invalid("adapter.both", "A tool set has one adapter: http, mcp or capability.", field="spec.adapter")
    if wire.http is not None:
        return HttpAdapter(wire.http.baseUrl, wire.http.headers or {})
    if wire.capability is not None:
        file = wire.capability
        return CapabilityAdapter(
            file.source,
            file.baseUris or {},
            file.env or {},
            from_wire_filter(file.includeTools),
            from_wire_filter(file.excludeTools),
            _approvals(file.toolApprovals),
        )
    if wire.mcp is None:
        return None
    mcp = wire.mcp
    return McpAdapter(
        url=mcp.url,
        transport=mcp.transport or "auto",
        headers=mcp.headers or {},
        command=mcp.command,
        args=tuple(mcp.args or ()),
        env=mcp.env or {},
        cwd=mcp.cwd,
        include=from_wire_filter(mcp.includeTools),
        exclude=from_wire_filter(mcp.excludeTools),
        approvals=_approvals(mcp.toolApprovals),
    )


def _approvals(wire: ToolApprovals | None) -> Approvals | None:
    return Approvals(bool(wire.always), from_wire_filter(wire.only)) if wire else None


def from_wire_tool_set(wire: CreateToolSet) -> ToolSetDraft:
    """What the caller decides about a tool set."""
    return ToolSetDraft(
        wire.metadata.name,
        wire.metadata.externalId or None,
        wire.metadata.labels or {},
        wire.spec.description,
        from_wire_adapter(wire.spec.adapter),
    )


def from_wire_config(wire: ToolSpecConfig) -> ToolConfig | None:
    """How the tool is called, or None. Raises Invalid when several kinds are given."""
    if [wire.http, wire.mcp, wire.capability, wire.bare].count(None) < 3:
        raise Invalid("config.both", "A tool has one config: http, mcp or capability.", field="spec.config")
    if wire.http is not None:
        http = wire.http
        return HttpConfig(
            method=http.requestMethod,
            path=http.path,
            query=http.query,
            headers=http.headers or {},
            body=http.requestBodyTemplate or None,
            content_type=http.requestBodyContentType or None,
            operation=http.toolName,
        )
    if wire.mcp is not None:
        return McpConfig(wire.mcp.toolName, wire.mcp.toolTitle, wire.mcp.toolDescription)
    if (file := wire.capability) is not None:
        return CapabilityConfig(file.toolName, file.toolTitle, file.toolDescription)
    return None


def from_wire_tool(wire: CreateTool) -> ToolDraft:
    """What the caller decides about a tool."""
    return ToolDraft(
        name=wire.metadata.name,
        description=wire.spec.description,
        parameters=wire.spec.parameters,
        config=from_wire_config(wire.spec.config),
        status=_STATUSES[wire.spec.status],
        requires_approval=bool(wire.spec.requiresApproval),
        external_id=wire.metadata.externalId or None,
        labels=wire.metadata.labels or {},
        callable_as=wire.spec.llmToolName or None,
    )


def from_wire_labels(text: str | None) -> dict[str, str]:
    """`a=b,c=d` as a mapping. Raises Invalid for anything else."""
    labels = {}
    for part in (text or "").split(","):
        key, separator, value = part.partition("=")
        if part.strip() and not separator:
            raise Invalid("labels.filter_invalid", "labels is key=value, comma-separated.", field="labels")
        if separator:
            labels[key.strip()] = value.strip()
    return labels


# ---- to the wire -----------------------------------------------------------------------------------------------------


def to_wire_time(at: datetime) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _drop_none(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def to_wire_filter(tool_filter: ToolFilter | None) -> dict[str, Any] | None:
    """A filter, each matcher with its `type` of the later edition."""
    if tool_filter is None:
        return None
    filters = []
    for m in tool_filter.filters:
        tests = {
            "exact": m.exact,
            "contains": m.contains,
            "startsWith": m.starts_with,
            "endsWith": m.ends_with,
            "regex": m.regex,
        }
        given = _drop_none(tests)
        matcher = {"type": next(iter(given)), **given, "caseSensitive": m.case_sensitive}
        filters.append({"attribute": _ATTRIBUTES_OUT[m.attribute], "matcher": matcher})
    return {"operator": "OPERATOR_OR" if tool_filter.operator == "or" else "OPERATOR_AND", "filters": filters}


def to_wire_adapter(adapter: Adapter | None) -> dict[str, Any]:
    """The adapter; an empty object for none."""
    if adapter is None:
        return {}
    if isinstance(adapter, HttpAdapter):
        return {"type": "http", "http": _drop_none({"baseUrl": adapter.base_url, "headers": adapter.headers})}
    choice = {
        "includeTools": to_wire_filter(adapter.include),
        "excludeTools": to_wire_filter(adapter.exclude),
        "toolApprovals": _to_wire_approvals(adapter.approvals),
    }
    if isinstance(adapter, CapabilityAdapter):
        file = {"source": adapter.source, "baseUris": adapter.base_uris or None, "env": adapter.env or None}
        # no `type`: the vendor's clients refuse whole pages for one that they do not know
        return {"capability": _drop_none({**file, **choice})}
    mcp = {
        "url": adapter.url,
        "headers": adapter.headers,
        "transport": adapter.transport if adapter.transport != "auto" else None,
        "command": adapter.command,
        "args": list(adapter.args) or None,
        "env": adapter.env or None,
        "cwd": adapter.cwd,
        **choice,
    }
    return {"type": "mcp", "mcp": _drop_none(mcp)}


def _to_wire_approvals(approvals: Approvals | None) -> dict[str, Any] | None:
    if approvals is None:
        return None
    only = to_wire_filter(approvals.only)
    wire: dict[str, Any] = {"type": "only" if only else "always", **_drop_none({"only": only})}
    if only is None or approvals.always:
        wire["always"] = approvals.always
    return wire


def to_wire_profile(profile: Profile) -> dict[str, Any]:
    """A principal; keys and the system have no e-mail."""
    metadata = {
        "id": profile.id,
        "accountId": profile.account_id,
        "name": profile.name,
        "profileId": profile.id,
        "externalId": "",
        "labels": {},
    }
    kind = f"PROFILE_TYPE_{profile.kind.upper()}"
    return {"metadata": metadata, "spec": {"type": kind, "email": profile.email or "", "name": profile.name}}


def to_wire_metadata(identity: Identity) -> dict[str, Any]:
    """Identity of a tool set or tool."""
    return {
        "id": identity.id,
        "accountId": identity.account_id,
        "workspaceId": identity.workspace_id,
        "profileId": identity.created_by.id,
        "name": identity.name,
        "externalId": identity.external_id or "",
        "labels": dict(identity.labels),
        "createdAt": to_wire_time(identity.created_at),
        "updatedAt": to_wire_time(identity.updated_at),
    }


def to_wire_tool_set_draft(draft: ToolSetDraft) -> dict[str, Any]:
    """The part of a tool set that updates start from."""
    metadata = {"name": draft.name, "externalId": draft.external_id, "labels": dict(draft.labels)}
    return {
        "metadata": metadata,
        "spec": _drop_none({"adapter": to_wire_adapter(draft.adapter), "description": draft.description}),
    }


def to_wire_tool_set(tool_set: ToolSet, *, info: bool = True) -> dict[str, Any]:
    """A tool set."""
    wire = {
        "metadata": to_wire_metadata(tool_set.identity),
        "spec": to_wire_tool_set_draft(tool_set.draft)["spec"],
        "state": "STATE_ACTIVE",
    }
    if info:
        counts = tool_set.counts
        available, filtered = (counts.available, counts.filtered) if counts else (0, 0)
        wire["info"] = {
            "agentCount": 0,  # agents come with their own dialect; no tool set has any yet
            "toolCount": available + filtered,
            "availableTools": available,
            "omittedTools": filtered,
            "createdBy": to_wire_profile(tool_set.identity.created_by),
            "mcpPath": f"/mcp/{tool_set.slug}",
            **({"lastSync": to_wire_time(tool_set.last_sync_at)} if tool_set.last_sync_at else {}),
        }
    return wire


def to_wire_config(config: ToolConfig | None) -> dict[str, Any]:
    """How the tool is called; an empty object for a tool without an adapter."""
    if config is None:
        return {}
    if not isinstance(config, HttpConfig):
        names = {"toolName": config.tool_name, "toolTitle": config.title, "toolDescription": config.description}
        told = _drop_none(names)
        return {"type": "mcp", "mcp": told} if isinstance(config, McpConfig) else {"capability": told}
    http = {
        "requestMethod": config.method,
        "path": config.path,
        "query": config.query,
        "headers": config.headers or None,
        "requestBodyTemplate": config.body,
        "requestBodyContentType": config.content_type,
        "toolName": config.operation,
    }
    return {"type": "http", "http": _drop_none(http)}


def to_wire_tool_draft(draft: ToolDraft) -> dict[str, Any]:
    """The part of a tool that updates start from."""
    return {
        "metadata": {"name": draft.name, "externalId": draft.external_id, "labels": dict(draft.labels)},
        "spec": {
            "config": to_wire_config(draft.config),
            "description": draft.description,
            "parameters": draft.parameters,
            "status": f"TOOL_STATUS_{draft.status.upper()}",
            "requiresApproval": draft.requires_approval,
            "llmToolName": draft.callable_as,
        },
    }


_STATES_OUT = {status: state for state, status in STATES.items()}


def to_wire_tool(tool: Tool, *, info: bool = True) -> dict[str, Any]:
    """A tool."""
    wire = {
        "metadata": to_wire_metadata(tool.identity),
        "spec": to_wire_tool_draft(tool.draft)["spec"],
        "state": _STATES_OUT[tool.draft.status],
    }
    if info:
        properties = tool.draft.parameters.get("properties")  # an MCP server may have put anything there
        arguments = ", ".join(properties) if isinstance(properties, dict) else ""
        wire["info"] = {
            "createdBy": to_wire_profile(tool.identity.created_by),
            "toolSet": to_wire_metadata(tool.tool_set),
            "signature": f"{tool.call_name}({arguments})",
            "callName": tool.call_name,
        }
    return wire


_EVENT_MEMBERS = {"sync_started": "syncStarted", "sync_completed": "syncCompleted", "sync_failed": "syncFailed"}


def to_wire_event(event: ToolSetEvent, actor: Actor, *, edition: Edition, info: bool) -> dict[str, Any]:
    """An event; its type is `sync_started` in the published edition and `syncStarted` in the later one."""
    member = _EVENT_MEMBERS[event.kind]
    payload = event.payload
    data: dict[str, Any] = {"message": payload.get("message", "")}
    if event.kind == "sync_completed":
        data["toolsSynced"] = payload.get("tools_synced", 0)
    elif event.kind == "sync_failed":
        data |= {"error": True, "errorType": payload.get("error_type", "")}
    wire = {
        "metadata": {
            "id": event.id,
            "accountId": actor.account_id,
            "workspaceId": actor.workspace_id,
            "profileId": event.created_by.id,
            "externalId": "",
            "labels": {},
            "createdAt": to_wire_time(event.created_at),
        },
        "event": {"type": event.kind if edition == "published" else member, member: data},
        "toolSetId": event.tool_set.identity.id,
    }
    if info:
        wire["info"] = {
            "createdBy": to_wire_profile(event.created_by),
            "toolSet": to_wire_metadata(event.tool_set.identity),
        }
    return wire


def to_wire_page(page: Page[Any], items: list[dict[str, Any]]) -> dict[str, Any]:
    """A page; `nextCursor` is empty on the last one."""
    return {"items": items, "pagination": {"nextCursor": page.next_cursor or "", "total": page.total}}
