"""What a caller sent, addressable by name: a REST request or the arguments of a tool, plus what steps have made of it.

A name is tried exactly, then without regard to case, then without dashes, underscores and dots; a looser match counts
only when it is the only one. In a request, path variables come before the query, the query before members of the JSON
body, those before headers and cookies. Declared inputs are checked and converted once, before anything is looked up.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, quote, unquote_plus

import orjson

from toolcrib.capability.jsonpath import compile_path
from toolcrib.capability.names import match
from toolcrib.capability.spec import ABSENT, Input
from toolcrib.capability.templates import RawBody, as_text
from toolcrib.errors import Invalid

_SCOPES = {"path": "path", "query": "query", "header": "headers", "headers": "headers", "cookie": "cookies"}
_SCOPES["cookies"] = "cookies"
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
_SCALAR = str | int | float  # bool is an int
_QUERY = re.compile(r"[!$-~]*")  # what may stand in a request line; no #
_QUERY_SAFE = "%!$'()*+,;:@/?[]-._~=&"
# Facts about the connection, not parameters: never taken for one unless the capability declares it.
PLUMBING = frozenset(
    {
        *("host", "connection", "content-length", "content-type", "accept", "accept-encoding", "accept-language"),
        *("user-agent", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "expect", "origin", "referer"),
        *("cookie", "authorization", "proxy-authorization", "traceparent", "tracestate", "forwarded", "via"),
        *("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "cache-control", "pragma"),
    }
)


class Inputs:
    """Named values; the arguments of a tool as they are."""

    def __init__(self, arguments: Mapping[str, Any], content: RawBody | None = None) -> None:
        self.declared: Mapping[str, Any] = arguments
        self.content = content
        self.used: set[str] = set()  # names of arguments that something was made of

    def get(self, name: str) -> Any:
        """The value that `name` means, following dots into it; ABSENT if there is none."""
        found = self.named(name)
        if found is not ABSENT or "." not in name:
            return found
        first, _, rest = name.partition(".")
        return dig(self.named(first), rest)

    def named(self, name: str) -> Any:
        """The value of a whole name."""
        if name in self.declared:
            self.used.add(name)
            return self.declared[name]
        found = match(name, self.declared)
        if found is None:
            return self.body() if name == "body" else ABSENT
        self.used.add(found)
        return self.declared[found]

    def body(self) -> Any:
        """The whole body: the argument `body`, else all arguments that nothing else was made of."""
        key = match("body", self.declared)
        if key is not None:
            self.used.add(key)
            return self.declared[key]
        rest = {name: value for name, value in self.declared.items() if name not in self.used}
        return rest or ABSENT

    def known(self) -> dict[str, Any]:
        """Everything that has a name, for scripts."""
        return dict(self.declared)

    def auto(self, name: str, *, members: bool) -> Any:  # noqa: ARG002 - a request decides by it
        """What fills an upstream parameter of that name that nothing was said about."""
        return self.get(name)

    def open_query(self) -> str:
        """A query string to pass on as it is."""
        return ""

    def member(self, name: str) -> Any:
        """What fills a member of an upstream body."""
        return self.get(name)

    def header(self, name: str) -> Any:
        """What may fill an upstream header of that name."""
        return self.get(name)

    def cookie(self, name: str) -> Any:
        """What may fill an upstream cookie of that name."""
        return self.get(name)


def dig(value: Any, dotted: str) -> Any:
    """Follow `a.b` into objects (and `0` into lists); ABSENT where it leads nowhere."""
    if isinstance(value, RawBody):
        value = value.tree()
    for part in dotted.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return ABSENT
    return value


class RestInputs(Inputs):
    """A REST request."""

    def __init__(
        self,
        path: Mapping[str, str],
        query_string: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        content: RawBody | None,
    ) -> None:
        super().__init__({}, content)
        self.path = path
        self._query_string = query_string
        self._raw_headers = headers
        self._query: dict[str, Any] | None = None
        self._headers: dict[str, str] | None = None
        self.passes_query = False

    def open_query(self) -> str:
        """The part of the query that nothing took, as it was sent, if it may go on."""
        text = self._query_string.decode("latin-1") if self.passes_query else ""
        if not _QUERY.fullmatch(text):
            text = quote(self._query_string, safe=_QUERY_SAFE)
        if not text or not self.used:
            return text
        pairs = [pair for pair in text.split("&") if unquote_plus(pair.partition("=")[0]) not in self.used]
        return "&".join(pairs)

    @property
    def query(self) -> dict[str, Any]:
        """Query values; a name that comes several times is a list."""
        if self._query is None:
            self._query = {}
            for name, value in parse_qsl(self._query_string.decode("latin-1"), keep_blank_values=True):
                known = self._query.get(name, ABSENT)
                if known is ABSENT:
                    self._query[name] = value
                else:
                    self._query[name] = [*known, value] if isinstance(known, list) else [known, value]
        return self._query

    @property
    def headers(self) -> dict[str, str]:
        """Header values by lower-case name, repeated ones joined."""
        if self._headers is None:
            self._headers = {}
            for raw_name, raw_value in self._raw_headers:
                name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
                self._headers[name] = f"{self._headers[name]}, {value}" if name in self._headers else value
        return self._headers

    @property
    def cookies(self) -> dict[str, str]:
        """Cookies by name."""
        pairs = (pair.partition("=") for pair in self.headers.get("cookie", "").split(";"))
        return {name.strip(): value.strip().strip('"') for name, sign, value in pairs if sign}

    @property
    def members(self) -> dict[str, Any]:
        """The members of a JSON body that is an object. Raises Invalid when it calls itself JSON and is not."""
        if self.content is None:
            return {}
        tree = self.content.tree()
        if tree is ABSENT:
            self.content.check()
        return tree if isinstance(tree, dict) else {}

    def get(self, name: str) -> Any:
        """As in the class above; `query.x`, `path.x`, `header.x` and `cookie.x` say where to look."""
        found = self.named(name)
        if found is not ABSENT or "." not in name:
            return found
        first, _, rest = name.partition(".")
        if first in _SCOPES:
            source: Mapping[str, Any] = getattr(self, _SCOPES[first])
            key = match(rest, source)
            if key is not None:
                if first == "query":
                    self.used.add(key)
                return source[key]
        return dig(self.named(first), rest)

    def named(self, name: str) -> Any:
        """The value of a whole name."""
        if name in self.declared:
            return self.declared[name]
        if name == "body":
            return self.body()
        found = self.auto(name, members=True)
        if found is not ABSENT or match(name, self.declared) is not None:
            return found
        key = match(name, (h for h in self.headers if h not in PLUMBING))
        if key is not None:
            return self.headers[key]
        key = match(name, self.cookies) if "cookie" in self.headers else None
        return ABSENT if key is None else self.cookies[key]

    def known(self) -> dict[str, Any]:
        """Declared inputs, path variables, the query and members of the body."""
        body = {} if self.content is None else {"body": self.content}
        declared = {name: value for name, value in self.declared.items() if value is not ABSENT}
        return {**self.members, **self.query, **self.path, **declared, **body}

    def auto(self, name: str, *, members: bool) -> Any:
        """As above, but never a header or a cookie; of the body only with `members`."""
        for source in (self.declared, self.path):
            if source and (key := match(name, source)) is not None:
                return source[key]
        if self._query_string and (key := match(name, self.query)) is not None:
            self.used.add(key)
            return self.query[key]
        body = self.members if members else {}
        return ABSENT if (key := match_or_none(name, body)) is None else body[key]

    def member(self, name: str) -> Any:
        """The member of the caller's own body of that name, else a parameter."""
        if match_or_none(name, self.declared) is None and (key := match_or_none(name, self.members)) is not None:
            return self.members[key]
        return self.auto(name, members=False)

    def body(self) -> Any:
        """The body as it came; ABSENT when there is none."""
        return ABSENT if self.content is None else self.content

    def header(self, name: str) -> Any:
        """The caller's own header of that name, else a parameter."""
        if name in self.declared:
            return self.declared[name]
        found = self.headers.get(name.lower())
        return found if found is not None else self.auto(name, members=False)

    def cookie(self, name: str) -> Any:
        """The caller's own cookie of that name, else a parameter."""
        if name in self.declared:
            return self.declared[name]
        found = self.cookies.get(name) if "cookie" in self.headers else None
        return found if found is not None else self.auto(name, members=False)


