"""Messages: what counts as one, and that payloads stay the bytes they were."""

import json

import pytest

from toolcrib.gateway.mcp_client.contract import McpUpstreamError, again, plain_text
from toolcrib.gateway.mcp_client.jsonrpc import NotJsonRpc, answers, read_message, read_messages, reply_bytes
from toolcrib.gateway.mcp_client.param_headers import header_value, param_headers, plan_headers
from toolcrib.gateway.mcp_client.session import rpc_failure


def test_payloads_stay_the_bytes_that_came() -> None:
    message = read_message(b'{"jsonrpc":"2.0","id":1,"result": { "big" : 12345678901234567890123.50, "a":1,"a":2 } }')
    assert bytes(message.result) == b'{ "big" : 12345678901234567890123.50, "a":1,"a":2 }'  # type: ignore[arg-type]


def test_a_response_belongs_to_its_request_even_when_the_id_became_text() -> None:
    assert answers(read_message(b'{"id":7,"result":{}}'), 7)
    assert answers(read_message(b'{"id":"7","result":{}}'), 7)
    assert not answers(read_message(b'{"id":8,"result":{}}'), 7)
    assert not answers(read_message(b'{"id":7,"method":"ping"}'), 7)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"[",
        b'{"id":true}',
        b'{"id":1,"method":"\xff"}',
        b'{"id":1,"result":' + b"[" * 100_000,
        b'{"id":1}{',
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(NotJsonRpc):
        read_messages(data)


def test_a_batch_is_several_messages() -> None:
    assert [m.id for m in read_messages(b' [{"id":1,"result":{}},{"id":2,"result":{}}]')] == [1, 2]


def test_half_a_surrogate_pair_is_replaced_and_whole_ones_are_not() -> None:
    data = rb'{"id":1,"result":{"a":"cut \ud83d","b":"whole \ud83d\ude00","c":"no escape \\ud83d"}}'
    result = json.loads(bytes(read_message(data).result))  # type: ignore[arg-type]
    assert result == {"a": "cut \ufffd", "b": "whole 😀", "c": r"no escape \ud83d"}


def test_a_ping_is_answered_and_anything_else_is_unknown() -> None:
    assert json.loads(reply_bytes(read_message(b'{"id":"a","method":"ping"}')))["result"] == {}
    assert json.loads(reply_bytes(read_message(b'{"id":3,"method":"roots/list"}')))["error"]["code"] == -32601


def test_an_error_keeps_code_message_and_data() -> None:
    error = rpc_failure(read_message(b'{"id":1,"error":{"code":-1,"message":"no\\u001b[31m way","data":{"k":[1]}}}'))
    assert (error.code, error.rpc_code, error.rpc_data) == ("mcp.rpc_error", -1, b'{"k":[1]}')
    assert error.message == "no way"


def test_a_copied_error_says_the_same() -> None:
    error = McpUpstreamError("mcp.rpc_error", "no", rpc_code=1, rpc_message="no", rpc_data=b"{}", status=400)
    copy = again(error)
    assert copy is not error
    assert (vars(copy)) == vars(error)


def test_foreign_text_is_cut_and_stripped() -> None:
    assert plain_text("\x1b[1mred\x1b[0m\x00\x07 and\r\n more  ") == "red and\n more"
    assert plain_text("x" * 600) == "x" * 499 + "…"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("search", "search"),
        ("two words", "two words"),
        (" edge", "=?base64?IGVkZ2U=?="),
        ("naïve", "=?base64?bmHDr3Zl?="),
    ],
)
def test_header_values_carry_any_text(text: str, value: str) -> None:
    assert header_value(text) == value


def test_arguments_are_repeated_in_the_headers_that_the_schema_names() -> None:
    schema = {
        "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "deep": {"properties": {"n": {"type": "integer", "x-mcp-header": "N"}}},
            "plain": {"type": "string"},
        }
    }
    plan = plan_headers(schema)
    arguments = {"region": "eu west", "deep": {"n": 5}, "plain": "x"}
    assert set(param_headers(plan, arguments)) == {("mcp-param-Region", "eu west"), ("mcp-param-N", "5")}
    assert param_headers(plan, {"region": None, "deep": 3}) == ()


@pytest.mark.parametrize(
    "schema",
    [
        {"x-mcp-header": "Root"},
        {"properties": {"a": {"type": "number", "x-mcp-header": "A"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": "no spaces"}}},
        {"properties": {"a": {"items": {"type": "string", "x-mcp-header": "A"}}}},
        {"properties": {n: {"type": "string", "x-mcp-header": "Same"} for n in "ab"}},
    ],
)
def test_annotations_that_break_the_rules_are_refused(schema: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="x-mcp-header"):
        plan_headers(schema)
