"""What a capability serves is described truthfully in every OpenAPI version, and comes back the same when imported."""

import json
from typing import Any, get_args

import pytest
from openapi_spec_validator import validate

from toolcrib.capability.load import load
from toolcrib.capability.openapi import export_openapi, import_openapi
from toolcrib.capability.openapi.exporter import Version
from toolcrib.capability.spec import Document, RestServer
from toolcrib.errors import Invalid, NotFound

VERSIONS: tuple[Version, ...] = get_args(Version)
METHODS = {"get", "post", "put", "patch", "delete"}

PUBLISHED = """
naftiko: 1.0.0-alpha2
info: {label: Shop, description: A shop., tags: [Shop]}
binds: [{namespace: env, keys: {SHOP_KEY: SHOP_KEY}}]
capability:
  consumes:
  - type: http
    namespace: shop
    baseUri: https://shop.test
    authentication: {type: bearer, token: '{{env.SHOP_KEY}}'}
    resources:
    - name: customers
      path: /customers
      operations:
      - {name: list, method: GET, inputParameters: [{name: pageSize, in: query, type: integer}, {name: Authorization, in: header}, {name: fixed, in: query, value: x}]}
      - {name: create, method: POST, inputParameters: [{name: body, in: body, type: object, required: true}]}
      - {name: poke, method: POST}
    - name: customer
      path: /customers/{customer_id}
      operations:
      - {name: read, method: GET, inputParameters: [{name: customer_id, in: path, type: string, description: Which one}]}
      - {name: rename, method: PUT, body: {type: json, data: {name: '{{tools.name}}', note: '{{note}}', key: '{{env.SHOP_KEY}}'}}}
      - {name: note, method: PATCH, body: {type: formUrlEncoded, data: {text: '{{text}}'}}, inputParameters: [{name: text, in: body, type: string, required: true}]}
  exposes:
  - type: rest
    namespace: shop-rest
    port: 8080
    resources:
    - path: /v1/customers
      operations:
      - {method: GET, name: list, call: shop.list, with: {pageSize: rest.size}, outputParameters: [{type: object, mapping: $.}]}
      - {method: POST, name: create, call: shop.create, with: {body: rest.body}}
      - {method: DELETE, name: mocked, outputParameters: [{name: done, type: boolean, value: true}]}
      - {method: PUT, name: poke, call: shop.poke}
    - path: /v1/customers/{customer-id}
      operations:
      - method: GET
        name: read
        call: shop.read
        outputParameters:
        - type: object
          properties:
            id: {type: string, mapping: $.id}
            tags: {type: array, mapping: $.tags, items: {type: string}}
            prices: {type: object, mapping: $.prices, values: {type: number, mapping: $.}}
      - {method: PUT, name: rename, call: shop.rename}
      - {method: PATCH, name: note, call: shop.note}
    - path: /v1/lost
      operations:
      - {method: GET, name: read, call: shop.read, outputParameters: [{type: array, mapping: $., items: {type: object, properties: {a: {type: string, mapping: $.a}}}}]}
    - path: '/v1/orders/{{order}}'
      operations:
      - method: GET
        name: both
        inputParameters: [{name: order, in: path, type: integer}, {name: deep, in: query, type: boolean, default: false}, {name: home, in: environment}]
        steps:
        - {type: call, name: one, call: shop.read, with: {customer_id: rest.who}}
        - {type: call, name: two, call: shop.list, with: {pageSize: '{{one.n}}'}}
        mappings: [{targetName: customer.name, value: $.one.name}, {targetName: all, value: $.two}]
        outputParameters: [{name: all, type: array}]
"""


def shop() -> Document:
    return load("shop.yaml", text=PUBLISHED).document


def exported(version: Version = "3.1", text: str = PUBLISHED, **more: Any) -> dict[str, Any]:
    document = export_openapi(load("shop.yaml", text=text).document, version=version, **more)
    validate(json.loads(json.dumps(document)))
    return document


def parameters(operation: dict[str, Any]) -> list[tuple[str, str, bool]]:
    return [(p["name"], p["in"], p["required"]) for p in operation.get("parameters", [])]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_valid_and_has_every_route(version: Version) -> None:
    document = exported(version)
    found = {(path, method) for path, item in document["paths"].items() for method in item}
    rest = shop().servers[0]
    assert isinstance(rest, RestServer)
    assert found == {
        (r.path.replace("{{", "{").replace("}}", "}"), o.method.lower()) for r in rest.resources for o in r.operations
    }
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(ids)) == len(ids)
    assert document["info"]["title"] == "Shop"


def test_what_nobody_declared_is_inferred_from_the_consumed_operation() -> None:
    paths = exported()["paths"]
    assert parameters(paths["/v1/customers"]["get"]) == [("size", "query", False)]
    assert paths["/v1/customers"]["get"]["parameters"][0]["schema"] == {"type": "integer"}
    read = paths["/v1/customers/{customer-id}"]["get"]
    assert parameters(read) == [("customer-id", "path", True)]
    assert read["parameters"][0]["description"] == "Which one"
    assert parameters(paths["/v1/lost"]["get"]) == [("customer_id", "query", True)]
    assert parameters(paths["/v1/orders/{order}"]["get"]) == [
        ("order", "path", True),
        ("deep", "query", False),
        ("who", "query", False),
    ]


