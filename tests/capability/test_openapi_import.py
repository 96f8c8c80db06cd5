"""OpenAPI documents of every version become capability files that load, keep credentials out, and say what was lost."""

import json
import re
from typing import Any

import pytest
import yaml

from toolcrib.capability.findings import CapabilityInvalid
from toolcrib.capability.load import load
from toolcrib.capability.openapi import Imported, import_openapi
from toolcrib.capability.spec import ABSENT, ConsumedOperation, Document, McpServer, RestServer, Tool
from toolcrib.errors import Invalid

BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))


def api(paths: dict[str, Any], **more: Any) -> str:
    base = {
        "openapi": "3.1.0",
        "info": {"title": "Pet Store", "version": "1"},
        "servers": [{"url": "https://pets.test/v1"}],
    }
    return json.dumps(base | {"paths": paths} | more)


def loaded(imported: Imported) -> Document:
    result = load("imported.yaml", text=imported.text)
    assert result.findings == ()
    return result.document


def made(paths: dict[str, Any], **more: Any) -> Document:
    return loaded(import_openapi(api(paths, **more), source="pets.json"))


def consumed_operation(document: Document, name: str) -> ConsumedOperation:
    return next(o for c in document.consumes for r in c.resources for o in r.operations if o.name == name)


def tool(document: Document, name: str) -> Tool:
    mcp = next(server for server in document.servers if isinstance(server, McpServer))
    return next(tool for tool in mcp.tools if tool.name == name)


def rules(imported: Imported) -> list[str]:
    return [finding.rule for finding in imported.findings]


def one(operation: dict[str, Any], path: str = "/pets", method: str = "get") -> dict[str, Any]:
    return {path: {method: operation}}


OK = {"responses": {"200": {"description": "ok"}}}


def test_an_operation_becomes_a_consumed_operation_a_route_and_a_tool() -> None:
    paths = one(
        {
            "operationId": "getPetById",
            "summary": "One pet",
            "parameters": [
                {"name": "petId", "in": "path", "required": True, "schema": {"type": "integer"}},
                {
                    "name": "view",
                    "in": "query",
                    "description": "How much",
                    "schema": {"enum": ["full", "short"], "default": "short"},
                },
                {"name": "X-Trace", "in": "header", "schema": {"type": "string"}},
                {"name": "tags", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
            ],
            "responses": {"200": {"description": "ok", "content": {"application/json": {"schema": {"type": "array"}}}}},
        },
        "/pets/{petId}",
    )
    document = made(paths)
    assert document.label == "Pet Store"
    consumed = document.consumes[0]
    assert (consumed.namespace, consumed.base_uri, consumed.resources[0].path) == (
        "pet-store",
        "https://pets.test/v1",
        "/pets/{petId}",
    )
    operation = consumed_operation(document, "get-pet-by-id")
    assert [(i.name, i.location, i.type, i.required) for i in operation.inputs] == [
        ("petId", "path", "integer", True),
        ("view", "query", "string", False),
        ("X-Trace", "header", "string", False),
        ("tags", "query", "array", False),
    ]
    assert operation.inputs[1].enum == ("full", "short")
    assert operation.inputs[1].default == "short"
    assert operation.inputs[3].items == {"type": "string"}
    assert operation.outputs[0].mapping == "$."
    assert operation.outputs[0].type == "array"
    rest = document.servers[0]
    assert isinstance(rest, RestServer)
    assert (rest.namespace, rest.port, rest.resources[0].path) == ("pet-store-rest", 8080, "/pets/{petId}")
    route = rest.resources[0].operations[0]
    assert route.action.call == "pet-store.get-pet-by-id"
    assert {e.key: e.value for e in route.action.with_}["petId"] == "rest.petId"
    found = tool(document, "get-pet-by-id")
    assert found.hints == {"readOnly": True, "destructive": False, "idempotent": True}
    assert [i.name for i in found.inputs] == ["petId", "view", "X-Trace", "tags"]
    assert {e.key: e.value for e in found.action.with_}["view"] == "tools.view"


def test_a_json_body_keeps_its_type_its_shape_and_whether_it_is_required() -> None:
    schema = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string"},
            "id": {"type": "integer", "readOnly": True},
            "kids": {"type": "array", "items": {"type": "object", "properties": {"age": {"type": "integer"}}}},
        },
    }
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    document = made(one({"operationId": "add", "requestBody": body, **OK}, method="post"))
    item = consumed_operation(document, "add").inputs[0]
    assert (item.name, item.location, item.type, item.required) == ("body", "body", "object", True)
    assert item.properties is not None
    assert item.properties["name"] == {"type": "string", "required": True}
    assert "id" not in item.properties
    assert tool(document, "add").inputs[0].properties == item.properties


