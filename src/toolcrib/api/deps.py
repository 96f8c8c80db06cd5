"""What every edge is handed: built once by `wiring`, never changed, no product rules of its own."""

import asyncio
from dataclasses import dataclass

from toolcrib.api.sign_in import SignIn
from toolcrib.core.db import Database
from toolcrib.core.vault import Vault
from toolcrib.gateway.call import ToolCalls
from toolcrib.gateway.catalog import Catalog
from toolcrib.gateway.providers.capability import Capabilities


@dataclass(frozen=True, slots=True)
class Deps:
    """The parts of one process that requests use.

    Attributes:
        commands: whether tool sets may run commands.
        max_request_bytes: largest request body.
        mcp_page_size: tools in one page of MCP tools/list.
        allowed_origins: web origins other than our own that may use MCP.
        closing: set when this process stops, so that streams end.
    """

    database: Database
    vault: Vault
    sign_in: SignIn
    catalog: Catalog
    calls: ToolCalls
    capabilities: Capabilities
    commands: bool
    max_request_bytes: int
    mcp_page_size: int
    allowed_origins: frozenset[str]
    closing: asyncio.Event
