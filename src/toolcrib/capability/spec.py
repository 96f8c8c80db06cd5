"""The capability document as read: frozen records with the place each came from, and nothing decided yet.

`load.py` makes them, `lint.py` judges them, `planner.py` compiles them. Names are those of the published format; texts
are templates still to be compiled. An absent field is None or empty; `at` is where the record starts in its file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal


class _Absent:
    """The one value that says "not given", where null is a value."""

    def __repr__(self) -> str:
        return "ABSENT"

    def __bool__(self) -> bool:
        return False


ABSENT: Final = _Absent()


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file; line and column count from 1."""

    file: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Input:
    """An input parameter: of a consumed API or operation, or of something exposed.

    `value` is a literal or a template text (`template`, its older name, is read as `value`); ABSENT if not given.
    `location` is the field `in`: query header path cookie body environment; None if not given.
    `required` is None if not given: the default differs between REST, MCP and consumed inputs.
    """

    name: str
    at: Mark
    location: str | None = None
    type: str | None = None
    description: str | None = None
    required: bool | None = None
    value: Any = ABSENT
    pattern: str | None = None
    enum: tuple[Any, ...] = ()
    default: Any = ABSENT
    items: Mapping[str, Any] | None = None
    properties: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One output parameter, or a property, the items or the entries of one.

    A `value` that starts with `$` on a named entry without `mapping` has already become its `mapping`.
    """

    at: Mark
    name: str | None = None
    type: str | None = None
    description: str | None = None
    mapping: str | None = None
    value: Any = ABSENT
    properties: tuple[tuple[str, "Output"], ...] = ()
    items: "Output | None" = None
    values: "Output | None" = None
    max_length: int | None = None
    enum: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Auth:
    """An `authentication` block: its type (lower case) and its fields as written."""

    type: str
    fields: Mapping[str, Any]
    at: Mark


BodyType = Literal["raw", "json", "text", "xml", "sparql", "formUrlEncoded", "multipartForm"]


@dataclass(frozen=True, slots=True)
class Body:
    """A consumed operation's `body`; `raw` is a plain string."""

    type: BodyType
    data: Any
    at: Mark


@dataclass(frozen=True, slots=True)
class ConsumedOperation:
    """One operation of a consumed API."""

    name: str
    method: str
    at: Mark
    description: str | None = None
    inputs: tuple[Input, ...] = ()
    raw_format: str | None = None  # as written; None means json
    output_schema: str | None = None
    outputs: tuple[Output, ...] = ()
    body: Body | None = None
    extension: Mapping[str, Any] = field(default_factory=dict)  # `x-toolcrib`


@dataclass(frozen=True, slots=True)
class ConsumedResource:
    """A path of a consumed API with its operations."""

    name: str
    path: str
    at: Mark
    description: str | None = None
    inputs: tuple[Input, ...] = ()
    operations: tuple[ConsumedOperation, ...] = ()


@dataclass(frozen=True, slots=True)
class Consumed:
    """A consumed HTTP API. `folder` is where its file lies: schema files are looked up there too."""

    namespace: str
    base_uri: str
    at: Mark
    folder: str
    description: str | None = None
    inputs: tuple[Input, ...] = ()
    authentication: Auth | None = None
    resources: tuple[ConsumedResource, ...] = ()
    extension: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WithEntry:
    """`key: value` of a `with`."""

    key: str
    value: Any
    at: Mark


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an orchestration; `type` is call, lookup or script, and the fields of the others are empty."""

    type: str
    name: str
    at: Mark
    call: str | None = None
    with_: tuple[WithEntry, ...] = ()
    index: str | None = None
    match: str | None = None
    lookup_value: str | None = None
    output_names: tuple[str, ...] = ()
    language: str | None = None
    location: str | None = None
    file: str | None = None
    dependencies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepMapping:
    """Where a value of the steps goes in the answer: `targetName` (dots nest) and a JSONPath rooted at the steps."""

    target: str
    value: str
    at: Mark


@dataclass(frozen=True, slots=True)
class Action:
    """What an exposed thing or a function does: a call, steps, a reference to a function, or a mock of its outputs."""

    call: str | None = None
    with_: tuple[WithEntry, ...] = ()
    steps: tuple[Step, ...] = ()
    mappings: tuple[StepMapping, ...] = ()
    ref: str | None = None
    outputs: tuple[Output, ...] = ()


@dataclass(frozen=True, slots=True)
class RestOperation:
    """A method of an exposed resource."""

    method: str
    name: str | None
    at: Mark
    action: Action
    label: str | None = None
    description: str | None = None
    inputs: tuple[Input, ...] = ()


@dataclass(frozen=True, slots=True)
class Forward:
    """A resource that passes on what no operation takes."""

    namespace: str
    trusted_headers: tuple[str, ...]
    at: Mark


@dataclass(frozen=True, slots=True)
class RestResource:
    """An exposed path with its operations."""

    path: str
    at: Mark
    name: str | None = None
    label: str | None = None
    description: str | None = None
    inputs: tuple[Input, ...] = ()
    operations: tuple[RestOperation, ...] = ()
    forward: Forward | None = None


@dataclass(frozen=True, slots=True)
class RestServer:
    """`exposes` of type rest."""

    namespace: str
    at: Mark
    address: str | None = None
    port: int | None = None
    description: str | None = None
    authentication: Auth | None = None
    inputs: tuple[Input, ...] = ()
    resources: tuple[RestResource, ...] = ()
    extension: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of an MCP server; `hints` use the names of the format: readOnly destructive idempotent openWorld."""

    name: str
    at: Mark
    action: Action
    label: str | None = None
    description: str | None = None
    inputs: tuple[Input, ...] = ()
    hints: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class McpResource:
    """A resource of an MCP server: `location` makes it static files, otherwise its action is run."""

    name: str
    uri: str
    at: Mark
    action: Action
    label: str | None = None
    description: str | None = None
    mime_type: str | None = None
    location: str | None = None


