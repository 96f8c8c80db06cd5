"""Files served side by side: where they listen, and swaps that no request and no connected client notices."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client

from gateway.mcp_client.servers.raw_http import until
from toolcrib.capability.capability import AT_HOME, Capability
from toolcrib.capability.findings import CapabilityInvalid
from toolcrib.capability.listening import CannotListen, Where, names_of, place
from toolcrib.capability.logs import LogBuffer
from toolcrib.capability.serve import CapabilityHost, serving
from toolcrib.core.http import OutboundClient
from toolcrib.core.web_server import web_server_socket
from upstream_app import Asked, Told, app

DEADLINE_S = 20.0
FREE = Where(rest_port=0, mcp_port=0, skill_port=0, control_port=0)
BOTH = {"Accept": "application/json, text/event-stream"}


def shop(said: str = "one", *, rest: str = "port: 0", mcp: str = "port: 0", tool: str = "say", more: str = "") -> str:
    return f"""
naftiko: 1.0.0-alpha2
info: {{label: Shop, description: A shop.}}
capability:
  exposes:
    - type: rest
      namespace: shop-api
      {rest}
      resources:
        - path: /said/{{who}}
          operations:
            - {{method: GET, name: said, outputParameters: [{{name: said, type: string, value: "{said} {{{{who}}}}"}}]}}
    - type: mcp
      namespace: shop-tools
      {mcp}
      tools:
        - name: {tool}
          description: Say it.
          inputParameters: [{{name: who, type: string, description: Whom}}]
          outputParameters: [{{name: said, type: string, value: "{said} {{{{who}}}}"}}]
{more}
"""


CONTROL = """
    - type: control
      port: 0
      management: {health: true, info: true, reload: true, validate: true, logs: true, config: true,
                   scripting: {enabled: true}}
"""


def relay(upstream: str, mapped: str) -> str:
    return f"""
naftiko: 1.0.0-alpha2
info: {{label: Relay, description: A relay.}}
binds:
  - {{namespace: env, keys: {{KEY: SHOP_KEY}}}}
capability:
  consumes:
    - type: http
      namespace: up
      baseUri: {upstream}
      authentication: {{type: bearer, token: "{{{{env.KEY}}}}"}}
      resources:
        - {{name: things, path: /things, operations: [{{name: list, method: GET}}]}}
  exposes:
    - type: rest
      namespace: relay
      port: 0
      resources:
        - path: /things
          operations:
            - method: GET
              name: list
              call: up.list
              outputParameters: [{{type: object, properties: {{{mapped}: {{type: string, mapping: $.name}}}}}}]
{CONTROL}
"""


@pytest.fixture
async def outbound() -> AsyncIterator[OutboundClient]:
    client = OutboundClient(AT_HOME)
    yield client
    await client.close()


@pytest.fixture
def load(outbound: OutboundClient) -> Callable[..., Capability]:
    def load(path: str, *, text: str | None = None, previous: Capability | None = None) -> Capability:
        environ = {"SHOP_KEY": "sesame-4711"}
        return Capability.load(path, text=text, previous=previous, environ=environ, outbound=outbound)

    return load


def put(path: Path, text: str) -> str:
    """Write a file as careful editors do: beside it, then in its place."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text)
    os.replace(beside, path)  # noqa: PTH105
    return str(path)


def url_of(host: CapabilityHost, namespace: str) -> str:
    return next(m.url for m in host.mounts if m.place.server.namespace == namespace)


async def said(host: CapabilityHost, http: httpx.AsyncClient) -> str:
    answer = await http.get(f"{url_of(host, 'shop-api')}/said/Ann")
    assert answer.status_code == 200, answer.text
    return str(answer.json()["said"])


@contextlib.asynccontextmanager
async def served(host: CapabilityHost, **options: Any) -> AsyncIterator[tuple[CapabilityHost, httpx.AsyncClient]]:
    async with serving(host, **options), httpx.AsyncClient(timeout=DEADLINE_S) as http:
        yield host, http


# -- where things go


def where(load: Callable[..., Capability], files: Mapping[str, str], **options: Any) -> dict[str, tuple[str, int, str]]:
    names = names_of(tuple(files))
    made = {path: (names[path], load(path, text=text)) for path, text in files.items()}
    return {
        f"{names[p.path]}.{p.server.namespace}": (p.slot.host, p.slot.port, p.prefix)
        for p in place(made, Where(**options))
    }


