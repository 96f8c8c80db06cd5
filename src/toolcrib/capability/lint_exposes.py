"""Lint rules about what a capability exposes: servers, routes, tools, calls, steps, references and texts."""

import re
from collections.abc import Iterator
from typing import Final

from toolcrib.capability.lint_facts import (
    Facts,
    Fault,
    Operation,
    Unit,
    control_servers,
    has_value,
    is_stdio,
    names_in,
    route,
    texts_in,
)
from toolcrib.capability.names import normalise
from toolcrib.capability.spec import ControlServer, Mark, McpServer, Output, RestServer, SkillServer, Step

LANGUAGES: Final = ("javascript", "python")
_ALIASES: Final = {"operation": {"rest"}, "tool": {"tools", "mcp"}, "resource": {"tools", "mcp", "resources"}}
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_EXTENDED = re.compile(r"[a-zA-Z0-9_*-]+")


def exposes_empty(facts: Facts) -> Iterator[Fault]:
    """A capability exposes a server."""
    if not facts.document.servers:
        at = facts.document.at
        effect = "its operations can be called from code and imported, nothing is served"
        yield "warning", "The file exposes no server", effect, "add `capability.exposes`", at


def exposed_path_shape(facts: Facts) -> Iterator[Fault]:
    """An exposed path starts with a slash, does not end with one, and holds no query or fragment."""
    for server in facts.document.servers:
        if not isinstance(server, RestServer):
            continue
        for resource in server.resources:
            called = f"The path {resource.path!r}"
            if not resource.path.startswith("/"):
                yield "warning", f"{called} does not start with a slash", "one is put before it", "add it", resource.at
            if len(resource.path) > 1 and resource.path.endswith("/"):
                yield "note", f"{called} ends with a slash", "requests match with or without it", "drop it", resource.at
            if "?" in resource.path or "#" in resource.path:
                mend = "declare `in: query` inputs instead"
                yield "warning", f"{called} holds a query or fragment", "no request matches it", mend, resource.at
            if resource.path.count("{") != resource.path.count("}"):
                mend = "close the variable: {name}"
                yield "warning", f"{called} has a brace without its other", "it is taken as text", mend, resource.at


def path_variable_unused(facts: Facts) -> Iterator[Fault]:
    """What an exposed path takes goes somewhere."""
    for unit in facts.units:
        operation, takes = facts.operations.get(unit.action.call or ""), facts.takes(unit.action.call)
        if unit.path is None or operation is None or takes is None:
            continue
        keys = {normalise(entry.key) for entry in unit.action.with_}
        if not keys.issuperset(facts.path_names(operation.address)):
            continue  # a variable upstream is free: the planner may bind it by position
        names = facts.path_names(unit.path)
        mentioned = _mentioned(unit)
        for unused in (name for name in names if name not in takes and name not in mentioned):
            yield (
                "warning",
                f"Nothing uses the variable {{{names[unused]}}} of the path {unit.path!r}",
                "any value of it gives the same answer",
                f"pass it on: `with: {{...: rest.{names[unused]}}}`",
                unit.at,
            )


def _mentioned(unit: Unit) -> set[str]:
    """The normalised names that the `with` of a unit may refer to."""
    parts: set[str] = set()
    for entry in unit.action.with_:
        for text in texts_in(entry.value):
            for part in (text, *names_in(text)):
                parts.update((part, part.partition(".")[2], part.rpartition(".")[2]))
    return {normalise(part) for part in parts}


def route_duplicate(facts: Facts) -> Iterator[Fault]:
    """A method and path are exposed once per server."""
    for server in facts.document.servers:
        if not isinstance(server, RestServer):
            continue
        seen: set[tuple[str, tuple[str, ...]]] = set()
        for resource in server.resources:
            for operation in resource.operations:
                key = (operation.method, route(resource.path))
                if key in seen:
                    yield (
                        "error",
                        f"There is a second {operation.method} {resource.path}",
                        "requests go to the first",
                        "change the path or the method of one",
                        operation.at,
                    )
                seen.add(key)


def tool_duplicate(facts: Facts) -> Iterator[Fault]:
    """The names of the tools of a server are unique."""
    for server in facts.document.servers:
        if not isinstance(server, McpServer):
            continue
        seen: set[str] = set()
        for tool in server.tools:
            if tool.name in seen:
                mend = "rename one of them"
                yield "error", f"There is a second tool {tool.name!r}", "only the last is served", mend, tool.at
            seen.add(tool.name)


