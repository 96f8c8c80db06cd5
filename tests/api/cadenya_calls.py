"""Calls of the Cadenya dialect in tests: every answer is held against the published contract and our own document."""

from functools import cache
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import yaml

from serving import Crib

CONTRACT: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("cadenya_contract.yaml").read_text("utf-8"))
ROOT = "/v1/tool_sets"
BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"


@cache
def _answer_schema(name: str) -> jsonschema_rs.Validator:
    schemas = {"components": CONTRACT["components"], "$ref": f"#/components/schemas/{name}"}
    return jsonschema_rs.validator_for(schemas, validate_formats=True)


def _schema_of(method: str, path: str) -> str | None:
    """The schema that the contract gives for an answer; None where it knows no such operation, or an empty answer."""
    asked = path.removeprefix("/v1").split("/")
    for template, item in CONTRACT["paths"].items():
        parts = template.split("/")
        if len(parts) == len(asked) and all(p == a or p[:1] == "{" for p, a in zip(parts, asked, strict=True)):
            content = item.get(method.lower(), {}).get("responses", {}).get("200", {}).get("content")
            return str(content["application/json"]["schema"]["$ref"]).rpartition("/")[2] if content else None
    return None


def check_contract(name: str, value: Any) -> None:
    """Fail unless `value` is what the contract calls `name`."""
    for error in _answer_schema(name).iter_errors(value):
        raise AssertionError(f"{name}{error.instance_path}: {error.message}")


class Cadenya:
    """Requests as one key makes them."""

    def __init__(self, crib: Crib, http: httpx.AsyncClient | None = None) -> None:
        self.crib = crib
        self.http = http or crib.http

    async def send(self, method: str, path: str = "", body: Any = None, **query: Any) -> httpx.Response:
        """One request below `/v1/tool_sets`; `body` in bytes is sent as it is."""
        sent = {"content": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
        headers = {"Content-Type": "application/json"} if isinstance(body, bytes) else {}
        return await self.http.request(method, ROOT + path, params=query, headers=headers, **sent)  # type: ignore[arg-type]

    async def ok(self, method: str, path: str = "", body: Any = None, **query: Any) -> Any:
        """The answer of a request that must succeed."""
        response = await self.send(method, path, body, **query)
        assert response.status_code == 200, response.text
        if not response.content:
            return None
        if name := _schema_of(method, ROOT + path):
            check_contract(name, response.json())
        return response.json()

    async def refused(
        self,
        method: str,
        path: str = "",
        body: Any = None,
        *,
        status: int = 400,
        field: str | None = None,
        **query: Any,
    ) -> dict[str, Any]:
        """The error of a request that must be refused with this status and name this field."""
        response = await self.send(method, path, body, **query)
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/json"
        error: dict[str, Any] = response.json()
        check_contract("Status", error)
        assert error["message"]
        assert [d["reason"] for d in error["details"] if d["@type"] == ERROR_INFO]
        if field is not None:
            assert field in fields_of(error), error
        return error

    async def create(self, name: str, adapter: dict[str, Any] | None = None, **metadata: Any) -> str:
        """The id of a new tool set."""
        body = {"metadata": {"name": name, **metadata}, "spec": {"adapter": adapter} if adapter else {}}
        return str((await self.ok("POST", "", body))["metadata"]["id"])

    async def create_tool(self, tool_set_id: str, name: str, *, external_id: str | None = None, **spec: Any) -> str:
        """The id of a new tool."""
        metadata = {"name": name, **({"externalId": external_id} if external_id else {})}
        body = {"metadata": metadata, "spec": {**TOOL_SPEC, **spec}}
        return str((await self.ok("POST", f"/{tool_set_id}/tools", body))["metadata"]["id"])

    async def resync(self, tool_set_id: str) -> dict[str, Any]:
        """Ask for a sync and give its outcome."""
        before = (await self.ok("GET", f"/{tool_set_id}/events", limit=200))["items"]
        await self.ok("POST", f"/{tool_set_id}:sync")
        return await self.crib.synced(tool_set_id, after=len(before))


TOOL_SPEC: dict[str, Any] = {
    "config": {},
    "description": "does something",
    "parameters": {},
    "status": "TOOL_STATUS_AVAILABLE",
}


def fields_of(error: dict[str, Any]) -> list[str]:
    """The fields that an error names."""
    return [v["field"] for d in error["details"] if d["@type"] == BAD_REQUEST for v in d["fieldViolations"]]


def names_of(page: dict[str, Any]) -> list[str]:
    """The names on a page."""
    return [item["metadata"]["name"] for item in page["items"]]
