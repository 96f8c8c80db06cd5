"""The pool under test, and the proof that it leaves nothing behind."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.mcp_client.servers.launch import MakePool, children, our_tasks
from gateway.mcp_client.servers.raw_http import until
from toolcrib.core.http import AddressPolicy, OutboundClient
from toolcrib.gateway.mcp_client import McpUpstreams


@pytest.fixture
async def outbound() -> AsyncIterator[OutboundClient]:
    client = OutboundClient(AddressPolicy.parse(["loopback"]))
    yield client
    await client.close()


@pytest.fixture
async def make_pool(outbound: OutboundClient) -> AsyncIterator[MakePool]:
    """Make pools; closing them must leave no task and no process."""
    pools: list[McpUpstreams] = []
    before = children()

    def make(**limits: Any) -> McpUpstreams:
        pools.append(McpUpstreams(outbound, client_version="0.1", **limits))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.close()
    await until(lambda: not our_tasks())
    await until(lambda: children() <= before)


@pytest.fixture
async def pool(make_pool: MakePool) -> McpUpstreams:
    return make_pool()
