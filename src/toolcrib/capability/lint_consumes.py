"""Lint rules about what a capability consumes: base URIs, paths, inputs, formats, credentials and variables."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from toolcrib.capability.lint_facts import (
    VARIABLE_NAME,
    Facts,
    Fault,
    api_templates,
    names_in,
    texts_in,
)
from toolcrib.capability.names import normalise
from toolcrib.capability.spec import Auth, Consumed, ControlServer, Input, Mark

FORMATS: Final = ("json", "xml", "yaml", "csv", "tsv", "psv", "html", "markdown", "avro", "protobuf", "text")
_SECRETS: Final = {"password", "token", "value", "clientSecret"}
_SECRET_HEADERS = re.compile(r"authorization|api[-_]?key|token|secret", re.IGNORECASE)


def base_uri_empty(facts: Facts) -> Iterator[Fault]:
    """A consumed API needs a base URI."""
    for api in facts.document.consumes:
        if not api.base_uri:
            option = "NAFTIKO_BASE_URI_" + re.sub(r"[^A-Za-z0-9]", "_", api.namespace).upper()
            yield (
                "warning",
                f"The API {api.namespace!r} has an empty baseUri",
                f"it starts; calls answer 502 until --base-uri {api.namespace}=URL or {option} is given",
                "write the base URI",
                api.at,
            )


def base_uri_shape(facts: Facts) -> Iterator[Fault]:
    """A base URI is http:// or https:// with a host and a path, without a query or fragment."""
    for api in facts.document.consumes:
        if not api.base_uri or api.base_uri.startswith(("{", "${")):
            continue
        if not re.match(r"https?://[^/]", api.base_uri, re.IGNORECASE):
            yield (
                "error",
                f"The baseUri of {api.namespace!r} is no http:// or https:// address",
                "calls answer 502",
                "write https://host/path",
                api.at,
            )
        elif "?" in api.base_uri or "#" in api.base_uri:
            yield (
                "warning",
                f"The baseUri of {api.namespace!r} holds a query or fragment",
                "paths are appended to it as it is",
                "declare `in: query` inputs with a value instead",
                api.at,
            )


def base_uri_trailing_slash(facts: Facts) -> Iterator[Fault]:
    """A base URI ends without a slash."""
    for api in facts.document.consumes:
        if api.base_uri.endswith("/"):
            yield (
                "warning",
                f"The baseUri of {api.namespace!r} ends with a slash",
                "it is joined to paths with exactly one slash",
                "leave the slash out",
                api.at,
            )


def example_host(facts: Facts) -> Iterator[Fault]:
    """Addresses are not those of example.com."""
    hosts = [(api.base_uri, api.at) for api in facts.document.consumes]
    hosts += [(server.address or "", server.at) for server in facts.document.servers]
    for text, at in hosts:
        if re.search(r"(^|[./@])example\.com($|[/:])", text):
            yield "note", "The address is one of example.com", "it is used as it is", "write the real address", at


def consumed_path_shape(facts: Facts) -> Iterator[Fault]:
    """A consumed path starts with a slash and holds no query or fragment."""
    for api in facts.document.consumes:
        for resource in api.resources:
            called = f"The path {resource.path!r}"
            if resource.path and not resource.path.startswith("/"):
                yield "warning", f"{called} does not start with a slash", "one is put before it", "add it", resource.at
            if "#" in resource.path:
                yield (
                    "warning",
                    f"{called} holds a fragment",
                    "what follows # is not sent",
                    "send it as a header or query input",
                    resource.at,
                )
            if "?" in resource.path.partition("#")[0]:
                yield (
                    "warning",
                    f"{called} holds a query",
                    "it is sent as it is",
                    "declare `in: query` inputs with a value instead",
                    resource.at,
                )


