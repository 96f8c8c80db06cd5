"""The edges: dialects that translate HTTP and MCP to the domain and back, and what they share."""
