"""A consumed operation, compiled: which values it needs (its slots), and the request they make.

Nothing is looked up here: the planner binds each slot to where its value comes from. A value goes only to the place its
slot has; a header or query parameter that carries configured credentials has no slot at all.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, quote_plus, unquote_plus

from toolcrib.capability.binds import Binds, Unresolved
from toolcrib.capability.inputs import to_declared
from toolcrib.capability.names import match, normalise
from toolcrib.capability.sparql import sparql_text
from toolcrib.capability.spec import ABSENT, Body, Consumed, ConsumedOperation, ConsumedResource, Input
from toolcrib.capability.template_text import TemplateInvalid, variables
from toolcrib.capability.templates import (
    JsonText,
    Native,
    PathTemplate,
    RawBody,
    TextTemplate,
    as_json,
    as_text,
    compile_native,
    encode_query,
    form_text,
    header_text,
    multipart,
    xml_text,
)
from toolcrib.capability.upstream import Policy, UpstreamRequest
from toolcrib.errors import AppError, Invalid, Upstream

WRITES = frozenset({"POST", "PUT", "PATCH"})
_SINGLE = re.compile(r"(?<!\{)\{([^{}]+)\}(?!\})")
_SOLE = re.compile(r"\{\{\{?[^{}]+\}?\}\}")
RELAYED = "body"  # the slot of a body that nothing describes
_JSON = "application/json"
_TEXT_TYPES = {"text": "text/plain; charset=utf-8", "xml": "application/xml", "sparql": "application/sparql-query"}
_FORM = "application/x-www-form-urlencoded"
# Headers of the connection, which nobody but the outbound client sets.
FRAMING = frozenset(
    {
        *("accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    }
)

Values = dict[str, Any]
MakeBody = Callable[[Values], tuple[bytes | None, str | None]]


@dataclass(frozen=True, slots=True)
class Slot:
    """A value that the operation can take.

    `kind` is where it goes: path query header cookie body template environment, or relay (a body nothing describes).
    `own_key` tells a part of the body from a path variable of the same name: they may have different values.
    """

    name: str
    kind: str
    required: bool
    input: Input | None = None  # its declaration, if it has one
    own_key: str = ""

    @property
    def key(self) -> str:
        """What its value is called among the values of a request."""
        return self.own_key or self.name


@dataclass(frozen=True, slots=True)
class Field:
    """A query pair, header or cookie: its name on the wire, and its value out of the slots."""

    name: str
    value: Native
    is_list: str = "repeat"


@dataclass(slots=True)
class Operation:
    """A consumed operation ready to make requests.

    `broken` is what every call is answered instead, when it cannot be made into a request at all.
    """

    namespace: str
    name: str
    method: str
    slots: dict[str, Slot] = field(default_factory=dict)
    base: PathTemplate | None = None
    path: PathTemplate | None = None
    derived: list[tuple[str, Native]] = field(default_factory=list)
    query: list[Field] = field(default_factory=list)
    headers: list[Field] = field(default_factory=list)
    cookies: list[Field] = field(default_factory=list)
    make_body: MakeBody | None = None
    body_slot: str | None = None  # the slot whose value is the whole body
    broken: AppError | None = None
    policy: Policy | None = None  # where it differs from that of the API
    declares_query: bool = False
    defaults: dict[str, str] = field(default_factory=dict, repr=False)  # of slots that nobody gives
    typed: list[tuple[str, Callable[[Any], Any]]] = field(default_factory=list)  # slots of bodies that are no texts
    sole: str | None = None  # the variable that alone is the whole body
    declared: frozenset[str] = frozenset()  # normalised names of all inputs, and of what authentication sets
    secret_query: frozenset[str] = frozenset()  # normalised names of query values that only authentication may set

    @property
    def path_slots(self) -> list[str]:
        """The variables of the path and the base URI, in order."""
        return [slot.name for slot in self.slots.values() if slot.kind == "path"]

    def request(self, values: Values, extra_query: str = "") -> UpstreamRequest:
        """The request for these values of slots.

        Raises:
            Invalid: a required value is absent, or one cannot stand where it belongs; `field` names the slot.
            AppError: `broken`.
        """
        if self.broken is not None:
            raise self.broken.with_traceback(None)  # shared: its traceback must not grow with each call
        self._complete(values)
        self._must_have(values)
        assert self.base is not None and self.path is not None  # noqa: S101, PT018 - set unless broken
        url = self.base.render(values)
        path = self.path.render(values)
        if path:
            url = f"{url.rstrip('/')}/{path.lstrip('/')}"
        query = self._query(values)
        if extra_query and (extra_query := self.harmless(extra_query)):
            query = f"{query}&{extra_query}" if query else extra_query
        if query:
            url = f"{url}{'&' if '?' in url else '?'}{query}"
        headers = [(f.name, text) for f in self.headers if (text := _header(f.value(values))) is not None]
        if self.cookies and (text := self._cookies(values)):
            headers.append(("Cookie", text))
        body, media = self.make_body(values) if self.make_body is not None else (None, None)
        if media is not None and not any(name.lower() == "content-type" for name, _ in headers):
            headers.append(("Content-Type", media))
        return UpstreamRequest(self.method, url, headers, body, f"{self.namespace}.{self.name}", policy=self.policy)

    def _complete(self, values: Values) -> None:
        """Add what the file says, and bring what is declared to be no text to its type."""
        for name, text in self.defaults.items():
            values.setdefault(name, text)
        for name, convert in self.typed:
            if isinstance(values.get(name), str):
                values[name] = convert(values[name])
        for name, make in self.derived:
            found = make(values)
            if found is not ABSENT and found != "":
                values[name] = found

    def harmless(self, query: str) -> str:
        """A caller's query without what could pass for credentials, however it is spelled."""
        if not self.secret_query:
            return query
        named = ((normalise(unquote_plus(pair.partition("=")[0]).strip()), pair) for pair in query.split("&"))
        return "&".join(pair for name, pair in named if name not in self.secret_query)

    def _must_have(self, values: Values) -> None:
        for slot in self.slots.values():
            if slot.required and slot.kind != "path" and values.get(slot.key, ABSENT) is ABSENT:
                where = "request body" if slot.kind in {"body", "relay"} else f"{slot.kind} parameter {slot.name}"
                raise Invalid("parameter.missing", f"The {where} is required.", field=slot.name)

    def _cookies(self, values: Values) -> str:
        found = [(f.name, f.value(values)) for f in self.cookies]
        return "; ".join(f"{name}={_cookie(v)}" for name, v in found if v is not ABSENT and v is not None)

    def _query(self, values: Values) -> str:
        pairs = []
        for f in self.query:
            pairs += query_pairs(f.name, f.value(values), is_list=f.is_list)
        return "&".join(pairs)