def path_input_not_in_path(facts: Facts) -> Iterator[Fault]:
    """An input with `in: path` has a variable in the path."""
    for operation in facts.all_operations:
        names = facts.path_names(operation.address)
        for parameter in (*operation.resource.inputs, *operation.operation.inputs):
            if parameter.location == "path" and normalise(parameter.name) not in names:
                yield (
                    "warning",
                    f"The input {parameter.name!r} is in the path, but {operation.resource.path!r} does not name it",
                    "its value is not sent",
                    f"put {{{parameter.name}}} into the path, or change `in`",
                    parameter.at,
                )


def exposed_path_input(facts: Facts) -> Iterator[Fault]:
    """An exposed input with `in: path` has a variable in the path."""
    for unit in facts.units:
        if unit.path is None:
            continue
        names = facts.path_names(unit.path)
        for parameter in unit.inputs:
            if parameter.location == "path" and normalise(parameter.name) not in names:
                yield (
                    "warning",
                    f"The input {parameter.name!r} is in the path, but {unit.path!r} has no such variable",
                    "requests cannot give it there; it may be given as a query parameter",
                    f"put {{{parameter.name}}} into the path, or change `in`",
                    parameter.at,
                )


def namespace_duplicate(facts: Facts) -> Iterator[Fault]:
    """Namespaces are unique, across everything that has one."""
    document = facts.document
    sections: list[tuple[str, list[tuple[str, Mark]]]] = [
        ("consumed API", [(api.namespace, api.at) for api in document.consumes]),
        ("server", [(s.namespace, s.at) for s in document.servers if not isinstance(s, ControlServer)]),
        ("aggregate", [(aggregate.namespace, aggregate.at) for aggregate in document.aggregates]),
        ("bind", [(bind.namespace, bind.at) for bind in document.binds]),
    ]
    first: dict[str, str] = {}
    for what, entries in sections:
        seen: set[str] = set()
        for namespace, at in entries:
            if namespace in seen:
                serious = what in {"consumed API", "server"}
                yield (
                    "error" if serious else "warning",
                    f"There is a second {what} {namespace!r}",
                    "references mean the first that has what they name" if serious else "both are used",
                    "rename one of them",
                    at,
                )
            elif first.setdefault(namespace, what) != what:
                yield (
                    "warning",
                    f"The {what} {namespace!r} is called like a {first[namespace]}",
                    "references are told apart by where they stand",
                    "rename one of them",
                    at,
                )
            seen.add(namespace)


def operation_duplicate(facts: Facts) -> Iterator[Fault]:
    """The names of the operations of an API are unique."""
    for operation in facts.all_operations:
        called = f"{operation.api.namespace}.{operation.operation.name}"
        first = facts.operations[called]
        if first.operation is not operation.operation and first.api is operation.api:
            yield (
                "error",
                f"There is a second operation {called!r}",
                "calls of it mean the first",
                "rename one of them",
                operation.operation.at,
            )


def format_unsupported(facts: Facts) -> Iterator[Fault]:
    """`outputRawFormat` is one that can be read."""
    for operation in facts.all_operations:
        written = operation.operation.raw_format or "json"
        if written.lower() == "binary":
            yield (
                "warning",
                "The outputRawFormat is binary",
                "the reply is relayed as it is; it cannot be mapped",
                "expose it without outputParameters",
                operation.operation.at,
            )
        elif written.lower() not in FORMATS:
            yield (
                "error",
                f"The outputRawFormat {written!r} is not supported",
                "replies can be relayed, but not mapped: that answers 502",
                f"write one of {', '.join(FORMATS)}",
                operation.operation.at,
            )
        elif written.lower() in {"avro", "protobuf"} and not operation.operation.output_schema:
            yield (
                "error",
                f"The format {written.lower()} needs an outputSchema",
                "replies cannot be mapped: that answers 502",
                "name the schema file",
                operation.operation.at,
            )


def _auths(facts: Facts) -> Iterator[tuple[str, Auth]]:
    for api in facts.document.consumes:
        if api.authentication is not None:
            yield f"the API {api.namespace!r}", api.authentication
    for server in facts.document.servers:
        if server.authentication is not None:
            yield f"the server {server.namespace!r}", server.authentication


