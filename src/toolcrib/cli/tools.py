"""`toolcrib tools`: see, call, sync and remove tools; adding them is in `tool_sources.py`."""

import sys
from typing import Annotated, Any

import typer
from rich.text import Text

from toolcrib.cli.arguments import parse_object, read_arguments, text_of
from toolcrib.cli.client import Server, path_of
from toolcrib.cli.failure import FAILED, WRONG, CommandFailed
from toolcrib.cli.inventory import (
    SyncOutcome,
    SyncWatch,
    ToolEntry,
    ToolSetEntry,
    as_dict,
    find_tool,
    find_tool_or_set,
    find_tool_set,
    tool_sets,
    tools_of,
)
from toolcrib.cli.options import ApiKey, Data, Json, Url
from toolcrib.cli.output import (
    local_time,
    print_json,
    print_table,
    print_text,
    printable,
    say,
    waiting,
    wants_json,
    words,
)
from toolcrib.cli.tool_sources import add, add_http

_LONGEST_CALL_S = 3700  # above the longest TOOLCRIB_CALL_TIMEOUT_S: the server ends a call, not this command

app = typer.Typer(
    name="tools",
    help="Add, see, call, sync and remove tools.\n\nExamples:\n    toolcrib tools add https://mcp.deepwiki.com/mcp\n"
    "    toolcrib tools add shop.yaml --env SHOP_TOKEN\n"
    "    toolcrib tools list\n    toolcrib tools call add --arg a=1 --arg b=2",
    no_args_is_help=True,
)
app.command("add")(add)
app.command("add-http")(add_http)

Name = Annotated[str, typer.Argument(help="Tool set: its name, slug, id or external id.", show_default=False)]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait for the outcome.")]


