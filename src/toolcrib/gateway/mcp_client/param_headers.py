"""HTTP headers that protocol 2026-07-28 copies from the body, so that proxies can route without reading it.

`Mcp-Name` repeats the tool's name; a tool's schema may ask with `x-mcp-header` for arguments to be repeated as
`Mcp-Param-<name>`. A server refuses calls whose headers and body disagree, before it does anything.
"""

import base64
import re
from collections.abc import Iterator
from typing import Any

ANNOTATION = "x-mcp-header"

HeaderPlan = tuple[tuple[tuple[str, ...], str], ...]
"""Where in the arguments a value stands, and the name it gets after `Mcp-Param-`."""

_PLAIN = re.compile(r"[\x20-\x7e]*")
_ENCODED = re.compile(r"=\?base64\?.*\?=")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_ONE_SCHEMA = (
    *("items", "contains", "unevaluatedItems", "additionalProperties", "propertyNames", "unevaluatedProperties"),
    *("not", "if", "then", "else", "contentSchema"),
)
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMA_MAPS = ("patternProperties", "dependentSchemas", "$defs", "definitions")


def header_value(text: str) -> str:
    """The text as a header value; what a header cannot carry unharmed goes as base64."""
    if _PLAIN.fullmatch(text) and text == text.strip() and not _ENCODED.fullmatch(text):
        return text
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


def plan_headers(input_schema: Any) -> HeaderPlan:
    """Which arguments the schema wants as headers; raises ValueError when an annotation breaks the rules."""
    plan: dict[str, tuple[tuple[str, ...], str]] = {}
    for path, schema in _schemas(input_schema):
        if ANNOTATION not in schema:
            continue
        name = schema[ANNOTATION]
        if not path:
            raise ValueError(f"{ANNOTATION} stands where no single argument can be meant")
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise ValueError(f"{ANNOTATION} of {'.'.join(path)} is not a header name")
        if schema.get("type") not in {"string", "integer", "boolean"}:
            raise ValueError(f"{ANNOTATION} of {'.'.join(path)} needs a string, integer or boolean")
        if plan.setdefault(name.lower(), (path, name)) != (path, name):
            raise ValueError(f"{ANNOTATION} {name} is used twice")
    return tuple(plan.values())


def param_headers(plan: HeaderPlan, arguments: Any) -> tuple[tuple[str, str], ...]:
    """The headers for these arguments; an absent or null argument has none."""
    headers = []
    for path, name in plan:
        value = arguments
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        if isinstance(value, bool):
            headers.append((f"mcp-param-{name}", "true" if value else "false"))
        elif isinstance(value, str | int | float):
            headers.append((f"mcp-param-{name}", header_value(str(value))))
    return tuple(headers)


def _schemas(root: Any) -> Iterator[tuple[tuple[str, ...] | None, dict[str, Any]]]:
    """Every schema inside, with its path of `properties` names, or None where other keywords were crossed."""
    stack: list[tuple[tuple[str, ...] | None, Any]] = [((), root)]
    while stack:
        path, node = stack.pop()
        if not isinstance(node, dict):
            continue
        yield path, node
        properties = node.get("properties")
        if isinstance(properties, dict):
            stack += [((*path, name) if path is not None else None, schema) for name, schema in properties.items()]
        stack += [(None, node[keyword]) for keyword in _ONE_SCHEMA if keyword in node]
        for keyword in _SCHEMA_LISTS:
            if isinstance(node.get(keyword), list):
                stack += [(None, schema) for schema in node[keyword]]
        for keyword in _SCHEMA_MAPS:
            if isinstance(node.get(keyword), dict):
                stack += [(None, schema) for schema in node[keyword].values()]
