"""The faces of a capability: REST, MCP, skill catalogue, control port."""
