"""A capability file ready to be served or called: the public face of the engine.

    capability = Capability.load("shop.yaml")
    reply = await capability.call("shop.get-order", {"id": "o1"})
    app = capability.rest_app()          # ASGI
    server = capability.mcp_server()     # ASGI, and serve_stdio()

Loading reads files and the environment; nothing is sent before the first call. Use one event loop per capability.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from toolcrib import __version__
from toolcrib.capability.binds import Unresolved
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
from toolcrib.capability.plan import Plan
from toolcrib.capability.planner import plan_document
from toolcrib.capability.reply import Reply
from toolcrib.capability.spec import ControlServer, Document, McpServer, RestServer, Server, SkillServer
from toolcrib.capability.telemetry import Observability, Telemetry
from toolcrib.core.addresses import AddressPolicy
from toolcrib.core.http import OutboundClient
from toolcrib.errors import AppError, NotFound, Unavailable

# A capability calls what its author wrote down, at home as well; metadata services and the like stay closed.
AT_HOME = AddressPolicy.parse(["loopback", "private"])


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

        Raises:
            CapabilityInvalid: nothing of it can be served; with `strict`, something cannot.
        """
        loaded = load(path, text=text, allow_files=files)
        document = loaded.document
        environment = os.environ if environ is None else environ
        findings = (*loaded.findings, *lint(document))
        telemetry, problem = _telemetry(document)
        means = Means(
            outbound=outbound or OutboundClient(AT_HOME, timeout_s=30.0, user_agent=f"toolcrib/{__version__}"),
            environ=environment,
            telemetry=telemetry,
            base_uris=_base_uris(document, environment, base_uris or {}),
            files=files,
            scripting=environment.get("NAFTIKO_SCRIPTING", "true").lower() not in {"false", "0", "off", "no"},
            pass_query=pass_query,
        )
        capability = cls(document, (*findings, *problem), means, owns_client=outbound is None)
        if strict:
            capability.must_be_whole()
        return capability

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return Path(self.document.path).name.partition(".")[0]

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
        reply: Reply = await action.run(Inputs(dict(arguments or {})))
        return reply

    def rest_app(self, namespace: str | None = None, *, prefix: str = "") -> ASGIApp:
        """The REST server of that namespace (the first one by default) as an ASGI application, below `prefix`."""
        server = self._server(RestServer, namespace)
        app = RestApp(self.plan.rest[server.namespace], self.telemetry, prefix=prefix)
        return self._guarded(app, server, prefix)

    def mcp_server(self, namespace: str | None = None) -> McpApp:
        """The MCP server of that namespace (the first one by default): an ASGI application with `serve_stdio`.

        The application is not guarded by the file's `authentication`; `mcp_http` is.
        """
        server = self._server(McpServer, namespace)
        if server.namespace not in self._mcp:
            self._mcp[server.namespace] = mcp_app(self.plan.mcp[server.namespace], version=__version__)
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
        return self._guarded(skill_app(server, siblings, (self.document.folder, str(Path.cwd()))), server)

    def guarded(self, app: ASGIApp, server: Server) -> ASGIApp:
        """An application behind the authentication and the CORS rules of a server."""
        return self._guarded(app, server)

    def servers(self, kind: type[Server] | None = None) -> tuple[Server, ...]:
        """The servers of the file, all or those of a kind."""
        return tuple(s for s in self.document.servers if kind is None or isinstance(s, kind))

    async def close(self) -> None:
        """Stop scripts and close connections; calls under way fail."""
        await self.plan.scripts.close()
        if self._owns_client:
            await self._means.outbound.close()

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


def _telemetry(document: Document) -> tuple[Telemetry, tuple[Finding, ...]]:
    control = next((s for s in document.servers if isinstance(s, ControlServer)), None)
    try:
        return Telemetry(document.label, Observability.read(control)), ()
    except ValueError as error:
        at = control.at if control is not None else document.at
        found = Finding("observability-invalid", "error", f"{error}.", "observability is off", "mend the setting", at)
        return Telemetry(document.label, Observability.read(None)), (found,)


def _base_uris(document: Document, environ: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for consumed in document.consumes:
        variable = "NAFTIKO_BASE_URI_" + "".join(c if c.isalnum() else "_" for c in consumed.namespace).upper()
        if uri := given.get(consumed.namespace) or environ.get(variable):
            found[consumed.namespace] = uri
    if uri := given.get("*") or environ.get("NAFTIKO_BASE_URI"):
        found["*"] = uri
    return found
