"""The two contract files as shipped, in front of an upstream that records: every row of "expected", every operation."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from mcp import Client

import toolcrib.capability
from capability.recording_upstream import Recording, Served, fingerprint, recording, served
from upstream_app import Told

SHIPPED = Path(toolcrib.capability.__file__).parent / "examples"
CUSTOMERS = SHIPPED / "togai-customers.yaml"
BACKOFFICE = SHIPPED / "toolhouse-backoffice.yaml"
CUSTOMERS_KEY = "togai-key-9f2c"
BACKOFFICE_KEY = "toolhouse-key-77ab"
BODY: Any = {"name": 'Ann "&" Söhne', "limits": [1, 2.5, None], "nested": {"on": True}}
RAW_BODY = b'{ "name":"\\u00c4nn",\n "n": 1.0, "big":12345678901234567890123 }'
ERAS = ["auto", "legacy"]


class Operation(NamedTuple):
    """One operation: how it is asked for over REST and MCP, and what then arrives upstream."""

    method: str
    path: str
    upstream: str
    tool: str
    arguments: dict[str, Any]
    has_body: bool = False


C_OPERATIONS = [
    Operation("POST", "/v1/customers", "/customers", "create-customer", {}, has_body=True),
    Operation("GET", "/v1/customers", "/customers", "list-customers", {}),
    Operation("GET", "/v1/customers/c1", "/customers/c1", "get-customer", {"customer_id": "c1"}),
    Operation("PATCH", "/v1/customers/c1", "/customers/c1", "update-customer", {"customer_id": "c1"}, has_body=True),
    Operation("DELETE", "/v1/customers/c1", "/customers/c1", "delete-customer", {"customer_id": "c1"}),
    Operation(
        "POST", "/v1/customers/c1/contacts", "/customers/c1/contacts", "create-contact-customer",
        {"customer_id": "c1"}, has_body=True,
    ),
]  # fmt: skip
V, B = "/v1/backoffice", "/backoffice"
B_OPERATIONS = [
    Operation(
        "POST", f"{V}/agent-runs-from-schedule", f"{B}/agent-runs-from-schedule", "bo-create-agent-run-schedule", {},
        has_body=True,
    ),
    Operation("POST", f"{V}/api-keys", f"{B}/api-keys", "post-create-api-key", {}, has_body=True),
    Operation("POST", f"{V}/cleanup", f"{B}/cleanup", "perform-cleanup-tasks", {}),
    Operation("POST", f"{V}/events", f"{B}/events", "proxy-customerio", {}, has_body=True),
    Operation("GET", f"{V}/mcp-servers", f"{B}/mcp-servers", "get-mcp-servers", {}),
    Operation("POST", f"{V}/mcp-servers", f"{B}/mcp-servers", "sync-mcp-servers", {}),
    Operation("POST", f"{V}/onboarding-runs", f"{B}/onboarding-runs", "create-run", {}, has_body=True),
    Operation("GET", f"{V}/schedules", f"{B}/schedules", "get-active-schedules", {}),
    Operation("POST", f"{V}/users", f"{B}/users", "create-user-route", {}, has_body=True),
    Operation(
        "GET", f"{V}/users/by/email/ann%40example.org", f"{B}/users/by/email/ann%40example.org",
        "get-user-email-route", {"email": "ann@example.org"},
    ),
    Operation(
        "POST", f"{V}/users/reset-credit-allowance", f"{B}/users/reset_credit_allowance",
        "post-reset-credit-allowance", {},
    ),
    Operation("GET", f"{V}/users/u1", f"{B}/users/u1", "get-user-route", {"user_id": "u1"}),
    Operation(
        "GET", f"{V}/users/u1/credits", f"{B}/users/u1/credits", "get-user-credits-request", {"user_id": "u1"}
    ),
    Operation(
        "GET", f"{V}/users/u1/default-api-key", f"{B}/users/u1/default-api-key", "get-default-api-key-user",
        {"user_id": "u1"},
    ),
    Operation(
        "PUT", f"{V}/users/u1/monthly-credit-allowance", f"{B}/users/u1/monthly_credit_allowance",
        "update-user-credits-request", {"user_id": "u1"}, has_body=True,
    ),
    Operation("GET", f"{V}/worker-status", f"{B}/worker-status", "get-worker-status", {}),
]  # fmt: skip
OPERATIONS = [("customers", operation) for operation in C_OPERATIONS] + [("backoffice", o) for o in B_OPERATIONS]
KEYS = {"customers": CUSTOMERS_KEY, "backoffice": BACKOFFICE_KEY}
every_operation = pytest.mark.parametrize(
    ("file", "operation"), OPERATIONS, ids=lambda value: getattr(value, "tool", value)
)


@pytest.fixture(scope="module")
async def recorder() -> AsyncIterator[Recording]:
    async with recording() as upstream:
        yield upstream


@pytest.fixture
def upstream(recorder: Recording) -> Recording:
    """The upstream with nothing recorded yet."""
    recorder.asked.clear()
    recorder.answers.clear()
    return recorder


@pytest.fixture(scope="module")
async def customers(recorder: Recording) -> AsyncIterator[Served]:
    environ = {"TOGAI_API_KEY": CUSTOMERS_KEY}
    async with served(CUSTOMERS, environ=environ, base_uris={"togai-customers": recorder.url}) as running:
        yield running


@pytest.fixture(scope="module")
async def backoffice(recorder: Recording) -> AsyncIterator[Served]:
    environ = {"TOOLHOUSE_API_KEY": BACKOFFICE_KEY, "NAFTIKO_BASE_URI_TOOLHOUSE_BACKOFFICE": recorder.url}
    async with served(BACKOFFICE, environ=environ) as running:
        yield running


@pytest.fixture
def running(file: str, customers: Served, backoffice: Served) -> Served:
    """Both files, by name."""
    return {"customers": customers, "backoffice": backoffice}[file]


def is_problem(answer: httpx.Response, status: int) -> str:
    """The detail of a problem with that status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert CUSTOMERS_KEY not in answer.text
    return str(answer.json()["detail"])


