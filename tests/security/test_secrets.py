"""What an upstream was told in confidence comes back to nobody through an error."""

from gateway.mcp_client.servers.raw_http import Exchange, legacy, raw_mcp
from serving import Crib

TOKEN = "s3cret-0f-the-upstream"


async def test_an_upstream_that_quotes_our_headers_is_not_quoted(crib: Crib) -> None:
    tools = {"tools": [{"name": "tell", "inputSchema": {"type": "object"}}]}
    failing = False

    async def answer(exchange: Exchange) -> None:
        if exchange.method == "tools/list" and not failing:
            exchange.reply(result=tools)
        else:
            exchange.error(-32000, f"bad credentials: {exchange.headers['authorization']}")

    async with raw_mcp(legacy(answer)) as server:
        tool_set = await crib.add_mcp("quoting", {"url": server.url, "headers": {"Authorization": f"Bearer {TOKEN}"}})
        told = (await crib.call("tell")).json()["data"]
        assert told["isError"]
        assert "bad credentials: [hidden]" in told["content"][0]["text"]
        failing = True
        id_ = tool_set["metadata"]["id"]
        await crib.http.post(f"/v1/tool_sets/{id_}:sync")
        event = await crib.synced(id_, after=2)
    assert event["type"] == "sync_failed"
    assert TOKEN not in str(event)
    assert TOKEN not in str(await crib.audit())


async def test_the_environment_of_a_command_is_for_those_who_may_set_it(crib: Crib) -> None:
    spec = {"adapter": {"mcp": {"command": "/no/such", "env": {"TOKEN": TOKEN}}}}
    made = await crib.http.post("/v1/tool_sets", json={"metadata": {"name": "env"}, "spec": spec})
    id_ = made.json()["metadata"]["id"]
    async with crib.as_(await crib.key("tool_sets:*")) as http:
        assert TOKEN not in (await http.get(f"/v1/tool_sets/{id_}")).text
        renamed = await http.put(f"/v1/tool_sets/{id_}", json={"metadata": {"name": "renamed"}})
        assert renamed.status_code == 200
        assert TOKEN not in renamed.text
    kept = (await crib.http.get(f"/v1/tool_sets/{id_}")).json()
    assert kept["spec"]["adapter"]["mcp"]["env"] == {"TOKEN": TOKEN}
    assert kept["metadata"]["name"] == "renamed"
