"""Toolcrib as a client of MCP servers: over streamable HTTP, HTTP+SSE and stdio, in both protocol eras."""

from toolcrib.gateway.mcp_client.contract import McpEndpoint, McpResult, McpToolList, McpUpstreamError
from toolcrib.gateway.mcp_client.upstreams import McpUpstreams

__all__ = ["McpEndpoint", "McpResult", "McpToolList", "McpUpstreamError", "McpUpstreams"]
