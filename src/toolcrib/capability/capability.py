"""A capability file ready to be served or called: the public face of the engine.

    capability = Capability.load("shop.yaml")
    reply = await capability.call("shop.get-order", {"id": "o1"})
    app = capability.rest_app()          # ASGI
    server = capability.mcp_server()     # ASGI, and serve_stdio()

Loading reads files and the environment; nothing is sent before the first call. Use one event loop per capability.
"""

# ruff: noqa: SLF001 - one capability takes over from another

import asyncio
import contextlib
import importlib
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from toolcrib import __version__
from toolcrib.capability.binds import Binds, Unresolved, file_of
from toolcrib.capability.expose.cors import CorsRules, with_cors
from toolcrib.capability.expose.mcp import McpApp, mcp_app
from toolcrib.capability.expose.problem import refuse
from toolcrib.capability.expose.rest import RestApp
from toolcrib.capability.expose.server_auth import guard
from toolcrib.capability.expose.skill import skill_app
from toolcrib.capability.findings import CapabilityInvalid, Finding
from toolcrib.capability.ground import Means
from toolcrib.capability.inputs import Inputs
from toolcrib.capability.lint import lint
from toolcrib.capability.load import load
from toolcrib.capability.plan import Plan, PlannedMcp
from toolcrib.capability.planner import plan_document
from toolcrib.capability.reply import Arguments, Reply, Run
from toolcrib.capability.scripts.source import folder_candidates
from toolcrib.capability.spec import ControlServer, Document, McpServer, RestServer, Server, SkillServer
from toolcrib.capability.telemetry import Observability, Telemetry
from toolcrib.core.addresses import AddressPolicy
from toolcrib.core.http import OutboundClient
from toolcrib.errors import AppError, NotFound, Unavailable

# A capability calls what its author wrote down, at home as well; metadata services and the like stay closed.
AT_HOME = AddressPolicy.parse(["loopback", "private"])
_LAST_SPANS_S = 2.0  # how long a collector of spans has at the end

_log = structlog.get_logger(__name__)