Read = Callable[[RestInputs], Any]


def compile_declared(
    inputs: tuple[Input, ...], environment: Callable[[str], str | None]
) -> Callable[[RestInputs], None] | None:
    """What checks and converts the declared inputs of an exposed operation and puts them into `declared`.

    Raises:
        ValueError: a pattern or a path is broken.

    Raises at the call:
        Invalid: a required input is absent, or one has the wrong type, shape or value; `field` is its name.
    """
    if not inputs:
        return None
    readers = [(item, _reader(item, environment), _checker(item)) for item in inputs]

    def declare(request: RestInputs) -> None:
        declared: dict[str, Any] = {}
        for item, read, check in readers:
            value = read(request)
            if value is ABSENT and item.default is not ABSENT:
                value = item.default
            if value is ABSENT:
                if item.required if item.required is not None else item.location == "path":
                    raise Invalid(
                        "parameter.missing",
                        f"The {item.location or 'body'} parameter {item.name} is required.",
                        field=item.name,
                    )
                declared[item.name] = ABSENT  # it has its place: nothing unchecked may stand in for it
                continue
            declared[item.name] = check(value) if check is not None else value
        request.declared = declared

    return declare


def _reader(item: Input, environment: Callable[[str], str | None]) -> Read:
    name, value = item.name, item.value
    if value is not ABSENT and not (isinstance(value, str) and value.startswith("$")):
        return lambda _: value
    match item.location:
        case "path" | "query" | "headers" | "cookies" | "header" | "cookie":
            return _part(name, _SCOPES[item.location])
        case "environment":
            return lambda _: ABSENT if (found := environment(name)) is None else found
        case _ if isinstance(value, str):
            path = compile_path(value)

            def extract(request: RestInputs) -> Any:
                tree = request.content.tree() if request.content is not None else ABSENT
                found = None if tree is ABSENT else path(tree)
                return ABSENT if found is None else found

            return extract
        case _:
            return lambda request: _body_input(request, item)