def test_forms_become_templates_of_their_fields() -> None:
    form = {
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {"properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
            }
        }
    }
    upload = {
        "content": {"multipart/form-data": {"schema": {"properties": {"file": {"type": "string", "format": "binary"}}}}}
    }
    document = made(
        {
            "/form": {"post": {"operationId": "fill", "requestBody": form, **OK}},
            "/up": {"put": {"operationId": "up", "requestBody": upload, **OK}},
        }
    )
    fill, up = consumed_operation(document, "fill"), consumed_operation(document, "up")
    assert fill.body is not None
    assert (fill.body.type, fill.body.data) == ("formUrlEncoded", {"name": "{{name}}", "age": "{{age}}"})
    assert [(i.name, i.type) for i in fill.inputs] == [("name", "string"), ("age", "integer")]
    assert up.body is not None
    assert (up.body.type, up.body.data) == (
        "multipartForm",
        [{"name": "file", "value": "{{file}}", "filename": "file"}],
    )


def test_a_body_that_is_neither_json_nor_a_form_says_its_media_type() -> None:
    xml = {"content": {"application/xml": {"schema": {"type": "string"}}}}
    raw = {"content": {"image/png": {}}}
    document = made(
        {
            "/x": {"post": {"operationId": "x", "requestBody": xml, **OK}},
            "/p": {"post": {"operationId": "p", "requestBody": raw, **OK}},
        }
    )
    assert [(i.name, i.value) for i in consumed_operation(document, "x").inputs if i.location == "header"] == [
        ("Content-Type", "application/xml")
    ]
    assert consumed_operation(document, "x").body is not None
    assert [(i.name, i.value) for i in consumed_operation(document, "p").inputs if i.location == "header"] == [
        ("Content-Type", "image/png")
    ]
    assert consumed_operation(document, "p").body is None


def test_a_write_without_body_does_not_relay_one() -> None:
    document = made(one({"operationId": "go", **OK}, method="post"))
    assert consumed_operation(document, "go").extension == {"relayBody": False}


