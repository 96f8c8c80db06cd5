"""What exposed things and functions do, compiled: calls with their values bound, mocks, references, steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from toolcrib.capability import calls
from toolcrib.capability.api_planner import ApiPlanner, Consumable
from toolcrib.capability.binding import Binding, Bound, Caller, bind_call
from toolcrib.capability.binds import Unresolved
from toolcrib.capability.ground import REFUSED, Ground
from toolcrib.capability.jsonpath import compile_path
from toolcrib.capability.mapping import OutputPlan, compile_mock, compile_outputs, named_outputs
from toolcrib.capability.operation import Operation, Slot
from toolcrib.capability.references import Scope, compile_text, compile_value
from toolcrib.capability.schema import merged
from toolcrib.capability.spec import Action, Function, Input, Mark, Output, Step
from toolcrib.capability.template_text import TemplateInvalid
from toolcrib.errors import Invalid, Unavailable

_MAX_REFS = 20  # references one behind the other


class StepUnknown(ValueError):
    """A lookup into something that is no earlier step."""


@dataclass(slots=True)
class Built:
    """An action with what its caller must know."""

    action: calls.Action
    inferred: Mapping[str, Slot] = field(default_factory=dict)
    bound: tuple[Bound, ...] = ()
    outputs: OutputPlan | None = None
    open_query: bool = False  # calls a GET that declares no query


class ActionPlanner:
    """Compiles actions. `functions` are those of aggregates with their namespace; `called` is all that has a name."""

    def __init__(self, ground: Ground, apis: ApiPlanner) -> None:
        self.ground = ground
        self.apis = apis
        self.called: dict[str, calls.Action] = {}
        self._inside: list[str] = []  # the references that are being followed
        self.functions: dict[str, tuple[Function, str]] = {}
        for aggregate in ground.document.aggregates:
            for function in aggregate.functions:
                self.functions[f"{aggregate.namespace}.{function.name}"] = (function, aggregate.namespace)
        for namespace, api in apis.apis.items():
            for found in api.operations.values():
                binding = bind_call(found.operation, (), Caller(self.scope((), namespace)))
                self.called[f"{namespace}.{found.operation.name}"] = self._planned(found, binding, None)
        for name, (function, namespace) in self.functions.items():
            built = self.action(function.action, Caller(self.scope(function.inputs, namespace)), name, function.at)
            self.called.setdefault(name, built.action)

    def scope(self, inputs: tuple[Input, ...], namespace: str, steps: frozenset[str] = frozenset()) -> Scope:
        """What expressions of something exposed in this namespace see."""
        return Scope(self.ground.binds, self.ground.namespaces | {namespace}, frozenset(i.name for i in inputs), steps)

    def action(self, action: Action, caller: Caller, name: str, at: Mark) -> Built:
        """Compile an action; one that cannot run becomes `Broken`, with a finding."""
        try:
            if action.ref is not None:
                return self._ref(action, caller, name, at)
            if action.steps:
                return self._steps(action, caller, name)
            if action.call is not None:
                return self._call(action, caller, name, at)
            return self._mock(action, caller, name, at)
        except Unresolved as unresolved:
            return Built(calls.Broken(unresolved.refusal()))
        except StepUnknown as error:
            message = f"{name} cannot run: {error}."
            self.ground.error("step-unknown", message, REFUSED, "name an earlier step", at)
            return Built(calls.Broken(Invalid("step.index_unknown", message)))
        except (TemplateInvalid, ValueError) as error:
            message = f"{name} cannot run: {error}."
            self.ground.error("action-invalid", message, REFUSED, "mend what the message names", at)
            return Built(calls.Broken(Unavailable("action.invalid", message)))

    @staticmethod
    def _outputs(outputs: tuple[Output, ...], scope: Scope, *, lone: bool = False) -> OutputPlan | None:
        return compile_outputs(outputs, partial(compile_text, scope=scope), lone=lone) if outputs else None

    def _planned(self, found: Consumable, binding: Binding, outputs: OutputPlan | None) -> calls.Call:
        return calls.Call(
            found.operation, found.upstream, found.format, tuple(binding.sources), outputs,
            self.ground.means.telemetry.recorder, found.pagination, tuple(binding.query),
        )  # fmt: skip

    def _call(self, action: Action, caller: Caller, name: str, at: Mark) -> Built:
        found = self.apis.find(action.call or "")
        if found is None:
            if (mock := compile_mock(action.outputs, partial(compile_text, scope=caller.scope))) is not None:
                return Built(calls.Mock(mock), merged([_noted(caller.scope)]))
            message = f"{name} calls {action.call}, which no consumed API has."
            self.ground.error("call-unresolved", message, REFUSED, "write namespace.operation of a consumed API", at)
            return Built(calls.Broken(Unavailable("call.unresolved", message)))
        operation = found.operation
        binding = self._bind(operation, action, caller, name, at)
        outputs = self._outputs(action.outputs, caller.scope, lone=found.format.name == "xml")
        call = self._planned(found, binding, outputs)
        open_query = operation.method == "GET" and not operation.declares_query
        return Built(call, _inferred(binding, caller), tuple(binding.bound), outputs, open_query)

    def _bind(self, operation: Operation, action: "Action | Step", caller: Caller, name: str, at: Mark) -> Binding:
        binding = bind_call(operation, action.with_, caller)
        for entry in binding.unused:
            self.ground.warn(
                "with-unused",
                f"{name}: {operation.namespace}.{operation.name} has no parameter {entry.key}.",
                "the value is not sent",
                "declare it in the consumed operation's inputParameters, or remove it",
                entry.at,
            )
        if caller.rest:
            for variable in binding.loose:
                self.ground.warn(
                    "path-variable-unbound",
                    f"{name}: nothing in the exposed path gives {variable}.",
                    f"it is taken from the query parameter or body member {variable}, else the call is a 400",
                    f"put {{{variable}}} into the exposed path or name it in with",
                    at,
                )
        return binding

    def _mock(self, action: Action, caller: Caller, name: str, at: Mark) -> Built:
        mock = compile_mock(action.outputs, partial(compile_text, scope=caller.scope))
        if mock is None:
            message = f"{name} has no call, steps, ref or static values."
            self.ground.error("action-missing", message, REFUSED, "add a call, or a value to its outputParameters", at)
            return Built(calls.Broken(Unavailable("action.missing", message)))
        return Built(calls.Mock(mock), _noted(caller.scope))

    def _ref(self, action: Action, caller: Caller, name: str, at: Mark) -> Built:
        found = self.functions.get(action.ref or "")
        if found is None:
            message = f"{name} refers to {action.ref}, which no aggregate has."
            self.ground.error("ref-unresolved", message, REFUSED, "write namespace.function of an aggregate", at)
            return Built(calls.Broken(Unavailable("ref.unresolved", message)))
        if action.ref in self._inside or len(self._inside) >= _MAX_REFS:
            why = "leads back to itself" if action.ref in self._inside else f"is more than {_MAX_REFS} references away"
            message = f"{name} refers to {action.ref}, which {why}."
            self.ground.error("ref-unresolved", message, REFUSED, "refer to a function that calls something", at)
            return Built(calls.Broken(Unavailable("ref.unresolved", message)))
        function, namespace = found
        inside = function.action if function.action.outputs else replace(function.action, outputs=action.outputs)
        self._inside.append(action.ref or "")
        try:
            inner = self.action(inside, Caller(self.scope(function.inputs, namespace)), action.ref or "", at)
        finally:
            self._inside.pop()
        values = tuple((entry.key, compile_value(entry.value, caller.scope)) for entry in action.with_)
        taken = {entry.key for entry in action.with_}
        needed = {item.name: Slot(item.name, "template", item.required is not False, item) for item in function.inputs}
        needed = {key: slot for key, slot in {**inner.inferred, **needed}.items() if key not in taken}
        run = calls.Given(inner.action, values)
        return Built(run, {**_noted(caller.scope), **needed}, inner.bound, inner.outputs)

    def _steps(self, action: Action, caller: Caller, name: str) -> Built:
        built: list[calls.CallStep | calls.LookupStep | calls.ScriptStep] = []
        inferred: list[Mapping[str, Slot]] = []
        bound: list[Bound] = []
        seen: set[str] = set()
        given = caller.scope.declared | {entry.key for entry in action.with_}
        for step in action.steps:
            scope = Scope(self.ground.binds, caller.scope.namespaces, given, frozenset(seen))
            at_step = Caller(scope, caller.path, caller.rest, step.at)
            match step.type:
                case "call":
                    found = self.apis.find(step.call or "")
                    if found is None:
                        raise ValueError(f"the step {step.name} calls {step.call}, which no consumed API has")
                    binding = self._bind(found.operation, step, at_step, f"{name}/{step.name}", step.at)
                    call = self._planned(found, binding, None)
                    store = named_outputs(found.outputs, partial(compile_text, scope=scope))
                    built.append(calls.CallStep(step.name, call, store))
                    inferred.append(_inferred(binding, at_step))
                    bound += [Bound(f"{step.name}/{b.slot}", b.kind, b.source, b.required) for b in binding.bound]
                case "lookup":
                    built.append(self._lookup(step, scope, seen))
                    inferred.append(_noted(scope))
                case "script":
                    values = tuple((e.key, compile_value(e.value, scope)) for e in step.with_)
                    folders = (self.ground.document.folder, str(Path.cwd())) if self.ground.means.files else ()
                    built.append(calls.ScriptStep(step.name, self.ground.scripts.compile(step, folders), values))
                    inferred.append(_noted(scope))
                case other:
                    raise ValueError(f"the step {step.name} has the unknown type {other}")
            seen.add(step.name)
        mappings = tuple((tuple(m.target.split(".")), compile_path(m.value)) for m in action.mappings)
        outputs_plan = self._outputs(action.outputs, caller.scope)
        run: calls.Action = calls.Steps(
            tuple(built),
            mappings,
            outputs_plan,
            self.ground.scripts,
            self.ground.means.telemetry,
            name.partition(".")[0],
        )
        if action.with_:
            values = tuple((e.key, compile_value(e.value, caller.scope)) for e in action.with_)
            run = calls.Given(run, values)
        return Built(run, {**_noted(caller.scope), **merged(inferred)}, tuple(bound))

    @staticmethod
    def _lookup(step: Step, scope: Scope, seen: set[str]) -> calls.LookupStep:
        if step.index not in seen:
            raise StepUnknown(f"the step {step.name} looks into {step.index}, which is no step before it")
        if not step.match or step.lookup_value is None or not step.output_names:
            raise ValueError(f"the lookup step {step.name} needs match, lookupValue and outputParameters")
        text = step.lookup_value
        path = compile_path(text) if text.startswith(("$.", "$[")) else None
        value = None if path is not None else compile_value(text, scope)
        return calls.LookupStep(step.name, step.index or "", step.match, path, value, step.output_names)


def _noted(scope: Scope) -> dict[str, Slot]:
    """Undeclared inputs that templates refer to."""
    return {n: Slot(n, "template", required=False) for n in scope.noted if n not in scope.declared}


def _inferred(binding: Binding, caller: Caller) -> dict[str, Slot]:
    return {name: slot for name, slot in binding.inferred.items() if name not in caller.scope.declared}
