"""How callers of an imported API sign in: its security schemes as `authentication` of a consumed API.

Credentials become variables of the environment, named after the namespace; nothing of a document can name another
variable. Of the alternatives of an operation the first that can be kept is taken.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from toolcrib.capability.openapi.reader import OpenApiSource, Pointer, as_list, as_map, clean

BIND = "env"
_DISCOVERY = "/.well-known/openid-configuration"
_TOKEN_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+(\[[0-9A-Za-z_-]*\])*")  # of a header, cookie or query parameter


@dataclass(slots=True)
class SignIn:
    """What a group of operations needs: an `authentication`, and inputs for further keys; both empty for nothing."""

    schemes: tuple[str, ...]
    authentication: dict[str, Any] | None = None
    inputs: list[dict[str, Any]] = field(default_factory=list)


class Security:
    """The security schemes of one document.

    Args:
        source: the document.
        namespace: what the variables are named after.
    """

    def __init__(self, source: OpenApiSource, namespace: str) -> None:
        self.variables: list[str] = []
        self._source = source
        self._prefix = re.sub(r"[^A-Z0-9]+", "_", namespace.upper()).strip("_") or "API"
        if self._prefix[0].isdigit():
            self._prefix = f"API_{self._prefix}"
        at: Pointer = ("components", "securitySchemes")
        found = as_map(source.root.get("components")).get("securitySchemes")
        if source.version == "2.0":
            at, found = ("securityDefinitions",), source.root.get("securityDefinitions")
        self._schemes = {name: source.follow(scheme, (*at, name)) for name, scheme in as_map(found).items()}
        self._made: dict[tuple[str, ...], SignIn] = {}
        self._scopes: dict[str, dict[str, None]] = {}

    def reserves(self, name: str) -> bool:
        """Whether a name could be one of the variables that hold credentials."""
        return name.upper().startswith(f"{self._prefix}_")

    def choose(self, operation: dict[str, Any], pointer: Pointer) -> tuple[str, ...]:
        """The names of the schemes that an operation is called with, none for an open one."""
        given = operation.get("security", self._source.root.get("security"))
        needs = [as_map(need) for need in as_list(given)]
        if not needs or {} in needs:
            return ()
        known = [need for need in needs if all(self._is_known(name) for name in need)]
        if known:
            need = min(known, key=lambda need: max(map(self._awkwardness, need)))
            for name, scopes in need.items():
                self._scopes.setdefault(name, {}).update(dict.fromkeys(filter(None, map(clean, as_list(scopes)))))
            return tuple(sorted(need))
        names = ", ".join(clean(name, 60) for need in needs for name in need)[:300]
        self._source.note(
            "openapi-security-unsupported",
            "warning",
            (*pointer, "security"),
            f"none of its alternatives can be kept: {names}",
            "calls are sent without credentials",
            "write `authentication` into the capability by hand",
        )
        return ()

    def sign_in(self, schemes: tuple[str, ...]) -> SignIn:
        """The blocks for a choice; made once all operations have chosen, since they decide on the scopes."""
        if schemes not in self._made:
            made = self._made[schemes] = SignIn(schemes)
            # what only an `authentication` can do goes first; a further key can be an input
            order = sorted(schemes, key=lambda name: self._schemes[name][0].get("type") == "apiKey")
            for name in order:
                node, pointer = self._schemes[name]
                if made.authentication is None and node.get("in") != "cookie":
                    made.authentication = self._authentication(name, node, pointer)
                elif node.get("type") == "apiKey":
                    location = node.get("in")
                    entry = {"name": node["name"], "in": location, "value": self._variable("API_KEY", name)}
                    made.inputs.append(entry)
                else:
                    self._unkept(name, pointer)
        return self._made[schemes]

    def _unkept(self, name: str, pointer: Pointer) -> None:
        self._source.note(
            "openapi-security-unsupported",
            "warning",
            pointer,
            f"{clean(name, 60)} is asked for together with another scheme",
            "only the other one is used",
            "add the missing credentials as inputParameters",
        )

    def _is_known(self, name: str) -> bool:
        node, _ = self._schemes.get(name, ({}, ()))
        match node.get("type"):
            case "apiKey":
                named = isinstance(node.get("name"), str) and _TOKEN_NAME.fullmatch(node["name"]) is not None
                return named and node.get("in") in {"header", "query", "cookie"}
            case "http":
                return _TOKEN_NAME.fullmatch(str(node.get("scheme", ""))) is not None
            case "basic" | "oauth2" | "openIdConnect":
                return True
            case _:
                return False

    def _awkwardness(self, name: str) -> int:
        """A person's cookie is the last choice, a token that must be fetched by hand the last but one."""
        node, _ = self._schemes[name]
        if node.get("type") == "apiKey":
            return 2 if node["in"] == "cookie" else 0
        return 1 if node.get("type") == "oauth2" and not _token_url(node) else 0

    def _authentication(self, name: str, node: dict[str, Any], pointer: Pointer) -> dict[str, Any]:
        match node.get("type"), str(node.get("scheme", "")).lower():
            case ("basic", _) | ("http", "basic" | "digest"):
                kind = "digest" if str(node.get("scheme", "")).lower() == "digest" else "basic"
                return {
                    "type": kind,
                    "username": self._variable("USERNAME", name),
                    "password": self._variable("PASSWORD", name),
                }
            case "http", "bearer":
                return self._bearer(name)
            case "http", _:  # another scheme of the Authorization header
                token = self._variable("TOKEN", name)
                return {"type": "apikey", "key": "Authorization", "value": f"{node['scheme']} {token}"}
            case "apiKey", _:
                if node["name"].lower() == "authorization" and "bearer" in clean(node.get("description")).lower():
                    return self._bearer(name)  # how Swagger 2.0 says bearer
                block = {"type": "apikey", "key": node["name"], "value": self._variable("API_KEY", name)}
                return block | {"placement": node["in"]}
            case _:
                return self._oauth(name, node, pointer)

    def _bearer(self, name: str) -> dict[str, Any]:
        return {"type": "bearer", "token": self._variable("TOKEN", name)}

    def _oauth(self, name: str, node: dict[str, Any], pointer: Pointer) -> dict[str, Any]:
        """The client credentials grant, or a token that somebody fetched otherwise."""
        where: dict[str, Any] = {}
        if node.get("type") == "openIdConnect":
            address = str(node.get("openIdConnectUrl", ""))
            where = {"authorizationServerUri": address.removesuffix(_DISCOVERY).rstrip("/")} if _is_url(address) else {}
        else:
            where = {"tokenEndpoint": address} if (address := _token_url(node)) else {}
        if not where:
            self._source.note(
                "openapi-oauth-interactive",
                "warning",
                pointer,
                f"{clean(name, 60)} has no client credentials flow with an absolute token address",
                "a token from the environment is sent as bearer token",
                "fetch a token by a flow that it has, or write `type: oauth2` with a tokenEndpoint",
            )
            return self._bearer(name)
        block = {"type": "oauth2", **where}
        if scopes := list(self._scopes.get(name, {})):
            block["scopes"] = scopes
        block["clientId"] = self._variable("CLIENT_ID", name)
        block["clientSecret"] = self._variable("CLIENT_SECRET", name)
        return block

    def _variable(self, suffix: str, scheme: str) -> str:
        """A template of a new variable; a second of its kind is named after its scheme too."""
        variable = f"{self._prefix}_{suffix}"
        if variable in self.variables:
            part = re.sub(r"[^A-Z0-9]+", "_", scheme.upper()).strip("_") or "2"
            variable = f"{self._prefix}_{part}_{suffix}"
        number = 2
        stem = variable
        while variable in self.variables:
            variable, number = f"{stem}_{number}", number + 1
        self.variables.append(variable)
        return f"{{{{{BIND}.{variable}}}}}"


def _token_url(node: dict[str, Any]) -> str:
    """Where a client gets tokens for itself; empty if it cannot."""
    flow = node if node.get("flow") == "application" else as_map(as_map(node.get("flows")).get("clientCredentials"))
    address = str(flow.get("tokenUrl", ""))
    return address if _is_url(address) else ""


def _is_url(text: str) -> bool:
    return re.fullmatch(r"https?://[^\s{}]+", text) is not None
