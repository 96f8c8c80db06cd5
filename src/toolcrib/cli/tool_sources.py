"""`toolcrib tools add` and `add-http`: command lines to tool sets and tools as the API wants them."""

import importlib
import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import typer

from toolcrib.cli.arguments import parse_object, text_of
from toolcrib.cli.client import Server
from toolcrib.cli.failure import FAILED, WRONG, CommandFailed
from toolcrib.cli.inventory import (
    SyncOutcome,
    SyncWatch,
    ToolEntry,
    ToolSetEntry,
    as_dict,
    find_tool_set,
    tool_entry,
    tool_set_entry,
    tools_of,
)
from toolcrib.cli.options import ApiKey, Data, Json, Url, pairs
from toolcrib.cli.output import print_json, print_table, print_text, say, wants_json
from toolcrib.core.template import BodyTemplate, PathTemplate, QueryTemplate, TemplateError, TextTemplate, Variable

_LAUNCHERS = frozenset({"npx", "bunx", "uvx", "uv", "pipx", "python", "python3", "node", "deno", "bun"})
_LAUNCHER_WORDS = frozenset({"run", "x", "tool", "exec", "dlx"})
_ENDINGS = frozenset({".yaml", ".yml", ".json"})  # of capability files
_SOURCE = "Where the tools come from"
_CHOICE = "Which tools"

Headers = Annotated[
    list[str] | None,
    typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="Header to send; the value is kept as a secret."),
]
Description = Annotated[str, typer.Option("--description", help="What it is for.", show_default=False)]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="K=V", help="Label.")]
ExternalId = Annotated[str | None, typer.Option("--external-id", help="Your own id for it.", show_default=False)]
Target = Annotated[
    str | None,
    typer.Argument(
        metavar="[URL|FILE]", help="MCP server (streamable HTTP or SSE), or a capability file.", show_default=False
    ),
]
Stdio = Annotated[
    str | None,
    typer.Option(
        "--stdio",
        metavar="'COMMAND ARGS'",
        help="Command that speaks MCP on its standard streams; the server runs it, without a shell.",
        rich_help_panel=_SOURCE,
    ),
]
Http = Annotated[
    str | None,
    typer.Option("--http", metavar="BASE_URL", help="HTTP API; `add-http` gives it tools.", rich_help_panel=_SOURCE),
]
Transport = Annotated[
    Literal["auto", "http", "sse"],
    typer.Option("--transport", help="How to speak to the URL.", rich_help_panel=_SOURCE),
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="K[=V]",
        help="For the command or the binds of the file; kept as a secret. Without =V, from your environment.",
        rich_help_panel=_SOURCE,
    ),
]
BaseUri = Annotated[
    list[str] | None,
    typer.Option(
        "--base-uri", metavar="NAMESPACE=URL", help="Where an API of the file really is.", rich_help_panel=_SOURCE
    ),
]
Replace = Annotated[
    str | None,
    typer.Option(
        "--replace",
        metavar="TOOL_SET",
        help="Give this tool set the file; it keeps its id, secrets and choices.",
        show_default=False,
        rich_help_panel=_SOURCE,
    ),
]
Cwd = Annotated[Path | None, typer.Option("--cwd", help="Folder to run it in.", rich_help_panel=_SOURCE)]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="PATTERN", help="Only these: get_*, *_file, /regex/.", rich_help_panel=_CHOICE),
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="PATTERN", help="Not these.", rich_help_panel=_CHOICE)
]
Approve = Annotated[
    list[str] | None,
    typer.Option("--approve", metavar="all|PATTERN", help="A person must approve each call.", rich_help_panel=_CHOICE),
]