def test_servers_listen_where_their_file_says(load):
    found = where(load, {"shop.yaml": shop(rest="port: 8101", mcp="address: 0.0.0.0\n      port: 9101")})
    assert found == {"shop.shop-api": ("127.0.0.1", 8101, ""), "shop.shop-tools": ("0.0.0.0", 9101, "")}


def test_options_outrank_files_but_a_control_server_stays_at_home(load):
    found = where(load, {"shop.yaml": shop(more=CONTROL.replace("port: 0", "port: 9199"))}, host="0.0.0.0", port=8000)
    assert found == {
        "shop.shop-api": ("0.0.0.0", 8000, ""),
        "shop.shop-tools": ("0.0.0.0", 8000, ""),
        "shop.control": ("127.0.0.1", 9199, ""),
    }


def test_files_that_share_a_port_get_their_names_as_prefix(load):
    files = {
        "a/shop.yaml": shop(rest="port: 80"),
        "b/shop.yaml": shop(rest="port: 80"),
        "c.yaml": shop(rest="port: 81"),
    }
    found = where(load, files)
    assert {name: prefix for name, (_, _, prefix) in found.items() if prefix} == {
        "shop.shop-api": "/shop",
        "shop-2.shop-api": "/shop-2",
    }
    assert len({prefix for _, _, prefix in where(load, files, port=0).values()}) == 3


def test_servers_of_a_file_that_would_take_each_others_paths_are_kept_apart(load):
    second = shop().replace("shop-api", "other-api").partition("exposes:\n")[2].partition("    - type: mcp")[0]
    found = where(load, {"shop.yaml": shop(more=second + CONTROL)}, port=8000, control_port=8000)
    assert {name: prefix for name, (_, _, prefix) in found.items()} == {
        "shop.shop-api": "/shop-api",
        "shop.other-api": "/other-api",
        "shop.shop-tools": "",
        "shop.control": "/control",
    }


# -- serving


async def test_many_files_behind_one_port_answer_below_their_prefix(load, tmp_path: Path):
    paths = [put(tmp_path / f"{name}.yaml", shop(name, more=CONTROL)) for name in ("north", "south")]
    async with served(CapabilityHost(load, paths, Where(port=0, control_port=0))) as (host, http):
        base = url_of(host, "shop-api").rpartition("/")[0]
        for name in ("north", "south"):
            answer = await http.get(f"{base}/{name}/said/Ann")
            assert answer.json() == {"said": f"{name} Ann"}
            async with Client(f"{base}/{name}/mcp") as client:
                told = await client.call_tool("say", {"who": "Bob"})
                assert told.structured_content == {"said": f"{name} Bob"}
        lost = await http.get(f"{base}/west/said/Ann")
        assert lost.status_code == 404
        assert "/north/mcp" in lost.json()["detail"]
        assert (await http.get(f"{base}/northern/said/Ann")).status_code == 404
        controls = [m.url for m in host.mounts if m.kind == "control"]
        assert len(set(controls)) == 2
        assert [(await http.get(f"{url}/health/ready")).status_code for url in controls] == [200, 200]


async def test_an_address_that_is_taken_is_named_and_nothing_stays_open(load, tmp_path: Path):
    path = put(tmp_path / "shop.yaml", shop())
    with web_server_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        host = CapabilityHost(load, [path], Where(rest_port=0, mcp_port=port))
        with pytest.raises(
            CannotListen, match=rf"mcp server shop-tools of .*shop.yaml cannot listen on 127.0.0.1:{port}"
        ):
            await host.start()
    assert host.mounts == []
    assert not host._doors


async def test_a_broken_file_is_left_out_and_the_others_are_served(load, tmp_path: Path):
    good, bad = put(tmp_path / "shop.yaml", shop()), put(tmp_path / "bad.yaml", "naftiko: [")
    async with served(CapabilityHost(load, [bad, good], FREE)) as (host, http):
        assert list(host.broken) == [bad]
        assert await said(host, http) == "one Ann"
        put(tmp_path / "bad.yaml", shop("mended").replace("shop-", "mended-"))
        await host.reload(bad)
        assert not host.broken
        assert (await http.get(f"{url_of(host, 'mended-api')}/said/Ann")).json() == {"said": "mended Ann"}


# -- swapping