class Capability:
    """A loaded capability file.

    Attributes:
        document: the file as read.
        plan: the file as compiled.
        findings: everything that `toolcrib capability validate` says about it.
        telemetry: what it counts and traces.
    """

    def __init__(self, document: Document, findings: tuple[Finding, ...], means: Means, *, owns_client: bool) -> None:
        self.document = document
        self.telemetry = means.telemetry
        self.plan: Plan = plan_document(document, means)
        self.findings = (*findings, *self.plan.findings)
        self._means = means
        self._owns_client = owns_client
        self._mcp: dict[str, McpApp] = {}
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._spans: Any = None  # the provider of OpenTelemetry that is ours to shut down

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        text: str | None = None,
        environ: Mapping[str, str] | None = None,
        base_uris: Mapping[str, str] | None = None,
        outbound: OutboundClient | None = None,
        files: bool = True,
        strict: bool = False,
        pass_query: bool = False,
        relay_bodies: bool = True,
        previous: "Capability | None" = None,
    ) -> "Capability":
        """Read and compile a capability file.

        Args:
            path: of the file; relative files are looked up in its folder.
            text: its text, if it is not to be read from `path`.
            environ: where binds look; the process environment by default.
            base_uris: where consumed APIs really are, by namespace; wins over the file. Without an entry the variables
                `NAFTIKO_BASE_URI_<NAMESPACE>` and, for APIs whose file names no address, `NAFTIKO_BASE_URI` count.
            outbound: sends the requests; by default a client of its own, which may call private addresses.
            files: whether the file may refer to others.
            strict: refuse a file with an error finding or a bind without value.
            pass_query: pass query values on that nothing takes.
            relay_bodies: pass the caller's body on to write operations that describe none.
            previous: what this one is to replace: metrics and traces go on, unless their settings changed.

        Raises:
            CapabilityInvalid: nothing of it can be served; with `strict`, something cannot.
        """
        loaded = load(path, text=text, allow_files=files)
        document = loaded.document
        environment = os.environ if environ is None else environ
        findings = (*loaded.findings, *lint(document))
        observed = _Observed.of(document, environment, previous, files=files)
        means = Means(
            outbound=outbound or OutboundClient(AT_HOME, timeout_s=30.0, user_agent=f"toolcrib/{__version__}"),
            environ=environment,
            telemetry=observed.telemetry,
            base_uris=_base_uris(document, environment, base_uris or {}),
            files=files,
            scripting=environment.get("NAFTIKO_SCRIPTING", "true").lower() not in {"false", "0", "off", "no"},
            pass_query=pass_query,
            relay=relay_bodies,
        )
        capability = cls(document, (*findings, *observed.findings), means, owns_client=outbound is None)
        capability._spans = observed.provider
        if strict:
            capability.must_be_whole()
        return capability

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return Path(self.document.path).name.partition(".")[0]

    @property
    def base_uris(self) -> dict[str, str]:
        """Where consumed APIs are, by namespace, as written or overridden; empty where nobody says."""
        given = self._means.base_uris
        return {c.namespace: given.get(c.namespace) or c.base_uri or given.get("*", "") for c in self.document.consumes}

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that what is served was made of, whether it is there or not: what to look at for changes."""
        document = self.document
        found = dict.fromkeys(os.path.abspath(file) for file in document.files)  # noqa: PTH100 - links stay links
        for bind in document.binds:
            file = file_of(bind.location, bind.folder) if bind.location else None
            if file is not None:
                found[str(file.absolute())] = None
        default = self.plan.scripts.settings().get("defaultLocation")
        found |= dict.fromkeys(_script_files(document, default))
        return tuple(found)

    def must_be_whole(self) -> None:
        """Raise CapabilityInvalid for an error finding or a bind without value."""
        serious = tuple(f for f in self.findings if f.severity == "error" or f.rule == "bind-unresolved")
        if serious:
            raise CapabilityInvalid(serious)

    async def call(self, name: str, arguments: Mapping[str, Any] | None = None) -> Reply:
        """Call `namespace.operation`: a consumed operation, an exposed operation or tool, or a shared function.

        An error status of the upstream is a reply.

        Raises:
            NotFound: there is nothing of that name.
            Invalid: an argument is missing or cannot be used.
            Upstream, Unavailable, RateLimited: the call could not be made, or gave nothing usable.
        """
        action = self.plan.called.get(name)
        if action is None:
            raise NotFound("capability.unknown_operation", f"There is no {name!r} in {self.document.label}.")
        self._begin()
        try:
            reply: Reply = await action.run(Inputs(dict(arguments or {})))
        finally:
            self._end()
        return reply

    def rest_app(self, namespace: str | None = None, *, prefix: str = "") -> ASGIApp:
        """The REST server of that namespace (the first one by default) as an ASGI application, below `prefix`."""
        server = self._server(RestServer, namespace)
        app = RestApp(self.plan.rest[server.namespace], self.telemetry, prefix=prefix)

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            self._begin()
            try:
                await app(scope, receive, send)
            finally:
                self._end()

        return self._guarded(counted, server, prefix)

    def mcp_server(self, namespace: str | None = None) -> McpApp:
        """The MCP server of that namespace (the first one by default): an ASGI application with `serve_stdio`.

        The application is not guarded by the file's `authentication`; `mcp_http` is.
        """
        server = self._server(McpServer, namespace)
        if server.namespace not in self._mcp:
            self._mcp[server.namespace] = mcp_app(self._counted(server.namespace), version=__version__)
        return self._mcp[server.namespace]

    def mcp_http(self, namespace: str | None = None, *, prefix: str = "") -> ASGIApp:
        """The MCP server as the file exposes it over HTTP."""
        server = self._server(McpServer, namespace)
        return self._guarded(self.mcp_server(server.namespace), server, prefix)

    def skill_app(self, namespace: str | None = None) -> ASGIApp:
        """The skill catalogue of that namespace (the first one by default) as an ASGI application."""
        server = self._server(SkillServer, namespace)
        siblings: dict[str, Any] = {
            s.namespace: "rest" if isinstance(s, RestServer) else "mcp"
            for s in self.document.servers
            if isinstance(s, RestServer | McpServer)
        }
        try:
            app = skill_app(server, siblings, (self.document.folder, str(Path.cwd())))
        except ValueError as error:
            return _closed(Unavailable("server.not_configured", f"The server {server.namespace} is closed: {error}."))
        return self._guarded(app, server)

    def guarded(self, app: ASGIApp, server: Server) -> ASGIApp:
        """An application behind the authentication and the CORS rules of a server."""
        return self._guarded(app, server)

    def servers(self, kind: type[Server] | None = None) -> tuple[Server, ...]:
        """The servers of the file, all or those of a kind."""
        return tuple(s for s in self.document.servers if kind is None or isinstance(s, kind))

    def inherit(self, old: "Capability", namespaces: Collection[str]) -> None:
        """Share the MCP servers of these namespaces with what this one is to replace; with none, share no more."""
        self._mcp = {name: app for name, app in old._mcp.items() if name in namespaces and name in self.plan.mcp}

    def adopt(self, old: "Capability") -> None:
        """Serve instead of `old`: clients of MCP servers that were inherited stay connected, the others are let go.

        Calls under way end on the old plan. Raises what a server says that cannot be replaced; then all is as it was.
        """
        inherited = [name for name, app in old._mcp.items() if self._mcp.get(name) is app]
        done: list[str] = []
        try:
            for name in inherited:
                self._mcp[name].replace(self._counted(name))
                done.append(name)
        except BaseException:
            for name in done:
                old._mcp[name].replace(old._counted(name))
            raise
        for name in inherited:
            del old._mcp[name]
        old.end_streams()
        if old.telemetry is self.telemetry:
            self._spans, old._spans = old._spans, None

    def end_streams(self) -> None:
        """End the event streams of MCP clients, which would hold a web server that stops."""
        for app in self._mcp.values():
            app.close()

    async def finished(self) -> None:
        """Return when no call is under way."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stop scripts, close connections and send the last spans; calls under way fail."""
        self.end_streams()
        await self.plan.scripts.close()
        if self._owns_client:
            await self._means.outbound.close()
        if self._spans is not None:
            provider, self._spans = self._spans, None
            await _shut_down(provider)

    def _begin(self) -> None:
        """A call begins; `_end` must follow. A context manager would cost as much as a look-up of the route."""
        self._running += 1
        self._idle.clear()

    def _end(self) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()

    def _counted(self, namespace: str) -> PlannedMcp:
        """The planned MCP server with its calls counted."""
        planned = self.plan.mcp[namespace]
        tools = {name: replace(tool, run=self._counted_run(tool.run)) for name, tool in planned.tools.items()}
        resources = tuple(r if r.run is None else replace(r, run=self._counted_run(r.run)) for r in planned.resources)
        return replace(planned, tools=tools, resources=resources)

    def _counted_run(self, run: Run) -> Run:
        async def counted(arguments: Arguments) -> Reply:
            self._begin()
            try:
                return await run(arguments)
            finally:
                self._end()

        return counted

    def _server(self, kind: type[Any], namespace: str | None) -> Any:
        for server in self.document.servers:
            if isinstance(server, kind) and namespace in {None, server.namespace}:
                return server
        wanted = kind.__name__.removesuffix("Server").lower()
        raise NotFound("capability.no_server", f"{self.document.label} exposes no {wanted} server {namespace or ''}.")

    def _guarded(self, app: ASGIApp, server: Server, path: str = "") -> ASGIApp:
        try:
            guarded = guard(
                app, server.authentication, self.plan.binds.secret, outbound=self._means.outbound, resource_path=path
            )
            cors = server.extension.get("cors")
            return with_cors(guarded, CorsRules.read(cors)) if isinstance(cors, Mapping) else guarded
        except (ValueError, Unresolved) as error:
            # fail closed: a server whose lock is broken lets nobody in
            return _closed(Unavailable("server.not_configured", f"The server {server.namespace} is closed: {error}."))