def test_the_tables_here_name_every_operation_and_tool(customers: Served, backoffice: Served) -> None:
    for running, operations in ((customers, C_OPERATIONS), (backoffice, B_OPERATIONS)):
        (rest,) = running.capability.plan.rest.values()
        (mcp,) = running.capability.plan.mcp.values()
        assert sum(len(path.routes) for path in rest.paths) == len(operations)
        assert list(mcp.tools) == [operation.tool for operation in operations]


# -- every operation, over both faces


@every_operation
async def test_an_operation_over_rest(file: str, operation: Operation, running: Served, upstream: Recording) -> None:
    headers = {"Content-Type": "application/json"} if operation.has_body else {}
    answer = await running.rest.request(
        operation.method, operation.path, content=RAW_BODY if operation.has_body else None, headers=headers
    )
    asked = upstream.only()
    assert (asked.method, asked.target) == (operation.method, operation.upstream)
    assert asked.get("authorization") == f"Bearer {KEYS[file]}"
    assert asked.body == (RAW_BODY if operation.has_body else b"")
    if operation.has_body:
        assert asked.get("content-type") == "application/json"
    if operation.method == "DELETE":
        assert (answer.status_code, answer.content) == (204, b"")
        return
    assert answer.status_code == (201 if operation.method == "POST" else 200)
    assert answer.content == fingerprint(operation.method, operation.upstream)
    assert answer.headers["content-type"] == "application/json"


@every_operation
async def test_an_operation_over_raw_mcp(file: str, operation: Operation, running: Served, upstream: Recording) -> None:
    arguments = {**operation.arguments, **({"body": BODY} if operation.has_body else {})}
    result = await running.call(operation.tool, arguments)
    assert not result.get("isError"), result
    asked = upstream.only()
    assert (asked.method, asked.target) == (operation.method, operation.upstream)
    assert asked.get("authorization") == f"Bearer {KEYS[file]}"
    assert asked.body == b"" if not operation.has_body else httpx.Response(200, content=asked.body).json() == BODY
    if operation.method == "DELETE":
        assert result["content"] == []
        return
    assert [item["text"] for item in result["content"]] == [fingerprint(operation.method, operation.upstream).decode()]
    assert result["structuredContent"]["via"] == f"{operation.method} {operation.upstream}"


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize("file", ["customers", "backoffice"])
async def test_every_operation_with_the_official_client(
    file: str, mode: Any, running: Served, upstream: Recording
) -> None:
    operations = C_OPERATIONS if file == "customers" else B_OPERATIONS
    async with Client(running.urls["mcp"], mode=mode) as client:
        listed = (await client.list_tools()).tools
        assert [tool.name for tool in listed] == [operation.tool for operation in operations]
        for operation in operations:
            upstream.asked.clear()
            arguments = {**operation.arguments, **({"body": BODY} if operation.has_body else {})}
            result = await client.call_tool(operation.tool, arguments)
            assert not result.is_error, (operation.tool, result)
            asked = upstream.only()
            assert (asked.method, asked.target) == (operation.method, operation.upstream)
            assert asked.get("authorization") == f"Bearer {KEYS[file]}"