SCHEMES: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"type": "http", "scheme": "bearer"}, "bearer", {"token": "{{env.PET_STORE_TOKEN}}"}),
    (
        {"type": "http", "scheme": "Basic"},
        "basic",
        {"username": "{{env.PET_STORE_USERNAME}}", "password": "{{env.PET_STORE_PASSWORD}}"},
    ),
    (
        {"type": "http", "scheme": "digest"},
        "digest",
        {"username": "{{env.PET_STORE_USERNAME}}", "password": "{{env.PET_STORE_PASSWORD}}"},
    ),
    (
        {"type": "apiKey", "in": "header", "name": "X-Key"},
        "apikey",
        {"key": "X-Key", "value": "{{env.PET_STORE_API_KEY}}", "placement": "header"},
    ),
    (
        {"type": "apiKey", "in": "query", "name": "key"},
        "apikey",
        {"key": "key", "value": "{{env.PET_STORE_API_KEY}}", "placement": "query"},
    ),
    ({"type": "http", "scheme": "Token"}, "apikey", {"key": "Authorization", "value": "Token {{env.PET_STORE_TOKEN}}"}),
    (
        {"type": "oauth2", "flows": {"clientCredentials": {"tokenUrl": "https://id.test/token", "scopes": {"a": ""}}}},
        "oauth2",
        {
            "tokenEndpoint": "https://id.test/token",
            "scopes": ["read"],
            "clientId": "{{env.PET_STORE_CLIENT_ID}}",
            "clientSecret": "{{env.PET_STORE_CLIENT_SECRET}}",
        },
    ),
    (
        {"type": "openIdConnect", "openIdConnectUrl": "https://id.test/.well-known/openid-configuration"},
        "oauth2",
        {
            "authorizationServerUri": "https://id.test",
            "scopes": ["read"],
            "clientId": "{{env.PET_STORE_CLIENT_ID}}",
            "clientSecret": "{{env.PET_STORE_CLIENT_SECRET}}",
        },
    ),
    (
        {"type": "oauth2", "flows": {"implicit": {"authorizationUrl": "https://id.test", "scopes": {}}}},
        "bearer",
        {"token": "{{env.PET_STORE_TOKEN}}"},
    ),
]


@pytest.mark.parametrize(("scheme", "kind", "fields"), SCHEMES)
def test_a_security_scheme_becomes_an_authentication_with_variables(
    scheme: dict[str, Any], kind: str, fields: dict[str, Any]
) -> None:
    document = made(one(OK), components={"securitySchemes": {"s": scheme}}, security=[{"s": ["read"]}])
    auth = document.consumes[0].authentication
    assert auth is not None
    assert (auth.type, dict(auth.fields)) == (kind, fields)
    named = set(re.findall(r"env\.(\w+)", str(fields)))
    assert set(document.binds[0].keys) == named


def test_operations_with_other_credentials_or_hosts_are_apart() -> None:
    schemes = {
        "key": {"type": "apiKey", "in": "header", "name": "X-Key"},
        "sid": {"type": "apiKey", "in": "cookie", "name": "sid"},
    }
    paths = {
        "/a": {"get": {"operationId": "a", **OK}, "post": {"operationId": "b", **OK}},
        "/login": {"post": {"operationId": "login", "security": [], **OK}},
        "/c": {"get": {"operationId": "c", "security": [{"sid": []}], **OK}},
        "/d": {"get": {"operationId": "d", "servers": [{"url": "https://files.test"}], **OK}},
    }
    document = made(paths, components={"securitySchemes": schemes}, security=[{"key": []}])
    found = {c.namespace: c for c in document.consumes}
    assert list(found) == ["pet-store", "pet-store-open", "pet-store-sid", "pet-store-files-test"]
    assert found["pet-store-open"].authentication is None
    assert [(i.name, i.location, i.value) for i in found["pet-store-sid"].inputs] == [
        ("sid", "cookie", "{{env.PET_STORE_SID_API_KEY}}")
    ]
    assert found["pet-store-files-test"].base_uri == "https://files.test"


def test_swagger_2_is_read_too() -> None:
    text = """
swagger: '2.0'
info: {title: Old API, version: 1.10}
host: old.test
basePath: /v2/
schemes: [http, https]
consumes: [application/json]
securityDefinitions: {b: {type: basic}}
security: [{b: []}]
parameters:
  limit: {name: limit, in: query, type: integer, default: 10}
paths:
  /things:
    parameters: [{$ref: '#/parameters/limit'}]
    get:
      operationId: ListThings
      produces: [application/xml]
      parameters: [{name: ids, in: query, type: array, items: {type: integer}}]
      responses: {200: {description: ok, schema: {type: object}}}
    post:
      parameters: [{name: payload, in: body, required: true, schema: {type: array, items: {type: string}}}]
      responses: {201: {description: ok}}
  /upload:
    post:
      parameters: [{name: doc, in: formData, type: file, required: true}, {name: note, in: formData, type: string}]
      responses: {default: {description: ok}}
"""
    imported = import_openapi(text, source="old.yaml")
    document = loaded(imported)
    assert document.consumes[0].base_uri == "https://old.test/v2"
    listing = consumed_operation(document, "list-things")
    assert [(i.name, i.type) for i in listing.inputs] == [("limit", "integer"), ("ids", "array")]
    assert listing.raw_format == "xml"
    body = consumed_operation(document, "post-things").inputs[-1]
    assert (body.name, body.type, body.required, body.items) == ("body", "array", True, {"type": "string"})
    upload = consumed_operation(document, "post-upload")
    assert upload.body is not None
    assert upload.body.type == "multipartForm"
    assert [(i.name, i.required) for i in upload.inputs] == [("doc", True), ("note", False)]
    assert "openapi-list-joined" in rules(imported)  # csv is the default there