def _credentials(auth: Auth) -> Iterator[tuple[str, str]]:
    for name in sorted(_SECRETS & auth.fields.keys()):
        text = auth.fields[name]
        if isinstance(text, str) and text:
            yield name, text


def credential_in_file(facts: Facts) -> Iterator[Fault]:
    """No credential stands in the file in clear."""
    effect, mend = "it is used; whoever reads the file has it", "declare a bind and write {{VARIABLE}}"
    for owner, auth in _auths(facts):
        for name, text in _credentials(auth):
            if names_in(text) or facts.is_declared(text.strip()):
                continue
            if "_" in text and VARIABLE_NAME.fullmatch(text):
                what = f"The {name} of {owner} looks like the name of a variable, but no bind declares it"
                yield "warning", what, "it is sent as it is", mend, auth.at
            else:
                yield "warning", f"The {name} of {owner} stands in the file in clear", effect, mend, auth.at
    for api in facts.document.consumes:
        address = api.base_uri.partition("//")[2].partition("/")[0]
        if "@" in address and not names_in(address.rpartition("@")[0]):
            yield "warning", f"The baseUri of {api.namespace!r} holds credentials", effect, mend, api.at
    for parameter in _consumed_inputs(facts):
        value = parameter.value
        is_secret = parameter.location in {"header", "query"} and _SECRET_HEADERS.search(parameter.name)
        if is_secret and isinstance(value, str) and value and not names_in(value) and not facts.is_declared(value):
            yield "warning", f"The value of {parameter.name!r} stands in the file in clear", effect, mend, parameter.at


def _consumed_inputs(facts: Facts) -> Iterator[Input]:
    for api in facts.document.consumes:
        yield from api.inputs
        for resource in api.resources:
            yield from resource.inputs
            for operation in resource.operations:
                yield from operation.inputs


def credential_bare_name(facts: Facts) -> Iterator[Fault]:
    """A credential names its variable in double braces."""
    for owner, auth in _auths(facts):
        for name, text in _credentials(auth):
            if facts.is_declared(text.strip()):
                yield (
                    "warning",
                    f"The {name} of {owner} is the bare name of a variable",
                    "it is taken as the variable",
                    f"write {{{{{text.strip()}}}}}",
                    auth.at,
                )


def bind_undeclared(facts: Facts) -> Iterator[Fault]:
    """Variables that texts name are declared in `binds`."""
    for owner, auth in _auths(facts):
        for text in texts_in(dict(auth.fields)):
            for name in names_in(text):
                if not facts.is_declared(name):
                    yield _undeclared(facts, name, f"The authentication of {owner}", auth.at, is_secret=True)
    for text, at in _templates(facts):
        for name in names_in(text):
            namespace = name.partition(".")[0]
            if not facts.is_declared(name) and (namespace in facts.bind_namespaces or VARIABLE_NAME.fullmatch(name)):
                yield _undeclared(facts, name, "A text", at, is_secret=False)


def _undeclared(facts: Facts, name: str, what: str, at: Mark, *, is_secret: bool) -> Fault:
    namespace, _, variable = name.partition(".")
    if namespace in facts.bind_namespaces and variable:
        effect = f"{variable} is taken from the environment if the bind has no location"
    else:
        effect = "calls are refused" if is_secret else "it is taken from the inputs of the call"
    is_shared = not facts.document.servers  # its binds are those of the file that imports it
    serious = is_secret and namespace not in facts.bind_namespaces and not is_shared
    called = variable or name
    mend = f"declare it: `binds: [{{namespace: env, keys: {{{called}: {called}}}}}]`"
    return "error" if serious else "warning", f"{what} names {{{{{name}}}}}, which no bind declares", effect, mend, at


