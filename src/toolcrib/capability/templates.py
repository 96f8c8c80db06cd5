"""Templates compiled for the place they stand in, so that no value can reach outside of it.

Every variable is looked up in one flat map from the name as written to its value; who fills that map is the planner's
business. Variables of binds are put in while compiling. A value is percent-encoded in a path (`/` included), encoded in
queries and forms, JSON in JSON, text without line breaks in headers. Null counts as absent everywhere but in JSON.

Raises while compiling: TemplateInvalid (no template), Unresolved (a bind without value; callers turn it into a refusal
of each call).
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import msgspec
import orjson

from toolcrib.capability.binds import Binds
from toolcrib.capability.forms import FORMS, form_fields
from toolcrib.capability.spec import ABSENT
from toolcrib.capability.template_text import Part, TemplateInvalid, Variable, parse
from toolcrib.errors import Invalid

Values = Mapping[str, Any]
Native = Callable[[Values], Any]
_PATH_SAFE = "/:@!$&'()*+,;=~%-._"
_CONTROL = dict.fromkeys((*range(32), 127), " ")
_BOM = b"\xef\xbb\xbf"
_DOTS = frozenset({".", ".."})
_XML_ENTITIES = {'"': "&quot;", "'": "&apos;"}


class RawBody:
    """A body as it came in: relayed byte for byte unless a part of it is needed."""

    __slots__ = ("_looked", "_tree", "content_type", "data")

    def __init__(self, data: bytes, content_type: str | None) -> None:
        self.data = data
        self.content_type = content_type
        self._tree: Any = ABSENT
        self._looked = False

    def tree(self) -> Any:
        """The body as JSON, or the fields of a form as members; ABSENT if it is neither."""
        if self._tree is ABSENT and not self._looked:
            self._looked = True
            media = (self.content_type or "").partition(";")[0].strip().lower()
            if media in FORMS:
                self._tree = form_fields(self.data, self.content_type or "")
                return self._tree
            try:
                self._tree = orjson.loads(self.data.removeprefix(_BOM))
            except orjson.JSONDecodeError:
                return ABSENT
        return self._tree

    @property
    def says_json(self) -> bool:
        """Whether it calls itself JSON, or nothing at all."""
        media = (self.content_type or "application/json").partition(";")[0].strip().lower()
        return media.endswith(("/json", "+json"))

    def check(self) -> None:
        """Raise Invalid when it calls itself JSON and is not."""
        if self.says_json:
            try:
                msgspec.json.decode(self.data.removeprefix(_BOM), type=msgspec.Raw)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise Invalid("body.not_json", f"The request body is not JSON: {error}.", field="body") from None


def as_text(value: Any) -> str:
    """A value as text: scalars as people write them, anything else as JSON, absent and null as nothing."""
    if isinstance(value, str):
        return value
    if value is ABSENT or value is None:
        return ""
    if isinstance(value, RawBody):
        return value.data.decode("utf-8", "replace")
    return as_json(value).decode()


def as_json(value: Any) -> bytes:
    """A value as JSON. Raises Invalid when it cannot be written."""
    if isinstance(value, RawBody):
        tree = value.tree()
        return as_json(value.data.decode("utf-8", "replace")) if tree is ABSENT else value.data.removeprefix(_BOM)
    try:
        return orjson.dumps(value, default=_raw_tree)
    except (orjson.JSONEncodeError, RecursionError):
        pass
    try:  # integers beyond 64 bits
        return msgspec.json.encode(value, enc_hook=_raw_tree)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise Invalid("value.not_json", f"A value cannot be written as JSON: {error}.") from None


def _raw_tree(value: Any) -> Any:
    if isinstance(value, RawBody):
        tree = value.tree()
        return value.data.decode("utf-8", "replace") if tree is ABSENT else tree
    raise TypeError(f"{type(value).__name__} is no JSON")


def _filled(parts: list[Part], binds: Binds, write: Callable[[str], str] = str) -> tuple[Part, ...]:
    """The parts with the values of binds put in, and neighbouring texts joined."""
    out: list[Part] = []
    for part in parts:
        new = part
        if isinstance(part, Variable) and binds.declares(part.name):
            new = write(binds.constant(part.name))
        if isinstance(new, str) and out and isinstance(out[-1], str):
            out[-1] += new
        else:
            out.append(new)
    return tuple(out)


def _names(parts: tuple[Part, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.name for part in parts if isinstance(part, Variable)))


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """A base URI or a path, with `{x}` and `{{x}}` alike."""

    parts: tuple[Part, ...] = field(repr=False)
    names: tuple[str, ...]
    fixed: str | None = field(default=None, repr=False)  # the whole of it when there are no variables

    @classmethod
    def compile(cls, text: str, binds: Binds, *, base: bool = False) -> "PathTemplate":
        """`base` says that literals and binds are written as they are: a whole URL may come from a bind."""
        parts = _filled(parse(text, single=True), binds, str if base else encode_segment)
        if not base:
            parts = tuple(quote(part, safe=_PATH_SAFE) if isinstance(part, str) else part for part in parts)
        names = _names(parts)
        return cls(parts, names, None if names else "".join(map(str, parts)))

    def render(self, values: Values) -> str:
        """Raises Invalid naming a variable that has no value, or whose value climbs out of its segment."""
        if self.fixed is not None:
            return self.fixed
        out = []
        for part in self.parts:
            if isinstance(part, str):
                out.append(part)
                continue
            text = as_text(values.get(part.name, ABSENT))
            if not text:
                raise Invalid("parameter.missing", f"The path needs a value for {part.name}.", field=part.name)
            if "." in text and not _DOTS.isdisjoint(text.replace("\\", "/").split("/")):
                # many servers decode %2F before they resolve dots; `.{a}` cannot climb either without such a value
                message = f"{part.name} may not have . or .. segments in a path."
                raise Invalid("parameter.climbs", message, field=part.name)
            out.append(encode_segment(text, part.name))
        return "".join(out)


def encode_segment(text: str, name: str = "a path value") -> str:
    """A path value, percent-encoded once; raises Invalid for text that no URL can carry."""
    try:
        return quote(text, safe="-._~")
    except UnicodeEncodeError:
        raise Invalid("parameter.not_text", f"{name} is not text that can be sent.", field=name) from None


def encode_query(text: str, name: str) -> str:
    """A query or form value; raises Invalid for text that no URL can carry."""
    try:
        return quote_plus(text)
    except UnicodeEncodeError:
        raise Invalid("parameter.not_text", f"{name} is not text that can be sent.", field=name) from None


@dataclass(frozen=True, slots=True)
class TextTemplate:
    """Plain text with variables."""

    parts: tuple[Part, ...] = field(repr=False)
    names: tuple[str, ...]

    @classmethod
    def compile(cls, text: str, binds: Binds) -> "TextTemplate":
        """A text that is nothing but the name of a declared bind variable is that variable."""
        parsed: list[Part] = [Variable(text)] if text and binds.declares(text) else parse(text)
        parts = _filled(parsed, binds)
        return cls(parts, _names(parts))

    def render(self, values: Values) -> str:
        """The text, absent values left out."""
        return "".join(p if isinstance(p, str) else as_text(values.get(p.name, ABSENT)) for p in self.parts)

    def native(self, values: Values) -> Any:
        """The value itself where the text is one variable; ABSENT when there are variables and none has a value."""
        parts = self.parts
        if len(parts) == 1 and isinstance(parts[0], Variable):
            return values.get(parts[0].name, ABSENT)
        if self.names and all(values.get(name) is None or values[name] is ABSENT for name in self.names):
            return ABSENT
        return self.render(values)


def header_text(value: Any) -> str:
    """A value as a header's, on one line."""
    text = ", ".join(map(as_text, value)) if isinstance(value, list) else as_text(value)
    return text.translate(_CONTROL).strip()


