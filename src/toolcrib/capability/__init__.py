"""The Naftiko capability engine: one YAML file becomes REST, MCP and skill servers for the HTTP APIs it names."""
