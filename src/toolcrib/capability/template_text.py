"""The template language of capability files: Mustache variables, split into text and variables once.

`{{x}}`, `{{{x}}}` and `{{&x}}` are the same (nothing is HTML here), `{{! }}` is a comment; in paths and base URIs `{x}`
is a variable too. Sections, partials and other delimiters are refused: what they would do to a body is anyone's guess.
"""

import re
from dataclasses import dataclass

_TAG = re.compile(r"\{\{\{([^{}]*+)\}\}\}|\{\{([^{}]*+)\}\}")
_TAG_OR_SINGLE = re.compile(_TAG.pattern + r"|\{([^{}/]++)\}")


class TemplateInvalid(ValueError):
    """A text that is no template."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A place for a value."""

    name: str


Part = str | Variable


def parse(text: str, *, single: bool = False) -> list[Part]:
    """The parts of a template.

    Raises:
        TemplateInvalid: it uses a Mustache feature other than variables and comments.
    """
    parts: list[Part] = []
    end = 0
    for found in (_TAG_OR_SINGLE if single else _TAG).finditer(text):
        if found.start() > end:
            parts.append(text[end : found.start()])
        end = found.end()
        name = next((group for group in found.groups() if group is not None), "").strip()
        if name.startswith("!"):
            continue
        name = name.removeprefix("&").strip()
        if not name:
            raise TemplateInvalid("it has a variable without a name")
        if name[0] in "#^/>=":
            raise TemplateInvalid(f"{{{{{name}}}}} is a section or partial, which is not supported")
        parts.append(Variable(name))
    if end < len(text):
        parts.append(text[end:])
    return parts


def variables(text: str, *, single: bool = False) -> list[str]:
    """The names of the variables, in order of appearance, each once."""
    return list(dict.fromkeys(part.name for part in parse(text, single=single) if isinstance(part, Variable)))
