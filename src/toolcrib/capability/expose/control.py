"""The control port: health, status, metrics, traces, scripting settings, reload, validate and logs of a capability.

Answers about the capability and changes nothing by itself: what is done is in `ControlHooks`. What the file does not
switch on does not exist (404). A web page must not steer it from a visitor's browser: changes from other origins are
refused, and so are host names on a port that is meant for this machine alone and asks for no credentials.
"""

import asyncio
import contextlib
import ipaddress
import platform
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from toolcrib.capability.expose.problem import (
    header_of,
    method_not_allowed,
    problem,
    refuse,
    respond,
    respond_json,
    title_of,
)
from toolcrib.capability.findings import CapabilityInvalid, Finding
from toolcrib.capability.logs import LEVELS, Follower, LogBuffer
from toolcrib.capability.spec import ControlServer
from toolcrib.capability.telemetry import METRICS_MEDIA, Telemetry
from toolcrib.core.exchange import read_body
from toolcrib.errors import AppError, Forbidden, Invalid, NotFound, RateLimited, Unavailable

_LANGUAGES: Final = ("javascript", "python", "groovy")
_SETTINGS: Final = frozenset(
    {"enabled", "timeout", "statementLimit", "defaultLocation", "defaultLanguage", "allowedLanguages"}
)
_BODY_LIMIT: Final = 64 * 1024
_FILE_LIMIT: Final = 10 * 2**20  # of a capability file to validate
_LOGS: Final = 100  # records, unless asked for more
_FOLLOWERS: Final = 16
_KEEP_ALIVE_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class AdapterState:
    """A server of the file; `namespace` and `port` None where it has none."""

    type: str
    namespace: str | None
    port: int | None
    started: bool


@dataclass(frozen=True, slots=True)
class ControlHooks:
    """What the control port asks and orders.

    Attributes:
        adapters: the servers of the file as they are now.
        capability: label and specVersion of the file that is served.
        version: of the engine.
        reload: reads the file again and swaps it in; answers the findings; raises CapabilityInvalid and keeps the old.
        validate: the findings of a text, or of the file as it is now; never raises for what it finds.
        scripting: the settings of script steps, with `stats`.
        set_scripting: takes settings that are already checked.
        logs: the last log records.
        config: the effective configuration without any secret.
    """

    adapters: Callable[[], Sequence[AdapterState]]
    capability: Callable[[], Mapping[str, Any]]
    version: str
    reload: Callable[[], Awaitable[Sequence[Finding]]] | None = None
    validate: Callable[[str | None], Awaitable[Sequence[Finding]]] | None = None
    scripting: Callable[[], Mapping[str, Any]] | None = None
    set_scripting: Callable[[Mapping[str, Any]], None] | None = None
    logs: LogBuffer | None = None
    config: Callable[[], Any] | None = None


_Route = Callable[[Scope, Receive, Send], Awaitable[None]]


