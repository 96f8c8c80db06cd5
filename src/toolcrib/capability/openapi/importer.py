"""A capability file out of an OpenAPI document: what it consumes, and a REST and an MCP server in front of it.

Deterministic: the same document gives the same text. Operations that are called at another address or with other
credentials than the rest go to a consumed API of their own, so that no credential is sent where it is not asked for.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from toolcrib.capability.findings import Finding
from toolcrib.capability.openapi.layout import write_capability
from toolcrib.capability.openapi.operations import ApiOperation, Parameter, Reader, RequestBody
from toolcrib.capability.openapi.reader import OpenApiSource, as_map, clean
from toolcrib.capability.openapi.security import BIND, Security, SignIn
from toolcrib.capability.spec import ABSENT
from toolcrib.capability.yaml_source import LIMITS
from toolcrib.errors import Invalid

_MAX_TOOL_NAME = 64
_MAX_NAME = 100
_RESERVED = frozenset({"rest", "tools", "mcp", "skill", BIND, "control"})  # they mean something in `with` and templates
_WRITES = frozenset({"POST", "PUT", "PATCH"})  # what an engine passes a body on for, unless told
_FORMS = {"formUrlEncoded", "multipartForm"}
_RELATED = {  # how the hints of a tool follow from its method: read only, destructive, idempotent
    "GET": (True, False, True),
    "POST": (False, False, False),
    "PUT": (False, False, True),
    "PATCH": (False, False, False),
    "DELETE": (False, True, True),
}

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Imported:
    """The text of a capability file, and what could not be kept or needs a look."""

    text: str
    findings: tuple[Finding, ...]


def import_openapi(
    text: str,
    *,
    source: str,
    namespace: str | None = None,
    rest_port: int | None = 8080,
    mcp_port: int | None = 9090,
    include: Sequence[str] | None = None,
    prefix: str = "",
) -> Imported:
    """Make a capability file of a Swagger 2.0, OpenAPI 3.0 or 3.1 document in JSON or YAML.

    Args:
        text: the document.
        source: its path or address: named in findings; relative servers are resolved against an address.
        namespace: of the consumed API, which also names the variables; made from the title if not given.
        rest_port: of the REST server; None leaves it out.
        mcp_port: of the MCP server; None leaves it out.
        include: patterns (`*` and `?`) of operation ids, tags or `METHOD /path`; None takes everything.
        prefix: in front of every path of the REST server, such as `/v1`.

    Raises:
        CapabilityInvalid: it cannot be read, is too large, or gives no operation.
        Invalid: an argument cannot be used.
    """
    if namespace is not None and not re.fullmatch(r"[A-Za-z0-9-]{1,100}", namespace):
        raise Invalid("namespace.invalid", "A namespace has letters, digits and dashes only.", field="namespace")
    if prefix and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix):
        raise Invalid("prefix.invalid", "A prefix is a path such as /v1.", field="prefix")
    api = OpenApiSource(text, source)
    title = clean(as_map(api.root.get("info")).get("title"), 200).replace("\n", " ") or "API"
    namespace = namespace or slug(title) or "api"
    if namespace in _RESERVED:
        namespace += "-api"
    security = Security(api, namespace)
    operations = list(Reader(api, security, include).operations())
    if not operations:
        raise api.refusal(
            "openapi-empty",
            "It has no operation to import",
            "check its paths" + (" and the patterns" if include else ""),
        )
    layout = _Layout(api, namespace, security, prefix)
    document = layout.document(title, operations, rest_port, mcp_port)
    written = write_capability(document)
    if len(written.encode()) > LIMITS.size or _values_in(document) > LIMITS.nodes:
        message = "The capability would be larger than a capability file may be"
        raise api.refusal("openapi-too-large", message, "import a part of it, by patterns of operations or tags")
    return Imported(written, api.settled())


def _values_in(tree: Any) -> int:
    """How many keys and values a tree has: what reading it again is limited by."""
    count = 0
    pending = [tree]
    while pending:
        value = pending.pop()
        count += 1
        if isinstance(value, dict):
            count += len(value)
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return count


def slug(text: str) -> str:
    """A text as words of lower-case letters and digits joined by dashes; empty if it has none."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1-\2", ascii_text)
    words = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1-\2", words)
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:_MAX_NAME].strip("-")


