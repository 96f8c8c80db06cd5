"""The consumed APIs of a document, compiled: upstreams with their credentials and policies, operations, formats."""

from dataclasses import dataclass
from pathlib import Path

from toolcrib.capability.formats import Format, open_format
from toolcrib.capability.ground import REFUSED, Ground
from toolcrib.capability.names import match, normalise
from toolcrib.capability.operation import Operation, compile_operation
from toolcrib.capability.spec import Auth, Consumed, ConsumedOperation, Mark, Output
from toolcrib.capability.upstream import (
    POLICY_KEYS,
    Pagination,
    Policy,
    Upstream,
    compile_auth,
    compile_pagination,
    compile_policy,
)
from toolcrib.errors import AppError, Unavailable
from toolcrib.errors import Upstream as UpstreamFailed


@dataclass(slots=True)
class Api:
    """A consumed API, compiled."""

    consumed: Consumed
    upstream: Upstream
    broken: AppError | None
    base_uri: str
    operations: "dict[str, Consumable]"


@dataclass(frozen=True, slots=True)
class Consumable:
    """A consumed operation, and what its answers are."""

    operation: Operation
    upstream: Upstream
    format: Format
    outputs: tuple[Output, ...]
    pagination: Pagination | None


class ApiPlanner:
    """Compiles the consumed APIs; `apis` holds them by namespace."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.apis: dict[str, Api] = {}
        for consumed in ground.document.consumes:
            self._api(consumed)

    def find(self, target: str) -> Consumable | None:
        """The consumed operation behind `namespace.operation`; a namespace or a name may have dots."""
        for i, char in enumerate(target):
            if char == "." and (api := self.apis.get(match(target[:i], self.apis) or "")) is not None:
                found = api.operations.get(match(target[i + 1 :], api.operations) or "")
                if found is not None:
                    return found
        return None

    def _api(self, consumed: Consumed) -> None:
        base_uri = self._base_uri(consumed)
        api = Api(consumed, *self._upstream(consumed), base_uri, {})
        # of two entries with one namespace each keeps its address and its credentials; the first operation counts
        operations = self.apis.setdefault(consumed.namespace, api).operations
        fields = credential_fields(consumed.authentication)
        for resource in consumed.resources:
            for item in resource.operations:
                if item.name in operations:
                    continue
                relay = self.ground.means.relay and item.extension.get("relayBody", True) is not False
                operation = compile_operation(
                    consumed, resource, item, self.ground.binds,
                    base_uri=base_uri, credential_fields=fields, relay=relay,
                )  # fmt: skip
                operation.broken = operation.broken or api.broken
                form = self._format(operation, item.raw_format, item.output_schema, consumed.folder, item.at)
                if operation.broken is not None and operation.broken.code == "operation.invalid":
                    self.ground.error(
                        "operation-invalid", operation.broken.message, REFUSED, "mend the template", item.at
                    )
                pages = self._extended(operation, item, api.upstream.policy)
                operations[item.name] = Consumable(operation, api.upstream, form, item.outputs, pages)

    def _upstream(self, consumed: Consumed) -> tuple[Upstream, AppError | None]:
        try:
            policy = compile_policy(consumed.extension)
        except ValueError as error:
            self.ground.error(
                "extension-invalid", f"{error}.", "the whole x-toolcrib block is ignored", "mend it", consumed.at
            )
            policy = compile_policy({})
        authenticator, broken = None, None
        try:
            authenticator = compile_auth(consumed.authentication, self.ground.binds.secret, self.ground.means.outbound)
        except ValueError as error:
            reason = Unavailable(
                "upstream.auth_invalid", f"The credentials of {consumed.namespace} are wrong: {error}."
            )
            at = consumed.authentication.at if consumed.authentication else consumed.at
            self.ground.error("authentication-invalid", reason.message, REFUSED, "mend the authentication block", at)
            broken = reason
        recorder = self.ground.means.telemetry.recorder
        upstream = Upstream(
            self.ground.means.outbound, consumed.namespace, authenticator=authenticator, policy=policy,
            on_exchange=None if self.ground.means.telemetry.metrics is None else self._observe,
            trace_headers=recorder.outgoing if recorder.active else None,
        )  # fmt: skip
        return upstream, broken

    def _observe(self, _namespace: str, method: str, host: str, status: int | str, seconds: float) -> None:
        self.ground.means.telemetry.observe_http_client(method, host, status if isinstance(status, int) else 0, seconds)

    def _extended(self, operation: Operation, item: ConsumedOperation, within: Policy) -> Pagination | None:
        """Apply the `x-toolcrib` of an operation: its policy, and how it is paginated."""
        try:
            settings = {key: value for key, value in item.extension.items() if key in POLICY_KEYS}
            if settings:
                operation.policy = compile_policy(settings, within)
            return compile_pagination(item.extension["pagination"]) if "pagination" in item.extension else None
        except ValueError as error:
            self.ground.error("extension-invalid", f"{error}.", "the x-toolcrib block is ignored", "mend it", item.at)
            return None

    def _base_uri(self, consumed: Consumed) -> str:
        given = self.ground.means.base_uris
        return given.get(consumed.namespace) or consumed.base_uri or given.get("*", "")

    def _format(self, operation: Operation, name: str | None, schema: str | None, folder: str, at: Mark) -> Format:
        try:
            return open_format(name, schema, (folder, str(Path.cwd())) if self.ground.means.files else ())
        except ValueError as error:
            message = f"{operation.namespace}.{operation.name}: {error}."
            self.ground.error("output-format", message, REFUSED, "name a known format and its schema", at)
            operation.broken = operation.broken or UpstreamFailed("operation.format", message)
            return open_format("json", None, ())


def credential_fields(auth: Auth | None) -> frozenset[tuple[str, str]]:
    """What authentication sets, as place and normalised name, so that no caller can."""
    if auth is None:
        return frozenset()
    if auth.type == "apikey" and (auth.fields.get("headers") or auth.fields.get("parameters")):
        names = (("header", auth.fields.get("headers") or {}), ("query", auth.fields.get("parameters") or {}))
        return frozenset((place, normalise(str(name))) for place, several in names for name in several)
    if auth.type == "apikey":
        place = str(auth.fields.get("placement") or "header").lower()
        return frozenset({(place, normalise(str(auth.fields.get("key", ""))))})
    return frozenset({("header", "authorization")})
