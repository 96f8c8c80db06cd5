"""An OpenAPI document out of a capability: of a REST server as it serves, or of an API as it is consumed.

Says what the file says and the engine does, and no credential: of an authentication only its kind is written, and the
name of a key.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from toolcrib.capability.openapi.routes import JSON, Key, Parameter, Route, consumed_routes, path_variables, rest_routes
from toolcrib.capability.openapi.schema import for_version
from toolcrib.capability.spec import Consumed, Document, RestServer
from toolcrib.errors import Invalid, NotFound

Version = Literal["2.0", "3.0", "3.1"]
_NUMBERS: dict[Version, str] = {"2.0": "2.0", "3.0": "3.0.3", "3.1": "3.1.0"}
_SIMPLE = ("type", "format", "enum", "default", "pattern", "items")  # what Swagger 2.0 has on parameters
_ADDRESSES_OF_ALL = {"0.0.0.0", "::", ""}  # noqa: S104 - shown as localhost, not bound
_TEXT = {"type": "string"}
_PROBLEM: dict[str, Any] = {
    "type": "object",
    "properties": {"type": _TEXT, "title": _TEXT, "status": {"type": "integer"}, "detail": _TEXT},
}


def export_openapi(
    document: Document, *, server_namespace: str | None = None, version: Version = "3.1"
) -> dict[str, Any]:
    """An OpenAPI document of a REST server of the capability, or of an API that it consumes.

    Args:
        document: the capability.
        server_namespace: of a REST server or a consumed API; None takes the first REST server, or the first consumed
            API of a file that has none.
        version: of OpenAPI.

    Raises:
        NotFound: there is no such server or API.
        Invalid: the version is not known.
    """
    if version not in _NUMBERS:
        raise Invalid("openapi.version", "The version must be 2.0, 3.0 or 3.1.", field="version")
    subject = _subject(document, server_namespace)
    if isinstance(subject, RestServer):
        routes, address = rest_routes(document, subject), _server_address(subject)
    else:
        routes, address = consumed_routes(subject), subject.base_uri
    return _Writer(version).document(document, subject, routes, address)


def _subject(document: Document, namespace: str | None) -> RestServer | Consumed:
    servers = [server for server in document.servers if isinstance(server, RestServer)]
    subjects: list[RestServer | Consumed] = [*servers, *document.consumes]
    for subject in subjects:
        if namespace in {None, subject.namespace}:
            return subject
    what = "REST server" if namespace is None else f"REST server or consumed API {namespace}"
    raise NotFound("server.unknown", f"The capability has no {what}.", field="server_namespace")


def _server_address(server: RestServer) -> str:
    if server.port is None:
        return ""
    host = "localhost" if (server.address or "") in _ADDRESSES_OF_ALL else str(server.address)
    return f"http://{f'[{host}]' if ':' in host else host}:{server.port}"


class _Writer:
    """Writes one document."""

    def __init__(self, version: Version) -> None:
        self._version = version
        self._schemes: dict[str, dict[str, Any]] = {}
        self._ids: set[str] = set()

    def document(
        self, document: Document, subject: RestServer | Consumed, routes: list[Route], address: str
    ) -> dict[str, Any]:
        """The whole document."""
        paths: dict[str, Any] = {}
        tags: dict[str, None] = {}
        shapes: dict[str, str] = {}  # paths that differ only in the names of variables are one in OpenAPI
        for route in routes:
            shape = re.sub(r"\{[^{}]*\}", "{}", route.path)
            path = shapes.setdefault(shape, route.path)
            item = paths.setdefault(path, {})
            if route.method.lower() in item:
                continue
            if path != route.path:
                route.parameters = _renamed(route, path)
            tag = _tag(path)
            tags[tag] = None
            item[route.method.lower()] = self._operation(route, tag)
        number = _NUMBERS[self._version]
        written: dict[str, Any] = {"swagger": number} if self._version == "2.0" else {"openapi": number}
        written["info"] = _info(document, subject)
        written |= self._servers(address)
        written |= {"tags": [{"name": tag} for tag in tags], "paths": paths}
        if self._schemes and self._version == "2.0":
            written["securityDefinitions"] = self._schemes
        elif self._schemes:
            written["components"] = {"securitySchemes": self._schemes}
        return written

    def _servers(self, address: str) -> dict[str, Any]:
        names = path_variables(address)
        if self._version == "2.0":
            parts = urlsplit(address)
            if not parts.hostname or names:
                return {}
            host = parts.netloc.rpartition("@")[2]
            return {"host": host, "basePath": parts.path or "/", "schemes": [parts.scheme]}
        url = re.sub(r"\{\{\s*([^{}]+?)\s*\}\}", r"{\1}", address)
        url = re.sub(r"^(https?://)[^/@]*@", r"\1", url)
        server: dict[str, Any] = {"url": url or "/"}
        if names:
            server["variables"] = {name: {"default": name} for name in names}
        return {"servers": [server]}

    def _operation(self, route: Route, tag: str) -> dict[str, Any]:
        written: dict[str, Any] = {"operationId": self._id(route), "tags": [tag]}
        if route.summary:
            written["summary"] = route.summary
        if route.description:
            written["description"] = route.description
        if self._version == "2.0":
            self._swagger_inputs(written, route)
        else:
            if route.parameters:
                written["parameters"] = [self._parameter(parameter) for parameter in route.parameters]
            if (body := route.body) is not None:
                media = {"schema": body.schema}
                told = {"description": body.description} if body.description else {}
                content = dict.fromkeys(body.medias, media)
                written["requestBody"] = {**told, "required": body.required, "content": content}
        written["responses"] = self._responses(route)
        if route.keys:
            need = {name: scopes for key in route.keys for name, scopes in [self._scheme(key)]}
            written["security"] = [{}, need] if route.anonymous else [need]
        return written

    def _id(self, route: Route) -> str:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", route.name).strip("-") or route.method.lower()
        found, number = name, 2
        while found in self._ids:
            found, number = f"{name}-{number}", number + 1
        self._ids.add(found)
        return found

    def _parameter(self, parameter: Parameter) -> dict[str, Any]:
        written: dict[str, Any] = {"name": parameter.name, "in": parameter.location, "required": parameter.required}
        if parameter.description:
            written["description"] = parameter.description
        return written | {"schema": parameter.schema}

    def _swagger_inputs(self, written: dict[str, Any], route: Route) -> None:
        """Parameters and body as Swagger 2.0 has them; it has no cookies."""
        parameters = []
        for parameter in route.parameters:
            if parameter.location == "cookie":
                written.setdefault("x-cookie-parameters", []).append(self._parameter(parameter))
                continue
            entry = {"name": parameter.name, "in": parameter.location, "required": parameter.required}
            if parameter.description:
                entry["description"] = parameter.description
            parameters.append(entry | _simple(parameter.schema, parameter.location))
        if (body := route.body) is not None:
            schema = for_version(body.schema, "2.0")
            media = body.medias[0]
            written["consumes"] = [media] if "form" in media else list(body.medias)
            if "form" in media and "properties" in schema:
                needed = schema.get("required", [])
                for name, below in schema["properties"].items():
                    entry = {"name": name, "in": "formData", "required": name in needed}
                    told = {"description": below["description"]} if "description" in below else {}
                    parameters.append(entry | told | _simple(below, "formData"))
            else:
                entry = {"name": "body", "in": "body", "required": body.required}
                told = {"description": body.description} if body.description else {}
                parameters.append(entry | told | {"schema": schema})
        if parameters:
            written["parameters"] = parameters

    def _responses(self, route: Route) -> dict[str, Any]:
        """A success, with the upstream's own status where that is passed on, and problems."""
        code = "200" if route.always_ok or self._version == "2.0" else "2XX"
        success: dict[str, Any] = {"description": "Success."}
        problem: dict[str, Any] = {"description": "A problem, or an answer of the upstream that is no success."}
        if self._version == "2.0":
            success |= {} if route.reply is None else {"schema": for_version(route.reply, "2.0")}
        else:
            success |= {} if route.reply is None else {"content": {JSON: {"schema": route.reply}}}
            problem["content"] = {"application/problem+json": {"schema": _PROBLEM}}
        return {code: success, "default": problem}

    def _scheme(self, key: Key) -> tuple[str, list[str]]:
        """The name of the scheme of a key, added when new, and the scopes that are needed."""
        wanted, scheme, scopes = self._scheme_of(key)
        name, number = wanted, 2
        while self._schemes.get(name, scheme) != scheme:
            name, number = f"{wanted}{number}", number + 1
        self._schemes[name] = scheme
        return name, scopes if scheme["type"] in {"oauth2", "openIdConnect"} else []

    def _scheme_of(self, key: Key) -> tuple[str, dict[str, Any], list[str]]:
        if key.auth is None:
            assert key.input is not None  # noqa: S101 - one of the two is there
            return "apiKeyAuth", self._api_key(key.input.name, key.input.location or "query"), []
        fields = key.auth.fields
        match key.auth.type:
            case "apikey":
                return "apiKeyAuth", self._api_key(*_key_of(fields)), []
            case "basic":
                return "basicAuth", {"type": "basic"} if self._version == "2.0" else _http("basic"), []
            case "oauth2":
                return self._oauth(fields)
            case kind:
                return f"{kind}Auth", self._of_authorization(kind), []

    def _api_key(self, name: str, place: str) -> dict[str, Any]:
        if place == "cookie" and self._version == "2.0":
            return {"type": "apiKey", "in": "header", "name": "Cookie", "description": f"The cookie {name}."}
        return {"type": "apiKey", "in": place.lower(), "name": name}

    def _of_authorization(self, kind: str) -> dict[str, Any]:
        """A scheme of the Authorization header, which Swagger 2.0 knows only as a key."""
        if self._version != "2.0":
            return _http(kind)
        told = f"{kind.capitalize()} authentication."
        return {"type": "apiKey", "in": "header", "name": "Authorization", "description": told}

    def _oauth(self, fields: Any) -> tuple[str, dict[str, Any], list[str]]:
        said = fields.get("scopes")
        scopes = [str(scope) for scope in said] if isinstance(said, list) else str(said or "").split()
        listed = dict.fromkeys(scopes, "")
        token, server = str(fields.get("tokenEndpoint") or ""), str(fields.get("authorizationServerUri") or "")
        if token and "{" not in token:
            if self._version == "2.0":
                return "oauth2", {"type": "oauth2", "flow": "application", "tokenUrl": token, "scopes": listed}, scopes
            return (
                "oauth2",
                {"type": "oauth2", "flows": {"clientCredentials": {"tokenUrl": token, "scopes": listed}}},
                scopes,
            )
        if server and "{" not in server and self._version != "2.0":
            address = f"{server.rstrip('/')}/.well-known/openid-configuration"
            return "openId", {"type": "openIdConnect", "openIdConnectUrl": address}, scopes
        return "bearerAuth", self._of_authorization("bearer"), []


