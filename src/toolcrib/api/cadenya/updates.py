"""Updates: which members of a resource change, by mask or by what was sent."""

from typing import Any

from pydantic import BaseModel

from toolcrib.errors import Invalid

_MESSAGES = {  # members that are messages: merged member by member; every other one is replaced whole
    "metadata",
    "spec",
    "spec.adapter",
    "spec.adapter.http",
    "spec.adapter.mcp",
    "spec.adapter.capability",
    "spec.config",
    "spec.config.http",
    "spec.config.mcp",
    "spec.config.capability",
}
_KINDS = ("http", "mcp", "capability", "bare")
_UNIONS = {"spec.adapter": _KINDS, "spec.config": _KINDS}


def merge_update(current: dict[str, Any], sent: dict[str, Any], mask: str | None, model: type[BaseModel]) -> Any:
    """The resource after an update: with a mask the members it names, without one those that were sent.

    Raises:
        Invalid: the mask names a member that does not exist.
    """
    sent = {name: sent[name] for name in ("metadata", "spec") if sent.get(name) is not None}
    if mask is None or not mask.strip():
        if "metadata" in sent and "name" not in sent["metadata"]:
            raise Invalid("name.missing", "metadata.name: Field required", field="metadata.name")
        return _merge(current, sent, "")
    merged = current
    for raw in mask.split(","):
        path = _camel(raw.strip())
        if path == "*":
            merged = sent
            continue
        if not path or not _exists(model, path.split(".")):
            raise Invalid(
                "update_mask.unknown", f"updateMask names {raw.strip()!r}, which is no member.", field="updateMask"
            )
        merged = _set(merged, sent, path.split("."), "")
    return merged


def _camel(path: str) -> str:
    head, *rest = path.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


def _exists(model: type[BaseModel], path: list[str]) -> bool:
    prefix, node = "", model.model_json_schema()
    definitions = node.get("$defs", {})
    for part in path:
        if part not in node.get("properties", {}) or (prefix and prefix not in _MESSAGES):
            return False
        prefix = f"{prefix}.{part}".lstrip(".")
        node = node["properties"][part]
        choices = [node, *node.get("anyOf", [])]
        ref = next((c["$ref"] for c in choices if "$ref" in c), None)
        node = definitions[ref.rpartition("/")[2]] if ref else {}
    return True


def _merge(current: Any, sent: Any, at: str) -> Any:
    if not isinstance(sent, dict) or (at and at not in _MESSAGES):
        return sent
    kept = dict(current) if isinstance(current, dict) else {}
    if at in _UNIONS:
        kept.pop("type", None)
        named = [member for member in _UNIONS[at] if sent.get(member) is not None]
        if named and not any(member in kept for member in named):
            kept = {}
    for name, value in sent.items():
        kept[name] = _merge(kept.get(name), value, f"{at}.{name}".lstrip("."))
    return kept


def _set(current: Any, sent: Any, path: list[str], at: str) -> Any:
    """`current` with the member at `path` as it was sent; one that was not sent is cleared."""
    name, *rest = path
    merged = dict(current) if isinstance(current, dict) else {}
    value = sent.get(name) if isinstance(sent, dict) else None
    here = f"{at}.{name}".lstrip(".")
    if value is None and (not rest or name not in merged):
        merged.pop(name, None)
        return merged if at else {**merged, name: {}}
    if value is not None and name in _UNIONS.get(at, ()):
        merged = {name: merged[name]} if name in merged else {}
    merged[name] = _set(merged.get(name), value, rest, here) if rest else value
    return merged
