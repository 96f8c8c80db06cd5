"""What a REST server of a capability takes and answers, route by route, as far as its file says or implies it.

Declared inputs come first. Where there are none, as in most published files, they are inferred as the engine binds
them: from path variables, references in `with`, and what the consumed operation takes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from toolcrib.capability.inputs import PLUMBING
from toolcrib.capability.names import match
from toolcrib.capability.openapi.schema import any_of, input_schema, output_schema
from toolcrib.capability.spec import (
    ABSENT,
    Action,
    Auth,
    Consumed,
    ConsumedOperation,
    ConsumedResource,
    Document,
    Function,
    Input,
    Output,
    RestOperation,
    RestResource,
    RestServer,
)
from toolcrib.capability.template_text import TemplateInvalid, variables

JSON = "application/json"
_WRITES = frozenset({"POST", "PUT", "PATCH"})
_VARIABLE = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}|\{([^{}]+)\}")
_CREDENTIAL = re.compile(r"\{\{[^{}]*(KEY|TOKEN|SECRET)\s*\}\}")
_ALIASES = ("rest", "tools", "mcp", "skill")
_MEDIAS = {
    "formUrlEncoded": ("application/x-www-form-urlencoded", JSON),
    "multipartForm": ("multipart/form-data", JSON),
    "text": ("text/plain",),
    "xml": ("application/xml",),
    "sparql": ("application/sparql-query",),
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A path, query, header or cookie parameter."""

    name: str
    location: str
    required: bool
    schema: dict[str, Any]
    description: str | None


@dataclass(slots=True)
class RequestBody:
    """A body in any of its media types."""

    medias: tuple[str, ...]
    schema: dict[str, Any]
    required: bool
    description: str | None = None


@dataclass(slots=True)
class Key:
    """What signs a caller in: an authentication, or an input of a consumed API that carries a credential."""

    auth: Auth | None
    input: Input | None = None


@dataclass(slots=True)
class Route:
    """A method of a path. `reply` is the schema of a success, None when nothing is promised.

    `keys` sign a caller in; `anonymous` says that they need not be sent. `always_ok`: a success is 200, whatever the
    upstream said.
    """

    method: str
    path: str
    name: str
    summary: str | None = None
    description: str | None = None
    parameters: list[Parameter] = field(default_factory=list)
    body: RequestBody | None = None
    reply: dict[str, Any] | None = None
    always_ok: bool = False
    keys: tuple[Key, ...] = ()
    anonymous: bool = False


@dataclass(frozen=True, slots=True)
class _Target:
    """A consumed operation with where it belongs."""

    consumed: Consumed
    resource: ConsumedResource
    operation: ConsumedOperation

    @property
    def inputs(self) -> list[Input]:
        """The inputs of all levels, a later one replacing an earlier."""
        merged = {
            (i.name, i.location): i for i in (*self.consumed.inputs, *self.resource.inputs, *self.operation.inputs)
        }
        return list(merged.values())

    @property
    def medias(self) -> tuple[str, ...]:
        """The media types of its body."""
        said = next(
            (i.value for i in self.inputs if i.name.lower() == "content-type" and isinstance(i.value, str)), None
        )
        if said is not None and "{" not in said:
            return (said,)
        body = self.operation.body
        return _MEDIAS.get(body.type, (JSON,)) if body is not None else (JSON,)


def rest_routes(document: Document, server: RestServer) -> list[Route]:
    """The routes of a REST server; of a method that a path has twice, the first."""
    found: dict[tuple[str, str], Route] = {}
    for resource in server.resources:
        for operation in resource.operations:
            route = _RouteMaker(document, server, resource, operation).make()
            found.setdefault((route.path, route.method), route)
    return list(found.values())


def consumed_routes(consumed: Consumed) -> list[Route]:
    """The operations of a consumed API, as it offers them to us."""
    found: dict[tuple[str, str], Route] = {}
    for resource in consumed.resources:
        for operation in resource.operations:
            path = path_of(resource.path)
            target = _Target(consumed, resource, operation)
            route = Route(operation.method, path, operation.name, None, operation.description, keys=keys_of(consumed))
            inputs = [i for i in target.inputs if i.value is ABSENT and i.location != "environment"]
            _place(route, inputs, target)
            for name in path_variables(resource.path):
                if not any(p.location == "path" and p.name == name for p in route.parameters):
                    route.parameters.insert(0, Parameter(name, "path", True, {"type": "string"}, None))
            if route.body is None and operation.body is not None and operation.body.data is not ABSENT:
                route.body = RequestBody(target.medias, {}, required=False)
            route.reply = any_of(map(output_schema, operation.outputs)) if operation.outputs else None
            found.setdefault((path, operation.method), route)
    return list(found.values())


