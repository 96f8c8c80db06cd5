"""What the lint rules look at: every exposed thing in one shape, the operations by name, and the variables of texts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from toolcrib.capability.findings import Severity
from toolcrib.capability.names import match, normalise
from toolcrib.capability.spec import (
    Action,
    Consumed,
    ConsumedOperation,
    ConsumedResource,
    ControlServer,
    Document,
    Input,
    Mark,
    McpServer,
    Output,
    RestServer,
    Server,
)
from toolcrib.capability.template_text import TemplateInvalid, variables

# What a rule yields: severity, message, effect, mend, place.
Fault = tuple[Severity, str, str, str, Mark]
VARIABLE_NAME = re.compile(r"[A-Z][A-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class Operation:
    """A consumed operation with what surrounds it."""

    api: Consumed
    resource: ConsumedResource
    operation: ConsumedOperation

    @property
    def inputs(self) -> Iterator[Input]:
        """All inputs that apply to it."""
        return chain(self.api.inputs, self.resource.inputs, self.operation.inputs)

    @property
    def address(self) -> str:
        """Its address with variables."""
        return self.api.base_uri + self.resource.path


@dataclass(frozen=True, slots=True)
class Unit:
    """Something exposed that runs: an operation, a tool, a resource or a function."""

    what: str  # as in messages
    name: str
    at: Mark
    action: Action
    namespace: str  # of the server or aggregate
    description: str | None = None
    input_groups: tuple[tuple[Input, ...], ...] = ()  # those shared with other units are not copied
    path: str | None = None
    method: str | None = None
    hints: dict[str, bool] = field(default_factory=dict)

    @property
    def inputs(self) -> Iterator[Input]:
        """All its declared inputs."""
        return chain.from_iterable(self.input_groups)

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"{self.what} {self.name!r}"

    @property
    def calls(self) -> list[tuple[str, Mark]]:
        """The operations it calls, with where that is written."""
        direct = [(self.action.call, self.at)] if self.action.call else []
        return direct + [(step.call, step.at) for step in self.action.steps if step.type == "call" and step.call]


class Facts:
    """A document as the rules look at it."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.units = list(_units(document))
        self.operations: dict[str, Operation] = {}
        self.all_operations: list[Operation] = []
        for api in document.consumes:
            for resource in api.resources:
                for operation in resource.operations:
                    found = Operation(api, resource, operation)
                    self.all_operations.append(found)
                    self.operations.setdefault(f"{api.namespace}.{operation.name}", found)
        self.declared = {variable for bind in document.binds for variable in bind.keys}
        self.bind_namespaces: dict[str, set[str]] = {}
        for bind in document.binds:
            self.bind_namespaces.setdefault(bind.namespace, set()).update(bind.keys)
        self._paths: dict[str, dict[str, str]] = {}
        self._takes: dict[str, frozenset[str]] = {}
        self.listening = [server for server in document.servers if not is_stdio(server)]

    def find(self, call: str | None) -> Operation | None:
        """The operation that a call means, names matched as loosely as the planner does."""
        if not call or (exact := self.operations.get(call)) is not None:
            return exact if call else None
        namespaces = {api.namespace for api in self.document.consumes}
        for i, char in enumerate(call):
            namespace = match(call[:i], namespaces) if char == "." else None
            if namespace is not None:
                names = [o.operation.name for o in self.all_operations if o.api.namespace == namespace]
                if (name := match(call[i + 1 :], names)) is not None:
                    return self.operations[f"{namespace}.{name}"]
        return None

    def takes(self, call: str | None) -> frozenset[str] | None:
        """The normalised names of what a called operation takes, None if it does not resolve."""
        operation = self.find(call)
        if operation is None or call is None:
            return None
        if call not in self._takes:
            names = [*self.path_names(operation.address), *(parameter.name for parameter in operation.inputs), "body"]
            texts = [text for text, _ in api_templates(operation)]
            texts += [parameter.value for parameter in operation.api.inputs if isinstance(parameter.value, str)]
            for name in chain.from_iterable(map(names_in, texts)):
                names += [name, name.partition(".")[0], name.partition(".")[2]]
            self._takes[call] = frozenset(map(normalise, names))
        return self._takes[call]

    def path_names(self, path: str) -> dict[str, str]:
        """The variables of a path by their normalised names."""
        if path not in self._paths:
            self._paths[path] = {normalise(name): name for name in names_in(path, single=True)}
        return self._paths[path]

    def is_declared(self, name: str) -> bool:
        """Whether a name is a variable of a bind, alone or qualified."""
        namespace, _, variable = name.partition(".")
        return name in self.declared or variable in self.bind_namespaces.get(namespace, ())


def is_stdio(server: Server) -> bool:
    """Whether a server needs no port."""
    return isinstance(server, McpServer) and server.transport == "stdio"


def _units(document: Document) -> Iterator[Unit]:
    for server in document.servers:
        if isinstance(server, RestServer):
            yield from _rest_units(server)
        elif isinstance(server, McpServer):
            yield from _mcp_units(server)
    for aggregate in document.aggregates:
        for f in aggregate.functions:
            yield Unit("function", f.name, f.at, f.action, aggregate.namespace, f.description, (f.inputs,))


def _rest_units(server: RestServer) -> Iterator[Unit]:
    for resource in server.resources:
        for operation in resource.operations:
            yield Unit(
                "operation",
                operation.name or f"{operation.method} {resource.path}",
                operation.at,
                operation.action,
                server.namespace,
                operation.description,
                (server.inputs, resource.inputs, operation.inputs),
                resource.path,
                operation.method,
            )


def _mcp_units(server: McpServer) -> Iterator[Unit]:
    for t in server.tools:
        hints = dict(t.hints)
        yield Unit("tool", t.name, t.at, t.action, server.namespace, t.description, (t.inputs,), hints=hints)
    for source in server.resources:
        if source.location is None:
            yield Unit("resource", source.name, source.at, source.action, server.namespace, source.description)


def names_in(text: str, *, single: bool = False) -> list[str]:
    """The variables of a template; none of a broken one."""
    try:
        return variables(text, single=single)
    except TemplateInvalid:
        return []


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a value, those of nested lists and maps too."""
    pending = [value]
    while pending:
        current = pending.pop()
        if isinstance(current, str):
            yield current
        elif isinstance(current, dict):
            pending.extend(current.values())
        elif isinstance(current, list | tuple):
            pending.extend(current)


def has_value(output: Output) -> bool:
    """Whether an output has a static value, itself or below."""
    return (
        isinstance(output.value, str | int | float | bool | list | dict)
        or any(has_value(child) for _, child in output.properties)
        or any(has_value(child) for child in (output.items, output.values) if child is not None)
    )


def api_templates(operation: Operation) -> Iterator[tuple[str, Mark]]:
    """The templates of a consumed operation, its API's left out."""
    yield operation.resource.path, operation.resource.at
    for parameter in (*operation.resource.inputs, *operation.operation.inputs):
        if isinstance(parameter.value, str):
            yield parameter.value, parameter.at
    body = operation.operation.body
    if body is not None:
        for text in texts_in(body.data):
            yield text, body.at


def route(path: str) -> tuple[str, ...]:
    """A path by which two routes are the same: the names of its variables do not count."""
    return tuple(
        "{}" if segment.startswith("{") and segment.endswith("}") else segment for segment in path.strip("/").split("/")
    )


def control_servers(document: Document) -> list[ControlServer]:
    """The control servers of a document."""
    return [server for server in document.servers if isinstance(server, ControlServer)]
