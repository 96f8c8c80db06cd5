"""Where each value that a consumed operation takes comes from, decided once for each thing that calls it.

An entry of `with` decides; else a declared input or a path variable that means the same name; else, for path variables
of a request, their position when both sides have as many left; else whatever the caller sends under that name.
"""

from dataclasses import dataclass, field

from toolcrib.capability.inputs import Inputs, RestInputs
from toolcrib.capability.names import match, normalise
from toolcrib.capability.operation import WRITES, Operation, Slot
from toolcrib.capability.references import Scope, Source, compile_value, plain, read
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
    variables that only a value sent under that name can fill. `query` holds what `with` gives beyond the slots.
    """

    sources: list[tuple[str, Source]] = field(default_factory=list)
    bound: list[Bound] = field(default_factory=list)
    inferred: dict[str, Slot] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)
    unused: list[WithEntry] = field(default_factory=list)
    query: list[tuple[str, Source]] = field(default_factory=list)


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
        _bind_entry(binding, slot, given[key], operation, caller)
    binding.unused = [entry for key, entry in given.items() if key not in used]
    taken = _bind_undeclared(binding, operation, given, used, caller)
    rest = [slot for slot in rest if slot.key != taken]
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
            _bind_open(binding, slot, operation, caller)
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


def _bind_entry(binding: Binding, slot: Slot, entry: WithEntry, operation: Operation, caller: Caller) -> None:
    source = _compiled(binding, entry, caller, slot)
    is_part = slot.kind in {"template", "body"} and slot.key not in {operation.sole, operation.body_slot}
    if is_part and match(_bare(slot, caller), ("body",)) is not None and _means_body(entry, caller):
        source = _body_member(operation)
    if slot.kind == "header" and caller.rest and isinstance(entry.value, str):
        source = _or_header(source, caller.scope.reference(entry.value))
    _add(binding, slot, source, f"with: {entry.value}")


def _or_header(source: Source, name: str | None) -> Source:
    """What a reference means for a header: any value of that name, else the caller's header, of the connection too."""

    def take(inputs: Inputs) -> object:
        found = source(inputs)
        return inputs.header(name) if found is ABSENT and name is not None else found

    return take


def _compiled(binding: Binding, entry: WithEntry, caller: Caller, slot: Slot | None = None) -> Source:
    """The value of an entry; what it refers to is inferred, as `slot` is where it is all of the value."""
    before = len(caller.scope.noted)
    source = compile_value(entry.value, caller.scope)
    for name in caller.scope.noted[before:]:
        whole = isinstance(entry.value, str) and caller.scope.reference(entry.value) == name
        if name not in caller.scope.declared:
            kind = slot if whole and slot is not None else Slot(name, "template", required=False)
            binding.inferred.setdefault(name, kind)
    return source


def _means_body(entry: WithEntry, caller: Caller) -> bool:
    return isinstance(entry.value, str) and caller.scope.reference(entry.value) == "body"


def _body_member(operation: Operation) -> Source:
    """The member `body` of the caller's body, for a part of an upstream body; else all of it if it is the only part."""
    alone = sum(slot.kind in {"template", "body"} for slot in operation.slots.values()) == 1

    def take(inputs: Inputs) -> object:
        found = inputs.member("body")
        return inputs.body() if found is ABSENT and alone else found

    return take


def _bind_undeclared(
    binding: Binding, operation: Operation, given: dict[str, WithEntry], used: set[str], caller: Caller
) -> str | None:
    """Send what `with` gives under names that the operation does not declare; the key of the slot that it took.

    Without a body these are query parameters; else they are the members of a body that nothing else describes.
    """
    left = [entry for entry in binding.unused if normalise(entry.key) not in operation.declared]
    if not left:
        return None
    if operation.method not in WRITES:
        binding.query = [(entry.key, _compiled(binding, entry, caller)) for entry in left]
    else:
        slot = operation.slots.get(operation.body_slot or "")
        if slot is None or ("body" in used and slot.kind != "relay"):
            return None
        if "body" in used:
            binding.sources = [pair for pair in binding.sources if pair[0] != slot.key]
            binding.bound = [bound for bound in binding.bound if bound.kind != "relay"]
            left.append(given["body"])
        _add(binding, slot, _members([(e.key, _compiled(binding, e, caller)) for e in left], caller), "members: with")
    binding.unused = [entry for entry in binding.unused if entry not in left]
    return None if operation.method not in WRITES else operation.body_slot


def _members(members: list[tuple[str, Source]], caller: Caller) -> Source:
    """An object of what has a value; without any, the body of a request as it came."""

    def make(inputs: Inputs) -> object:
        found = {key: plain(value) for key, source in members if (value := source(inputs)) is not ABSENT}
        return found or (inputs.body() if caller.rest else ABSENT)

    return make


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


def _bind_open(binding: Binding, slot: Slot, operation: Operation, caller: Caller) -> None:
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
            source = read(name)
            if slot.key == operation.sole and caller.rest and name != "body":
                source = _member_or_all(name)
            elif slot.key != operation.sole and name == "body":
                source = _body_member(operation)
            _add(binding, slot, source, f"{words} {name}")


def _member_or_all(name: str) -> Source:
    """What was sent under a name, else the whole body of the request: for a body that is one variable."""

    def take(inputs: Inputs) -> object:
        found = inputs.get(name)
        return inputs.body() if found is ABSENT else found

    return take


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
