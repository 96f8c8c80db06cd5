"""`toolcrib key`: keys made, listed and revoked in the database itself, with and without a running server."""

from datetime import UTC, datetime, timedelta

from clitools import Crib, data_folder, refusal, up


def test_a_key_is_printed_once_and_does_what_its_scopes_say(crib: Crib) -> None:
    made = crib.run("key", "create", "--name", "reader", "--scope", "tool_sets:read", "--expires", "30d").json
    assert made["scopes"] == ["tool_sets:read"]
    assert made["workspace_id"] == crib.first["workspace_id"]
    ends = datetime.fromisoformat(made["expires_at"])
    assert timedelta(days=29, hours=23) < ends - datetime.now(UTC) <= timedelta(days=30)
    assert crib.run("tools", "sets", "--api-key", made["api_key"]).code == 0
    assert crib.run("audit", "--api-key", made["api_key"]).code == 5

    listed = crib.run("key", "list")
    assert made["api_key"] not in listed.out
    found = next(key for key in listed.json if key["id"] == made["id"])
    assert (found["name"], found["state"], found["hint"]) == ("reader", "valid", made["hint"])
    assert found["last_used_at"]


def test_a_revoked_key_is_useless_at_once_on_a_running_server(crib: Crib) -> None:
    made = crib.run("key", "create", "--name", "short").json
    assert crib.run("tools", "sets", "--api-key", made["api_key"]).code == 0
    revoked = crib.run("key", "revoke", made["hint"])
    assert revoked.json["state"] == "revoked"
    assert "Revoked short" in revoked.err
    refused = crib.run("tools", "sets", "--api-key", made["api_key"])
    assert refused.code == 5
    assert crib.run("key", "revoke", made["id"]).json["revoked_at"] == revoked.json["revoked_at"]


def test_on_a_terminal_the_key_stands_in_a_frame_whole_and_the_list_is_a_table(crib: Crib) -> None:
    shown = crib.on_terminal("key", "create", "--name", "framed").out
    key = next(word for word in shown.split() if word.startswith("tck_"))
    assert crib.run("tools", "sets", "--api-key", key).code == 0
    table = crib.on_terminal("key", "list").out
    assert "framed" in table
    assert "SCOPES" in table


def test_what_no_key_can_have_is_refused(crib: Crib) -> None:
    for args, said in (
        (["--scope", "everything"], "everything"),
        (["--expires", "2020-01-01"], "past"),
        (["--workspace", "workspace_x"], "workspace_x"),
    ):
        done = crib.run("key", "create", *args)
        assert (done.code, done.out) == (1, ""), args
        assert said in done.err
    assert crib.run("key", "revoke", "nothing").code == 1
    assert refusal("key", "create", "--expires", "soon")[0] == 2


def test_without_an_installation_no_key_is_made_and_nothing_else_either(nowhere: Crib) -> None:
    done = nowhere.run("key", "create")
    assert (done.code, done.out) == (1, "")
    assert "toolcrib up" in done.err
    assert not nowhere.data.exists()


def test_keys_need_no_server() -> None:
    with data_folder() as folder:
        with up(folder):
            pass
        stopped = Crib(folder)
        made = stopped.run("key", "create", "--name", "offline")
        assert made.json["scopes"] == ["*"]
        assert "First start" not in made.err
        names = {key["name"] for key in stopped.run("key", "list").json}
        assert names == {"offline", "first key", "command line on the first host"}
