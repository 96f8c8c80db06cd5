"""Request templates: compiled once, rendered for each call, and unable to reach outside their values.

A variable is `{{ name }}` (in paths `{name}` as well); `name` may be dotted to reach into objects. How a value is
written depends on where it stands, so no value can add a path segment, a query pair, a header or a JSON member:

- path: percent-encoded, `/` included; a missing value is an error
- query: variables percent-encoded, literals as they were written; a pair whose variables are all missing is left out;
  a list that is the whole value repeats the pair
- header: as text without control characters; a header whose variables are all missing is left out
- JSON body: as JSON outside a string, JSON-escaped inside one; missing is `null` outside and nothing inside
- form body: as a query; XML body: escaped; other text: as text
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import orjson

_DOUBLE = re.compile(r"\{\{\s*([A-Za-z_][\w-]*(?:\.[\w-]+)*)\s*\}\}")
_EITHER = re.compile(r"\{\{\s*([A-Za-z_][\w-]*(?:\.[\w-]+)*)\s*\}\}|\{([A-Za-z_][\w-]*)\}")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_SLASH = re.compile(r"[/\\]")
_DOTS = frozenset({".", ".."})
_QUERY_SAFE = "%!$'()*+,;:@/?[]-._~="
_MISSING = object()

Arguments = dict[str, Any]


class TemplateError(ValueError):
    """A template that cannot be used, or a value that it needs and did not get."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A place for a value; `in_string` says that it stands inside a JSON string."""

    path: tuple[str, ...]
    in_string: bool = False

    def of(self, arguments: Arguments) -> Any:
        """The value, or the marker for a missing one; null counts as missing."""
        value: Any = arguments
        for part in self.path:
            if not isinstance(value, dict) or part not in value:
                return _MISSING
            value = value[part]
        return _MISSING if value is None else value


Part = str | Variable


def _parts(text: str, pattern: re.Pattern[str] = _DOUBLE) -> tuple[Part, ...]:
    parts: list[Part] = []
    end = 0
    for match in pattern.finditer(text):
        if match.start() > end:
            parts.append(text[end : match.start()])
        name = next(filter(None, match.groups()))
        parts.append(Variable(tuple(name.split("."))))
        end = match.end()
    if end < len(text):
        parts.append(text[end:])
    return tuple(parts)


def _names(parts: tuple[Part, ...]) -> set[str]:
    return {part.path[0] for part in parts if isinstance(part, Variable)}


