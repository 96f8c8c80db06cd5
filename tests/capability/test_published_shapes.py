"""Shapes that published files have and the specification does not tell of: each runs, or says why it cannot."""

import base64
import contextlib
import textwrap
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from capability.recording_upstream import Recording, recording
from toolcrib.capability.capability import Capability
from toolcrib.capability.load import load
from toolcrib.capability.openapi import export_openapi
from toolcrib.errors import Unavailable
from upstream_app import Asked, Told

HEAD = "naftiko: 1.0.0-alpha2\ninfo: {label: Shop, description: A shop}\n"
BINDS = "binds:\n- namespace: env\n  keys: {SHOP_KEY: SHOP_KEY}\n"


@dataclass
class Shop:
    """A capability whose only API is `shop`, and what arrived there."""

    capability: Capability
    upstream: Recording
    rest: httpx.AsyncClient

    async def tool(self, name: str, /, **arguments: Any) -> Asked:
        """What a tool sends."""
        await self.capability.plan.tools[name].run(arguments)
        return self.upstream.only()

    async def ask(self, method: str, target: str, **request: Any) -> Asked:
        """What a request makes it send."""
        answer = await self.rest.request(method, target, **request)
        assert answer.status_code < 300, answer.text
        return self.upstream.only()

    def schema(self, name: str) -> dict[str, Any]:
        """The properties of a tool's arguments."""
        found: dict[str, Any] = self.capability.plan.tools[name].input_schema.get("properties", {})
        return found


@contextlib.asynccontextmanager
async def shop(tmp_path: Path, api: str, exposes: str) -> AsyncIterator[Shop]:
    """A file with these fields of the consumed API `shop`, and these servers; one called `front` is REST."""
    text = (
        f"{HEAD}{BINDS}capability:\n  consumes:\n  - type: http\n    namespace: shop\n    baseUri: https://shop.test\n"
    )
    text += (
        textwrap.indent(textwrap.dedent(api), "    ") + "  exposes:\n" + textwrap.indent(textwrap.dedent(exposes), "  ")
    )
    file = tmp_path / "shop.yaml"
    file.write_text(text)
    async with recording() as upstream:
        capability = Capability.load(file, environ={"SHOP_KEY": "k-1"}, base_uris={"shop": upstream.url})
        app = capability.rest_app("front") if "front" in capability.plan.rest else None
        transport = httpx.ASGITransport(app=app) if app is not None else None
        async with httpx.AsyncClient(transport=transport, base_url="http://front") as rest:
            yield Shop(capability, upstream, rest)
        await capability.close()


def tools(*entries: str) -> str:
    return "- type: mcp\n  namespace: tools-server\n  port: 1\n  tools:\n" + "".join(f"  - {e}\n" for e in entries)


def routes(*entries: str) -> str:
    return "- type: rest\n  namespace: front\n  port: 1\n  resources:\n" + "".join(f"  - {e}\n" for e in entries)


def operations(*entries: str, path: str = "/things") -> str:
    return f"resources:\n- name: things\n  path: {path}\n  operations:\n" + "".join(f"  - {e}\n" for e in entries)


LIST = operations("{name: list, method: GET}")


@pytest.mark.parametrize(
    ("written", "header"),
    [
        ("{type: apikey, in: header, name: X-Key, value: '{{SHOP_KEY}}'}", ("x-key", "k-1")),
        ("{type: apiKey, header: X-Key, token: '{{SHOP_KEY}}'}", ("x-key", "k-1")),
        ("{type: apikey, header: X-Key, key: '{{SHOP_KEY}}'}", ("x-key", "k-1")),
        ("{type: header, header: X-Key, value: '{{env.SHOP_KEY}}'}", ("x-key", "k-1")),
        ("{type: apikey, headers: {X-Key: '{{SHOP_KEY}}', X-App: app}}", ("x-app", "app")),
        ("{type: apikey, in: cookie, name: sid, value: '{{SHOP_KEY}}'}", ("cookie", "sid=k-1")),
    ],
)
async def test_an_api_key_is_understood_in_all_its_spellings(
    written: str, header: tuple[str, str], tmp_path: Path
) -> None:
    async with shop(tmp_path, f"authentication: {written}\n{LIST}", tools("{name: list, call: shop.list}")) as served:
        asked = await served.tool("list")
        assert asked.get(header[0]) == header[1]


