"""Changes: what is sent without a mask, what the mask names with one; tool sets and tools alike."""

from typing import Any

import pytest

from api.cadenya_calls import TOOL_SPEC, Cadenya

FILTER = {"operator": "OPERATOR_OR", "filters": [{"attribute": "ATTRIBUTE_NAME", "matcher": {"exact": "a"}}]}
HTTP = {"http": {"baseUrl": "https://api.example.com", "headers": {"X-One": "1", "X-Two": "2"}}}
NOWHERE = "http://127.0.0.1:9/mcp"  # nothing listens: its sync fails, which is no matter here
MCP = {"mcp": {"url": NOWHERE, "headers": {"X-One": "1"}, "includeTools": FILTER, "toolApprovals": {"always": True}}}
GET = {"http": {"requestMethod": "GET", "path": "/a/{id}", "headers": {"X-A": "a"}}}


async def start(cadenya: Cadenya, name: str, adapter: dict[str, Any] | None = HTTP) -> str:
    """A tool set with every member set; its path."""
    body = {
        "metadata": {"name": name, "externalId": f"ext {name}", "labels": {"a": "1", "b": "2"}},
        "spec": {"adapter": adapter or {}, "description": "first"},
    }
    return f"/{(await cadenya.ok('POST', '', body))['metadata']['id']}"


def told(thing: dict[str, Any]) -> dict[str, Any]:
    """What a caller decides about a thing, without the tags of unions."""

    def untagged(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: v if k == "parameters" else untagged(v) for k, v in value.items() if k != "type"}

    metadata = {name: thing["metadata"][name] for name in ("name", "externalId", "labels")}
    return {"metadata": metadata, "spec": untagged(thing["spec"])}


# ---- without a mask --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"metadata": None},
        {"spec": None, "metadata": None},
        {"spec": {}},
        {"spec": {"adapter": {}}},
        {"updateMask": ""},
        {"updateMask": None},
        {"updateMask": " ", "spec": {"adapter": {"http": {}}}},
    ],
)
async def test_nothing_sent_changes_nothing(cadenya: Cadenya, body: dict[str, Any]) -> None:
    path = await start(cadenya, f"untouched {body}")
    before = await cadenya.ok("GET", path)
    assert await cadenya.ok("PUT", path, body) == before
    assert await cadenya.ok("GET", path) == before


async def test_what_is_sent_changes_and_the_rest_stays(cadenya: Cadenya) -> None:
    path = await start(cadenya, "partly")
    before = await cadenya.ok("GET", path)
    after = await cadenya.ok("PUT", path, {"spec": {"description": "second"}})
    assert told(after) == {**told(before), "spec": {**told(before)["spec"], "description": "second"}}
    assert after["metadata"]["updatedAt"] > before["metadata"]["updatedAt"]
    assert after["metadata"]["createdAt"] == before["metadata"]["createdAt"]
    after = await cadenya.ok("PUT", path, {"metadata": {"name": "renamed"}})
    assert told(after)["metadata"] == {"name": "renamed", "externalId": "ext partly", "labels": {"a": "1", "b": "2"}}


async def test_metadata_without_a_name_is_refused_unless_the_mask_omits_it(cadenya: Cadenya) -> None:
    path = await start(cadenya, "labelled")
    body = {"metadata": {"labels": {"c": "3"}}}
    await cadenya.refused("PUT", path, body, field="metadata.name")
    after = await cadenya.ok("PUT", path, {**body, "updateMask": "metadata.labels"})
    assert told(after)["metadata"] == {"name": "labelled", "externalId": "ext labelled", "labels": {"c": "3"}}
    await cadenya.refused("PUT", path, {**body, "updateMask": "metadata"}, field="metadata.name")


async def test_null_clears_what_may_be_empty(cadenya: Cadenya) -> None:
    path = await start(cadenya, "cleared")
    body = {"metadata": {"name": "cleared", "externalId": None, "labels": None}, "spec": {"description": None}}
    after = await cadenya.ok("PUT", path, body)
    assert told(after) == {"metadata": {"name": "cleared", "externalId": "", "labels": {}}, "spec": {"adapter": HTTP}}
    after = await cadenya.ok("PUT", path, {"spec": {"adapter": {"http": {"baseUrl": None}}}})
    assert told(after)["spec"]["adapter"] == {"http": {"headers": HTTP["http"]["headers"]}}
    assert told(await cadenya.ok("PUT", path, {"spec": {"adapter": None}}))["spec"] == {"adapter": {}}
    await cadenya.refused("PUT", path, {"metadata": {"name": None}}, field="metadata.name")