def query_pairs(name: str, value: Any, *, is_list: str = "repeat") -> list[str]:
    """The encoded pairs of a query parameter; none without a value."""
    if value is ABSENT or value is None:
        return []
    items = value if isinstance(value, list) and is_list == "repeat" else [value]
    key = quote_plus(name, safe="[]$.-_~:@!")
    return [f"{key}={encode_query(as_text(item), name)}" for item in items]


def _header(value: Any) -> str | None:
    text = "" if value is ABSENT or value is None else header_text(value)
    return text or None


def _cookie(value: Any) -> str:
    return quote(as_text(value), safe="!#$%&'()*+-./:<=>?@[]^_`{|}~")


def compile_operation(
    consumed: Consumed,
    resource: ConsumedResource,
    operation: ConsumedOperation,
    binds: Binds,
    *,
    base_uri: str,
    credential_fields: frozenset[tuple[str, str]],
    relay: bool = True,
) -> Operation:
    """Compile one operation.

    Args:
        consumed: the API it belongs to.
        resource: the resource it belongs to.
        operation: itself.
        binds: the variables of the document.
        base_uri: where the API really is; empty if nobody said.
        credential_fields: (`header` or `query`, normalised name) of what authentication sets.
        relay: whether a write operation that describes no body passes the caller's on.

    A template that is broken or needs a bind without value makes an operation whose calls say so.
    """
    op = Operation(consumed.namespace, operation.name, operation.method)
    inputs = _merged(consumed.inputs, resource.inputs, operation.inputs)
    credentials = {name for _, name in credential_fields}
    op.declared = frozenset({"authorization", *credentials, *(normalise(i.name) for i in inputs)})
    inputs = [i for i in inputs if (i.location or "query", normalise(i.name)) not in credential_fields]
    op.secret_query = frozenset(name for place, name in credential_fields if place == "query")
    try:
        _compile_url(op, base_uri, resource.path, binds)
        _compile_inputs(op, inputs, binds)
        _take_fragment(op, resource.path)
        _compile_body(op, operation.body, inputs, binds, relay=relay)
    except Unresolved as unresolved:
        op.broken = unresolved.refusal()
    except TemplateInvalid as error:
        op.broken = Upstream("operation.invalid", f"{op.namespace}.{op.name} cannot be called: {error}.")
    except Invalid as error:  # a bind's value cannot be sent; the message does not hold it
        op.broken = Upstream("operation.invalid", f"{op.namespace}.{op.name} cannot be called: {error.message}")
    if not base_uri and op.broken is None:
        variable = "NAFTIKO_BASE_URI_" + "".join(c if c.isalnum() else "_" for c in consumed.namespace).upper()
        op.broken = Upstream(
            "upstream.no_base_uri",
            f"The capability does not say where {consumed.namespace} is: "
            f"start with --base-uri {consumed.namespace}=https://... or set {variable}.",
        )
    _attach_declarations(op, inputs)
    return op