def test_bodies_come_from_inputs_templates_and_what_is_relayed() -> None:
    paths = exported()["paths"]
    create = paths["/v1/customers"]["post"]["requestBody"]
    assert create == {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
    assert paths["/v1/customers"]["put"]["requestBody"]["required"] is False
    rename = paths["/v1/customers/{customer-id}"]["put"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(rename["properties"]) == {"name", "note"}
    note = paths["/v1/customers/{customer-id}"]["patch"]["requestBody"]
    assert list(note["content"]) == ["application/x-www-form-urlencoded", "application/json"]
    assert note["content"]["application/json"]["schema"]["required"] == ["text"]
    swagger = exported("2.0")["paths"]["/v1/customers/{customer-id}"]["patch"]
    assert swagger["consumes"] == ["application/x-www-form-urlencoded"]
    assert ("text", "formData", True) in parameters(swagger)


def test_replies_are_described_as_far_as_outputs_say() -> None:
    paths = exported()["paths"]
    assert paths["/v1/customers"]["get"]["responses"]["2XX"]["content"]["application/json"]["schema"] == {}
    read = paths["/v1/customers/{customer-id}"]["get"]["responses"]["2XX"]["content"]["application/json"]["schema"]
    assert read["properties"]["tags"] == {"type": "array", "items": {"type": "string"}}
    assert read["properties"]["prices"] == {"type": "object", "additionalProperties": {"type": "number"}}
    mocked = paths["/v1/customers"]["delete"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert mocked["properties"] == {"done": {"type": "boolean"}}
    both = paths["/v1/orders/{order}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert both["properties"] == {
        "customer": {"type": "object", "properties": {"name": {}}},
        "all": {"type": "array", "items": {}},
    }
    assert "content" not in paths["/v1/customers"]["post"]["responses"]["2XX"]


AUTHS: list[tuple[str, dict[str, Any]]] = [
    ("{type: bearer, token: '{{S}}'}", {"type": "http", "scheme": "bearer"}),
    ("{type: basic, username: a, password: '{{S}}'}", {"type": "http", "scheme": "basic"}),
    ("{type: digest, username: a, password: '{{S}}'}", {"type": "http", "scheme": "digest"}),
    ("{type: apikey, key: X-Key, value: '{{S}}'}", {"type": "apiKey", "in": "header", "name": "X-Key"}),
    ("{type: apikey, key: k, value: very-secret, placement: query}", {"type": "apiKey", "in": "query", "name": "k"}),
    (
        "{type: oauth2, authorizationServerUri: 'https://id.test'}",
        {"type": "openIdConnect", "openIdConnectUrl": "https://id.test/.well-known/openid-configuration"},
    ),
]


@pytest.mark.parametrize(("auth", "scheme"), AUTHS)
def test_the_servers_own_authentication_is_required_and_never_told(auth: str, scheme: dict[str, Any]) -> None:
    text = PUBLISHED.replace("    port: 8080\n", f"    port: 8080\n    authentication: {auth}\n")
    document = exported(text=text)
    assert list(document["components"]["securitySchemes"].values()) == [scheme]
    name = next(iter(document["components"]["securitySchemes"]))
    assert document["paths"]["/v1/customers"]["get"]["security"] == [{name: []}]
    everything = json.dumps([exported(version, text) for version in VERSIONS])
    assert "very-secret" not in everything
    assert "{{" not in everything


def test_an_upstreams_authentication_is_named_but_not_asked_of_callers() -> None:
    document = exported()
    assert document["paths"]["/v1/customers"]["get"]["security"] == [{}, {"bearerAuth": []}]
    assert "security" not in document["paths"]["/v1/customers"]["delete"]


def test_a_consumed_api_can_be_described_as_it_is() -> None:
    document = exported(server_namespace="shop")
    assert document["servers"] == [{"url": "https://shop.test"}]
    assert document["paths"]["/customers"]["get"]["security"] == [{"bearerAuth": []}]
    assert parameters(document["paths"]["/customers/{customer_id}"]["get"]) == [("customer_id", "path", True)]


def test_paths_that_differ_only_in_names_of_variables_are_one() -> None:
    text = PUBLISHED.replace("/v1/lost", "/v1/customers/{other}").replace(
        "{method: GET, name: read, call: shop.read, outputParameters: [{type: array",
        "{method: DELETE, name: read, call: shop.read, outputParameters: [{type: array",
    )
    item = exported(text=text)["paths"]["/v1/customers/{customer-id}"]
    assert set(item) == {"get", "put", "patch", "delete"}
    assert parameters(item["delete"]) == [("customer-id", "path", True)]


def test_unknown_servers_and_versions_are_refused() -> None:
    with pytest.raises(NotFound):
        export_openapi(shop(), server_namespace="nobody")
    with pytest.raises(Invalid):
        export_openapi(shop(), version="4.0")  # type: ignore[arg-type]


def facts(document: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Paths, methods, parameters and bodies of a document of version 3 without references."""
    found: dict[tuple[str, str], Any] = {}
    for path, item in document["paths"].items():
        for method in METHODS & item.keys():
            operation = item[method]
            listed = {
                (p["name"], p["in"], bool(p.get("required")), p["schema"].get("type"))
                for p in operation.get("parameters", [])
            }
            body = operation.get("requestBody")
            found[path, method] = (
                listed,
                body
                and (
                    bool(body.get("required")),
                    next(iter(body["content"])),
                    next(iter(body["content"].values()))["schema"],
                ),
            )
    return found


SOURCE: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Round trip", "version": "1"},
    "servers": [{"url": "https://trip.test/base"}],
    "components": {
        "securitySchemes": {
            "k": {"type": "apiKey", "in": "header", "name": "X-Key"},
            "b": {"type": "http", "scheme": "basic"},
        }
    },
    "security": [{"k": []}],
    "paths": {
        "/things": {
            "get": {
                "parameters": [
                    {"name": "q", "in": "query", "required": True, "schema": {"type": "string"}},
                    {"name": "n", "in": "query", "schema": {"type": "integer"}},
                    {"name": "X-Mode", "in": "header", "schema": {"type": "boolean"}},
                    {"name": "sid", "in": "cookie", "schema": {"type": "string"}},
                ],
                "responses": {},
            },
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "properties": {
                                    "name": {"type": "string"},
                                    "tags": {"type": "array", "items": {"type": "string"}},
                                },
                                "required": ["name"],
                            }
                        }
                    },
                },
                "responses": {},
            },
            "put": {
                "requestBody": {
                    "content": {"application/json": {"schema": {"type": "array", "items": {"type": "integer"}}}}
                },
                "responses": {},
            },
        },
        "/things/{id}:archive": {
            "post": {
                "security": [{"b": []}],
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}],
                "responses": {},
            }
        },
        "/form": {
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/x-www-form-urlencoded": {
                            "schema": {
                                "type": "object",
                                "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
                                "required": ["a"],
                            }
                        }
                    },
                },
                "responses": {},
            }
        },
        "/one": {
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/x-www-form-urlencoded": {
                            "schema": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
                        }
                    },
                },
                "responses": {},
            }
        },
        "/xml": {
            "put": {"requestBody": {"content": {"application/xml": {"schema": {"type": "string"}}}}, "responses": {}}
        },
    },
}


@pytest.mark.parametrize("version", ["3.0", "3.1"])
@pytest.mark.parametrize("namespace", [None, "round-trip"])
def test_an_imported_document_is_exported_with_the_same_routes_parameters_and_bodies(
    version: Version, namespace: str | None
) -> None:
    document = load("x.yaml", text=import_openapi(json.dumps(SOURCE), source="x.json").text).document
    back = export_openapi(document, version=version, server_namespace=namespace)
    validate(back)
    expected = facts(SOURCE)
    if namespace is not None:  # what is called with other credentials is another consumed API
        del expected["/things/{id}:archive", "post"]
    assert facts(back) == expected
    kinds = {(s["type"], s.get("scheme"), s.get("in")) for s in back["components"]["securitySchemes"].values()}
    assert ("apiKey", None, "header") in kinds
    assert (("http", "basic", None) in kinds) is (namespace is None)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_exported_capability_is_imported_with_the_same_routes(version: Version) -> None:
    def routes(document: Document) -> set[tuple[str, str]]:
        servers = [server for server in document.servers if isinstance(server, RestServer)]
        return {
            (r.path.replace("{{", "{").replace("}}", "}"), o.method)
            for s in servers
            for r in s.resources
            for o in r.operations
        }

    text = import_openapi(json.dumps(exported(version)), source="shop.json").text
    again = load("again.yaml", text=text)
    assert again.findings == ()
    assert routes(again.document) == routes(shop())
    assert again.document.consumes[0].base_uri == "http://localhost:8080"


def test_swagger_2_comes_back_with_its_parameters_and_bearer_tokens() -> None:
    document = load("x.yaml", text=import_openapi(json.dumps(SOURCE), source="x.json").text).document
    swagger = export_openapi(document, version="2.0", server_namespace="round-trip")
    validate(swagger)
    again = load("y.yaml", text=import_openapi(json.dumps(swagger), source="y.json").text).document
    back = facts(export_openapi(again, version="3.0"))
    expected = facts(SOURCE)
    del expected["/things/{id}:archive", "post"]
    expected["/things", "get"] = (
        {p for p in expected["/things", "get"][0] if p[1] != "cookie"},
        None,
    )  # it has no cookies
    assert back == expected
    bearer = exported("2.0")
    consumed = load(
        "z.yaml",
        text=import_openapi(
            json.dumps(bearer | {"security": [{"bearerAuth": []}]} | {"paths": {"/a": {"get": {"responses": {}}}}}),
            source="z",
        ).text,
    ).document.consumes[0]
    assert consumed.authentication is not None
    assert consumed.authentication.type == "bearer"