async def test_a_map_is_replaced_whole(cadenya: Cadenya) -> None:
    path = await start(cadenya, "maps")
    body = {
        "metadata": {"name": "maps", "labels": {"c": "3"}},
        "spec": {"adapter": {"http": {"headers": {"X-Three": "3"}}}},
    }
    after = told(await cadenya.ok("PUT", path, body))
    assert after["metadata"]["labels"] == {"c": "3"}
    assert after["spec"]["adapter"]["http"] == {"baseUrl": HTTP["http"]["baseUrl"], "headers": {"X-Three": "3"}}


async def test_a_filter_is_replaced_whole(cadenya: Cadenya) -> None:
    path = await start(cadenya, "filters", MCP)
    other = {"operator": "OPERATOR_AND", "filters": [{"attribute": "ATTRIBUTE_TITLE", "matcher": {"regex": "x"}}]}
    await cadenya.refused(
        "PUT",
        path,
        {"spec": {"adapter": {"mcp": {"includeTools": {"filters": []}}}}},
        field="spec.adapter.mcp.includeTools.operator",
    )
    after = told(await cadenya.ok("PUT", path, {"spec": {"adapter": {"mcp": {"includeTools": other}}}}))
    shown = after["spec"]["adapter"]["mcp"]["includeTools"]
    assert shown["operator"] == "OPERATOR_AND"
    assert [f["matcher"]["regex"] for f in shown["filters"]] == ["x"]
    assert after["spec"]["adapter"]["mcp"]["toolApprovals"] == {"always": True}


@pytest.mark.parametrize(
    ("old", "new"), [(HTTP, MCP), (MCP, HTTP), (None, HTTP), (None, MCP), (HTTP, None), (MCP, None)]
)
@pytest.mark.parametrize("mask", [None, "spec.adapter", "spec"])
async def test_an_adapter_may_become_another(
    cadenya: Cadenya, old: dict[str, Any] | None, new: dict[str, Any] | None, mask: str | None
) -> None:
    path = await start(cadenya, f"switch {list(old or 'x')} {list(new or 'x')} {mask}", old)
    body: dict[str, Any] = {"spec": {"adapter": new}, **({"updateMask": mask} if mask else {})}
    await cadenya.ok("PUT", path, body)
    after = (await cadenya.ok("GET", path))["spec"]["adapter"]
    assert set(after) - {"type"} == set(new or {})
    assert after.get("type") == (next(iter(new)) if new else None)


async def test_both_adapters_at_once_are_refused(cadenya: Cadenya) -> None:
    both = {"adapter": {**HTTP, **MCP}}
    await cadenya.refused("POST", "", {"metadata": {"name": "both"}, "spec": both}, field="spec.adapter")
    for adapter in (None, HTTP, MCP):
        path = await start(cadenya, f"both {list(adapter or 'x')}", adapter)
        before = await cadenya.ok("GET", path)
        for mask in ({}, {"updateMask": "spec.adapter"}, {"updateMask": "spec"}, {"updateMask": "*"}):
            sent = {"metadata": {"name": "x"}, "spec": both, **mask}
            await cadenya.refused("PUT", path, sent, field="spec.adapter")
        assert told(await cadenya.ok("GET", path)) == told(before)


# ---- with a mask -----------------------------------------------------------------------------------------------------

NEW = {
    "metadata": {"name": "new", "externalId": "ext new", "labels": {"n": "9"}},
    "spec": {
        "adapter": {"http": {"baseUrl": "https://other.example.com", "headers": {"X-Nine": "9"}}},
        "description": "new",
    },
}


@pytest.mark.parametrize(
    ("mask", "changed"),
    [
        ("metadata.name", {"metadata.name"}),
        ("metadata.externalId", {"metadata.externalId"}),
        ("metadata.external_id", {"metadata.externalId"}),
        ("metadata.labels", {"metadata.labels"}),
        ("metadata", {"metadata.name", "metadata.externalId", "metadata.labels"}),
        ("spec.description", {"spec.description"}),
        ("spec.adapter.http.baseUrl", {"spec.adapter.http.baseUrl"}),
        ("spec.adapter.http.base_url", {"spec.adapter.http.baseUrl"}),
        ("spec.adapter.http.headers", {"spec.adapter.http.headers"}),
        ("spec.adapter.http", {"spec.adapter.http.baseUrl", "spec.adapter.http.headers"}),
        ("spec.adapter", {"spec.adapter.http.baseUrl", "spec.adapter.http.headers"}),
        ("spec.adapter.type", set()),
        ("spec", {"spec.description", "spec.adapter.http.baseUrl", "spec.adapter.http.headers"}),
        (" metadata.name , spec.description ", {"metadata.name", "spec.description"}),
    ],
)
async def test_a_mask_changes_what_it_names_and_nothing_else(cadenya: Cadenya, mask: str, changed: set[str]) -> None:
    path = await start(cadenya, f"mask {mask}")
    before = flat(told(await cadenya.ok("GET", path)))
    external = f"ext new {mask}"
    sent = {"metadata": {**NEW["metadata"], "externalId": external}, "spec": NEW["spec"], "updateMask": mask}
    after = flat(told(await cadenya.ok("PUT", path, sent)))
    assert {name for name in before | after if before.get(name) != after.get(name)} == changed
    wanted = flat({"metadata": sent["metadata"], "spec": sent["spec"]})
    assert {name: after[name] for name in changed} == {name: wanted[name] for name in changed}


