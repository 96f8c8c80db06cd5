"""What the commands on capability files share: their options, and loading a file with them.

Values of the environment and of `--env-file` go into capabilities and nowhere else; nothing here prints one.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from dotenv import dotenv_values

from toolcrib import __version__
from toolcrib.capability.capability import AT_HOME, Capability
from toolcrib.capability.findings import CapabilityInvalid
from toolcrib.cli.capability_findings import print_findings
from toolcrib.cli.failure import WRONG, CommandFailed
from toolcrib.cli.options import pairs
from toolcrib.core.addresses import AddressPolicy
from toolcrib.core.http import OutboundClient

File = Annotated[Path, typer.Argument(metavar="FILE", help="Capability file.", show_default=False)]
BaseUri = Annotated[
    list[str] | None,
    typer.Option(
        "--base-uri",
        metavar="NS=URL",
        help="Where a consumed API really is, by its namespace; outranks the file. "
        "[NAFTIKO_BASE_URI_<NS>; NAFTIKO_BASE_URI for those whose file names none]",
    ),
]
EnvFile = Annotated[
    list[Path] | None,
    typer.Option("--env-file", help="File of NAME=value lines for what the environment does not set."),
]
AllowAddress = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-address",
        metavar="NETWORK",
        help="Addresses beside public ones that calls may reach: a network, loopback, private, any, or public for "
        "none. Default: loopback and private.",
    ),
]
PassQuery = Annotated[
    bool, typer.Option("--pass-query", help="Pass query parameters on that nothing in the file takes.")
]
NoRelay = Annotated[
    bool,
    typer.Option("--no-relay", help="Send no body to write operations that describe none; by default the caller's."),
]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What capability files are loaded with."""

    base_uris: Mapping[str, str] = field(default_factory=dict)
    env_files: tuple[Path, ...] = ()
    strict: bool = False
    pass_query: bool = False
    relay_bodies: bool = True

    @classmethod
    def of(
        cls,
        base_uri: list[str] | None = None,
        env_file: list[Path] | None = None,
        *,
        strict: bool = False,
        pass_query: bool = False,
        relay_bodies: bool = True,
    ) -> "Surroundings":
        """From options. Raises CommandFailed for one that cannot be used."""
        base_uris = pairs(base_uri, "--base-uri")
        for namespace, uri in base_uris.items():
            parts = urlsplit(uri)
            if parts.scheme not in {"http", "https"} or not parts.netloc:
                raise CommandFailed(f"--base-uri {namespace}: {uri!r} is no http or https URL.", WRONG)
        found = cls(base_uris, tuple(env_file or ()), strict, pass_query, relay_bodies)
        found.environ()
        return found

    def environ(self) -> dict[str, str]:
        """The environment, and what the files add to it; read anew each time.

        Raises:
            CommandFailed: one of them cannot be read.
        """
        added: dict[str, str] = {}
        for path in self.env_files:
            try:
                with path.open(encoding="utf-8-sig") as lines:
                    values = dotenv_values(stream=lines, interpolate=False)
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not UTF-8"
                raise CommandFailed(f"--env-file {path} cannot be read: {reason}.", WRONG) from None
            added |= {name: value for name, value in values.items() if value is not None}
        return {**added, **os.environ}

    def loader(self, outbound: OutboundClient | None = None) -> Callable[..., Capability]:
        """What loads a file; raises CapabilityInvalid."""

        def load(path: str, *, text: str | None = None, previous: Capability | None = None) -> Capability:
            return Capability.load(
                path,
                text=text,
                environ=self.environ(),
                base_uris=self.base_uris,
                outbound=outbound,
                strict=self.strict,
                pass_query=self.pass_query,
                relay_bodies=self.relay_bodies,
                previous=previous,
            )

        return load

    def load(self, path: Path, outbound: OutboundClient | None = None) -> Capability:
        """One file.

        Raises:
            CommandFailed: nothing of it can be used; what is wrong was printed on standard error.
        """
        must_exist((path,))
        try:
            capability = self.loader(outbound)(str(path))
        except CapabilityInvalid as error:
            print_findings(error.findings, to_stderr=True)
            raise CommandFailed(f"{path} cannot be used.") from None
        self.must_know([capability])
        return capability

    def must_know(self, capabilities: Iterable[Capability]) -> None:
        """Raise CommandFailed for a `--base-uri` of an API that nothing consumes: it was mistyped."""
        known = {consumed.namespace for capability in capabilities for consumed in capability.document.consumes}
        for namespace in self.base_uris:
            if namespace not in known | {"*"}:
                there = ", ".join(sorted(known)) or "none at all"
                raise CommandFailed(f"--base-uri {namespace}: no file consumes an API of that name; {there}.", WRONG)


def address_policy(texts: list[str] | None) -> AddressPolicy:
    """Which addresses calls may reach; raises CommandFailed for what is none."""
    if not texts:
        return AT_HOME
    try:
        return AddressPolicy.parse(text for text in texts if text.strip().lower() != "public")
    except ValueError as error:
        raise CommandFailed(f"--allow-address: {error}.", WRONG) from None


def outbound_client(policy: AddressPolicy) -> OutboundClient:
    """A client for everything that this process calls."""
    return OutboundClient(policy, timeout_s=30.0, user_agent=f"toolcrib/{__version__}")


def must_exist(paths: Iterable[Path]) -> None:
    """Raise CommandFailed for a path where nothing is."""
    for path in paths:
        if not path.exists():
            raise CommandFailed(f"There is no {path}.", WRONG)
