"""A plan with a bit of everything that an MCP server of a capability file can serve; also runs as a stdio server."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from toolcrib.capability.expose.mcp import mcp_app
from toolcrib.capability.plan import PlannedMcp, PlannedPrompt, PlannedResource, PlannedTool, Reply
from toolcrib.capability.spec import Mark, McpServer
from toolcrib.errors import Forbidden, Invalid, Unavailable, Upstream

AT = Mark("weather.yaml", 1, 1)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ANY = {"type": "object"}
PIXEL = b"\x89PNG\r\n\x1a\n\x00"


class Upstreams:
    """What the tools of the plan reach: tells tests when a slow call began and how it ended."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.go_on = asyncio.Event()

    async def weather(self, arguments: Mapping[str, Any]) -> Reply:
        return _json({"city": arguments["city"], "degrees": 21.5})

    async def reply(self, arguments: Mapping[str, Any]) -> Reply:
        """Whatever the arguments say; like many a library, it talks."""
        sys.stdout.write("a stray line that must not reach a client\n")
        body = arguments.get("text", "").encode()
        body = bytes.fromhex(arguments["hex"]) if "hex" in arguments else body
        return Reply(arguments.get("status", 200), body, arguments.get("media"))

    async def refuse(self, arguments: Mapping[str, Any]) -> Reply:
        kinds = {"invalid": Invalid, "upstream": Upstream, "unavailable": Unavailable, "forbidden": Forbidden}
        if arguments["how"] == "bug":
            raise ZeroDivisionError("a secret of the process")
        raise kinds[arguments["how"]]("test.refused", f"It is {arguments['how']}.")

    async def slow(self, _arguments: Mapping[str, Any]) -> Reply:
        self.started.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return _json({"slow": True})


def _json(value: Any) -> Reply:
    return Reply(200, orjson.dumps(value), "application/json")


def _number(value: Any) -> Any:
    return {"n": int(value["n"])} if isinstance(value, dict) and "n" in value else {"n": None}


def plan(
    upstreams: Upstreams, folder: Path | None = None, *, tools: int = 0, namespace: str = "weather", **server: Any
) -> PlannedMcp:
    """The plan; `folder` gets a static resource and the prompt's file, `tools` are that many more tools."""
    number = {"type": "object", "properties": {"n": {"type": ["integer", "null"]}}, "required": ["n"]}
    planned = [
        PlannedTool(
            "weather", upstreams.weather, CITY, "Weather", "of a city", {"readOnlyHint": True, "title": "Weather"}
        ),
        PlannedTool("reply", upstreams.reply, ANY),
        PlannedTool("refuse", upstreams.refuse, ANY),
        PlannedTool("slow", upstreams.slow, ANY),
        PlannedTool("number", upstreams.reply, ANY, output_schema=number, structured=_number),
        PlannedTool("promised", upstreams.reply, ANY, output_schema={"type": "object"}),
        *(PlannedTool(f"more_{i}", upstreams.reply, ANY) for i in range(tools)),
    ]
    resources = [
        PlannedResource("today", "weather://today", title="Today", run=upstreams.reply),
        PlannedResource("city", "weather://{country}/{city}/now", ("country", "city"), run=_echo),
        PlannedResource("slow", "weather://slow", run=upstreams.slow),
    ]
    prompts = [
        PlannedPrompt(
            "ask", "Ask", "Asks.", ({"name": "city", "required": True}, {"name": "when"}),
            (("user", "Weather in {{city}} {{when}}? {{unknown}}"), ("assistant", "In {{city}}:")),
        ),
    ]  # fmt: skip
    if folder is not None:
        resources.append(PlannedResource("docs", "docs://all", folder=str(folder / "docs")))
        prompts.append(PlannedPrompt("filed", file=str(folder / "prompt.txt")))
    return PlannedMcp(
        McpServer(namespace, AT, description="Knows the weather.", **server),
        {tool.name: tool for tool in planned},
        tuple(resources),
        {prompt.name: prompt for prompt in prompts},
    )


async def _echo(arguments: Mapping[str, Any]) -> Reply:
    return _json(dict(arguments))


async def _main() -> None:
    upstreams = Upstreams()
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    await mcp_app(plan(upstreams, folder), version="7").serve_stdio()
    sys.stderr.write("the protocol has ended")


if __name__ == "__main__":
    asyncio.run(_main())
