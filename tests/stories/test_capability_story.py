"""A capability file's life: uploaded in one process, called in another, found again after a restart."""

import asyncio
from pathlib import Path

import httpx

from capability_shop import SHOP, capability, shop_answer
from stories.processes import Command, run, up
from stories.test_many_processes import web
from upstream_app import app

_SOON_S = 5.0  # usually a fraction of a second; the machine may be busy


async def called(http: httpx.AsyncClient, tool: str, number: str) -> httpx.Response:
    return await http.post(f"/api/tools/{tool}/call", json={"arguments": {"id": number}})


async def until_called(http: httpx.AsyncClient, tool: str, number: str) -> dict[str, object]:
    """The result of a call, as soon as there is such a tool."""
    async with asyncio.timeout(_SOON_S):
        while (response := await called(http, tool, number)).status_code == 404:
            await asyncio.sleep(0.01)
    assert response.status_code == 200, response.text
    return dict(response.json()["data"])


async def test_a_file_uploaded_in_one_process_is_called_in_another(data_dir: Path, fresh_dsn: str) -> None:
    async with (
        app(shop_answer) as api,
        up(data_dir, TOOLCRIB_DATABASE_URL=fresh_dsn) as first,
        web(data_dir, fresh_dsn, first.line["api_key"]) as second,
        first.http() as one,
        second.http() as two,
    ):
        body = {"metadata": {"name": "far"}, "spec": {"adapter": capability(api.url)}}
        made = (await one.post("/v1/tool_sets", json=body)).json()["metadata"]["id"]
        assert (await until_called(two, "get-order", "1"))["structuredContent"] == {"number": "1", "total": 1250}
        renamed = SHOP.replace("mapping: $.cents", "mapping: $.id")
        change = {"spec": {"adapter": {"capability": {"source": renamed.replace("type: number", "type: string")}}}}
        assert (await two.put(f"/v1/tool_sets/{made}", json=change)).status_code == 200
        async with asyncio.timeout(_SOON_S):
            while (await until_called(one, "get-order", "2"))["structuredContent"] != {"number": "2", "total": "2"}:
                await asyncio.sleep(0.01)
        assert (await one.delete(f"/v1/tool_sets/{made}")).status_code == 200
        async with asyncio.timeout(_SOON_S):
            while (await called(two, "get-order", "3")).status_code != 404:
                await asyncio.sleep(0.01)


async def test_the_three_commands_of_the_readme(data_dir: Path, fresh_dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(SHOP)

    async def tools(first: Command, *arguments: str) -> str:
        code, out, error = await run(
            "tools", *arguments, TOOLCRIB_URL=first.url, TOOLCRIB_API_KEY=first.line["api_key"]
        )
        assert code == 0, error
        return out

    async with app(shop_answer) as api:
        async with up(data_dir, TOOLCRIB_DATABASE_URL=fresh_dsn) as first:
            await tools(first, "add", str(file), "--env", "shop-token=t0ken-0f-it", "--base-uri", f"shop={api.url}")
            assert "get-order" in await tools(first, "list")
            assert '"total": 1250' in await tools(first, "call", "get-order", "--arg", "id=7")
        async with up(data_dir, TOOLCRIB_DATABASE_URL=fresh_dsn) as again:
            again.line["api_key"] = first.line["api_key"]
            assert '"total": 1250' in await tools(again, "call", "get-order", "--arg", "id=8")
        assert api.asked[-1].get("authorization") == "Bearer t0ken-0f-it"