def _merged(*levels: tuple[Input, ...]) -> list[Input]:
    """Inputs of all levels; a later one replaces an earlier one of the same name and place."""
    found: dict[tuple[str, str | None], Input] = {}
    for level in levels:
        for item in level:
            name = item.name.lower() if item.location == "header" else item.name
            found[name, item.location] = item
    return list(found.values())


def _compile_url(op: Operation, base_uri: str, path: str, binds: Binds) -> None:
    base = base_uri.partition("#")[0].rstrip("/")
    op.base = PathTemplate.compile(base, binds, base=True)
    path, mark, query = path.partition("#")[0].partition("?")
    op.path = PathTemplate.compile(path, binds)
    for name in (*op.base.names, *op.path.names):
        op.slots.setdefault(name, Slot(name, "path", required=True))
    op.defaults = {name: text for name in op.base.names if (text := binds.fallback(name)) is not None}
    if mark:
        for pair in filter(None, query.split("&")):
            key, _, text = pair.partition("=")
            template = TextTemplate.compile(_SINGLE.sub(r"{{\1}}", text), binds)
            _use(op, template.names)
            op.query.append(Field(key, template.native))


def _take_fragment(op: Operation, path: str) -> None:
    """Let what follows # be the usual value of an input that it names, as in `/#X-Amz-Target=Service.Operation`."""
    for pair in path.partition("#")[2].split("&"):
        name, _, value = pair.partition("=")
        key = match(name, op.slots) if value and "{" not in value else None
        if key is not None and op.slots[key].kind in {"header", "query"}:
            op.slots[key] = replace(op.slots[key], required=False)
            op.defaults[key] = value


def _use(op: Operation, names: tuple[str, ...]) -> None:
    for name in names:
        op.slots.setdefault(name, Slot(name, "template", required=False))


def _compile_inputs(op: Operation, inputs: list[Input], binds: Binds) -> None:
    for item in inputs:
        location = item.location or "query"
        if location == "body" or (location == "header" and item.name.lower() in FRAMING):
            continue
        if item.location is None and item.value is ABSENT and match(item.name, op.path_slots) is not None:
            continue
        op.declares_query |= location == "query"
        if item.value is not ABSENT:
            try:
                own = _compile_given(op, item, location, binds)
            except Unresolved as unresolved:  # what else the operation takes is still worth knowing
                op.broken = unresolved.refusal()
                continue
        else:
            own = _compile_open(op, item, location, binds)
        match location:
            case "query":
                written = next((f for f in op.query if f.name == item.name), None)
                if written is not None:  # in the path: what holds when nobody gives another
                    op.query.remove(written)
                    own = _either(own, written.value)
                op.query.append(Field(item.name, own))
            case "header":
                op.headers.append(Field(item.name, own))
            case "cookie":
                op.cookies.append(Field(item.name, own))


def _compile_given(op: Operation, item: Input, location: str, binds: Binds) -> Native:
    """An input with a value; what is found is a parameter too."""
    value, names = compile_native(item.value, binds)
    _use(op, names)
    target: str | None = item.name
    if location in {"path", "environment"}:  # without such a variable in the path, a path value goes nowhere
        target = match(item.name, op.path_slots) or (item.name if location == "environment" else None)
    if target is not None:
        op.derived.append((target, value))
    return _own_or_given(item.name, value)


def _compile_open(op: Operation, item: Input, location: str, binds: Binds) -> Native:
    """An input whose value the caller has; a path variable is there already, if the path has it at all."""
    variable = match(item.name, op.path_slots) if location == "environment" else None
    if variable is not None and (text := binds.environment(item.name)) is not None:
        op.defaults[variable] = text
    elif location != "path" and variable is None:
        if item.name in op.slots and op.slots[item.name].kind == "template":
            del op.slots[item.name]
        op.slots.setdefault(item.name, Slot(item.name, location, required=bool(item.required), input=item))
    return _slot_value(item.name)