# -- without what the environment should give


async def test_without_the_api_key_it_starts_with_a_warning_and_sends_nothing(upstream: Recording) -> None:
    async with served(CUSTOMERS, environ={}, base_uris={"togai-customers": upstream.url}) as running:
        (warning,) = [f for f in running.capability.findings if f.rule == "bind-unresolved"]
        assert warning.severity == "warning"
        assert "TOGAI_API_KEY" in warning.message
        for method, path in (("GET", "/v1/customers"), ("DELETE", "/v1/customers/c1"), ("POST", "/v1/customers")):
            detail = is_problem(await running.rest.request(method, path, json=BODY if method == "POST" else None), 503)
            assert "TOGAI_API_KEY" in detail
        result = await running.call("list-customers")
        assert result["isError"] is True
        assert "TOGAI_API_KEY" in result["content"][0]["text"]
        assert len((await running.rpc("tools/list"))["result"]["tools"]) == 6
        async with Client(running.urls["mcp"]) as client:
            assert (await client.call_tool("get-customer", {"customer_id": "c1"})).is_error
    assert upstream.asked == []


@pytest.mark.parametrize("value", ["", "{{env.TOGAI_API_KEY}}"])
async def test_an_empty_api_key_is_none_and_a_value_is_never_read_as_a_template(
    value: str, upstream: Recording
) -> None:
    environ = {"TOGAI_API_KEY": value}
    async with served(CUSTOMERS, environ=environ, base_uris={"togai-customers": upstream.url}) as running:
        answer = await running.rest.get("/v1/customers")
        if not value:
            assert "TOGAI_API_KEY" in is_problem(answer, 503)
            assert upstream.asked == []
        else:  # whatever the owner of the environment wrote is the key
            assert upstream.only().get("authorization") == f"Bearer {value}"


async def test_without_a_base_uri_a_call_is_a_502_that_names_the_option(upstream: Recording) -> None:
    async with served(BACKOFFICE, environ={"TOOLHOUSE_API_KEY": BACKOFFICE_KEY}) as running:
        detail = is_problem(await running.rest.get("/v1/backoffice/users/u1"), 502)
        assert "toolhouse-backoffice" in detail
        assert "--base-uri toolhouse-backoffice=" in detail
        result = await running.call("get-user-route", {"user_id": "u1"})
        assert result["isError"] is True
        assert "--base-uri" in result["content"][0]["text"]
        assert len((await running.rpc("tools/list"))["result"]["tools"]) == 16
    assert upstream.asked == []


@pytest.mark.parametrize(
    "given",
    [
        {"base_uris": {"toolhouse-backoffice": "UPSTREAM/deep/"}},
        {"environ": {"NAFTIKO_BASE_URI_TOOLHOUSE_BACKOFFICE": "UPSTREAM/deep"}},
        {"environ": {"NAFTIKO_BASE_URI": "UPSTREAM/deep"}},
    ],
    ids=["option", "variable", "common variable"],
)
async def test_an_empty_base_uri_can_be_given_in_three_ways(given: dict[str, Any], upstream: Recording) -> None:
    options = {
        name: {key: value.replace("UPSTREAM", upstream.url) for key, value in values.items()}
        for name, values in given.items()
    }
    environ = {"TOOLHOUSE_API_KEY": BACKOFFICE_KEY, **options.pop("environ", {})}
    async with served(BACKOFFICE, environ=environ, **options) as running:
        assert (await running.rest.get("/v1/backoffice/users/u1")).status_code == 200
    assert upstream.only().target == "/deep/backoffice/users/u1"


# -- requests