@pytest.mark.parametrize(
    "written",
    [
        "{type: apikey, in: query, name: k, value: '{{SHOP_KEY}}'}",
        "{type: query, parameters: [{name: k, value: '{{SHOP_KEY}}'}, {name: id, value: me}]}",
    ],
)
async def test_keys_go_into_the_query_where_the_file_says_so(written: str, tmp_path: Path) -> None:
    api = f"auth: {written}\n" + operations("{name: list, method: GET, inputParameters: [{name: k, in: query}]}")
    async with shop(tmp_path, api, tools("{name: list, call: shop.list}")) as served:
        asked = await served.tool("list", k="forged")
        assert asked.target.startswith("/things?k=k-1")
        assert "forged" not in asked.target
        assert "k" not in served.schema("list")


async def test_what_a_map_of_headers_sets_no_caller_can(tmp_path: Path) -> None:
    api = "authentication: {type: apikey, headers: {X-Key: '{{SHOP_KEY}}'}}\n"
    api += operations("{name: list, method: GET, inputParameters: [{name: X-Key, in: header}]}")
    async with shop(tmp_path, api, routes("{path: /l, operations: [{method: GET, call: shop.list}]}")) as served:
        asked = await served.ask("GET", "/l", headers={"X-Key": "forged"})
        assert (asked.get("x-key"), asked.count("x-key")) == ("k-1", 1)


async def test_credentials_that_are_not_understood_refuse_calls_with_the_reason(tmp_path: Path) -> None:
    api = f"authentication: {{type: hmac, apiId: i, apiKey: '{{{{SHOP_KEY}}}}'}}\n{LIST}"
    async with shop(tmp_path, api, tools("{name: list, call: shop.list}")) as served:
        with pytest.raises(Unavailable, match="hmac"):
            await served.capability.plan.tools["list"].run({})
        (finding,) = [f for f in served.capability.findings if f.severity == "error"]
        assert (finding.rule, finding.at.line) == ("authentication-invalid", 11)


async def test_paths_of_operations_follow_those_of_their_resources(tmp_path: Path) -> None:
    api = operations("{id: get, method: GET, path: '/{id}'}", "{id: notes, method: GET, path: '/{id}/notes'}")
    async with shop(tmp_path, api, tools("{name: g, call: shop.get}", "{name: n, call: shop.notes}")) as served:
        assert (await served.tool("g", id="a b")).target == "/things/a%20b"
        assert (await served.tool("n", id="7")).target == "/things/7/notes"


async def test_paths_of_operations_are_whole_where_one_repeats_that_of_its_resource(tmp_path: Path) -> None:
    api = operations(
        "{name: list, method: GET, path: /things}",
        "{name: get, method: GET, path: '/things/{id}'}",
        "{name: refund, method: POST, path: /refunds}",
        "{name: plain, method: DELETE}",
    )
    calls = [f"{{name: {n}, call: shop.{n}}}" for n in ("list", "get", "refund", "plain")]
    async with shop(tmp_path, api, tools(*calls)) as served:
        targets = [(await served.tool(n, id="7")).target for n in ("list", "get", "refund", "plain")]
        assert targets == ["/things", "/things/7", "/refunds", "/things"]
        told = [f.effect for f in served.capability.findings if f.rule == "operation-path"]
        assert told == ["its requests go to '/things/{id}'", "its requests go to '/refunds'"]


@pytest.mark.parametrize("written", ["form", "urlencoded", "application/x-www-form-urlencoded", "formUrlEncoded"])
async def test_a_form_is_a_form_under_any_name(written: str, tmp_path: Path) -> None:
    api = operations(f"{{name: send, method: POST, body: {{type: {written}, data: {{To: '{{{{tools.to}}}}'}}}}}}")
    async with shop(tmp_path, api, tools("{name: send, call: shop.send}")) as served:
        asked = await served.tool("send", to="a&b")
        assert (asked.body, asked.get("content-type")) == (b"To=a%26b", "application/x-www-form-urlencoded")


async def test_body_inputs_stand_beside_what_a_body_describes(tmp_path: Path) -> None:
    api = operations(
        "{name: add, method: POST, body: {type: form, data: {first: '{{tools.first}}'}},"
        " inputParameters: [{name: secret, in: body, required: true}, {name: first, in: body}]}"
    )
    async with shop(tmp_path, api, tools("{name: add, call: shop.add}")) as served:
        assert (await served.tool("add", first="A", secret="s")).body == b"first=A&secret=s"
        assert set(served.schema("add")) == {"first", "secret"}