def keys_of(consumed: Consumed) -> tuple[Key, ...]:
    """What signs in at a consumed API: its authentication, and inputs whose value is one variable named as a secret."""
    keys = [] if consumed.authentication is None else [Key(consumed.authentication)]
    return (
        *keys,
        *(Key(None, i) for i in consumed.inputs if isinstance(i.value, str) and _CREDENTIAL.fullmatch(i.value)),
    )


def path_of(path: str) -> str:
    """A path with `{x}` for its variables, starting with a slash."""
    found = _VARIABLE.sub(lambda m: "{" + (m[1] or m[2]) + "}", path.partition("#")[0].partition("?")[0])
    return found if found.startswith("/") else f"/{found}"


def path_variables(path: str) -> list[str]:
    """The names of the variables of a path, in order."""
    return list(dict.fromkeys(m[1] or m[2] for m in _VARIABLE.finditer(path)))


def _place(route: Route, inputs: list[Input], target: _Target | None) -> None:
    """Give a route declared inputs: parameters where they are, the rest to the body."""
    members: list[Input] = []
    for item in inputs:
        location = item.location
        if location is None:
            location = "body" if route.method in _WRITES else "query"
        if location == "body":
            members.append(item)
        elif location in {"path", "query", "header", "cookie"}:
            required = location == "path" or item.required is True
            schema = input_schema(item)
            schema.pop("description", None)
            route.parameters.append(Parameter(item.name, location, required, schema, item.description))
    if members:
        route.body = _body(members, target)


def _body(members: list[Input], target: _Target | None) -> RequestBody:
    """A body of one input that is all of it, or of members."""
    template = target is not None and target.operation.body is not None and target.operation.body.data is not ABSENT
    medias = target.medias if target is not None else (JSON,)
    only = members[0]
    path = only.value if isinstance(only.value, str) else None
    whole = path in {"$", "$."} if path is not None else only.name == "body" or (target is not None and not template)
    if len(members) == 1 and whole:
        schema = input_schema(only)
        schema.pop("description", None)
        behind = [i for i in target.inputs if i.location == "body" and i.value is ABSENT] if target is not None else []
        if len(behind) == 1 and behind[0].type in {None, only.type} and not (only.properties or only.items):
            schema = input_schema(behind[0]) | schema  # the consumed side says more of its shape
            schema.pop("description", None)
            if behind[0].items is not None:
                schema["items"] = input_schema(behind[0])["items"]
        return RequestBody(medias, schema, only.required is True, only.description)
    properties = {_member_name(item): input_schema(item) for item in members}
    needed = [_member_name(item) for item in members if item.required is True]
    object_schema: dict[str, Any] = {"type": "object", "properties": properties}
    return RequestBody(medias, object_schema | ({"required": needed} if needed else {}), bool(needed))


def _member_name(item: Input) -> str:
    """The member of the body that an input is taken from."""
    found = re.match(r"\$\.([\w-]+)$", item.value) if isinstance(item.value, str) else None
    return found[1] if found else item.name