async def test_a_query_goes_on_where_the_file_declares_none(customers: Served, upstream: Recording) -> None:
    for query in ("limit=5", "nextToken=eyJ%2B%3D%3D&limit=5", "tag=a&tag=b", "empty="):
        assert (await customers.rest.get(f"/v1/customers?{query}")).status_code == 200
        assert upstream.only().target == f"/customers?{query}"


async def test_a_query_does_not_go_on_with_writes(customers: Served, upstream: Recording) -> None:
    assert (await customers.rest.post("/v1/customers?limit=5", json=BODY)).status_code == 201
    assert upstream.only().target == "/customers"


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        ("a%2Fb", "a%2Fb"),
        ("a%20b", "a%20b"),
        ("%C3%A9%3F%23", "%C3%A9%3F%23"),
        ("100%25", "100%25"),
        ("a+b", "a%2Bb"),
        ("%7B%7Benv.TOGAI_API_KEY%7D%7D", "%7B%7Benv.TOGAI_API_KEY%7D%7D"),
    ],
)
async def test_a_path_value_is_encoded_exactly_once(
    sent: str, arrives: str, customers: Served, upstream: Recording
) -> None:
    await customers.rest.get(f"/v1/customers/{sent}")
    assert upstream.only().target == f"/customers/{arrives}"


async def test_a_path_value_cannot_climb(customers: Served, upstream: Recording) -> None:
    result = await customers.call("get-customer", {"customer_id": "../admin"})
    assert result["isError"] is True
    assert upstream.asked == []


async def test_a_caller_cannot_replace_the_credentials(customers: Served, upstream: Recording) -> None:
    await customers.rest.get("/v1/customers", headers={"Authorization": "Bearer mine", "Cookie": "session=1"})
    asked = upstream.only()
    assert asked.get("authorization") == f"Bearer {CUSTOMERS_KEY}"
    assert asked.count("authorization") == 1
    assert asked.get("cookie") is None


async def test_a_body_that_is_no_json_is_refused_before_anything_is_sent(
    customers: Served, upstream: Recording
) -> None:
    headers = {"Content-Type": "application/json"}
    is_problem(await customers.rest.post("/v1/customers", content=b'{"name": ', headers=headers), 400)
    assert upstream.asked == []


async def test_a_required_body_that_is_absent_is_a_400_and_an_optional_one_is_not(
    customers: Served, backoffice: Served, upstream: Recording
) -> None:
    assert "body" in is_problem(await backoffice.rest.post("/v1/backoffice/api-keys"), 400)
    assert upstream.asked == []
    assert (await customers.rest.post("/v1/customers")).status_code == 201
    assert upstream.only().body == b""


async def test_the_caller_s_own_kind_of_json_keeps_its_name(customers: Served, upstream: Recording) -> None:
    media = "application/merge-patch+json; charset=utf-8"
    await customers.rest.patch("/v1/customers/c1", content=RAW_BODY, headers={"Content-Type": media})
    asked = upstream.only()
    assert (asked.body, asked.get("content-type")) == (RAW_BODY, media)


async def test_a_body_without_a_length_is_relayed_and_one_without_end_is_a_413(
    customers: Served, upstream: Recording
) -> None:
    async def pieces(count: int) -> AsyncIterator[bytes]:
        yield b'{"name": "'
        for _ in range(count):
            yield b"x" * 65536
        yield b'"}'

    assert (await customers.rest.post("/v1/customers", content=pieces(3))).status_code == 201
    assert len(upstream.only().body) == 3 * 65536 + 12
    is_problem(await customers.rest.post("/v1/customers", content=pieces(200)), 413)
    assert upstream.asked == []


async def test_calls_at_the_same_time_do_not_mix(customers: Served, backoffice: Served, upstream: Recording) -> None:
    async def one(number: int) -> None:
        answer = await customers.rest.get(f"/v1/customers/c{number}")
        assert answer.content == fingerprint("GET", f"/customers/c{number}")
        result = await backoffice.call("get-user-credits-request", {"user_id": f"u{number}"})
        assert result["structuredContent"]["via"] == f"GET /backoffice/users/u{number}/credits"

    await asyncio.gather(*(one(number) for number in range(40)))
    keys = {(asked.path.split("/")[1], asked.get("authorization")) for asked in upstream.asked}
    assert keys == {("customers", f"Bearer {CUSTOMERS_KEY}"), ("backoffice", f"Bearer {BACKOFFICE_KEY}")}


