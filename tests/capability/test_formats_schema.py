"""Formats with a schema file: Avro and Protobuf, and where their files may lie."""

import base64
import contextlib
import functools
import io
import json
from decimal import Decimal
from pathlib import Path

import fastavro
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolcrib.capability.formats import open_format
from toolcrib.capability.formats.proto_schema import first_message
from toolcrib.capability.formats.schema_files import MAX_BYTES
from toolcrib.errors import Upstream

CUSTOMER = {
    "type": "record",
    "name": "Customer",
    "namespace": "example",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "name", "type": ["null", "string"]},
        {"name": "score", "type": "double"},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "plans", "type": {"type": "map", "values": "int"}},
        {"name": "photo", "type": "bytes"},
        {"name": "size", "type": {"type": "enum", "name": "Size", "symbols": ["SMALL", "LARGE"]}},
    ],
}
ORDER_PROTO = """
syntax = "proto3";
package example;
import "google/protobuf/timestamp.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/wrappers.proto";
import "google/protobuf/any.proto";
import "google/api/annotations.proto";
import "shared/money.proto";

// The first message of the file.
message Order {
  message Line { string sku = 1; optional uint32 count = 2; shared.Money price = 3; Order bundle = 4; }
  int64 order_id = 1;
  repeated Line lines = 2;
  map<string, Line> line_by_sku = 3;
  map<int32, State> state_by_day = 4;
  oneof payer { string customer = 5; shared.Money voucher = 6; }
  State state = 7;
  repeated int32 numbers = 8 [packed = true];
  bytes signature = 9;
  float weight = 10;
  double ratio = 11;
  bool paid = 12;
  google.protobuf.Timestamp created_at = 13;
  google.protobuf.Struct extra = 14;
  google.protobuf.Int64Value limit = 15;
  google.protobuf.Any any = 16;
  reserved 20 to 30;
}
enum State { UNKNOWN = 0; OPEN = 1; CLOSED = 2; }
message Second { string x = 1; }
service Orders { rpc Get(Order) returns (Order); }
"""
MONEY_PROTO = """
syntax = "proto2";
package shared;
message Money { required string currency = 1; optional fixed64 units = 2 [default = 7];
  repeated group Part = 3 { optional sint32 cents = 1; } extensions 100 to 199; }
extend Money { optional int32 extra = 100; }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("capability")
    (root / "shared").mkdir()
    (root / "customer.avsc").write_text(json.dumps(CUSTOMER))
    (root / "order.proto").write_text(ORDER_PROTO)
    (root / "shared" / "money.proto").write_text(MONEY_PROTO)
    return str(root)


@functools.cache
def form_of(name, schema, folder):
    """Opened once: an example of a property should cost its decoding only."""
    return open_format(name, schema, (folder,))


@functools.cache
def kind_of(schema, folder):
    return first_message(schema, (folder,))


def avro(schema, value) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), value)
    return out.getvalue()


def opened(tmp_path: Path, name: str, text: str):
    (tmp_path / "schema").write_text(text)
    return open_format(name, "schema", (str(tmp_path),))


@given(
    value=st.fixed_dictionaries(
        {
            "id": st.integers(-(2**63), 2**63 - 1),
            "name": st.none() | st.text(),
            "score": st.floats(allow_nan=False, allow_infinity=False),
            "tags": st.lists(st.text(), max_size=4),
            "plans": st.dictionaries(st.text(), st.integers(-(2**31), 2**31 - 1), max_size=4),
            "photo": st.binary(max_size=20),
            "size": st.sampled_from(["SMALL", "LARGE"]),
        }
    )
)
def test_avro_reads_back_what_was_written(folder, value) -> None:
    tree = form_of("AVRO", "customer.avsc", folder).decode(avro(CUSTOMER, value))
    assert tree == value | {"photo": base64.b64encode(value["photo"]).decode()}
    assert orjson.loads(orjson.dumps(tree)) == tree


def test_avro_logical_types_are_plain_values_but_decimals_are_digits(tmp_path) -> None:
    fields = [
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "odd", "type": "double"},
    ]
    schema = {"type": "record", "name": "R", "fields": fields}
    body = avro(schema, {"day": 3, "at": 2**62, "price": Decimal("12.50"), "odd": float("inf")})
    tree = opened(tmp_path, "avro", json.dumps(schema)).decode(body)
    assert tree == {"day": 3, "at": 2**62, "price": "12.50", "odd": "Infinity"}


LIST = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}


def test_a_schema_that_contains_itself_is_read_to_the_limit_and_no_further(tmp_path) -> None:
    form = opened(tmp_path, "avro", json.dumps(LIST))
    assert form.decode(b"\x02\x02\x00") == {"next": {"next": {"next": None}}}
    for levels in (201, 5_000, 1_000_000):
        with pytest.raises(Upstream, match="nested deeper"):
            form.decode(b"\x02" * levels + b"\x00")


@pytest.mark.parametrize(
    "body", [b"", b"\x01", b"\xff" * 30, b"\x02\x02\xff\xff\xff\xff\xff\xff\xff\x7fabc", b"Obj\x01x"]
)
def test_an_avro_body_that_does_not_match_is_refused(folder, body) -> None:
    with pytest.raises(Upstream) as caught:
        open_format("avro", "customer.avsc", (folder,)).decode(body)
    assert caught.value.code == "upstream.undecodable"
    assert ("container file" in caught.value.message) == body.startswith(b"Obj")


@given(body=st.binary(max_size=200))
def test_any_bytes_are_an_avro_tree_or_refused(folder, body) -> None:
    with contextlib.suppress(Upstream):
        orjson.dumps(form_of("avro", "customer.avsc", folder).decode(body))


@pytest.mark.parametrize(
    "schema",
    [
        "not json",
        "{}",
        '{"type": "record", "name": "R", "fields": [{"name": "x", "type": "Nope"}]}',
        "[" * 5000,
        '{"type": "array", "items": "null"}',
        '{"type": "array", "items": {"type": "record", "name": "R", "fields": []}}',
    ],
)
def test_an_avro_schema_that_is_not_usable_is_refused_when_the_file_is_loaded(tmp_path, schema) -> None:
    with pytest.raises(ValueError, match="avro schema file 'schema'"):
        opened(tmp_path, "avro", schema)


def test_protobuf_reads_the_first_message_by_the_names_of_the_file(folder) -> None:
    order = first_message("order.proto", (folder,))()
    order.order_id = 2**63 - 1
    line = order.lines.add(sku="a", count=0)
    line.price.currency, line.price.units = "EUR", 2**64 - 1
    line.price.part.add().cents = -3
    order.line_by_sku["k"].bundle.order_id = 5
    order.state_by_day[-1] = 2
    order.voucher.currency = "USD"
    order.state = 9
    order.numbers.extend([1, -2])
    order.signature, order.weight, order.ratio, order.paid = b"\xff", 0.1, float("nan"), True
    order.created_at.seconds = 1
    order.extra["q"] = [1, None]
    order.limit.value = 2**62
    form = open_format("Protobuf", "order.proto", ("absent", folder))
    tree = form.decode(order.SerializeToString())
    assert tree == {
        "order_id": 2**63 - 1,
        "lines": [{"sku": "a", "count": 0, "price": {"currency": "EUR", "units": 2**64 - 1, "part": [{"cents": -3}]}}],
        "line_by_sku": {"k": {"bundle": {"order_id": 5}}},
        "state_by_day": {"-1": "CLOSED"},
        "voucher": {"currency": "USD"},
        "state": 9,
        "numbers": [1, -2],
        "signature": "/w==",
        "weight": 0.1,
        "ratio": "NaN",
        "paid": True,
        "created_at": "1970-01-01T00:00:01Z",
        "extra": {"q": [1.0, None]},
        "limit": 2**62,
    }
    assert form.decode(b"") == {}


@given(
    number=st.integers(-(2**63), 2**63 - 1),
    numbers=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5),
    customer=st.text(st.characters(codec="utf-8")),
    weight=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_protobuf_reads_back_what_was_written(folder, number, numbers, customer, weight) -> None:
    kind = kind_of("order.proto", folder)
    order = kind(order_id=number, numbers=numbers, customer=customer, weight=weight)
    tree = form_of("protobuf", "order.proto", folder).decode(order.SerializeToString())
    again = kind(**{key: tree[key] for key in ("order_id", "numbers", "customer", "weight") if key in tree})
    assert again == order


@given(body=st.binary(max_size=200))
def test_any_bytes_are_a_protobuf_tree_or_refused(folder, body) -> None:
    with contextlib.suppress(Upstream):
        orjson.dumps(form_of("protobuf", "order.proto", folder).decode(body))


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"\x0a\x05a",
        b"\x2a\x01\xff",
        b"\x82\x01\x03\x0a\x01x",
        b"\x6a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    ],
    ids=["garbage", "truncated", "not UTF-8", "unknown Any", "time out of range"],
)
def test_a_protobuf_body_that_does_not_match_is_refused(folder, body) -> None:
    with pytest.raises(Upstream):
        open_format("protobuf", "order.proto", (folder,)).decode(body)


def test_a_protobuf_body_nested_without_end_is_refused(folder) -> None:
    body = b""
    for _ in range(300):
        inner = b"\x22" + _length(body) + body  # Line.bundle
        body = b"\x12" + _length(inner) + inner  # Order.lines
    with pytest.raises(Upstream):
        open_format("protobuf", "order.proto", (folder,)).decode(body)


def _length(body: bytes) -> bytes:
    out, left = bytearray(), len(body)
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*out, left])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("garbage", "line 1"),
        ('syntax = "proto3";', "no message"),
        ('syntax = "proto3"; message M { Nope x = 1; }', "Nope"),
        ('syntax = "proto3"; message M { string a = 1; string b = 1; }', ""),
        ('syntax = "proto3"; import "absent.proto"; message M { string a = 1; }', "absent.proto"),
        ('syntax = "proto3"; import "../climb.proto"; message M { string a = 1; }', "climb"),
        ('syntax = "proto3"; import "schema"; message M { string a = 1; }', "back to itself"),
        ('edition = "2023"; message M { string a = 1; }', "editions"),
        ("message M {" * 400, ""),
    ],
)
def test_a_protobuf_schema_that_is_not_usable_is_refused_when_the_file_is_loaded(tmp_path, capfd, text, reason) -> None:
    with pytest.raises(ValueError, match="protobuf schema file 'schema'") as caught:
        opened(tmp_path, "protobuf", text)
    assert reason in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["avro", "protobuf"])
@pytest.mark.parametrize("schema", [None, "", " ", "absent", "../outside", "sub/../../outside", "/etc/hosts", "C:\\x", "a\0b", "link", "linked/outside", "sub", "loop"])  # fmt: skip
def test_a_schema_lies_in_its_folder_or_is_refused(tmp_path, name, schema) -> None:
    (tmp_path / "outside").write_text('"string"')
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    with pytest.raises(ValueError, match="schema"):
        open_format(name, schema, (str(folder),))


def test_the_first_folder_that_has_the_schema_counts(tmp_path) -> None:
    for folder, schema in (("one", '"string"'), ("two", '"long"')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s.avsc").write_text("\ufeff" + schema)
    folders = (str(tmp_path / "none"), str(tmp_path / "two"), str(tmp_path / "one"))
    assert open_format("avro", "s.avsc", folders).decode(b"\x02") == 1


def test_a_schema_that_is_too_large_or_no_text_is_refused(tmp_path) -> None:
    (tmp_path / "large").write_bytes(b" " * (MAX_BYTES + 1))
    (tmp_path / "bytes").write_bytes(b"\xff\xff")
    for name in ("large", "bytes"):
        with pytest.raises(ValueError, match=r"larger than|not UTF-8"):
            open_format("avro", name, (str(tmp_path),))
