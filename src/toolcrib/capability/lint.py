"""Judges a loaded document: what works otherwise than its author may think, and what does not work at all.

One small function a rule; the table is what `validate` lists. Rules about how path variables and bodies get bound are
the planner's, which knows. No rule quotes the text of a credential.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from toolcrib.capability import lint_consumes, lint_exposes
from toolcrib.capability.findings import Finding
from toolcrib.capability.lint_facts import Facts, Fault
from toolcrib.capability.spec import Document

Rule = Callable[[Facts], Iterator[Fault]]

RULES: Final[Mapping[str, Rule]] = {
    "base-uri-empty": lint_consumes.base_uri_empty,
    "base-uri-shape": lint_consumes.base_uri_shape,
    "base-uri-trailing-slash": lint_consumes.base_uri_trailing_slash,
    "example-host": lint_consumes.example_host,
    "consumed-path-shape": lint_consumes.consumed_path_shape,
    "path-input-not-in-path": lint_consumes.path_input_not_in_path,
    "exposed-path-input": lint_consumes.exposed_path_input,
    "namespace-duplicate": lint_consumes.namespace_duplicate,
    "operation-duplicate": lint_consumes.operation_duplicate,
    "format-unsupported": lint_consumes.format_unsupported,
    "credential-in-file": lint_consumes.credential_in_file,
    "credential-bare-name": lint_consumes.credential_bare_name,
    "bind-undeclared": lint_consumes.bind_undeclared,
    "bind-unused": lint_consumes.bind_unused,
    "oauth2-insecure": lint_consumes.oauth2_insecure,
    "oauth2-fields": lint_consumes.oauth2_fields,
    "consumes-description": lint_consumes.consumes_description,
    "exposes-empty": lint_exposes.exposes_empty,
    "exposed-path-shape": lint_exposes.exposed_path_shape,
    "path-variable-unused": lint_exposes.path_variable_unused,
    "route-duplicate": lint_exposes.route_duplicate,
    "tool-duplicate": lint_exposes.tool_duplicate,
    "call-unresolved": lint_exposes.call_unresolved,
    "action-missing": lint_exposes.action_missing,
    "with-unknown-input": lint_exposes.with_unknown_input,
    "with-unknown-key": lint_exposes.with_unknown_key,
    "reference-deprecated": lint_exposes.reference_deprecated,
    "step-reference": lint_exposes.step_reference,
    "script-settings": lint_exposes.script_settings,
    "hints-contradict": lint_exposes.hints_contradict,
    "port-shared": lint_exposes.port_shared,
    "control-server": lint_exposes.control_server,
    "server-open": lint_exposes.server_open,
    "stdio-settings": lint_exposes.stdio_settings,
    "output-object-open": lint_exposes.output_object_open,
    "identifier-shape": lint_exposes.identifier_shape,
    "description-missing": lint_exposes.description_missing,
    "info-incomplete": lint_exposes.info_incomplete,
    "markdown-unsafe": lint_exposes.markdown_unsafe,
}

_PER_RULE = 500
_ORDER = {"error": 0, "warning": 1, "note": 2}


def lint(document: Document) -> tuple[Finding, ...]:
    """What the rules find, the gravest first, then in the order of the file; each rule at most 500 times."""
    facts = Facts(document)
    found: dict[Finding, None] = {}
    for name, rule in RULES.items():
        kept = 0
        for severity, message, effect, mend, at in rule(facts):
            finding = Finding(name, severity, message, effect, mend, at)
            if finding not in found:
                found[finding] = None
                kept += 1
            if kept >= _PER_RULE:
                break
    return tuple(sorted(found, key=lambda f: (_ORDER[f.severity], f.at.file, f.at.line, f.at.column)))


def description(rule: str) -> str | None:
    """What a rule asks for, None of one that is not in the table."""
    checked = RULES.get(rule)
    return checked.__doc__.strip() if checked is not None and checked.__doc__ else None
