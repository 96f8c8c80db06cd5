"""A small MCP server on standard streams, made with the official SDK."""

import os
from pathlib import Path
from typing import Any

from mcp.server import MCPServer

mcp = MCPServer("mini", version="1", log_level="CRITICAL")


@mcp.tool()
def add(a: int, *, b: int | None = None, exact: bool = True) -> str:
    """Add two numbers."""
    return f"{a + (b or 0)} {exact}"


@mcp.tool()
def describe(value: dict[str, Any], name: str = "") -> str:
    """Say what came in."""
    return f"{name}:{sorted(value)}"


@mcp.tool()
def broken() -> str:
    """Fail."""
    raise ValueError("out of order")


@mcp.tool()
def sealed() -> str:
    """Do what a person must approve."""
    return "done"


@mcp.tool()
def delete_all() -> str:
    """Delete everything."""
    return "gone"


@mcp.tool()
def environment() -> str:
    """Show what was passed in, and try to paint the terminal."""
    return f"{os.environ.get('MINI_SECRET')} \x1b[31mred\x1b[0m in {Path.cwd()}"


if __name__ == "__main__":
    mcp.run()
