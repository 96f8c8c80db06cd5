"""Form bodies that callers send, as members: URL-encoded pairs, and the text parts of multipart/form-data.

A name that comes several times is a list. Files are bytes and have no place in a tree: they are left out.
"""

from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, Final
from urllib.parse import parse_qsl

from toolcrib.capability.spec import ABSENT

_URL_ENCODED: Final = "application/x-www-form-urlencoded"
_MULTIPART: Final = "multipart/form-data"
FORMS: Final = frozenset({_URL_ENCODED, _MULTIPART})
_MOST = 1000  # fields


def form_fields(data: bytes, content_type: str) -> Any:
    """The fields of a form; ABSENT when it is none, or has more than a thousand."""
    try:
        if content_type.lower().startswith(_MULTIPART):
            pairs = _parts(data, content_type)
        else:
            pairs = parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=_MOST)
    except (ValueError, LookupError):
        return ABSENT
    fields: dict[str, Any] = {}
    for name, value in pairs:
        known = fields.get(name, ABSENT)
        fields[name] = value if known is ABSENT else [*known, value] if isinstance(known, list) else [known, value]
    return fields if pairs else ABSENT


def _parts(data: bytes, content_type: str) -> list[tuple[str, str]]:
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1")
    message = BytesParser(policy=HTTP).parsebytes(head + data)
    pairs = []
    for part in message.iter_parts() if message.is_multipart() else ():
        name = part.get_param("name", header="content-disposition")
        if not isinstance(name, str) or part.get_filename() is not None:
            continue
        content = part.get_payload(decode=True)
        if isinstance(content, bytes):
            pairs.append((name, content.decode()))
        if len(pairs) > _MOST:
            raise ValueError
    return pairs
