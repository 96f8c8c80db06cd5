"""The tutorial in `examples/`: what its README says happens, happens, and the upstream gets what it should."""

import asyncio
import json
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import httpx
import pytest
from mcp import Client

from capability.observatory import EXAMPLES, STEPS, Observatory, copied, module, observing, step
from toolcrib.capability.capability import Capability

README = (EXAMPLES / "README.md").read_text("utf-8")
PORTS = {9401: "mcp", 9402: "skill", 9403: "rest", 9404: "control"}
TOKEN = "night-desk-demo"
_SERVE = re.compile(r"^toolcrib capability serve examples/(\S+)$", re.MULTILINE)


class Shown(NamedTuple):
    """A command of the README and the answer printed below it."""

    command: str
    answer: str


class Block(NamedTuple):
    """What is called while a step is served, and whether the secrets are there by then."""

    file: str
    has_secrets: bool
    shown: list[Shown]


def read_blocks(text: str) -> list[Block]:
    """The console blocks of a README, each with the file that the shell block before it serves."""
    blocks, file, has_secrets = [], "", False
    for kind, content in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if kind == "sh":
            has_secrets = has_secrets or "secrets.example.yaml" in content
            file = found[1] if (found := _SERVE.search(content)) else file
        elif kind == "console":
            commands = re.split(r"^\$ ", content, flags=re.MULTILINE)[1:]
            blocks.append(Block(file, has_secrets, [Shown(*command.split("\n", 1)) for command in commands]))
    return blocks


BLOCKS = read_blocks(README)


@pytest.fixture(scope="module")
def observatory() -> Iterator[Observatory]:
    with observing() as running:
        yield running