async def test_an_undescribed_write_relays_any_body_as_it_is(backoffice: Served, upstream: Recording) -> None:
    body, media = b"\x00\xff not json", "application/x-thing"
    await backoffice.rest.post("/v1/backoffice/events", content=body, headers={"Content-Type": media})
    asked = upstream.only()
    assert (asked.body, asked.get("content-type")) == (body, media)


# -- routes


async def test_an_unknown_method_is_a_405_that_names_the_known_ones(customers: Served, upstream: Recording) -> None:
    answer = await customers.rest.put("/v1/customers", json=BODY)
    is_problem(answer, 405)
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "POST", "OPTIONS"}
    assert upstream.asked == []


async def test_a_static_path_comes_before_a_variable_one(backoffice: Served, upstream: Recording) -> None:
    answer = await backoffice.rest.get("/v1/backoffice/users/reset-credit-allowance")
    is_problem(answer, 405)
    assert set(answer.headers["allow"].split(", ")) == {"POST", "OPTIONS"}
    assert upstream.asked == []
    await backoffice.rest.get("/v1/backoffice/users/reset-credit-allowances")
    assert upstream.only().target == "/backoffice/users/reset-credit-allowances"


async def test_an_unknown_path_is_a_404(customers: Served, upstream: Recording) -> None:
    is_problem(await customers.rest.get("/v1/customer"), 404)
    is_problem(await customers.rest.get("/v1/customers/c1/contacts/x"), 404)
    assert upstream.asked == []


async def test_head_is_a_get_without_its_body_and_options_says_what_there_is(
    customers: Served, upstream: Recording
) -> None:
    answer = await customers.rest.head("/v1/customers/c1")
    assert (answer.status_code, answer.content) == (200, b"")
    assert upstream.only().method == "GET"
    answer = await customers.rest.options("/v1/customers/c1")
    assert answer.status_code == 204
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "PATCH", "DELETE", "OPTIONS"}


# -- answers


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 429, 500, 503])
async def test_an_error_of_the_upstream_keeps_status_and_body(
    status: int, customers: Served, upstream: Recording
) -> None:
    told = Told(b'{"message":  "no"}', status, {"Content-Type": "application/json", "Retry-After": "7"})
    upstream.answers["GET", "/customers/c1"] = told
    answer = await customers.rest.get("/v1/customers/c1")
    assert (answer.status_code, answer.content, answer.headers["retry-after"]) == (status, told.body, "7")
    result = await customers.call("get-customer", {"customer_id": "c1"})
    assert result["isError"] is True
    assert str(status) in str(result["content"])
    assert '{"message":  "no"}' in str(result["content"])


async def test_an_error_that_is_no_json_is_relayed(customers: Served, upstream: Recording) -> None:
    upstream.answers["GET", "/customers"] = Told(b"<h1>Bad gateway</h1>", 502, {"Content-Type": "text/html"})
    answer = await customers.rest.get("/v1/customers")
    assert (answer.status_code, answer.text, answer.headers["content-type"]) == (
        502, "<h1>Bad gateway</h1>", "text/html",
    )  # fmt: skip


async def test_a_success_that_is_no_json_is_a_502(customers: Served, upstream: Recording) -> None:
    upstream.answers["GET", "/customers"] = Told(b"<html>sign in</html>", 200, {"Content-Type": "text/html"})
    is_problem(await customers.rest.get("/v1/customers"), 502)


@pytest.mark.parametrize("body", [b"[]", b"null", b'[ {"id":"c1"} ]', b'"text"', b"0"])
async def test_any_json_goes_through_where_an_object_was_declared(
    body: bytes, customers: Served, upstream: Recording
) -> None:
    upstream.answers["GET", "/customers"] = Told(body, 200, {"Content-Type": "application/json"})
    answer = await customers.rest.get("/v1/customers")
    assert (answer.status_code, answer.content) == (200, body)
    result = await customers.call("list-customers")
    assert result["content"][0]["text"] == body.decode()


async def test_an_upstream_that_is_down_is_a_502_without_a_secret(upstream: Recording) -> None:
    environ = {"TOGAI_API_KEY": CUSTOMERS_KEY}
    async with served(CUSTOMERS, environ=environ, base_uris={"togai-customers": "http://127.0.0.1:1"}) as running:
        is_problem(await running.rest.get("/v1/customers"), 502)
        result = await running.call("list-customers")
        assert result["isError"] is True
        assert CUSTOMERS_KEY not in str(result)


