"""A capability file and what it imports as one text, for those who read no other files.

The text means the same as the file: entries stand where their imports stood, scalars are written so that they are read
as before. A file without imports stays as it is, to the letter. Schemas, scripts and folders are not taken along.
"""

import os
from pathlib import Path
from typing import Any

import yaml

from toolcrib.capability import beta
from toolcrib.capability.load_fields import Report
from toolcrib.capability.load_imports import SECTIONS, Entry, Imports
from toolcrib.capability.load_servers import renamed
from toolcrib.capability.yaml_source import Node, parse, read_text

_CORE = "tag:yaml.org,2002:"


def bundle(path: str | os.PathLike[str]) -> tuple[str, tuple[str, ...]]:
    """The text, and the imported files whose parts are now in it.

    Raises:
        CapabilityInvalid: a file cannot be read or parsed, or an import names what is not there.
    """
    shown = os.fspath(path)
    text = read_text(shown, shown)
    root, _ = parse(text, shown)
    folder = str(Path(shown).absolute().parent)
    imports = Imports(shown, folder, Report(), allowed=True)
    whole = _resolved(root, imports, folder)
    if isinstance(whole.value, dict) and "capability" in whole.value:
        inner = _resolved(whole.value["capability"], imports, folder)
        whole = Node({**whole.value, "capability": inner}, whole.at)
    if not imports.files:
        return text, ()
    return yaml.serialize(_written(_with_binds(whole, imports.binds()), {}), **_STYLE), tuple(imports.files)


_STYLE: dict[str, Any] = {"Dumper": yaml.SafeDumper, "allow_unicode": True, "width": 10**9}


def _resolved(holder: Node, imports: Imports, folder: str) -> Node:
    """The root or its `capability` with the imports of its sections replaced."""
    if not isinstance(holder.value, dict):
        return holder
    fields = dict(holder.value)
    for section in SECTIONS:
        if section not in fields:
            continue
        keyed = isinstance(fields[section].value, dict)
        found: list[tuple[str | None, Node]] = []
        for key, node in beta.members(fields[section]):
            entry = Entry(key, node, folder)
            resolved = imports.resolve(section, [entry])
            found += [(key if taken is entry else _namespace(taken), taken.node) for taken in resolved]
        fields[section] = _section(found, fields[section], keyed=keyed) if found else fields[section]
    return Node(fields, holder.at)


def _section(entries: list[tuple[str | None, Node]], like: Node, *, keyed: bool) -> Node:
    if keyed:
        return Node({key or "": node for key, node in entries}, like.at)
    return Node([node for _, node in entries], like.at)


def _namespace(entry: Entry) -> str:
    node = entry.node.value.get("namespace") if isinstance(entry.node.value, dict) else None
    return (node.text if node is not None else None) or entry.key or ""


def _with_binds(root: Node, binds: list[Entry]) -> Node:
    """The document with the binds that came along with imports, behind its own."""
    if not binds or not isinstance(root.value, dict):
        return root
    inner = root.value.get("capability")
    if inner is not None and isinstance(inner.value, dict) and "binds" in inner.value:
        return Node({**root.value, "capability": Node(_appended(inner.value, binds, inner), inner.at)}, root.at)
    return Node(_appended(root.value, binds, root), root.at)


def _appended(fields: dict[str, Node], binds: list[Entry], holder: Node) -> dict[str, Node]:
    own = fields.get("binds", Node([], holder.at))
    if isinstance(own.value, dict):
        return {**fields, "binds": Node({**{_namespace(b): b.node for b in binds}, **own.value}, own.at)}
    listed = own.value if isinstance(own.value, list) else []
    return {**fields, "binds": Node([*listed, *(renamed(b.node, _namespace(b)) for b in binds)], own.at)}


def _written(node: Node, known: dict[int, yaml.Node]) -> yaml.Node:
    """As PyYAML writes it; what several places shared stays shared."""
    if id(node) in known:
        return known[id(node)]
    made: yaml.Node
    if isinstance(node.value, dict):
        pairs = [(_text(key), _written(child, known)) for key, child in node.value.items()]
        made = yaml.MappingNode(_CORE + "map", pairs, flow_style=False)
    elif isinstance(node.value, list):
        made = yaml.SequenceNode(_CORE + "seq", [_written(child, known) for child in node.value], flow_style=False)
    elif isinstance(node.value, str):
        return _text(node.value)
    else:
        text = node.text or "null"
        return yaml.ScalarNode(_tag_of(yaml.ScalarNode, text, (True, False)), text)
    known[id(node)] = made
    return made


_tag_of: Any = yaml.resolver.Resolver().resolve  # PyYAML writes a plain scalar where it would find the same tag


def _text(text: str) -> yaml.ScalarNode:
    return yaml.ScalarNode(_CORE + "str", text, style='"')
