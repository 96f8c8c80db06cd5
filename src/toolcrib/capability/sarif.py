"""Findings as SARIF 2.1.0, the format that code hosts show next to the lines of a change."""

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import quote

from toolcrib.capability.findings import Finding
from toolcrib.capability.lint import description

_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(findings: Iterable[Finding]) -> dict[str, Any]:
    """One run of SARIF with a result for each finding; a note of what the engine does and how to mend it in each."""
    found = list(findings)
    rules = {finding.rule: finding for finding in reversed(found)}  # the first of each explains it
    names = sorted(rules)
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "toolcrib", "rules": [_rule(rules[name]) for name in names]}},
                "columnKind": "unicodeCodePoints",
                "results": [_result(finding, names.index(finding.rule)) for finding in found],
            }
        ],
    }


def _rule(example: Finding) -> dict[str, Any]:
    text = description(example.rule) or _sentence(example.mend)
    return {
        "id": example.rule,
        "shortDescription": {"text": text},
        "help": {"text": f"{text} If not: {example.effect}. To mend it: {example.mend}."},
        "defaultConfiguration": {"level": example.severity},
    }


def _result(finding: Finding, index: int) -> dict[str, Any]:
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": finding.severity,
        "message": {"text": f"{_sentence(finding.message)} {_sentence(finding.effect)} {_sentence(finding.mend)}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(PurePath(finding.at.file).as_posix())},
                    "region": {"startLine": finding.at.line, "startColumn": finding.at.column},
                }
            }
        ],
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