def _templates(facts: Facts) -> Iterator[tuple[str, Mark]]:
    for api in facts.document.consumes:
        yield api.base_uri, api.at
        for parameter in api.inputs:
            if isinstance(parameter.value, str):
                yield parameter.value, parameter.at
    for operation in facts.all_operations:
        yield from api_templates(operation)
    for control in facts.document.servers:
        if isinstance(control, ControlServer):
            for text in texts_in([dict(control.management), dict(control.observability)]):
                yield text, control.at


def bind_unused(facts: Facts) -> Iterator[Fault]:
    """Every declared variable is used."""
    used: set[str] = set()
    texts = [text for text, _ in _templates(facts)]
    texts += [text for _, auth in _auths(facts) for text in texts_in(dict(auth.fields))]
    for unit in facts.units:
        texts += list(texts_in([entry.value for entry in unit.action.with_]))
        texts += list(texts_in([entry.value for step in unit.action.steps for entry in step.with_]))
        texts += [output.value for output in unit.action.outputs if isinstance(output.value, str)]
    for text in texts:
        used.add(text.strip())
        used.update(names_in(text, single=True))
    for bind in facts.document.binds:
        for variable in bind.keys:
            if not {variable, f"{bind.namespace}.{variable}"} & used:
                yield (
                    "note",
                    f"Nothing uses the variable {variable!r}",
                    "none",
                    f"use {{{{{variable}}}}}, for example in `authentication`, or leave it out",
                    bind.at,
                )


def oauth2_insecure(facts: Facts) -> Iterator[Fault]:
    """OAuth 2 addresses are https://."""
    for owner, auth in _auths(facts):
        if auth.type != "oauth2":
            continue
        for name in ("authorizationServerUri", "tokenEndpoint", "resource"):
            text = auth.fields.get(name)
            if isinstance(text, str) and text.startswith("http://") and not _is_local(text):
                yield (
                    "warning" if name == "resource" else "error",
                    f"The {name} of {owner} is http://",
                    "it is used over a connection that others can read and change",
                    "write https://",
                    auth.at,
                )


def oauth2_fields(facts: Facts) -> Iterator[Fault]:
    """OAuth 2 says what it needs: scopes, and a way of checking tokens that is supported."""
    for server in facts.document.servers:
        auth = server.authentication
        if auth is None or auth.type != "oauth2":
            continue
        if not auth.fields.get("scopes"):
            yield "note", "The oauth2 block has no scopes", "any valid token is let in", "list the scopes", auth.at
        if auth.fields.get("tokenValidation") == "introspection":
            yield (
                "error",
                "Tokens are to be checked by introspection, which is not supported",
                "every request is refused",
                "write `tokenValidation: jwks`",
                auth.at,
            )
        if not auth.fields.get("audience") and not auth.fields.get("resource"):
            yield (
                "warning",
                "The oauth2 block names neither audience nor resource",
                "tokens that were made for others are let in",
                "write `resource`, the address of this server",
                auth.at,
            )
    for api in facts.document.consumes:
        if api.authentication is not None and api.authentication.type == "oauth2" and not _has_endpoint(api):
            yield (
                "error",
                f"The oauth2 block of {api.namespace!r} has no tokenEndpoint",
                "no token can be fetched: calls are refused",
                "write tokenEndpoint, clientId and clientSecret",
                api.authentication.at,
            )


def _has_endpoint(api: Consumed) -> bool:
    fields: Mapping[str, Any] = api.authentication.fields if api.authentication is not None else {}
    return bool(fields.get("tokenEndpoint") or fields.get("authorizationServerUri"))


def _is_local(uri: str) -> bool:
    try:
        host = urlsplit(uri).hostname
    except ValueError:
        return False
    return host in {"localhost", "127.0.0.1", "::1"}


def consumes_description(facts: Facts) -> Iterator[Fault]:
    """A consumed API has a description."""
    for api in facts.document.consumes:
        if not api.description:
            yield (
                "note",
                f"The API {api.namespace!r} has no description",
                "none",
                "say what it is, for those who read the file",
                api.at,
            )