def _slot_value(name: str) -> Native:
    return lambda values: values.get(name, ABSENT)


def _either(first: Native, second: Native) -> Native:
    def take(values: Mapping[str, Any]) -> Any:
        found = first(values)
        return second(values) if found is ABSENT else found

    return take


def _own_or_given(name: str, value: Native) -> Native:
    """The declared value, else a parameter of that name."""

    def own(values: Mapping[str, Any]) -> Any:
        found = value(values)
        return values.get(name, ABSENT) if found is ABSENT else found

    return own


def _attach_declarations(op: Operation, inputs: list[Input]) -> None:
    """Give slots of paths and templates the declaration that means them."""
    by_name = {item.name: item for item in inputs if item.value is ABSENT}
    for name, slot in op.slots.items():
        if slot.input is None and (key := match(name, by_name)) is not None:
            op.slots[name] = Slot(name, slot.kind, slot.required, by_name[key])


def _compile_body(op: Operation, body: Body | None, every: list[Input], binds: Binds, *, relay: bool) -> None:
    inputs = [item for item in every if item.location == "body"]
    empty = body is not None and body.type == "json" and body.data == {}  # says no more than that there is one
    if body is not None and not (body.data is ABSENT or body.data is None or empty):
        body = _with_members(body, inputs)
        op.make_body, names = _template_body(body, binds, _content_type(every))
        if isinstance(body.data, str) and body.type in {"raw", "json"} and _SOLE.fullmatch(body.data.strip()) and names:
            op.sole = names[0]
            op.make_body = _if_given(op.sole, op.make_body)
        for name in names:
            known = next((item for item in inputs if item.name == name), None)
            slot = Slot(name, "template", required=bool(known and known.required), input=known)
            op.slots.setdefault(name, slot)
            _type(op, name, known)
        return
    if len(inputs) == 1:
        item = inputs[0]
        if item.value is not ABSENT:
            op.make_body = _given_body(op, item, binds)
            return
        op.body_slot = _body_slot(op, item)
    elif inputs:
        op.make_body = _member_body(op, inputs, binds)
        return
    elif body is not None or (relay and op.method in WRITES):
        op.slots[RELAYED] = Slot(RELAYED, "relay", required=False)
        op.body_slot = RELAYED
    if op.body_slot is not None:
        op.make_body = _whole_body(op.body_slot, b"{}" if empty else None)


def _with_members(body: Body, inputs: list[Input]) -> Body:
    """The body with the body inputs that its data does not mention: they are members beside it."""
    if not isinstance(body.data, dict) or body.type not in {"json", "formUrlEncoded", "multipartForm"}:
        return body
    text = as_json(body.data).decode()
    known = [name.rpartition(".")[2] for name in variables(text)] + list(body.data)
    others = [item for item in inputs if item.name != RELAYED and match(item.name, known) is None]
    if not others:
        return body
    added = {i.name: f"{{{{{i.name}}}}}" if i.value is ABSENT else i.value for i in others}
    return replace(body, data={**body.data, **added})


def _if_given(name: str, make: MakeBody) -> MakeBody:
    return lambda values: make(values) if values.get(name, ABSENT) is not ABSENT else (None, None)


def _body_slot(op: Operation, item: Input) -> str:
    """The key of a new slot for a body or a member of it."""
    slot = Slot(item.name, "body", bool(item.required), item, f"body:{item.name}" if item.name in op.slots else "")
    op.slots[slot.key] = slot
    return slot.key


def _type(op: Operation, name: str, declared: Input | None) -> None:
    """Have what comes as text (a query value, say) stand in a JSON body as the type that is declared for it."""
    if declared is not None and (convert := to_declared(declared.type)) is not None:
        op.typed.append((name, convert))


def _content_type(inputs: list[Input]) -> str:
    """The content type that an operation sets itself, if it is a fixed one."""
    for item in inputs:
        if item.location == "header" and item.name.lower() == "content-type" and isinstance(item.value, str):
            return item.value.partition(";")[0].strip().lower()
    return ""


def _given_body(op: Operation, item: Input, binds: Binds) -> MakeBody:
    """The only body input when it has a value: that is the body."""
    value, names = compile_native(item.value, binds)
    _use(op, names)
    own = _own_or_given(item.name, value)

    def make(values: Values) -> tuple[bytes | None, str | None]:
        found = own(values)
        return _written(found)

    return make


