"""Running what is exposed: one call, a mock, or a sequence of steps; and shaping what came back.

Everything here was compiled by the planner; a call only looks values up, sends, and maps. An upstream's error status is
an answer, not an exception; what cannot be answered raises AppError.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import msgspec
import orjson

from toolcrib.capability.formats import BINARY, BLOCKING_BYTES, TEXT, Format
from toolcrib.capability.inputs import Inputs
from toolcrib.capability.jsonpath import Path
from toolcrib.capability.mapping import MISSING, OutputPlan
from toolcrib.capability.operation import Operation, query_pairs
from toolcrib.capability.references import Overlay, Source, plain
from toolcrib.capability.reply import Reply
from toolcrib.capability.scripts import Script, Scripts
from toolcrib.capability.spec import ABSENT
from toolcrib.capability.telemetry import Telemetry
from toolcrib.capability.templates import RawBody, as_json, as_text
from toolcrib.capability.tracing import Recorder
from toolcrib.capability.upstream import Pagination, Upstream, UpstreamRequest, fetch_all
from toolcrib.core.http import OutboundResponse
from toolcrib.errors import AppError, Invalid
from toolcrib.errors import Upstream as UpstreamFailed

JSON_MEDIA = "application/json"
_LARGE_JSON = 1 << 20  # bytes that take about ten milliseconds
# What may go on to the caller: facts about the answer, never about the connection, and no cookies.
_PASSED = (
    *("location", "retry-after", "link", "cache-control", "expires", "content-language", "allow", "deprecation"),
    *(
        "sunset",
        "x-toolcrib-truncated",
        "www-authenticate",
        "x-request-id",
        "x-total-count",
        "x-next-page",
        "x-page",
        "x-per-page",
    ),
)
_PASSED_PREFIXES = ("x-ratelimit-", "ratelimit", "x-pagination")
_OF_THE_BODY = ("etag", "last-modified", "content-disposition", "accept-ranges")


class Action(Protocol):
    """Something that can be run with inputs."""

    async def run(self, inputs: Inputs) -> Reply:
        """Run it. Raises AppError."""
        ...


@dataclass(frozen=True, slots=True)
class Broken:
    """What cannot be run; every call gets the reason."""

    error: AppError

    async def run(self, inputs: Inputs) -> Reply:  # noqa: ARG002 - the shape of Action
        """Raise the reason."""
        raise self.error.with_traceback(None)  # shared: its traceback must not grow with each call


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one consumed operation: where each of its slots comes from, and what its answer becomes."""

    operation: Operation
    upstream: Upstream
    format: Format
    sources: tuple[tuple[str, Source], ...]  # the body's last: of a tool's arguments it may be what is left over
    outputs: OutputPlan | None  # None relays the answer as it is
    recorder: Recorder
    pagination: Pagination | None = None
    query: tuple[tuple[str, Source], ...] = ()  # beyond what the operation declares

    async def run(self, inputs: Inputs) -> Reply:
        """Send the request and map the answer."""
        return await self.shape(await self.send(inputs), inputs)

    async def send(self, inputs: Inputs) -> OutboundResponse:
        """Send the request."""
        values: dict[str, Any] = {}
        for name, source in self.sources:
            value = source(inputs)
            if value is not ABSENT:
                values[name] = value
        more = self._more(inputs) if self.query else inputs.open_query()
        request = self.operation.request(values, more)
        if not self.recorder.active:
            return await self._exchange(request)
        attributes = {"http.request.method": request.method, "naftiko.operation": request.operation}
        with self.recorder.span(f"http.client.{request.method}", "CLIENT", attributes) as span:
            response = await self._exchange(request)
            span.set("http.response.status_code", response.status)
            if response.status >= 500:
                span.fail(str(response.status))
            return response

    def _more(self, inputs: Inputs) -> str:
        """What goes into the query beside what the operation declares."""
        pairs = [pair for name, source in self.query for pair in query_pairs(name, source(inputs))]
        passed = inputs.open_query()
        return "&".join([*pairs, passed] if passed else pairs)

    async def _exchange(self, request: UpstreamRequest) -> OutboundResponse:
        if self.pagination is not None:
            return await fetch_all(self.upstream.send, request, self.pagination)
        return await self.upstream.send(request)

    async def shape(self, response: OutboundResponse, inputs: Inputs) -> Reply:
        """The answer as the caller gets it."""
        body, status = response.body, response.status
        if not body:
            return Reply(status, b"", None, passed_headers(response, whole=True))
        media = response.headers.get("content-type")
        outputs, failed = self.outputs, status >= 400
        if outputs is None or self.format.name == BINARY or (outputs.identity and self.format.name == TEXT):
            return Reply(status, body, media or "application/octet-stream", passed_headers(response, whole=True))
        if outputs.identity and self.format.is_json:
            if not _is_json(body):
                if failed:
                    return Reply(status, body, media or "text/plain", passed_headers(response, whole=True))
                raise _unreadable(self.operation, "json")
            says_json = media is not None and "json" in media.lower()
            return Reply(status, body, media if says_json else JSON_MEDIA, passed_headers(response, whole=True))
        try:
            tree = await self._decoded(body, media)
        except UpstreamFailed:
            if not failed:
                raise
            return Reply(status, body, media or "text/plain", passed_headers(response, whole=True))
        if outputs.identity:
            mapped = tree
        else:
            mapped = outputs.apply_error(tree, inputs) if failed else outputs.apply(tree, inputs)
        if mapped is MISSING:
            return Reply(status, body, media or JSON_MEDIA, passed_headers(response, whole=True))
        return Reply(status, as_json(mapped), JSON_MEDIA, passed_headers(response, whole=False))

    async def _decoded(self, body: bytes, media: str | None) -> Any:
        """The tree of a body; a large one is read beside the event loop."""
        charset = charset_of(media)
        if len(body) > (_LARGE_JSON if self.format.is_json else BLOCKING_BYTES):
            return await self.format.decode_aside(body, charset)
        return self.format.decode(body, charset)

    async def tree(self, response: OutboundResponse) -> Any:
        """The answer's body as a tree for later steps; MISSING when it is none.

        Raises:
            Upstream: a success is not what the file says it is; without a word about it, JSON is only a guess.
        """
        if not response.body:
            return MISSING
        try:
            return await self._decoded(response.body, response.headers.get("content-type"))
        except UpstreamFailed:
            if response.status >= 400 or self.format.is_json:
                return MISSING
            raise


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        try:
            orjson.loads(body.removeprefix(b"\xef\xbb\xbf"))
        except orjson.JSONDecodeError:
            return False
    return True