def flat(thing: dict[str, Any]) -> dict[str, Any]:
    """The members of a thing by path; maps of the caller's stay whole."""
    found: dict[str, Any] = {}

    def walk(value: Any, at: str) -> None:
        if isinstance(value, dict) and at.rpartition(".")[2] not in {"labels", "headers", "parameters"}:
            for name, member in value.items():
                walk(member, f"{at}.{name}".lstrip("."))
        else:
            found[at] = value

    walk(thing, "")
    return found


@pytest.mark.parametrize(
    ("mask", "cleared"),
    [
        ("metadata.externalId", {"metadata.externalId"}),
        ("metadata.labels", {"metadata.labels"}),
        ("spec.description", {"spec.description"}),
        ("spec.adapter.http.headers", {"spec.adapter.http.headers"}),
        ("spec.adapter.http.baseUrl", {"spec.adapter.http.baseUrl"}),
        ("spec.adapter", {"spec.adapter.http.headers", "spec.adapter.http.baseUrl"}),
        ("spec", {"spec.adapter.http.headers", "spec.adapter.http.baseUrl", "spec.description"}),
        ("spec.adapter.mcp", set()),
        ("spec.adapter.mcp.url", set()),
    ],
)
async def test_a_member_that_the_mask_names_and_nobody_sends_is_cleared(
    cadenya: Cadenya, mask: str, cleared: set[str]
) -> None:
    path = await start(cadenya, f"clear {mask}")
    before = flat(told(await cadenya.ok("GET", path)))
    after = flat(told(await cadenya.ok("PUT", path, {"updateMask": mask})))
    assert {name for name in before if before[name] != (after.get(name) or None)} == cleared


async def test_a_cleared_name_is_refused(cadenya: Cadenya) -> None:
    path = await start(cadenya, "nameless")
    for mask in ("metadata.name", "metadata", "*"):
        await cadenya.refused(
            "PUT", path, {"updateMask": mask}, field="metadata.name" if mask[0] == "m" else "metadata"
        )


async def test_an_asterisk_replaces_the_whole(cadenya: Cadenya) -> None:
    path = await start(cadenya, "whole")
    after = await cadenya.ok("PUT", path, {"metadata": {"name": "whole 2"}, "spec": {}, "updateMask": "*"})
    assert told(after) == {"metadata": {"name": "whole 2", "externalId": "", "labels": {}}, "spec": {"adapter": {}}}


@pytest.mark.parametrize("order", ["spec.adapter.mcp,spec.adapter.http", "spec.adapter.http,spec.adapter.mcp"])
async def test_a_mask_that_names_both_adapters_takes_the_one_that_was_sent(cadenya: Cadenya, order: str) -> None:
    path = await start(cadenya, f"either {order}")
    after = await cadenya.ok("PUT", path, {"spec": {"adapter": MCP}, "updateMask": order})
    assert after["spec"]["adapter"]["mcp"]["url"] == NOWHERE
    after = await cadenya.ok("PUT", path, {"spec": {"adapter": HTTP}, "updateMask": order})
    assert told(after)["spec"]["adapter"] == HTTP


@pytest.mark.parametrize(
    "mask",
    [
        "name",
        "spec.nothing",
        "metadata.id",
        "metadata.labels.a",
        "spec.adapter.http.headers.X-One",
        "info",
        "state",
        ".",
        "metadata.",
        ".metadata",
        "spec..adapter",
        "metadata.name,,spec",
        "metadata.name;spec",
        "spec.adapter.ftp",
        "**",
        "spec.adapter.mcp.includeTools.operator",
        "updateMask",
        "spec.config",
        "İ",
        "metadata.name,nope",
    ],
)
async def test_a_mask_that_names_no_member_is_refused_and_changes_nothing(cadenya: Cadenya, mask: str) -> None:
    path = await start(cadenya, f"unknown {mask}")
    before = await cadenya.ok("GET", path)
    await cadenya.refused("PUT", path, {**NEW, "updateMask": mask}, field="updateMask")
    assert await cadenya.ok("GET", path) == before


