"""`toolcrib capability serve`: capability files as servers of their own, in one process, without a database.

Standard output carries one JSON line with `--json`, the protocol with standard streams, and nothing otherwise; words
and logs go to standard error.
"""

import asyncio
import contextlib
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from toolcrib import __version__
from toolcrib.capability.capability import Capability
from toolcrib.capability.findings import Finding
from toolcrib.capability.listening import CannotListen, Where, kind_of
from toolcrib.capability.logs import LogBuffer
from toolcrib.capability.serve import CapabilityHost, serving
from toolcrib.capability.spec import ControlServer, McpServer, RestServer, Server, SkillServer
from toolcrib.cli.capability_findings import count, count_in_words, print_findings
from toolcrib.cli.capability_options import (
    AllowAddress,
    BaseUri,
    EnvFile,
    NoRelay,
    PassQuery,
    Surroundings,
    address_policy,
    must_exist,
    outbound_client,
)
from toolcrib.cli.failure import WRONG, CommandFailed
from toolcrib.cli.loop import run
from toolcrib.cli.options import load_settings
from toolcrib.cli.output import printable, say
from toolcrib.core.addresses import AddressPolicy
from toolcrib.core.log import configure_logging
from toolcrib.core.web_server import on_signals

_OPTIONS = {"rest": "--rest-port", "mcp": "--mcp-port", "skill": "--skill-port", "control": "--control-port"}

