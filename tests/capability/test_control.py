"""The control port over real HTTP: health, status, metrics, traces, scripting, reload, validate, logs, and strangers."""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx
import orjson
import pytest

from gateway.mcp_client.servers.launch import serving
from toolcrib.capability.expose.control import AdapterState, ControlHooks, control_app, iso_duration
from toolcrib.capability.findings import CapabilityInvalid, Finding
from toolcrib.capability.logs import LogBuffer
from toolcrib.capability.spec import Auth, ControlServer, Mark
from toolcrib.capability.telemetry import Observability, Telemetry

AT = Mark("naftiko.yaml", 3, 7)
DEADLINE_S = 20.0
EVERYTHING = {
    "health": True,
    "info": True,
    "reload": True,
    "validate": True,
    "logs": True,
    "config": True,
    "scripting": {"enabled": True},
}
WRONG = Finding("path-unbound", "error", "It is wrong.", "Refused.", "Mend it.", AT)
ODD = Finding("odd", "warning", "It is odd.", "Nothing.", "Leave it.", AT)


class Engine:
    """What the control port steers."""

    def __init__(self) -> None:
        self.adapters = [AdapterState("rest", "api", 8080, True), AdapterState("control", None, 9090, False)]
        self.broken = False
        self.reloads = 0
        self.texts: list[str | None] = []
        self.settings: dict[str, Any] = {"enabled": True, "timeout": 60000}
        self.logs = LogBuffer(50)

    async def reload(self) -> Sequence[Finding]:
        self.reloads += 1
        if self.broken:
            raise CapabilityInvalid((WRONG,))
        return (ODD,)

    async def validate(self, text: str | None) -> Sequence[Finding]:
        self.texts.append(text)
        return (ODD,) if text is None else (WRONG,)

    def hooks(self) -> ControlHooks:
        return ControlHooks(
            adapters=lambda: self.adapters,
            capability=lambda: {"label": "Ops", "specVersion": "1.0.0-alpha2"},
            version="9.9",
            reload=self.reload,
            validate=self.validate,
            scripting=lambda: {**self.settings, "stats": {"totalExecutions": 0}},
            set_scripting=self.settings.update,
            logs=self.logs,
            config=lambda: {"binds": {"TOKEN": "***"}},
        )


@dataclasses.dataclass
class Port:
    http: httpx.AsyncClient
    engine: Engine
    telemetry: Telemetry
    now: list[float]


@contextlib.asynccontextmanager
async def port(management: Mapping[str, Any] = EVERYTHING, **fields: Any) -> AsyncIterator[Port]:
    server = ControlServer(AT, management=management, **fields)
    engine, telemetry, now = Engine(), Telemetry("Ops", Observability.read(server)), [100.0]
    app = control_app(server, engine.hooks(), telemetry, clock=lambda: now[0])
    async with serving(app) as url, httpx.AsyncClient(base_url=url, timeout=DEADLINE_S) as http:
        yield Port(http, engine, telemetry, now)


async def test_health_counts_every_adapter_but_the_control_port():
    async with port({}) as p:
        assert (await p.http.get("/health/live")).json() == {"status": "UP"}
        ready = await p.http.get("/health/ready")
        assert (ready.status_code, ready.json()) == (
            200,
            {
                "status": "UP",
                "adapters": [
                    {"type": "rest", "namespace": "api", "port": 8080, "state": "started"},
                    {"type": "control", "port": 9090, "state": "stopped"},
                ],
            },
        )
        p.engine.adapters.append(AdapterState("mcp", "tools", None, False))
        degraded = await p.http.get("/health/ready")
        assert (degraded.status_code, degraded.json()["status"]) == (503, "DEGRADED")


async def test_status_says_what_runs_and_for_how_long():
    async with port() as p:
        p.now[0] += 3723.5
        status = (await p.http.get("/status")).json()
        assert status["capability"] == {"label": "Ops", "specVersion": "1.0.0-alpha2"}
        assert status["engine"]["version"] == "9.9"
        assert status["uptime"] == "PT1H2M3.5S"
        assert status["otel"] == {"status": "inactive"}
        assert len(status["adapters"]) == 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "PT0S"), (0.001, "PT0.001S"), (60, "PT1M"), (90000, "PT25H"), (3600.25, "PT1H0.25S")]
)
def test_a_duration_is_written_as_the_format_has_it(seconds: float, text: str):
    assert iso_duration(seconds) == text