def call_unresolved(facts: Facts) -> Iterator[Fault]:
    """A `call` names a consumed operation as `namespace.operation`."""
    namespaces = {api.namespace for api in facts.document.consumes}
    for unit in facts.units:
        for call, at in unit.calls:
            if call in facts.operations:
                continue
            if (found := facts.find(call)) is not None:
                meant = f"{found.api.namespace}.{found.operation.name}"
                yield (
                    "warning",
                    f"The call {call!r} of the {unit.title} is not written as the operation is named",
                    f"it is taken as {meant!r}",
                    f"write {meant}",
                    at,
                )
                continue
            namespace = call.partition(".")[0]
            reason = "no such API is consumed" if namespace not in namespaces else "the API has no such operation"
            is_mocked = unit.what == "operation" and any(has_value(output) for output in unit.action.outputs)
            yield (
                "warning" if is_mocked else "error",
                f"The call {call!r} of the {unit.title} resolves to nothing: {reason}",
                "it answers with its static values" if is_mocked else "it answers 501",
                "write `namespace.operation` of something below `consumes`",
                at,
            )
    for server in facts.document.servers:
        for resource in server.resources if isinstance(server, RestServer) else ():
            if resource.forward is not None and resource.forward.namespace not in namespaces:
                yield (
                    "error",
                    f"The forward of {resource.path!r} names the unknown API {resource.forward.namespace!r}",
                    "it answers 404",
                    "name an API below `consumes`",
                    resource.forward.at,
                )


def action_missing(facts: Facts) -> Iterator[Fault]:
    """What is exposed has a call, steps, a ref or static values."""
    for unit in facts.units:
        action = unit.action
        if not (action.call or action.steps or action.ref or any(has_value(output) for output in action.outputs)):
            effect = "it answers 204" if unit.what == "operation" else "it answers {}"
            yield "warning", f"The {unit.title} does nothing", effect, "add a `call`", unit.at


def with_unknown_input(facts: Facts) -> Iterator[Fault]:
    """`with` of a tool or function refers to its declared inputs."""
    for unit in facts.units:
        declared = {normalise(parameter.name) for parameter in unit.inputs} | {"body"}
        if unit.path is not None or len(declared) == 1:
            continue  # all of a request can be referred to, and a tool without inputs gets those that `with` names
        prefixes = {unit.namespace, *_ALIASES.get(unit.what, ())}
        for entry in (*unit.action.with_, *(entry for step in unit.action.steps for entry in step.with_)):
            prefix, dot, name = entry.value.partition(".") if isinstance(entry.value, str) else ("", "", "")
            if not dot or prefix not in prefixes or "{" in name:
                continue
            if normalise(name) not in declared:
                yield (
                    "warning",
                    f"{entry.value!r} refers to no input of the {unit.title}",
                    f"{entry.key} is only sent when the caller gives an argument of that name",
                    f"declare the input {name!r}, or refer to another",
                    entry.at,
                )


def _left_over(found: Operation | None) -> str:
    """What becomes of a value that the called operation does not declare."""
    if found is None or found.operation.method in {"POST", "PUT", "PATCH"}:
        return "it is sent as a member of the body if the operation describes none, else not at all"
    return "it is sent as a query parameter"


def with_unknown_key(facts: Facts) -> Iterator[Fault]:
    """A key of `with` is something that the called operation takes."""
    for unit in facts.units:
        pairs = [(unit.action.call, unit.action.with_)]
        pairs += [(step.call, step.with_) for step in unit.action.steps if step.type == "call"]
        for call, entries in pairs:
            takes = facts.takes(call)
            if takes is None:
                continue
            for entry in entries:
                if normalise(entry.key) not in takes:
                    yield (
                        "warning",
                        f"{call} takes no {entry.key!r}",
                        _left_over(facts.find(call)),
                        "declare it among the inputs of the consumed operation",
                        entry.at,
                    )


def reference_deprecated(facts: Facts) -> Iterator[Fault]:
    """References are written without `$this.`."""
    for unit in facts.units:
        for entry in (*unit.action.with_, *(entry for step in unit.action.steps for entry in step.with_)):
            if any(text.startswith("$this.") for text in texts_in(entry.value)):
                mend = "leave `$this.` out"
                yield "note", "`$this.` is an old way of referring", "it is understood", mend, entry.at