async def test_no_request_fails_while_files_are_swapped_under_load(load, tmp_path: Path):
    path = tmp_path / "shop.yaml"
    host = CapabilityHost(load, [put(path, shop("0"))], FREE)
    answers: list[tuple[int, str]] = []
    over = asyncio.Event()

    async def ask(http: httpx.AsyncClient, url: str) -> None:
        while not over.is_set():
            answer = await http.get(f"{url}/said/Ann")
            answers.append((answer.status_code, answer.json()["said"]))

    async with served(host) as (_, http):
        url = url_of(host, "shop-api")
        asking = [asyncio.create_task(ask(http, url)) for _ in range(8)]
        await until(lambda: len(answers) > 20)
        for number in range(1, 9):
            put(path, shop(str(number)))
            await host.reload(str(path))
            seen = len(answers)
            await until(lambda seen=seen: len(answers) > seen + 20)
            assert url_of(host, "shop-api") == url
        over.set()
        await asyncio.gather(*asking)
    assert {status for status, _ in answers} == {200}
    assert {text for _, text in answers} == {f"{number} Ann" for number in range(9)}


async def test_a_call_under_way_ends_on_the_old_plan_which_is_closed_after_it(load, tmp_path: Path):
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def answer(asked: Asked) -> Told:
        if asked.path == "/things" and not go_on.is_set():
            arrived.set()
            await go_on.wait()
        return Told(b'{"name": "it"}', headers={"Content-Type": "application/json"})

    async with app(answer) as upstream:
        path = tmp_path / "relay.yaml"
        host = CapabilityHost(load, [put(path, relay(upstream.url, "before"))], FREE)
        async with served(host) as (_, http):
            url = url_of(host, "relay")
            old = host.capabilities[str(path)]
            slow = asyncio.create_task(http.get(f"{url}/things"))
            await asyncio.wait_for(arrived.wait(), DEADLINE_S)
            put(path, relay(upstream.url, "after"))
            await host.reload(str(path))
            assert not old.plan.scripts._is_closed
            go_on.set()
            assert (await slow).json() == {"before": "it"}
            assert (await http.get(f"{url}/things")).json() == {"after": "it"}
            await until(lambda: old.plan.scripts._is_closed)


@pytest.mark.parametrize("broken", ["naftiko: [", "", "naftiko: {old: shape}", "- a list"])
async def test_a_broken_change_keeps_the_old_one(load, tmp_path: Path, broken: str):
    path = tmp_path / "shop.yaml"
    async with served(CapabilityHost(load, [put(path, shop())], FREE)) as (host, http):
        put(path, broken)
        with pytest.raises(CapabilityInvalid):
            await host.reload(str(path))
        assert await said(host, http) == "one Ann"
        async with Client(url_of(host, "shop-tools")) as client:
            assert (await client.call_tool("say", {"who": "Bob"})).structured_content == {"said": "one Bob"}


async def test_a_change_to_a_port_that_is_taken_keeps_the_old_one_and_its_clients(load, tmp_path: Path):
    path = tmp_path / "shop.yaml"
    host = CapabilityHost(load, [put(path, shop(rest="port: 0"))], Where())
    async with served(host) as (_, http), Client(url_of(host, "shop-tools")) as client:
        with web_server_socket("127.0.0.1", 0) as taken:
            put(path, shop("two", rest=f"port: {taken.getsockname()[1]}"))
            with pytest.raises(CannotListen):
                await host.reload(str(path))
        assert await said(host, http) == "one Ann"
        assert (await client.call_tool("say", {"who": "Bob"})).structured_content == {"said": "one Bob"}
        await host.reload(str(path))  # the port is free now
        assert await said(host, http) == "two Ann"


async def test_a_server_that_moves_is_served_at_its_new_port_and_the_old_one_closes(load, tmp_path: Path):
    path = tmp_path / "shop.yaml"
    ports = []
    for _ in range(2):
        with web_server_socket("127.0.0.1", 0) as free:
            ports.append(free.getsockname()[1])
    host = CapabilityHost(load, [put(path, shop(mcp=f"port: {ports[0]}"))], Where())
    async with served(host) as (_, http), http.stream("GET", url_of(host, "shop-tools"), headers=BOTH) as events:
        put(path, shop(mcp=f"port: {ports[1]}"))
        await host.reload(str(path))
        async with asyncio.timeout(DEADLINE_S):
            async for _ in events.aiter_raw():  # it ends: the client is to connect anew
                pass
        await until(lambda: not host._ending)
        with pytest.raises(httpx.ConnectError):
            await http.get(f"http://127.0.0.1:{ports[0]}/mcp")
        async with Client(f"http://127.0.0.1:{ports[1]}/mcp") as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["say"]