@pytest.fixture
def asked(observatory: Observatory) -> Observatory:
    """The observatory with nothing asked yet."""
    for kept in (observatory.asked, observatory.headers, observatory.bodies):
        kept.clear()
    return observatory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files with their secrets."""
    return copied(tmp_path_factory.mktemp("tutorial"))


@pytest.fixture(scope="module")
def caller() -> ModuleType:
    """`examples/call.py`."""
    return module("call")


def moved(url: str, urls: dict[str, str]) -> str:
    """An address of the README where the server really is."""
    port = int(url.split(":")[2].partition("/")[0].partition("?")[0])
    origin = "/".join(urls[PORTS[port]].split("/")[:3])
    return origin + url.partition(f":{port}")[2]


async def curl(words: list[str], urls: dict[str, str]) -> str:
    """What curl prints for the few options that the README uses."""
    parser = ArgumentParser()
    parser.add_argument("url")
    for option in ("-X", "-d", "-o", "-w"):
        parser.add_argument(option)
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-H", action="append", default=[])
    given = parser.parse_args(words)
    method = given.X or ("POST" if given.d else "GET")
    headers = dict(header.split(": ", 1) for header in given.H)
    async with httpx.AsyncClient() as client:
        answer = await client.request(method, moved(given.url, urls), content=given.d, headers=headers)
    body = "" if given.o == "/dev/null" else answer.text
    return body + (given.w or "").replace("%{http_code}", str(answer.status_code)).replace("\\n", "\n")


async def run(command: str, urls: dict[str, str], environment: dict[str, str], caller: ModuleType) -> str:
    """What a command of the README prints."""
    for name, value in environment.items():
        command = command.replace(f"${name}", value)
    match shlex.split(command):
        case ["export", setting]:
            environment.__setitem__(*setting.split("=", 1))
            return ""
        case ["curl", *words]:
            return await curl(words, urls)
        case ["python", "examples/call.py", name, *pairs]:
            arguments = {key: caller.value_of(text) for key, text in (pair.split("=", 1) for pair in pairs)}
            token = environment.get("DESK_TOKEN", "")
            return str(await asyncio.to_thread(caller.call, urls["mcp"], name, arguments, token))
    raise AssertionError(f"the README uses a command that is not known here: {command}")


def test_the_readme_serves_every_step_in_order_and_shows_answers_of_each() -> None:
    served = list(dict.fromkeys(_SERVE.findall(README)))
    assert served == [path.name for path in STEPS]
    assert len(served) == 11
    assert list(dict.fromkeys(block.file for block in BLOCKS)) == served


async def test_every_answer_in_the_readme_is_what_comes_back(
    asked: Observatory, tmp_path: Path, caller: ModuleType
) -> None:
    files = {True: copied(tmp_path / "with"), False: copied(tmp_path / "without", secrets=False)}
    environment: dict[str, str] = {}
    for block in BLOCKS:
        async with step(files[block.has_secrets] / block.file, asked) as running:
            for shown in block.shown:
                answer = await run(shown.command, dict(running.urls), environment, caller)
                assert answer.strip() == shown.answer.strip(), (block.file, shown.command)


async def test_without_secrets_every_step_starts_and_nothing_is_sent(asked: Observatory, tmp_path: Path) -> None:
    files = copied(tmp_path, secrets=False)
    for path in STEPS[2:]:
        async with step(files / path.name, asked) as running:
            assert "bind-unresolved" in running.rules()
            if running.capability.plan.mcp and path.name not in {"step-03-auth.yaml", "step-11-night-report.yaml"}:
                for tool in next(iter(running.capability.plan.mcp.values())).tools.values():
                    arguments = dict.fromkeys(tool.input_schema.get("properties", {}), "x")
                    assert (await running.call(tool.name, arguments))["isError"] is True
    assert asked.took() == []


@pytest.mark.parametrize("path", STEPS, ids=lambda path: path.stem)
async def test_nothing_is_found_wrong_with_a_step(path: Path, folder: Path) -> None:
    capability = Capability.load(folder / path.name, environ={}, strict=True)
    assert [(f.rule, f.message, f.at) for f in capability.findings] == []
    await capability.close()


# -- what the upstream got


def named(prefix: str, folder: Path) -> Path:
    """The file of a step."""
    (found,) = folder.glob(f"step-{prefix}-*.yaml")
    return found


async def test_a_mock_asks_nobody_and_keeps_types(folder: Path, asked: Observatory) -> None:
    async with step(named("01", folder), asked) as running:
        result = await running.call("list-telescopes", {"state": "open"})
        (telescope,) = result["structuredContent"]["telescopes"]
        assert telescope == {"id": "T-000", "name": "Cardboard", "state": "open", "mirror": 12.5}
    assert asked.took() == []


async def test_the_archive_gets_its_token_and_the_caller_s_is_not_passed_on(folder: Path, asked: Observatory) -> None:
    async with step(named("03", folder), asked) as running:
        assert (await running.rest.post(running.urls["mcp"], json={})).status_code == 401
        assert asked.took() == []
        running.rest.headers["Authorization"] = f"Bearer {TOKEN}"
        tools = (await running.rpc("tools/list"))["result"]["tools"]
        assert [tool["inputSchema"].get("required") for tool in tools] == [None, ["telescope_id"]]
        await running.call("list-telescopes", {"state": "open"})
        await running.call("list-telescopes")
    assert asked.took() == ["GET /v1/telescopes?state=open", "GET /v1/telescopes"]
    for headers in asked.headers:
        assert headers["authorization"] == f"Bearer {asked.scripts.TOKEN}"
        assert headers["archive-version"] == "2"


async def test_shaped_answers_have_an_output_schema_and_errors_keep_their_words(
    folder: Path, asked: Observatory
) -> None:
    async with step(named("04", folder), asked) as running, Client(running.urls["mcp"]) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        schema = tools["get-telescope"].output_schema
        assert schema
        assert set(schema["properties"]) == {"id", "name", "place", "crewed"}
        assert tools["list-telescopes"].output_schema is None  # an array is no object
        result = await client.call_tool("get-telescope", {"id": "T-040"})
        assert result.structured_content == {
            "id": "T-040", "name": "Sparrow", "place": {"site": "HILL", "altitude": 610}, "crewed": 0,
        }  # fmt: skip
        missing = await client.call_tool("get-telescope", {"id": "T/9"})
        assert missing.is_error
        assert "there is no telescope T/9" in str(missing.content)
    assert asked.took() == ["GET /v1/telescopes/T-040", "GET /v1/telescopes/T%2F9"]


async def test_each_source_gets_its_own_credentials(folder: Path, asked: Observatory) -> None:
    async with step(named("05", folder), asked) as running:
        await running.call("list-telescopes")
        await running.call("list-plates", {"decade": "1930s"})
    assert asked.took() == ["GET /v1/telescopes", "GET /vault/plates?decade=1930s"]
    archive, vault = asked.headers
    assert "x-plate-key" not in archive
    assert "authorization" not in vault
    assert vault["x-plate-key"] == asked.scripts.PLATE_KEY


async def test_a_body_template_keeps_lists_and_leaves_out_what_was_not_given(folder: Path, asked: Observatory) -> None:
    arguments = {
        "telescope": "T-160", "target": 'M51 "whirlpool"', "begins": "a", "ends": "b", "observers": ["P-1", "P-2"],
    }  # fmt: skip
    async with step(named("06", folder), asked) as running:
        session = (await running.call("plan-session", arguments))["structuredContent"]["session"]
        await running.call("change-session", {"session": session, "changes": {"target": "M31", "filter_ids": []}})
        cancelled = await running.call("cancel-session", {"session": session})
        assert (cancelled["content"], cancelled["isError"]) == ([], False)
        assert (await running.call("cancel-session", {"session": session}))["isError"] is True
    assert asked.took() == [
        "POST /v1/sessions", f"PATCH /v1/sessions/{session}", f"DELETE /v1/sessions/{session}",
        f"DELETE /v1/sessions/{session}",
    ]  # fmt: skip
    planned, changed, *_ = (json.loads(body) if body else None for body in asked.bodies)
    assert planned == {
        "telescope_id": "T-160", "target": 'M51 "whirlpool"', "begins": "a", "ends": "b", "observer_ids": ["P-1", "P-2"],
    }  # fmt: skip
    assert changed == {"target": "M31", "filter_ids": []}


async def test_a_look_up_asks_each_source_once(folder: Path, asked: Observatory) -> None:
    async with step(named("07", folder), asked) as running:
        result = await running.call("get-telescope-with-crew", {"id": "T-090"})
        assert [person["full_name"] for person in result["structuredContent"]["crew"]] == [
            "Inge Halvorsen",
            "Aiko Mori",
        ]
    assert asked.took() == ["GET /v1/telescopes/T-090", "GET /v1/observers"]


async def test_the_catalogue_refers_to_tools_and_hands_out_files_and_nothing_else(
    folder: Path, asked: Observatory
) -> None:
    async with step(named("08", folder), asked) as running:
        url = running.urls["skill"]
        detail = (await running.rest.get(f"{url}/plate-research")).json()
        assert detail["tools"][0]["invocationRef"] == {
            "targetNamespace": "desk", "action": "list-plates", "mode": "mcp",
        }  # fmt: skip
        assert (await running.rest.get(f"{url}/plate-research/download")).headers["content-type"] == "application/zip"
        for path in ("nothing", "plate-research/contents/none.md", "night-desk/contents"):
            assert (await running.rest.get(f"{url}/{path}")).status_code == 404
        climbing = await running.rest.get(f"{url}/plate-research/contents/..%2f..%2fshared%2fsecrets.yaml")
        assert climbing.status_code in {400, 404}
        assert asked.scripts.TOKEN not in climbing.text
    assert asked.took() == []


async def test_tools_take_over_what_their_functions_say(folder: Path, asked: Observatory) -> None:
    async with step(named("09", folder), asked) as running:
        tools = {tool["name"]: tool for tool in (await running.rpc("tools/list"))["result"]["tools"]}
        assert tools["list-telescopes"]["description"].startswith("List telescopes")
        assert tools["get-telescope"]["inputSchema"]["required"] == ["id"]
        assert "required" not in tools["get-sparrow"]["inputSchema"]
        hints = {name: tool["annotations"] for name, tool in tools.items()}
        assert hints["get-telescope"] == {"readOnlyHint": True, "destructiveHint": False, "idempotentHint": True}
        assert hints["cancel-session"] == {"readOnlyHint": False, "destructiveHint": True, "idempotentHint": True}
        await running.call("get-sparrow")
    assert asked.took() == ["GET /v1/telescopes/T-040", "GET /v1/observers"]


async def test_the_rest_face_checks_inputs_and_answers_like_the_tools(folder: Path, asked: Observatory) -> None:
    async with step(named("10", folder), asked) as running:
        rest = running.rest
        for path in ("/telescopes?state=ajar", "/plates/1931", "/plates/193xs"):
            assert (await rest.get(path)).status_code == 400
        assert (await rest.post("/sessions", json={"telescope": "T-040"})).status_code == 400
        assert (await rest.post("/sessions", content=b"{")).status_code == 400
        assert asked.took() == []
        assert (await rest.get("/telescopes/T-040/")).json() == {"name": "Sparrow"}
        refused = await rest.post("/sessions", json={"telescope": "T-1", "observers": []})
        assert (refused.status_code, refused.json()) == (422, {"reason": "a session needs a telescope"})
        assert (await rest.patch("/sessions/S-1", json={"target": "M33"})).json()["target"] == "M33"
    asked.took()
    assert json.loads(asked.bodies[-1]) == {"target": "M33"}


async def test_the_report_is_the_same_over_both_faces_and_takes_one_call_a_source(
    folder: Path, asked: Observatory
) -> None:
    async with step(named("11", folder), asked) as running:
        assert (await running.rest.get("/sessions/S-1/report")).status_code == 401
        running.rest.headers["Authorization"] = f"Bearer {TOKEN}"
        over_mcp = await running.call("night-report", {"session": "S-1", "decade": "1930s"})
        over_rest = await running.rest.get("/sessions/S-1/report?decade=1930s")
        assert json.loads(over_mcp["content"][0]["text"]) == over_rest.json()
        assert over_rest.json()["plates"] == ["1204", "1377"]
        assert len(asked.took()) == 10
        ready = (await running.rest.get(running.urls["control"] + "/health/ready")).json()
        assert [adapter["type"] for adapter in ready["adapters"]] == ["mcp", "skill", "rest", "control"]
