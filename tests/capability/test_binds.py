"""Variables and their values: where they come from, where they stand, and what happens when one has none."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from capability.stub import Stub, api, binds, document, face, loaded, param, serving, stub
from toolcrib.capability.capability import Capability
from toolcrib.capability.findings import CapabilityInvalid
from toolcrib.errors import AppError

SECRET = "s3cr3t-value"


@pytest.fixture
async def up() -> AsyncIterator[Stub]:
    async with stub() as served:
        yield served


async def test_variables_stand_everywhere(up: Stub) -> None:
    consumed = api(
        "{{env.BASE}}",
        {
            "method": "POST", "path": "/{{env.A}}/{B}/x", "body": {"type": "json", "data": {"k": "{{A}}"}},
            "inputParameters": [param("X-A", "header", value="v-{{env.A}}"), param("b", "query", value="{{B}}")],
        },
        authentication={"type": "bearer", "token": "{{env.A}}"},
    )  # fmt: skip
    exposed = face(
        {"method": "POST"},
        {"path": "/mock", "mock": True, "outputParameters": [{"name": "a", "type": "string", "value": "{{env.A}}"}]},
    )
    made = document(consumed, exposed, binds=binds("BASE", "A", "B"))
    async with serving(made, {"BASE": up.url + "/v1/", "A": "a/ä", "B": "b b"}) as served:
        assert (await served.http.get("/mock")).json() == {"a": "a/ä"}
        assert (await served.http.post("/x")).status_code == 200
    asked = up.only()
    assert asked.target == "/v1/a%2F%C3%A4/b%20b/x?b=b+b"
    assert (asked.get("x-a"), json.loads(asked.body)) == ("v-a/ä", {"k": "a/ä"})


async def test_the_namespace_tells_variables_apart_and_both_places_of_binds_count(up: Stub) -> None:
    made = document(
        api(up.url, {"inputParameters": [param("q", "query", value="{{one.T}}-{{two.T}}-{{T}}-{{two.HOME_Z}}")]}),
        face({}),
        binds=[{"namespace": "one", "keys": {"T": "T1"}}],
    )
    made["capability"]["binds"] = [{"namespace": "two", "keys": {"T": "T2"}}]
    async with serving(made, {"T1": "1", "T2": "2", "HOME_Z": "z"}) as served:
        await served.http.get("/x")
    assert up.only().query == {"q": ["1-2-1-z"]}


@pytest.mark.parametrize(
    ("name", "text"),
    [("s.yaml", f"KEY: {SECRET}\nnumber: 05\nday: 2024-01-31\nflag: true\nnothing: null\n"),
     ("s.yml", f"KEY: {SECRET}\nnumber: '05'\nday: 2024-01-31\nflag: true\n"),
     ("s.json", json.dumps({"KEY": SECRET, "number": "05", "day": "2024-01-31", "flag": True}))],
)  # fmt: skip
@pytest.mark.parametrize("form", ["file:///./{name}", "file://./{name}", "file://{folder}/{name}"])
async def test_values_come_from_files(up: Stub, tmp_path: Path, name: str, text: str, form: str) -> None:
    (tmp_path / name).write_text(text)
    location = form.format(name=name, folder=tmp_path)
    keys = {"A": "KEY", "N": "number", "X": "nothing", "D": "day", "F": "flag"}
    made = document(
        api(up.url, {"inputParameters": [param("q", "query", value="{{f.A}}|{{N}}|{{D}}|{{F}}")]}),
        face({}),
        binds=[{"namespace": "f", "location": location, "keys": keys}],
    )
    file = tmp_path / "cap.yaml"
    file.write_text(json.dumps(made))
    capability = Capability.load(file, environ={})
    assert [f.message for f in capability.findings if f.rule == "bind-unresolved"] == [
        f"The variable X has no value: nothing in {location} is not set."
    ]
    try:
        await capability.call("shop.GET /x")
    finally:
        await capability.close()
    assert up.only().query == {"q": [f"{SECRET}|05|2024-01-31|true"]}


@pytest.mark.parametrize("text", ["[1]", "a: [", "text", "a: &a [*a", "KEY: {}" + "x" * (1 << 20)])
def test_a_broken_file_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(f"# {SECRET}\n{text}")
    made = document(api("http://x", {}), face({}), binds=[
        {"namespace": "f", "location": f"file://{tmp_path}/s.yaml", "keys": {"A": "KEY"}}])  # fmt: skip
    with pytest.raises(CapabilityInvalid) as refused:
        loaded(made)
    assert SECRET not in str(refused.value)


AUTHS: list[dict[str, Any]] = [
    {"type": "bearer", "token": "{{env.K}}"},
    {"type": "bearer", "token": "{{K}}"},
    {"type": "bearer", "token": "x-{{env.K}}"},
    {"type": "bearer", "token": "{{undeclared}}"},
    {"type": "basic", "username": "u", "password": "{{env.K}}"},
    {"type": "basic", "username": "{{env.K}}", "password": "p"},
    {"type": "apikey", "key": "X-K", "value": "{{env.K}}"},
    {"type": "apikey", "key": "k", "value": "{{env.K}}", "placement": "query"},
    {"type": "apikey", "key": "{{env.K}}", "value": "v"},
    {"type": "digest", "username": "u", "password": "{{env.K}}"},
    {"type": "oauth2", "tokenEndpoint": "URL/token", "clientId": "c", "clientSecret": "{{env.K}}"},
]


@pytest.mark.parametrize("auth", AUTHS)
@pytest.mark.parametrize("environ", [{}, {"K": ""}])
async def test_an_unresolved_secret_is_sent_by_no_authentication(up: Stub, auth: Any, environ: Any) -> None:
    auth = {key: value.replace("URL", up.url) for key, value in auth.items()}
    server = face({}, {"path": "/f/{rest}"})
    server["resources"][1]["forward"] = {"targetNamespace": "up"}
    made = document(api(up.url, {}, authentication=auth), server, binds=binds("K"))
    async with serving(made, environ) as served:
        headers = {"Authorization": "Bearer caller", "X-K": "caller"}
        for method, path in (("GET", "/x?K=caller&env.K=caller&undeclared=u&k=c"), ("PUT", "/f/y?k=c")):
            answer = await served.http.request(method, path, headers=headers)
            assert answer.status_code == 503, answer.text
            assert answer.json()["code"] == "bind.unresolved"
    up.nothing()


@pytest.mark.parametrize(
    "operation",
    [
        {"inputParameters": [param("X-K", "header", value="k {{env.K}}")]},
        {"inputParameters": [param("k", "query", value="{{K}}")]},
        {"inputParameters": [param("k", "cookie", value="{{env.K}}")]},
        {"inputParameters": [param("k", "environment", value="{{env.K}}")]},
        {"path": "/p/{{env.K}}"},
        {"path": "/p/{K}"},
        {"path": "/p?k={{env.K}}"},
        {"method": "POST", "body": '{"k":"{{env.K}}"}'},
        {"method": "POST", "body": {"type": "json", "data": {"k": ["{{env.K}}"]}}},
        {"method": "POST", "body": {"type": "text", "data": "{{env.K}}"}},
        {"method": "POST", "body": {"type": "xml", "data": "<a>{{env.K}}</a>"}},
        {"method": "POST", "body": {"type": "formUrlEncoded", "data": {"k": "{{env.K}}"}}},
        {"method": "POST", "body": {"type": "multipartForm", "data": [{"name": "k", "value": "{{env.K}}"}]}},
        {"method": "POST", "inputParameters": [param("k", "body", value="{{env.K}}")]},
        {"method": "POST", "inputParameters": [param("k", "body", value="{{env.K}}"), param("l", "body")]},
    ],
)
async def test_an_unresolved_variable_is_sent_nowhere(up: Stub, operation: Any) -> None:
    method = operation.get("method", "GET")
    made = document(api(up.url, operation), face({"method": method}), binds=binds("K"))
    async with serving(made) as served:
        assert "bind-unresolved" in served.rules("warning")
        answer = await served.http.request(method, "/x?K=caller&env.K=caller")
        assert (answer.status_code, answer.json()["code"]) == (503, "bind.unresolved")
    up.nothing()


async def test_an_unresolved_base_is_refused_and_the_rest_works(up: Stub) -> None:
    consumed = [api("{{env.K}}/v1", {}, namespace="lost"), api(up.url, {})]
    made = document(consumed, face({"call": "lost.op"}, {"path": "/fine"}), binds=binds("K"))
    async with serving(made) as served:
        assert (await served.http.get("/x")).status_code == 503
        assert (await served.http.get("/fine")).status_code == 200
    with pytest.raises(CapabilityInvalid):
        loaded(made, strict=True)


@pytest.mark.parametrize(
    "auth",
    [
        {"type": "bearer", "token": "{{env.K}}"},
        {"type": "apikey", "key": "X-K", "value": "{{K}}"},
        {"type": "apikey", "key": "k", "value": "{{K}}", "placement": "query"},
        {"type": "basic", "username": "u", "password": "{{env.K}}"},
        {"type": "digest", "username": "u", "password": "{{env.K}}"},
        {"type": "bearer"},
        {"type": "unknown"},
        {"type": "oauth2"},
    ],
)
@pytest.mark.parametrize("environ", [{}, {"K": ""}])
async def test_a_server_whose_secret_is_missing_lets_nobody_in(up: Stub, auth: Any, environ: Any) -> None:
    made = document(api(up.url, {}), face({}, authentication=auth), binds=binds("K"))
    capability = loaded(made, environ)
    await capability.close()
    if not capability.plan.rest:
        return  # it is not served at all
    async with serving(made, environ) as served:
        for token in ("", "{{env.K}}", "{{K}}", "None"):
            headers = {"Authorization": f"Bearer {token}".strip(), "X-K": token}
            answer = await served.http.get("/x", headers=headers, params={"k": token})
            assert answer.status_code in {401, 503}
        for pair in (("u", ""), ("u", "{{env.K}}")):
            assert (await served.http.get("/x", auth=pair)).status_code in {401, 503}
    up.nothing()


async def test_no_secret_is_shown(up: Stub, capsys: pytest.CaptureFixture[str], caplog: Any) -> None:
    consumed = api(
        up.url,
        {
            "method": "POST", "path": "/{id}/{{env.K}}", "body": '{"k":"{{env.K}}","v":"{{v}}"}',
            "inputParameters": [param("X-K", "header", value="{{env.K}}")],
        },
        {"name": "down", "path": "/{{env.K}}"},
        authentication={"type": "bearer", "token": "{{env.K}}"},
    )  # fmt: skip
    made = document(consumed, face({"method": "POST"}, {"path": "/down", "call": "up.down"}), binds=binds("K"))
    async with serving(made, {"K": SECRET}) as served:
        plan = served.capability.plan
        shown = [
            repr(plan.called),
            repr(plan.bound),
            repr(plan.rest),
            repr(served.capability.findings),
            repr(plan.binds),
        ]
        shown.append(repr([call.operation.path for call in (plan.called["up.op"], plan.called["up.down"])]))
        answers = [await served.http.post("/x"), await served.http.post("/x?id=..")]
    async with serving(
        document(api("http://127.0.0.1:1/{{env.K}}", {}), face({}), binds=binds("K")), {"K": SECRET}
    ) as off:
        answers.append(await off.http.get("/x"))
        with pytest.raises(AppError) as failed:
            await off.capability.call("up.op")
        shown.append(str(failed.value) + repr(failed.value))
    assert [a.status_code for a in answers] == [400, 400, 502]
    captured = capsys.readouterr()
    for text in (*shown, *(a.text for a in answers), captured.out, captured.err, caplog.text):
        assert SECRET not in text


@pytest.mark.parametrize("location", ["file://", "file:///a%00b", "vault://x"])
def test_a_location_that_names_no_file_leaves_its_variables_without_a_value(location: str) -> None:
    declared = [{"namespace": "v", "location": location, "keys": {"A": "a"}}]
    capability = loaded(document(api("http://up.invalid", {}), face({}), binds=declared))
    assert [f.rule for f in capability.plan.findings] == ["bind-unresolved"]