async def test_mcp_clients_stay_connected_and_hear_of_new_tools(load, tmp_path: Path):
    path = tmp_path / "shop.yaml"
    async with (
        served(CapabilityHost(load, [put(path, shop())], FREE)) as (host, _),
        Client(url_of(host, "shop-tools")) as client,
        client.listen(tools_list_changed=True) as news,
    ):
        put(path, shop("two", tool="tell"))
        await host.reload(str(path))
        change = await asyncio.wait_for(anext(aiter(news)), DEADLINE_S)
        assert "ToolsListChanged" in type(change).__name__
        assert [tool.name for tool in (await client.list_tools()).tools] == ["tell"]
        assert (await client.call_tool("tell", {"who": "Bob"})).structured_content == {"said": "two Bob"}


async def test_open_streams_do_not_hold_a_host_that_stops(load, tmp_path: Path):
    path = put(tmp_path / "shop.yaml", shop(more=CONTROL))
    async with httpx.AsyncClient(timeout=DEADLINE_S) as http, contextlib.AsyncExitStack() as streams:
        host = CapabilityHost(load, [path], FREE, logs=LogBuffer())
        await host.start()
        opened = [(url_of(host, "shop-tools"), BOTH), (f"{url_of(host, 'control')}/logs?follow=true", {})]
        for url, headers in opened:
            stream = await streams.enter_async_context(http.stream("GET", url, headers=headers))
            assert stream.status_code == 200
        async with asyncio.timeout(3):
            await host.stop()


# -- watching


@contextlib.asynccontextmanager
async def watched(
    load: Callable[..., Capability], *paths: str
) -> AsyncIterator[tuple[CapabilityHost, httpx.AsyncClient]]:
    async with served(CapabilityHost(load, paths, FREE), watch=True) as both:
        yield both


