"""`toolcrib capability import` and `export`: OpenAPI documents into capability files, and out of them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from toolcrib.capability.findings import CapabilityInvalid
from toolcrib.capability.openapi import export_openapi, import_openapi
from toolcrib.capability.openapi.layout import write_capability
from toolcrib.cli.capability_findings import count_in_words, print_findings
from toolcrib.cli.capability_options import (
    AllowAddress,
    File,
    Surroundings,
    address_policy,
    must_exist,
    outbound_client,
)
from toolcrib.cli.failure import WRONG, CommandFailed
from toolcrib.cli.loop import run
from toolcrib.cli.output import print_json, print_text, say
from toolcrib.core.addresses import AddressPolicy
from toolcrib.core.log import hide_secrets

_MAX_BYTES = 32 << 20
_FETCH_S = 30.0
_VERSIONS = ("3.1", "3.0", "2.0")

import_app = typer.Typer(
    name="import",
    help="Make a capability file of something else.\n\nExamples:\n"
    "    toolcrib capability import openapi petstore.json -o petstore.yaml",
    no_args_is_help=True,
)
export_app = typer.Typer(
    name="export",
    help="Make something else of a capability file.\n\nExamples:\n"
    "    toolcrib capability export openapi shop.yaml -o openapi.yaml",
    no_args_is_help=True,
)

Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: standard output.")]


@import_app.command("openapi")
def import_(
    source: Annotated[str, typer.Argument(metavar="FILE|URL", help="Swagger 2.0 or OpenAPI 3.0 or 3.1, JSON or YAML.")],
    output: Output = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    namespace: Annotated[
        str | None, typer.Option("--namespace", help="Namespace of the consumed API; default: made from the title.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="PATTERN", help="Only operation ids, tags or 'METHOD /path' like this."),
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="In front of every path that is served, such as /v1.")] = "",
    rest_port: Annotated[int, typer.Option("--rest-port", min=0, max=65535, help="Port of the REST server.")] = 8080,
    mcp_port: Annotated[int, typer.Option("--mcp-port", min=0, max=65535, help="Port of the MCP server.")] = 9090,
    allow_address: AllowAddress = None,
) -> None:
    """Make a capability file of an OpenAPI document; what could not be kept is said on standard error.

    Examples:
        toolcrib capability import openapi petstore.json -o petstore.yaml
        toolcrib capability import openapi https://petstore3.swagger.io/api/v3/openapi.json --include 'pet' > pets.yaml
    """
    if output is not None and output.exists() and not force:
        raise CommandFailed(f"{output} is there already; --force writes over it.", WRONG)
    is_url = source.startswith(("http://", "https://"))
    text = _fetch(source, address_policy(allow_address)) if is_url else _read(Path(source))
    shown = hide_secrets(source.partition("?")[0]) if is_url else source
    try:
        imported = import_openapi(
            text,
            source=shown,
            namespace=namespace,
            rest_port=rest_port,
            mcp_port=mcp_port,
            include=include or None,
            prefix=prefix,
        )
    except CapabilityInvalid as error:
        print_findings(error.findings, to_stderr=True)
        raise CommandFailed(f"{shown} cannot be imported.") from None
    print_findings(imported.findings, to_stderr=True)
    _put(imported.text, output)
    if imported.findings:
        say(f"{count_in_words(imported.findings)} about {shown}.")


@export_app.command("openapi")
def export(
    file: File,
    output: Output = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server", metavar="NS", help="REST server or consumed API; default: the first REST server, else API."
        ),
    ] = None,
    version: Annotated[str, typer.Option("--version", help="Version of OpenAPI: 3.1, 3.0 or 2.0.")] = "3.1",
    format_: Annotated[
        str | None, typer.Option("--format", help="yaml or json; default: as the output file is called, else yaml.")
    ] = None,
) -> None:
    """Write the OpenAPI document of a REST server as it serves, or of an API as it is consumed.

    Examples:
        toolcrib capability export openapi shop.yaml -o openapi.json
        toolcrib capability export openapi shop.yaml --server shop-api --version 3.0
    """
    if version not in _VERSIONS:
        raise CommandFailed(f"--version {version}: it is one of {', '.join(_VERSIONS)}.", WRONG)
    chosen = format_ or ("json" if output is not None and output.suffix == ".json" else "yaml")
    if chosen not in {"yaml", "json"}:
        raise CommandFailed(f"--format {chosen}: it is yaml or json.", WRONG)

    async def make() -> dict[str, Any]:
        capability = Surroundings().load(file)
        await capability.close()
        return export_openapi(capability.document, server_namespace=server, version=version)  # type: ignore[arg-type]

    document = run(make)
    if chosen == "json" and output is None:
        print_json(document)
        return
    _put(json.dumps(document, ensure_ascii=False, indent=2) if chosen == "json" else write_capability(document), output)


def _read(path: Path) -> str:
    must_exist((path,))
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CommandFailed(f"{path} is larger than {_MAX_BYTES >> 20} MB.", WRONG)
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise CommandFailed(f"{path} cannot be read: {reason}.", WRONG) from None


def _fetch(url: str, policy: AddressPolicy) -> str:
    async def fetch() -> str:
        outbound = outbound_client(policy)
        try:
            accept = [("Accept", "application/json, application/yaml;q=0.9, */*;q=0.5")]
            answer = await outbound.request("GET", url, headers=accept, timeout_s=_FETCH_S, max_bytes=_MAX_BYTES)
        finally:
            await outbound.close()
        if 300 <= answer.status < 400 and (target := answer.headers.get("location")):
            raise CommandFailed(f"{url} has moved to {target}; give that address.")
        if answer.status != 200:
            raise CommandFailed(f"{url} answers {answer.status}, which is no document.")
        try:
            return answer.body.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise CommandFailed(f"{url} answers with something that is not UTF-8.") from None

    return run(fetch)


def _put(text: str, output: Path | None) -> None:
    if output is None:
        print_text(text.rstrip("\n"))
        return
    try:
        output.write_text(text if text.endswith("\n") else text + "\n", "utf-8")
    except OSError as error:
        raise CommandFailed(f"{output} cannot be written: {error.strerror}.") from None
    say(f"Wrote {output}.")