def test_names_are_kebab_unique_and_short_enough_for_tools() -> None:
    long = "veryLong" * 12
    paths = {
        "/a": {"get": {"operationId": "getHTTPThing_v2", **OK}},
        "/b": {"get": {"operationId": "getHttpThing-v2", **OK}},
        "/c/{x}": {"get": OK},
        "/l": {"get": {"operationId": long, **OK}, "put": {"operationId": long + "2", **OK}},
    }
    document = made(paths)
    mcp = document.servers[1]
    assert isinstance(mcp, McpServer)
    names = [found.name for found in mcp.tools]
    assert names[:3] == ["get-http-thing-v2", "get-http-thing-v2-2", "get-c-x"]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]{1,64}", name) for name in names)


def test_servers_with_variables_are_filled_and_relative_ones_resolved_against_the_address() -> None:
    server = {
        "url": "https://{region}.pets.test/{base}",
        "variables": {"region": {"default": "eu"}, "base": {"enum": ["v9"], "default": "v9"}},
    }
    assert made(one(OK), servers=[server]).consumes[0].base_uri == "https://eu.pets.test/v9"
    relative = import_openapi(api(one(OK), servers=[{"url": "/v3"}]), source="https://pets.test/spec/openapi.json")
    assert loaded(relative).consumes[0].base_uri == "https://pets.test/v3"
    nowhere = import_openapi(api(one(OK), servers=[{"url": "/v3"}]), source="openapi.json")
    assert loaded(nowhere).consumes[0].base_uri == ""
    assert rules(nowhere) == ["openapi-server-relative"]


def test_references_are_followed_but_not_in_circles_and_not_out_of_the_document() -> None:
    schemas = {
        "Node": {
            "type": "object",
            "properties": {"next": {"$ref": "#/components/schemas/Node"}, "name": {"type": "string"}},
        },
        "Loop": {"$ref": "#/components/schemas/Loop"},
    }
    parameters = {"p/1": {"name": "p", "in": "query", "schema": {"type": "boolean"}}}
    operation = {
        "operationId": "x",
        "parameters": [{"$ref": "#/components/parameters/p~11"}, {"$ref": "other.yaml#/p"}, {"$ref": "#/nowhere"}],
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Node"}}}},
        "responses": {
            "200": {
                "description": "ok",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Loop"}}},
            }
        },
    }
    imported = import_openapi(
        api(one(operation, method="post"), components={"schemas": schemas, "parameters": parameters}), source="x.json"
    )
    inputs = consumed_operation(loaded(imported), "x").inputs
    assert (inputs[0].name, inputs[0].type) == ("p", "boolean")
    assert inputs[1].properties is not None
    assert set(inputs[1].properties) == {"next", "name"}
    assert sorted(rules(imported)) == [
        "openapi-reference-cyclic",
        "openapi-reference-remote",
        "openapi-reference-unknown",
    ]


