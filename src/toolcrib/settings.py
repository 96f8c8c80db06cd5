"""All settings, read from the environment (prefix TOOLCRIB_) by this module alone.

Everything else receives values. Secrets have no default: they are made on first start and kept in the data folder.
`docs/settings.md` lists every setting; a test keeps the two in step.
"""

from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from toolcrib.core.http import AddressPolicy

_PLACEHOLDERS = {"changeme", "change-me", "secret", "password", "admin", "test", "example", "xxx", "todo"}
Texts = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """What an operator may set; each is the environment variable TOOLCRIB_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="TOOLCRIB_", extra="ignore", frozen=True, validate_default=True)

    # where
    data: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("toolcrib", appauthor=False)),
        description="Data folder: embedded PostgreSQL, secrets made on first start, CLI sign-in.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8700, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    public_url: str | None = Field(None, description="URL under which clients reach this server, if not host and port.")
    # database
    database_url: SecretStr | None = Field(
        None, description="PostgreSQL to use instead of the embedded one: postgresql://user:password@host/name."
    )
    database_pool_size: int = Field(10, ge=3, le=500, description="Most connections of one process to PostgreSQL.")
    postgres_bin: Path | None = Field(None, description="Folder with the PostgreSQL programs, instead of the wheel's.")
    # secrets
    vault_key: SecretStr | None = Field(
        None, description="Key that seals secrets, 32 bytes in URL-safe base64. Made in the data folder when unset."
    )
    vault_old_keys: Texts = Field((), description="Earlier vault keys, comma-separated, still able to open.")
    # first start
    admin_email: str = Field("admin@toolcrib.local", description="E-mail of the first administrator.")
    admin_password: SecretStr | None = Field(None, min_length=8, description="Password of the first administrator.")
    # calls
    outbound_allow: Texts = Field(
        ("auto",),
        description="Non-public addresses that tool sets may reach, comma-separated: networks, `loopback`, `private`,"
        " `any`. `auto` is `loopback` while listening on a loopback address, else nothing.",
    )
    connect_timeout_s: float = Field(5, gt=0, le=300, description="Seconds to connect to an upstream.")
    call_timeout_s: float = Field(60, gt=0, le=3600, description="Seconds a tool call may take.")
    sync_timeout_s: float = Field(30, gt=0, le=3600, description="Seconds to read an MCP server's list of tools.")
    max_result_bytes: int = Field(10 * 2**20, ge=1024, description="Largest answer of an upstream, in bytes.")
    max_request_bytes: int = Field(4 * 2**20, ge=1024, description="Largest request body accepted, in bytes.")
    mcp_page_size: int = Field(1000, ge=1, le=10_000, description="Tools in one page of MCP tools/list.")
    mcp_allowed_origins: Texts = Field((), description="Web origins that may use MCP from a browser, comma-separated.")
    stdio: bool = Field(True, description="Whether tool sets may run commands (stdio MCP servers).")
    stdio_env_allow: Texts = Field((), description="More environment variables that stdio servers inherit.")
    upstream_idle_s: float = Field(600, gt=0, description="Seconds without calls until an upstream session closes.")
    sync_interval_s: int = Field(3600, ge=0, description="Seconds between syncs of every MCP tool set; 0 turns it off.")
    # work
    worker_concurrency: int = Field(8, ge=1, le=1000, description="Jobs one process runs at a time.")
    job_lease_s: float = Field(60, ge=5, description="Seconds after which a dead worker's job goes to another.")
    audit_retention_days: int = Field(90, ge=1, description="Days for which tool calls are kept.")
    # watching
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_style: Literal["auto", "json", "text"] = Field(
        "auto", description="Logs as JSON or text; auto asks the terminal."
    )
    otlp_endpoint: str | None = Field(None, description="OTLP/HTTP endpoint for traces (needs the `otel` extra).")

    @field_validator("vault_old_keys", "outbound_allow", "mcp_allowed_origins", "stdio_env_allow", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("vault_key", "admin_password", "database_url", mode="after")
    @classmethod
    def _no_placeholder(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and value.get_secret_value().strip().lower() in _PLACEHOLDERS | {""}:
            raise ValueError("is a placeholder; set a real value or leave it unset")
        return value

    @field_validator("outbound_allow", mode="after")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        AddressPolicy.parse(part for part in value if part != "auto")
        return value

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only programs on this machine can reach the server."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")

    @property
    def address_policy(self) -> AddressPolicy:
        """The addresses that tool sets may reach.

        `auto` allows loopback only while the server itself listens on loopback: whoever can ask it then could have
        asked the loopback service directly.
        """
        texts = [part for part in self.outbound_allow if part != "auto"]
        if "auto" in self.outbound_allow and self.listens_on_loopback:
            texts.append("loopback")
        return AddressPolicy.parse(texts)