def step_reference(facts: Facts) -> Iterator[Fault]:
    """Steps and mappings refer to earlier steps, and step names are unique."""
    for unit in facts.units:
        earlier: set[str] = set()
        for step in unit.action.steps:
            if step.type == "lookup" and step.index not in earlier:
                mend = "name a step that stands before this one"
                yield "error", f"The index {step.index!r} is no earlier step", "it answers 400", mend, step.at
            if step.name in earlier:
                effect = "the output of the later replaces that of the first"
                yield "warning", f"There is a second step {step.name!r}", effect, "rename one of them", step.at
            earlier.add(step.name)
        for mapping in unit.action.mappings:
            found = re.match(r"\$\.([A-Za-z0-9_-]+)", mapping.value)
            if unit.action.steps and found and found[1] not in earlier:
                effect = f"{mapping.target} is left out of the answer"
                mend = "write `$.step.field`"
                yield "warning", f"{mapping.value!r} refers to no step", effect, mend, mapping.at


def script_settings(facts: Facts) -> Iterator[Fault]:
    """A script step has a language that is supported and a folder, its own or by default."""
    defaults: dict[str, object] = {}
    for control in control_servers(facts.document):
        scripting = control.management.get("scripting")
        if isinstance(scripting, dict):
            defaults.update(scripting)
    for unit in facts.units:
        for step in unit.action.steps:
            if step.type == "script":
                yield from _script(step, defaults)


def _script(step: Step, defaults: dict[str, object]) -> Iterator[Fault]:
    language = str(step.language or defaults.get("defaultLanguage") or "").lower()
    if not language:
        mend = "write `language`, or `management.scripting.defaultLanguage`"
        yield "error", f"The script {step.name!r} has no language", "the step fails", mend, step.at
    elif language not in LANGUAGES:
        mend = f"write it in {' or '.join(LANGUAGES)}"
        yield "error", f"Scripts in {language!r} are not supported", "the step fails", mend, step.at
    if not (step.location or defaults.get("defaultLocation")):
        mend = "write `location`, or `management.scripting.defaultLocation`"
        yield "error", f"The script {step.name!r} has no folder", "the step fails", mend, step.at


def hints_contradict(facts: Facts) -> Iterator[Fault]:
    """Hints agree with each other, with the method that is called and with the semantics of the function."""
    semantics = {f"{a.namespace}.{f.name}": f.semantics for a in facts.document.aggregates for f in a.functions}
    for unit in facts.units:
        said = semantics.get(unit.action.ref or "", {})
        if unit.what == "operation":
            if said.get("safe") and unit.method != "GET":
                yield _contradiction(unit, f"is {unit.method}, but its function is safe")
            continue
        read_only, destructive = unit.hints.get("readOnly"), unit.hints.get("destructive")
        if read_only and destructive:
            yield _contradiction(unit, "is readOnly and destructive")
        if said.get("safe") and (read_only is False or destructive):
            yield _contradiction(unit, "changes things by its hints, but its function is safe")
        if said.get("safe") is False and read_only:
            yield _contradiction(unit, "is readOnly, but its function is not safe")
        methods = {facts.operations[call].operation.method for call, _ in unit.calls if call in facts.operations}
        if read_only and methods & {"PUT", "PATCH", "DELETE"}:
            yield _contradiction(unit, f"is readOnly, but calls {' and '.join(sorted(methods))}")


def _contradiction(unit: Unit, what: str) -> Fault:
    mend = "say what is true: clients decide by it whether to ask a person"
    return "warning", f"The {unit.title} {what}", "the hints are passed on as written", mend, unit.at


def port_shared(facts: Facts) -> Iterator[Fault]:
    """Every server of a file has a port of its own."""
    seen: dict[int, str] = {}
    for server in facts.listening:
        if server.port is None:
            mend = "write `port`"
            yield (
                "warning",
                f"The server {server.namespace!r} has no port",
                "one must be given to serve",
                mend,
                server.at,
            )
        elif server.port in seen:
            yield (
                "error",
                f"The servers {seen[server.port]!r} and {server.namespace!r} have the same port {server.port}",
                "they cannot both listen on it",
                "give one of them another port",
                server.at,
            )
        elif server.port:
            seen[server.port] = server.namespace


def control_server(facts: Facts) -> Iterator[Fault]:
    """There is one control server at most, and it listens locally."""
    for position, server in enumerate(control_servers(facts.document)):
        if position:
            yield "error", "There is a second control server", "only the first is served", "keep one", server.at
        if server.address is not None and server.address not in _LOCAL:
            effect = "whoever reaches the port can see and change how it runs"
            yield (
                "warning",
                "The control server does not listen locally",
                effect,
                "write `address: localhost`",
                server.at,
            )


def server_open(facts: Facts) -> Iterator[Fault]:
    """A server that others can reach asks who they are."""
    for server in facts.listening:
        if server.address is not None and server.address not in _LOCAL and server.authentication is None:
            what = f"The server {server.namespace!r} listens on {server.address} without authentication"
            yield "note", what, "whoever reaches the port may call", "add `authentication`", server.at


