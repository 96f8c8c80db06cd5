"""Which server commands talk to, with which key, and what they say when that does not work."""

import socket

from clitools import Crib, Tools, Upstream, refusal


def test_a_server_that_does_not_run_is_said_so_with_a_way_to_mend_it(nowhere: Crib) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    done = nowhere.run("tools", "list", "--url", url)
    assert (done.code, done.out) == (4, "")
    assert url in done.err
    assert "toolcrib up" in done.err
    assert not nowhere.data.exists()


def test_something_else_that_answers_is_no_toolcrib(nowhere: Crib, upstream: Upstream) -> None:
    done = nowhere.run("tools", "list", "--url", upstream.url)
    assert done.code == 4
    assert "no Toolcrib" in done.err


def test_the_key_of_this_host_goes_to_this_host_s_server_only(crib: Crib, upstream: Upstream) -> None:
    crib.run("tools", "list", "--url", upstream.url)
    assert "authorization" not in upstream.seen[0]["headers"]
    crib.run("tools", "list", "--url", upstream.url, "--api-key", "tck_mine")
    assert upstream.seen[1]["headers"]["authorization"] == "Bearer tck_mine"
    same = crib.url.replace("127.0.0.1", "localhost")
    assert crib.run("tools", "sets", TOOLCRIB_URL=same + "/").code == 0


def test_no_key_and_a_wrong_key_are_refused_with_a_way_to_mend_it(crib: Crib, nowhere: Crib) -> None:
    no_key, wrong_key = (nowhere.run("tools", "list", "--url", crib.url, *key) for key in ((), ("--api-key", "tck_x")))
    for done in (no_key, wrong_key):
        assert (done.code, done.out) == (5, "")
        assert "toolcrib key create" in done.err
    assert nowhere.run("tools", "sets", TOOLCRIB_URL=crib.url, TOOLCRIB_API_KEY=crib.first["api_key"]).code == 0


def test_a_key_that_may_only_call_tools_is_enough_to_call_them(crib: Crib, mini: Tools) -> None:
    key = crib.run("key", "create", "--name", "caller", "--scope", "tools:call", "--scope", "tools:call").json[
        "api_key"
    ]
    result = crib.run("tools", "call", mini["add"], "--arg", "a=5", "--api-key", key).json
    assert result["content"][0]["text"] == "5 True"
    refused = crib.run("tools", "list", "--api-key", key)
    assert refused.code == 5
    assert "tool_sets:read" in refused.err


def test_a_url_or_a_setting_that_makes_no_sense_is_named(nowhere: Crib) -> None:
    for url in ("toolcrib.example", "http://a:b:c", "ftp://a", "http://"):
        assert refusal("tools", "list", "--url", url)[0] == 2
    assert refusal("tools", "list", "--url", "http://127.0.0.1:1", "--api-key", "a\nb")[0] == 2
    done = nowhere.run("tools", "list", TOOLCRIB_PORT="many")
    assert done.code == 1
    assert "TOOLCRIB_PORT" in done.err