def _closed(error: AppError) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI
        await refuse(send, error)

    return app


def _script_files(document: Document, default_location: str | None) -> Iterator[str]:
    """Where the files of script steps may lie."""
    actions = [function.action for aggregate in document.aggregates for function in aggregate.functions]
    for server in document.servers:
        if isinstance(server, RestServer):
            actions += [operation.action for resource in server.resources for operation in resource.operations]
        elif isinstance(server, McpServer):
            actions += [tool.action for tool in server.tools]
            actions += [resource.action for resource in server.resources]
    for step in (step for action in actions for step in action.steps if step.file):
        with contextlib.suppress(ValueError):  # the planner says what is wrong with it
            folders = folder_candidates(step.location or default_location or "", (document.folder, str(Path.cwd())))
            for folder in folders:
                yield from (str((folder / name).absolute()) for name in (*step.dependencies, step.file or ""))


class _Observed(NamedTuple):
    """The telemetry of a capability; `provider` is the one of OpenTelemetry that was made for it."""

    telemetry: Telemetry
    provider: Any
    findings: tuple[Finding, ...]

    @classmethod
    def of(
        cls, document: Document, environ: Mapping[str, str], previous: Capability | None, *, files: bool
    ) -> "_Observed":
        """As the control server of the document wants it; what is wrong with that is off and said.

        Raises:
            CapabilityInvalid: a bind's file is broken.
        """
        # of a file that may read no others no control server is served; nor may it name a collector that we would call
        control = next((s for s in document.servers if isinstance(s, ControlServer)), None) if files else None
        at = control.at if control is not None else document.at
        try:
            settings = Observability.read(control)
        except ValueError as error:
            effect, mend = "observability is off", "mend the setting"
            found = Finding("observability-invalid", "error", f"{error}.", effect, mend, at)
            return cls(Telemetry(document.label, Observability.read(None)), None, (found,))
        endpoint, problem = _otlp_endpoint(document, settings, environ, files=files)
        resolved = replace(settings, otlp_endpoint=endpoint)
        provider = None
        goes_on = previous is not None and previous.document.label == document.label
        if previous is not None and goes_on and previous.telemetry.settings == resolved:
            telemetry = previous.telemetry
        else:
            if endpoint is not None:
                try:
                    otlp = importlib.import_module("toolcrib.capability.otlp")
                    provider = otlp.span_provider(endpoint, document.label, settings.sampling)
                except ImportError:
                    problem = "The exporter of spans is not installed", "pip install 'toolcrib[otel]'"
            telemetry = Telemetry(document.label, resolved, provider)
        if problem is None:
            return cls(telemetry, provider, ())
        message, mend = problem
        _log.warning("tracing.inactive", reason=message, mend=mend)
        return cls(
            telemetry, provider, (Finding("otlp-inactive", "warning", message, "no spans are exported", mend, at),)
        )


def _otlp_endpoint(
    document: Document, settings: Observability, environ: Mapping[str, str], *, files: bool
) -> tuple[str | None, tuple[str, str] | None]:
    """Where spans go, or what is wrong with that and how to mend it."""
    if settings.otlp_endpoint is None:
        return None, None
    try:
        return Binds(document.binds, environ, files=files).secret(settings.otlp_endpoint)(), None
    except AppError as error:
        return None, (f"The OTLP endpoint is not known: {error.message.rstrip('.')}", "give the variable a value")


async def _shut_down(provider: Any) -> None:
    """Send the last spans, for a moment at most: a collector that does not answer must not hold the process."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def work() -> None:
        provider.shutdown()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=work, daemon=True).start()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), _LAST_SPANS_S)


def _base_uris(document: Document, environ: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for consumed in document.consumes:
        variable = "NAFTIKO_BASE_URI_" + "".join(c if c.isalnum() else "_" for c in consumed.namespace).upper()
        if uri := given.get(consumed.namespace) or environ.get(variable):
            found[consumed.namespace] = uri
    if uri := given.get("*") or environ.get("NAFTIKO_BASE_URI"):
        found["*"] = uri
    return found