def stdio_settings(facts: Facts) -> Iterator[Fault]:
    """A server on standard input and output has neither port nor authentication."""
    for server in facts.document.servers:
        if not is_stdio(server):
            continue
        if server.authentication is not None:
            mend = "leave it out; who starts the process is trusted"
            yield "warning", "A stdio server has authentication", "it is ignored", mend, server.at
        if server.port is not None:
            yield "note", "A stdio server has a port", "it is ignored", "leave it out", server.at


def output_object_open(facts: Facts) -> Iterator[Fault]:
    """An object output says which properties it has."""
    for unit in facts.units:
        if unit.action.mappings or unit.action.steps:
            continue
        for output in unit.action.outputs:
            found = _open_object(output)
            if found is not None:
                yield (
                    "note",
                    f"An object output of the {unit.title} has no properties",
                    "the value at its mapping is relayed as it is",
                    "list its properties, if it is to be shaped",
                    found.at,
                )
                break


def _open_object(output: Output) -> Output | None:
    if output.type == "object" and not (output.properties or output.values or has_value(output)):
        return output
    children = [child for _, child in output.properties] + [c for c in (output.items, output.values) if c is not None]
    return next((found for child in children if (found := _open_object(child)) is not None), None)


def identifier_shape(facts: Facts) -> Iterator[Fault]:
    """Names consist of letters, digits and dashes; those of inputs may have underscores and stars too."""
    document = facts.document
    names: list[tuple[str, Mark]] = [(server.namespace, server.at) for server in document.servers]
    for api in document.consumes:
        names.append((api.namespace, api.at))
        for resource in api.resources:
            names += [(resource.name, resource.at)] if resource.name else []
            names += [(operation.name, operation.at) for operation in resource.operations]
    for aggregate in document.aggregates:
        names.append((aggregate.namespace, aggregate.at))
    names += [(unit.name, unit.at) for unit in facts.units if " " not in unit.name]
    dotted = {api.at for api in document.consumes if "." in api.namespace}
    for name, at in names:
        if not _NAME.fullmatch(name):
            effect = "`call` cannot name it" if at in dotted and "." in name else "it works"
            yield "note", f"The name {name!r} is not of letters, digits and dashes", effect, "rename it", at
    groups = [group for unit in facts.units for group in unit.input_groups]
    groups += [operation.operation.inputs for operation in facts.all_operations]
    for group in {id(group): group for group in groups}.values():
        for parameter in group:
            if not _EXTENDED.fullmatch(parameter.name):
                what = f"The input {parameter.name!r} has characters that the format does not know in names"
                yield "note", what, "it works", "rename it", parameter.at


def description_missing(facts: Facts) -> Iterator[Fault]:
    """Tools, functions, operations and skills say what they do."""
    for unit in facts.units:
        if not unit.description and not unit.action.ref:
            severe = unit.what in {"tool", "function"}
            effect = "agents have only its name to go by" if severe else "none"
            mend = "say what it does and when to use it"
            yield "warning" if severe else "note", f"The {unit.title} has no description", effect, mend, unit.at
    for server in facts.document.servers:
        for skill in server.skills if isinstance(server, SkillServer) else ():
            if not skill.description:
                mend = "say what it is for"
                yield (
                    "warning",
                    f"The skill {skill.name!r} has no description",
                    "agents cannot choose it",
                    mend,
                    skill.at,
                )


def info_incomplete(facts: Facts) -> Iterator[Fault]:
    """The file says what it is: a label, a description and tags."""
    document = facts.document
    if not document.servers:
        return
    if not {"label", "title", "display", "name"} & document.info.keys():
        effect = f"it is called {document.label!r}"
        yield "note", "The file has no `info.label`", effect, "write it", document.at
    if not document.description:
        yield "note", "The file has no `info.description`", "none", "say what it is for", document.at
    if not document.tags:
        yield "note", "The file has no `info.tags`", "none", "add tags to find it by", document.at


def markdown_unsafe(facts: Facts) -> Iterator[Fault]:
    """Descriptions hold neither `<script` nor `eval(`."""
    document = facts.document
    texts = [(document.label, document.at), (document.description, document.at)]
    texts += [(api.description, api.at) for api in document.consumes]
    texts += [(s.description, s.at) for s in document.servers if not isinstance(s, ControlServer)]
    texts += [(unit.description, unit.at) for unit in facts.units]
    for text, at in texts:
        if text and re.search(r"<script|eval\(", text, re.IGNORECASE):
            effect = "it is passed on as text; others may run it"
            yield "error", "A description holds <script or eval(", effect, "leave it out", at
