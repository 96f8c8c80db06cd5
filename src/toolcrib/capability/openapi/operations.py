"""The operations of an OpenAPI document as plain records, the same for all versions: what the importer lays out.

Everything that could be taken for a template of the capability is refused here, so that no document can name the
secrets of whoever imports it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal
from urllib.parse import urljoin

from toolcrib.capability.openapi.reader import OpenApiSource, Pointer, as_list, as_map, clean
from toolcrib.capability.openapi.schema import Shapes
from toolcrib.capability.openapi.security import BIND, Security
from toolcrib.capability.spec import ABSENT

METHODS = ("get", "post", "put", "patch", "delete")
_UNSERVED = ("head", "options", "trace", "query")
_PLACES = frozenset({"path", "query", "header", "cookie"})
_OWN_HEADERS = frozenset(
    {"accept", "content-type", "authorization"}
)  # said by other means, as the specification has it
_NAME = re.compile(r"[^\s{}#^/>=!&][^\s{}]{0,199}")
_PATH_VARIABLE = re.compile(r"\{([^{}]*)\}")
_SERVER_VARIABLE = re.compile(r"\{([^{}]+)\}")
_MAX_OPERATIONS = 5_000
_FORMS = {"application/x-www-form-urlencoded": "formUrlEncoded", "multipart/form-data": "multipartForm"}
_RAW_FORMATS = {"csv": "csv", "html": "html", "markdown": "markdown", "tab-separated-values": "tsv"}

BodyKind = Literal["json", "formUrlEncoded", "multipartForm", "text", "bytes"]


@dataclass(slots=True)
class Parameter:
    """A parameter; `shape` holds type, enum, items, properties. `exploded` is whether lists repeat the name."""

    name: str
    location: str
    required: bool
    description: str
    shape: dict[str, Any]
    default: Any = ABSENT
    exploded: bool = True


@dataclass(slots=True)
class RequestBody:
    """A body; `fields` are those of a form, each with whether it is a file."""

    kind: BodyKind
    media: str
    required: bool
    description: str
    shape: dict[str, Any]
    fields: list[tuple[str, dict[str, Any], bool]] = field(default_factory=list)


@dataclass(slots=True)
class Reply:
    """What a success answers: the type of the value, and its format (json, xml, csv ...); None for other bytes."""

    type: str | None
    raw_format: str | None


@dataclass(slots=True)
class ApiOperation:
    """One operation, with where it is and how callers sign in."""

    method: str
    path: str
    pointer: Pointer
    wanted_name: str
    summary: str
    description: str
    tags: tuple[str, ...]
    base_uri: str
    schemes: tuple[str, ...]
    parameters: list[Parameter] = field(default_factory=list)
    body: RequestBody | None = None
    reply: Reply | None = None


class Reader:
    """Reads the operations of one document.

    Args:
        source: the document.
        security: its security schemes.
        include: patterns of operation ids, tags or `METHOD /path`; None for all.
    """

    def __init__(self, source: OpenApiSource, security: Security, include: Sequence[str] | None = None) -> None:
        self._include = include
        self._source = source
        self._security = security
        self._shapes = Shapes(source)

    def operations(self) -> Iterator[ApiOperation]:
        """All operations that can be served, in the order of the document."""
        source = self._source
        count = 0
        for path, item in as_map(source.root.get("paths")).items():
            if path.startswith("x-"):
                continue
            place: Pointer = ("paths", path)
            node, below = source.follow(item, place)
            for method in _UNSERVED:
                if method in node:
                    source.note(
                        "openapi-method-unserved",
                        "note",
                        (*place, method),
                        f"{method.upper()} is no method of a capability",
                        "it is left out",
                        "nothing",
                    )
            for method in METHODS:
                if not isinstance(node.get(method), dict) or not self._is_included(node[method], method, path):
                    continue
                count += 1
                if count > _MAX_OPERATIONS:
                    raise source.refusal(
                        "openapi-too-large", f"It has more than {_MAX_OPERATIONS} operations", "import a part of it"
                    )
                if not self._path_is_usable(path, (*place, method)):
                    continue
                yield self._operation(method.upper(), path, node, (*below, method))

    def _is_included(self, operation: dict[str, Any], method: str, path: str) -> bool:
        if self._include is None:
            return True
        names = [operation.get("operationId"), f"{method.upper()} {path}", *as_list(operation.get("tags"))]
        texts = [name for name in names if isinstance(name, str)]
        return any(fnmatchcase(text, pattern) for pattern in self._include for text in texts)

    def _path_is_usable(self, path: str, place: Pointer) -> bool:
        names = _PATH_VARIABLE.findall(path)
        bad = [name for name in names if not _NAME.fullmatch(name) or self._names_a_secret(name)]
        rest = _PATH_VARIABLE.sub("", path)
        if bad or "{" in rest or "}" in rest or not path.startswith("/") or clean(path) != path or " " in path:
            self._source.note(
                "openapi-path-unusable",
                "error",
                place,
                "the path cannot be a route of a capability",
                "the operation is left out",
                "start it with / and use plain names in braces",
            )
            return False
        return True

    def _names_a_secret(self, name: str) -> bool:
        """Whether a name could be read as a variable of a bind."""
        return name.startswith(f"{BIND}.") or name == BIND or self._security.reserves(name)

    def _operation(self, method: str, path: str, item: dict[str, Any], pointer: Pointer) -> ApiOperation:
        node = item[method.lower()]
        self._source.spend()
        api = ApiOperation(
            method=method,
            path=path,
            pointer=pointer,
            wanted_name=clean(node.get("operationId"), 200),
            summary=clean(node.get("summary"), 200).replace("\n", " "),
            description=clean(node.get("description") or item.get("description"), 1500),
            tags=tuple(filter(None, (clean(tag, 100) for tag in as_list(node.get("tags"))))),
            base_uri=self._base_uri(node, item, pointer),
            schemes=self._security.choose(node, pointer),
        )
        raw = self._raw_parameters(as_list(item.get("parameters")), (*pointer[:-1], "parameters"))
        raw |= self._raw_parameters(as_list(node.get("parameters")), (*pointer, "parameters"))
        for parameter, place in raw.values():
            if parameter["in"] in _PLACES:
                api.parameters += self._parameters(parameter, place)
        self._add_path_variables(api)
        if self._source.version == "2.0":
            api.body = self._body_of_parameters(list(raw.values()), node)
        elif "requestBody" in node:
            api.body = self._request_body(node["requestBody"], (*pointer, "requestBody"))
        api.reply = self._reply(node, pointer)
        return api

    def _raw_parameters(
        self, listed: list[Any], pointer: Pointer
    ) -> dict[tuple[str, str], tuple[dict[str, Any], Pointer]]:
        found = {}
        for index, entry in enumerate(listed):
            node, place = self._source.follow(entry, (*pointer, index))
            name, location = node.get("name"), node.get("in")
            if not isinstance(name, str) or not isinstance(location, str):
                continue
            if location == "header" and name.lower() in _OWN_HEADERS:
                continue
            if location != "body" and (not _NAME.fullmatch(name) or clean(name) != name or self._names_a_secret(name)):
                self._source.note(
                    "openapi-name-unusable",
                    "error",
                    place,
                    "the name cannot be that of an input",
                    "the parameter is left out",
                    "use a name without spaces and braces",
                )
                continue
            found[name, location] = (node, place)
        return found

    def _parameters(self, node: dict[str, Any], place: Pointer) -> list[Parameter]:
        """The inputs that a parameter stands for: the members of an object, where it is written as several pairs."""
        schema: Any = node
        at = place
        if self._source.version != "2.0":
            content = as_map(node.get("content"))
            media = next(iter(content), None)
            at = (*place, "schema") if media is None else (*place, "content", media, "schema")
            schema = node.get("schema") if media is None else as_map(content[media]).get("schema")
        shape = self._shapes.read(schema, at)
        name, location = node["name"], node["in"]
        own = clean(node.get("description"), 500) or shape.get("description", "")
        required = location == "path" or node.get("required") is True
        style, explode = self._style(node)
        if location == "query" and shape.get("type") == "object" and shape.get("properties") and "content" not in node:
            form = "{0}[{1}]" if style == "deepObject" else "{1}" if explode else ""
            if form:
                return [
                    Parameter(
                        form.format(name, key),
                        location,
                        required and below.get("required") is True,
                        below.get("description", ""),
                        _bare(below),
                    )
                    for key, below in shape["properties"].items()
                    if _NAME.fullmatch(key) and not self._names_a_secret(key)
                ]
        exploded = explode or shape.get("type") != "array" or location != "query"
        if not exploded:
            self._source.note(
                "openapi-list-joined",
                "warning",
                place,
                f"{name} wants its values joined in one text",
                "a list is sent as repeated pairs",
                "send the values as one text, joined by commas",
            )
        default = self._shapes.default(schema, at)
        return [Parameter(name, location, required, own, _bare(shape), default, exploded)]

    def _style(self, node: dict[str, Any]) -> tuple[str, bool]:
        if self._source.version == "2.0":
            return "form", node.get("collectionFormat", "csv") == "multi"
        style = str(node.get("style", "form"))
        explode = node.get("explode")
        return style, explode if isinstance(explode, bool) else style == "form"

    def _add_path_variables(self, api: ApiOperation) -> None:
        """Path variables that nobody declared, and a word on declared ones that the path does not have."""
        names = _PATH_VARIABLE.findall(api.path)
        declared = {p.name for p in api.parameters if p.location == "path"}
        for name in dict.fromkeys(names):
            if name not in declared:
                api.parameters.insert(0, Parameter(name, "path", True, "", {"type": "string"}))
        for parameter in [p for p in api.parameters if p.location == "path" and p.name not in names]:
            api.parameters.remove(parameter)
            self._source.note(
                "openapi-path-variable-missing",
                "warning",
                api.pointer,
                f"the path has no variable {parameter.name}",
                "the parameter is left out",
                "correct the document",
            )

    def _body_of_parameters(
        self, raw: list[tuple[dict[str, Any], Pointer]], node: dict[str, Any]
    ) -> RequestBody | None:
        """The body of a Swagger 2.0 operation."""
        consumes = [clean(m) for m in as_list(node.get("consumes", self._source.root.get("consumes")))]
        body = next(((n, place) for n, place in raw if n["in"] == "body"), None)
        if body is not None:
            media = _preferred([m for m in consumes if _kind_of(m) not in _FORMS.values()]) or "application/json"
            schema = body[0].get("schema")
            return self._made_body(
                media,
                schema,
                (*body[1], "schema"),
                body[0].get("required") is True,
                clean(body[0].get("description"), 500),
            )
        fields = [(n, place) for n, place in raw if n["in"] == "formData"]
        if not fields:
            return None
        files = any(n.get("type") == "file" for n, _ in fields)
        media = "multipart/form-data" if files or "multipart/form-data" in consumes else next(iter(_FORMS))
        made = RequestBody(_kind_of(media), media, any(n.get("required") is True for n, _ in fields), "", {})
        for n, place in fields:
            shape = self._shapes.read(n, place) | ({"required": True} if n.get("required") is True else {})
            made.fields.append((n["name"], shape, n.get("type") == "file"))
        return made

    def _request_body(self, raw: Any, pointer: Pointer) -> RequestBody | None:
        node, place = self._source.follow(raw, pointer)
        content = as_map(node.get("content"))
        media = _preferred(content)
        if media is None:
            return None
        schema = as_map(content[media]).get("schema")
        at = (*place, "content", media, "schema")
        return self._made_body(media, schema, at, node.get("required") is True, clean(node.get("description"), 500))

    def _made_body(self, media: str, schema: Any, at: Pointer, required: bool, told: str) -> RequestBody:  # noqa: FBT001
        kind = _kind_of(media)
        shape = self._shapes.read(schema, at)
        description = told or shape.pop("description", "")
        shape.pop("description", None)
        body = RequestBody(kind, media, required, description, shape)
        if kind in _FORMS.values():
            for name, below in shape.pop("properties", {}).items():
                if not _NAME.fullmatch(name) or self._names_a_secret(name):
                    self._source.note(
                        "openapi-name-unusable",
                        "error",
                        at,
                        "a field's name cannot be that of an input",
                        "the field is left out",
                        "use names without spaces and braces",
                    )
                    continue
                body.fields.append((name, below, below.get("format") == "binary"))
            if not body.fields:
                body.kind = "bytes"
                self._source.note(
                    "openapi-form-undescribed",
                    "warning",
                    at,
                    "the form does not say its fields",
                    "a REST caller's body is passed on as it is; tools send text",
                    "describe its properties",
                )
        return body

    def _reply(self, node: dict[str, Any], pointer: Pointer) -> Reply | None:
        responses = as_map(node.get("responses"))
        code = next((c for c in responses if re.fullmatch(r"2[0-9X]{2}", c.upper())), None)
        code = code or ("default" if "default" in responses else None)
        if code is None:
            return None
        response, place = self._source.follow(responses[code], (*pointer, "responses", code))
        if self._source.version == "2.0":
            schema = response.get("schema")
            produces = [clean(m) for m in as_list(node.get("produces", self._source.root.get("produces")))]
            media = (_preferred(produces) or "application/json") if schema is not None else None
            at: Pointer = (*place, "schema")
        else:
            content = as_map(response.get("content"))
            media = _preferred(content)
            schema = as_map(content[media]).get("schema") if media is not None else None
            at = (*place, "content", media or "", "schema")
        if media is None:
            return None
        raw_format = _raw_format(media)
        if raw_format != "json":
            return Reply("array" if raw_format in {"csv", "tsv"} else "object", raw_format)
        return Reply(self._shapes.read(schema, at).get("type", "object"), raw_format)

    def _base_uri(self, node: dict[str, Any], item: dict[str, Any], pointer: Pointer) -> str:
        if self._source.version == "2.0":
            return self._swagger_base()
        for holder, place in ((node, pointer), (item, pointer[:-1]), (self._source.root, ())):
            server = as_map(next(iter(as_list(holder.get("servers"))), None))
            if isinstance(server.get("url"), str):
                return self._absolute(self._filled(server, place), (*place, "servers", 0, "url"))
        return self._absolute("/", ())

    def _swagger_base(self) -> str:
        root = self._source.root
        host, base = clean(root.get("host"), 300), clean(root.get("basePath"), 300)
        schemes = [s for s in as_list(root.get("schemes")) if s in {"http", "https"}]
        scheme = "https" if "https" in schemes or not schemes else "http"
        if not host:
            return self._absolute(base or "/", ("basePath",))
        return self._absolute(f"{scheme}://{host}/{base.lstrip('/')}", ("host",))

    def _filled(self, server: dict[str, Any], place: Pointer) -> str:
        """A server's address with the defaults of its variables."""
        variables = as_map(server.get("variables"))

        def value(found: re.Match[str]) -> str:
            variable = as_map(variables.get(found[1]))
            first = next(iter(as_list(variable.get("enum"))), None)
            text = clean(variable.get("default", first))
            if not text:
                self._source.note(
                    "openapi-server-variable",
                    "warning",
                    (*place, "servers", 0),
                    f"the variable {clean(found[1], 60)} of the server has no default",
                    "the address is not used",
                    "give the variable a default",
                )
            return text or found[0]

        return _SERVER_VARIABLE.sub(value, clean(server["url"], 500))

    def _absolute(self, address: str, place: Pointer) -> str:
        """The base address, empty when the document does not say a host."""
        if self._source.name.startswith(("http://", "https://")):
            address = urljoin(self._source.name, address)
        address = address.partition("?")[0].partition("#")[0].rstrip("/")
        if re.fullmatch(r"https?://[^\s{}/@]+(/[^\s{}]*)?", address):
            return address
        self._source.note(
            "openapi-server-relative",
            "warning",
            place,
            "it does not say on which host the API is",
            "baseUri is empty: calls answer 502 until one is given",
            f"fill in baseUri, or start with --base-uri NAMESPACE=https://HOST{address if address[:1] == '/' else ''}",
        )
        return ""


