"""The spellings of later versions of the format, and of published files, read as those of 1.0.0-alpha2.

Lists may be maps whose keys are the names of the entries; some fields have other names. Both are taken whatever version
a file says it has: files in the wild mix them.
"""

import re
from collections.abc import Mapping
from typing import Final

from toolcrib.capability.yaml_source import Node

VERSION_KEYS: Final = ("naftiko", "ikanos")
KNOWN_VERSION: Final = re.compile(r"1\.0\.0-(?:alpha[1-9]|beta[1-9]\d*)")

# Kind of record -> other name of a field -> its name. "" holds for every kind.
_SPELLINGS: Final[Mapping[str, Mapping[str, str]]] = {
    "": {"display": "label"},
    "info": {"title": "label", "name": "label"},
    "aggregate": {"flows": "functions"},
    "step mapping": {"target": "targetName"},
    "import": {"from": "location"},
    "input": {"template": "value"},
    "forward": {"target": "targetNamespace"},
    "consumed API": {"auth": "authentication", "baseUrl": "baseUri"},
    "consumed operation": {"id": "name", "operationId": "name"},
    "operation": {"id": "name", "operationId": "name"},
}


def field_name(kind: str, key: str) -> str:
    """The name of a field under the names of alpha2."""
    return _SPELLINGS.get(kind, {}).get(key) or _SPELLINGS[""].get(key, key)


def is_keyed(node: Node) -> bool:
    """Whether a map stands for a list, its keys being the names of the entries."""
    return isinstance(node.value, dict) and all(
        child.value is None or isinstance(child.value, dict) for child in node.value.values()
    )


def members(node: Node) -> list[tuple[str | None, Node]]:
    """The entries of a list, or of a keyed map with their names; of anything else none."""
    if isinstance(node.value, list):
        return [(None, child) for child in node.value]
    if isinstance(node.value, dict):
        return [(key, child if child.value is not None else Node({}, child.at)) for key, child in node.value.items()]
    return []