Port = Annotated[
    int | None,
    typer.Option("--port", min=0, max=65535, help="One port for all but control servers.", show_default=False),
]
RestPort = Annotated[
    int | None, typer.Option("--rest-port", min=0, max=65535, help="Port of REST servers.", show_default=False)
]
McpPort = Annotated[
    int | None, typer.Option("--mcp-port", min=0, max=65535, help="Port of MCP servers.", show_default=False)
]
SkillPort = Annotated[
    int | None, typer.Option("--skill-port", min=0, max=65535, help="Port of skill servers.", show_default=False)
]
ControlPort = Annotated[
    int | None, typer.Option("--control-port", min=0, max=65535, help="Port of control servers.", show_default=False)
]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the command line asks for."""

    paths: tuple[str, ...]
    surroundings: Surroundings
    policy: AddressPolicy
    where: Where
    stdio: bool
    watch: bool
    as_json: bool


def serve(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Capability files.", show_default=False)],
    base_uri: BaseUri = None,
    host: Annotated[
        str | None,
        typer.Option("--host", help="Address for all but control servers; default: each file's.", show_default=False),
    ] = None,
    port: Port = None,
    rest_port: RestPort = None,
    mcp_port: McpPort = None,
    skill_port: SkillPort = None,
    control_port: ControlPort = None,
    stdio: Annotated[
        bool, typer.Option("--stdio", help="Serve the MCP server over standard input and output.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Swap files in when they change.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse files with errors, and variables without a value.")
    ] = False,
    pass_query: PassQuery = False,
    no_relay: NoRelay = False,
    allow_address: AllowAddress = None,
    env_file: EnvFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON line on standard output when everything answers.")
    ] = False,
) -> None:
    """Serve capability files, each server on the port that its file declares; port 0 takes a free one.

    Servers on one port share a listener: several files get their name as a prefix. Ctrl-C stops all of it, SIGHUP reads
    every file again. A file that cannot be served keeps the others from nothing, unless --strict.

    Examples:
        toolcrib capability serve shop.yaml
        toolcrib capability serve shop.yaml stock.yaml --port 8080 --watch --env-file .env
        toolcrib capability serve legacy.yaml --base-uri legacy-api=https://api.example.net/v2 --host 0.0.0.0
        toolcrib capability serve shop.yaml --stdio
    """
    must_exist(files)
    if as_json and stdio:
        raise CommandFailed("With --stdio, standard output belongs to the client: leave --json out.", WRONG)
    wanted = _Wanted(
        tuple(dict.fromkeys(map(str, files))),
        Surroundings.of(base_uri, env_file, strict=strict, pass_query=pass_query, relay_bodies=not no_relay),
        address_policy(allow_address),
        Where(host, port, rest_port, mcp_port, skill_port, control_port),
        stdio,
        watch,
        as_json,
    )
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_style)
    run(lambda: _serve(wanted))


async def _serve(wanted: _Wanted) -> None:
    logs = LogBuffer()
    logging.getLogger().addHandler(logs)
    outbound = outbound_client(wanted.policy)
    facts = {"watch": wanted.watch, "strict": wanted.surroundings.strict, "passQuery": wanted.surroundings.pass_query}
    try:
        load = wanted.surroundings.loader(outbound)
        host = CapabilityHost(load, wanted.paths, wanted.where, logs=logs, facts=facts)
        try:
            await _run(host, wanted)
        finally:
            await host.stop()
    except CannotListen as error:
        kind = kind_of(error.place.server)
        one = wanted.where.port is not None and kind != "control"
        option = "--port" if one else _OPTIONS[kind]
        raise CommandFailed(f"{error.message} Choose another with {option}.") from None
    finally:
        await outbound.close()


async def _run(host: CapabilityHost, wanted: _Wanted) -> None:
    for path, error in host.broken.items():
        print_findings(error.findings, to_stderr=True)
        say(f"{path} cannot be served.")
    if host.broken and (wanted.surroundings.strict or not host.capabilities):
        raise CommandFailed(f"Cannot serve {', '.join(host.broken)}.")
    wanted.surroundings.must_know(host.capabilities.values())
    stdio = _stdio_server(host, asked=wanted.stdio)
    if stdio is not None and wanted.as_json:
        message = f"{stdio[1]} of {stdio[0]} uses standard streams, so standard output is its: leave --json out."
        raise CommandFailed(message, WRONG)
    async with serving(host, watch=wanted.watch, stdio=stdio) as stop, _signals(host, stop):
        if not host.mounts and stdio is None:
            raise CommandFailed(f"There is nothing to serve in {', '.join(host.capabilities)}.")
        _announce(host, stdio)
        if wanted.as_json:
            print(json.dumps(_line(host)), flush=True)
        host.settle()
        if stdio is None:
            await stop.wait()
        else:
            await _until_client_goes(host, stop)
        say("Stopping ...")


def _stdio_server(host: CapabilityHost, *, asked: bool) -> tuple[str, str] | None:
    """Path and namespace of the MCP server that uses standard streams, if one does."""
    there = [(path, server) for path, c in host.capabilities.items() for server in c.servers(McpServer)]
    declared = [(path, s) for path, s in there if isinstance(s, McpServer) and s.transport == "stdio"]
    chosen = declared if len(declared) == 1 or not asked else there
    if len(chosen) == 1:
        return chosen[0][0], chosen[0][1].namespace
    if asked:
        names = ", ".join(f"{server.namespace} of {path}" for path, server in there) or "there is none"
        raise CommandFailed(f"--stdio serves exactly one MCP server: {names}.", WRONG)
    if declared:
        names = ", ".join(server.namespace for _, server in declared)
        say(f"Standard streams are for one MCP server alone, so none of these is served: {names}.")
    return None


@asynccontextmanager
async def _signals(host: CapabilityHost, stop: asyncio.Event) -> AsyncIterator[None]:
    """SIGINT and SIGTERM stop, the second one at once; SIGHUP reads every file again."""
    reloads: set[asyncio.Task[None]] = set()

    def end() -> None:
        if stop.is_set():
            host.hurry()
        stop.set()

    def again() -> None:
        task = asyncio.ensure_future(host.reload_all())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop = asyncio.get_running_loop()
    on_signals(end)  # until the process ends: the second one comes while we stop
    loop.add_signal_handler(signal.SIGHUP, again)
    try:
        yield
    finally:
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        for task in reloads:
            task.cancel()
        await asyncio.gather(*reloads, return_exceptions=True)


async def _until_client_goes(host: CapabilityHost, stop: asyncio.Event) -> None:
    """Serve the one client on standard streams until it goes or we are to stop."""
    server = host.stdio_server()
    if server is None:
        return
    if sys.stdin.isatty():
        say("Waiting for an MCP client on standard input.")
    client = asyncio.ensure_future(server.serve_stdio())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({client, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for task in (client, stopping):
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError, OSError):  # OSError: nobody reads any more
        await client


# -- what is said


def _line(host: CapabilityHost) -> dict[str, Any]:
    findings = [finding for capability in host.capabilities.values() for finding in capability.findings]
    servers = [
        {
            "file": mount.place.path,
            "type": mount.kind,
            "namespace": mount.place.server.namespace,
            "url": mount.url,
            "port": mount.port,
        }
        for mount in host.mounts
    ]
    return {"servers": servers, "broken": list(host.broken), "findings": count(findings)}


def _announce(host: CapabilityHost, stdio: tuple[str, str] | None) -> None:
    console = Console(stderr=True, highlight=False)
    rows = [(host.names[m.place.path], m.place.server, m.kind, m.url) for m in host.mounts]
    if stdio is not None:
        server = next(s for s in host.capabilities[stdio[0]].servers(McpServer) if s.namespace == stdio[1])
        rows.append((host.names[stdio[0]], server, "mcp", "standard streams"))
    cells = [tuple(map(printable, (n, k, url, f"{s.namespace}, {_what(s)}"))) for n, s, k, url in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    console.print(Text(f"Toolcrib {__version__} serves", style="bold"))
    for cell in cells:  # no table of Rich, which would break or cut what people copy on a narrow terminal
        line = "  ".join(map(set_cell_size, cell, widths)).rstrip()
        console.print(Text(line), soft_wrap=True)
    for failure in host.unserved:
        console.print(Text(f"! {printable(failure.message)}", style="yellow"), soft_wrap=True)
    for path, capability in host.capabilities.items():
        for warning in _warnings(capability):
            console.print(Text(f"! {printable(warning)}", style="yellow"), soft_wrap=True)
        if capability.findings:
            text = f"{path}: {count_in_words(capability.findings)}; `toolcrib capability validate {path}` lists them."
            console.print(Text(printable(text), style="dim"), soft_wrap=True)
    console.print("Ctrl-C stops it." if stdio is None else "It ends with its client.")


def _warnings(capability: Capability) -> Iterable[str]:
    """What the operator can mend from the command line, and what does not work at all."""
    for finding in dict.fromkeys(capability.findings):
        if finding.rule == "bind-unresolved" or finding.severity == "error":
            yield _sentence(finding)
    for namespace, uri in capability.base_uris.items():
        if not uri:
            yield f"The API {namespace} has no address, so its calls fail: give --base-uri {namespace}=URL."


def _sentence(finding: Finding) -> str:
    place = f"{finding.at.file}:{finding.at.line}"
    return f"{place}: {finding.message.rstrip('.')}; {finding.effect}. To mend it: {finding.mend}."


def _what(server: Server) -> str:
    match server:
        case RestServer():
            return _plural(sum(len(r.operations) for r in server.resources), "operation")
        case McpServer():
            parts = [(len(server.tools), "tool"), (len(server.resources), "resource"), (len(server.prompts), "prompt")]
            return ", ".join(_plural(n, noun) for n, noun in parts if n) or "nothing"
        case SkillServer():
            return _plural(len(server.skills), "skill")
        case ControlServer():
            return "health" + "".join(f", {name}" for name, on in server.management.items() if on and name != "health")


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
