"""`toolcrib audit`: the record of tool calls."""

from typing import Annotated, Literal

import typer

from toolcrib.cli.client import Server
from toolcrib.cli.inventory import find_tool_set
from toolcrib.cli.options import ApiKey, Data, Json, Url
from toolcrib.cli.output import local_time, print_json, print_table, wants_json


def audit(
    tool: Annotated[str | None, typer.Option("--tool", help="Only calls of this tool.", show_default=False)] = None,
    tool_set: Annotated[
        str | None, typer.Option("--tool-set", help="Only calls of this tool set.", show_default=False)
    ] = None,
    outcome: Annotated[
        Literal["ok", "tool_error", "upstream_error", "refused", "cancelled"] | None,
        typer.Option("--outcome", help="Only calls that ended so.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=500, help="Most calls to show.")] = 20,
    as_json: Json = False,
    data: Data = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show which tools were called, by whom, with which outcome, newest first; JSON has the arguments too.

    Examples:
        toolcrib audit --limit 50
        toolcrib audit --tool search --outcome refused
        toolcrib audit --json | jq '.[] | {tool, arguments}'
    """
    server = Server.find(url=url, api_key=api_key, data=data)
    tool_set_id = find_tool_set(server, tool_set).id if tool_set else None
    asked = {"tool": tool, "tool_set_id": tool_set_id, "outcome": outcome, "limit": limit}
    calls = server.get("/api/tool-calls", expects="data", **asked)["data"]
    if wants_json(as_json):
        print_json(calls)
        return
    rows = [
        (
            local_time(call["called_at"]),
            call["tool"],
            call["principal"] or call["principal_id"],
            call["door"],
            f"{call['duration_ms']:.1f}",
            call["result_bytes"],
            call["outcome"] + (f": {call['error_code']}" if call["error_code"] else ""),
        )
        for call in calls
    ]
    print_table(("AT", "TOOL", "BY", "DOOR", "MS", "BYTES", "OUTCOME"), rows, empty="No calls were recorded.")
