"""An OpenAPI document as read: its version, its tree, references into it, and what was found on the way.

Only local references are followed, with a bound on how far; nothing is fetched. The tree may come from anyone: sizes
are capped, whatever has the wrong type reads as absent, and everything walked costs from one budget.
"""

import re
from collections.abc import Hashable, Iterable
from typing import Any, Literal
from urllib.parse import unquote

import orjson

from toolcrib.capability.findings import CapabilityInvalid, Finding, Severity
from toolcrib.capability.spec import Mark
from toolcrib.capability.yaml_source import Limits, Node, parse, plain

Version = Literal["2.0", "3.0", "3.1"]
Pointer = tuple[str | int, ...]

MAX_JSON = 32 << 20  # characters
_YAML_LIMITS = Limits(size=8 << 20, nodes=600_000)
_MAX_PLACED = 2 << 20  # a JSON text beyond this is not parsed again just to give findings a line
_MAX_STEPS = 500_000  # parameters, schemas and members looked at
_MAX_HOPS = 32
# YAML allows control characters and halves of surrogate pairs by escapes; no file that we write may hold them.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")


class OpenApiSource:
    """A parsed document.

    Args:
        text: JSON or YAML.
        name: what findings call it: a path or an address.

    Raises:
        CapabilityInvalid: it is too large, cannot be parsed, or is no OpenAPI document of a known version.
    """

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self._text = text
        self._node: Node | None = None
        self._steps = 0
        self._told: set[Hashable] = set()
        self._pending: list[tuple[Pointer, Finding]] = []
        self.root = self._parse(text)
        self.version: Version = self._version()

    def spend(self, cost: int = 1) -> None:
        """Count work. Raises CapabilityInvalid when the document makes more of it than any real one."""
        self._steps += cost
        if self._steps > _MAX_STEPS:
            raise self.refusal("openapi-too-large", "It describes more than can be imported", "import a part of it")

    def note(self, rule: str, severity: Severity, pointer: Pointer, message: str, effect: str, mend: str) -> None:
        """Add a finding about the place that `pointer` names; the same one only once."""
        if (key := (rule, pointer, message)) not in self._told:
            self._told.add(key)
            place = ".".join(map(str, pointer))
            full = f"{place}: {message}" if place else message
            self._pending.append((pointer, Finding(rule, severity, full, effect, mend, self._start())))

    def settled(self) -> tuple[Finding, ...]:
        """All findings, each with its line."""
        if self._pending and self._node is None and len(self._text) <= _MAX_PLACED:
            try:
                self._node, _ = parse(self._text, self.name, _YAML_LIMITS)
            except CapabilityInvalid:
                self._node = None  # JSON that is no YAML
        return tuple(
            Finding(f.rule, f.severity, f.message, f.effect, f.mend, self._place(pointer) if pointer else f.at)
            for pointer, f in self._pending
        )

    def refusal(self, rule: str, message: str, mend: str, at: Mark | None = None) -> CapabilityInvalid:
        """The error that ends the import."""
        return CapabilityInvalid((Finding(rule, "error", message, "nothing is imported", mend, at or self._start()),))

    def follow(self, node: Any, pointer: Pointer) -> tuple[dict[str, Any], Pointer]:
        """A map with its `$ref` followed, and where it lies; empty when there is none.

        A `description` or `summary` beside the reference wins, as 3.1 has it.
        """
        self.spend()
        beside: dict[str, Any] = {}
        seen: set[str] = set()
        while isinstance(node, dict) and isinstance(node.get("$ref"), str):
            ref = node["$ref"]
            beside = {key: node[key] for key in ("description", "summary") if key in node} | beside
            if ref in seen or len(seen) > _MAX_HOPS:
                self.note(
                    "openapi-reference-cyclic",
                    "error",
                    pointer,
                    f"{ref} refers to itself",
                    "it is read as empty",
                    "describe it in one place",
                )
                return {}, pointer
            seen.add(ref)
            found = self._target(ref, pointer)
            if found is None:
                return {}, pointer
            node, pointer = found
        if not isinstance(node, dict):
            return {}, pointer
        return ({**node, **beside} if beside else node), pointer

    def _target(self, ref: str, pointer: Pointer) -> tuple[Any, Pointer] | None:
        if not ref.startswith("#"):
            self.note(
                "openapi-reference-remote",
                "error",
                pointer,
                f"{_short(ref)} lies outside of the document",
                "it is read as empty; nothing is fetched",
                "bundle the document into one file first",
            )
            return None
        node: Any = self.root
        path: list[str | int] = []
        for part in filter(None, ref[1:].split("/")):
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and key in node:
                node = node[key]
                path.append(key)
            elif isinstance(node, list) and key.isdecimal() and len(key) < 8 and int(key) < len(node):
                node = node[int(key)]
                path.append(int(key))
            else:
                self.note(
                    "openapi-reference-unknown",
                    "error",
                    pointer,
                    f"{_short(ref)} does not exist",
                    "it is read as empty",
                    "correct the reference",
                )
                return None
        return node, tuple(path)

    def _parse(self, text: str) -> dict[str, Any]:
        if len(text) > MAX_JSON:
            raise self.refusal("openapi-too-large", f"It is longer than {MAX_JSON} characters", "import a part of it")
        tree: Any = None
        if text.lstrip("\ufeff \t\r\n").startswith("{"):
            try:
                tree = orjson.loads(text.lstrip("\ufeff"))
            except (orjson.JSONDecodeError, UnicodeEncodeError):
                tree = None  # YAML may look like JSON at first
        if tree is None:
            tree = self._parse_yaml(text)
        if not isinstance(tree, dict):
            raise self.refusal("openapi-not-openapi", "It is no map", "give an OpenAPI or Swagger document")
        return tree

    def _parse_yaml(self, text: str) -> Any:
        self._node, findings = parse(text, self.name, _YAML_LIMITS)
        self._pending += [((), finding) for finding in findings]
        return plain(self._node)

    def _version(self) -> Version:
        said = self.root.get("swagger", self.root.get("openapi"))
        text = str(said)
        if "swagger" in self.root and re.fullmatch(r"2(\.0)*", text):
            return "2.0"
        if "openapi" in self.root and text.startswith("3.0"):
            return "3.0"
        if "openapi" in self.root and re.match(r"3\.[1-9]", text):
            return "3.1"
        shown = "no version" if said is None else f"version {_short(text)}"
        raise self.refusal(
            "openapi-not-openapi", f"It says {shown}; known are Swagger 2.0 and OpenAPI 3", "give such a document"
        )

    def _start(self) -> Mark:
        return Mark(self.name, 1, 1)

    def _place(self, pointer: Iterable[str | int]) -> Mark:
        """Where the deepest part of a pointer that exists stands in the text."""
        node, at = self._node, self._start()
        for part in pointer:
            if node is None:
                break
            if isinstance(node.value, dict):
                node = node.value.get(str(part))
            elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
            else:
                node = None
            at = at if node is None else node.at
        return at


def _short(text: str) -> str:
    """A text of the document fit for a message."""
    return clean(text, 120)


def clean(value: Any, limit: int = 2000) -> str:
    """A value as text that can be written anywhere: no control characters, surrounding space gone, cut at `limit`."""
    if value is None or isinstance(value, dict | list):
        return ""
    text = _UNPRINTABLE.sub(" ", str(value).replace("\r\n", "\n").replace("\r", "\n"))
    text = "\n".join(line.rstrip() for line in text.split("\n")).strip()
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def as_map(value: Any) -> dict[str, Any]:
    """A map, or an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """A list, or an empty one."""
    return value if isinstance(value, list) else []
