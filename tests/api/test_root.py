"""The front door: documents, metrics, request ids, unknown paths."""

import pytest

from serving import Crib


@pytest.mark.parametrize("dialect", ["cadenya", "orkosi"])
async def test_each_dialect_has_its_document_and_a_page_that_needs_no_other_server(crib: Crib, dialect: str) -> None:
    document = (await crib.http.get(f"/openapi/{dialect}.json")).json()
    assert document["openapi"].startswith("3.")
    page = await crib.http.get(f"/docs/{dialect}")
    assert "https://" not in page.text
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/docs/assets/{asset}" in page.text
        assert (await crib.http.get(f"/docs/assets/{asset}")).status_code == 200
    assert f"/docs/{dialect}" in (await crib.http.get("/docs")).text


@pytest.mark.parametrize("path", ["/docs/assets/../../../etc/passwd", "/docs/assets/%2e%2e/x", "/docs/assets/none.js"])
async def test_no_other_file_is_served(crib: Crib, path: str) -> None:
    assert (await crib.http.get(path)).status_code == 404


async def test_metrics_count_requests_and_calls(crib: Crib) -> None:
    await crib.call("no-such-tool")
    await crib.add_tool_set("counted", {"mcp": {"url": "http://127.0.0.1:9"}})
    text = (await crib.http.get("/metrics")).text
    assert 'toolcrib_jobs{queue="default"' in text
    assert "toolcrib_upstream_sessions" in text
    assert 'toolcrib_tool_calls_total{door="rest",outcome="refused"}' in text
    assert 'toolcrib_http_requests_total{dialect="orkosi",status="404"}' in text


async def test_every_answer_carries_a_request_id_and_takes_a_callers(crib: Crib) -> None:
    assert (await crib.http.get("/nowhere")).headers["x-request-id"].startswith("req_")
    given = await crib.http.get("/nowhere", headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    odd = await crib.http.get("/nowhere", headers={"X-Request-Id": "a b!"})
    assert odd.headers["x-request-id"].startswith("req_")


async def test_unknown_paths_are_not_found_in_a_clear_shape(crib: Crib) -> None:
    for path in ("/nowhere", "/api/nowhere", "/v2/x"):
        answer = (await crib.http.get(path)).json()
        assert answer["error"]["code"] == "request.path"
    assert (await crib.http.get("/v1/tool_sets/a/b/c")).json()["code"] == 5
    assert (await crib.http.get("/api/tools/x/call")).status_code == 405


async def test_a_tool_may_be_addressed_by_an_external_id_that_looks_like_a_verb(crib: Crib) -> None:
    tool_set = (await crib.add_tool_set("verbs"))["metadata"]["id"]
    body = {
        "metadata": {"name": "verb", "externalId": "call"},
        "spec": {"config": {}, "description": "", "parameters": {}, "status": "TOOL_STATUS_AVAILABLE"},
    }
    assert (await crib.http.post(f"/v1/tool_sets/{tool_set}/tools", json=body)).status_code == 200
    got = await crib.http.get(f"/v1/tool_sets/{tool_set}/tools/external_id:call")
    assert got.json()["metadata"]["name"] == "verb"