@app.command("list")
def list_(
    tool_set: Annotated[
        str | None, typer.Option("--tool-set", help="Only the tools of this tool set.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Archived tools too.")] = False,
    as_json: Json = False,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List tools: the name to call them by, tool set, status, whether a person must approve, description.

    Examples:
        toolcrib tools list
        toolcrib tools list --tool-set github --json | jq '.[].name'
    """
    server = Server.find(url=url, api_key=api_key, data=data)
    with waiting("Reading tools ..."):
        sets = [find_tool_set(server, tool_set)] if tool_set else list(tool_sets(server))
        tools = [t for s in sets for t in tools_of(server, s) if everything or t.status != "archived"]
    tools.sort(key=lambda tool: (tool.tool_set, tool.name))
    if wants_json(as_json):
        print_json([_brief(tool) for tool in tools])
        return
    print_tools(tools)


def print_tools(tools: list[ToolEntry]) -> None:
    """A table of tools."""
    print_table(
        ("NAME", "TOOL SET", "STATUS", "APPROVAL", "DESCRIPTION"),
        [
            (t.name, t.tool_set, t.status, "required" if t.requires_approval else "-", t.description.strip())
            for t in tools
        ],
        empty="There are no tools. `toolcrib tools add URL` adds some.",
    )


def _brief(tool: ToolEntry) -> dict[str, Any]:
    return {name: value for name, value in as_dict(tool).items() if name not in {"parameters", "config"}}


@app.command()
def sets(as_json: Json = False, data: Data = None, url: Url = None, api_key: ApiKey = None) -> None:
    """List tool sets: where tools come from, how many there are, when they were last read, their MCP path.

    Examples:
        toolcrib tools sets
        toolcrib tools sets --json
    """
    server = Server.find(url=url, api_key=api_key, data=data)
    found = list(tool_sets(server))
    if wants_json(as_json):
        print_json([as_dict(tool_set) for tool_set in found])
        return
    rows = [
        (
            s.name,
            s.kind or "-",
            s.available,
            s.filtered or "-",
            local_time(s.last_sync_at) or "-",
            f"/mcp/{s.slug}",
            s.id,
        )
        for s in found
    ]
    print_table(
        ("NAME", "KIND", "TOOLS", "FILTERED", "LAST SYNC", "MCP PATH", "ID"),
        rows,
        empty="There are no tool sets. `toolcrib tools add URL` adds one.",
        cut_last=False,
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Call name or id of a tool.", show_default=False)],
    as_json: Json = False,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show a tool: description, parameters, how it is called.

    Examples:
        toolcrib tools show search
        toolcrib tools show search --json | jq .parameters
    """
    tool = find_tool(Server.find(url=url, api_key=api_key, data=data), name)
    if wants_json(as_json):
        print_json(as_dict(tool))
        return
    required = tool.parameters.get("required") or []
    properties = tool.parameters.get("properties") or {}
    approval = "required for each call" if tool.requires_approval else "not needed"
    print_text(
        f"{tool.name}  ({tool.tool_set}, {tool.status})\n\n{tool.description.strip()}\n\nApproval  {approval}\n"
        f"Id        {tool.id}\nTool set  {tool.tool_set_id}"
    )
    rows = [
        (
            parameter,
            _type_name(schema),
            "required" if parameter in required else "",
            schema.get("description", "") if isinstance(schema, dict) else "",
        )
        for parameter, schema in properties.items()
    ]
    print_text("")
    print_table(("PARAMETER", "TYPE", "", "DESCRIPTION"), rows, empty="It takes no arguments.")


def _type_name(schema: Any) -> str:
    if not isinstance(schema, dict):
        return "any"
    if isinstance(named := schema.get("type"), str):
        return named
    if isinstance(named, list):
        return "|".join(map(str, named))
    branches = schema.get("anyOf") or schema.get("oneOf") or ()
    return "|".join(dict.fromkeys(_type_name(branch) for branch in branches)) or "any"


@app.command()
def call(
    name: Annotated[str, typer.Argument(help="Call name of the tool.", show_default=False)],
    arg: Annotated[
        list[str] | None,
        typer.Option("--arg", "-a", metavar="NAME=VALUE", help="An argument, read by the tool's schema; NAME:=JSON."),
    ] = None,
    args: Annotated[
        str | None, typer.Option("--args", metavar="JSON|@FILE|-", help="All arguments as one JSON object.")
    ] = None,
    as_json: Json = False,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Call a tool and print its result: text on a terminal, the whole MCP result as JSON in a pipe.

    Ends with 1 when the tool reports an error, with 5 when the call was refused.

    Examples:
        toolcrib tools call get_current_time --arg timezone=Europe/Berlin
        toolcrib tools call search --arg 'filters:={"state": "open"}' --arg limit=5
        echo '{"a": 1, "b": 2}' | toolcrib tools call add --args - | jq -r '.content[0].text'
    """
    arguments = parse_object(text_of(args), "--args") if args is not None else {}
    server = Server.find(url=url, api_key=api_key, data=data)
    if arg:
        offered = next((tool for tool in server.offered_tools() if tool["name"] == name), {})
        arguments |= read_arguments(arg, offered.get("inputSchema", {}))
    with waiting(f"Calling {name} ..."):
        path = f"/api/tools{path_of(name)}/call"
        result = server.post(path, {"arguments": arguments}, expects="data", timeout_s=_LONGEST_CALL_S)["data"]
    if wants_json(as_json):
        print_json(result)
    else:
        for block in result["content"]:
            print_text(_shown(block))
    if result.get("isError"):
        say(f"The tool {name} reports an error.")
        raise typer.Exit(FAILED)


def _shown(block: dict[str, Any]) -> str:
    """A content block as text; what no terminal can show is named."""
    match block.get("type"):
        case "text":
            return str(block.get("text", ""))
        case "image" | "audio" as kind:
            return f"[{kind} {block.get('mimeType', '')}, {len(block.get('data', '')) * 3 // 4} bytes; see --json]"
        case "resource":
            resource = block.get("resource") or {}
            return str(resource.get("text") or f"[{resource.get('mimeType', 'data')} {resource.get('uri', '')}]")
        case "resource_link":
            return f"[{block.get('name', '')} {block.get('uri', '')}]"
        case other:
            return f"[{other}; see --json]"


@app.command()
def sync(
    name: Annotated[
        str | None, typer.Argument(help="Tool set: its name, slug, id or external id.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every tool set that is an MCP server.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask for it and leave.")] = False,
    timeout: Timeout = 60,
    as_json: Json = False,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Read the tools of an MCP server or a capability again, and say what changed; ends with 1 if one cannot be read.

    Examples:
        toolcrib tools sync github
        toolcrib tools sync --all
    """
    if (name is None) is not everything:
        raise CommandFailed("Name one tool set, or give --all.", WRONG)
    server = Server.find(url=url, api_key=api_key, data=data)
    chosen = [find_tool_set(server, name)] if name else [s for s in tool_sets(server) if s.kind in {"mcp", "stdio"}]
    watches = [SyncWatch.before_asking(server, tool_set) for tool_set in chosen]
    for tool_set in chosen:
        server.post(f"{tool_set.path}:sync", expects="metadata")
    outcomes = [SyncOutcome("asked", "") if no_wait else watch.wait(timeout) for watch in watches]
    if wants_json(as_json):
        done = zip(chosen, outcomes, strict=True)
        print_json([{"tool_set": s.slug, "tool_set_id": s.id, **as_dict(outcome)} for s, outcome in done])
    else:
        rows = [(s.name, o.outcome, o.message) for s, o in zip(chosen, outcomes, strict=True)]
        print_table(("TOOL SET", "OUTCOME", "MESSAGE"), rows, empty="There are no tool sets to sync.")
    if any(not outcome.ok for outcome in outcomes) and not no_wait:
        raise typer.Exit(FAILED)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Tool set or tool: its name or id.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Remove a tool set with all its tools, or one tool.

    A removed tool of an MCP server or a capability comes back with the next sync; filters keep it out
    (`tools add --exclude`).

    Examples:
        toolcrib tools remove github
        toolcrib tools remove search --yes
    """
    server = Server.find(url=url, api_key=api_key, data=data)
    found = find_tool_or_set(server, name)
    what = (
        f"the tool set {found.name} with its {found.available + found.filtered} tools"
        if isinstance(found, ToolSetEntry)
        else f"the tool {found.name} of {found.tool_set}"
    )
    if not yes:
        if not sys.stdin.isatty():
            raise CommandFailed(f"This would remove {what}. Give --yes to do it without being asked.", WRONG)
        words.print(Text(printable(f"Remove {what}? [y/N] ")), end="")
        if input().strip().lower() not in {"y", "yes"}:
            raise CommandFailed("Nothing was removed.")
    server.delete(found.path)
    say(f"Removed {what}.")


@app.command()
def events(
    name: Name,
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="Most events to show.")] = 20,
    as_json: Json = False,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show what happened to a tool set, newest first: when its tools were read, what changed, why it failed.

    Examples:
        toolcrib tools events github
        toolcrib tools events github --limit 1 --json
    """
    server = Server.find(url=url, api_key=api_key, data=data)
    tool_set = find_tool_set(server, name)
    page = server.get(f"{tool_set.path}/events", expects="items", sortOrder="desc", limit=limit)["items"]
    found = []
    for wire in page:
        event = wire["event"]
        detail = next(value for member, value in event.items() if member != "type")
        found.append(
            {
                "id": wire["metadata"]["id"],
                "at": wire["metadata"]["createdAt"],
                "event": event["type"],
                "message": detail["message"],
                "error_type": detail.get("errorType"),
            }
        )
    if wants_json(as_json):
        print_json(found)
        return
    rows = [(local_time(e["at"]), e["event"], e["message"]) for e in found]
    print_table(("AT", "EVENT", "MESSAGE"), rows, empty=f"Nothing has happened to {tool_set.name} yet.")
