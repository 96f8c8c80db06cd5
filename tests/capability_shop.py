"""A shop as a capability file, and a real HTTP API behind it, for tests of capability tool sets."""

import json
from dataclasses import dataclass
from typing import Any

from serving import Crib
from upstream_app import Answer, Asked, Told

TOKEN = "t0ken-0f-the-shop"

SHOP = """\
naftiko: 1.0.0-alpha2
info: {label: Shop}
binds:
  - namespace: shop-env
    keys: {SHOP_TOKEN: shop-token}
capability:
  consumes:
    - type: http
      namespace: shop
      baseUri: https://shop.example
      authentication: {type: bearer, token: "{{SHOP_TOKEN}}"}
      resources:
        - name: orders
          path: /orders
          operations:
            - name: create-order
              method: POST
              inputParameters: [{name: body, in: body, type: object}]
        - name: order
          path: /orders/{order_id}
          operations:
            - {name: get-order, method: GET}
            - {name: delete-order, method: DELETE}
  exposes:
    - type: mcp
      namespace: shop-tools
      port: 9091
      tools:
        - name: get-order
          label: One order
          description: Find an order by its number.
          hints: {readOnly: true}
          inputParameters: [{name: id, type: string, required: true, description: Its number}]
          call: shop.get-order
          with: {order_id: "{{id}}"}
          outputParameters:
            - type: object
              properties:
                number: {type: string, mapping: $.id}
                total: {type: number, mapping: $.cents}
        - name: create-order
          description: Order something.
          hints: {readOnly: false, idempotent: false}
          inputParameters:
            - {name: article, type: string, required: true}
            - {name: count, type: integer, required: false}
          call: shop.create-order
        - name: delete-order
          description: Forget an order.
          hints: {destructive: true}
          inputParameters: [{name: order_id, type: string, required: true}]
          call: shop.delete-order
"""


def shop_answer(asked: Asked) -> Told:
    """What the shop answers: orders, 404 for `none`, 401 that quotes the credentials for `quoting`."""
    media = {"Content-Type": "application/json"}
    number = asked.path.rpartition("/")[2]
    if asked.method == "DELETE":
        return Told(status=204)
    if number == "none":
        return Told(b'{"problem":"no such order"}', 404, media)
    if number == "quoting":
        return Told(json.dumps({"problem": f"bad credentials {asked.get('authorization')}"}).encode(), 401, media)
    if asked.method == "POST":
        return Told(asked.body, 201, media)
    return Told(json.dumps({"id": number, "cents": 1250, "secret": "internal"}).encode(), 200, media)


answer: Answer = shop_answer


def capability(url: str, source: str = SHOP, **members: Any) -> dict[str, Any]:
    """The adapter of a shop behind a URL."""
    return {"capability": {"source": source, "baseUris": {"shop": url}, "env": {"shop-token": TOKEN}, **members}}


@dataclass
class Shop:
    """A tool set that is the shop, ready to be called."""

    crib: Crib
    id: str
    slug: str

    @classmethod
    async def open(cls, crib: Crib, name: str, adapter: dict[str, Any]) -> "Shop":
        """Create it and wait for its tools."""
        made = await crib.add_tool_set(name, adapter)
        event = await crib.synced(made["metadata"]["id"])
        assert event["type"] == "sync_completed", event
        return cls(crib, made["metadata"]["id"], made["info"]["mcpPath"].rpartition("/")[2])

    async def tools(self) -> dict[str, dict[str, Any]]:
        """Its tools as the REST API tells them, by name."""
        page = (
            await self.crib.http.get(f"/v1/tool_sets/{self.id}/tools", params={"limit": 200, "includeInfo": True})
        ).json()
        return {item["metadata"]["name"]: item for item in page["items"]}

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The result of a call that is not refused."""
        response = await self.ask(tool, arguments)
        assert response.status_code == 200, response.text
        return dict(response.json()["data"])

    async def ask(self, tool: str, arguments: dict[str, Any]) -> Any:
        """The whole answer of a call."""
        return await self.crib.call(f"{self.slug}__{tool}", arguments)

    async def replace(self, **members: Any) -> dict[str, Any]:
        """Change members of the adapter and wait for the sync; gives its outcome."""
        before = (await self.crib.http.get(f"/v1/tool_sets/{self.id}/events", params={"limit": 200})).json()["items"]
        body = {"spec": {"adapter": {"capability": members}}}
        response = await self.crib.http.put(f"/v1/tool_sets/{self.id}", json=body)
        assert response.status_code == 200, response.text
        return await self.crib.synced(self.id, after=len(before))

    async def delete(self) -> None:
        """Delete it."""
        assert (await self.crib.http.delete(f"/v1/tool_sets/{self.id}")).status_code == 200
