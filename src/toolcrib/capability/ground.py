"""What every part of the planner stands on: the document, what is given from outside, and the findings so far."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from toolcrib.capability.binds import Binds
from toolcrib.capability.findings import Finding
from toolcrib.capability.scripts import Scripts
from toolcrib.capability.spec import ControlServer, Document, Mark
from toolcrib.capability.telemetry import Telemetry
from toolcrib.core.http import OutboundClient

REFUSED = "calls of it are answered with this reason"


@dataclass(frozen=True, slots=True)
class Means:
    """What the planner needs from outside of the document.

    Attributes:
        outbound: sends the requests.
        environ: where binds and `in: environment` look.
        base_uris: real base URIs by namespace; `*` stands for every API whose file names none.
        files: whether the document may refer to files.
        pass_query: pass query values on that nothing took, everywhere.
        relay: pass the caller's body on to write operations that describe none.
    """

    outbound: OutboundClient
    environ: Mapping[str, str]
    telemetry: Telemetry
    base_uris: Mapping[str, str] = field(default_factory=dict)
    files: bool = True
    scripting: bool = True
    pass_query: bool = False
    relay: bool = True


class Ground:
    """One planning of one document.

    Raises:
        CapabilityInvalid: a bind's file is broken.
    """

    def __init__(self, document: Document, means: Means) -> None:
        self.document = document
        self.means = means
        self.findings: list[Finding] = []
        self.binds = Binds(document.binds, means.environ, files=means.files)
        self.namespaces = frozenset(
            [server.namespace for server in document.servers] + [a.namespace for a in document.aggregates]
        )
        control = next((server for server in document.servers if isinstance(server, ControlServer)), None)
        settings = control.management.get("scripting") if control else None
        self.scripts = self._scripts(settings if isinstance(settings, Mapping) else {}, control)

    def error(self, rule: str, message: str, effect: str, mend: str, at: Mark) -> None:
        """Note something that cannot run."""
        self.findings.append(Finding(rule, "error", message, effect, mend, at))

    def warn(self, rule: str, message: str, effect: str, mend: str, at: Mark) -> None:
        """Note something that runs otherwise than its author may think."""
        self.findings.append(Finding(rule, "warning", message, effect, mend, at))

    def _scripts(self, settings: Mapping[str, object], control: ControlServer | None) -> Scripts:
        try:
            return Scripts.from_settings(settings, enabled=self.means.scripting)
        except ValueError as error:
            at = control.at if control is not None else self.document.at
            self.error("scripting-invalid", f"{error}.", "script steps are refused", "mend the setting", at)
            return Scripts.from_settings({}, enabled=False)