def as_json(value: Any) -> bytes:
    """A value as JSON. Raises TemplateError when it is nested too deep to be written."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise TemplateError(f"a value cannot be written as JSON: {error}") from None


def as_text(value: Any) -> str:
    """A scalar as people write it, anything else as JSON."""
    if isinstance(value, str):
        return value
    return as_json(value).decode()


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """A URL path such as `/users/{id}/posts`."""

    parts: tuple[Part, ...]
    names: frozenset[str]

    @classmethod
    def compile(cls, text: str) -> "PathTemplate":
        """Raises TemplateError for a query, a fragment, or characters that no path has."""
        parts = _parts(text, _EITHER)
        literal = "".join(p for p in parts if isinstance(p, str))
        if "?" in literal or "#" in literal:
            raise TemplateError("a path has no query or fragment; put the query into `query`")
        if _CONTROL.search(text) or "\\" in literal:
            raise TemplateError("a path has no control characters or backslashes")
        if any(segment in {".", ".."} for segment in literal.split("/")):
            raise TemplateError("a path has no . or .. segments")
        if "{" in literal or "}" in literal:
            raise TemplateError("a brace in the path opens no variable such as {id}")
        safe = tuple(quote(p, safe="/:@!$&'()*+,;=~%-._") if isinstance(p, str) else p for p in parts)
        return cls(safe, frozenset(_names(parts)))

    def render(self, arguments: Arguments) -> str:
        """Raises TemplateError naming a variable that has no value, or whose value would climb out of its segment."""
        out = []
        for part in self.parts:
            if isinstance(part, str):
                out.append(part)
                continue
            value = part.of(arguments)
            text = "" if value is _MISSING else as_text(value)
            if not text:
                raise TemplateError(f"the path needs a value for {'.'.join(part.path)}")
            if not _DOTS.isdisjoint(_SLASH.split(text)):  # many servers decode %2F before they resolve `..`
                raise TemplateError(f"{'.'.join(part.path)} may not have . or .. segments in a path")
            out.append(quote(text, safe="-._~"))
        return "".join(out)


@dataclass(frozen=True, slots=True)
class TextTemplate:
    """Plain text with variables: a header value, a form value, a text body."""

    parts: tuple[Part, ...]
    names: frozenset[str]

    @classmethod
    def compile(cls, text: str) -> "TextTemplate":
        """Any text is a template."""
        parts = _parts(text)
        return cls(parts, frozenset(_names(parts)))

    def values(self, arguments: Arguments, write: Callable[[str], str] = str) -> list[str] | None:
        """The texts this template stands for: one, several for a lone list, None when all its variables are missing.

        `write` encodes the text of each value; literals stay as they are.
        """
        if len(self.parts) == 1 and isinstance(self.parts[0], Variable):
            value = self.parts[0].of(arguments)
            if value is _MISSING:
                return None
            return [write(as_text(v)) for v in value] if isinstance(value, list) else [write(as_text(value))]
        found = [p.of(arguments) for p in self.parts if isinstance(p, Variable)]
        if found and all(v is _MISSING for v in found):
            return None
        return ["".join(p if isinstance(p, str) else write(_shown(p.of(arguments))) for p in self.parts)]

    def header(self, arguments: Arguments) -> str | None:
        """The text as a header value, or None to leave the header out."""
        values = self.values(arguments)
        return None if values is None else _CONTROL.sub(" ", ", ".join(values)).strip()


def _shown(value: Any) -> str:
    return "" if value is _MISSING else as_text(value)


@dataclass(frozen=True, slots=True)
class QueryTemplate:
    """A query string such as `q={{ text }}&limit=10`, also used for form bodies; each name has its equals sign."""

    pairs: tuple[tuple[str, TextTemplate], ...]
    names: frozenset[str]

    @classmethod
    def compile(cls, text: str) -> "QueryTemplate":
        """Raises TemplateError for a fragment, control characters, or a variable in the name of a pair."""
        if "#" in text:
            raise TemplateError("a query has no fragment")
        if _CONTROL.search(text):
            raise TemplateError("a query has no control characters")
        pairs = []
        for pair in filter(None, text.lstrip("?").split("&")):
            name, equals, value = pair.partition("=")
            if _DOUBLE.search(name):
                raise TemplateError(f"a variable stands in the value of a query pair, not in its name ({name})")
            parts = _parts(value)
            safe = tuple(quote(p, safe=_QUERY_SAFE) if isinstance(p, str) else p for p in parts)
            pairs.append((quote(name, safe=_QUERY_SAFE) + equals, TextTemplate(safe, frozenset(_names(parts)))))
        return cls(tuple(pairs), frozenset().union(*(template.names for _, template in pairs)))

    def render(self, arguments: Arguments) -> str:
        """The query string without its question mark."""
        return "&".join(f"{name}{v}" for name, t in self.pairs for v in t.values(arguments, quote_plus) or ())


def query_of(arguments: Arguments, skip: frozenset[str] = frozenset()) -> str:
    """Every argument as a query pair, lists repeated, objects as JSON, nulls left out."""
    pairs = []
    for name, value in arguments.items():
        if name in skip or value is None:
            continue
        pairs += [(name, as_text(v)) for v in (value if isinstance(value, list) else [value])]
    return "&".join(f"{quote_plus(name)}={quote_plus(text)}" for name, text in pairs)


@dataclass(frozen=True, slots=True)
class BodyTemplate:
    """A request body; the content type decides how values are written."""

    parts: tuple[Part, ...]
    form: QueryTemplate | None
    syntax: str
    names: frozenset[str]

    @classmethod
    def compile(cls, text: str, content_type: str) -> "BodyTemplate":
        """Raises TemplateError when a JSON template can never give JSON."""
        media = content_type.partition(";")[0].strip().lower()
        if media == "application/x-www-form-urlencoded":
            form = QueryTemplate.compile(text)
            return cls((), form, "form", form.names)
        syntax = "json" if media.endswith(("/json", "+json")) else "xml" if media.endswith(("/xml", "+xml")) else "text"
        parts = _json_parts(text) if syntax == "json" else _parts(text)
        template = cls(parts, None, syntax, frozenset(_names(parts)))
        if syntax == "json":
            # "x" is part of no escape: a variable inside one (`\\u00{{ a }}`) would change what follows it
            filled = b"".join(p.encode() if isinstance(p, str) else b"x" if p.in_string else b'"x"' for p in parts)
            for probe in (template.render({}), filled):
                try:
                    orjson.loads(probe)
                except orjson.JSONDecodeError as error:
                    raise TemplateError(f"the body template gives no JSON: {error}") from None
        return template

    def render(self, arguments: Arguments) -> bytes:
        """The body in bytes."""
        if self.form is not None:
            return self.form.render(arguments).encode()
        return b"".join(p.encode() if isinstance(p, str) else self._value(p, arguments) for p in self.parts)

    def _value(self, variable: Variable, arguments: Arguments) -> bytes:
        value = variable.of(arguments)
        if self.syntax == "json":
            if not variable.in_string:
                return b"null" if value is _MISSING else as_json(value)
            return as_json(_shown(value))[1:-1]
        text = _shown(value)
        return (escape(text, {'"': "&quot;", "'": "&apos;"}) if self.syntax == "xml" else text).encode()


def _json_parts(text: str) -> tuple[Part, ...]:
    """The parts of a JSON template, each variable marked when it stands inside a string."""
    inside = False
    parts: list[Part] = []
    for part in _parts(text):
        if isinstance(part, Variable):
            parts.append(Variable(part.path, in_string=inside))
            continue
        skip = False
        for char in part:
            if skip:
                skip = False
            elif char == "\\":
                skip = inside
            elif char == '"':
                inside = not inside
        parts.append(part)
    return tuple(parts)
