"""Protobuf bodies: one message, the first of the .proto file that `outputSchema` names.

Members have the names of the file. Fields that the body does not hold are absent. Numbers are numbers also at 64 bits,
enums are the names of their values (the number if it has none), bytes are base64; google.protobuf's own types such
as Timestamp have their JSON form.
"""

import base64
import struct
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import Error as JsonError
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message

from toolcrib.capability.formats.limits import json_number
from toolcrib.capability.formats.proto_schema import first_message


def open_decoder(_name: str, schema: str | None, folders: tuple[str, ...]) -> Callable[[bytes, str | None], Any]:
    """The decoder for that schema; raises ValueError for a schema that is missing or invalid."""
    kind = first_message(schema, folders)

    def decode(body: bytes, _charset: str | None) -> Any:
        message = kind()
        try:
            message.ParseFromString(body)  # refuses more than 100 levels by itself
            return _tree(message)
        except (DecodeError, UnicodeDecodeError, RecursionError):
            raise ValueError("it does not match the schema, ends early, or is nested too deeply") from None

    return decode


def _tree(message: Message) -> Any:
    if message.DESCRIPTOR.file.name == "google/protobuf/wrappers.proto":
        wrapper: Any = message
        field: FieldDescriptor = wrapper.DESCRIPTOR.fields_by_name["value"]
        return _value(field, wrapper.value)
    if message.DESCRIPTOR.full_name.startswith("google.protobuf."):
        return _well_known(message)
    return {field.name: _member(field, value) for field, value in message.ListFields()}


def _member(field: FieldDescriptor, value: Any) -> Any:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        entry = kind.fields_by_name["value"]
        members: Mapping[Any, Any] = value
        return {_key(key): _value(entry, one) for key, one in members.items()}
    if field.is_repeated:
        return [_value(field, one) for one in value]
    return _value(field, value)


def _key(key: str | float) -> str:
    """The text of a map's key: strings, integers and booleans, as JSON writes them."""
    return str(key).lower() if isinstance(key, bool) else str(key)


def _value(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Message):
        return _tree(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return value if named is None else named.name
    if isinstance(value, float):
        value = json_number(value)
        return _shortest(value) if field.type == FieldDescriptor.TYPE_FLOAT and isinstance(value, float) else value
    return value


def _shortest(value: float) -> float:
    """The shortest number that 32 bits store as this one: 0.1 and not 0.10000000149011612."""
    for digits in range(6, 9):
        rounded = float(f"{value:.{digits}g}")
        try:
            if struct.unpack("f", struct.pack("f", rounded))[0] == value:
                return rounded
        except OverflowError:  # the largest number, rounded up
            continue
    return value


def _well_known(message: Message) -> Any:
    pool: Any = message.DESCRIPTOR.file.pool  # the C twin of the class that the stubs name
    try:
        return MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=pool)
    except (JsonError, ValueError, TypeError):
        raise ValueError(f"a {message.DESCRIPTOR.full_name} in it has no JSON form") from None
