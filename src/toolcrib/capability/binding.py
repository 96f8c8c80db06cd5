"""Where each value that a consumed operation takes comes from, decided once for each thing that calls it.

An entry of `with` decides; else a declared input or a path variable that means the same name; else, for path variables
of a request, their position when both sides have as many left; else whatever the caller sends under that name.
"""

from dataclasses import dataclass, field

from toolcrib.capability.inputs import Inputs, RestInputs
from toolcrib.capability.names import match
from toolcrib.capability.operation import Operation, Slot
from toolcrib.capability.references import Scope, Source, compile_value, read
from toolcrib.capability.spec import ABSENT, Mark, WithEntry


@dataclass(frozen=True, slots=True)
class Bound:
    """How one value of a consumed operation is bound: what `toolcrib capability show` prints."""

    slot: str
    kind: str
    source: str  # in words
    required: bool


@dataclass(slots=True)
class Binding:
    """The bound slots of one call.

    `inferred` are the caller's inputs that were made up from slots: a tool lists them in its schema. `loose` are path
    variables that only a value sent under that name can fill.
    """

    sources: list[tuple[str, Source]] = field(default_factory=list)
    bound: list[Bound] = field(default_factory=list)
    inferred: dict[str, Slot] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)
    unused: list[WithEntry] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Caller:
    """What calls: its scope, its path variables (of a REST resource), and whether it is a request or has arguments."""

    scope: Scope
    path: tuple[str, ...] = ()
    rest: bool = False
    at: Mark | None = None


def bind_call(operation: Operation, entries: tuple[WithEntry, ...], caller: Caller) -> Binding:
    """Bind every slot of an operation.

    Raises:
        TemplateInvalid: an entry of `with` is no template.
        Unresolved: one needs a bind without value.
    """
    binding = Binding()
    given = {entry.key: entry for entry in entries}
    used: set[str] = set()
    rest: list[Slot] = []
    for slot in operation.slots.values():
        key = match(_bare(slot, caller), given)
        if key is None and slot.key == operation.body_slot and "body" in given:
            key = "body"
        if key is None:
            rest.append(slot)
            continue
        used.add(key)
        _bind_entry(binding, slot, given[key], caller)
    binding.unused = [entry for key, entry in given.items() if key not in used]
    noted = {match(name, caller.path) for name in caller.scope.noted}
    free = [name for name in caller.path if name not in noted]
    later = [slot for slot in rest if not _bind_declared(binding, slot, caller, free)]
    open_paths = [slot for slot in later if slot.kind == "path"]
    positional = caller.rest and open_paths and len(open_paths) == len(free)
    for slot in later:
        if positional and slot.kind == "path":
            name = free[open_paths.index(slot)]
            _add(binding, slot, _path_variable(name), f"path variable {{{name}}}, by position")
        elif slot.kind not in {"body", "relay"}:
            _bind_open(binding, slot, caller)
    for slot in later:
        if slot.kind in {"body", "relay"}:
            _bind_body(binding, slot, operation, caller)
    # of a tool's arguments, the body may be what nothing else took: it comes last
    binding.sources.sort(key=lambda pair: operation.slots[pair[0]].kind in {"body", "relay"})
    return binding


def _add(binding: Binding, slot: Slot, source: Source, words: str) -> None:
    binding.sources.append((slot.key, source))
    binding.bound.append(Bound(slot.name, slot.kind, words, slot.required))


def _bare(slot: Slot, caller: Caller) -> str:
    """The slot's name without a prefix such as `tools.`, which template variables may have."""
    return caller.scope.variable(slot.name) if slot.kind == "template" else slot.name


def _bind_entry(binding: Binding, slot: Slot, entry: WithEntry, caller: Caller) -> None:
    before = len(caller.scope.noted)
    source = compile_value(entry.value, caller.scope)
    for name in caller.scope.noted[before:]:
        whole = isinstance(entry.value, str) and caller.scope.reference(entry.value) == name
        if name not in caller.scope.declared:
            kind = slot if whole else Slot(name, "template", required=False)
            binding.inferred.setdefault(name, kind)
    _add(binding, slot, source, f"with: {entry.value}")


def _bind_declared(binding: Binding, slot: Slot, caller: Caller, free: list[str]) -> bool:
    """Bind to a declared input or an exposed path variable that means the slot's name."""
    name = _bare(slot, caller)
    declared = match(name, caller.scope.declared)
    if declared is not None:
        if declared in free:
            free.remove(declared)
        _add(binding, slot, _declared_or_sent(declared, slot), f"input {declared}")
        return True
    variable = match(name, caller.path) if slot.kind not in {"body", "relay"} else None
    if variable is not None:
        if variable in free:
            free.remove(variable)
        _add(binding, slot, _path_variable(variable), f"path variable {{{variable}}}")
        return True
    return False


def _declared_or_sent(name: str, slot: Slot) -> Source:
    if slot.kind == "header":
        return lambda inputs: inputs.header(name)
    return lambda inputs: inputs.get(name)


def _path_variable(name: str) -> Source:
    def take(inputs: Inputs) -> object:
        if isinstance(inputs, RestInputs):
            return inputs.declared[name] if name in inputs.declared else inputs.path.get(name, ABSENT)
        return inputs.get(name)

    return take


def _bind_open(binding: Binding, slot: Slot, caller: Caller) -> None:
    """Bind to whatever the caller sends under the slot's name."""
    name = _bare(slot, caller)
    if name.partition(".")[0] not in caller.scope.steps and slot.kind != "environment":
        binding.inferred.setdefault(name, slot)
    match slot.kind:
        case "header":
            _add(binding, slot, lambda inputs: inputs.header(name), f"the caller's header {name}")
        case "cookie":
            _add(binding, slot, lambda inputs: inputs.cookie(name), f"the caller's cookie {name}")
        case "environment":
            value = caller.scope.binds.environment(name)
            _add(binding, slot, (lambda _: value) if value is not None else read(name), f"environment variable {name}")
        case "path":
            binding.loose.append(name)
            words = "query parameter or body member" if caller.rest else "argument"
            _add(binding, slot, lambda inputs: inputs.auto(name, members=True), f"{words} {name}")
        case "query":
            words = "query parameter" if caller.rest else "argument"
            _add(binding, slot, lambda inputs: inputs.auto(name, members=False), f"{words} {name}")
        case _:
            words = "anything sent as" if caller.rest else "argument"
            _add(binding, slot, read(name), f"{words} {name}")


def _bind_body(binding: Binding, slot: Slot, operation: Operation, caller: Caller) -> None:
    name = slot.name
    if operation.body_slot != slot.key:  # one of several members
        binding.inferred.setdefault(name, slot)
        words = "body member" if caller.rest else "argument"
        _add(binding, slot, lambda inputs: inputs.member(name), f"{words} {name}")
        return
    if caller.rest:
        _add(binding, slot, lambda inputs: inputs.body(), "the request body")
        return
    binding.inferred.setdefault(name, slot)

    def take(inputs: Inputs) -> object:
        found = ABSENT if name == "body" else inputs.get(name)
        return inputs.body() if found is ABSENT else found

    _add(binding, slot, take, f"argument {name}, or the arguments that are left")