async def test_empty_data_is_a_body_that_the_caller_gives(tmp_path: Path) -> None:
    api = operations("{name: make, method: POST, body: {type: json, data: {}}}")
    servers = routes("{path: /m, operations: [{method: POST, call: shop.make}]}") + tools("{name: m, call: shop.make}")
    async with shop(tmp_path, api, servers) as served:
        assert (await served.ask("POST", "/m", json={"a": 1})).body == b'{"a":1}'
        assert (await served.ask("POST", "/m")).body == b"{}"
        assert (await served.tool("m", body={"b": 2})).body == b'{"b":2}'


async def test_a_member_called_body_is_not_the_whole_body(tmp_path: Path) -> None:
    api = operations(
        "{name: text, method: POST, body: {type: json, data: {to: '{{tools.to}}', body: '{{tools.body}}'}}}"
    )
    servers = routes(
        "{path: /open, operations: [{method: POST, call: shop.text}]}",
        "{path: /with, operations: [{method: POST, call: shop.text, with: {to: rest.to, body: rest.body}}]}",
    )
    async with shop(tmp_path, api, servers) as served:
        for path in ("/open", "/with"):
            asked = await served.ask("POST", path, json={"to": "me", "body": "hi", "more": 1})
            assert orjson.loads(asked.body) == {"to": "me", "body": "hi"}


async def test_a_variable_alone_is_the_whole_body_when_no_member_has_its_name(tmp_path: Path) -> None:
    api = operations("{name: put, method: PUT, body: {type: json, data: '{{tools.record}}'}}")
    servers = routes("{path: /p, operations: [{method: PUT, call: shop.put}]}") + tools("{name: p, call: shop.put}")
    async with shop(tmp_path, api, servers) as served:
        assert (await served.ask("PUT", "/p", json={"a": 1})).body == b'{"a":1}'
        assert (await served.ask("PUT", "/p", json={"record": {"a": 1}})).body == b'{"a":1}'
        assert (await served.tool("p", record=[1])).body == b"[1]"
        assert (await served.tool("p")).body == b""


async def test_what_with_gives_beyond_the_declared_is_sent_all_the_same(tmp_path: Path) -> None:
    api = operations("{name: list, method: GET}", "{name: make, method: POST}", "{name: send, method: POST}")
    servers = tools(
        "{name: l, call: shop.list, with: {limit: tools.max, kind: new}}",
        "{name: m, call: shop.make, with: {name: tools.name}}",
        "{name: s, call: shop.send, with: {to: tools.to, body: tools.body}}",
    ) + routes("{path: /l, operations: [{method: GET, call: shop.list, with: {limit: rest.max}}]}")
    async with shop(tmp_path, api, servers) as served:
        assert set(served.schema("l")) == {"max"}
        assert (await served.tool("l", max=5)).target == "/things?limit=5&kind=new"
        assert (await served.tool("l")).target == "/things?kind=new"
        assert (await served.tool("m", name="n")).body == b'{"name":"n"}'
        assert (await served.tool("m")).body == b""
        assert orjson.loads((await served.tool("s", to="me", body="hi")).body) == {"to": "me", "body": "hi"}
        assert (await served.ask("GET", "/l?max=5&page=2")).target == "/things?limit=5&page=2"


async def test_the_fragment_of_a_path_gives_the_header_that_it_names(tmp_path: Path) -> None:
    api = operations(
        "{name: put, method: POST, inputParameters: [{name: X-Amz-Target, in: header, required: true}]}",
        path="'/#X-Amz-Target=Shop.Put'",
    )
    async with shop(tmp_path, api, tools("{name: put, call: shop.put}")) as served:
        asked = await served.tool("put")
        assert (asked.target, asked.get("x-amz-target")) == ("/", "Shop.Put")
        assert (await served.tool("put", **{"X-Amz-Target": "Shop.Get"})).get("x-amz-target") == "Shop.Get"


async def test_a_path_variable_without_a_place_is_not_sent_twice(tmp_path: Path) -> None:
    api = operations("{name: get, method: GET, inputParameters: [{name: id, type: string}]}", path="'/things/{id}'")
    async with shop(tmp_path, api, tools("{name: get, call: shop.get}")) as served:
        assert (await served.tool("get", id="7")).target == "/things/7"