def test_findings_name_the_line() -> None:
    text = "openapi: 3.0.3\ninfo: {title: T}\nservers: [{url: https://t.test}]\npaths:\n  /a:\n    get:\n      parameters:\n      - $ref: 'https://elsewhere.test/p.yaml'\n      responses: {}\n"
    finding = import_openapi(text, source="t.yaml").findings[0]
    assert (finding.at.file, finding.at.line) == ("t.yaml", 8)
    assert "paths./a.get.parameters.0" in finding.message


def test_alternatives_and_all_of_are_reduced_to_what_an_input_can_say() -> None:
    schema = {
        "allOf": [
            {
                "type": "object",
                "properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
                "required": ["a"],
            },
            {
                "properties": {
                    "b": {"oneOf": [{"type": "integer"}, {"type": "string"}]},
                    "c": {"type": ["number", "null"]},
                }
            },
        ]
    }
    document = made(
        one(
            {"operationId": "x", "requestBody": {"content": {"application/json": {"schema": schema}}}, **OK},
            method="post",
        )
    )
    assert consumed_operation(document, "x").inputs[0].properties == {
        "a": {"type": "string", "required": True},
        "b": {},
        "c": {"type": "number"},
    }


def test_members_of_an_object_in_the_query_are_parameters_of_their_own() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    parameters = [
        {"name": "filter", "in": "query", "style": "deepObject", "schema": schema},
        {"name": "page", "in": "query", "schema": schema},
    ]
    document = made(one({"operationId": "x", "parameters": parameters, **OK}))
    assert [i.name for i in consumed_operation(document, "x").inputs] == ["filter[age]", "age"]


def test_a_document_cannot_name_the_secrets_of_whoever_imports_it() -> None:
    paths = {
        "/a/{env.HOME}": {"get": OK},
        "/b/{PET_STORE_TOKEN}": {"get": OK},
        "/{{env.HOME}}": {"get": OK},
        "/ok": {
            "post": {
                "operationId": "ok",
                "parameters": [
                    {"name": "{{env.HOME}}", "in": "query"},
                    {"name": "d", "in": "query", "schema": {"type": "string", "default": "{{env.HOME}}"}},
                    {"name": "env.HOME", "in": "header"},
                ],
                "requestBody": {
                    "content": {
                        "application/x-www-form-urlencoded": {
                            "schema": {"properties": {"env.HOME": {"type": "string"}, "x}} {{env.HOME": {}, "fine": {}}}
                        }
                    }
                },
                **OK,
            }
        },
        "/q?k={{env.HOME}}": {"get": OK},
    }
    scheme = {"type": "apiKey", "in": "header", "name": "X-{{env.HOME}}"}
    imported = import_openapi(
        api(
            paths,
            servers=[{"url": "https://evil.test/{{env.HOME}}"}],
            components={"securitySchemes": {"s": scheme}},
            security=[{"s": []}],
        ),
        source="x.json",
    )
    tree = yaml.safe_load(imported.text)
    assert "HOME" not in json.dumps(tree)
    assert "PET_STORE_TOKEN" not in json.dumps(tree)
    operation = consumed_operation(loaded(imported), "ok")
    assert [(i.name, i.default) for i in operation.inputs] == [("d", ABSENT), ("fine", ABSENT)]


def test_paths_that_no_request_can_have_get_a_route_of_their_own() -> None:
    paths = {
        "/": {"post": {"operationId": "root", **OK}},
        "/#X-Target=List": {"post": {"operationId": "aws", **OK}},
        "/do?action=go": {"get": {"operationId": "go", **OK}},
    }
    document = made(paths)
    rest = document.servers[0]
    assert isinstance(rest, RestServer)
    assert [r.path for r in rest.resources] == ["/", "/x-target-list", "/do/action-go"]
    assert [(i.name, i.value) for i in consumed_operation(document, "go").inputs] == [("action", "go")]


