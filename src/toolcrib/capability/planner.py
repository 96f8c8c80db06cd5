"""Document to plan: everything compiled once, and every reason why something cannot run found before it is called.

A part that cannot run is kept and answers with its reason; it never keeps the rest from being served.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from toolcrib.capability import calls
from toolcrib.capability.action_planner import ActionPlanner, Built
from toolcrib.capability.api_planner import ApiPlanner, credential_fields
from toolcrib.capability.binding import Bound, Caller
from toolcrib.capability.binds import file_of
from toolcrib.capability.ground import REFUSED, Ground, Means
from toolcrib.capability.inputs import Inputs, compile_declared
from toolcrib.capability.mapping import output_schema, structured
from toolcrib.capability.operation import Operation, compile_operation
from toolcrib.capability.plan import (
    Plan,
    PlannedForward,
    PlannedMcp,
    PlannedPath,
    PlannedPrompt,
    PlannedResource,
    PlannedRest,
    PlannedRoute,
    PlannedTool,
)
from toolcrib.capability.reply import Reply, Run
from toolcrib.capability.schema import input_schema
from toolcrib.capability.spec import (
    ABSENT,
    ConsumedOperation,
    ConsumedResource,
    Document,
    Function,
    Input,
    Mark,
    McpResource,
    McpServer,
    Prompt,
    RestOperation,
    RestResource,
    RestServer,
    Tool,
)
from toolcrib.capability.template_text import TemplateInvalid, variables
from toolcrib.capability.templates import PathTemplate
from toolcrib.capability.upstream import Upstream
from toolcrib.errors import AppError, NotFound, Unavailable

_NOWHERE = Mark("", 0, 0)
_EVERYTHING = ConsumedResource("", "", _NOWHERE)  # what a forward reaches: anything below the base URI
_ANY = ConsumedOperation("", "GET", _NOWHERE)
_HINTS = {
    "readOnly": "readOnlyHint",
    "destructive": "destructiveHint",
    "idempotent": "idempotentHint",
    "openWorld": "openWorldHint",
}


def plan_document(document: Document, means: Means) -> Plan:
    """Compile a document.

    Raises:
        CapabilityInvalid: a bind's file is broken.
    """
    return _Planner(Ground(document, means)).plan()


class _Planner:
    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.apis = ApiPlanner(ground)
        self.actions = ActionPlanner(ground, self.apis)
        self.bound: dict[str, tuple[Bound, ...]] = {}

    def plan(self) -> Plan:
        """Everything that is served."""
        ground = self.ground
        for missing in ground.binds.missing:
            ground.warn(
                "bind-unresolved",
                f"The variable {missing.variable} has no value: {missing.source} is not set.",
                "calls that need it are refused with a clear error",
                f"set {missing.source}",
                missing.at,
            )
        servers = ground.document.servers
        rest = {s.namespace: self._rest(s) for s in servers if isinstance(s, RestServer)}
        mcp = {s.namespace: self._mcp(s) for s in servers if isinstance(s, McpServer)}
        upstreams = {name: api.upstream for name, api in self.apis.apis.items()}
        return Plan(
            ground.document,
            ground.binds,
            rest,
            mcp,
            self._tools(mcp),
            self.actions.called,
            tuple(ground.findings),
            self.bound,
            upstreams,
            ground.scripts,
        )

    # -- REST

    def _rest(self, server: RestServer) -> PlannedRest:
        usable = (r for r in server.resources if self._is_template(r.path, r.at))
        return PlannedRest(server, tuple(self._path(server, resource) for resource in usable))

    def _is_template(self, path: str, at: Mark) -> bool:
        """Whether a path or URI can be understood; a finding says so if not."""
        try:
            variables(path, single=True)
        except TemplateInvalid as error:
            self.ground.error("path-invalid", f"{path}: {error}.", "it is left out", "write {name} for a variable", at)
            return False
        return True

    def _path(self, server: RestServer, resource: RestResource) -> PlannedPath:
        routes = tuple(self._route(server, resource, operation) for operation in resource.operations)
        forward = self._forward(resource) if resource.forward else None
        return PlannedPath(resource.path, routes, forward)

    def _route(self, server: RestServer, resource: RestResource, operation: RestOperation) -> PlannedRoute:
        name = operation.name or f"{operation.method} {resource.path}"
        function = self.actions.functions.get(operation.action.ref or "", (None, ""))[0]
        inputs = {i.name: i for i in (*server.inputs, *resource.inputs, *operation.inputs)}
        declared = tuple(inputs.values())
        named = declared + tuple(i for i in (function.inputs if function else ()) if i.name not in inputs)
        caller = Caller(self.actions.scope(declared, server.namespace), tuple(path_variables(resource.path)), rest=True)
        full = f"{server.namespace}.{name}"
        built = self.actions.action(operation.action, caller, full, operation.at)
        try:
            declare = compile_declared(declared, self.ground.binds.environment)
        except ValueError as error:
            message = f"{full} cannot run: {error}."
            self.ground.error("input-invalid", message, REFUSED, "mend the input parameter", operation.at)
            declare, built = None, Built(calls.Broken(Unavailable("input.invalid", message)))
        passes = self.ground.means.pass_query or (
            operation.method == "GET" and built.open_query and not any(i.location == "query" for i in named)
        )
        self.actions.called.setdefault(full, built.action)
        self.bound[full] = built.bound
        return PlannedRoute(
            operation.method,
            name,
            f"{resource.path} {operation.method}",
            built.action,
            declare,
            passes,
            operation.at,
            built.bound,
        )

    def _forward(self, resource: RestResource) -> PlannedForward:
        forward = resource.forward
        assert forward is not None  # noqa: S101 - the caller looked
        api = self.apis.apis.get(forward.namespace)
        trusted = frozenset(name.lower() for name in forward.trusted_headers)
        empty = PathTemplate((), ())
        if api is None:
            message = f"{resource.path} forwards to {forward.namespace}, which is no consumed API."
            self.ground.error(
                "forward-unresolved", message, "requests are answered 404", "name a consumed API", forward.at
            )
            nowhere = Upstream(self.ground.means.outbound, forward.namespace)
            nothing = Operation(forward.namespace, "", "GET")
            return PlannedForward(nowhere, nothing, empty, trusted, NotFound("forward.unresolved", message))
        operation = compile_operation(
            api.consumed, _EVERYTHING, _ANY, self.ground.binds,
            base_uri=api.base_uri, credential_fields=credential_fields(api.consumed.authentication), relay=False,
        )  # fmt: skip
        return PlannedForward(api.upstream, operation, operation.base or empty, trusted, api.broken or operation.broken)

    # -- MCP

    def _mcp(self, server: McpServer) -> PlannedMcp:
        tools: dict[str, PlannedTool] = {}
        for tool in server.tools:
            tools[tool.name] = self._tool(server.namespace, tool)
        usable = (r for r in server.resources if self._is_template(r.uri, r.at))
        resources = tuple(self._resource(server, resource) for resource in usable)
        prompts = {p.name: planned for p in server.prompts if (planned := self._prompt(p)) is not None}
        return PlannedMcp(server, tools, resources, prompts)

    def _tools(self, mcp: Mapping[str, PlannedMcp]) -> dict[str, PlannedTool]:
        """What the document offers to a model; names that come twice are qualified by their server's."""
        planned = [(namespace, tool) for namespace, m in mcp.items() for tool in m.tools.values()]
        if not planned:
            planned = [
                (server.namespace, self._tool(server.namespace, _as_tool(server, resource, operation)))
                for server in self.ground.document.servers
                if isinstance(server, RestServer)
                for resource in server.resources
                for operation in resource.operations
                if f"{server.namespace}.{operation.name or f'{operation.method} {resource.path}'}" in self.bound
            ]
        tools: dict[str, PlannedTool] = {}
        for namespace, tool in planned:
            name = tool.name if tool.name not in tools else f"{namespace}.{tool.name}"
            tools[name] = replace(tool, name=name)
        return tools

    def _tool(self, namespace: str, tool: Tool) -> PlannedTool:
        function = self.actions.functions.get(tool.action.ref or "", (None, ""))[0]
        full = f"{namespace}.{tool.name}"
        built = self.actions.action(tool.action, Caller(self.actions.scope(tool.inputs, namespace)), full, tool.at)
        self.actions.called[full] = built.action
        self.bound.setdefault(full, built.bound)
        schema = output_schema(built.outputs) if built.outputs is not None else None
        return PlannedTool(
            tool.name,
            self._runner(built.action, tool.name, _given(tool.inputs)),
            input_schema(tool.inputs, built.inferred),
            title=tool.label,
            description=tool.description or (function.description if function else None),
            annotations=_annotations(tool, function),
            output_schema=schema,
            structured=structured(built.outputs) if schema is not None and built.outputs is not None else None,
        )

    def _resource(self, server: McpServer, resource: McpResource) -> PlannedResource:
        names = tuple(variables(resource.uri, single=True))
        planned = PlannedResource(
            resource.name, resource.uri, names, resource.label, resource.description, resource.mime_type
        )
        if resource.location is not None:
            return replace(planned, variables=(), folder=self._located(resource.location, resource.at))
        inputs = tuple(Input(name, resource.at, "path") for name in names)
        caller = Caller(self.actions.scope(inputs, server.namespace))
        full = f"{server.namespace}.{resource.name}"
        built = self.actions.action(resource.action, caller, full, resource.at)
        self.bound[full] = built.bound
        return replace(planned, run=self._runner(built.action, resource.name))

    def _prompt(self, prompt: Prompt) -> PlannedPrompt | None:
        arguments = tuple(
            {
                "name": a.name,
                **({"title": a.label} if a.label else {}),
                **({"description": a.description} if a.description else {}),
                "required": a.required,
            }
            for a in prompt.arguments
        )
        file = self._located(prompt.location, prompt.at) if prompt.location else None
        if prompt.location and file is None:
            return None
        return PlannedPrompt(prompt.name, prompt.label, prompt.description, arguments, prompt.template, file)

    def _located(self, location: str, at: Mark) -> str | None:
        """The file or folder at a location, if the document may refer to files and it is there."""
        found = file_of(location, self.ground.document.folder) if self.ground.means.files else None
        if found is None or not found.exists():
            self.ground.error(
                "location-missing", f"{location} is not there.", "it is left out", "mend the location", at
            )
            return None
        return str(found.resolve())

    def _runner(self, action: calls.Action, name: str, given: Mapping[str, Any] | None = None) -> Run:
        """What runs the action of a tool or a resource with arguments on top of what is given, observed."""
        telemetry = self.ground.means.telemetry

        async def run(arguments: Mapping[str, Any]) -> Reply:
            arguments = {**given, **arguments} if given else arguments
            if telemetry.metrics is None and not telemetry.recorder.active:
                return await action.run(Inputs(arguments))
            started, status, failed = time.perf_counter(), "error", None
            try:
                with telemetry.recorder.span("mcp.tool", attributes={"naftiko.tool": name}):
                    reply = await action.run(Inputs(arguments))
                status, failed = str(reply.status), f"http_{reply.status}" if reply.is_error else None
            except AppError as error:
                failed = error.code
                raise
            finally:
                telemetry.observe_request("mcp", name, status, time.perf_counter() - started, failed)
            return reply

        return run


