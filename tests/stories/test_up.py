"""One command up: first and later starts, two of them, signals, kills, an own PostgreSQL, parts on their own."""

import asyncio
import json
import os
import signal
import stat
import time
from pathlib import Path

from stories.processes import alive, answering, gone, postmaster, run, start, up

TOOL_SET = {"metadata": {"name": "Kept"}, "spec": {}}


async def test_the_first_start_tells_a_key_and_later_ones_do_not(data_dir: Path) -> None:
    async with up(data_dir) as first:
        assert set(first.line) == {"url", "mcp_url", "workspace_id", "admin_email", "api_key"}
        assert first.line["mcp_url"] == first.line["url"] + "/mcp"
        async with first.http() as http:
            assert (await http.post("/v1/tool_sets", json=TOOL_SET)).status_code == 200
        key, workspace = first.line["api_key"], first.line["workspace_id"]
        server = postmaster(data_dir)
        began = time.monotonic()
        first.signal(signal.SIGINT)
        code, error = await first.end()
        assert code == 0, error
        assert time.monotonic() - began < 8
        assert not alive(server)
        assert key not in error
    async with up(data_dir) as second:
        assert second.line["api_key"] is None
        assert second.line["workspace_id"] == workspace
        async with second.http(key) as http:
            assert [t["metadata"]["name"] for t in (await http.get("/v1/tool_sets")).json()["items"]] == ["Kept"]
        code, out, error = await run("key", "create", "--json", "--data", str(data_dir))
        assert code == 0, error
        async with second.http(json.loads(out)["api_key"]) as http:
            assert (await http.get("/v1/tool_sets")).status_code == 200


async def test_secrets_of_the_first_start_are_private_files(data_dir: Path) -> None:
    async with up(data_dir):
        for name in ("vault.key", "cli.json"):
            assert stat.S_IMODE((data_dir / name).stat().st_mode) == 0o600


async def test_a_second_up_on_the_same_data_says_who_holds_it(data_dir: Path) -> None:
    async with up(data_dir) as first:
        code, out, error = await run("up", "--data", str(data_dir), "--port", "0", "--json")
        assert (code, out) == (3, "")
        assert str(first.process.pid) in error
        assert first.url in error


async def test_a_taken_port_is_told(data_dir: Path) -> None:
    async with up(data_dir) as first:
        port = first.url.rpartition(":")[2]
        code, _, error = await run("up", "--data", str(data_dir) + "2", "--port", port)
        assert code == 1
        assert f":{port}" in error
        assert "--port" in error


async def test_nothing_acknowledged_is_lost_when_everything_is_killed(data_dir: Path) -> None:
    async with up(data_dir) as first:
        async with first.http() as http:
            for i in range(20):
                body = {"metadata": {"name": f"set {i}"}, "spec": {}}
                assert (await http.post("/v1/tool_sets", json=body)).status_code == 200
        key, server = first.line["api_key"], postmaster(data_dir)
        first.signal(signal.SIGKILL)
        await first.process.wait()
        await gone(server)
    async with up(data_dir) as second, second.http(key) as http:
        assert (await http.get("/v1/tool_sets")).json()["pagination"]["total"] == 20


async def test_the_server_outlives_a_killed_postgresql(data_dir: Path) -> None:
    async with up(data_dir) as command, command.http() as http:
        assert (await http.post("/v1/tool_sets", json=TOOL_SET)).status_code == 200
        server = postmaster(data_dir)
        os.kill(server, signal.SIGKILL)
        await gone(server)
        await answering(http)
        assert (await http.get("/v1/tool_sets")).json()["pagination"]["total"] == 1
        assert (await http.post("/v1/tool_sets", json=TOOL_SET)).status_code == 200


async def test_web_and_worker_run_apart_on_a_database_of_ones_own(data_dir: Path, fresh_dsn: str) -> None:
    env = {"TOOLCRIB_DATABASE_URL": fresh_dsn, "TOOLCRIB_DATA": str(data_dir), "TOOLCRIB_PORT": "0"}
    async with up(data_dir, TOOLCRIB_DATABASE_URL=fresh_dsn) as first:
        key = first.line["api_key"]
    assert not (data_dir / "postgres").exists()
    web = await start("serve", **env)
    worker = await start("worker", **env)
    try:
        assert web.process.stderr
        async with asyncio.timeout(30):
            text = ""
            while "web server at " not in text:
                text += (await web.process.stderr.readline()).decode()
        web.line = {"url": text.split("web server at ")[1].split(",")[0].strip(), "api_key": key}
        async with web.http() as http:
            spec = {"adapter": {"mcp": {"command": "/no/such/program"}}}
            body = {"metadata": {"name": "x"}, "spec": spec}
            tool_set = (await http.post("/v1/tool_sets", json=body)).json()["metadata"]["id"]
            async with asyncio.timeout(30):
                while True:
                    events = (await http.get(f"/v1/tool_sets/{tool_set}/events")).json()["items"]
                    if any(e["event"]["type"] == "sync_failed" for e in events):
                        break
                    await asyncio.sleep(0.05)
    finally:
        for command in (web, worker):
            command.signal(signal.SIGTERM)
        codes = [(await command.end())[0] for command in (web, worker)]
    assert codes == [0, 0]


async def test_another_vault_key_is_refused_with_the_mend(data_dir: Path, fresh_dsn: str) -> None:
    async with up(data_dir, TOOLCRIB_DATABASE_URL=fresh_dsn):
        pass
    other = data_dir / "elsewhere"
    code, _, error = await run("up", "--data", str(other), "--port", "0", TOOLCRIB_DATABASE_URL=fresh_dsn)
    assert code == 1
    assert "TOOLCRIB_VAULT_KEY" in error


async def test_bad_settings_are_named(data_dir: Path) -> None:
    code, _, error = await run("up", "--data", str(data_dir), TOOLCRIB_PORT="many", TOOLCRIB_VAULT_KEY="changeme")
    assert code == 1
    assert "TOOLCRIB_PORT" in error
    assert "TOOLCRIB_VAULT_KEY" in error
    code, _, error = await run(
        "up", "--data", str(data_dir), "--port", "0", TOOLCRIB_DATABASE_URL="postgresql://nobody@127.0.0.1:9/x"
    )
    assert code == 1
    assert "cannot be reached" in error
