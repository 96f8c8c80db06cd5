"""Schemathesis over the OpenAPI documents: whatever fits a document, or just does not, gets a documented answer.

Deletions are left out, for they would leave nothing to ask for; `test_every_operation.py` has them. Few examples here,
always the same ones; `st run <url>/openapi/cadenya.json` against a running server makes many.
"""

import asyncio
import contextlib
import json
import sys
from pathlib import Path

import pytest

from serving import Crib

CHECKS = (
    "not_a_server_error,response_schema_conformance,status_code_conformance,content_type_conformance,unsupported_method"
)
DEADLINE_S = 100


async def config_of(crib: Crib, folder: Path) -> Path:
    """A configuration that puts ids of things that exist into the paths."""
    tool_set = (await crib.add_tool_set("fuzzed", {"http": {"baseUrl": "http://127.0.0.1:9"}}))["metadata"]["id"]
    tool = await crib.add_http_tool(tool_set, "fuzzed", {"requestMethod": "GET"})
    operations = []
    for path, item in (await crib.http.get("/openapi/cadenya.json")).json()["paths"].items():
        ids = {"workspaceId": crib.workspace_id, "toolSetId": tool_set}
        ids["id"] = tool["metadata"]["id"] if "{toolSetId}" in path else tool_set
        for method in item:
            values = "\n".join(
                f'"path.{name}" = {json.dumps(value)}' for name, value in ids.items() if f"{{{name}}}" in path
            )
            operations.append(
                f'[[operations]]\ninclude-name = "{method.upper()} {path}"\n[operations.parameters]\n{values}'
            )
    config = folder / "schemathesis.toml"
    config.write_text("\n".join(operations), "utf-8")
    return config


@pytest.mark.parametrize(("dialect", "examples"), [("cadenya", 6), ("orkosi", 20)])
async def test_whatever_is_asked_the_answer_is_documented(
    crib: Crib, tmp_path: Path, dialect: str, examples: int
) -> None:
    config = await config_of(crib, tmp_path)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-m", "schemathesis.cli", "--config-file", str(config)),
        *("run", f"{crib.url}/openapi/{dialect}.json", "--checks", CHECKS, "--phases", "coverage,fuzzing"),
        *("--max-examples", str(examples), "--generation-deterministic"),
        *("--exclude-method", "DELETE", "--no-shrink", "--no-color", "--warnings", "off", "--continue-on-failure"),
        *("--header", f"X-API-Key: {crib.api_key}"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            report = (await process.communicate())[0].decode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, report
    assert " passed" in report
