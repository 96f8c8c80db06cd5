"""The input schemas of tools: declared inputs, and what the operations behind them need."""

from collections.abc import Iterable, Mapping
from typing import Any

from toolcrib.capability.operation import Slot
from toolcrib.capability.spec import ABSENT, Input

_TYPES = frozenset({"string", "number", "integer", "boolean", "array", "object"})


def input_schema(declared: tuple[Input, ...], inferred: Mapping[str, Slot]) -> dict[str, Any]:
    """A JSON Schema for the arguments; `declared` inputs are required unless they say otherwise."""
    properties: dict[str, Any] = {}
    required: dict[str, None] = {}  # an input may be declared twice
    for item in declared:
        properties[item.name] = _property(item, item.type or "string")
        if item.required is not False and item.default is ABSENT and item.value is ABSENT:
            required[item.name] = None
    for name, slot in inferred.items():
        if name in properties:
            continue
        properties[name] = _inferred(slot)
        if slot.required:
            required[name] = None
    schema: dict[str, Any] = {"type": "object"}
    if properties:
        schema["properties"] = properties
    if required:
        schema["required"] = list(required)
    return schema


def _inferred(slot: Slot) -> dict[str, Any]:
    body = slot.kind in {"body", "relay"}
    if slot.input is not None:
        found = _property(slot.input, "object" if body else "string")
    elif body:
        found = {"type": ["object", "array"]} if slot.kind == "relay" else {"type": "object"}
    else:
        found = {"type": "string"} if slot.kind in {"path", "header", "cookie"} else {}
    if body and "description" not in found:
        found["description"] = "Request body"
    return found


def _property(item: Input, usual: str) -> dict[str, Any]:
    kind = (item.type or usual).lower()
    found: dict[str, Any] = {"type": kind} if kind in _TYPES else {}
    if item.description:
        found["description"] = item.description
    if item.enum:
        found["enum"] = list(item.enum)
    if item.pattern and kind == "string":
        found["pattern"] = item.pattern
    if item.default is not ABSENT:
        found["default"] = item.default
    if kind == "array" and isinstance(item.items, Mapping):
        found["items"] = _plain_schema(item.items)
    if kind == "object" and isinstance(item.properties, Mapping):
        found |= _members(item.properties)
    return found


def _plain_schema(value: Any) -> dict[str, Any]:
    """The part of a nested declaration that means the same in JSON Schema."""
    if not isinstance(value, Mapping):
        return {}
    kind = str(value.get("type", "")).lower()
    found: dict[str, Any] = {"type": kind} if kind in _TYPES else {}
    if isinstance(value.get("description"), str):
        found["description"] = value["description"]
    if isinstance(value.get("enum"), list):
        found["enum"] = value["enum"]
    if isinstance(value.get("items"), Mapping):
        found["items"] = _plain_schema(value["items"])
    if isinstance(value.get("properties"), Mapping):
        found |= _members(value["properties"])
    return found


def _members(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The members of an object; the format marks a required one by a boolean of its own."""
    found: dict[str, Any] = {"properties": {str(name): _plain_schema(value) for name, value in properties.items()}}
    required = [str(n) for n, v in properties.items() if isinstance(v, Mapping) and v.get("required") is True]
    return found | ({"required": required} if required else {})


def merged(parts: Iterable[Mapping[str, Slot]]) -> dict[str, Slot]:
    """Inferred inputs of several calls; the first that needs one describes it."""
    found: dict[str, Slot] = {}
    for part in parts:
        for name, slot in part.items():
            if name not in found or (slot.required and not found[name].required):
                found[name] = slot
    return found
