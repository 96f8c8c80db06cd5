"""Every operation of every dialect's OpenAPI document: who is let in, and whether the answer is what it says.

The operations come from the documents themselves. A new one is asked without a key, with a wrong one, without its scope
and from another workspace at once; it fails here until `SCOPES` and `BODIES` know what it needs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import jsonschema_rs
import pytest

from serving import Crib
from toolcrib.core.auth import SCOPES as ALL_SCOPES
from toolcrib.core.vault import new_api_key

DIALECTS = ("cadenya", "orkosi")

# Operations that anybody may ask.
OPEN = {"getHealth", "getReady", "getVersion"}

# What the caller must hold, by operation; those of the later edition need the same.
SCOPES = {
    **{key: {"tool_sets:read"} for key in ["listToolSets", "getToolSet", "listToolSetEvents", "listTools", "getTool"]},
    **{
        key: {"tool_sets:read", "tool_sets:write"}
        for key in ["createToolSet", "updateToolSet", "patchToolSet", "deleteToolSet", "syncToolSet"]
    },
    **{key: {"tool_sets:read", "tool_sets:write"} for key in ["createTool", "updateTool", "patchTool", "deleteTool"]},
    **{key: {"tools:call"} for key in ["callTool", "callToolByName"]},
    "listToolCalls": {"audit:read"},
}

_SPEC = {"config": {}, "description": "", "parameters": {}, "status": "TOOL_STATUS_AVAILABLE"}
# A body that each operation takes.
BODIES: dict[str, Any] = {
    "createToolSet": {"metadata": {"name": "made"}, "spec": {"adapter": {"http": {"baseUrl": "http://127.0.0.1:9"}}}},
    "updateToolSet": {"metadata": {"name": "changed"}},
    "patchToolSet": {"spec": {"description": "changed"}},
    "createTool": {"metadata": {"name": "made"}, "spec": _SPEC},
    "updateTool": {"metadata": {"name": "changed"}},
    "patchTool": {"spec": {"description": "changed"}},
    "callTool": {"arguments": {}},
    "callToolByName": {"arguments": {}},
}


@dataclass(frozen=True)
class Operation:
    """One operation of a document."""

    document: dict[str, Any]
    method: str
    path: str
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """Its id, the same in both editions."""
        return str(self.facts["operationId"]).removesuffix("Later")

    def check(self, response: httpx.Response) -> None:
        """Fail unless the document allows this answer."""
        answers = self.facts["responses"]
        allowed = answers.get(str(response.status_code)) or answers.get("default")
        assert allowed, f"{response.status_code} is not documented"
        content = allowed.get("content")
        if content is None:
            assert response.content == b""
            return
        assert response.headers["content-type"] in content
        schema = {"components": self.document.get("components", {}), **content["application/json"]["schema"]}
        for error in jsonschema_rs.validator_for(schema, validate_formats=True).iter_errors(response.json()):
            raise AssertionError(f"{error.instance_path}: {error.message}")


@dataclass(frozen=True)
class Target:
    """A tool set with one tool, both there to be read, changed and deleted."""

    workspace_id: str
    tool_set_id: str
    tool_id: str
    call_name: str

    async def ask(self, http: httpx.AsyncClient, operation: Operation, **headers: str) -> httpx.Response:
        """The operation, on this target."""
        ids = {"workspaceId": self.workspace_id, "toolSetId": self.tool_set_id, "name": self.call_name}
        ids["id"] = self.tool_id if "{toolSetId}" in operation.path else self.tool_set_id
        sent = {"json": BODIES[operation.name]} if "requestBody" in operation.facts else {}
        return await http.request(operation.method, operation.path.format(**ids), headers=headers, **sent)  # type: ignore[arg-type]


async def make_target(crib: Crib) -> Target:
    """A fresh target in the first workspace; its address is one where nothing answers."""
    adapter = {"mcp": {"url": "http://127.0.0.1:9/mcp"}}
    tool_set = (await crib.add_tool_set("target", adapter))["metadata"]["id"]
    body = {"metadata": {"name": "target"}, "spec": _SPEC}
    tool = (await crib.http.post(f"/v1/tool_sets/{tool_set}/tools", json=body)).json()
    return Target(crib.workspace_id, tool_set, tool["metadata"]["id"], tool["info"]["callName"])


async def operations(crib: Crib, dialect: str) -> list[Operation]:
    """All operations of a dialect."""
    document = (await crib.http.get(f"/openapi/{dialect}.json")).json()
    return [
        Operation(document, method.upper(), path, facts)
        for path, item in document["paths"].items()
        for method, facts in item.items()
        if method in {"get", "put", "post", "patch", "delete", "head", "options"}
    ]


def guarded(found: list[Operation]) -> Iterator[Operation]:
    """Those that not everybody may ask."""
    return (operation for operation in found if operation.name not in OPEN)


def check_error(dialect: str, response: httpx.Response, status: int) -> None:
    """Fail unless this is an error of the dialect with this status."""
    assert response.status_code == status, response.text
    error = response.json()
    if dialect == "cadenya":
        assert error["code"] == {401: 16, 403: 7, 404: 5}[status]
        assert error["details"][0]["domain"] == "toolcrib"
    else:
        error = error["error"]
        assert "." in error["code"]
    assert error["message"]


@pytest.fixture(scope="module")
async def target(crib: Crib) -> Target:
    """A target for requests that must not change it."""
    return await make_target(crib)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_only_the_open_operations_are_open(crib: Crib, dialect: str) -> None:
    for operation in await operations(crib, dialect):
        assert ("security" in operation.facts) == (operation.name not in OPEN), operation.name


async def test_every_guarded_operation_says_what_it_needs(crib: Crib) -> None:
    found = {operation.name for dialect in DIALECTS for operation in guarded(await operations(crib, dialect))}
    assert found == set(SCOPES)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_operation_ids_are_unique(crib: Crib, dialect: str) -> None:
    ids = [operation.facts["operationId"] for operation in await operations(crib, dialect)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_nobody_is_served_without_a_key(crib: Crib, target: Target, dialect: str, subtests: Any) -> None:
    async with crib.as_(None) as http:
        for operation in guarded(await operations(crib, dialect)):
            with subtests.test(operation.facts["operationId"]):
                response = await target.ask(http, operation)
                check_error(dialect, response, 401)
                assert response.headers["www-authenticate"] == "Bearer"
                operation.check(response)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer nonsense"},
        {"X-API-Key": "nonsense"},
        {"Authorization": "Basic eDp5"},
        {"Authorization": f"Bearer {new_api_key().text}"},
    ],  # well formed, and never given to anybody
    ids=["bearer", "x-api-key", "basic", "well-formed"],
)
async def test_a_wrong_key_is_no_key(
    crib: Crib, target: Target, dialect: str, headers: dict[str, str], subtests: Any
) -> None:
    async with crib.as_(None) as http:
        for operation in guarded(await operations(crib, dialect)):
            with subtests.test(operation.facts["operationId"]):
                response = await target.ask(http, operation, **headers)
                check_error(dialect, response, 401)
                assert "nonsense" not in response.text


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_key_without_the_scope_is_refused(crib: Crib, target: Target, dialect: str, subtests: Any) -> None:
    keys: dict[frozenset[str], str] = {}
    for operation in guarded(await operations(crib, dialect)):
        others = frozenset(set(ALL_SCOPES) - SCOPES[operation.name])
        if others not in keys:
            keys[others] = await crib.key(*others)
        with subtests.test(operation.facts["operationId"]):
            async with crib.as_(keys[others]) as http:
                response = await target.ask(http, operation)
            check_error(dialect, response, 403)
            operation.check(response)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_key_of_another_workspace_finds_nothing(
    crib: Crib, target: Target, dialect: str, subtests: Any
) -> None:
    before = (await crib.http.get(f"/v1/tool_sets/{target.tool_set_id}")).json()
    async with crib.as_(await crib.other_workspace_key()) as http:
        for operation in guarded(await operations(crib, dialect)):
            with subtests.test(operation.facts["operationId"]):
                response = await target.ask(http, operation)
                if "{" in operation.path:
                    check_error(dialect, response, 404)
                else:  # a list, or something made, of its own
                    assert response.status_code == 200
                    assert target.tool_set_id not in response.text
                    assert crib.workspace_id not in response.text
                operation.check(response)
    assert (await crib.http.get(f"/v1/tool_sets/{target.tool_set_id}")).json() == before


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_exactly_the_scopes_suffice_and_the_answer_is_as_documented(
    crib: Crib, dialect: str, subtests: Any
) -> None:
    for operation in await operations(crib, dialect):
        key = await crib.key(*SCOPES[operation.name]) if operation.name not in OPEN else None
        target = await make_target(crib)
        with subtests.test(operation.facts["operationId"]):
            async with crib.as_(key) as http:
                response = await target.ask(http, operation)
            assert response.status_code == 200, response.text
            operation.check(response)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_unknown_id_is_not_found(crib: Crib, dialect: str, subtests: Any) -> None:
    nothing = Target(
        crib.workspace_id, "toolset_01J00000000000000000000000", "tool_01J00000000000000000000000", "no_such_tool"
    )
    for operation in guarded(await operations(crib, dialect)):
        if "{" in operation.path.replace("{workspaceId}", ""):
            with subtests.test(operation.facts["operationId"]):
                response = await nothing.ask(crib.http, operation)
                check_error(dialect, response, 404)
                operation.check(response)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_documents_can_be_browsed(crib: Crib, dialect: str) -> None:
    async with crib.as_(None) as http:
        document = (await http.get(f"/openapi/{dialect}.json")).json()
        assert document["openapi"].startswith("3.1")
        assert (await http.get(f"/docs/{dialect}")).status_code == 200
        assert f"/docs/{dialect}" in (await http.get("/docs")).text
        assert f"/openapi/{dialect}.json" in (await http.get("/")).json()["openapi"]


async def test_unknown_paths_are_not_found_in_the_words_of_their_dialect(crib: Crib) -> None:
    for dialect, path in (
        ("cadenya", "/v1/tool_sets/a/b/c"),
        ("orkosi", "/api/nothing"),
        ("orkosi", "/nothing"),
        ("orkosi", "/openapi/x.json"),
    ):
        check_error(dialect, await crib.http.get(path), 404)