def _part(name: str, scope: str) -> Read:
    lower = name.lower()

    def read(request: RestInputs) -> Any:
        source: Mapping[str, Any] = getattr(request, scope)
        if (found := source.get(lower if scope == "headers" else name, ABSENT)) is not ABSENT:
            if scope == "query":
                request.used.add(name)
            return found
        key = match_or_none(name, source)
        if key is not None and scope == "query":
            request.used.add(key)
        return ABSENT if key is None else source[key]

    return read


def match_or_none(name: str, source: Mapping[str, Any]) -> str | None:
    """`match`, without the work when there is nothing to match."""
    return match(name, source) if source else None


def _body_input(request: RestInputs, item: Input) -> Any:
    """The member of that name, else the whole body where that can be meant."""
    if request.content is None:
        return ABSENT
    if item.name == "body":
        return request.content
    key = match_or_none(item.name, request.members)
    if key is not None:
        return request.members[key]
    tree = request.content.tree()
    if tree is ABSENT:  # `members` has refused what calls itself JSON and is not
        return request.content
    # Of an object without that member, a scalar or a list was not meant to be the whole.
    if isinstance(tree, dict) and (item.type not in {None, "object"} or item.required is False):
        return ABSENT
    return request.content


def _checker(item: Input) -> Callable[[Any], Any] | None:
    kind = item.type
    # `pattern` belongs to the capability's author; it is matched anywhere in the text, as JSON Schema has it
    pattern = _pattern(item)
    allowed = frozenset(map(as_text, item.enum))
    convert = _CONVERT.get(kind or "")
    if convert is None and pattern is None and not item.enum:
        return None

    def check(value: Any) -> Any:
        try:
            new = convert(value) if convert is not None else value
        except ValueError:
            raise Invalid("parameter.type", f"{item.name} must be of type {kind}.", field=item.name) from None
        if pattern is not None and not (isinstance(value, _SCALAR) and pattern.search(as_text(value))):
            raise Invalid("parameter.pattern", f"{item.name} does not match {item.pattern}.", field=item.name)
        if allowed and as_text(new) not in allowed:
            known = ", ".join(map(as_text, item.enum))
            raise Invalid("parameter.enum", f"{item.name} must be one of {known}.", field=item.name)
        return new

    return check


def _pattern(item: Input) -> re.Pattern[str] | None:
    try:
        return re.compile(item.pattern) if item.pattern else None
    except re.error as error:
        raise ValueError(f"the pattern of {item.name} is broken: {error}") from None


def _number(value: Any) -> Any:
    """A number; one that a float cannot hold exactly stays the text that it is."""
    if isinstance(value, RawBody):
        value = value.tree()
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value):
            raise ValueError
        if value.lstrip("-").isdigit():
            return int(value)
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
        return number if Decimal(value) == Decimal(repr(number)) else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _fail()
    return value


def _integer(value: Any) -> Any:
    number = _number(value)
    if isinstance(number, int):
        return number
    return int(number) if isinstance(number, float) and number.is_integer() else _fail()


def _boolean(value: Any) -> bool:
    if isinstance(value, RawBody):
        value = value.tree()
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"true", "false", "1", "0"}:
        return value.lower() in {"true", "1"}
    raise ValueError


def _string(value: Any) -> Any:
    """Text; a list can only be a repeated query value, an object can not be meant."""
    if isinstance(value, dict):
        return _fail()
    return value


def _array(value: Any) -> Any:
    if isinstance(value, RawBody):
        tree = value.tree()
        return value if isinstance(tree, list) else _fail()
    if isinstance(value, str):
        if value.startswith("["):
            try:
                found = orjson.loads(value)
            except orjson.JSONDecodeError:
                found = None
            if isinstance(found, list):
                return found
        return value.split(",") if "," in value else [value]
    return value if isinstance(value, list) else [value]


def _object(value: Any) -> Any:
    if isinstance(value, RawBody):
        return value if not value.says_json or isinstance(value.tree(), dict) else _fail()
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise ValueError from None
    return value if isinstance(value, dict) else _fail()


def to_declared(kind: str | None) -> Callable[[Any], Any] | None:
    """What makes a value of a declared type of a text; texts that spell none stay. None where texts are meant."""
    convert = _CONVERT.get(kind or "") if kind in {"number", "integer", "boolean"} else None
    if convert is None:
        return None

    def to(value: Any) -> Any:
        try:
            return convert(value)
        except ValueError:
            return value

    return to


def _fail() -> Any:
    raise ValueError


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "string": _string,
    "number": _number,
    "integer": _integer,
    "boolean": _boolean,
    "array": _array,
    "object": _object,
}
