"""One text out of a capability file and its imports: it means what the files meant."""

from pathlib import Path

import pytest

from toolcrib.capability.bundle import bundle
from toolcrib.capability.capability import Capability
from toolcrib.capability.findings import CapabilityInvalid

EXAMPLES = Path(__file__).parents[2] / "examples"
IMPORTING = sorted(p for p in EXAMPLES.glob("*.yaml") if "import:" in p.read_text("utf-8"))
STORE = """\
binds:
  store-env: {keys: {STORE_KEY: store-key}}
consumes:
  store:
    type: http
    baseUri: https://store.example
    inputParameters:
      - {name: X-Key, in: header, value: "{{STORE_KEY}}"}
      - {name: X-Yes, in: header, value: "yes"}
      - {name: X-Text, in: header, value: "1.10"}
      - {name: X-Lines, in: query, value: "a\\nb: c"}
    resources:
      - {name: things, path: /things, operations: [{name: get-things, method: GET}]}
"""


@pytest.mark.parametrize("path", IMPORTING, ids=lambda path: path.stem)
def test_the_examples_mean_the_same(path: Path) -> None:
    text, imported = bundle(path)
    assert imported
    files = Capability.load(path, environ={})
    whole = Capability.load(path, text=text, environ={})
    assert whole.document.files == ()
    assert {n: t.input_schema for n, t in whole.plan.tools.items()} == {
        n: t.input_schema for n, t in files.plan.tools.items()
    }
    assert sorted(whole.plan.called) == sorted(files.plan.called)
    assert {bind.namespace for bind in whole.document.binds} == {bind.namespace for bind in files.document.binds}


def test_a_file_without_imports_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"# a remark\n{STORE}")
    assert bundle(file) == (file.read_text(), ())


@pytest.mark.parametrize("shape", ["list", "map"])
def test_lists_and_maps_take_imports_in(tmp_path: Path, shape: str) -> None:
    (tmp_path / "store.yaml").write_text(STORE)
    entry = "{import: store, from: ./store.yaml, as: shop}"
    consumes = f"[{entry}]" if shape == "list" else f"{{any: {entry}}}"
    file = tmp_path / "a.yaml"
    file.write_text(f"naftiko: 1.0.0-alpha2\ncapability:\n  consumes: {consumes}\n")
    text, imported = bundle(file)
    assert imported == (str(tmp_path / "store.yaml"),)
    whole = Capability.load(file, text=text, environ={"store-key": "k"}, files=False).document
    first = Capability.load(file, environ={"store-key": "k"}).document
    assert [api.namespace for api in whole.consumes] == ["shop"]
    assert [(i.name, i.value) for i in whole.consumes[0].inputs] == [
        (i.name, i.value) for i in first.consumes[0].inputs
    ]
    assert [(bind.namespace, bind.keys) for bind in whole.binds] == [("store-env", {"STORE_KEY": "store-key"})]


@pytest.mark.parametrize("location", ["./gone.yaml", "../outside.yaml", "/etc/passwd"])
def test_an_import_that_cannot_be_read_is_refused(tmp_path: Path, location: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"capability:\n  consumes: [{{import: x, location: {location}}}]\n")
    with pytest.raises(CapabilityInvalid):
        bundle(file)
