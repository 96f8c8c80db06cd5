"""Who is acting, and what they may do. Every domain function takes an `Actor`; dialects only find out which one."""

from dataclasses import dataclass

from toolcrib.errors import Forbidden, Invalid

SCOPES: dict[str, str] = {
    "tool_sets:read": "see tool sets, their tools and events",
    "tool_sets:write": "create, change and delete tool sets and tools; see the secrets they send",
    "commands:write": "let a tool set run a command on the Toolcrib host (stdio MCP servers); see its environment",
    "tools:call": "list and call tools over MCP and REST",
    "audit:read": "see the record of tool calls",
    "api_keys:write": "create, list and revoke API keys",
}
ALL = "*"


@dataclass(frozen=True, slots=True)
class Actor:
    """The caller of a domain function.

    Attributes:
        workspace_id: the one workspace this actor acts in.
        principal_id: the person, machine or system part that answers for the action.
        scopes: names out of `SCOPES`, `noun:*`, or `*`.
        key_id: the API key that signed the request in, if one did.
    """

    workspace_id: str
    account_id: str
    principal_id: str
    scopes: frozenset[str]
    key_id: str | None = None

    def can(self, scope: str) -> bool:
        """Whether the actor holds `scope`, itself or through a wildcard."""
        held = self.scopes
        return scope in held or ALL in held or scope.partition(":")[0] + ":*" in held

    def must(self, scope: str) -> None:
        """Raise Forbidden unless the actor holds `scope`."""
        if not self.can(scope):
            raise Forbidden("scope.missing", f"This needs the scope {scope}.", scope=scope)


def check_scopes(scopes: list[str]) -> list[str]:
    """The scopes in order, without repeats.

    Raises:
        Invalid: one of them does not exist.
    """
    nouns = {name.partition(":")[0] + ":*" for name in SCOPES}
    for scope in scopes:
        if scope not in SCOPES and scope not in nouns and scope != ALL:
            raise Invalid(
                "scope.unknown", f"There is no scope {scope!r}; known: {', '.join([*SCOPES, ALL])}.", field="scopes"
            )
    return sorted(set(scopes))