def _written(value: Any) -> tuple[bytes | None, str | None]:
    """A value as a whole body, with its content type; the caller's own is relayed as it came."""
    if value is ABSENT:
        return None, None
    if isinstance(value, RawBody):
        value.check()
        return value.data, value.content_type or _JSON
    return as_json(value), _JSON


def _whole_body(name: str, otherwise: bytes | None) -> MakeBody:
    """The value of a slot as the body; `otherwise` is sent when there is none."""

    def make(values: Values) -> tuple[bytes | None, str | None]:
        value = values.get(name, ABSENT)
        return (otherwise, _JSON) if value is ABSENT and otherwise is not None else _written(value)

    return make


def _member_body(op: Operation, inputs: list[Input], binds: Binds) -> MakeBody:
    members: list[tuple[str, Native]] = []
    for item in inputs:
        if item.value is not ABSENT:
            value, names = compile_native(item.value, binds)
            _use(op, names)
            members.append((item.name, _own_or_given(item.name, value)))
        else:
            key = _body_slot(op, item)
            _type(op, key, item)
            members.append((item.name, _slot_value(key)))

    def make(values: Values) -> tuple[bytes | None, str | None]:
        found = {name: value for name, get in members if (value := get(values)) is not ABSENT}
        return (as_json(found), _JSON) if found else (None, None)

    return make


def _template_body(body: Body, binds: Binds, content_type: str) -> tuple[MakeBody, tuple[str, ...]]:
    data = body.data
    match body.type:
        case "raw" if isinstance(data, str):
            return _raw_body(data, binds, content_type)
        case "json" if isinstance(data, str):
            return _json_text_body(data, binds)
        case "raw" | "json":
            native, names = compile_native(data, binds)
            if not names:
                constant = as_json(native({}))
                return (lambda _: (constant, _JSON)), ()
            return (lambda values: (as_json(native(values)), _JSON)), names
        case "formUrlEncoded":
            pairs = _pairs(data) if isinstance(data, str) else data
            if not isinstance(pairs, dict):
                raise TemplateInvalid("a formUrlEncoded body needs an object or a query string")
            native, names = compile_native(pairs, binds)
            return (lambda values: (form_text(native(values)).encode(), _FORM)), names
        case "multipartForm":
            parts = [{"name": k, "value": v} for k, v in data.items()] if isinstance(data, dict) else data
            if not isinstance(parts, list) or not all(isinstance(part, dict) and part.get("name") for part in parts):
                raise TemplateInvalid("a multipartForm body needs a list of {name, value}")
            native, names = compile_native(parts, binds)
            return (lambda values: multipart(native(values))), names
        case kind:
            text = TextTemplate.compile(data if isinstance(data, str) else as_json(data).decode(), binds)
            media = _TEXT_TYPES[kind]
            write = {"xml": xml_text, "sparql": sparql_text}.get(kind, TextTemplate.render)
            return (lambda values: (write(text, values).encode("utf-8", "replace"), media)), text.names


def _pairs(text: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in text.split("&"))
    return {unquote_plus(name): unquote_plus(value) for name, _, value in pairs if name}


def _raw_body(text: str, binds: Binds, content_type: str) -> tuple[MakeBody, tuple[str, ...]]:
    """A body written as text: what its content type says, else what it looks like; without one it is called JSON."""
    write: Callable[[TextTemplate, Values], str]
    if content_type == _FORM:
        pairs, names = compile_native(_pairs(text), binds)
        return (lambda values: (form_text(pairs(values)).encode(), _FORM)), names
    if content_type.endswith(("/xml", "+xml")) or (not content_type and text.lstrip().startswith("<")):
        write = xml_text
    elif content_type == "application/sparql-query":
        write = sparql_text
    elif content_type.endswith(("/json", "+json")) or (not content_type and text.lstrip()[:1] in {"{", "[", '"'}):
        return _json_text_body(text, binds)
    else:
        write = TextTemplate.render
    plain = TextTemplate.compile(text, binds)
    return (lambda values: (write(plain, values).encode("utf-8", "replace"), content_type or _JSON)), plain.names


def _json_text_body(text: str, binds: Binds) -> tuple[MakeBody, tuple[str, ...]]:
    """A JSON body written as text. One that is no JSON goes out as it is, unless values would have to stand in it."""
    try:
        template = JsonText.compile(text, binds)
    except TemplateInvalid:
        plain = TextTemplate.compile(text, binds)
        if plain.names:
            raise
        constant = plain.render({}).encode("utf-8", "replace")
        return (lambda _: (constant, _JSON)), ()
    return (lambda values: (template.render(values), _JSON)), template.names
