"""Reads authentication blocks: those of servers, and the credentials of consumed APIs in all the spellings of them.

Published files write an API key in the words of the format (`key value placement`), in those of OpenAPI (`in name
value`), as `header` and `key` or `token`, or as maps of `headers` or `parameters`; all become the words of the format.
Broken authentication makes a server unusable, so that nothing runs without the protection it was given. A consumed API
whose credentials cannot be understood stays, and the planner has each of its calls refused with the reason.
"""

from collections.abc import Mapping
from typing import Any, Final

from toolcrib.capability.load_fields import Record, kind, short
from toolcrib.capability.spec import Auth

AUTH = kind(
    "authentication",
    "type username password token key value placement authorizationServerUri resource scopes audience tokenEndpoint "
    "tokenValidation clientId clientSecret clientAuthentication description in name header headers parameters "
    "consumerKey consumerSecret signingKey tokenSecret apiId apiKey certPath certPassword",
)
_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "basic": ("username",),
    "digest": ("username", "password"),
    "bearer": ("token",),
    "apikey": ("key", "value"),
    "oauth2": (),
}
_SPELLINGS: Final = {"header": "apikey", "query": "apikey", "cookie": "apikey"}
_OPEN_API: Final = frozenset({"in", "name", "header"})
_SEVERAL: Final = ("headers", "parameters")


def read_auth(owner: Record, *, is_server: bool) -> Auth | None:
    """The authentication of an API or a server; raises Unusable when it cannot be honoured."""
    record = owner.record("authentication", AUTH)
    if record is None:
        if owner.is_written("authentication"):
            owner.unusable(
                "authentication-broken",
                f"The authentication of the {owner.kind.name} is empty",
                "write its type and credentials, or leave it out",
                owner.at_field("authentication"),
            )
        return None
    written = (record.text("type", needed=True) or "").lower().replace("-", "").replace("_", "")
    if written == "none":
        return None
    fields = record.as_written(skip="type")
    if is_server:
        _judge_server(owner, record, written)
        return Auth(type=written, fields=fields, at=record.at)
    type_ = _SPELLINGS.get(written, written)
    if type_ == "apikey":
        fields = _api_key(fields, written)
    return Auth(type=type_, fields=fields, at=record.at)


def _judge_server(owner: Record, record: Record, type_: str) -> None:
    if type_ not in _NEEDS:
        owner.unusable(
            "authentication-unknown",
            f"The authentication of the {owner.kind.name} has the unknown type {short(type_)}",
            "write basic, bearer, apikey, digest or oauth2",
            record.at,
        )
    needs = _NEEDS[type_] + {"oauth2": ("authorizationServerUri",), "basic": ("password",)}.get(type_, ())
    for field in needs:
        if not record.text(field, needed=True):
            owner.unusable(
                "authentication-broken",
                f"The {type_} authentication of the {owner.kind.name} has no {field}",
                f"give it a {field}, as {{{{VARIABLE}}}} of a bind",
                record.at,
            )


def _api_key(fields: dict[str, Any], type_: str) -> dict[str, Any]:
    """The fields of an API key under the names of the format."""
    for field in _SEVERAL:
        if isinstance(fields.get(field), list):
            fields[field] = {
                str(entry.get("name", "")): entry.get("value") for entry in fields[field] if isinstance(entry, Mapping)
            }
    if not _OPEN_API & fields.keys():
        if type_ in {"query", "cookie"}:
            fields.setdefault("placement", type_)
        return fields
    name, place = fields.pop("name", None), fields.pop("in", None) or ("header" if type_ == "apikey" else type_)
    if "header" in fields:
        name, place = fields.pop("header"), "header"
    if "value" not in fields:  # then what is called a key or a token is the secret
        fields["value"] = fields.pop("token", None) or fields.pop("key", None)
    if name is not None:
        fields["key"] = name
    fields.setdefault("placement", place)
    return {key: value for key, value in fields.items() if value is not None}