async def test_what_is_not_switched_on_does_not_exist():
    async with port({"health": False}, observability={"enabled": False}) as p:
        for path in [
            "/health/live",
            "/health/ready",
            "/status",
            "/scripting",
            "/logs",
            "/config",
            "/metrics",
            "/traces",
            "/traces/x",
            "/",
        ]:
            answer = await p.http.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
        for path in ["/reload", "/validate"]:
            assert (await p.http.post(path)).status_code == 404
        assert p.engine.reloads == 0


async def test_the_wrong_method_is_told_the_right_ones():
    async with port() as p:
        for method, path, allow in [
            ("POST", "/status", "GET, HEAD"),
            ("GET", "/reload", "POST"),
            ("DELETE", "/scripting", "GET, PUT, HEAD"),
        ]:
            answer = await p.http.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allow)
        assert (await p.http.head("/health/live")).status_code == 200


async def test_metrics_and_traces_show_what_was_recorded():
    async with port() as p:
        p.telemetry.observe_request("rest", "/x GET", 200, 0.1, None)
        for name, error in [("rest.request", None), ("mcp.request", "x.failed")]:
            with p.telemetry.recorder.request_span(name, []) as span:
                if error:
                    span.fail(error)
        metrics = await p.http.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert 'naftiko_request_total{naftiko_adapter_type="rest"' in metrics.text
        traces = (await p.http.get("/traces")).json()
        assert [trace["operation"] for trace in traces["traces"]] == ["mcp.request", "rest.request"]
        assert set(traces["traces"][0]) == {"traceId", "operation", "durationMs", "status", "spanCount", "timestamp"}
        assert (traces["bufferSize"], traces["bufferUsed"]) == (100, 2)
        for query, found in [("operation=rest", 1), ("status=error", 1), ("status=OK&operation=mcp", 0)]:
            assert len((await p.http.get(f"/traces?{query}")).json()["traces"]) == found
        one = (await p.http.get(f"/traces/{traces['traces'][0]['traceId']}")).json()
        assert one["spans"][0]["status"] == "ERROR"
        assert (await p.http.get("/traces/none")).status_code == 404


async def test_metrics_and_traces_that_are_off_are_503():
    observability = {"metrics": {"local": {"enabled": False}}, "traces": {"local": {"enabled": False}}}
    async with port(observability=observability) as p:
        for path in ["/metrics", "/traces", "/traces/x"]:
            assert (await p.http.get(path)).status_code == 503


async def test_scripting_settings_are_taken_whole_or_not_at_all():
    async with port() as p:
        changed = await p.http.put(
            "/scripting", json={"timeout": 5, "defaultLanguage": "python", "allowedLanguages": ["python"]}
        )
        assert changed.json()["timeout"] == 5
        assert changed.json()["stats"] == {"totalExecutions": 0}
        for bad in [
            {"timeout": 7, "statementLimit": 0},
            {"timeout": 1.5},
            {"timeout": True},
            {"timeout": "5"},
            {"defaultLocation": "scripts"},
            {"defaultLocation": 5},
            {"defaultLanguage": "ruby"},
            {"defaultLanguage": ["python"]},
            {"allowedLanguages": "python"},
            {"allowedLanguages": [["python"]]},
            {"enabled": 1},
            {"other": 1},
            [],
        ]:
            assert (await p.http.put("/scripting", json=bad)).status_code == 400, bad
        assert (await p.http.put("/scripting", content=b"{")).status_code == 400
        assert (await p.http.put("/scripting", content=b"x" * 70_000)).status_code == 413
        assert (await p.http.get("/scripting")).json()["timeout"] == 5