class _RouteMaker:
    """Makes one route of a REST server."""

    def __init__(
        self, document: Document, server: RestServer, resource: RestResource, operation: RestOperation
    ) -> None:
        self._document = document
        self._server = server
        self._resource = resource
        self._operation = operation
        self._function = self._referenced(operation.action)
        self._action = self._function.action if self._function is not None else operation.action
        self._targets = [t for t in map(self._target, self._calls()) if t is not None]
        self._path_names = path_variables(resource.path)

    def make(self) -> Route:
        """The route."""
        operation, function = self._operation, self._function
        path = path_of(self._resource.path)
        name = operation.name or (function.name if function is not None else f"{operation.method} {path}")
        told = operation.description or (function.description if function is not None else None)
        route = Route(operation.method, path, name, operation.label, told)
        target = self._targets[0] if len(self._targets) == 1 and self._action.call else None
        inputs = self._declared()
        _place(route, inputs, target)
        declared = {item.name for item in inputs}
        for name in self._path_names:
            if not any(p.location == "path" and p.name == name for p in route.parameters):
                route.parameters.insert(0, self._path_parameter(name, target))
        self._infer(route, declared, target)
        route.reply, route.always_ok = self._reply()
        self._sign_in(route)
        return route

    def _referenced(self, action: Action) -> Function | None:
        namespace, _, name = (action.ref or "").partition(".")
        functions = (f for a in self._document.aggregates if a.namespace == namespace for f in a.functions)
        return next((f for f in functions if f.name == name), None) if action.ref else None

    def _calls(self) -> Iterator[str]:
        if self._action.call is not None:
            yield self._action.call
        for step in self._action.steps:
            if step.call is not None:
                yield step.call

    def _target(self, call: str) -> _Target | None:
        namespace, _, name = call.partition(".")
        for consumed in self._document.consumes:
            if consumed.namespace == namespace:
                for resource in consumed.resources:
                    for operation in resource.operations:
                        if operation.name == name:
                            return _Target(consumed, resource, operation)
        return None

    def _declared(self) -> list[Input]:
        """The declared inputs that a caller fills."""
        function = self._function.inputs if self._function is not None else ()
        levels = (*function, *self._server.inputs, *self._resource.inputs, *self._operation.inputs)
        merged = {(item.name, item.location): item for item in levels}
        found = []
        for item in merged.values():
            from_body = isinstance(item.value, str) and item.value.startswith("$")
            if item.location != "environment" and (item.value is ABSENT or from_body):
                same = match(item.name, self._path_names) if item.location in {None, "path"} else None
                found.append(item if same is None else _at_path(item, same))
        return found

    def _path_parameter(self, name: str, target: _Target | None) -> Parameter:
        """An undeclared path variable, described by the upstream parameter that it fills."""
        behind = None
        if target is not None:
            given = {self._referred(e.value): e.key for e in self._with() if self._referred(e.value)}
            key = match(name, [g for g in given if g])
            inputs = {i.name: i for i in target.inputs if i.location == "path" and i.value is ABSENT}
            same = match(given[key] if key else name, inputs)
            behind = inputs[same] if same else None
        schema = input_schema(behind) if behind is not None else {}
        schema.pop("description", None)
        told = behind.description if behind is not None else None
        return Parameter(name, "path", True, {"type": "string"} | schema, told)

    def _with(self) -> tuple[Any, ...]:
        return (*self._operation.action.with_, *(self._action.with_ if self._function is not None else ()))

    def _referred(self, value: Any) -> str | None:
        """The caller's input that a value of `with` is, None if it is made otherwise."""
        if not isinstance(value, str):
            return None
        text = value.strip().removeprefix("$this.")
        alone = re.fullmatch(r"\{\{\s*([^{}]+?)\s*\}\}", text)
        text = alone[1] if alone else text
        first, dot, rest = text.partition(".")
        spaces = {server.namespace for server in self._document.servers}
        if dot and rest and (first in _ALIASES or first in spaces):
            return rest
        return text if alone and not self._is_bind(text) else None

    def _is_bind(self, name: str) -> bool:
        first = name.partition(".")[0]
        return any(name in bind.keys or first == bind.namespace for bind in self._document.binds)

    def _infer(self, route: Route, declared: set[str], target: _Target | None) -> None:
        """Add what the file implies and nobody declared."""
        known = declared | set(self._path_names)
        if target is not None:
            self._infer_call(route, known, target)
            return
        steps = {step.name for step in self._action.steps}
        loose: list[Input] = []
        for step in self._action.steps:
            for entry in step.with_:
                name = self._referred(entry.value)
                if name is not None and name.partition(".")[0] not in steps and match(name, known) is None:
                    known.add(name)
                    loose.append(Input(name, entry.at))
        if loose and (route.body is None or route.method not in _WRITES):
            _place(route, loose, None)

    def _infer_call(self, route: Route, known: set[str], target: _Target) -> None:
        given = {entry.key: entry.value for entry in self._with()}
        bodies: list[Input] = []
        for slot in (*self._slots(target), *self._lost_path_variables(target, [*given, *known])):
            key = match(slot.name, given)
            name = self._referred(given[key]) if key is not None else slot.name
            if name is None or match(name, known) is not None or self._is_bind(name):
                continue
            if slot.location == "body":
                bodies.append(_renamed(slot, name))
            elif slot.location != "header" or slot.name.lower() not in PLUMBING:
                place = "query" if slot.location in {None, "path"} else str(slot.location)
                schema = input_schema(slot)
                schema.pop("description", None)
                required = slot.location == "path" or slot.required is True
                route.parameters.append(Parameter(name, place, required, schema, slot.description))
        if route.body is not None:
            return
        if bodies:
            route.body = _body(bodies, target)
        elif route.method in _WRITES and not _describes_body(target):
            route.body = RequestBody((JSON,), {}, required=False)

    def _slots(self, target: _Target) -> list[Input]:
        """What the consumed operation takes beside its path, the variables of its body included."""
        slots = [i for i in target.inputs if i.value is ABSENT and i.location not in {"environment", "path"}]
        for name in _template_names(target.operation):
            if not any(slot.name == name for slot in slots):
                slots.append(Input(self._referred("{{" + name + "}}") or name, target.operation.at, location="body"))
        return slots

    def _lost_path_variables(self, target: _Target, known: list[str]) -> list[Input]:
        """Variables of the upstream path that the exposed path does not have: they come as query parameters."""
        upstream = path_variables(target.resource.path)
        lost = [name for name in upstream if match(name, known) is None]
        free = [name for name in self._path_names if match(name, upstream) is None]
        if len(lost) == len(free):  # paired by position
            return []
        declared = {i.name: i for i in target.inputs if i.location == "path" and i.value is ABSENT}
        return [declared.get(name) or Input(name, target.operation.at, location="path") for name in lost]

    def _reply(self) -> tuple[dict[str, Any] | None, bool]:
        """The schema of a success, and whether its status is always 200."""
        outputs = (
            self._function.action.outputs if self._function is not None else ()
        ) or self._operation.action.outputs
        if self._action.mappings:
            return _mapped(self._action, outputs), True
        if not outputs:
            return None, False
        if not self._targets and not self._action.steps:
            return {"type": "object", "properties": {o.name or "value": output_schema(o) for o in outputs}}, True
        return any_of(map(output_schema, outputs)), False

    def _sign_in(self, route: Route) -> None:
        """The server's own authentication; else that of the upstreams, which callers need not know."""
        if self._server.authentication is not None:
            route.keys = (Key(self._server.authentication),)
            return
        consumed = {id(target.consumed): target.consumed for target in self._targets}
        route.keys = tuple(key for api in consumed.values() for key in keys_of(api))
        route.anonymous = True