def _unreadable(operation: Operation, name: str) -> UpstreamFailed:
    return UpstreamFailed(
        "upstream.undecodable", f"{operation.namespace}.{operation.name} answered with a body that is no {name}."
    )


def charset_of(media: str | None) -> str | None:
    """The charset parameter of a content type."""
    if media is None or "charset=" not in media.lower():
        return None
    return media.lower().partition("charset=")[2].partition(";")[0].strip('" ') or None


def passed_headers(response: OutboundResponse, *, whole: bool) -> tuple[tuple[str, str], ...]:
    """The headers that go on to the caller; those about the body only if it goes on unchanged (`whole`)."""
    headers = response.headers.items()
    return tuple([pair for pair in headers if _passes(pair[0]) or (whole and pair[0] in _OF_THE_BODY)])


@functools.lru_cache(1024)
def _passes(name: str) -> bool:
    """Whether a header of that name (in lower case) goes on in any case."""
    return name in _PASSED or name.startswith(_PASSED_PREFIXES)


@dataclass(frozen=True, slots=True)
class Mock:
    """An answer made of static values."""

    build: Callable[[Inputs], Any]

    async def run(self, inputs: Inputs) -> Reply:
        """200 with the values, 204 when there are none."""
        value = self.build(inputs)
        return Reply(204) if value is MISSING else Reply(200, as_json(value), JSON_MEDIA)


@dataclass(frozen=True, slots=True)
class Given:
    """An action that gets further values by name: a `with` in front of a reference or of steps."""

    action: Action
    values: tuple[tuple[str, Source], ...]

    async def run(self, inputs: Inputs) -> Reply:
        """Run it with the values on top of the inputs."""
        given = {name: value for name, source in self.values if (value := source(inputs)) is not ABSENT}
        return await self.action.run(Overlay(inputs, given) if given else inputs)


@dataclass(frozen=True, slots=True)
class CallStep:
    """Calls an operation and stores its answer."""

    kind: ClassVar[str] = "call"
    name: str
    call: Call
    store: Callable[[Any, Inputs], Any]


