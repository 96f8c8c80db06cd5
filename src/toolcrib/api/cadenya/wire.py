"""Cadenya's words: pydantic types that copy its names. `convert.py` has the translations.

Source: `cadenya-toolsets` contract; members marked "later edition" come from the vendor's current client library.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Labels = dict[str, str]


class _In(BaseModel):
    """Input: unknown members are refused, so that a typing error never passes for a wish."""

    model_config = ConfigDict(extra="forbid", strict=True)


class CreateResourceMetadata(_In):
    """Identity that the caller chooses."""

    name: str
    externalId: str | None = None
    labels: Labels | None = None


class UpdateResourceMetadata(CreateResourceMetadata):
    """As on creation; the name is required whenever metadata is sent without a mask."""


class StringMatcher(_In):
    """Tests of a text; those given must all hold."""

    caseSensitive: bool | None = None
    contains: str | None = None
    endsWith: str | None = None
    exact: str | None = None
    regex: str | None = Field(None, description="RE2 syntax")
    startsWith: str | None = None
    type: str | None = Field(None, description="later edition; ignored")


class AttributeFilter(_In):
    """A test of one attribute of a tool."""

    attribute: Literal["ATTRIBUTE_UNSPECIFIED", "ATTRIBUTE_NAME", "ATTRIBUTE_TITLE", "ATTRIBUTE_DESCRIPTION"]
    matcher: StringMatcher | None = None


class McpToolFilter(_In):
    """Tests joined by AND or OR; unspecified is AND."""

    operator: Literal["OPERATOR_UNSPECIFIED", "OPERATOR_AND", "OPERATOR_OR"]
    filters: list[AttributeFilter] | None = None


class ToolApprovals(_In):
    """Which synced tools need approval."""

    always: bool | None = None
    only: McpToolFilter | None = None
    type: str | None = Field(None, description="later edition; ignored")


class ToolSetAdapterHTTP(_In):
    """An HTTP API."""

    baseUrl: str | None = None
    headers: dict[str, str] | None = None


class ToolSetAdapterMcp(_In):
    """An MCP server: `url`, or (Toolcrib's own) `command` with `args`, `env` and `cwd` for one on standard streams."""

    excludeTools: McpToolFilter | None = None
    headers: dict[str, str] | None = None
    includeTools: McpToolFilter | None = None
    toolApprovals: ToolApprovals | None = None
    url: str | None = None
    transport: Literal["auto", "http", "sse", "stdio"] | None = Field(None, description="auto tries http, then sse")
    command: str | None = None
    args: list[str] | None = None
    env: dict[str, str] | None = None
    cwd: str | None = None


class ToolSetAdapterCapability(_In):
    """A capability file (Toolcrib's own): its YAML text, where its APIs are, and the values of its binds."""

    source: str = Field(description="the YAML text")
    baseUris: dict[str, str] | None = Field(None, description="base URI by namespace of a consumed API")
    env: dict[str, str] | None = Field(None, description="values of binds; secrets")
    excludeTools: McpToolFilter | None = None
    includeTools: McpToolFilter | None = None
    toolApprovals: ToolApprovals | None = None


class Bare(_In):
    """Nothing: there is no adapter."""


class ToolSetAdapter(_In):
    """At most one of them."""

    http: ToolSetAdapterHTTP | None = None
    mcp: ToolSetAdapterMcp | None = None
    capability: ToolSetAdapterCapability | None = None
    bare: Bare | None = Field(None, description="later edition: no adapter")
    type: str | None = Field(None, description="later edition; ignored on input")


class ToolSetSpec(_In):
    """What the caller decides about a tool set."""

    adapter: ToolSetAdapter | None = None
    description: str | None = None


class CreateToolSet(_In):
    """A new tool set."""

    metadata: CreateResourceMetadata
    spec: ToolSetSpec


class _PartOf:
    """Documents a member as `model` but takes any object: an update may send part of it, checked once it is merged."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model

    def __get_pydantic_json_schema__(self, _core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(self._model.__pydantic_core_schema__)


class UpdateToolSet(_In):
    """Changes of a tool set; with `updateMask` only the members it names, without it those that are sent."""

    metadata: Annotated[dict[str, Any], _PartOf(UpdateResourceMetadata)] | None = None
    spec: Annotated[dict[str, Any], _PartOf(ToolSetSpec)] | None = None
    updateMask: str | None = None


class ConfigHTTP(_In):
    """How an HTTP tool makes its request; `{{ name }}` stands for an argument."""

    requestMethod: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    headers: dict[str, str] | None = Field(
        None, description="shown to whoever may read tools; credentials belong into the headers of the tool set"
    )
    path: str | None = None
    query: str | None = None
    requestBodyContentType: str | None = None
    requestBodyTemplate: str | None = None
    toolName: str | None = None


class ConfigMcp(_In):
    """Which tool of the MCP server."""

    toolDescription: str | None = None
    toolName: str | None = None
    toolTitle: str | None = None


class ConfigCapability(_In):
    """Which tool of the capability file."""

    toolDescription: str | None = None
    toolName: str | None = None
    toolTitle: str | None = None


class ToolSpecConfig(_In):
    """At most one of them, of the kind of the tool set's adapter."""

    http: ConfigHTTP | None = None
    mcp: ConfigMcp | None = None
    capability: ConfigCapability | None = None
    bare: Bare | None = Field(None, description="later edition: no adapter")
    type: str | None = Field(None, description="later edition; ignored on input")


ToolStatus = Literal["TOOL_STATUS_UNSPECIFIED", "TOOL_STATUS_AVAILABLE", "TOOL_STATUS_FILTERED", "TOOL_STATUS_ARCHIVED"]


class ToolSpec(_In):
    """What the caller decides about a tool."""

    config: ToolSpecConfig
    description: str
    parameters: dict[str, Any] = Field(description="JSON Schema of the arguments")
    status: ToolStatus
    requiresApproval: bool | None = None
    llmToolName: str | None = Field(None, description="later edition: the callable name inside the tool set")


class CreateTool(_In):
    """A new tool."""

    metadata: CreateResourceMetadata
    spec: ToolSpec


class UpdateTool(_In):
    """Changes of a tool, as for tool sets."""

    metadata: Annotated[dict[str, Any], _PartOf(UpdateResourceMetadata)] | None = None
    spec: Annotated[dict[str, Any], _PartOf(ToolSpec)] | None = None
    updateMask: str | None = None


class LaterToolSpec(ToolSpec):
    """The later edition has no status on input."""

    status: ToolStatus = "TOOL_STATUS_AVAILABLE"


class LaterCreateTool(CreateTool):
    """A new tool, later edition."""

    spec: LaterToolSpec


# ---- answers (for the OpenAPI document; values are plain dicts made below) -------------------------------------------


class ResourceMetadata(BaseModel):
    """Identity of a lasting resource."""

    id: str
    accountId: str
    createdAt: datetime
    name: str
    profileId: str
    workspaceId: str
    externalId: str = ""
    labels: Labels = {}
    updatedAt: datetime | None = None


class OperationMetadata(BaseModel):
    """Identity of an event."""

    id: str
    accountId: str
    createdAt: datetime
    profileId: str
    workspaceId: str
    externalId: str = ""
    labels: Labels = {}


class AccountResourceMetadata(BaseModel):
    """Identity of a resource of the account."""

    id: str
    accountId: str
    name: str
    profileId: str
    externalId: str = ""
    labels: Labels = {}


class ProfileSpec(BaseModel):
    """Who: a person, a key, or Toolcrib itself."""

    type: Literal["PROFILE_TYPE_USER", "PROFILE_TYPE_API_KEY", "PROFILE_TYPE_SYSTEM"]
    email: str = ""
    name: str = ""


class ProfileOut(BaseModel):
    """A person or machine of the account."""

    model_config = ConfigDict(title="Profile")
    metadata: AccountResourceMetadata
    spec: ProfileSpec


class ToolSetInfo(BaseModel):
    """What the server computes about a tool set."""

    agentCount: int = 0
    createdBy: ProfileOut | None = None
    lastSync: datetime | None = None
    toolCount: int = 0
    availableTools: int = 0
    omittedTools: int = 0
    mcpPath: str = Field("", description="path of this tool set's MCP endpoint")


class ToolSetOut(BaseModel):
    """A tool set."""

    model_config = ConfigDict(title="ToolSet")
    metadata: ResourceMetadata
    spec: ToolSetSpec
    state: str
    info: ToolSetInfo | None = None


class ToolInfo(BaseModel):
    """What the server computes about a tool."""

    createdBy: ProfileOut | None = None
    toolSet: ResourceMetadata | None = None
    signature: str = Field("", description="the tool as a function: call name and arguments")
    callName: str = Field("", description="name under which MCP and REST callers reach the tool")


class ToolOut(BaseModel):
    """A tool."""

    model_config = ConfigDict(title="Tool")
    metadata: ResourceMetadata
    spec: ToolSpec
    state: str
    info: ToolInfo | None = None


class SyncStarted(BaseModel):
    """A sync began."""

    message: str = ""


class SyncCompleted(BaseModel):
    """A sync ended well."""

    message: str = ""
    toolsSynced: int = 0


class SyncFailed(BaseModel):
    """A sync failed."""

    error: bool = True
    errorType: str = ""
    message: str = ""


class ToolSetEventData(BaseModel):
    """One of the three, named by `type`."""

    type: str
    syncStarted: SyncStarted | None = None
    syncCompleted: SyncCompleted | None = None
    syncFailed: SyncFailed | None = None


class ToolSetEventInfo(BaseModel):
    """What the server computes about an event."""

    createdBy: ProfileOut | None = None
    toolSet: ResourceMetadata | None = None


class ToolSetEventOut(BaseModel):
    """An event of a tool set."""

    model_config = ConfigDict(title="ToolSetEvent")
    metadata: OperationMetadata
    event: ToolSetEventData
    toolSetId: str
    info: ToolSetEventInfo | None = None


class Pagination(BaseModel):
    """`nextCursor` is empty on the last page."""

    model_config = ConfigDict(title="Page")
    nextCursor: str = ""
    total: int = 0


class ToolSetPage(BaseModel):
    """A page of tool sets."""

    items: list[ToolSetOut]
    pagination: Pagination


class ToolPage(BaseModel):
    """A page of tools."""

    items: list[ToolOut]
    pagination: Pagination


class ToolSetEventPage(BaseModel):
    """A page of events."""

    items: list[ToolSetEventOut]
    pagination: Pagination


class RpcStatus(BaseModel):
    """An error in the form of google.rpc.Status."""

    model_config = ConfigDict(title="Status")
    code: int
    message: str
    details: list[dict[str, Any]] = []
