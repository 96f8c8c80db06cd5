"""`toolcrib capability`: capability files served, checked, shown, called and converted.

No server of ours and no database is needed. `serve`, `validate`, `show`, `import` and `export` have files of their own.
"""

import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from toolcrib.capability import calls
from toolcrib.capability.capability import Capability
from toolcrib.capability.findings import CapabilityInvalid
from toolcrib.capability.load import load
from toolcrib.capability.reply import Reply
from toolcrib.capability.spec import Document
from toolcrib.cli.arguments import parse_object, read_arguments, text_of
from toolcrib.cli.capability_openapi import export_app, import_app
from toolcrib.cli.capability_options import (
    AllowAddress,
    BaseUri,
    EnvFile,
    File,
    Surroundings,
    address_policy,
    outbound_client,
)
from toolcrib.cli.capability_serve import serve
from toolcrib.cli.capability_show import show
from toolcrib.cli.capability_validate import validate
from toolcrib.cli.failure import FAILED, WRONG, CommandFailed
from toolcrib.cli.loop import run
from toolcrib.cli.options import Json
from toolcrib.cli.output import print_json, print_table, print_text, say, wants_json
from toolcrib.core.log import configure_logging

app = typer.Typer(
    name="capability",
    help="Serve, check and call capability files.\n\nExamples:\n    toolcrib capability examples hello > hello.yaml\n"
    "    toolcrib capability validate hello.yaml\n    toolcrib capability serve hello.yaml --watch",
    no_args_is_help=True,
)
app.command("serve")(serve)
app.command("validate")(validate)
app.command("show")(show)
app.add_typer(import_app)
app.add_typer(export_app)


@app.callback()
def _quiet() -> None:
    """Logs go to standard error, and only what no finding says; `serve` sets up its own."""
    configure_logging("error")


@app.command()
def call(
    file: File,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NS.OPERATION",
            help="A consumed operation, an exposed one, a tool or a function.",
            show_default=False,
        ),
    ],
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=VALUE...", help="Arguments; NAME:=JSON for JSON.", show_default=False),
    ] = None,
    args: Annotated[
        str | None, typer.Option("--args", "--json", metavar="JSON|@FILE|-", help="All arguments as one JSON object.")
    ] = None,
    base_uri: BaseUri = None,
    env_file: EnvFile = None,
    allow_address: AllowAddress = None,
) -> None:
    """Call something of a file once: the body goes to standard output, the status to standard error.

    Ends with 1 when the answer is an error.

    Examples:
        toolcrib capability call shop.yaml shop-api.get-order id=o1
        toolcrib capability call shop.yaml shop-tools.find --json '{"tags": ["new"]}' | jq .
    """
    arguments = parse_object(text_of(args), "--args") if args is not None else {}
    surroundings = Surroundings.of(base_uri, env_file)
    policy = address_policy(allow_address)

    async def once() -> Reply:
        outbound = outbound_client(policy)
        capability = surroundings.load(file, outbound)
        try:
            schema = _schema_of(capability, name)
            return await capability.call(name, {**arguments, **read_arguments(values or [], schema)})
        finally:
            await capability.close()
            await outbound.close()

    reply = run(once)
    say(f"{reply.status}{f' {reply.media}' if reply.media else ''}")
    _write_body(reply)
    if reply.is_error:
        raise typer.Exit(FAILED)


def _schema_of(capability: Capability, name: str) -> dict[str, Any]:
    """What is known of the arguments of something that can be called."""
    for namespace, server in capability.plan.mcp.items():
        tool = name.removeprefix(f"{namespace}.")
        if tool != name and tool in server.tools:
            return server.tools[tool].input_schema
    planned = capability.plan.called.get(name)
    if planned is None:
        known = "\n  ".join(sorted(capability.plan.called)) or "nothing at all"
        raise CommandFailed(f"There is no {name!r} in {capability.document.path}; there is:\n  {known}", WRONG)
    if not isinstance(planned, calls.Call):
        return {}
    types = {s.name: s.input.type for s in planned.operation.slots.values() if s.input is not None and s.input.type}
    return {"properties": {known: {"type": type_.lower()} for known, type_ in types.items()}}


def _write_body(reply: Reply) -> None:
    """The body as it is; on a terminal as text, if it is text."""
    if not sys.stdout.isatty():
        sys.stdout.buffer.write(reply.body)
        sys.stdout.buffer.flush()
        return
    if not reply.body:
        return
    try:
        print_text(reply.body.decode("utf-8"))
    except UnicodeDecodeError:
        say(f"The body has {len(reply.body)} bytes that are no text; send it into a file with >.")


@app.command()
def examples(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The example to print.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the capability files that come with Toolcrib, or print one.

    Examples:
        toolcrib capability examples
        toolcrib capability examples hello > hello.yaml
    """
    found = {
        entry.name.removesuffix(".yaml"): entry.read_text("utf-8")
        for entry in _examples()
        if entry.name.endswith(".yaml")
    }
    if name is not None:
        text = found.get(name.removesuffix(".yaml"))
        if text is None:
            raise CommandFailed(f"There is no example {name!r}; there are {', '.join(sorted(found)) or 'none'}.", WRONG)
        print_text(text.rstrip("\n"))
        return
    rows = [(known, *_about(known, text)) for known, text in sorted(found.items())]
    if wants_json(as_json):
        print_json([{"name": known, "label": label, "description": about} for known, label, about in rows])
        return
    print_table(("NAME", "LABEL", "DESCRIPTION"), rows, empty="There are no examples in this installation.")


def _examples() -> list[Any]:
    folder = files("toolcrib.capability") / "examples"
    return list(folder.iterdir()) if folder.is_dir() else []


def _about(name: str, text: str) -> tuple[str, str]:
    document: Document
    try:
        document = load(Path(f"{name}.yaml"), text=text, allow_files=False).document
    except CapabilityInvalid:
        return "", ""
    return document.label, " ".join((document.description or "").split())
