"""Settings to running parts: the only module that knows them all.

`open_parts` builds what one process needs, each thing once; `build_app`, `build_worker` and `build_keeper` put the web
and the work side on top. Nothing here holds a rule of the product.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from toolcrib import __version__
from toolcrib.api.cadenya import app as cadenya_app
from toolcrib.api.cadenya import errors as cadenya_errors
from toolcrib.api.deps import Deps
from toolcrib.api.mcp import app as mcp_app
from toolcrib.api.orkosi import app as orkosi_app
from toolcrib.api.orkosi import errors as orkosi_errors
from toolcrib.api.rest_calls import RestCalls
from toolcrib.api.root import Root
from toolcrib.api.sign_in import SignIn
from toolcrib.core import telemetry
from toolcrib.core.db import Database
from toolcrib.core.http import OutboundClient
from toolcrib.core.vault import Vault
from toolcrib.gateway.audit_writer import AuditWriter
from toolcrib.gateway.call import ToolCalls
from toolcrib.gateway.catalog import Catalog
from toolcrib.gateway.jobs import WorkContext, jobs, resync_later, schedules
from toolcrib.gateway.mcp_client.process import STDIO_ENV_ALLOW
from toolcrib.gateway.mcp_client.upstreams import McpUpstreams
from toolcrib.gateway.providers.capability import Capabilities
from toolcrib.queue.keeper import Keeper
from toolcrib.queue.worker import Worker
from toolcrib.settings import Settings

_GRACE_S = 4  # running jobs that take longer are given back to the queue when a process stops
_log = structlog.get_logger(__name__)
__all__ = ["Parts", "build_app", "build_keeper", "build_worker", "open_parts", "start_tracing"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What one process is made of."""

    settings: Settings
    deps: Deps
    work: WorkContext


@asynccontextmanager
async def open_parts(settings: Settings, database: Database, vault: Vault) -> AsyncIterator[Parts]:
    """Build the parts of a process, and close them in order: no new work, calls under way, upstreams, audit."""
    outbound = OutboundClient(
        settings.address_policy,
        connect_timeout_s=settings.connect_timeout_s,
        timeout_s=settings.call_timeout_s,
        max_bytes=settings.max_result_bytes,
        user_agent=f"toolcrib/{__version__}",
    )
    upstreams = McpUpstreams(
        outbound,
        idle_s=settings.upstream_idle_s,
        max_message_bytes=settings.max_result_bytes,
        on_tools_changed=resync_later(database),
        client_version=__version__,
        stdio_env_allow=(*STDIO_ENV_ALLOW, *settings.stdio_env_allow),
    )
    telemetry.UPSTREAM_SESSIONS.set_function(upstreams.__len__)
    audit = AuditWriter(database)
    capabilities = Capabilities(outbound, max_result_bytes=settings.max_result_bytes)

    def retire(key: str) -> None:
        upstreams.retire(key)
        capabilities.retire(key)

    catalog = Catalog(database, vault, commands=settings.stdio, retire=retire)
    deps = Deps(
        database=database,
        vault=vault,
        sign_in=SignIn(database),
        catalog=catalog,
        calls=ToolCalls(catalog, audit, outbound, upstreams, capabilities, timeout_s=settings.call_timeout_s),
        capabilities=capabilities,
        commands=settings.stdio,
        max_request_bytes=settings.max_request_bytes,
        mcp_page_size=settings.mcp_page_size,
        allowed_origins=frozenset(settings.mcp_allowed_origins),
        closing=asyncio.Event(),
    )
    work = WorkContext(
        database, vault, upstreams, capabilities, settings.sync_timeout_s, settings.audit_retention_days, settings.stdio
    )
    try:
        yield Parts(settings, deps, work)
    finally:
        deps.closing.set()
        catalog.close()
        await upstreams.close()
        await capabilities.close()
        await audit.close()
        await outbound.close()


def build_app(parts: Parts) -> Root:
    """The ASGI application."""
    deps = parts.deps
    return Root(
        database=deps.database,
        mcp=mcp_app.build(deps),
        cadenya=cadenya_app.build(deps),
        cadenya_calls=RestCalls(deps, cadenya_errors.render, envelope=False),
        orkosi=orkosi_app.build(deps),
        orkosi_calls=RestCalls(deps, orkosi_errors.render, envelope=True),
    )


def build_worker(parts: Parts) -> Worker[WorkContext]:
    """Runs the jobs of the queue."""
    settings = parts.settings
    return Worker(
        database=parts.deps.database,
        jobs=jobs,
        context=parts.work,
        grace_s=_GRACE_S,
        concurrency=settings.worker_concurrency,
        lease_s=settings.job_lease_s,
    )


def build_keeper(parts: Parts) -> Keeper:
    """Does what time asks for: schedules, expired leases, pruning."""
    return Keeper(database=parts.deps.database, schedules=schedules(sync_interval_s=parts.settings.sync_interval_s))


def start_tracing(settings: Settings) -> None:
    """Export spans if an endpoint is set; says so in the log when the extra is not installed."""
    if settings.otlp_endpoint is None:
        return
    try:
        importlib.import_module("toolcrib.core.otlp").install(settings.otlp_endpoint)
    except ImportError:
        _log.warning("tracing.not_installed", mend="pip install 'toolcrib[otel]'")
