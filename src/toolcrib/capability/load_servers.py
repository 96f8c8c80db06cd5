"""Reads the sections of a capability: binds, consumed APIs, servers and aggregates.

A broken entry is dropped with a finding and the others stay; imports have been resolved before (`load_imports.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from toolcrib.capability.load_actions import (
    ACTION_FIELDS,
    read_action,
    read_body,
    read_inputs,
    read_outputs,
)
from toolcrib.capability.load_auth import read_auth
from toolcrib.capability.load_fields import Record, kind, short
from toolcrib.capability.spec import (
    Aggregate,
    Bind,
    Consumed,
    ConsumedOperation,
    ConsumedResource,
    ControlServer,
    Forward,
    Function,
    McpResource,
    McpServer,
    Prompt,
    PromptArgument,
    RestOperation,
    RestResource,
    RestServer,
    Server,
    Skill,
    SkillServer,
    SkillTool,
    Tool,
)
from toolcrib.capability.yaml_source import Node

EXTENSION: Final = "x-toolcrib"
_TOLD = "name label description tags"
_LISTEN = f"type namespace address port description label tags authentication {EXTENSION}"

BIND = kind("bind", "namespace description location keys label tags")
CONSUMED = kind(
    "consumed API",
    f"type namespace baseUri description label tags inputParameters authentication resources {EXTENSION}",
)
CONSUMED_RESOURCE = kind("consumed resource", f"{_TOLD} path inputParameters operations")
CONSUMED_OPERATION = kind(
    "consumed operation",
    f"{_TOLD} method path inputParameters outputRawFormat outputSchema outputParameters body outputMediaType "
    f"maxBinarySize semantics {EXTENSION}",
)
EXPOSED = kind(
    "server",
    f"{_LISTEN} inputParameters resources transport tools prompts skills management observability tunnel "
    "maxBinarySize ttlMs cacheScope",
)
REST_RESOURCE = kind("resource", f"{_TOLD} path inputParameters operations forward")
REST_OPERATION = kind(
    "operation", f"{_TOLD} method inputParameters {ACTION_FIELDS} responses responseBinary semantics {EXTENSION}"
)
FORWARD = kind("forward", "targetNamespace trustedHeaders description")
TOOL = kind("tool", f"{_TOLD} inputParameters {ACTION_FIELDS} hints ttlMs cacheScope semantics {EXTENSION}")
MCP_RESOURCE = kind(
    "MCP resource", f"{_TOLD} uri mimeType location binary ttlMs cacheScope inputParameters {ACTION_FIELDS}"
)
PROMPT = kind("prompt", f"{_TOLD} arguments template location")
ARGUMENT = kind("prompt argument", f"{_TOLD} required type")
MESSAGE = kind("prompt message", "role content")
_SKILL_METADATA = "license compatibility metadata allowed-tools argument-hint user-invocable disable-model-invocation"
SKILL = kind("skill", f"{_TOLD} {_SKILL_METADATA} location tools")
SKILL_TOOL = kind("skill tool", f"{_TOLD} from instruction")
SOURCE = kind("skill tool source", "sourceNamespace action")
AGGREGATE = kind("aggregate", f"{_TOLD} namespace functions")
FUNCTION = kind("function", f"{_TOLD} semantics inputParameters {ACTION_FIELDS} outputMediaType mock")

_CONSUMED_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
_EXPOSED_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_HINTS: Final = {
    **{name: name for name in ("readOnly", "destructive", "idempotent", "openWorld")},
    **{f"{name}Hint": name for name in ("readOnly", "destructive", "idempotent", "openWorld")},
}
_SEMANTICS: Final = {name: name for name in ("safe", "idempotent", "cacheable")}


def read_bind(record: Record, folder: str) -> Bind:
    """An entry of `binds`."""
    namespace = record.name("namespace")
    if not namespace:
        record.unusable("namespace-missing", "The bind has no namespace", "give it a namespace")
    node = record.node("keys")
    keys: dict[str, str] = {}
    if node is not None and isinstance(node.value, dict):
        for variable, key in node.value.items():
            if key.text:
                keys[variable] = key.text
            else:
                record.report.error(
                    "bind-key",
                    f"The variable {short(variable)} has no key of its source",
                    "it is not declared",
                    "write `VARIABLE: key`",
                    key.at,
                )
    else:
        keys = {name: name for name in record.texts("keys")}
    if not keys:
        record.report.warning(
            "bind-empty", f"The bind {short(namespace)} declares no variable", "none", "give it keys", record.at
        )
    return Bind(
        namespace=namespace,
        at=record.at,
        folder=folder,
        location=record.text("location") or None,
        description=record.text("description"),
        keys=keys,
    )


def read_consumed(record: Record, folder: str) -> Consumed:
    """An entry of `consumes`."""
    type_ = (record.text("type") or "").lower()
    if type_ not in {"http", ""}:
        record.unusable("consumes-type", f"The type {short(type_)} cannot be consumed", "write `type: http`")
    namespace = record.name("namespace")
    if not namespace:
        record.unusable("namespace-missing", "The consumed API has no namespace to call it by", "give it a namespace")
    return Consumed(
        namespace=namespace,
        base_uri=record.address("baseUri"),
        at=record.at,
        folder=folder,
        description=record.text("description"),
        inputs=read_inputs(record, is_shared=True),
        authentication=read_auth(record, is_server=False),
        resources=_resources(record),
        extension=record.map(EXTENSION),
    )


def _resources(record: Record) -> tuple[ConsumedResource, ...]:
    """The resources of an API; operations that have a path of their own become resources beside theirs.

    Such a path stands for the whole one in some published files and for what follows that of the resource in others:
    for the whole one if any in the API begins with the path of its resource.
    """
    found = record.each("resources", CONSUMED_RESOURCE, _consumed_resource)
    own = [(resource.path, path) for resource, paths in found for path in paths if path]
    whole = any(path == above or path.startswith(f"{above.rstrip('/')}/") for above, path in own if above.strip("/"))
    resources: list[ConsumedResource] = []
    for resource, paths in found:
        parts: dict[str, list[ConsumedOperation]] = {}
        for path, operation in zip(paths, resource.operations, strict=True):
            address = _address(resource.path, path, whole=whole)
            if path and address != resource.path:
                record.report.note(
                    "operation-path",
                    f"The consumed operation {short(operation.name)} has a path of its own",
                    f"its requests go to {short(address)}",
                    "write a resource with this path",
                    operation.at,
                )
            parts.setdefault(address, []).append(operation)
        resources += [replace(resource, path=address, operations=tuple(part)) for address, part in parts.items()]
        if not parts:
            resources.append(resource)
    return tuple(resources)


def _address(above: str, own: str, *, whole: bool) -> str:
    """The path of an operation, given that of its resource and its own."""
    if not own or whole:
        return own or above
    return f"{above.rstrip('/')}/{own.lstrip('/')}" if own.strip("/") else above


def _consumed_resource(record: Record) -> tuple[ConsumedResource, tuple[str, ...]]:
    """A resource, and for each of its operations the path that it has itself."""
    found = record.each("operations", CONSUMED_OPERATION, lambda r: (_consumed_operation(r), r.address("path")))
    resource = ConsumedResource(
        name=record.name() or record.text("path") or "",
        path=record.address("path"),
        at=record.at,
        description=record.text("description"),
        inputs=read_inputs(record, is_shared=True),
        operations=tuple(operation for operation, _ in found),
    )
    return resource, tuple(path for _, path in found)


def _consumed_operation(record: Record) -> ConsumedOperation:
    return ConsumedOperation(
        name=record.required_name(),
        method=_method(record, _CONSUMED_METHODS),
        at=record.at,
        description=record.text("description"),
        inputs=read_inputs(record),
        raw_format=record.text("outputRawFormat") or None,
        output_schema=record.text("outputSchema"),
        outputs=read_outputs(record),
        body=read_body(record),
        extension=record.map(EXTENSION),
    )


def _method(record: Record, allowed: tuple[str, ...]) -> str:
    method = (record.text("method", needed=True) or "GET").strip().upper()
    if method not in allowed:
        record.unusable(
            "method-unknown",
            f"{short(method)} is no method that the {record.kind.name} can have",
            f"write one of {', '.join(allowed)}",
            record.at_field("method"),
        )
    return method


def read_server(record: Record) -> Server:
    """An entry of `exposes`; raises Unusable when its type is unknown."""
    type_ = (record.text("type") or _guess(record)).lower()
    reader = _READERS.get(type_)
    if reader is None:
        record.unusable(
            "exposes-type",
            f"The server has the unknown type {short(type_)}",
            "write rest, mcp, skill or control",
            record.at_field("type"),
        )
    return reader(record)


def _guess(record: Record) -> str:
    guessed = next((name for field, name in (("tools", "mcp"), ("skills", "skill")) if record.has(field)), None)
    guessed = guessed or ("rest" if record.has("resources") else "")
    if guessed:
        record.report.warning(
            "type-missing", "The server has no type", f"it is taken as {guessed}", f"write `type: {guessed}`", record.at
        )
    return guessed


def _namespace(record: Record, fallback: str) -> str:
    namespace = record.name("namespace")
    if not namespace:
        record.report.warning(
            "namespace-missing", "The server has no namespace", f"it is called {fallback}", "give it one", record.at
        )
    return namespace or fallback


def _listening(record: Record, type_: str) -> dict[str, Any]:
    """What every kind of server has."""
    return {
        "namespace": _namespace(record, type_) if type_ != "control" else record.text("namespace") or type_,
        "at": record.at,
        "address": record.text("address") or None,
        "port": record.integer("port", least=0, most=65535),
        "authentication": read_auth(record, is_server=True),
        "extension": record.map(EXTENSION),
    }


def _rest(record: Record) -> RestServer:
    return RestServer(
        **_listening(record, "rest"),
        description=record.text("description"),
        inputs=read_inputs(record, is_shared=True),
        resources=record.each("resources", REST_RESOURCE, _rest_resource),
    )


def _rest_resource(record: Record) -> RestResource:
    path = record.address("path") or record.required_text("path")
    return RestResource(
        path=path,
        at=record.at,
        name=record.name(),
        label=record.text("label"),
        description=record.text("description"),
        inputs=read_inputs(record, is_shared=True),
        operations=record.each("operations", REST_OPERATION, _rest_operation),
        forward=_forward(record),
    )


def _forward(record: Record) -> Forward | None:
    node = record.node("forward")
    if node is not None and node.text:
        return Forward(node.text, (), node.at)
    forward = record.record("forward", FORWARD)
    if forward is None:
        return None
    return Forward(forward.required_text("targetNamespace"), forward.texts("trustedHeaders"), forward.at)


def _rest_operation(record: Record) -> RestOperation:
    return RestOperation(
        method=_method(record, _EXPOSED_METHODS),
        name=record.name(),
        at=record.at,
        action=read_action(record),
        label=record.text("label"),
        description=record.text("description"),
        inputs=read_inputs(record),
    )


def _mcp(record: Record) -> McpServer:
    transport = (record.text("transport") or "http").lower()
    if transport not in {"http", "stdio"}:
        record.report.warning(
            "transport-unknown",
            f"{short(transport)} is no transport",
            "it is taken as http",
            "write http or stdio",
            record.at_field("transport"),
        )
        transport = "http"
    return McpServer(
        **_listening(record, "mcp"),
        transport=transport,
        description=record.text("description"),
        tools=record.each("tools", TOOL, _tool),
        resources=record.each("resources", MCP_RESOURCE, _mcp_resource),
        prompts=record.each("prompts", PROMPT, _prompt),
    )


def _tool(record: Record) -> Tool:
    action = read_action(record)
    name = record.name() or (action.ref.rpartition(".")[2] if action.ref else None)
    if not name:
        record.unusable("name-missing", "The tool has no name", "give it a name")
    return Tool(
        name=name,
        at=record.at,
        action=action,
        label=record.text("label"),
        description=record.text("description"),
        inputs=read_inputs(record),
        hints=_flags(record, "hints", _HINTS),
    )


def _flags(record: Record, field: str, names: Mapping[str, str]) -> dict[str, bool]:
    """A map of booleans, under the names of the format."""
    flags = record.record(field, kind(field, " ".join(names)))
    if flags is None:
        return {}
    found = {}
    for written, name in reversed(list(names.items())):  # the names of the format win
        value = flags.flag(written)
        if value is not None:
            found[name] = value
    return found


def _mcp_resource(record: Record) -> McpResource:
    uri = record.required_text("uri")
    return McpResource(
        name=record.name() or uri,
        uri=uri,
        at=record.at,
        action=read_action(record),
        label=record.text("label"),
        description=record.text("description"),
        mime_type=record.text("mimeType"),
        location=record.text("location", needed=True),
    )


def _prompt(record: Record) -> Prompt:
    return Prompt(
        name=record.required_name(),
        at=record.at,
        label=record.text("label"),
        description=record.text("description"),
        arguments=_arguments(record),
        template=_messages(record),
        location=record.text("location", needed=True),
    )


def _arguments(record: Record) -> tuple[PromptArgument, ...]:
    def read(argument: Record) -> PromptArgument:
        return PromptArgument(
            name=argument.required_name(),
            label=argument.text("label"),
            description=argument.text("description"),
            required=argument.flag("required") or False,
        )

    node = record.node("arguments")
    if node is not None and isinstance(node.value, list) and node.value and all(child.text for child in node.value):
        return tuple(PromptArgument(child.text) for child in node.value if child.text)
    return record.each("arguments", ARGUMENT, read)


def _messages(record: Record) -> tuple[tuple[str, str], ...]:
    def read(message: Record) -> tuple[str, str]:
        role = (message.text("role") or "user").lower()
        if role not in {"user", "assistant"}:
            message.unusable("role-unknown", f"{short(role)} is no role of a message", "write user or assistant")
        content = message.node("content")
        if content is not None and isinstance(content.value, dict):  # as MCP itself writes it
            inner = content.value.get("text")
            return role, (inner.text if inner is not None else None) or ""
        return role, message.required_text("content")

    node = record.node("template")
    if node is not None and node.text:
        return (("user", node.text),)
    return record.each("template", MESSAGE, read)


def _skill_server(record: Record) -> SkillServer:
    return SkillServer(
        **_listening(record, "skill"),
        description=record.text("description"),
        skills=record.each("skills", SKILL, _skill),
    )


def _skill(record: Record) -> Skill:
    return Skill(
        name=record.required_name(),
        at=record.at,
        description=record.text("description"),
        metadata={name: record.value(name) for name in _SKILL_METADATA.split() if record.has(name)},
        location=record.text("location", needed=True),
        tools=record.each("tools", SKILL_TOOL, _skill_tool),
    )


def _skill_tool(record: Record) -> SkillTool:
    source = record.record("from", SOURCE)
    return SkillTool(
        name=record.required_name(),
        at=record.at,
        description=record.text("description"),
        source_namespace=source.required_text("sourceNamespace") if source else None,
        action=source.required_text("action") if source else None,
        instruction=record.text("instruction"),
    )


def _control(record: Record) -> ControlServer:
    return ControlServer(
        **_listening(record, "control"),
        management=record.map("management"),
        observability=record.map("observability"),
    )


_READERS: Final[Mapping[str, Callable[[Record], Server]]] = {
    "rest": _rest,
    "api": _rest,  # its name before alpha1
    "mcp": _mcp,
    "skill": _skill_server,
    "control": _control,
}


def read_aggregate(record: Record) -> Aggregate:
    """An entry of `aggregates`."""
    namespace = record.name("namespace")
    if not namespace:
        record.unusable("namespace-missing", "The aggregate has no namespace to refer to", "give it a namespace")
    return Aggregate(
        namespace=namespace,
        at=record.at,
        label=record.text("label"),
        functions=record.each("functions", FUNCTION, _function),
    )


def _function(record: Record) -> Function:
    return Function(
        name=record.required_name(),
        at=record.at,
        action=read_action(record),
        description=record.text("description"),
        semantics=_flags(record, "semantics", _SEMANTICS),
        inputs=read_inputs(record),
    )


def renamed(node: Node, namespace: str) -> Node:
    """An entry of a section under another namespace."""
    if not isinstance(node.value, dict):
        return node
    return Node({**node.value, "namespace": Node(namespace, node.at, namespace)}, node.at)
