"""Tools that are HTTP requests: templates compiled once per tool, rendered for each call.

A status of 400 or above is a result with `isError`, never an exception: the agent must see what the API said.
"""

from dataclasses import dataclass

import orjson

from toolcrib.core.http import OutboundClient
from toolcrib.core.mcp_server.tool_result import tool_result
from toolcrib.core.template import BodyTemplate, PathTemplate, QueryTemplate, TextTemplate, as_json, query_of
from toolcrib.domain.adapters import HttpAdapter
from toolcrib.domain.tools import WITH_BODY, HttpConfig
from toolcrib.errors import Invalid

_JSON = "application/json"


@dataclass(slots=True)
class HttpRequest:
    """A request ready to send."""

    method: str
    url: str
    headers: list[tuple[str, str]]
    body: bytes | None


@dataclass(frozen=True, slots=True)
class HttpPlan:
    """The compiled form of an HTTP tool."""

    method: str
    base_url: str
    path: PathTemplate
    query: QueryTemplate | None
    headers: tuple[tuple[str, TextTemplate], ...]
    body: BodyTemplate | None
    content_type: str | None
    used: frozenset[str]  # names that the path, query and headers take

    @classmethod
    def compile(cls, adapter: HttpAdapter, config: HttpConfig) -> "HttpPlan":
        """Raises Invalid when the tool set has no base URL."""
        if adapter.base_url is None:
            raise Invalid("http.no_base_url", "The tool set has no base URL.", field="spec.adapter.http.baseUrl")
        path = PathTemplate.compile(config.path or "")
        query = QueryTemplate.compile(config.query) if config.query else None
        headers = {name.lower(): (name, TextTemplate.compile(value)) for name, value in adapter.headers.items()}
        headers |= {name.lower(): (name, TextTemplate.compile(value)) for name, value in config.headers.items()}
        content_type = config.content_type or (_JSON if config.method in WITH_BODY else None)
        body = BodyTemplate.compile(config.body, content_type or _JSON) if config.body is not None else None
        used = path.names.union(query.names if query else (), *(template.names for _, template in headers.values()))
        return cls(
            config.method, adapter.base_url, path, query, tuple(headers.values()), body, content_type, frozenset(used)
        )

    def request(self, arguments: bytes) -> HttpRequest:
        """The request for these arguments (a JSON object).

        Raises:
            TemplateError: a path variable has no value, or a value cannot be written.
        """
        values = orjson.loads(arguments)
        path = self.path.render(values)
        url = self.base_url
        if path:
            url = f"{url.rstrip('/')}/{path.lstrip('/')}"
        query, body = "", None
        if self.query is not None:
            query = self.query.render(values)
        elif self.method not in WITH_BODY:
            query = query_of(values, skip=self.used)
        if self.body is not None:
            body = self.body.render(values)
        elif self.method in WITH_BODY:
            rest = {k: v for k, v in values.items() if k not in self.used} if self.used else values
            body = _default_body(rest, self.content_type or _JSON)
        headers = [(name, text) for name, t in self.headers if (text := t.header(values)) is not None]
        names = {name.lower() for name, _ in headers}
        if body is not None and "content-type" not in names and self.content_type:
            headers.append(("Content-Type", self.content_type))
        if "accept" not in names:
            headers.append(("Accept", "application/json, text/*;q=0.9, */*;q=0.5"))
        return HttpRequest(self.method, f"{url}?{query}" if query else url, headers, body)


def _default_body(values: dict[str, object], content_type: str) -> bytes | None:
    if not values:
        return None
    if content_type.startswith("application/x-www-form-urlencoded"):
        return query_of(values).encode()
    return as_json(values)


async def call_http(
    outbound: OutboundClient, plan: HttpPlan, arguments: bytes, *, timeout_s: float
) -> tuple[bytes, bool]:
    """Make the request; returns an MCP tool result in JSON and whether it is an error.

    Raises:
        TemplateError: the arguments do not fill the templates.
        OutboundError: nothing usable came back.
    """
    request = plan.request(arguments)
    response = await outbound.request(
        request.method, request.url, headers=request.headers, body=request.body, timeout_s=timeout_s
    )
    return tool_result(response.status, response.headers.get("content-type") or "", response.body)