def _unique(name: str, taken: Collection[str], limit: int = _MAX_NAME) -> str:
    """The name, numbered when it is taken, cut to the limit."""
    found = name[:limit].strip("-")
    number = 2
    while found in taken:
        end = f"-{number}"
        found = name[: limit - len(end)].strip("-") + end
        number += 1
    return found


@dataclass(slots=True)
class _Named:
    """An operation with its name and the consumed API that it belongs to."""

    api: ApiOperation
    name: str
    namespace: str


class _Layout:
    """Lays the operations of one document out as a capability."""

    def __init__(self, source: OpenApiSource, namespace: str, security: Security, prefix: str) -> None:
        self._source = source
        self._namespace = namespace
        self._security = security
        self._prefix = prefix

    def document(self, title: str, operations: list[ApiOperation], rest_port: int | None, mcp_port: int | None) -> Tree:
        """The capability as a tree, in the order in which it is written."""
        groups = self._groups(operations)
        names: dict[str, None] = {}
        named: list[_Named] = []
        for operation in operations:
            wanted = slug(operation.wanted_name) or slug(f"{operation.method} {operation.path}") or "root"
            name = _unique(wanted, names)
            names[name] = None
            named.append(_Named(operation, name, groups[operation.base_uri, operation.schemes]))
        consumes = [
            self._consumed(title, namespace, [op for op in named if op.namespace == namespace])
            for namespace in dict.fromkeys(groups.values())
        ]
        exposes = []
        if rest_port is not None:
            exposes.append(self._rest(named, title, rest_port))
        if mcp_port is not None:
            exposes.append(self._mcp(named, title, mcp_port))
        document: Tree = {"naftiko": "1.0.0-alpha2", "info": self._info(title, operations)}
        if variables := self._security.variables:
            document["binds"] = [{"namespace": BIND, "keys": {name: name for name in variables}}]
        capability: Tree = {"consumes": consumes}
        if exposes:
            capability["exposes"] = exposes
        return document | {"capability": capability}

    def _info(self, title: str, operations: list[ApiOperation]) -> Tree:
        told = clean(as_map(self._source.root.get("info")).get("description"), 1500)
        info: Tree = {"label": title, "description": told or f"{title}. {len(operations)} operations."}
        tags = dict.fromkeys(tag for operation in operations for tag in operation.tags)
        return info | {"tags": list(tags)[:50] or [title]}

    def _groups(self, operations: list[ApiOperation]) -> dict[tuple[str, tuple[str, ...]], str]:
        """The namespace of each pair of address and credentials; the most used pair gets the plain one."""
        counts: dict[tuple[str, tuple[str, ...]], int] = {}
        for operation in operations:
            key = (operation.base_uri, operation.schemes)
            counts[key] = counts.get(key, 0) + 1
        main = max(counts, key=lambda key: counts[key])
        found = {main: self._namespace}
        for key in counts:
            if key != main:
                base, schemes = key
                word = "" if schemes == main[1] else slug(" ".join(schemes)) if schemes else "open"
                word = word or slug(re.sub(r"^https?://", "", base)) or "other"
                found[key] = _unique(f"{self._namespace}-{word}", found.values())
        return {key: found[key] for key in sorted(counts, key=lambda key: key != main)}

    def _consumed(self, title: str, namespace: str, operations: list[_Named]) -> Tree:
        first = operations[0].api
        signing = self._security.sign_in(first.schemes)
        consumed: Tree = {"type": "http", "namespace": namespace, "baseUri": first.base_uri}
        consumed["description"] = f"{title}, {_signing(signing)}."
        if signing.authentication is not None:
            consumed["authentication"] = signing.authentication
        if signing.inputs:
            consumed["inputParameters"] = signing.inputs
        by_path: dict[str, list[_Named]] = {}
        for operation in operations:
            by_path.setdefault(operation.api.path, []).append(operation)
        resources: list[Tree] = []
        names: dict[str, None] = {}
        for path, found in by_path.items():
            name = _unique(slug(path) or "root", names)
            names[name] = None
            base, query = _split_query(path)
            entries = [_consumed_operation(operation, query) for operation in found]
            resources.append({"name": name, "path": base, "operations": entries})
        return consumed | {"resources": resources}

    def _rest(self, operations: list[_Named], title: str, port: int) -> Tree:
        by_path: dict[str, list[Tree]] = {}
        taken = {operation.api.path for operation in operations}
        for operation in operations:
            path = operation.api.path
            if "?" in path or "#" in path:
                path = self._routable(operation, taken)
            by_path.setdefault(self._prefix + path, []).append(_rest_operation(operation))
        names: dict[str, None] = {}
        resources: list[Tree] = []
        for path, found in by_path.items():
            name = _unique(slug(path) or "root", names)
            names[name] = None
            resources.append({"path": path, "name": name, "operations": found})
        namespace = f"{self._namespace}-rest"
        told = f"REST server in front of {title}."
        return {"type": "rest", "namespace": namespace, "port": port, "description": told, "resources": resources}

    def _routable(self, operation: _Named, taken: set[str]) -> str:
        """A path for one that no request can have: `?` and `#` never reach a server as part of the path."""
        base, _, rest = re.sub(r"[?#]", "\0", operation.api.path, count=1).partition("\0")
        path = f"{base.rstrip('/')}/{slug(rest) or 'root'}"
        while path in taken:
            path += "-2"
        self._source.note(
            "openapi-path-query",
            "note",
            operation.api.pointer,
            "the path holds ? or #",
            f"it is served as {self._prefix}{path}",
            "nothing, or rename the route",
        )
        return path

    def _mcp(self, operations: list[_Named], title: str, port: int) -> Tree:
        names: dict[str, None] = {}
        tools: list[Tree] = []
        for operation in operations:
            name = _unique(operation.name, names, _MAX_TOOL_NAME)
            names[name] = None
            tools.append(self._tool(name, operation))
        namespace = f"{self._namespace}-mcp"
        told = f"Tools of {title}."
        server: Tree = {"type": "mcp", "namespace": namespace, "port": port, "transport": "http"}
        return server | {"description": told, "tools": tools}

    def _tool(self, name: str, operation: _Named) -> Tree:
        api = operation.api
        read_only, destructive, idempotent = _RELATED[api.method]
        tool: Tree = {"name": name}
        if api.summary:
            tool["label"] = api.summary
        tool["description"] = api.description or api.summary or f"{api.method} {api.path}"
        tool["hints"] = {"readOnly": read_only, "destructive": destructive, "idempotent": idempotent}
        inputs: dict[str, Tree] = {}
        for parameter in api.parameters:
            if parameter.name in inputs:
                self._source.note(
                    "openapi-name-twice",
                    "warning",
                    api.pointer,
                    f"two parameters are called {parameter.name}",
                    "they get one value",
                    "rename one of them",
                )
                continue
            inputs[parameter.name] = _input(parameter, place=False)
        for entry in [] if api.body is None else _body_inputs(api.body, place=False, whole=True):
            inputs.setdefault(entry["name"], entry)
        if inputs:
            tool["inputParameters"] = list(inputs.values())
        return tool | _action(operation, "tools")


