"""`toolcrib capability show`: what a file serves, where each value comes from, and what would be sent.

Nothing is sent. Credentials are named by their kind, variables by their names; no value of either is read out of here.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from toolcrib.capability import calls
from toolcrib.capability.binding import Bound
from toolcrib.capability.capability import Capability
from toolcrib.capability.listening import Mount, Where, kind_of, place
from toolcrib.capability.operation import Operation
from toolcrib.capability.spec import (
    Action,
    Auth,
    Consumed,
    ControlServer,
    McpServer,
    RestServer,
    Server,
    SkillServer,
)
from toolcrib.cli.capability_findings import count, count_in_words
from toolcrib.cli.capability_options import BaseUri, EnvFile, File, PassQuery, Surroundings
from toolcrib.cli.loop import run
from toolcrib.cli.options import Json
from toolcrib.cli.output import print_json, print_table, print_text, say, wants_json
from toolcrib.core.log import HIDDEN, hide_secrets, is_secret_name


def show(
    file: File,
    as_json: Json = False,
    base_uri: BaseUri = None,
    env_file: EnvFile = None,
    pass_query: PassQuery = False,
) -> None:
    """Show what a file serves: URLs, operations and tools, how each value is bound, and what would be sent.

    Variables are listed with where their values come from; never with the values.

    Examples:
        toolcrib capability show shop.yaml
        toolcrib capability show shop.yaml --json | jq '.servers[].tools[]?.input_schema'
    """

    async def load() -> Capability:
        capability = Surroundings.of(base_uri, env_file, pass_query=pass_query).load(file)
        await capability.close()
        return capability

    capability = run(load)
    shown = described(capability, str(file))
    if wants_json(as_json):
        print_json(shown)
    else:
        _print(shown)
    say(f"{file}: {count_in_words(capability.findings)}; `toolcrib capability validate {file}` says which.")


def described(capability: Capability, path: str) -> dict[str, Any]:
    """A capability as JSON."""
    document = capability.document
    places = {
        p.server.namespace: Mount(p, _nothing, p.slot.port).url
        for p in place({path: (capability.name, capability)}, Where())
    }
    missing = {(m.variable, m.at) for m in capability.plan.binds.missing}
    return {
        "file": path,
        "label": document.label,
        "version": document.version,
        "description": document.description,
        "servers": [_server(capability, server, places.get(server.namespace)) for server in document.servers],
        "apis": [_api(capability, consumed) for consumed in document.consumes],
        "aggregates": [
            {
                "namespace": aggregate.namespace,
                "functions": [
                    {
                        "name": f"{aggregate.namespace}.{function.name}",
                        "description": function.description,
                        **_does(capability, function.action, f"{aggregate.namespace}.{function.name}"),
                    }
                    for function in aggregate.functions
                ],
            }
            for aggregate in document.aggregates
        ],
        "binds": [
            {
                "variable": f"{bind.namespace}.{variable}",
                "source": f"{key} in {bind.location or 'the environment'}",
                "resolved": (variable, bind.at) not in missing,
            }
            for bind in document.binds
            for variable, key in bind.keys.items()
        ],
        "findings": count(capability.findings),
    }


async def _nothing(*_: Any) -> None:
    """Stands for an application where only the URL is wanted."""


def _server(capability: Capability, server: Server, url: str | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "type": kind_of(server),
        "namespace": server.namespace,
        "url": url or "standard streams",
        "authentication": server.authentication.type if server.authentication else None,
    }
    match server:
        case RestServer():
            shown["operations"] = _rest_operations(capability, server)
        case McpServer():
            shown |= _mcp_parts(capability, server)
        case SkillServer():
            shown["skills"] = [
                {"name": s.name, "description": s.description, "tools": [t.name for t in s.tools]}
                for s in server.skills
            ]
        case ControlServer():
            shown["management"] = {name: bool(value) for name, value in server.management.items()}
    return shown


def _rest_operations(capability: Capability, server: RestServer) -> list[dict[str, Any]]:
    found = []
    for resource in server.resources:
        for operation in resource.operations:
            name = operation.name or f"{operation.method} {resource.path}"
            found.append(
                {
                    "method": operation.method,
                    "path": resource.path,
                    "name": f"{server.namespace}.{name}",
                    "description": operation.description or resource.description,
                    **_does(capability, operation.action, f"{server.namespace}.{name}"),
                }
            )
        if resource.forward is not None:
            what = f"forwards to {resource.forward.namespace}"
            found.append({"method": "*", "path": resource.path, "name": None, "does": what, "bound": [], "sends": []})
    return found


def _mcp_parts(capability: Capability, server: McpServer) -> dict[str, Any]:
    planned = capability.plan.mcp[server.namespace]
    return {
        "tools": [
            {
                "name": tool.name,
                "title": tool.label,
                "description": planned.tools[tool.name].description,
                "input_schema": planned.tools[tool.name].input_schema,
                "output_schema": planned.tools[tool.name].output_schema,
                "annotations": planned.tools[tool.name].annotations,
                **_does(capability, tool.action, f"{server.namespace}.{tool.name}"),
            }
            for tool in server.tools
        ],
        "resources": [
            {
                "name": made.name,
                "uri": made.uri,
                "media": made.mime_type,
                "does": f"serves the files of {made.location}" if made.location else _words(made.action),
                "bound": _bound(capability.plan.bound.get(f"{server.namespace}.{made.name}", ())),
            }
            for made in server.resources
        ],
        "prompts": [
            {"name": p.name, "description": p.description, "arguments": [a.name for a in p.arguments]}
            for p in server.prompts
        ],
    }


def _does(capability: Capability, action: Action, name: str) -> dict[str, Any]:
    planned = capability.plan.called.get(name)
    found = {
        "does": _words(action),
        "bound": _bound(capability.plan.bound.get(name, ())),
        "sends": [_sent(capability, operation) for operation in _operations(planned)],
    }
    if isinstance(planned, calls.Broken):
        found["broken"] = planned.error.message
    return found


def _words(action: Action) -> str:
    if action.ref is not None:
        return f"is {action.ref}"
    if action.steps:
        return "steps: " + ", ".join(f"{s.name} ({s.call or s.file or s.type})" for s in action.steps)
    return f"calls {action.call}" if action.call is not None else "answers static values"


def _operations(planned: Any) -> Iterable[Operation]:
    """The consumed operations that something calls, in order."""
    match planned:
        case calls.Given():
            yield from _operations(planned.action)
        case calls.Call():
            yield planned.operation
        case calls.Steps():
            yield from (step.call.operation for step in planned.steps if isinstance(step, calls.CallStep))


def _bound(bound: Iterable[Bound]) -> list[dict[str, Any]]:
    return [
        {"name": b.slot, "goes_to": _KINDS.get(b.kind, b.kind), "comes_from": _source(b), "required": b.required}
        for b in bound
    ]


_KINDS = {"relay": "body", "template": "body template"}


def _source(bound: Bound) -> str:
    """Where a value comes from; a constant for something that is called a secret stays unsaid."""
    text = bound.source.removeprefix("with: ")
    if text != bound.source and is_secret_name(bound.slot) and "{{" not in text and "." not in text:
        return f"with: {HIDDEN}"
    return hide_secrets(bound.source)


def _sent(capability: Capability, operation: Operation) -> dict[str, Any]:
    """The request of an operation: names and templates, no values."""
    consumed = next(c for c in capability.document.consumes if c.namespace == operation.namespace)
    path = next((r.path for r in consumed.resources for o in r.operations if o.name == operation.name), "")
    base = capability.base_uris.get(operation.namespace, "")
    sent: dict[str, Any] = {
        "operation": f"{operation.namespace}.{operation.name}",
        "method": operation.method,
        "url": hide_secrets(f"{base.rstrip('/')}/{path.partition('#')[0].lstrip('/')}") if base else path,
        "query": [f.name for f in operation.query],
        "headers": [f.name for f in operation.headers],
        "cookies": [f.name for f in operation.cookies],
        "body": _body(operation),
        "authentication": _auth(consumed.authentication),
    }
    if operation.broken is not None:
        sent["broken"] = operation.broken.message
    return sent


def _body(operation: Operation) -> str | None:
    if operation.make_body is None:
        return None
    if operation.body_slot is not None:
        slot = operation.slots[operation.body_slot]
        return "the caller's body, if there is one" if slot.kind == "relay" else f"the value of {slot.name}"
    return "as the file describes it"


def _auth(auth: Auth | None) -> str | None:
    if auth is None:
        return None
    if auth.type != "apikey":
        return auth.type
    return f"apikey in {auth.fields.get('placement') or 'header'} {auth.fields.get('key')}"


def _api(capability: Capability, consumed: Consumed) -> dict[str, Any]:
    base = capability.base_uris.get(consumed.namespace, "")
    origin = "the file" if base and base == consumed.base_uri else "an override" if base else None
    return {
        "namespace": consumed.namespace,
        "base_uri": hide_secrets(base),
        "base_uri_from": origin,
        "authentication": _auth(consumed.authentication),
        "operations": [
            {"name": operation.name, "method": operation.method, "path": resource.path}
            for resource in consumed.resources
            for operation in resource.operations
        ],
    }


# -- for people


def _print(shown: Mapping[str, Any]) -> None:
    print_text(f"{shown['label']}  ({shown['file']}, {shown['version'] or 'no version'})")
    if shown["description"]:
        print_text(shown["description"].strip())
    for server in shown["servers"]:
        _print_server(server)
    for aggregate in shown["aggregates"]:
        print_text(f"\nFUNCTIONS {aggregate['namespace']}")
        for function in aggregate["functions"]:
            _print_action(function["name"], function)
    print_text("")
    print_table(
        ("API", "BASE URI", "FROM", "AUTHENTICATION", "OPERATIONS"),
        [
            (a["namespace"], a["base_uri"] or f"none: give --base-uri {a['namespace']}=URL", a["base_uri_from"] or "-",
             a["authentication"] or "-", len(a["operations"]))
            for a in shown["apis"]
        ],
    )  # fmt: skip
    if shown["binds"]:
        print_text("")
        rows = [(b["variable"], "has a value" if b["resolved"] else "MISSING", b["source"]) for b in shown["binds"]]
        print_table(("VARIABLE", "", "SOURCE"), rows)


def _print_server(server: Mapping[str, Any]) -> None:
    lock = f", {server['authentication']}" if server["authentication"] else ""
    print_text(f"\n{server['type'].upper()} {server['namespace']}  {server['url']}{lock}")
    for operation in server.get("operations", ()):
        _print_action(f"{operation['method']} {operation['path']}", operation)
    for tool in server.get("tools", ()):
        _print_action(f"tool {tool['name']}({_arguments(tool['input_schema'])}){_hints(tool['annotations'])}", tool)
    for made in server.get("resources", ()):
        _print_action(f"resource {made['name']}  {made['uri']}", made)
    for prompt in server.get("prompts", ()):
        print_text(f"  prompt {prompt['name']}({', '.join(prompt['arguments'])})")
    for skill in server.get("skills", ()):
        print_text(f"  skill {skill['name']}: {', '.join(skill['tools']) or 'no tools'}")
    if "management" in server:
        print_text(f"  {', '.join(name for name, on in server['management'].items() if on) or 'health'}")


def _print_action(title: str, action: Mapping[str, Any]) -> None:
    print_text(f"  {title}")
    print_text(f"      {action['does']}")
    if "broken" in action:
        print_text(f"      cannot run: {action['broken']}")
    for bound in action["bound"]:
        needed = "" if bound["required"] else ", if given"
        name = "" if bound["goes_to"] == bound["name"] else f" {bound['name']}"
        print_text(f"      {bound['goes_to']}{name} <- {bound['comes_from']}{needed}")
    for sent in action.get("sends", ()):
        parts = [f"{kind} {', '.join(sent[kind])}" for kind in ("query", "headers", "cookies") if sent[kind]]
        parts += [f"body: {sent['body']}"] if sent["body"] else []
        parts += [f"authentication {sent['authentication']}"] if sent["authentication"] else []
        print_text(f"      sends {sent['method']} {sent['url']}{'; ' + '; '.join(parts) if parts else ''}")


def _arguments(schema: Mapping[str, Any]) -> str:
    required = schema.get("required") or ()
    names = []
    for name, part in (schema.get("properties") or {}).items():
        kind = part.get("type", "any") if isinstance(part, Mapping) else "any"
        text = "|".join(kind) if isinstance(kind, list) else kind
        names.append(f"{name}{'' if name in required else '?'}: {text}")
    return ", ".join(names)


def _hints(annotations: Mapping[str, Any] | None) -> str:
    on = [name.removesuffix("Hint") for name, value in (annotations or {}).items() if value is True]
    return f"  [{', '.join(on)}]" if on else ""