def test_a_part_of_a_document_can_be_imported_without_servers_or_with_a_prefix() -> None:
    paths = {
        "/a": {"get": {"operationId": "getA", "tags": ["one"], **OK}, "post": {"operationId": "addA", **OK}},
        "/b": {"get": {"operationId": "getB", **OK}},
    }
    text = api(paths)
    by_tag = loaded(
        import_openapi(text, source="x", include=["one", "GET /b*"], mcp_port=None, prefix="/v1", namespace="mine")
    )
    assert [r.path for s in by_tag.servers if isinstance(s, RestServer) for r in s.resources] == ["/v1/a", "/v1/b"]
    assert len(by_tag.servers) == 1
    assert [o.name for r in by_tag.consumes[0].resources for o in r.operations] == ["get-a", "get-b"]
    with pytest.raises(CapabilityInvalid, match="no operation"):
        import_openapi(text, source="x", include=["nothing"])
    with pytest.raises(Invalid):
        import_openapi(text, source="x", namespace="a.b")


def test_the_text_is_stable_and_quotes_what_another_yaml_would_read_as_a_number() -> None:
    parameter = {
        "name": "v",
        "in": "query",
        "schema": {"type": "string", "enum": ["1e3", "0o17", "2024-01-02", "on", "12_000"]},
        "description": "one\ntwo",
    }
    text = api(one({"parameters": [parameter], **OK}))
    first = import_openapi(text, source="x").text
    assert import_openapi(text, source="x").text == first
    assert all(f"'{value}'" in first for value in ("1e3", "0o17", "2024-01-02", "on", "12_000"))
    assert "description: |-" in first
    assert "\n\ncapability:\n  consumes:\n" in first


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("[]", "no map"),
        ("{}", "no version"),
        ("openapi: 4.0.0", "version 4.0.0"),
        ("a: [", "broken"),
        ("openapi: 3.1.0\npaths: 7", "no operation"),
        ("[" * 100_000, "nested"),
        ('{"openapi": ' * 50_000, "nested"),
        (BOMB, "aliases"),
        ("x" * (9 << 20), "bytes"),
    ],
)
def test_what_is_no_openapi_document_is_refused_with_a_place(text: str, said: str) -> None:
    with pytest.raises(CapabilityInvalid, match=said) as caught:
        import_openapi(text, source="bad.yaml")
    assert caught.value.findings[0].at.file == "bad.yaml"


def test_wrong_types_anywhere_do_no_harm() -> None:
    odd: list[Any] = [None, 7, "x", [], {}, [[]], {"a": 1}, True]
    for value in odd:
        operation = {
            "operationId": value,
            "summary": value,
            "tags": value,
            "parameters": value,
            "requestBody": value,
            "responses": value,
            "security": value,
            "servers": value,
        }
        body = {
            "content": {
                "application/json": {
                    "schema": {
                        "properties": value,
                        "allOf": value,
                        "anyOf": value,
                        "enum": value,
                        "type": value,
                        "items": value,
                        "required": value,
                        "$ref": value,
                    }
                }
            }
        }
        deep = {
            "parameters": [
                value,
                {"name": value, "in": value},
                {"name": "q", "in": "query", "schema": value, "content": value},
            ],
            "requestBody": body,
            "responses": {"200": body},
        }
        text = api(
            {"/a": {"get": operation, "post": deep, "parameters": value}, "/b": value},
            components=value,
            security=value,
            servers=value,
            info=value,
        )
        assert load("x", text=import_openapi(text, source="x").text).document.consumes


def test_schemas_that_explode_stay_small() -> None:
    level = {"anyOf": [{"$ref": "#/components/schemas/S"}] * 16, "allOf": [{"$ref": "#/components/schemas/S"}] * 32}
    wide = {"type": "object", "properties": {f"p{i}": {"$ref": "#/components/schemas/W"} for i in range(100)}}
    operation = {
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/S"}}}},
        "responses": {
            "200": {"description": "", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/W"}}}}
        },
    }
    other = {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/W"}}}}, **OK}
    text = api({"/a": {"post": operation, "put": other}}, components={"schemas": {"S": level, "W": wide}})
    assert len(import_openapi(text, source="x").text) < 200_000