def _at_path(item: Input, name: str) -> Input:
    """A declared input that means a path variable, under the name of the variable."""
    return _renamed(item, name, "path")


def _renamed(item: Input, name: str, location: str | None = None) -> Input:
    return Input(
        name=name,
        at=item.at,
        location=location or item.location,
        type=item.type,
        description=item.description,
        required=item.required,
        value=item.value,
        pattern=item.pattern,
        enum=item.enum,
        default=item.default,
        items=item.items,
        properties=item.properties,
    )


def _describes_body(target: _Target) -> bool:
    """Whether the operation says itself what it sends, if only that it sends nothing."""
    if target.operation.extension.get("relayBody") is False:
        return True
    body = target.operation.body
    written = body is not None and body.data is not ABSENT and body.data is not None
    return written or any(item.location == "body" for item in target.inputs)


def _template_names(operation: ConsumedOperation) -> list[str]:
    """The variables of a body template."""
    found: list[str] = []
    pending = [operation.body.data] if operation.body is not None else []
    while pending:
        value = pending.pop(0)
        if isinstance(value, str):
            try:
                found += variables(value)
            except TemplateInvalid:
                continue
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return list(dict.fromkeys(found))


def _mapped(action: Action, outputs: tuple[Output, ...]) -> dict[str, Any]:
    """The object that the mappings of steps make."""
    typed = {output.name: output for output in outputs}
    root: dict[str, Any] = {"type": "object", "properties": {}}
    for mapping in action.mappings:
        level = root
        *path, last = mapping.target.split(".")
        for part in path:
            level = level["properties"].setdefault(part, {"type": "object", "properties": {}})
            level.setdefault("properties", {})
        known = typed.get(mapping.target) or typed.get(last)
        level["properties"][last] = output_schema(known) if known is not None else {}
    return root
