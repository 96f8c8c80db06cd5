"""Values in SPARQL texts: escaped for the string or the IRI they stand in, one token or a string literal elsewhere."""

import re
from urllib.parse import quote

from toolcrib.capability.spec import ABSENT
from toolcrib.capability.templates import TextTemplate, Values, as_text

_TOKEN = re.compile(r"[\w.:+-]+")
_QUOTES = ('"""', "'''", '"', "'")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_IRI = re.compile(r'<[^<>"{}|^`\\\x00-\x20]*(>|$)')
_IRI_SAFE = "".join(chr(c) for c in range(33, 127) if chr(c) not in '<>"{}|^`\\')


def sparql_text(template: TextTemplate, values: Values) -> str:
    """The text with its values; an absent one is nothing."""
    out: list[str] = []
    inside = ""  # the quote that closes the string, `>` in an IRI
    for part in template.parts:
        if isinstance(part, str):
            out.append(part)
            inside = _inside(part, inside)
            continue
        text = as_text(values.get(part.name, ABSENT))
        if inside == ">":
            out.append(quote(text, safe=_IRI_SAFE))
        elif inside or not text or _TOKEN.fullmatch(text):
            out.append(text.translate(_ESCAPES) if inside else text)
        else:
            out.append(f'"{text.translate(_ESCAPES)}"')
    return "".join(out)


def _inside(text: str, inside: str) -> str:
    """What the end of a piece of text stands in, given what its beginning did."""
    at = 0
    while at < len(text):
        if inside == ">":
            end = text.find(">", at)
            if end < 0:
                return inside
            at, inside = end + 1, ""
        elif inside:
            if text[at] == "\\":
                at += 2
            elif text.startswith(inside, at):
                at, inside = at + len(inside), ""
            else:
                at += 1
        elif opened := next((q for q in _QUOTES if text.startswith(q, at)), ""):
            at, inside = at + len(opened), opened
        elif iri := _IRI.match(text, at):
            at, inside = iri.end(), "" if iri[1] else ">"
        elif text[at] == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        else:
            at += 1
    return inside