async def test_plain_text_is_relayed_as_it_is(tmp_path: Path) -> None:
    api = operations("{name: say, method: GET, outputRawFormat: text}")
    servers = routes(
        "{path: /s, operations: [{method: GET, call: shop.say, outputParameters: [{type: string, mapping: $.}]}]}"
    )
    async with shop(tmp_path, api, servers) as served:
        served.upstream.answers["GET", "/things"] = Told(b"forty two", headers={"Content-Type": "text/plain"})
        answer = await served.rest.get("/s")
        assert (answer.text, answer.headers["content-type"]) == ("forty two", "text/plain")


async def test_a_call_may_spell_the_operation_in_another_case(tmp_path: Path) -> None:
    api = operations("{name: listThings, method: GET}")
    async with shop(tmp_path, api, tools("{name: list, call: shop.list-things}")) as served:
        assert (await served.tool("list")).target == "/things"
        assert [f.severity for f in served.capability.findings if f.rule == "call-unresolved"] == ["warning"]


async def test_basic_credentials_may_name_variables_that_no_bind_declares(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    block = "authentication: {type: basic, username: '{{env.SHOP_USER}}', password: '{{env.SHOP_PASS}}'}\n"
    text = (
        f"{HEAD}{BINDS}capability:\n  consumes:\n  - type: http\n    namespace: shop\n    baseUri: https://shop.test\n"
    )
    text += (
        textwrap.indent(block + LIST, "    ")
        + "  exposes:\n"
        + textwrap.indent(tools("{name: l, call: shop.list}"), "  ")
    )
    file.write_text(text)
    async with recording() as upstream:
        environ = {"SHOP_KEY": "k", "SHOP_USER": "u", "SHOP_PASS": "p"}
        capability = Capability.load(file, environ=environ, base_uris={"shop": upstream.url})
        await capability.plan.tools["l"].run({})
        await capability.close()
        assert upstream.only().get("authorization") == "Basic " + base64.b64encode(b"u:p").decode()


async def test_variables_in_the_query_of_a_path_are_variables(tmp_path: Path) -> None:
    api = operations(
        "{name: find, method: GET, inputParameters: [{name: q, in: query, required: true}, {name: type, in: query}]}",
        path="'/search?type=new&q={q}&action=Find'",
    )
    async with shop(tmp_path, api, tools("{name: find, call: shop.find}")) as served:
        assert (await served.tool("find", q="a b")).target == "/search?action=Find&q=a+b&type=new"
        assert (await served.tool("find", q="a", type="old")).target == "/search?action=Find&q=a&type=old"
        assert served.capability.plan.tools["find"].input_schema["required"] == ["q"]


async def test_a_header_of_the_caller_goes_where_the_file_says_when_nothing_else_is_configured(tmp_path: Path) -> None:
    api = operations("{name: me, method: GET, inputParameters: [{name: Authorization, in: header, required: true}]}")
    servers = routes(
        "{path: /me, operations: [{method: GET, call: shop.me, with: {Authorization: rest.Authorization}}]}"
    )
    async with shop(tmp_path, api, servers) as served:
        assert (await served.ask("GET", "/me", headers={"Authorization": "Bearer mine"})).get(
            "authorization"
        ) == "Bearer mine"
    async with shop(tmp_path, f"authentication: {{type: bearer, token: '{{{{SHOP_KEY}}}}'}}\n{api}", servers) as served:
        assert (await served.ask("GET", "/me", headers={"Authorization": "Bearer mine"})).get(
            "authorization"
        ) == "Bearer k-1"


async def test_credentials_of_a_caller_never_land_in_the_query(tmp_path: Path) -> None:
    servers = routes(
        "{path: /l, operations: [{method: GET, call: shop.list, with: {Authorization: rest.Authorization, X-Key: rest.key}}]}"
    )
    api = f"authentication: {{type: apikey, key: X-Key, value: '{{{{SHOP_KEY}}}}'}}\n{LIST}"
    async with shop(tmp_path, api, servers) as served:
        asked = await served.ask("GET", "/l", headers={"Authorization": "Bearer mine", "key": "forged"})
        assert asked.target == "/things"
        assert (asked.get("authorization"), asked.get("x-key")) == (None, "k-1")


def test_keys_in_a_map_of_headers_are_exported_by_name(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    text = (
        f"{HEAD}{BINDS}capability:\n  consumes:\n  - type: http\n    namespace: shop\n    baseUri: https://shop.test\n"
    )
    api = f"authentication: {{type: apikey, headers: {{X-Key: '{{{{SHOP_KEY}}}}', X-App: app}}}}\n{LIST}"
    file.write_text(text + textwrap.indent(api, "    "))
    assert b"X-Key" in orjson.dumps(export_openapi(load(file).document, server_namespace="shop"))