def _signing(signing: SignIn) -> str:
    """How a consumed API is signed in to, in words."""
    words = [] if signing.authentication is None else [signing.authentication["type"]]
    words += [f"the {entry['in']} {entry['name']}" for entry in signing.inputs]
    return f"signed in to by {' and '.join(words)}" if words else "called without credentials"


def _split_query(path: str) -> tuple[str, list[tuple[str, str]]]:
    """A path without what no request has in it, and the fixed query pairs it came with."""
    base, _, query = path.partition("#")[0].partition("?")
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    return base or "/", [(name, value) for name, _, value in pairs if "{" not in value]


def _consumed_operation(operation: _Named, query: list[tuple[str, str]]) -> Tree:
    api = operation.api
    entry: Tree = {"name": operation.name, "method": api.method}
    entry["description"] = api.summary or api.description.partition("\n")[0] or f"{api.method} {api.path}"
    inputs = [{"name": name, "in": "query", "value": value} for name, value in query]
    inputs += [_input(parameter, place=True) for parameter in api.parameters]
    if api.body is not None:
        if media := _said_media(api.body):
            inputs.append({"name": "Content-Type", "in": "header", "value": media})
        inputs += _body_inputs(api.body, place=True, whole=True)
    if inputs:
        entry["inputParameters"] = inputs
    if api.body is not None and (body := _body_template(api.body)):
        entry["body"] = body
    if api.body is None and api.method in _WRITES:
        entry["x-toolcrib"] = {"relayBody": False}
    if api.reply is not None and api.reply.raw_format is not None:
        entry["outputRawFormat"] = api.reply.raw_format
        entry["outputParameters"] = [{"name": "result", "type": api.reply.type or "object", "value": "$."}]
    return entry


