"""One MCP server for everybody who serves tools: the wire, the transports, and the `Face` that a product gives it."""