# -- tools


async def test_tools_have_inferred_schemas_and_hints(customers: Served) -> None:
    tools = {tool["name"]: tool for tool in (await customers.rpc("tools/list"))["result"]["tools"]}
    customer_id = {"type": "string"}
    assert {name: set(tool["inputSchema"].get("properties", {})) for name, tool in tools.items()} == {
        "create-customer": {"body"},
        "list-customers": set(),
        "get-customer": {"customer_id"},
        "update-customer": {"customer_id", "body"},
        "delete-customer": {"customer_id"},
        "create-contact-customer": {"customer_id", "body"},
    }
    schema = tools["update-customer"]["inputSchema"]
    assert schema["type"] == "object"
    assert schema["properties"]["customer_id"].items() >= customer_id.items()
    assert schema["properties"]["body"].items() >= {"type": "object", "description": "Request body (JSON)."}.items()
    assert schema["required"] == ["customer_id"]
    assert "required" not in tools["create-customer"]["inputSchema"]
    assert tools["delete-customer"]["annotations"] == {
        "readOnlyHint": False, "destructiveHint": True, "idempotentHint": True,
    }  # fmt: skip
    assert tools["get-customer"]["annotations"]["readOnlyHint"] is True


async def test_tools_of_the_backoffice_require_what_the_upstream_does(backoffice: Served) -> None:
    tools = {tool["name"]: tool["inputSchema"] for tool in (await backoffice.rpc("tools/list"))["result"]["tools"]}
    for operation in B_OPERATIONS:
        schema = tools[operation.tool]
        wanted = {*operation.arguments, *(["body"] if operation.has_body else [])}
        assert wanted <= set(schema.get("properties", {}))
        needed = wanted - ({"body"} if operation.tool == "proxy-customerio" else set())
        assert set(schema.get("required", [])) == needed, operation.tool


async def test_arguments_that_do_not_fit_are_refused_by_name_and_nothing_is_sent(
    customers: Served, backoffice: Served, upstream: Recording
) -> None:
    for running, tool, arguments, named in (
        (customers, "get-customer", {}, "customer_id"),
        (customers, "get-customer", {"customer_id": ""}, "customer_id"),
        (customers, "update-customer", {"customer_id": "c1", "body": "text"}, "body"),
        (backoffice, "update-user-credits-request", {"body": {"amount": 1}}, "user_id"),
        (backoffice, "update-user-credits-request", {"user_id": "u1"}, "body"),
    ):
        result = await running.call(tool, arguments)
        assert result["isError"] is True
        assert named in result["content"][0]["text"]
    assert upstream.asked == []


async def test_an_unknown_tool_is_a_protocol_error(customers: Served) -> None:
    answer = await customers.rpc("tools/call", {"name": "drop-customers", "arguments": {}})
    assert answer["error"]["code"] == -32602


@pytest.mark.parametrize("mode", ERAS)
async def test_a_real_record_reaches_the_official_client(mode: Any, customers: Served, upstream: Recording) -> None:
    record = b'{"id":"c1","name":"Acme","contacts":[{"email":"a@acme.test"}]}'
    upstream.answers["GET", "/customers/c1"] = Told(record, 200, {"Content-Type": "application/json"})
    async with Client(customers.urls["mcp"], mode=mode) as client:
        result = await client.call_tool("get-customer", {"customer_id": "c1"})
        assert result.structured_content == {"id": "c1", "name": "Acme", "contacts": [{"email": "a@acme.test"}]}
        deleted = await client.call_tool("delete-customer", {"customer_id": "c1"})
        assert (deleted.is_error, deleted.content) == (False, [])


@pytest.mark.parametrize("file", ["customers", "backoffice"])
async def test_the_files_are_called_from_python_too(file: str, running: Served, upstream: Recording) -> None:
    name, arguments = {
        "customers": ("togai-customers.getcustomer", {"customer_id": "x y"}),
        "backoffice": ("toolhouse-backoffice-mcp.get-user-route", {"user_id": "x y"}),
    }[file]
    reply = await running.capability.call(name, arguments)
    assert reply.status == 200
    assert upstream.only().target.endswith("/x%20y")
