"""Arguments of a tool call as people type them: `name=value` read by the tool's schema, `name:=JSON` as it stands."""

import json
import sys
from pathlib import Path
from typing import Any

from toolcrib.cli.failure import WRONG, CommandFailed

_TYPES = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})


def read_arguments(texts: list[str], schema: dict[str, Any]) -> dict[str, Any]:
    """The arguments that these texts mean to a tool with this schema.

    A value is text wherever the schema takes text; else it is what JSON makes of it, if the schema takes that.

    Raises:
        CommandFailed: a text has no `=`, or a value is not of the type that the schema asks for.
    """
    arguments: dict[str, Any] = {}
    properties = schema.get("properties")
    for text in texts:
        name, here, value = text.partition("=")
        if not here or not name.strip(":"):
            raise CommandFailed(f"--arg {text!r} is not name=value.", WRONG)
        if name.endswith(":"):
            arguments[name[:-1]] = _json(name[:-1], value)
            continue
        known = properties.get(name) if isinstance(properties, dict) else None
        arguments[name] = _read(name, value, allowed_types(known, schema))
    return arguments


def parse_object(text: str, source: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CommandFailed: it is none.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CommandFailed(f"{source} is not JSON: {error}.", WRONG) from None
    if not isinstance(value, dict):
        raise CommandFailed(f"{source} is not a JSON object.", WRONG)
    return value


def text_of(text: str) -> str:
    """The text itself, or what the file holds that it names with `@`, or standard input for `-`.

    Raises:
        CommandFailed: that cannot be read.
    """
    try:
        if text == "-":
            return sys.stdin.read()
        return Path(text[1:]).read_text("utf-8") if text.startswith("@") else text
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CommandFailed(f"{text[1:] or 'Standard input'} cannot be read: {reason}.", WRONG) from None


def allowed_types(schema: Any, root: dict[str, Any], depth: int = 0) -> frozenset[str]:
    """The JSON types that a schema may take, as far as its `type`, unions, enums and local references tell."""
    if not isinstance(schema, dict) or depth > 20:
        return _TYPES
    found: set[str] = set()
    if isinstance(reference := schema.get("$ref"), str):
        return allowed_types(_target(reference, root), root, depth + 1)
    if isinstance(named := schema.get("type"), str | list):
        found |= {named} if isinstance(named, str) else set(named)
    elif isinstance(values := schema.get("enum"), list):
        found |= {_type_of(value) for value in values}
    elif "const" in schema:
        found.add(_type_of(schema["const"]))
    else:
        for union in ("anyOf", "oneOf"):
            for branch in schema.get(union) or ():
                found |= allowed_types(branch, root, depth + 1)
        for part in schema.get("allOf") or ():
            narrowed = allowed_types(part, root, depth + 1)
            found = found & narrowed if found else set(narrowed)
    return frozenset(found & _TYPES) or _TYPES


def _target(reference: str, root: dict[str, Any]) -> Any:
    value: Any = root
    if not reference.startswith("#"):
        return None
    for part in reference[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _read(name: str, text: str, allowed: frozenset[str]) -> Any:
    if "string" in allowed:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    kind = _type_of(value)
    if kind in allowed or (kind == "integer" and "number" in allowed):
        return value
    wanted = " or ".join(sorted(allowed - {"null"}) or ["null"])
    raise CommandFailed(f"--arg {name}: {text!r} is not of type {wanted}.", WRONG)


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise CommandFailed(f"--arg {name}: the value is not JSON: {error}.", WRONG) from None


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