async def becomes(host: CapabilityHost, http: httpx.AsyncClient, text: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await said(host, http) != text:
            await asyncio.sleep(0.02)


async def test_every_way_to_write_a_file_is_noticed(load, tmp_path: Path):
    path = tmp_path / "shop.yaml"
    async with watched(load, put(path, shop("0"))) as (host, http):
        put(path, shop("renamed"))
        await becomes(host, http, "renamed Ann")
        path.write_text(shop("in place"))
        await becomes(host, http, "in place Ann")
        path.unlink()
        path.write_text(shop("made anew"))
        await becomes(host, http, "made anew Ann")
        path.write_text("naftiko: [")
        await until(lambda: str(path) in host._troubled)
        assert await said(host, http) == "made anew Ann"
        path.write_text(shop("mended"))
        await becomes(host, http, "mended Ann")


async def test_links_that_are_turned_are_noticed(load, tmp_path: Path):
    """Config maps of Kubernetes: the file is a link into a folder that is a link."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shop.yaml").write_text(shop(name))
    served_folder = tmp_path / "served"
    served_folder.mkdir()
    (served_folder / "data").symlink_to(tmp_path / "old")
    (served_folder / "shop.yaml").symlink_to("data/shop.yaml")
    async with watched(load, str(served_folder / "shop.yaml")) as (host, http):
        assert await said(host, http) == "old Ann"
        (served_folder / "data2").symlink_to(tmp_path / "new")
        os.replace(served_folder / "data2", served_folder / "data")  # noqa: PTH105
        await becomes(host, http, "new Ann")


async def test_scripts_and_files_of_binds_are_watched_too(load, tmp_path: Path):
    (tmp_path / "twice.js").write_text("result = 'first'")
    (tmp_path / "values.yaml").write_text("word: v1\n")
    text = f"""
naftiko: 1.0.0-alpha2
info: {{label: S, description: S.}}
binds: [{{namespace: file, location: "file:///{tmp_path}/values.yaml", keys: {{WORD: word}}}}]
capability:
  exposes:
    - type: rest
      namespace: shop-api
      port: 0
      resources:
        - path: /said/{{who}}
          operations:
            - method: GET
              name: said
              steps: [{{type: script, name: made, language: javascript, location: "{tmp_path.as_uri()}", file: twice.js}}]
              mappings: [{{targetName: said, value: $.made}}]
        - path: /word
          operations:
            - {{method: GET, name: word, outputParameters: [{{name: word, type: string, value: "{{{{WORD}}}}"}}]}}
"""
    async with watched(load, put(tmp_path / "shop.yaml", text)) as (host, http):
        assert await said(host, http) == "first"
        (tmp_path / "twice.js").write_text("result = 'second'")
        await becomes(host, http, "second")
        (tmp_path / "values.yaml").write_text("word: v2\n")
        async with asyncio.timeout(DEADLINE_S):
            while (await http.get(f"{url_of(host, 'shop-api')}/word")).json() != {"word": "v2"}:
                await asyncio.sleep(0.02)


# -- the control server


async def test_the_control_server_reloads_validates_and_tells_no_secret(load, tmp_path: Path):
    path = tmp_path / "relay.yaml"
    async with app(lambda _: Told(b'{"name": "it"}', headers={"Content-Type": "application/json"})) as upstream:
        host = CapabilityHost(load, [put(path, relay(upstream.url, "before"))], FREE, facts={"watch": False})
        async with served(host) as (_, http):
            control, rest = url_of(host, "control"), url_of(host, "relay")
            assert (await http.get(f"{rest}/things")).json() == {"before": "it"}
            assert upstream.asked[0].get("authorization") == "Bearer sesame-4711"
            status = (await http.get(f"{control}/status")).json()
            assert status["capability"]["label"] == "Relay"
            assert {a["state"] for a in status["adapters"]} == {"started"}

            config = (await http.get(f"{control}/config")).json()
            assert config["binds"] == [
                {"namespace": "env", "variable": "KEY", "source": "environment", "resolved": True}
            ]
            assert config["baseUris"] == {"up": upstream.url}
            assert "sesame" not in json.dumps(config)

            put(path, relay(upstream.url, "after"))
            before = await http.get(f"{control}/metrics")
            assert 'naftiko_request_total{naftiko_adapter_type="rest"' in before.text
            reloaded = await http.post(f"{control}/reload")
            assert (reloaded.status_code, reloaded.json()["status"]) == (200, "reloaded")
            assert (await http.get(f"{rest}/things")).json() == {"after": "it"}
            metrics = (await http.get(f"{control}/metrics")).text
            assert 'naftiko_operation_id="/things GET",status="200"} 2.0' in metrics  # counting went on
            assert 'naftiko_capability_active{naftiko_capability="Relay"} 1.0' in metrics

            put(path, "naftiko: [")
            refused = await http.post(f"{control}/reload")
            assert refused.status_code == 422
            assert refused.json()["findings"][0]["rule"] == "yaml-broken"
            checked = (await http.post(f"{control}/validate", content=shop())).json()
            assert checked["valid"]
            assert not (await http.post(f"{control}/validate")).json()["valid"]  # the file as it is now
            assert (await http.get(f"{rest}/things")).json() == {"after": "it"}

            changed = await http.put(f"{control}/scripting", json={"timeout": 1234})
            assert changed.json()["timeout"] == 1234


async def test_spans_need_an_endpoint_that_is_known_and_never_hold_the_end(load, tmp_path: Path):
    control = """
    - type: control
      port: 0
      observability: {exporters: {otlp: {endpoint: "{{env.OTLP}}"}}}
"""
    text = shop(more=control).replace(
        "capability:", "binds: [{namespace: env, keys: {OTLP: OTLP_URL}}]\ncapability:", 1
    )
    path = put(tmp_path / "shop.yaml", text)
    without = Capability.load(path, environ={})
    assert "otlp-inactive" in {finding.rule for finding in without.findings}
    assert not without.telemetry.exports_spans
    await without.close()
    with web_server_socket("127.0.0.1", 0) as silent:  # takes connections and says nothing
        environ = {"OTLP_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        first = Capability.load(path, environ=environ)
        assert first.telemetry.exports_spans
        second = Capability.load(path, environ=environ, previous=first)
        assert second.telemetry is first.telemetry
        second.adopt(first)
        await first.close()
        with second.telemetry.recorder.span("something"):
            pass
        async with asyncio.timeout(6):
            await second.close()
