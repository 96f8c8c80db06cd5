"""What a value in `with`, a lookup or a template means: a reference to an input or a step, a template, or a literal.

Tried in this order on a text without braces: `<namespace>.X` of this or a sibling server, the aliases `rest.X`,
`tools.X`, `mcp.X`, `skill.X`, `$this.<namespace>.X`, `<step>.X` inside steps, the bare name of a declared input; else
it is itself.
An absent reference is ABSENT, so the parameter that it was for is not set.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from toolcrib.capability.binds import Binds
from toolcrib.capability.inputs import Inputs, dig
from toolcrib.capability.spec import ABSENT
from toolcrib.capability.template_text import variables
from toolcrib.capability.templates import RawBody, TextTemplate

Source = Callable[[Inputs], Any]
_ALIASES = ("rest", "tools", "mcp", "skill")


class Overlay(Inputs):
    """Inputs with further values on top: a `with`, and what steps have stored."""

    def __init__(self, below: Inputs, values: Mapping[str, Any], steps: Mapping[str, Any] | None = None) -> None:
        super().__init__(values, below.content)
        self.below = below
        self._whole = steps is None
        self.steps: Mapping[str, Any] = steps if steps is not None else getattr(below, "steps", {})

    def get(self, name: str) -> Any:
        """The value on top, else what a step stored (`step.field`), else what is below."""
        found = super().named(name) if self.declared else ABSENT
        if found is not ABSENT:
            return found
        if self.steps:
            if name in self.steps:
                return self.steps[name]
            first, dot, rest = name.partition(".")
            if dot and first in self.steps:
                return dig(self.steps[first], rest)
        return self.below.get(name)

    def auto(self, name: str, *, members: bool) -> Any:
        """A value on top, else what is below."""
        found = super().named(name) if self.declared else ABSENT
        if found is not ABSENT:
            return found
        return self.get(name) if name.partition(".")[0] in self.steps else self.below.auto(name, members=members)

    def named(self, name: str) -> Any:
        """As `get`: names of steps are whole names too."""
        return self.get(name)

    def open_query(self) -> str:
        """What goes on with a call goes on with it under a `with`, but not with each of several steps."""
        return self.below.open_query() if self._whole else ""

    def known(self) -> dict[str, Any]:
        """Everything that has a name, what is on top first."""
        return {**self.below.known(), **self.steps, **self.declared}

    def body(self) -> Any:
        """The body on top, else the caller's."""
        return self.declared["body"] if "body" in self.declared else self.below.body()

    def member(self, name: str) -> Any:
        """A value on top, else what a step stored, else what the caller sent as such a member."""
        found = super().named(name) if self.declared else ABSENT
        if found is not ABSENT:
            return found
        return self.get(name) if name.partition(".")[0] in self.steps else self.below.member(name)

    def header(self, name: str) -> Any:
        """A value on top, else what the caller sent as such a header."""
        found = super().named(name) if self.declared else ABSENT
        return self.below.header(name) if found is ABSENT else found

    def cookie(self, name: str) -> Any:
        """A value on top, else what the caller sent as such a cookie."""
        found = super().named(name) if self.declared else ABSENT
        return self.below.cookie(name) if found is ABSENT else found


@dataclass(frozen=True, slots=True)
class Scope:
    """Where an expression stands.

    `namespaces` are those whose `X.` prefix means the caller's inputs; `declared` are its declared inputs; `steps` the
    steps before it. `note` is told every input that is referred to, for schemas and for `show`.
    """

    binds: Binds
    namespaces: frozenset[str]
    declared: frozenset[str] = frozenset()
    steps: frozenset[str] = frozenset()
    noted: list[str] = field(default_factory=list)

    def reference(self, text: str) -> str | None:
        """The input or `step.field` that a text without braces refers to, None for a literal."""
        if text.startswith("$this."):
            text = text.removeprefix("$this.")
        first, dot, rest = text.partition(".")
        if dot and rest and (first in self.namespaces or first in _ALIASES):
            return rest
        if dot and first in self.steps:
            return text
        return text if text in self.declared else None

    def variable(self, name: str) -> str:
        """The input or `step.field` that a template variable refers to."""
        return self.reference(name) or name

    def note(self, name: str) -> str:
        """Remember that the caller's input is used, unless it is a step's."""
        if name.partition(".")[0] not in self.steps:
            self.noted.append(name)
        return name


def compile_value(value: Any, scope: Scope) -> Source:
    """A value of `with` as a function of the inputs.

    Raises:
        TemplateInvalid: it is no template.
        Unresolved: it needs a bind that has no value.
    """
    if isinstance(value, str):
        return _compile_text(value, scope)
    if isinstance(value, dict):
        members = [(key, compile_value(item, scope)) for key, item in value.items()]

        def build(inputs: Inputs) -> Any:
            return {key: found for key, make in members if (found := make(inputs)) is not ABSENT}

        return build
    if isinstance(value, list):
        items = [compile_value(item, scope) for item in value]
        return lambda inputs: [found for make in items if (found := make(inputs)) is not ABSENT]
    return lambda _: value


def _compile_text(text: str, scope: Scope) -> Source:
    if "{{" not in text:
        found = scope.reference(text)
        if found is not None:
            return read(scope.note(found))
        if scope.binds.declares(text):
            constant = scope.binds.constant(text)
            return lambda _: constant
        return lambda _: text
    template = TextTemplate.compile(text, scope.binds)
    if not template.names:
        rendered = template.render({})
        return lambda _: rendered
    names = [(name, scope.note(scope.variable(name))) for name in template.names]
    return lambda inputs: template.native({name: inputs.get(source) for name, source in names})


def read(name: str) -> Source:
    """The input of that name."""
    return lambda inputs: inputs.get(name)


def compile_text(text: str, scope: Scope) -> Callable[[Inputs], str]:
    """A text with variables, rendered with absent ones left out; for mock values and lookups."""
    template = TextTemplate.compile(text, scope.binds)
    if not template.names:
        rendered = template.render({})
        return lambda _: rendered
    names = [(name, scope.note(scope.variable(name))) for name in variables(text) if name in template.names]
    return lambda inputs: template.render({name: inputs.get(source) for name, source in names})


def plain(value: Any) -> Any:
    """A value as a JSON tree: a body as it came becomes what it says."""
    if isinstance(value, RawBody):
        tree = value.tree()
        return value.data.decode("utf-8", "replace") if tree is ABSENT else tree
    return value