@dataclass(frozen=True, slots=True)
class PromptArgument:
    """An argument of a prompt."""

    name: str
    label: str | None = None
    description: str | None = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of an MCP server: `template` pairs of role and content, or a file at `location`."""

    name: str
    at: Mark
    label: str | None = None
    description: str | None = None
    arguments: tuple[PromptArgument, ...] = ()
    template: tuple[tuple[str, str], ...] = ()
    location: str | None = None


@dataclass(frozen=True, slots=True)
class McpServer:
    """`exposes` of type mcp; `transport` is http or stdio."""

    namespace: str
    at: Mark
    transport: str = "http"
    address: str | None = None
    port: int | None = None
    description: str | None = None
    authentication: Auth | None = None
    tools: tuple[Tool, ...] = ()
    resources: tuple[McpResource, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    extension: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SkillTool:
    """A tool of a skill: derived from a sibling server (`source_namespace`, `action`) or an instruction file."""

    name: str
    at: Mark
    description: str | None = None
    source_namespace: str | None = None
    action: str | None = None
    instruction: str | None = None


@dataclass(frozen=True, slots=True)
class Skill:
    """A skill of a catalogue; `metadata` holds license, compatibility, allowed-tools and the like as written."""

    name: str
    at: Mark
    description: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    location: str | None = None
    tools: tuple[SkillTool, ...] = ()


@dataclass(frozen=True, slots=True)
class SkillServer:
    """`exposes` of type skill."""

    namespace: str
    at: Mark
    address: str | None = None
    port: int | None = None
    description: str | None = None
    authentication: Auth | None = None
    skills: tuple[Skill, ...] = ()
    extension: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ControlServer:
    """`exposes` of type control, with its settings as written."""

    at: Mark
    namespace: str = "control"
    address: str | None = None
    port: int | None = None
    authentication: Auth | None = None
    management: Mapping[str, Any] = field(default_factory=dict)
    observability: Mapping[str, Any] = field(default_factory=dict)
    extension: Mapping[str, Any] = field(default_factory=dict)


Server = RestServer | McpServer | SkillServer | ControlServer


@dataclass(frozen=True, slots=True)
class Function:
    """A function of an aggregate; `semantics` holds safe, idempotent, cacheable."""

    name: str
    at: Mark
    action: Action
    description: str | None = None
    semantics: Mapping[str, bool] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Functions shared by servers, called as `namespace.function`."""

    namespace: str
    at: Mark
    label: str | None = None
    functions: tuple[Function, ...] = ()


@dataclass(frozen=True, slots=True)
class Bind:
    """Variables and where their values are; `keys` maps a variable to its key in the source.

    Without `location` the source is the environment. `folder` is where the file that declares it lies.
    """

    namespace: str
    at: Mark
    folder: str
    location: str | None = None
    description: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Document:
    """A capability file with everything it imports. `folder` is where relative files are looked up."""

    path: str
    folder: str
    version: str
    label: str
    at: Mark
    description: str | None = None
    tags: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    binds: tuple[Bind, ...] = ()
    consumes: tuple[Consumed, ...] = ()
    servers: tuple[Server, ...] = ()
    aggregates: tuple[Aggregate, ...] = ()
    files: tuple[str, ...] = ()  # every file that was read, this one first: what --watch looks at

    def server(self, namespace: str) -> Server | None:
        """The server of that namespace."""
        return next((server for server in self.servers if server.namespace == namespace), None)
