"""A capability written as YAML for people: stable order, texts of several lines in blocks.

What YAML 1.1 and 1.2 read differently is quoted.
"""

import re
import textwrap
from typing import Any

import yaml

# Plain scalars that YAML 1.2 reads as numbers and PyYAML, which is YAML 1.1, does not quote.
_LOOKS_LIKE_NUMBER = re.compile(r"[-+.]?[0-9][0-9_.]*([eE][-+]?[0-9]+)?|0[ox][0-9a-fA-F]+")
_WIDTH = 118


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Safe, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the name is PyYAML's
        """Write equal parts out each time."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None
    if "\n" in value:
        style = "|"
    elif _LOOKS_LIKE_NUMBER.fullmatch(value):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def write_capability(document: dict[str, Any]) -> str:
    """The YAML text of a capability, its sections set apart."""
    parts = []
    for key, value in document.items():
        if key == "capability":
            sections = [textwrap.indent(_dump({name: section}), "  ") for name, section in value.items()]
            parts.append("capability:\n" + "\n".join(sections))
        elif key == "info" and parts:
            parts[-1] += _dump({key: value})
        else:
            parts.append(_dump({key: value}))
    return "\n".join(parts)


def _dump(value: Any) -> str:
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH))
