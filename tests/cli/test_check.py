"""`toolcrib check`: what it finds, what it hides, and that it leaves no trace."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from clitools import Crib, Done, Upstream
from toolcrib.core.vault import new_vault_key


def checks(done: Done) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(done.out)["checks"]}


def tree(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if "postgres" not in path.relative_to(folder).parts}


def test_a_running_installation_passes(crib: Crib) -> None:
    before = tree(crib.data)
    done = crib.run("check")
    report = done.json
    found = checks(done)
    assert report["ok"] is True
    for name in ("data folder", "PostgreSQL programs", "database", "schema", "vault key", "clock", "server"):
        assert found[name]["state"] == "ok", found[name]
    assert crib.url in found["server"]["detail"]
    assert "fits the database" in found["vault key"]["detail"]
    settings = {row["name"]: row for row in report["settings"]}
    assert settings["data"]["source"] == "environment"
    assert settings["port"] == {
        "name": "port",
        "env": "TOOLCRIB_PORT",
        "value": 8700,
        "source": "default",
        "description": settings["port"]["description"],
    }
    assert tree(crib.data) == before
    shown = crib.on_terminal("check").out
    assert "TOOLCRIB_CALL_TIMEOUT_S" in shown
    assert "✓ vault key" in shown.replace("\x1b[1m", "").replace("\x1b[0m", "").replace("\x1b[32m", "")


def test_a_host_where_nothing_was_started_passes_and_stays_untouched(nowhere: Crib) -> None:
    found = checks(nowhere.run("check", TOOLCRIB_PORT="0"))
    assert "first start makes it" in found["data folder"]["detail"]
    assert found["database"]["state"] == "skip"
    assert found["vault key"]["state"] == "ok"
    assert not nowhere.data.exists()


def test_secrets_are_never_printed(nowhere: Crib) -> None:
    key, old = new_vault_key(), new_vault_key()
    done = nowhere.run(
        "check",
        TOOLCRIB_VAULT_KEY=key,
        TOOLCRIB_VAULT_OLD_KEYS=old,
        TOOLCRIB_ADMIN_PASSWORD="open-sesame-1",
        TOOLCRIB_DATABASE_URL="postgresql://me:hush-hush@127.0.0.1:1/crib",
        TOOLCRIB_OTLP_ENDPOINT="https://me:token-1@otlp.example.com/v1",
    )
    for secret in (key, old, "open-sesame-1", "hush-hush", "token-1"):
        assert secret not in done.out + done.err
    settings = {row["name"]: row for row in json.loads(done.out)["settings"]}
    assert settings["vault_key"] == settings["vault_key"] | {"value": "********", "source": "environment"}
    assert settings["otlp_endpoint"]["value"] == "https://********@otlp.example.com/v1"


def test_a_database_out_of_reach_fails_with_a_way_to_mend_it(nowhere: Crib) -> None:
    done = nowhere.run("check", TOOLCRIB_DATABASE_URL="postgresql://me@127.0.0.1:1/crib", TOOLCRIB_PORT="0")
    assert done.code == 1
    database = checks(done)["database"]
    assert database["state"] == "fail"
    assert "TOOLCRIB_DATABASE_URL" in database["mend"]


def test_a_port_that_another_program_has_fails_and_names_it(nowhere: Crib, upstream: Upstream) -> None:
    done = nowhere.run("check", TOOLCRIB_PORT=upstream.url.rpartition(":")[2])
    assert done.code == 1
    assert f"process {os.getpid()}" in checks(done)["server"]["detail"]


def test_a_port_that_another_toolcrib_has_is_told_apart(crib: Crib, nowhere: Crib) -> None:
    done = nowhere.run("check", TOOLCRIB_PORT=crib.url.rpartition(":")[2])
    server = checks(done)["server"]
    assert (done.code, server["state"]) == (0, "warn")
    assert "Toolcrib" in server["detail"]


def test_a_vault_key_that_does_not_fit_fails(crib: Crib, mini: object) -> None:
    assert mini
    done = crib.run("check", TOOLCRIB_VAULT_KEY=new_vault_key())
    assert done.code == 1
    assert checks(done)["vault key"]["state"] == "fail"
    done = crib.run("check", TOOLCRIB_VAULT_KEY="short")
    assert "32 bytes" in checks(done)["vault key"]["detail"]


def test_what_is_open_to_others_is_warned_of(nowhere: Crib) -> None:
    nowhere.data.mkdir(mode=0o700)
    nowhere.data.chmod(0o755)
    found = checks(
        nowhere.run("check", TOOLCRIB_PORT="0", TOOLCRIB_HOST="0.0.0.0", TOOLCRIB_OUTBOUND_ALLOW="loopback,10.0.0.0/8")
    )
    for name in ("data folder", "exposure", "outbound"):
        assert found[name]["state"] == "warn", found[name]
        assert found[name]["mend"]
    assert stat.S_IMODE(nowhere.data.stat().st_mode) == 0o755
    found = checks(nowhere.run("check", TOOLCRIB_PORT="0", TOOLCRIB_OUTBOUND_ALLOW="any", TOOLCRIB_STDIO="false"))
    assert "every address" in found["outbound"]["detail"]
    assert "off" in found["stdio commands"]["detail"]


def test_a_setting_that_cannot_be_used_is_named(nowhere: Crib) -> None:
    done = nowhere.run("check", TOOLCRIB_CALL_TIMEOUT_S="soon")
    assert done.code == 1
    assert "TOOLCRIB_CALL_TIMEOUT_S" in checks(done)["settings"]["detail"]
