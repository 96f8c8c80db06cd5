"""Schemas on both sides: what of a JSON Schema an input parameter can say, and inputs and outputs as JSON Schema.

Reading keeps type, description, enum, default, format, pattern, items and properties, bounded in depth; references are
followed, alternatives reduced to what they share. Writing takes care of what each OpenAPI version can say.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from toolcrib.capability.openapi.reader import OpenApiSource, Pointer, Version, as_list, as_map, clean
from toolcrib.capability.spec import ABSENT, Input, Output

TYPES = frozenset({"string", "number", "integer", "boolean", "array", "object"})
_MAX_DEPTH = 4
_MAX_MEMBERS = 100
_MAX_ENUM = 200
_MAX_SIZE = 400  # schemas looked at for one parameter or body: more would drown the agent that reads it


class Shapes:
    """Reads schemas of one document."""

    def __init__(self, source: OpenApiSource) -> None:
        self._source = source
        self._left = 0

    def read(self, schema: Any, pointer: Pointer) -> dict[str, Any]:
        """What an input parameter can say of a schema; `required` of a property is a boolean there."""
        self._left = _MAX_SIZE
        return self._read(schema, pointer, 0)

    def _read(self, schema: Any, pointer: Pointer, depth: int) -> dict[str, Any]:
        node, pointer = self._merged(schema, pointer)
        found: dict[str, Any] = {}
        kind = self._type(node)
        if kind:
            found["type"] = kind
        if text := clean(node.get("description") or node.get("title"), 500):
            found["description"] = text
        enum = as_list(node.get("enum")) or ([node["const"]] if "const" in node else [])
        values = [value for value in enum if isinstance(value, str | int | float | bool)]
        if values and len(values) <= _MAX_ENUM:
            found["enum"] = [clean(value) if isinstance(value, str) else value for value in values]
        for key in ("format", "pattern"):
            if kind == "string" and isinstance(node.get(key), str) and clean(node[key]) == node[key]:
                found[key] = node[key]
        if depth < _MAX_DEPTH:
            if kind == "array":
                found["items"] = self._read(node.get("items"), (*pointer, "items"), depth + 1) or {"type": "string"}
            elif kind == "object" and (properties := self._properties(node, pointer, depth)):
                found["properties"] = properties
        return found

    def default(self, schema: Any, pointer: Pointer) -> Any:
        """The default of a schema, ABSENT if it has none that a file can hold."""
        self._left = _MAX_SIZE
        node, _ = self._merged(schema, pointer)
        value = node.get("default", ABSENT)
        if value is None or not isinstance(value, str | int | float | bool | list):
            return ABSENT
        flat = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | float | bool) for item in flat):
            return ABSENT
        # it would be read as a template, with the secrets of the capability in reach
        return ABSENT if any(isinstance(i, str) and ("{{" in i or clean(i) != i) for i in flat) else value

    def _properties(self, node: dict[str, Any], pointer: Pointer, depth: int) -> dict[str, Any]:
        required = {name for name in as_list(node.get("required")) if isinstance(name, str)}
        found = {}
        for name, below in list(as_map(node.get("properties")).items())[:_MAX_MEMBERS]:
            if as_map(below).get("readOnly") is True or clean(name) != name:
                continue
            shape = self._read(below, (*pointer, "properties", name), depth + 1)
            first = {"type": shape.pop("type")} if "type" in shape else {}
            found[name] = first | ({"required": True} if name in required else {}) | shape
        return found

    def _merged(self, schema: Any, pointer: Pointer, hops: int = 0) -> tuple[dict[str, Any], Pointer]:
        """A schema with its reference followed, `allOf` joined and a single alternative beside null taken."""
        self._left -= 1
        if self._left < 0:
            return {}, pointer
        node, pointer = self._source.follow(schema, pointer)
        if hops > _MAX_DEPTH:
            return node, pointer
        for key in ("oneOf", "anyOf"):
            options = [option for option in as_list(node.get(key)) if not _is_null(option)]
            if not options or "type" in node:
                continue
            parts = [self._merged(option, pointer, hops + 1)[0] for option in options[:16]]
            kinds = {self._type(part) for part in parts}
            if len(parts) == 1:
                node = {**parts[0], **{k: v for k, v in node.items() if k != key}}
            elif len(kinds) == 1:
                joined = self._joined(parts) if kinds == {"object"} else {"type": kinds.pop()}
                joined.pop("required", None)  # what each alternative needs, not all
                node = {**joined, **{k: v for k, v in node.items() if k != key}}
        if parts := as_list(node.get("allOf"))[:32]:
            own = {k: v for k, v in node.items() if k != "allOf"}
            node = self._joined([*(self._merged(part, pointer, hops + 1)[0] for part in parts), own])
        return node, pointer

    @staticmethod
    def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        properties: dict[str, Any] = {}
        required: list[Any] = []
        for part in parts:
            joined |= part
            properties |= as_map(part.get("properties"))
            required += as_list(part.get("required"))
        if properties:
            joined["properties"] = properties
        if required:
            joined["required"] = required
        return joined

    @staticmethod
    def _type(node: dict[str, Any]) -> str | None:
        kind = node.get("type")
        if isinstance(kind, list):
            kinds = [item for item in kind if item != "null"]
            kind = kinds[0] if len(kinds) == 1 else "number" if set(map(str, kinds)) == {"integer", "number"} else None
        if kind == "file":
            return "string"
        if isinstance(kind, str) and kind in TYPES:
            return kind
        if kind is None and ("properties" in node or "additionalProperties" in node):
            return "object"
        if kind is None and "items" in node:
            return "array"
        if kind is None and node.get("enum") and all(isinstance(value, str) for value in as_list(node["enum"])):
            return "string"
        return None


def _is_null(option: Any) -> bool:
    return isinstance(option, dict) and option.get("type") == "null"


def input_schema(item: Input) -> dict[str, Any]:
    """The JSON Schema of a declared input."""
    raw: dict[str, Any] = {"type": item.type, "description": item.description, "pattern": item.pattern}
    raw |= {"enum": list(item.enum) or None, "items": item.items, "properties": item.properties}
    schema = raw_schema(raw)
    if item.default is not ABSENT:
        schema["default"] = item.default
    return schema


def raw_schema(raw: Any, depth: int = 0) -> dict[str, Any]:
    """The JSON Schema of a nested declaration: its `items` may be a list, `required` of a property a boolean."""
    if isinstance(raw, list) and raw:
        raw = raw[0]
    if not isinstance(raw, Mapping) or depth > 2 * _MAX_DEPTH:
        return {}
    kind = str(raw.get("type") or "").lower()
    schema: dict[str, Any] = {"type": kind} if kind in TYPES else {}
    schema |= {key: raw[key] for key in ("description", "format", "pattern") if isinstance(raw.get(key), str)}
    if isinstance(raw.get("enum"), list) and raw["enum"]:
        schema["enum"] = list(raw["enum"])
    if kind == "array":
        schema["items"] = raw_schema(raw.get("items"), depth + 1)
    properties = raw.get("properties")
    if isinstance(properties, Mapping) and properties:
        schema["properties"] = {str(name): raw_schema(below, depth + 1) for name, below in properties.items()}
        listed = raw.get("required")
        needed = [name for name in listed if name in properties] if isinstance(listed, list) else []
        flagged = [
            str(n) for n, below in properties.items() if isinstance(below, Mapping) and below.get("required") is True
        ]
        if needed or flagged:
            schema["required"] = list(dict.fromkeys([*needed, *flagged]))
    return schema


def output_schema(output: Output) -> dict[str, Any]:
    """The JSON Schema of what an output parameter gives; an object without properties is whatever is found there."""
    kind = (output.type or "").lower()
    schema: dict[str, Any] = {"type": kind} if kind in TYPES else {}
    if output.description:
        schema["description"] = output.description
    if output.enum:
        schema["enum"] = list(output.enum)
    if kind == "array":
        schema["items"] = output_schema(output.items) if output.items is not None else {}
    elif output.properties:
        schema |= {"type": "object", "properties": {name: output_schema(below) for name, below in output.properties}}
    elif output.values is not None:
        schema |= {"type": "object", "additionalProperties": output_schema(output.values)}
    elif kind == "object":
        del schema["type"]
    if output.max_length is not None and kind == "string":
        schema["maxLength"] = output.max_length
    return schema


def any_of(schemas: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What fits one of the schemas."""
    found: list[dict[str, Any]] = []
    for schema in schemas:
        if schema not in found:
            found.append(schema)
    if not found or {} in found:
        return {}
    return found[0] if len(found) == 1 else {"anyOf": found}


def for_version(schema: dict[str, Any], version: Version) -> dict[str, Any]:
    """A schema made here in the words of an OpenAPI version: 2.0 has no alternatives."""
    if version != "2.0":
        return schema
    plain = {key: value for key, value in schema.items() if key != "anyOf"}
    if "items" in plain:
        plain["items"] = for_version(plain["items"], version)
    if "properties" in plain:
        plain["properties"] = {name: for_version(below, version) for name, below in plain["properties"].items()}
    if isinstance(plain.get("additionalProperties"), dict):
        plain["additionalProperties"] = for_version(plain["additionalProperties"], version)
    return plain