async def test_reload_swaps_or_says_why_not():
    async with port() as p:
        done = await p.http.post("/reload")
        assert (done.json()["status"], done.json()["findings"][0]["rule"]) == ("reloaded", "odd")
        p.engine.broken = True
        kept = await p.http.post("/reload")
        assert kept.status_code == 422
        assert kept.json()["findings"] == [
            {
                "rule": "path-unbound",
                "severity": "error",
                "message": "It is wrong.",
                "effect": "Refused.",
                "mend": "Mend it.",
                "file": "naftiko.yaml",
                "line": 3,
                "column": 7,
            }
        ]


async def test_validate_judges_a_text_or_the_file_that_is_served():
    async with port() as p:
        assert (await p.http.post("/validate")).json()["valid"] is True
        judged = await p.http.post("/validate", content="naftiko: ü")
        assert judged.json()["valid"] is False
        assert p.engine.texts == [None, "naftiko: ü"]
        assert (await p.http.post("/validate", content=b"\xff\xfe")).status_code == 400
        assert (await p.http.post("/validate", content=b" " * (10 * 2**20 + 1))).status_code == 413


async def test_config_is_shown_as_the_engine_masks_it():
    async with port() as p:
        assert (await p.http.get("/config")).json() == {"binds": {"TOKEN": "***"}}


def log(p: Port, level: int, text: str) -> None:
    p.engine.logs.handle(logging.LogRecord("x", level, "x.py", 1, text, (), None))


async def test_logs_can_be_read_by_level_and_number():
    async with port() as p:
        for level, text in [(logging.INFO, "a"), (logging.WARNING, "b"), (logging.ERROR, "Bearer hunter2hunter2")]:
            log(p, level, text)
        answer = (await p.http.get("/logs?level=warning&limit=1")).json()
        assert [record["level"] for record in answer["records"]] == ["error"]
        assert answer["bufferSize"] == 50
        whole = await p.http.get("/logs")
        assert len(whole.json()["records"]) == 3
        assert "hunter2" not in whole.text
        for query in ["level=loud", "limit=-1", "limit=x", "limit="]:
            assert (await p.http.get(f"/logs?{query}")).status_code == 400


async def test_logs_can_be_followed_until_the_reader_leaves():
    async with port() as p:
        log(p, logging.INFO, "before")
        async with asyncio.timeout(DEADLINE_S), p.http.stream("GET", "/logs?follow=true&level=info") as stream:
            assert stream.headers["content-type"] == "text/event-stream"
            lines = stream.aiter_lines()

            async def event() -> Any:
                async for line in lines:
                    if line.startswith("data: "):
                        return orjson.loads(line[6:])
                return None

            assert (await event())["event"] == "before"
            log(p, logging.DEBUG, "quiet")
            log(p, logging.INFO, "after")
            assert (await event())["event"] == "after"
            assert p.engine.logs.followers == 1
        async with asyncio.timeout(DEADLINE_S):
            while p.engine.logs.followers:
                await p.http.get("/health/live")


async def test_a_web_page_can_neither_steer_nor_read_the_port():
    async with port() as p:
        for headers in [
            {"Origin": "https://evil.example.org"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Host": "evil.example.org"},
            {"Origin": "null"},
        ]:
            assert (await p.http.post("/reload", headers=headers)).status_code == 403
        assert (await p.http.get("/logs", headers={"Host": "evil.example.org"})).status_code == 403
        assert p.engine.reloads == 0
        own = str(p.http.base_url).rstrip("/")
        assert (await p.http.post("/reload", headers={"Origin": own})).status_code == 200
        assert (await p.http.get("/status", headers={"Host": "localhost:9090"})).status_code == 200


@pytest.mark.parametrize("fields", [{"address": "0.0.0.0"}, {"authentication": Auth("bearer", {"token": "t"}, AT)}])
async def test_a_port_for_other_machines_or_with_credentials_takes_any_name(fields: dict[str, Any]):
    async with port(**fields) as p:
        assert (await p.http.get("/status", headers={"Host": "control.example.org"})).status_code == 200


async def test_an_origin_that_is_no_url_is_a_stranger():
    async with port() as p:
        refused = await p.http.post("/reload", headers={"Origin": "http://["})
        assert (refused.status_code, p.engine.reloads) == (403, 0)
