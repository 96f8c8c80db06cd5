"""MCP as a dialect: Toolcrib as an MCP server over streamable HTTP, both protocol eras, stateless."""