def compile_native(data: Any, binds: Binds) -> tuple[Native, tuple[str, ...]]:
    """A structure whose texts are templates, as a function of the values, and the names it uses.

    A text that is one variable gives the value itself. A member whose value is absent is left out.
    """
    if isinstance(data, str):
        template = TextTemplate.compile(data, binds)
        if not template.names:
            text = template.render({})
            return (lambda _: text), ()
        return template.native, template.names
    if isinstance(data, dict):
        members = [(str(key), *compile_native(value, binds)) for key, value in data.items()]
        names = tuple(dict.fromkeys(name for _, _, used in members for name in used))

        def build(values: Values) -> Any:
            return {key: value for key, make, _ in members if (value := make(values)) is not ABSENT}

        return build, names
    if isinstance(data, list):
        items = [compile_native(value, binds) for value in data]
        names = tuple(dict.fromkeys(name for _, used in items for name in used))

        def build_list(values: Values) -> Any:
            return [value for make, _ in items if (value := make(values)) is not ABSENT]

        return build_list, names
    return (lambda _: data), ()


@dataclass(frozen=True, slots=True)
class JsonText:
    """A JSON body written as text: values become JSON outside of strings, and are escaped inside them."""

    parts: tuple[str | tuple[str, bool], ...] = field(repr=False)  # a variable with whether it stands in a string
    names: tuple[str, ...]

    @classmethod
    def compile(cls, text: str, binds: Binds) -> "JsonText":
        """Raises TemplateInvalid when the text can never give JSON."""
        parts: list[str | tuple[str, bool]] = []
        inside = False
        for part in parse(text):
            if isinstance(part, Variable):
                if binds.declares(part.name):
                    written = as_json(binds.constant(part.name)).decode()
                    parts.append(written[1:-1] if inside else written)
                else:
                    parts.append((part.name, inside))
                continue
            inside = _in_string(part, inside=inside)
            parts.append(part)
        names = tuple(dict.fromkeys(part[0] for part in parts if not isinstance(part, str)))
        template = cls(tuple(parts), names)
        # a variable inside an escape (`\u00{{ a }}`) would change what follows it: "x" is part of no escape
        for probe in (template.render({}), template.render(dict.fromkeys(names, "x"))):
            try:
                orjson.loads(probe)
            except orjson.JSONDecodeError as error:
                raise TemplateInvalid(f"the body gives no JSON: {error}") from None
        return template

    def render(self, values: Values) -> bytes:
        """The body in bytes; an absent value is null, or nothing inside a string."""
        out = []
        for part in self.parts:
            if isinstance(part, str):
                out.append(part.encode())
                continue
            name, in_string = part
            value = values.get(name, ABSENT)
            if in_string:
                out.append(as_json(as_text(value))[1:-1])
            else:
                out.append(b"null" if value is ABSENT else as_json(value))
        return b"".join(out)


