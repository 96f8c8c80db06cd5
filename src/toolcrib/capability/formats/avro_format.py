"""Avro bodies: one binary datum, without a container, of the record in the schema file that `outputSchema` names.

Values are those that Java readers give: bytes and fixed as base64, dates and times as their numbers, enum symbols as
strings. Decimals, which would be unreadable bytes, are strings of digits. Any other logical type is its plain value.
"""

import base64
import io
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import fastavro
import orjson
from fastavro._read_py import schemaless_reader as read_in_python
from fastavro.schema import SchemaParseException

from toolcrib.capability.formats.limits import MAX_DEPTH, TOO_DEEP, json_number
from toolcrib.capability.formats.schema_files import read_schema

_KEPT: Final = {"decimal"}  # logical types that are better than the plain value
_CONTAINER: Final = b"Obj\x01"
_GARBAGE: Final = (EOFError, LookupError, ValueError, TypeError, ArithmeticError, struct.error, RecursionError)
_COLLECTIONS: Final = {"array": "items", "map": "values"}


def open_decoder(_name: str, schema: str | None, folders: tuple[str, ...]) -> Callable[[bytes, str | None], Any]:
    """The decoder for that schema; raises ValueError for a schema that is missing, invalid or without end."""
    text = read_schema(schema, folders, what="avro")
    try:
        parsed = fastavro.parse_schema(_plain(orjson.loads(text)))
        shape = _Shape(parsed)
    except orjson.JSONDecodeError as e:
        raise ValueError(f"the avro schema file {schema!r} is not JSON: {e}") from None
    except (SchemaParseException, *_GARBAGE) as e:
        raise ValueError(f"the avro schema file {schema!r} is not valid: {str(e)[:200] or type(e).__name__}") from None
    # The C reader follows a schema that contains itself until the stack of the process ends; the Python one notices.
    read: Callable[..., Any] = read_in_python if shape.is_recursive else fastavro.schemaless_reader

    def decode(body: bytes, _charset: str | None) -> Any:
        try:
            return _tree(read(io.BytesIO(body), parsed, None), 0)
        except RecursionError:
            raise ValueError(TOO_DEEP) from None
        except _GARBAGE as e:
            if isinstance(e, _Refused):
                raise
            hint = "it is a container file, not a single datum" if body.startswith(_CONTAINER) else ""
            raise ValueError(hint or "it does not match the schema, or ends early") from None

    return decode


class _Refused(ValueError):
    """A datum that was read and exceeds a limit."""


def _plain(schema: Any) -> Any:
    """The schema without the logical types whose plain value is wanted."""
    if isinstance(schema, list):
        return [_plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    drop = "logicalType" if schema.get("logicalType") not in _KEPT else ""
    return {
        key: _plain(value) if key in {"type", "fields", "items", "values"} else value
        for key, value in schema.items()
        if key != drop
    }


class _Shape:
    """What matters of a parsed schema beyond its validity: does it contain itself, and is every item at least a byte?

    Raises ValueError for an array of items that take no bytes: ten bytes could announce any number of them.
    """

    def __init__(self, schema: Any) -> None:
        self.is_recursive = False
        self._named: dict[str, bool] = {}  # name: can it be empty?
        self._open: set[str] = set()
        self._can_be_empty(schema)

    def _can_be_empty(self, schema: Any) -> bool:
        """Whether a value of this schema can take no bytes. What contains itself cannot, or it would never end."""
        if isinstance(schema, list):
            for branch in schema:
                self._can_be_empty(branch)
            return False  # the number of the branch is a byte
        if isinstance(schema, str):
            if schema in self._open:
                self.is_recursive = True
            return schema == "null" or self._named.get(schema, False)
        kind = schema["type"]
        if kind in _COLLECTIONS:
            if self._can_be_empty(schema[_COLLECTIONS[kind]]) and kind == "array":
                raise ValueError("it has an array whose items take no bytes")
            return False  # the count is a byte
        if kind in {"record", "error"}:
            name = schema["name"]
            self._open.add(name)
            fields = [self._can_be_empty(field["type"]) for field in schema["fields"]]
            is_empty = all(fields)  # after all were looked at
            self._open.remove(name)
        elif kind == "fixed":
            name, is_empty = schema["name"], schema["size"] == 0
        elif kind == "enum":
            return False
        else:
            return self._can_be_empty(kind)
        self._named[name] = is_empty
        return is_empty


def _tree(value: Any, depth: int) -> Any:
    """The JSON value of what fastavro read."""
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, int | float):
        return json_number(value)
    if depth >= MAX_DEPTH:
        raise _Refused(TOO_DEEP)
    if isinstance(value, dict):
        return {key: _tree(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [_tree(one, depth + 1) for one in value]
    if isinstance(value, Decimal):
        return format(value, "f")
    return base64.b64encode(value).decode("ascii")
