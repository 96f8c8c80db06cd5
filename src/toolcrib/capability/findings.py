"""What was found in a capability file: where, which rule, what the engine does about it, how to mend it."""

from dataclasses import dataclass
from typing import Literal

from toolcrib.capability.spec import Mark
from toolcrib.errors import Invalid

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. An error keeps the file, or the part at that place, from being served."""

    rule: str  # kebab case, for example `path-variable-unbound`
    severity: Severity
    message: str  # what is wrong, one sentence
    effect: str  # what the engine does about it
    mend: str  # what to write instead
    at: Mark


class CapabilityInvalid(Invalid):
    """A capability file that cannot be served; `findings` says why, the first error first."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        first = next((finding for finding in findings if finding.severity == "error"), findings[0])
        place = f"{first.at.file}:{first.at.line}:{first.at.column}"
        super().__init__("capability.invalid", f"{place}: {first.message}", field=first.rule)
        self.findings = findings