def _in_string(text: str, *, inside: bool) -> bool:
    """Whether the end of a piece of JSON text stands in a string, given how its beginning did."""
    skip = False
    for char in text:
        if skip:
            skip = False
        elif char == "\\":
            skip = inside
        elif char == '"':
            inside = not inside
    return inside


def xml_text(template: TextTemplate, values: Values) -> str:
    """A text whose values are escaped for XML."""
    return "".join(
        part if isinstance(part, str) else escape(as_text(values.get(part.name, ABSENT)), _XML_ENTITIES)
        for part in template.parts
    )


def form_text(pairs: Mapping[str, Any]) -> str:
    """Pairs as application/x-www-form-urlencoded: lists repeat the name, null is left out, objects are JSON."""
    return "&".join(
        f"{quote_plus(name)}={encode_query(as_text(item), name)}"
        for name, value in pairs.items()
        if value is not None and value is not ABSENT
        for item in (value if isinstance(value, list) else [value])
    )


def multipart(parts: list[dict[str, Any]]) -> tuple[bytes, str]:
    """A multipart/form-data body and its content type; each part has name, value, and maybe filename, contentType."""
    boundary = secrets.token_hex(16)
    out = bytearray()
    for part in parts:
        value = part.get("value")
        if value is None:
            continue
        disposition = f'form-data; name="{_quoted(as_text(part.get("name")))}"'
        if part.get("filename") is not None:
            disposition += f'; filename="{_quoted(as_text(part["filename"]))}"'
        out += f"--{boundary}\r\nContent-Disposition: {disposition}\r\n".encode("utf-8", "replace")
        media = part.get("contentType") or ("application/json" if isinstance(value, dict | list) else None)
        if media:
            out += f"Content-Type: {header_text(media)}\r\n".encode("utf-8", "replace")
        out += b"\r\n" + (value.data if isinstance(value, RawBody) else as_text(value).encode("utf-8", "replace"))
        out += b"\r\n"
    out += f"--{boundary}--\r\n".encode()
    return bytes(out), f"multipart/form-data; boundary={boundary}"


def _quoted(text: str) -> str:
    """As browsers write names of form fields."""
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