def _as_tool(server: RestServer, resource: RestResource, operation: RestOperation) -> Tool:
    """A REST operation as a tool; its inputs are required as REST has it, and reading is what GET is for."""
    inputs = {i.name: i for i in (*server.inputs, *resource.inputs, *operation.inputs)}
    declared = tuple(
        replace(i, required=i.location == "path" if i.required is None else i.required) for i in inputs.values()
    )
    name = operation.name or f"{operation.method.lower()} {resource.path}"
    hints = {"readOnly": operation.method == "GET", "destructive": operation.method == "DELETE"}
    return Tool(
        name,
        operation.at,
        operation.action,
        operation.label,
        operation.description or resource.description,
        declared,
        hints,
    )


def _given(inputs: tuple[Input, ...]) -> dict[str, Any]:
    """What inputs of a tool are when nobody says: their default, or the value that the file writes."""
    found = {i.name: i.default for i in inputs if i.default is not ABSENT}
    return found | {i.name: i.value for i in inputs if i.value is not ABSENT and not str(i.value).startswith("$")}


def path_variables(path: str) -> list[str]:
    """The variables of an exposed path, in order."""
    return variables(path, single=True)


def _annotations(tool: Tool, function: Function | None) -> dict[str, Any] | None:
    """Hints by their wire names; what a function's semantics say counts where the tool says nothing."""
    found: dict[str, Any] = {}
    if function is not None:
        safe = function.semantics.get("safe")
        if safe is not None:
            found["readOnlyHint"] = safe
        if safe:
            found["destructiveHint"] = False
        if "idempotent" in function.semantics:
            found["idempotentHint"] = function.semantics["idempotent"]
    found |= {_HINTS[name]: value for name, value in tool.hints.items() if name in _HINTS}
    if tool.label:
        found["title"] = tool.label
    return found or None