def control_app(
    server: ControlServer,
    hooks: ControlHooks,
    telemetry: Telemetry,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> ASGIApp:
    """The face of the control port; its uptime begins now, in seconds of `clock`."""
    return _Control(server, hooks, telemetry, clock)


class _Control:
    def __init__(
        self, server: ControlServer, hooks: ControlHooks, telemetry: Telemetry, clock: Callable[[], float]
    ) -> None:
        self._hooks = hooks
        self._telemetry = telemetry
        self._clock = clock
        self._started_at = clock()
        self._local = server.authentication is None and _is_loopback(server.address)
        self._reloading = asyncio.Lock()
        self._routes = self._make_routes(server.management)

    def _make_routes(self, management: Mapping[str, Any]) -> Mapping[str, Mapping[str, _Route]]:
        hooks = self._hooks
        routes: dict[str, dict[str, _Route]] = {}
        if _on(management, "health", default=True):
            routes["/health/live"] = {"GET": self._live}
            routes["/health/ready"] = {"GET": self._ready}
        if _on(management, "info"):
            routes["/status"] = {"GET": self._status}
        if management.get("scripting") and hooks.scripting is not None:
            routes["/scripting"] = {"GET": self._scripting, "PUT": self._put_scripting}
        if _on(management, "reload") and hooks.reload is not None:
            routes["/reload"] = {"POST": self._reload}
        if _on(management, "validate") and hooks.validate is not None:
            routes["/validate"] = {"POST": self._validate}
        if _on(management, "logs") and hooks.logs is not None:
            routes["/logs"] = {"GET": self._logs}
        if _on(management, "config") and hooks.config is not None:
            routes["/config"] = {"GET": self._config}
        if self._telemetry.settings.enabled:
            routes["/metrics"] = {"GET": self._metrics}
            routes["/traces"] = {"GET": self._traces}
        return routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        try:
            self._refuse_strangers(scope)
            await self._dispatch(scope, receive, send)
        except CapabilityInvalid as error:
            findings = [_finding(finding) for finding in error.findings]
            extra = {"code": error.code, "error": error.message, "findings": findings}
            await problem(send, 422, title_of(422), error.message, extra=extra)
        except AppError as error:
            await refuse(send, error, accept=header_of(scope, b"accept"))

    def _refuse_strangers(self, scope: Scope) -> None:
        host = header_of(scope, b"host")
        if self._local and not _is_no_name(_host_name(host)):
            raise Forbidden("host.refused", "this port answers to localhost and addresses, not to other names")
        if scope["method"] in {"GET", "HEAD"}:
            return
        origin = header_of(scope, b"origin")
        site = header_of(scope, b"sec-fetch-site")
        if site not in {"", "none", "same-origin"} or (origin and _authority(origin) != host):
            raise Forbidden("origin.refused", "a page of another origin may not change this capability")

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        path = path[:-1] if path.endswith("/") and path != "/" else path
        routes = self._routes.get(path)
        if routes is None and path.startswith("/traces/") and "/traces" in self._routes:
            routes = {"GET": self._trace}
        if routes is None:
            raise NotFound("resource.unknown", f"this control port answers {', '.join(sorted(self._routes))}")
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if method not in routes:
            allowed = [*routes, "HEAD"] if "GET" in routes else [*routes]
            await method_not_allowed(send, allowed, accept=header_of(scope, b"accept"))
            return
        await routes[method](scope, receive, send)

    async def _live(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await respond_json(send, {"status": "UP"})

    async def _ready(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        adapters = self._hooks.adapters()
        ready = all(adapter.started for adapter in adapters if adapter.type != "control")
        document = {"status": "UP" if ready else "DEGRADED", "adapters": list(map(_adapter, adapters))}
        await respond_json(send, document, 200 if ready else 503)

    async def _status(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        document = {
            "capability": dict(self._hooks.capability()),
            "engine": {"version": self._hooks.version, "python": platform.python_version(), "native": False},
            "uptime": iso_duration(self._clock() - self._started_at),
            "otel": {"status": "active" if self._telemetry.exports_spans else "inactive"},
            "adapters": list(map(_adapter, self._hooks.adapters())),
        }
        await respond_json(send, document)

    async def _metrics(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        metrics = self._telemetry.metrics
        if metrics is None:
            raise Unavailable("metrics.inactive", "metrics are switched off (observability.metrics.local.enabled)")
        await respond(send, 200, metrics.text(), METRICS_MEDIA)

    async def _traces(self, scope: Scope, _receive: Receive, send: Send) -> None:
        traces = self._kept_traces()
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        operation, status = query.get("operation", ""), query.get("status", "").upper()
        shown = [
            {key: value for key, value in trace.items() if key != "spans"}
            for trace in traces
            if operation in trace["operation"] and status in {"", trace["status"]}
        ]
        size = self._telemetry.recorder.buffer_size
        await respond_json(send, {"traces": shown, "bufferSize": size, "bufferUsed": len(traces)})

    async def _trace(self, scope: Scope, _receive: Receive, send: Send) -> None:
        self._kept_traces()
        trace_id = scope["path"].removeprefix("/traces/").rstrip("/")
        trace = self._telemetry.recorder.find(trace_id)
        if trace is None:
            raise NotFound("trace.unknown", f"there is no trace {trace_id[:64]!r} among the last ones")
        await respond_json(send, trace)

    def _kept_traces(self) -> list[dict[str, Any]]:
        if not self._telemetry.settings.traces:
            raise Unavailable("traces.inactive", "traces are switched off (observability.traces.local.enabled)")
        return self._telemetry.recorder.traces()

    async def _scripting(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        if self._hooks.scripting is not None:
            await respond_json(send, dict(self._hooks.scripting()))

    async def _put_scripting(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            settings = orjson.loads(await read_body(receive, _BODY_LIMIT))
        except orjson.JSONDecodeError:
            raise Invalid("scripting.invalid", "the body is not JSON") from None
        if not isinstance(settings, dict):
            raise Invalid("scripting.invalid", "the body is not an object")
        _check_scripting(settings)
        if self._hooks.set_scripting is None:
            raise Unavailable("scripting.fixed", "these settings cannot be changed here")
        self._hooks.set_scripting(settings)
        await self._scripting(scope, receive, send)

    async def _reload(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        if self._hooks.reload is not None:
            async with self._reloading:
                findings = await self._hooks.reload()
            await respond_json(send, {"status": "reloaded", "findings": list(map(_finding, findings))})

    async def _validate(self, _scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive, _FILE_LIMIT)
        try:
            text = body.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Invalid("capability.not_text", "the body is not UTF-8") from None
        if self._hooks.validate is not None:
            findings = await self._hooks.validate(text if text.strip() else None)
            valid = all(finding.severity != "error" for finding in findings)
            await respond_json(send, {"valid": valid, "findings": list(map(_finding, findings))})

    async def _config(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        if self._hooks.config is not None:
            await respond_json(send, self._hooks.config())

    async def _logs(self, scope: Scope, receive: Receive, send: Send) -> None:
        logs = self._hooks.logs
        if logs is None:
            return
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        level = query.get("level", "debug").lower()
        if level not in LEVELS:
            raise Invalid("logs.level_unknown", f"level is one of {', '.join(LEVELS)}", field="level")
        limit = query.get("limit", str(_LOGS))
        if not (limit.isascii() and limit.isdigit() and len(limit) < 10):
            raise Invalid("logs.limit_invalid", "limit is a whole number", field="limit")
        records = logs.last(int(limit), level)
        if query.get("follow", "false").lower() in {"false", "0", "no"} or scope["method"] == "HEAD":
            await respond_json(send, {"records": records, "bufferSize": logs.size})
        elif logs.followers >= _FOLLOWERS:
            raise RateLimited("logs.followers", "too many are following already")
        else:
            with logs.follow(level) as follower:
                await _stream(records, follower, receive, send)


async def _stream(records: Sequence[Mapping[str, Any]], follower: Follower, receive: Receive, send: Send) -> None:
    """Records as server-sent events until the client goes."""
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"".join(map(_event, records)) or b":\n\n", "more_body": True})

    async def feed() -> None:
        async for batch, lost in follower.batches():
            gap = b"event: lost\ndata: %d\n\n" % lost if lost else b""
            await send({"type": "http.response.body", "body": gap + b"".join(map(_event, batch)), "more_body": True})

    async def keep_alive() -> None:
        while True:  # so that proxies and clients see that this is not dead
            await asyncio.sleep(_KEEP_ALIVE_S)
            await send({"type": "http.response.body", "body": b":\n\n", "more_body": True})

    async def until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work) for work in (until_gone(), feed(), keep_alive())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


def _event(record: Mapping[str, Any]) -> bytes:
    return b"event: log\ndata: " + orjson.dumps(record, default=str) + b"\n\n"


def iso_duration(seconds: float) -> str:
    """A duration in ISO 8601 with hours, minutes and seconds, to the millisecond: `PT1H2M3.456S`."""
    milliseconds = max(0, int(seconds * 1000))
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    text = (f"{hours}H" if hours else "") + (f"{minutes}M" if minutes else "")
    if rest or not text:
        text += f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "S"
    return f"PT{text}"


def _adapter(adapter: AdapterState) -> dict[str, Any]:
    shown: dict[str, Any] = {"type": adapter.type}
    if adapter.namespace is not None:
        shown["namespace"] = adapter.namespace
    if adapter.port is not None:
        shown["port"] = adapter.port
    return {**shown, "state": "started" if adapter.started else "stopped"}


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "message": finding.message,
        "effect": finding.effect,
        "mend": finding.mend,
        "file": finding.at.file,
        "line": finding.at.line,
        "column": finding.at.column,
    }


def _on(management: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    """Whether a part is switched on: by true, or by settings that do not say otherwise."""
    value = management.get(key, default)
    return value.get("enabled", True) is True if isinstance(value, Mapping) else value is True


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host


def _is_loopback(address: str | None) -> bool:
    """Whether a server at this address is reached from its own machine alone."""
    if address in {None, "", "localhost"}:
        return True
    try:
        return ipaddress.ip_address(str(address).strip("[]")).is_loopback
    except ValueError:
        return False


def _is_no_name(host: str) -> bool:
    """Whether a host is `localhost` or an address: what no web site can have for its own name."""
    if host in {"", "localhost"} or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _check_scripting(settings: Mapping[str, Any]) -> None:
    """Refuse settings of script steps that are not understood, before any of them is taken."""
    for name in settings:
        if name not in _SETTINGS:
            raise _bad(name, f"is not one of {', '.join(sorted(_SETTINGS))}")
    if not isinstance(settings.get("enabled", True), bool):
        raise _bad("enabled", "must be true or false")
    for name in ("timeout", "statementLimit"):
        value = settings.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise _bad(name, "must be an integer greater than or equal to 1")
    location = settings.get("defaultLocation", "file:///")
    if not isinstance(location, str) or not location.startswith("file:///"):
        raise _bad("defaultLocation", "must be an absolute file:/// URI")
    if settings.get("defaultLanguage", "python") not in _LANGUAGES:
        raise _bad("defaultLanguage", f"must be one of {', '.join(_LANGUAGES)}")
    allowed = settings.get("allowedLanguages", [])
    if not isinstance(allowed, list) or not all(language in _LANGUAGES for language in allowed):
        raise _bad("allowedLanguages", f"must be a list of {', '.join(_LANGUAGES)}")


def _bad(name: str, rule: str) -> Invalid:
    return Invalid("scripting.invalid", f"{name!r} {rule}", field=name)