def add(
    target: Target = None,
    stdio: Stdio = None,
    http: Http = None,
    name: Annotated[str | None, typer.Option("--name", help="Name; default: made from the source.")] = None,
    transport: Transport = "auto",
    header: Headers = None,
    env: Env = None,
    cwd: Cwd = None,
    base_uri: BaseUri = None,
    replace: Replace = None,
    include: Include = None,
    exclude: Exclude = None,
    approve: Approve = None,
    label: Labels = None,
    description: Description = "",
    external_id: ExternalId = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until its tools were read.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait for its tools.")] = 60,
    as_json: Json = False,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Add a tool set: an MCP server behind a URL, a command that is one, a capability file, or an HTTP API.

    Waits until its tools were read, and lists them; ends with 1 if that fails (the tool set stays).

    Examples:
        toolcrib tools add https://mcp.deepwiki.com/mcp --name deepwiki
        toolcrib tools add https://api.example.com/mcp -H "Authorization: Bearer $TOKEN" --exclude 'delete_*'
        toolcrib tools add --stdio 'uvx mcp-server-time' --env TZ=Europe/Berlin --approve 'convert_*'
        toolcrib tools add shop.yaml --env SHOP_TOKEN --base-uri shop=https://shop.example.com/api
        toolcrib tools add shop.yaml --replace shop
        toolcrib tools add --http https://api.example.com/v2 --name orders
    """
    file = Path(target) if target is not None and _is_capability_file(target) else None
    _check_source(target, stdio, http, file=file, env=env, cwd=cwd, base_uri=base_uri, replace=replace)
    if http is not None and (include or exclude or approve):
        raise CommandFailed("--include, --exclude and --approve are for MCP servers and capability files.", WRONG)
    if file is not None and header:
        raise CommandFailed("--header is not for capability files: credentials go into --env.", WRONG)
    if replace is not None and (name or label or external_id):
        raise CommandFailed("--replace changes the file alone: no --name, --label or --external-id.", WRONG)
    server = Server.find(url=url, api_key=api_key, data=data)
    choice = _choice(include, exclude, approve)
    if file is not None and replace is not None:
        tool_set, watch = _replaced(server, replace, file, _read_env(env), pairs(base_uri, "--base-uri"), choice)
        _report(server, tool_set, None if no_wait else watch.wait(timeout), as_json=as_json, done="Changed")
        return
    source = _Source(target, stdio, http, file, pairs(header, "--header", ":"), _read_env(env), choice)
    adapter, usual_name = source.adapter(server, transport, cwd, pairs(base_uri, "--base-uri"))
    body = {
        "metadata": _metadata(name or usual_name, label, external_id),
        "spec": {"adapter": adapter, "description": description},
    }
    tool_set = tool_set_entry(server, server.post("/v1/tool_sets", body, expects="metadata"))
    outcome = None if http is not None or no_wait else SyncWatch(server, tool_set).wait(timeout)
    _report(server, tool_set, outcome, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where tools come from, one of the first four, and what goes with it."""

    target: str | None
    stdio: str | None
    http: str | None
    file: Path | None
    headers: dict[str, str]
    env: dict[str, str]
    choice: dict[str, Any]

    def adapter(
        self, server: Server, transport: str, cwd: Path | None, base_uris: dict[str, str]
    ) -> tuple[dict[str, Any], str]:
        """The adapter as the API wants it, and what a tool set of it is called."""
        if self.http is not None:
            return {"http": {"baseUrl": self.http, "headers": self.headers}}, _name_of_url(self.http)
        if self.stdio is not None:
            words = _words(self.stdio)
            command = _command(words, self.env, cwd, server)
            return {"mcp": {"headers": self.headers, **command, **self.choice}}, _name_of_command(words)
        if self.file is not None:
            whole = _uploads().CapabilityFile.read(self.file, env=self.env, base_uris=base_uris)
            whole.say_findings()
            sent = {"source": whole.text, "env": self.env, "baseUris": base_uris, **self.choice}
            return {"capability": sent}, whole.name
        url = self.target or ""
        return {"mcp": {"url": url, "transport": transport, "headers": self.headers, **self.choice}}, _name_of_url(url)


def _check_source(
    target: str | None,
    stdio: str | None,
    http: str | None,
    *,
    file: Path | None,
    env: list[str] | None,
    cwd: Path | None,
    base_uri: list[str] | None,
    replace: str | None,
) -> None:
    """Raise CommandFailed unless there is one source, and every option is one of its own."""
    if sum(source is not None for source in (target, stdio, http)) != 1:
        raise CommandFailed("Give one source: a URL, a capability file, --stdio or --http.", WRONG)
    if stdio is None and cwd:
        raise CommandFailed("--cwd is for --stdio.", WRONG)
    if stdio is None and file is None and env:
        raise CommandFailed("--env is for --stdio and capability files.", WRONG)
    if file is None and (base_uri or replace is not None):
        raise CommandFailed("--base-uri and --replace are for capability files.", WRONG)


def _replaced(
    server: Server,
    name: str,
    file: Path,
    env: dict[str, str],
    base_uris: dict[str, str],
    choice: dict[str, Any],
) -> tuple[ToolSetEntry, SyncWatch]:
    """Give a tool set another version of its file; what is not given stays."""
    uploads = _uploads()
    tool_set, stored = uploads.stored_capability(server, name)
    whole = uploads.CapabilityFile.read(file, env=env, base_uris=base_uris)
    whole.say_findings(stored=stored.get("env", {}))
    adapter = {**uploads.replacement(stored, whole.text, env=env, base_uris=base_uris), **choice}
    watch = SyncWatch.before_asking(server, tool_set)
    changed = server.put(tool_set.path, {"spec": {"adapter": {"capability": adapter}}}, expects="metadata")
    server.post(f"{tool_set.path}:sync", expects="metadata")  # the same file would not be read again by itself
    return tool_set_entry(server, changed), watch


def _is_capability_file(target: str) -> bool:
    """Whether a target is a file here, or is called like one."""
    path = Path(target)
    return "://" not in target and (path.is_file() or path.suffix.lower() in _ENDINGS)


def _read_env(texts: list[str] | None) -> dict[str, str]:
    """`NAME=VALUE`, or `NAME` for the value that the environment of this command has.

    Raises:
        typer.BadParameter: one has no name, or the environment no such variable.
    """
    values = {}
    for text in texts or ():
        name, here, value = text.partition("=")
        if not name.strip():
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE.", param_hint="--env")
        if not here and (found := os.environ.get(name.strip())) is None:
            raise typer.BadParameter(f"{name} has no value in the environment; write {name}=VALUE.", param_hint="--env")
        values[name.strip()] = value if here else (found or "")
    return values


def _uploads() -> Any:
    """`capability_upload.py`, loaded when there is a file: the engine takes longer to load than others to run."""
    return importlib.import_module("toolcrib.cli.capability_upload")


def _metadata(name: str, label: list[str] | None, external_id: str | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": pairs(label, "--label")}
    return metadata | ({"externalId": external_id} if external_id else {})


def _command(words: list[str], env: dict[str, str], cwd: Path | None, server: Server) -> dict[str, Any]:
    command: dict[str, Any] = {"command": words[0], "args": words[1:], "env": env}
    folder = cwd.absolute() if cwd else _folder_of(words, server)
    return command | ({"cwd": str(folder)} if folder else {})


def _report(
    server: Server, tool_set: ToolSetEntry, outcome: SyncOutcome | None, *, as_json: bool, done: str = "Added"
) -> None:
    """Say what was added or changed and what it offers."""
    if outcome is not None:
        tool_set = tool_set_entry(server, server.get(tool_set.path, expects="metadata"))
    tools = [tool for tool in tools_of(server, tool_set) if tool.status != "archived"] if outcome else []
    if wants_json(as_json):
        print_json(
            {
                **as_dict(tool_set),
                "tools": [{"name": tool.name, "status": tool.status} for tool in tools],
                "sync": as_dict(outcome) if outcome else None,
            }
        )
    elif outcome is None or outcome.ok:
        rows = [(t.name, t.status, "required" if t.requires_approval else "-", t.description.strip()) for t in tools]
        print_table(("NAME", "STATUS", "APPROVAL", "DESCRIPTION"), rows)
    say(f"{done} {tool_set.name} ({tool_set.id}), also at {tool_set.mcp_url}.")
    if outcome is None:
        if tool_set.kind == "http":
            say(f"Give it tools: toolcrib tools add-http {tool_set.slug} NAME --path /...")
    elif outcome.ok:
        say(outcome.message)
    else:
        say(f"Its tools were not read: {outcome.message}")
        say(f"Toolcrib tries again by itself; `toolcrib tools events {tool_set.slug}` tells how it went.")
        raise typer.Exit(FAILED)


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise CommandFailed(f"--stdio: {error}.", WRONG) from None
    if not words:
        raise CommandFailed("--stdio: the command is empty.", WRONG)
    return words


def _folder_of(words: list[str], server: Server) -> Path | None:
    """The current folder, if the command names something in it: the server runs elsewhere and would not find it."""
    here = Path.cwd()
    for word in words if server.local else ():
        path = Path(word)
        if not path.is_absolute() and word != words[0].partition("/")[0] and (here / path).exists():
            say(f"The command runs in {here}, because {word} is there (--cwd chooses another folder).")
            return here
    return None


def _name_of_url(url: str) -> str:
    """`deepwiki` for https://mcp.deepwiki.com/mcp, host and port for an address."""
    parts = urlsplit(url)
    host = parts.hostname or "tools"
    labels = host.split(".")
    if host == "localhost" or ":" in host or labels[-1].isdigit():
        return parts.netloc.rpartition("@")[2] or host
    while len(labels) > 2 and labels[0] in {"www", "mcp", "api"}:
        labels.pop(0)
    return labels[0]


def _name_of_command(words: list[str]) -> str:
    """What is run, without the program that runs it, its folder, scope, version and ending."""
    told = words[0]
    if Path(told).name in _LAUNCHERS or re.fullmatch(r"python3\.\d+", Path(told).name):
        rest = [word for word in words[1:] if not word.startswith("-") and word not in _LAUNCHER_WORDS]
        told = rest[0] if rest else told
    base = told.rstrip("/").rpartition("/")[2]
    return re.sub(r"(?<=.)@.*$|\.(py|js|mjs|ts|sh)$", "", base) or base


# ---- patterns ------------------------------------------------------------------------------------------------------


def matcher_of(pattern: str) -> dict[str, str]:
    """The API's matcher for `name`, `get_*`, `*_file`, `*user*`, `get_*_by_?` or `/regular expression/`."""
    if len(pattern) > 2 and pattern.startswith("/") and pattern.endswith("/"):
        return {"regex": pattern[1:-1]}
    middle = pattern.strip("*")
    if middle and not {"*", "?"} & set(middle):
        match (pattern.startswith("*"), pattern.endswith("*")):
            case (False, False):
                return {"exact": middle}
            case (False, True):
                return {"startsWith": middle}
            case (True, False):
                return {"endsWith": middle}
            case _:
                return {"contains": middle}
    wild = {"*": ".*", "?": "."}
    return {"regex": "^" + "".join(wild.get(char, re.escape(char)) for char in pattern) + "$"}


def _filter(patterns: list[str]) -> dict[str, Any]:
    filters = [{"attribute": "ATTRIBUTE_NAME", "matcher": matcher_of(pattern)} for pattern in patterns]
    return {"operator": "OPERATOR_OR", "filters": filters}


def _choice(include: list[str] | None, exclude: list[str] | None, approve: list[str] | None) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    if include:
        chosen["includeTools"] = _filter(include)
    if exclude:
        chosen["excludeTools"] = _filter(exclude)
    if approve:
        chosen["toolApprovals"] = {"always": True} if "all" in approve else {"only": _filter(approve)}
    return chosen


# ---- tools of an HTTP API ------------------------------------------------------------------------------------------


Path_ = Annotated[str, typer.Option("--path", help="Path after the base URL: /orders/{id}.")]
Method = Annotated[
    Literal["GET", "POST", "PUT", "PATCH", "DELETE"],
    typer.Option("--method", "-X", case_sensitive=False, help="HTTP method."),
]
Query = Annotated[str | None, typer.Option("--query", metavar="'q={{ text }}&n={{ count }}'", help="Query string.")]
BodyText = Annotated[
    str | None,
    typer.Option("--body-template", metavar="TEXT|@FILE", help="Request body: {'text': '{{ text }}'}."),
]
ContentType = Annotated[
    str | None, typer.Option("--content-type", help="Of the body; default: application/json.", show_default=False)
]
Parameters = Annotated[
    str | None, typer.Option("--parameters", metavar="JSON|@FILE", help="JSON Schema; default: from the templates.")
]


def add_http(
    tool_set: Annotated[str, typer.Argument(help="Tool set made with `tools add --http`.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Name of the tool.", show_default=False)],
    path: Path_ = "",
    method: Method = "GET",
    query: Query = None,
    body_template: BodyText = None,
    content_type: ContentType = None,
    header: Headers = None,
    parameters: Parameters = None,
    approve: Annotated[bool, typer.Option("--approve", help="A person must approve each call.")] = False,
    label: Labels = None,
    description: Description = "",
    external_id: ExternalId = None,
    as_json: Json = False,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Add a tool to a tool set that is an HTTP API; {{ name }} stands for an argument, in the path {name} too.

    Without --query and --body-template, arguments that the path does not use go into the query (GET, DELETE) or into a
    JSON body. Without --parameters, every argument is text and those in the path are required.

    Examples:
        toolcrib tools add-http orders get_order --path '/orders/{id}' --description 'One order.'
        toolcrib tools add-http orders find_orders --path /orders --query 'q={{ text }}'
        toolcrib tools add-http orders note -X POST --path '/orders/{id}/notes' --body-template '{"text": "{{ text }}"}'
    """
    headers = pairs(header, "--header", ":")
    body = None if body_template is None else text_of(body_template)
    derived = _derived_schema(path, query, headers, body, content_type or "application/json")
    schema = derived if parameters is None else parse_object(text_of(parameters), "--parameters")
    config = {
        "requestMethod": method.upper(),
        "path": path or None,
        "query": query,
        "headers": headers or None,
        "requestBodyTemplate": body,
        "requestBodyContentType": content_type,
    }
    server = Server.find(url=url, api_key=api_key, data=data)
    found = find_tool_set(server, tool_set)
    spec = {
        "status": "TOOL_STATUS_AVAILABLE",
        "description": description,
        "parameters": schema,
        "requiresApproval": approve,
        "config": {"http": {member: value for member, value in config.items() if value is not None}},
    }
    body_ = {"metadata": _metadata(name, label, external_id), "spec": spec}
    wire = server.post(f"{found.path}/tools", body_, expects="metadata")
    _report_tool(tool_entry(wire, found.slug), wire["info"]["signature"], as_json=as_json)


def _report_tool(tool: ToolEntry, signature: str, *, as_json: bool) -> None:
    if wants_json(as_json):
        print_json(as_dict(tool))
    else:
        print_text(signature)
    say(f"Added {tool.name} ({tool.id}) to {tool.tool_set}.")


def _derived_schema(
    path: str, query: str | None, headers: dict[str, str], body: str | None, content_type: str
) -> dict[str, Any]:
    """A schema with the variables of these templates: text, or an object where only its members are used."""
    in_path = _compiled("--path", lambda: PathTemplate.compile(path).parts)
    others: list[Any] = [part for value in headers.values() for part in TextTemplate.compile(value).parts]
    if query is not None:
        pairs_ = _compiled("--query", lambda: QueryTemplate.compile(query).pairs)
        others += [part for _, template in pairs_ for part in template.parts]
    if body is not None:
        template = _compiled("--body-template", lambda: BodyTemplate.compile(body, content_type))
        others += template.parts
        if template.form is not None:
            others += [part for _, value in template.form.pairs for part in value.parts]
    variables = [part for part in (*in_path, *others) if isinstance(part, Variable)]
    properties = {v.path[0]: {"type": "object" if len(v.path) > 1 else "string"} for v in variables}
    required = list(dict.fromkeys(part.path[0] for part in in_path if isinstance(part, Variable)))
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _compiled(option: str, compiles: Callable[[], Any]) -> Any:
    try:
        return compiles()
    except (TemplateError, json.JSONDecodeError) as error:
        raise CommandFailed(f"{option}: {error}.", WRONG) from None