@dataclass(frozen=True, slots=True)
class LookupStep:
    """Finds entries of an earlier step's list by a field."""

    kind: ClassVar[str] = "lookup"
    name: str
    index: str
    match: str
    path: Path | None  # rooted at the steps
    value: Source | None
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScriptStep:
    """Runs a script."""

    kind: ClassVar[str] = "script"
    name: str
    script: Script
    values: tuple[tuple[str, Source], ...]


@dataclass(frozen=True, slots=True)
class Steps:
    """A sequence of steps, and what their results become."""

    steps: tuple[CallStep | LookupStep | ScriptStep, ...]
    mappings: tuple[tuple[tuple[str, ...], Path], ...]
    outputs: OutputPlan | None
    scripts: Scripts
    telemetry: Telemetry
    namespace: str

    async def run(self, inputs: Inputs) -> Reply:
        """Run the steps in order; an error status of one does not stop the next."""
        stored: dict[str, Any] = {}
        last: tuple[Call, OutboundResponse] | None = None
        failed: tuple[Call, OutboundResponse] | None = None
        for step in self.steps:
            scope = Overlay(inputs, {}, stored)
            started = time.perf_counter()
            with self.telemetry.recorder.span(f"step.{step.kind}", attributes={"naftiko.step": step.name}):
                if isinstance(step, CallStep):
                    response = await step.call.send(scope)
                    last = step.call, response
                    if failed is None and response.status >= 400:
                        failed = last
                    value = await step.call.tree(response)
                    if value is not MISSING:
                        value = step.store(value, scope)
                elif isinstance(step, LookupStep):
                    value = _look_up(step, scope, stored)
                else:
                    value = await self._script(step, scope)
            self.telemetry.observe_step(step.kind, self.namespace, time.perf_counter() - started)
            if value is not MISSING:
                stored[step.name] = value
        return await self._answer(stored, last, failed, Overlay(inputs, {}, stored))

    async def _script(self, step: ScriptStep, scope: Inputs) -> Any:
        context = scope.known()
        context |= {name: plain(value) for name, source in step.values if (value := source(scope)) is not ABSENT}
        value = await self.scripts.run(step.script, {name: plain(item) for name, item in context.items()})
        return MISSING if value is ABSENT else value

    async def _answer(
        self,
        stored: dict[str, Any],
        last: "tuple[Call, OutboundResponse] | None",
        failed: "tuple[Call, OutboundResponse] | None",
        scope: Inputs,
    ) -> Reply:
        """What the mappings find; else the first failure, rather than other data; else the last answer."""
        if self.mappings:
            found: dict[str, Any] = {}
            for target, path in self.mappings:
                value = path(stored)
                if value is not None:
                    _nest(found, target, value)
            if found:
                return Reply(200, as_json(found), JSON_MEDIA)
            last = failed or last
        if last is None:
            value = stored.get(self.steps[-1].name, MISSING)
            if value is not MISSING and self.outputs is not None:
                mapped = self.outputs.apply(value, scope)
                value = value if mapped is MISSING else mapped
            return Reply(204) if value is MISSING else Reply(200, as_json(value), JSON_MEDIA)
        call, response = last
        return await replace(call, outputs=self.outputs).shape(response, scope)


def _nest(target: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        below = target.setdefault(part, {})
        if not isinstance(below, dict):
            below = target[part] = {}
        target = below
    target[path[-1]] = value


def _look_up(step: LookupStep, scope: Inputs, stored: dict[str, Any]) -> Any:
    """The listed fields of the entries that match; MISSING when none does."""
    if step.index not in stored:
        raise Invalid("step.index_unknown", f"The step {step.name} looks into {step.index}, which stored nothing.")
    entries = stored[step.index]
    rows = entries if isinstance(entries, list) else [entries]
    by_value: dict[str, Any] = {}
    for row in rows:
        if isinstance(row, dict) and row.get(step.match) is not None:
            by_value.setdefault(as_text(row[step.match]), row)
    wanted = step.path(stored) if step.path is not None else step.value(scope) if step.value is not None else None
    if wanted is None or wanted is ABSENT:
        return MISSING
    if isinstance(wanted, RawBody):
        wanted = plain(wanted)
    if isinstance(wanted, list):
        hits = [by_value[text] for item in wanted if (text := as_text(item)) in by_value]
        return [{name: hit.get(name) for name in step.fields} for hit in hits] if hits else MISSING
    hit = by_value.get(as_text(wanted))
    return MISSING if hit is None else {name: hit.get(name) for name in step.fields}
