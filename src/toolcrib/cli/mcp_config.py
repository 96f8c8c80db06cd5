"""`toolcrib mcp-config`: what to write into an MCP client's configuration so that it gets this server's tools.

Each client has one entry in `_CLIENTS`: its file, and how it spells a server with a URL and a header. Formats are those
of the clients' own documentation.
"""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from toolcrib.cli.client import Server
from toolcrib.cli.failure import WRONG, CommandFailed
from toolcrib.cli.inventory import find_tool_set
from toolcrib.cli.keys import make_key
from toolcrib.cli.options import Data, Url, load_settings
from toolcrib.cli.output import print_text, say

_VARIABLE = "TOOLCRIB_API_KEY"
_TO_REPLACE = "YOUR_API_KEY"


class Client(StrEnum):
    """MCP clients whose configuration is known."""

    CLAUDE = "claude"
    CLAUDE_CODE = "claude-code"
    CURSOR = "cursor"
    VSCODE = "vscode"
    WINDSURF = "windsurf"
    ZED = "zed"
    GEMINI = "gemini"
    CODEX = "codex"


@dataclass(frozen=True, slots=True)
class _Entry:
    """How to reach the server: `key` is None when a placeholder stands for it."""

    name: str
    url: str
    key: str | None

    def bearer(self, placeholder: str) -> dict[str, str]:
        """The header that signs in."""
        return {"Authorization": f"Bearer {self.key or placeholder}"}


@dataclass(frozen=True, slots=True)
class _Format:
    """A client: its name, where its file is, what goes into it, and the command that does the same, if it has one."""

    title: str
    file: str
    render: Callable[[_Entry], str]
    command: Callable[[_Entry], list[str]] | None = None


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _claude(entry: _Entry) -> str:
    """Claude Desktop's file knows commands only; `mcp-remote` is the bridge, and blanks in its arguments get lost."""
    bridge = ["-y", "mcp-remote", entry.url, "--header", "Authorization:${AUTH_HEADER}"]
    if entry.url.startswith("http:"):
        bridge.append("--allow-http")
    env = {"AUTH_HEADER": entry.bearer(_TO_REPLACE)["Authorization"]}
    return _json({"mcpServers": {entry.name: {"command": "npx", "args": bridge, "env": env}}})


def _claude_code(entry: _Entry) -> str:
    server = {"type": "http", "url": entry.url, "headers": entry.bearer(f"${{{_VARIABLE}}}")}
    return _json({"mcpServers": {entry.name: server}})


def _claude_code_command(entry: _Entry) -> list[str]:
    header = f"Authorization: {entry.bearer(_TO_REPLACE)['Authorization']}"
    return ["claude", "mcp", "add", "--transport", "http", entry.name, entry.url, "--header", header]


def _cursor(entry: _Entry) -> str:
    return _json({"mcpServers": {entry.name: {"url": entry.url, "headers": entry.bearer(f"${{env:{_VARIABLE}}}")}}})


def _vscode(entry: _Entry) -> str:
    """Without a key VS Code asks for it once and keeps it itself."""
    server = {"type": "http", "url": entry.url, "headers": entry.bearer("${input:toolcrib-api-key}")}
    config: dict[str, Any] = {"servers": {entry.name: server}}
    if entry.key is None:
        asked = {
            "type": "promptString",
            "id": "toolcrib-api-key",
            "description": "Toolcrib API key",
            "password": True,
        }
        config["inputs"] = [asked]
    return _json(config)


def _vscode_command(entry: _Entry) -> list[str]:
    server = {"name": entry.name, "type": "http", "url": entry.url, "headers": entry.bearer(_TO_REPLACE)}
    return ["code", "--add-mcp", json.dumps(server)]


def _windsurf(entry: _Entry) -> str:
    server = {"serverUrl": entry.url, "headers": entry.bearer(f"${{env:{_VARIABLE}}}")}
    return _json({"mcpServers": {entry.name: server}})


def _zed(entry: _Entry) -> str:
    return _json({"context_servers": {entry.name: {"url": entry.url, "headers": entry.bearer(_TO_REPLACE)}}})


def _gemini(entry: _Entry) -> str:
    return _json({"mcpServers": {entry.name: {"httpUrl": entry.url, "headers": entry.bearer(f"${_VARIABLE}")}}})


def _gemini_command(entry: _Entry) -> list[str]:
    header = f"Authorization: {entry.bearer(_TO_REPLACE)['Authorization']}"
    return ["gemini", "mcp", "add", "--scope", "user", "--transport", "http", "--header", header, entry.name, entry.url]