def _key_of(fields: Mapping[str, Any]) -> tuple[str, str]:
    """Name and place of an API key; of several, those of the first."""
    for several, place in (("headers", "header"), ("parameters", "query")):
        if isinstance(fields.get(several), Mapping) and fields[several]:
            return str(next(iter(fields[several]))), place
    return str(fields.get("key", "")), str(fields.get("placement") or "header")


def _http(scheme: str) -> dict[str, Any]:
    return {"type": "http", "scheme": scheme}


def _info(document: Document, subject: RestServer | Consumed) -> dict[str, Any]:
    label = document.label or subject.namespace
    info: dict[str, Any] = {"title": label, "version": str(document.info.get("version") or "1.0.0")}
    if told := document.description or subject.description:
        info["description"] = told
    return info | ({"x-tags": list(document.tags)} if document.tags else {})


def _tag(path: str) -> str:
    """What a path is about: its first segment that is neither a version nor a variable."""
    segments = [segment for segment in path.split("/") if segment and "{" not in segment]
    return next((s for s in segments if not re.fullmatch(r"v[0-9.]+|api", s)), "root")


def _renamed(route: Route, path: str) -> list[Parameter]:
    """The parameters with path variables called as in another path of the same shape."""
    names = dict(zip(path_variables(route.path), path_variables(path), strict=False))
    return [
        Parameter(names.get(p.name, p.name), p.location, p.required, p.schema, p.description)
        if p.location == "path"
        else p
        for p in route.parameters
    ]


def _simple(schema: dict[str, Any], place: str) -> dict[str, Any]:
    """A schema as a parameter of Swagger 2.0 can say it: no objects, lists of scalars."""
    found = {key: schema[key] for key in _SIMPLE if key in schema}
    if found.get("type") not in {"string", "number", "integer", "boolean", "array"}:
        found["type"] = "string"
    if found["type"] == "array":
        below = schema.get("items", {})
        inner = below if below.get("type") in {"string", "number", "integer", "boolean"} else {"type": "string"}
        found["items"] = {key: inner[key] for key in _SIMPLE if key in inner and key != "items"}
        found["collectionFormat"] = "multi" if place in {"query", "formData"} else "csv"
    else:
        found.pop("items", None)
    return found