async def test_two_changes_of_different_members_both_last(cadenya: Cadenya) -> None:
    path = await start(cadenya, "raced")
    await cadenya.ok("PUT", path, {"spec": {"description": "by one"}})
    await cadenya.ok("PUT", path, {"metadata": {"name": "by two"}})
    after = told(await cadenya.ok("GET", path))
    assert (after["metadata"]["name"], after["spec"]["description"]) == ("by two", "by one")


# ---- tools -----------------------------------------------------------------------------------------------------------


async def start_tool(cadenya: Cadenya, name: str) -> str:
    """A tool with every member set; its path."""
    tool_set = await cadenya.create(f"set of {name}", HTTP)
    schema = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
    spec = {"config": GET, "description": "first", "parameters": schema, "requiresApproval": False}
    tool = await cadenya.create_tool(tool_set, name, external_id=f"ext {name}", **spec)
    return f"/{tool_set}/tools/{tool}"


async def test_part_of_a_tool_may_be_sent(cadenya: Cadenya) -> None:
    path = await start_tool(cadenya, "part")
    before = flat(told(await cadenya.ok("GET", path)))
    after = flat(told(await cadenya.ok("PUT", path, {"spec": {"description": "second"}})))
    assert after == {**before, "spec.description": "second"}
    after = flat(told(await cadenya.ok("PUT", path, {"spec": {"config": {"http": {"path": "/b"}}}})))
    assert after == {**before, "spec.description": "second", "spec.config.http.path": "/b"}
    after = flat(told(await cadenya.ok("PUT", path, {"spec": {"parameters": {"type": "object"}}})))
    assert after["spec.parameters"] == {"type": "object"}
    assert await cadenya.ok("PUT", path, {}) == await cadenya.ok("GET", path)


@pytest.mark.parametrize(
    ("mask", "value"),
    [
        ("spec.description", "new"),
        ("spec.status", "TOOL_STATUS_FILTERED"),
        ("spec.requiresApproval", True),
        ("spec.requires_approval", True),
        ("spec.parameters", {"properties": {"q": {}}}),
        ("spec.config.http.path", "/new"),
        ("spec.config.http.requestMethod", "POST"),
        ("spec.config.http.query", "q={{ q }}"),
        ("spec.config.http.headers", {"X-New": "{{ q }}"}),
        ("spec.llmToolName", "better_name"),
        ("metadata.name", "new name"),
        ("metadata.labels", {"x": "y"}),
    ],
)
async def test_a_mask_changes_one_member_of_a_tool(cadenya: Cadenya, mask: str, value: Any) -> None:
    path = await start_tool(cadenya, f"tool {mask}")
    sent: dict[str, Any] = value
    for part in reversed(("spec.requiresApproval" if mask == "spec.requires_approval" else mask).split(".")):
        sent = {part: sent}
    before = flat(told(await cadenya.ok("GET", path)))
    after = flat(told(await cadenya.ok("PUT", path, {**sent, "updateMask": mask})))
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed - {"spec.llmToolName"} == set(flat(sent)) - {"spec.llmToolName"}
    assert after | flat(sent) == after


async def test_a_config_may_become_none_and_come_back(cadenya: Cadenya) -> None:
    path = await start_tool(cadenya, "config")
    assert told(await cadenya.ok("PUT", path, {"spec": {"config": {"bare": {}}}}))["spec"]["config"] == {}
    assert told(await cadenya.ok("PUT", path, {"spec": {"config": GET}}))["spec"]["config"] == GET
    await cadenya.refused("PUT", path, {"spec": {"config": {"mcp": {"toolName": "x"}}}}, field="spec.config.mcp")
    await cadenya.refused("PUT", path, {"spec": {"config": {**GET, "mcp": {}}}}, field="spec.config")
    await cadenya.refused("PUT", path, {"spec": {"config": None}}, field="spec.config")


async def test_a_required_member_of_a_tool_cannot_be_cleared(cadenya: Cadenya) -> None:
    path = await start_tool(cadenya, "required")
    for member in set(TOOL_SPEC) - {"config"}:
        await cadenya.refused("PUT", path, {"spec": {member: None}}, field=f"spec.{member}")
        await cadenya.refused("PUT", path, {"updateMask": f"spec.{member}"}, field=f"spec.{member}")