def _codex(entry: _Entry) -> str:
    """TOML, whose basic strings and keys are written as JSON writes them."""
    header = (
        f"http_headers = {{ Authorization = {json.dumps(entry.bearer('')['Authorization'])} }}"
        if entry.key
        else f"bearer_token_env_var = {json.dumps(_VARIABLE)}"
    )
    return f"[mcp_servers.{json.dumps(entry.name)}]\nurl = {json.dumps(entry.url)}\n{header}"


_CLIENTS = {
    Client.CLAUDE: _Format(
        "Claude Desktop",
        "claude_desktop_config.json: in ~/Library/Application Support/Claude (macOS), %APPDATA%\\Claude (Windows),"
        " ~/.config/Claude (Linux); it needs Node.js for npx",
        _claude,
    ),
    Client.CLAUDE_CODE: _Format(
        "Claude Code", ".mcp.json in the project, or ~/.claude.json", _claude_code, _claude_code_command
    ),
    Client.CURSOR: _Format("Cursor", ".cursor/mcp.json in the project, or ~/.cursor/mcp.json", _cursor),
    Client.VSCODE: _Format(
        "VS Code",
        ".vscode/mcp.json in the project, or `MCP: Open User Configuration`",
        _vscode,
        _vscode_command,
    ),
    Client.WINDSURF: _Format("Windsurf", "~/.codeium/windsurf/mcp_config.json", _windsurf),
    Client.ZED: _Format("Zed", "settings.json (`zed: open settings file`)", _zed),
    Client.GEMINI: _Format(
        "Gemini CLI", "~/.gemini/settings.json, or .gemini/settings.json in the project", _gemini, _gemini_command
    ),
    Client.CODEX: _Format("Codex", "~/.codex/config.toml", _codex),
}


def mcp_config(
    client: Annotated[Client, typer.Argument(help="Which MCP client.", show_default=False)],
    tool_set: Annotated[
        str | None, typer.Option("--tool-set", help="Only the tools of this tool set.", show_default=False)
    ] = None,
    name: Annotated[str, typer.Option("--name", help="What the client calls this server.")] = "toolcrib",
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            "--api-key",
            envvar=_VARIABLE,
            help="API key to write; default: a new one that may only call tools, named after the client.",
            show_default=False,
        ),
    ] = None,
    no_key: Annotated[bool, typer.Option("--no-key", help="Leave a placeholder for the key.")] = False,
    command: Annotated[
        bool, typer.Option("--command", help="Print the client's own command that adds the server, if it has one.")
    ] = False,
    data: Data = None,
    url: Url = None,
) -> None:
    """Print the configuration that gives an MCP client the tools of this server, with an API key of its own.

    Standard error says which file it belongs into; merge it if there is something in that file already.

    Examples:
        toolcrib mcp-config cursor > .cursor/mcp.json
        toolcrib mcp-config claude --tool-set github
        toolcrib mcp-config claude-code --command
    """
    known = _CLIENTS[client]
    if command and known.command is None:
        raise CommandFailed(f"{known.title} has no command that adds a server; leave --command out.", WRONG)
    server = Server.find(url=url, api_key=None, data=data)
    target = f"{server.url}/mcp"
    if tool_set is not None:
        target = find_tool_set(server, tool_set).mcp_url
    if no_key:
        key = None
    elif key is None:
        key = _new_key(client, url, data)
    entry = _Entry(name, target, key)
    printed = shlex.join(known.command(entry)) if command and known.command else known.render(entry)
    print_text(printed)
    if not command:
        say(f"For {known.title}: {known.file}.")
    if _TO_REPLACE in printed:
        say(f"Put a key in the place of {_TO_REPLACE}; `toolcrib key create` makes one.")
    elif key is None:
        where = "asks for the key" if client is Client.VSCODE else f"takes the key from the variable {_VARIABLE}"
        say(f"{known.title} {where}; `toolcrib key create` makes one.")


def _new_key(client: Client, url: str | None, data: Path | None) -> str:
    """A key of the client's own, so that the audit tells who called and it can be revoked alone."""
    if url is not None:
        raise CommandFailed("A key for the server at --url has to be given: --key or --no-key.", WRONG)
    made, text = make_key(load_settings(data=data), name=str(client), scopes=["tools:call"])
    say(f"Made the API key {made.hint}, named {client}, which may only call tools; `toolcrib key revoke` ends it.")
    return text