def _said_media(body: RequestBody) -> str | None:
    """The media type that must be said because the body would not go out as it; multipart says its own boundary."""
    base = body.media.partition(";")[0].strip().lower()
    usual = {"json": "application/json", "text": "text/plain"}.get(body.kind)
    known = re.fullmatch(r"[a-z0-9.+-]+/[a-z0-9.+-]+", base) is not None
    return base if known and base != usual and body.kind not in _FORMS and not base.startswith("multipart/") else None


def _rest_operation(operation: _Named) -> Tree:
    api = operation.api
    entry: Tree = {"method": api.method, "name": operation.name}
    if api.summary:
        entry["label"] = api.summary
    entry["description"] = api.description or api.summary or f"{api.method} {api.path}"
    inputs = [_input(parameter, place=True) for parameter in api.parameters]
    inputs += [] if api.body is None else _body_inputs(api.body, place=True, whole=False)
    if inputs:
        entry["inputParameters"] = inputs
    return entry | _action(operation, "rest")


def _action(operation: _Named, alias: str) -> Tree:
    """The call, where its values come from, and the answer as it is."""
    api = operation.api
    action: Tree = {"call": f"{operation.namespace}.{operation.name}"}
    names = [parameter.name for parameter in api.parameters]
    names += [] if api.body is None else _body_names(api.body)
    if names:
        action["with"] = {name: f"{alias}.{name}" for name in dict.fromkeys(names)}
    if api.reply is not None and api.reply.raw_format is not None:
        action["outputParameters"] = [{"type": api.reply.type or "object", "mapping": "$."}]
    return action


def _input(parameter: Parameter, *, place: bool) -> Tree:
    entry: Tree = {"name": parameter.name}
    if place:
        entry["in"] = parameter.location
    entry["type"] = parameter.shape.get("type", "string")
    entry["required"] = parameter.required
    if parameter.description:
        entry["description"] = parameter.description
    entry |= {key: parameter.shape[key] for key in ("enum", "pattern", "items", "properties") if key in parameter.shape}
    if parameter.default is not ABSENT:
        entry["default"] = parameter.default
    if not parameter.exploded:
        entry["explode"] = False
    return entry


def _body_names(body: RequestBody) -> list[str]:
    return [name for name, _, _ in body.fields] if body.kind in _FORMS else ["body"]


def _body_inputs(body: RequestBody, *, place: bool, whole: bool) -> list[Tree]:
    """The inputs of a body: itself, or the fields of a form; with all of its shape, or only its type."""
    entries: list[Tree] = []
    entry: Tree
    if body.kind in _FORMS:
        for name, shape, is_file in body.fields:
            entry = {"name": name}
            entry |= {"in": "body"} if place else {}
            entry |= {"type": shape.get("type", "string"), "required": body.required and shape.get("required") is True}
            told = str(shape.get("description", "")) or ("The content of a file." if is_file else "")
            entry |= {"description": told} if told else {}
            entries.append(entry | {key: shape[key] for key in ("enum", "items", "properties") if key in shape})
        return entries
    entry = {"name": "body"}
    entry |= {"in": "body"} if place else {}
    kind = body.shape.get("type", None if place else "object") if body.kind == "json" else "string"
    if kind is not None:
        entry["type"] = kind
    entry["required"] = body.required
    entry["description"] = body.description or f"Request body ({body.media.partition(';')[0] or 'JSON'})."
    if whole and body.kind == "json":
        entry |= {key: body.shape[key] for key in ("enum", "items", "properties") if key in body.shape}
    return [entry]


def _body_template(body: RequestBody) -> Tree | None:
    """The `body` block of a consumed operation; JSON, and bytes of unknown kinds, need none."""
    match body.kind:
        case "formUrlEncoded":
            return {"type": body.kind, "data": {name: f"{{{{{name}}}}}" for name, _, _ in body.fields}}
        case "multipartForm":
            parts = []
            for name, _, is_file in body.fields:
                part: Tree = {"name": name, "value": f"{{{{{name}}}}}"}
                parts.append(part | ({"filename": slug(name) or "file"} if is_file else {}))
            return {"type": body.kind, "data": parts}
        case "text":
            return {"type": "text", "data": "{{body}}"}
        case _:
            return None