def _bare(shape: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in shape.items() if key not in {"description", "required"}}


def _kind_of(media: str) -> BodyKind:
    base = media.partition(";")[0].strip().lower()
    if _is_json(base) or base in {"*/*", ""}:
        return "json"
    if base in _FORMS:
        return _FORMS[base]  # type: ignore[return-value]
    if base.startswith("text/") or base.endswith(("/xml", "+xml", "yaml", "graphql", "sparql-query", "jwt")):
        return "text"
    return "bytes"


def _is_json(media: str) -> bool:
    return media.endswith(("/json", "+json")) or media == "application/*"


def _raw_format(media: str) -> str | None:
    base = media.partition(";")[0].strip().lower()
    if _is_json(base) or base == "*/*":
        return "json"
    if base.endswith(("/xml", "+xml")):
        return "xml"
    if base.endswith(("/yaml", "/x-yaml", "+yaml")):
        return "yaml"
    return _RAW_FORMATS.get(base.partition("/")[2]) if base.startswith("text/") else None


def _preferred(medias: Iterable[str]) -> str | None:
    """The media type that can be handled best; JSON, then forms, text, anything."""
    order = ("json", "formUrlEncoded", "multipartForm", "text", "bytes")
    return min(medias, key=lambda media: order.index(_kind_of(media)), default=None)
