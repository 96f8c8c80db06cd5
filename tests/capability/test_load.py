"""A capability file becomes a document: lenient where it means something, refused where nothing can be served."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from toolcrib.capability.findings import CapabilityInvalid, Finding
from toolcrib.capability.lint import lint
from toolcrib.capability.load import Loaded, load
from toolcrib.capability.sarif import sarif
from toolcrib.capability.spec import (
    ABSENT,
    Consumed,
    ControlServer,
    McpServer,
    RestServer,
    SkillServer,
    StepMapping,
)

HEAD = "naftiko: 1.0.0-alpha2\n"


def read(text: str, **options: Any) -> Loaded:
    return load("cap.yaml", text=textwrap.dedent(text), **options)


def rules(loaded: Loaded) -> list[str]:
    return [finding.rule for finding in loaded.findings]


def refusal(text: str, **options: Any) -> Finding:
    with pytest.raises(CapabilityInvalid) as raised:
        read(text, **options)
    assert raised.value.findings[0].severity == "error"
    return raised.value.findings[0]


def api(fields: str = "", operation: str = "") -> Consumed:
    return loaded_api(fields, operation).document.consumes[0]


def loaded_api(fields: str = "", operation: str = "") -> Loaded:
    text = f"{HEAD}consumes:\n- type: http\n  namespace: a\n  baseUri: http://h\n{textwrap.indent(textwrap.dedent(fields), '  ')}\n"
    text += "  resources:\n  - name: r\n    path: /r\n    operations:\n    - name: op\n      method: POST\n"
    return read(text + textwrap.indent(textwrap.dedent(operation), "      "))


def rest(operation: str) -> Loaded:
    text = f"{HEAD}capability:\n  exposes:\n  - type: rest\n    namespace: s\n    port: 1\n    resources:\n"
    text += "    - path: /r\n      operations:\n      - name: op\n        method: GET\n"
    return read(text + textwrap.indent(textwrap.dedent(operation), "        "))


def rest_action(operation: str) -> Any:
    server = rest(operation).document.servers[0]
    assert isinstance(server, RestServer)
    return server.resources[0].operations[0].action


COMPLETE = """
    naftiko: 1.0.0-alpha2
    info:
      label: Shelf
      description: Books on a shelf
      tags: [books]
      created: 2026-01-01
    binds:
    - namespace: env
      keys: {SHELF_KEY: SHELF_API_KEY}
    capability:
      binds:
      - namespace: file
        location: file:///./secrets.yaml
        keys: {OTHER: other-key}
      consumes:
      - type: http
        namespace: shelf
        baseUri: https://shelf.test/v1
        description: The shelf
        inputParameters:
        - {name: X-Version, in: header, value: "2"}
        authentication: {type: bearer, token: "{{env.SHELF_KEY}}"}
        x-toolcrib: {retries: 2}
        resources:
        - name: books
          path: /books/{id}
          inputParameters:
          - {name: id, in: path, type: string, required: true}
          operations:
          - name: get-book
            outputRawFormat: XML
            outputSchema: s
            outputParameters:
            - {name: title, type: string, value: $.title}
          - name: put-book
            method: put
            body: {type: json, data: {title: "{{title}}"}}
      exposes:
      - type: rest
        namespace: shelf-rest
        port: 8080
        address: 0.0.0.0
        authentication: {type: apikey, key: X-Key, value: "{{SHELF_KEY}}"}
        inputParameters:
        - {name: trace, in: header}
        resources:
        - path: /books/{id}
          name: book
          description: A book
          forward: {targetNamespace: shelf, trustedHeaders: [X-A]}
          operations:
          - method: GET
            name: get-book
            call: shelf.get-book
            with: {id: rest.id, depth: 3}
            outputParameters:
            - type: object
              properties:
                title: {type: string, mapping: $.title, maxLength: 10}
                tags: {type: array, mapping: $.tags, items: {type: string}}
      - type: mcp
        namespace: shelf-mcp
        port: 9090
        description: Shelf tools
        tools:
        - name: find
          label: Find
          description: Find a book
          hints: {readOnly: true, destructiveHint: false}
          inputParameters:
          - {name: author, type: string, description: Who, required: false, enum: [a, b], default: a}
          steps:
          - {name: one, type: call, call: shelf.get-book, with: {id: "{{author}}"}}
          - {name: two, type: lookup, index: one, match: id, lookupValue: $.one.id, outputParameters: [title, {name: tags}]}
          - {name: three, type: script, language: python, location: "file:///./scripts", file: s.py, dependencies: [d.py]}
          mappings:
          - {targetName: book.title, value: $.two.title}
          outputParameters:
          - {name: book, type: object}
        - ref: books.summary
        resources:
        - {name: doc, uri: "docs://{id}", mimeType: text/plain, call: shelf.get-book, with: {id: "{id}"}}
        - {name: files, uri: "docs://all", location: "file:///./docs"}
        prompts:
        - name: ask
          arguments: [{name: topic, required: true}, {name: tone}]
          template: [{role: user, content: "About {{topic}}"}]
      - type: skill
        namespace: shelf-skills
        port: 3003
        skills:
        - name: reading
          description: Read
          license: MIT
          allowed-tools: find
          location: file:///./skill
          tools:
          - {name: find, description: f, from: {sourceNamespace: shelf-mcp, action: find}}
          - {name: how, description: h, instruction: how.md}
      - type: control
        port: 9999
        management: {health: true, scripting: {timeout: 5}}
        observability: {enabled: false}
      aggregates:
      - label: Books
        namespace: books
        functions:
        - name: summary
          description: Sum up
          semantics: {safe: true, idempotent: true}
          inputParameters: [{name: id, type: string}]
          call: shelf.get-book
"""


def test_a_complete_file_is_read_without_findings() -> None:
    loaded = read(COMPLETE)
    assert loaded.findings == ()
    document = loaded.document
    assert (document.version, document.label, document.tags) == ("1.0.0-alpha2", "Shelf", ("books",))
    assert document.info["created"] == "2026-01-01"
    assert [(bind.namespace, bind.location, dict(bind.keys)) for bind in document.binds] == [
        ("env", None, {"SHELF_KEY": "SHELF_API_KEY"}),
        ("file", "file:///./secrets.yaml", {"OTHER": "other-key"}),
    ]
    consumed = document.consumes[0]
    assert (consumed.base_uri, consumed.extension) == ("https://shelf.test/v1", {"retries": 2})
    assert consumed.inputs[0].value == "2"
    get, put = consumed.resources[0].operations
    assert (get.method, get.raw_format, get.outputs[0].mapping, get.outputs[0].value) == (
        "GET",
        "XML",
        "$.title",
        ABSENT,
    )
    assert put.method == "PUT"
    assert put.body is not None
    assert (put.body.type, put.body.data) == ("json", {"title": "{{title}}"})


def test_the_servers_of_a_complete_file_are_read() -> None:
    rest, mcp, skill, control = read(COMPLETE).document.servers
    assert isinstance(rest, RestServer)
    resource = rest.resources[0]
    assert resource.forward is not None
    assert resource.forward.trusted_headers == ("X-A",)
    action = resource.operations[0].action
    assert [(entry.key, entry.value) for entry in action.with_] == [("id", "rest.id"), ("depth", 3)]
    title, tags = (output for _, output in action.outputs[0].properties)
    assert title.max_length == 10
    assert tags.items is not None
    assert isinstance(mcp, McpServer)
    find, summary = mcp.tools
    assert dict(find.hints) == {"readOnly": True, "destructive": False}
    assert (find.inputs[0].enum, find.inputs[0].default, find.inputs[0].required) == (("a", "b"), "a", False)
    assert [step.type for step in find.action.steps] == ["call", "lookup", "script"]
    assert find.action.steps[1].output_names == ("title", "tags")
    assert isinstance(find.action.mappings[0], StepMapping)
    assert (summary.name, summary.action.ref) == ("summary", "books.summary")
    assert [resource.location for resource in mcp.resources] == [None, "file:///./docs"]
    assert [(argument.name, argument.required) for argument in mcp.prompts[0].arguments] == [
        ("topic", True),
        ("tone", False),
    ]
    assert mcp.prompts[0].template == (("user", "About {{topic}}"),)
    assert isinstance(skill, SkillServer)
    assert skill.skills[0].metadata == {"license": "MIT", "allowed-tools": "find"}
    assert isinstance(control, ControlServer)
    assert (control.namespace, control.management["scripting"]) == ("control", {"timeout": 5})


def test_records_know_their_places() -> None:
    lines = textwrap.dedent(COMPLETE).splitlines()
    document = read(COMPLETE).document
    rest = document.servers[0]
    assert isinstance(rest, RestServer)
    entry = rest.resources[0].operations[0].action.with_[1]
    for at, text in ((document.consumes[0].at, "type: http"), (rest.at, "type: rest"), (entry.at, "depth: 3}")):
        assert lines[at.line - 1][at.column - 1 :].startswith(text)


BETA = """
    ikanos: 1.0.0-beta5
    info: {display: Shelf, version: 1.0.0}
    capability:
      consumes:
      - type: http
        namespace: shelf
        baseUri: https://shelf.test
        resources:
          books:
            path: /books/{id}
            operations:
              get-book:
                method: GET
                inputParameters:
                  id: {in: path}
                outputParameters:
                  title: {type: string, value: $.title}
              list-books:
      exposes:
      - type: mcp
        namespace: tools
        port: 1
        tools:
          find:
            display: Find
            description: d
            inputParameters:
              id: {type: string}
            steps:
              one: {type: call, call: shelf.get-book, with: {id: tools.id}}
              two: {type: lookup, index: one, match: id, lookupValue: $.one.id, outputParameters: [title]}
            mappings:
            - {target: title, value: $.two.title}
            outputParameters:
              list: {type: array, items: {title: {type: string}, type: {type: string}}}
        prompts:
          ask:
            arguments: {topic: {required: true}}
            template: [{role: user, content: "{{topic}}"}]
      - type: skill
        namespace: skills
        port: 2
        skills:
          reading:
            description: d
            tools:
              find: {description: f, from: {sourceNamespace: tools, action: find}}
      aggregates:
        books:
          display: Books
          flows:
            summary: {description: d, call: shelf.get-book}
"""


def test_keyed_maps_and_new_spellings_mean_the_same() -> None:
    loaded = read(BETA)
    assert loaded.findings == ()
    document = loaded.document
    assert (document.version, document.label) == ("1.0.0-beta5", "Shelf")
    operations = document.consumes[0].resources[0].operations
    assert [operation.name for operation in operations] == ["get-book", "list-books"]
    assert (operations[0].inputs[0].name, operations[0].inputs[0].location) == ("id", "path")
    assert (operations[0].outputs[0].name, operations[0].outputs[0].mapping) == ("title", "$.title")
    mcp, skill = document.servers
    assert isinstance(mcp, McpServer)
    tool = mcp.tools[0]
    assert (tool.name, tool.label, [step.name for step in tool.action.steps]) == ("find", "Find", ["one", "two"])
    assert tool.action.mappings[0].target == "title"
    items = tool.action.outputs[0].items
    assert items is not None
    assert (items.type, [name for name, _ in items.properties]) == ("object", ["title", "type"])
    assert mcp.prompts[0].arguments[0].name == "topic"
    assert isinstance(skill, SkillServer)
    assert skill.skills[0].tools[0].name == "find"
    assert (document.aggregates[0].namespace, document.aggregates[0].label) == ("books", "Books")
    assert document.aggregates[0].functions[0].name == "summary"


@pytest.mark.parametrize("version", ["1.0.0-alpha1", "1.0.0-alpha2", "1.0.0-alpha3", "1.0.0-beta1", "1.0.0-beta5"])
@pytest.mark.parametrize("key", ["naftiko", "ikanos"])
def test_known_versions_are_accepted(key: str, version: str) -> None:
    assert rules(read(f"{key}: {version}\nconsumes: [{{namespace: a, baseUri: ''}}]")) == []


def test_an_unknown_or_missing_version_is_a_warning() -> None:
    assert rules(read("naftiko: '0.5'\nconsumes: [{namespace: a, baseUri: ''}]")) == ["version-unknown"]
    assert rules(read("consumes: [{namespace: a, baseUri: ''}]")) == ["version-missing"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("- a", "not-a-map"),
        ("just text", "not-a-map"),
        ("naftiko:\n  schema: x\ninfo: {}", "version-old"),
        ("naftiko: 1.0.0-alpha2\ninfo: {label: x}", "capability-missing"),
        ("naftiko: 1.0.0-alpha2\ncapability: [1]", "wrong-type"),
        ("naftiko: 1.0.0-alpha2\ncapability: {}", "nothing-to-serve"),
        ("naftiko: 1.0.0-alpha2\ncapability: {exposes: [{type: grpc}]}", "nothing-to-serve"),
        ("a: b: c", "yaml-broken"),
    ],
)
def test_a_file_with_nothing_to_serve_is_refused(text: str, rule: str) -> None:
    assert refusal(text).rule == rule


def test_the_refusal_holds_what_was_found_before() -> None:
    with pytest.raises(CapabilityInvalid) as raised:
        read("naftiko: 1.0.0-alpha2\ncapability: {exposes: [{type: grpc}]}")
    assert [finding.rule for finding in raised.value.findings] == ["nothing-to-serve", "exposes-type"]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapabilityInvalid) as raised:
        load(tmp_path / "none.yaml")
    assert raised.value.findings[0].rule == "file-unreadable"


def test_unknown_keys_are_warned_about_with_a_guess() -> None:
    loaded = loaded_api("baseURI: x\nx-mine: 1", "inputParameter: []")
    assert [(finding.rule, finding.severity) for finding in loaded.findings] == [("unknown-key", "warning")] * 2
    assert "baseUri" in loaded.findings[0].mend or "baseUri" in loaded.findings[1].mend


def test_many_unknown_keys_give_limited_findings() -> None:
    keys = "".join(f"k{number}: 1\n" for number in range(1000))
    assert len(loaded_api(keys).findings) == 200


def test_types_are_coerced_where_the_meaning_is_clear() -> None:
    loaded = read(
        """
        naftiko: 1.0.0-alpha2
        info: {label: 1.10, tags: one}
        capability:
          exposes:
          - type: REST
            namespace: s
            port: "8080"
            resources:
            - path: /r
              forward: {targetNamespace: a, trustedHeaders: Authorization}
              operations:
              - {method: get, inputParameters: [{name: 7, in: QUERY, required: "yes", type: int}]}
        """
    )
    assert sorted(rules(loaded)) == ["type-coerced"] * 4 + ["type-unknown"]
    server = loaded.document.servers[0]
    assert isinstance(server, RestServer)
    assert server.port == 8080
    parameter = server.resources[0].operations[0].inputs[0]
    assert (parameter.name, parameter.location, parameter.required, parameter.type) == ("7", "query", True, "integer")
    assert loaded.document.label == "1.10"
    assert loaded.document.tags == ("one",)


@pytest.mark.parametrize("port", ["{{PORT}}x", "99999", "-1", "true", "[1]", "8080.5"])
def test_a_port_that_is_none_is_an_error_at_its_place(port: str) -> None:
    loaded = read(
        f"{HEAD}capability:\n  exposes:\n  - type: mcp\n    namespace: s\n    port: {json.dumps(port) if '{' in port else port}\n"
    )
    assert [(finding.rule, finding.severity, finding.at.line) for finding in loaded.findings] == [
        ("wrong-type", "error", 6)
    ]
    assert loaded.document.servers[0].port is None


def test_a_broken_operation_is_dropped_and_the_others_stay() -> None:
    loaded = read(
        """
        naftiko: 1.0.0-alpha2
        capability:
          consumes:
          - namespace: a
            baseUri: http://h
            resources:
            - path: /x
              operations:
              - {name: good}
              - {method: GET}
              - {name: bad, method: FETCH}
              - {name: worse, body: {type: yaml, data: 1}}
              - text
          - {baseUri: http://h}
          - {namespace: g, type: grpc}
          exposes:
          - type: rest
            namespace: s
            resources:
            - path: /x
              operations:
              - {method: GET, call: a.good}
              - {method: PUT, call: [a]}
              - {method: POST, with: 5}
              - {method: DELETE, steps: [{type: dance}]}
              - {method: TRACE}
            - {operations: []}
          - type: mcp
            namespace: m
            tools:
            - {name: good, call: a.good}
            - {call: a.good}
            - {name: bad, ref: [x]}
        """
    )
    errors = [finding for finding in loaded.findings if finding.severity == "error"]
    assert len(errors) == 13
    document = loaded.document
    assert [operation.name for operation in document.consumes[0].resources[0].operations] == ["good"]
    assert len(document.consumes) == 1
    rest, mcp = document.servers
    assert isinstance(rest, RestServer)
    assert [operation.method for operation in rest.resources[0].operations] == ["GET"]
    assert isinstance(mcp, McpServer)
    assert [tool.name for tool in mcp.tools] == ["good"]


def test_an_input_without_a_name_is_dropped() -> None:
    loaded = loaded_api(operation="inputParameters:\n- {in: query}\n- {name: a, in: nowhere}\n- b")
    inputs = loaded.document.consumes[0].resources[0].operations[0].inputs
    assert [(parameter.name, parameter.location) for parameter in inputs] == [("a", None), ("b", None)]
    assert sorted(rules(loaded)) == ["input-place-unknown", "name-missing", "type-coerced"]


def test_shared_inputs_are_limited_in_number() -> None:
    entries = "".join(f"- {{name: a{number}, in: query}}\n" for number in range(150))
    loaded = loaded_api(f"inputParameters:\n{entries}")
    assert len(loaded.document.consumes[0].inputs) == 100
    assert rules(loaded) == ["inputs-many"]


def test_template_is_the_older_name_of_value() -> None:
    inputs = api("inputParameters: [{name: a, in: query, template: '{{x}}'}]").inputs
    assert inputs[0].value == "{{x}}"


@pytest.mark.parametrize(
    ("authentication", "rule"),
    [
        ("", "authentication-broken"),
        ("secret", "wrong-type"),
        ("{token: x}", "authentication-unknown"),
        ("{type: kerberos}", "authentication-unknown"),
        ("{type: bearer}", "authentication-broken"),
        ("{type: bearer, token: [a]}", "wrong-type"),
        ("{type: apikey, key: X}", "authentication-broken"),
        ("{type: [basic]}", "wrong-type"),
    ],
)
def test_broken_authentication_drops_what_it_protects(authentication: str, rule: str) -> None:
    text = f"{HEAD}capability:\n  exposes:\n  - type: mcp\n    namespace: s\n    authentication: {authentication}\n"
    with pytest.raises(CapabilityInvalid) as raised:
        read(text)
    assert [finding.rule for finding in raised.value.findings] == ["nothing-to-serve", rule]


def test_authentication_fields_are_kept_as_written() -> None:
    authentication = api("authentication: {type: apiKey, key: X, value: 007.50}").authentication
    assert authentication is not None
    assert (authentication.type, dict(authentication.fields)) == ("apikey", {"key": "X", "value": "007.50"})
    assert api("authentication: {type: none}").authentication is None
    basic = api("authentication: {type: basic, username: u, password: ''}").authentication
    assert basic is not None


@pytest.mark.parametrize(
    ("body", "type_", "data"),
    [
        ("body: '{\"a\": {{a}}}'", "raw", '{"a": {{a}}}'),
        ("body: {type: json, data: [1, {a: '{{a}}'}]}", "json", [1, {"a": "{{a}}"}]),
        ("body: {type: json}", "json", ABSENT),
        ("body: {type: JSON, data: '{}'}", "json", "{}"),
        ("body: {type: text, data: hi}", "text", "hi"),
        ("body: {type: xml, data: <a/>}", "xml", "<a/>"),
        ("body: {type: sparql, data: ASK}", "sparql", "ASK"),
        ("body: {type: formUrlEncoded, data: {a: 1}}", "formUrlEncoded", {"a": 1}),
        ("body: {type: multipartForm, data: [{name: f, value: v}]}", "multipartForm", [{"name": "f", "value": "v"}]),
        ("body: {title: '{{t}}'}", "json", {"title": "{{t}}"}),
        ("body: [1]", "json", [1]),
    ],
)
def test_every_form_of_a_body_is_read(body: str, type_: str, data: object) -> None:
    found = api(operation=body).resources[0].operations[0].body
    assert found is not None
    assert (found.type, found.data) == (type_, data)


def test_a_value_that_is_a_path_becomes_the_mapping_of_a_named_output() -> None:
    outputs = rest_action(
        """
        call: a.b
        outputParameters:
        - {name: a, type: string, value: $.id}
        - {name: b, type: string, value: $.id, mapping: $.x}
        - {type: string, value: $.id}
        - {type: string, value: $5}
        - {name: c, value: 5}
        - {type: object, properties: {d: $.d, e: {value: $.e}, f: fixed}}
        """
    ).outputs
    assert [(output.mapping, output.value) for output in outputs[:5]] == [
        ("$.id", ABSENT),
        ("$.x", "$.id"),
        ("$.id", ABSENT),
        (None, "$5"),
        (None, 5),
    ]
    assert [(name, output.mapping, output.value) for name, output in outputs[5].properties] == [
        ("d", "$.d", ABSENT),
        ("e", "$.e", ABSENT),
        ("f", None, "fixed"),
    ]


@pytest.mark.parametrize(
    ("items", "type_", "properties"),
    [
        ("{type: string, mapping: $.a}", "string", []),
        ("[{type: number}]", "number", []),
        ("[{name: a, type: string}]", "string", []),
        ("[{name: a, type: string}, {name: b, type: number}]", "object", ["a", "b"]),
        ("{a: {type: string}}", "object", ["a"]),
        ("{properties: {a: {type: string}}}", None, ["a"]),
    ],
)
def test_items_may_be_one_or_several(items: str, type_: str | None, properties: list[str]) -> None:
    found = rest_action(f"call: a.b\noutputParameters: [{{type: array, items: {items}}}]").outputs[0].items
    assert (found.type, [name for name, _ in found.properties]) == (type_, properties)


def test_of_several_actions_one_is_taken() -> None:
    action = rest_action("call: a.b\nsteps: [{type: call, name: s, call: a.b}]")
    assert (action.call, action.steps) == ("a.b", ())


def test_a_step_without_a_type_or_name_is_understood() -> None:
    loaded = rest("steps: [{call: a.b}, {index: step-1, match: id, lookupValue: $.x, outputParameters: id}]")
    server = loaded.document.servers[0]
    assert isinstance(server, RestServer)
    steps = server.resources[0].operations[0].action.steps
    assert [(step.name, step.type) for step in steps] == [("step-1", "call"), ("step-2", "lookup")]


@pytest.mark.parametrize(
    "step",
    ["{type: call, name: a}", "{type: lookup, name: a, index: b}", "{type: script, name: a}", "{name: a}", "a"],
)
def test_a_step_that_lacks_what_it_needs_drops_its_operation(step: str) -> None:
    loaded = rest(f"steps: [{step}]")
    server = loaded.document.servers[0]
    assert isinstance(server, RestServer)
    assert server.resources[0].operations == ()


FUNCTIONS = """
    naftiko: 1.0.0-alpha2
    capability:
      exposes:
      - type: mcp
        namespace: m
        tools: [{{name: t, ref: {ref}}}]
      aggregates:
      - namespace: g
        functions: [{functions}]
"""


def test_references_to_functions_are_checked() -> None:
    assert read(FUNCTIONS.format(ref="g.f", functions="{name: f, call: a.b}")).findings == ()
    assert refusal(FUNCTIONS.format(ref="g.x", functions="{name: f, call: a.b}")).rule == "ref-unknown"
    both = "{name: f, call: a.b}, {name: f, call: a.c}"
    assert refusal(FUNCTIONS.format(ref="g.f", functions=both)).rule == "ref-duplicate"


def test_what_refers_to_a_dropped_function_is_dropped() -> None:
    loaded = read(FUNCTIONS.format(ref="g.f", functions="{name: f, call: [a]}"))
    assert rules(loaded) == ["wrong-type", "target-dropped"]
    server = loaded.document.servers[0]
    assert isinstance(server, McpServer)
    assert server.tools == ()


@pytest.mark.parametrize(
    ("tool", "rule"),
    [
        ("{name: t}", "skill-tool-source"),
        ("{name: t, instruction: a.md, from: {sourceNamespace: m, action: a}}", "skill-tool-source"),
        ("{name: t, instruction: a.md}", "skill-location-missing"),
        ("{name: t, from: {sourceNamespace: nobody, action: a}}", "skill-source-unknown"),
    ],
)
def test_a_skill_tool_without_its_source_is_refused(tool: str, rule: str) -> None:
    text = "{type: mcp, namespace: m}, {type: skill, namespace: s, skills: [{name: k, tools: [" + tool + "]}]}"
    assert refusal(f"{HEAD}capability: {{exposes: [{text}]}}").rule == rule


SHARED = "naftiko: 1.0.0-alpha2\nbinds: [{namespace: e, keys: {K: K}}]\nconsumes: [{namespace: a, baseUri: http://h}]\n"


def importing(tmp_path: Path, location: str, *, section: str = "consumes", name: str = "a", rest: str = "") -> Path:
    path = tmp_path / "caps" / "cap.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{HEAD}capability:\n  {section}:\n  - {{import: {name}, location: '{location}'{rest}}}\n")
    return path


@pytest.mark.parametrize(
    "location",
    [
        "./shared/a.yaml",
        "shared/a.yaml",
        "shared/../shared/a.yaml",
        "file:///./shared/a.yaml",
        "file://./shared/a.yaml",
    ],
)
def test_a_consumed_api_is_imported_with_its_binds(tmp_path: Path, location: str) -> None:
    path = importing(tmp_path, location, rest=", as: b")
    shared = path.parent / "shared" / "a.yaml"
    shared.parent.mkdir()
    shared.write_text(SHARED)
    loaded = load(path)
    assert loaded.findings == ()
    assert loaded.document.consumes[0].namespace == "b"
    assert loaded.document.consumes[0].folder == str(shared.parent.resolve())
    assert loaded.document.consumes[0].at.file.endswith("shared/a.yaml")
    assert [(bind.namespace, bind.folder) for bind in loaded.document.binds] == [("e", str(shared.parent.resolve()))]
    assert loaded.document.files == (str(path), str(shared.resolve()))


def test_an_api_below_capability_is_imported_too(tmp_path: Path) -> None:
    path = importing(tmp_path, "a.yaml")
    (path.parent / "a.yaml").write_text("ikanos: 1.0.0-beta5\ncapability: {consumes: {a: {baseUri: http://h}}}")
    assert load(path).document.consumes[0].namespace == "a"


@pytest.mark.parametrize("section", ["binds", "consumes", "exposes", "aggregates"])
def test_all_four_sections_are_imported(tmp_path: Path, section: str) -> None:
    path = importing(tmp_path, "a.yaml", section=section)
    path.write_text(path.read_text().replace("location", "from"))
    (path.parent / "a.yaml").write_text(
        "ikanos: 1.0.0-beta5\n"
        f"{section}: [{{namespace: a, baseUri: x, keys: {{K: K}}, type: {'mcp' if section == 'exposes' else 'http'}, functions: []}}]"
    )
    document = load(path).document
    found = {
        "binds": document.binds,
        "consumes": document.consumes,
        "exposes": document.servers,
        "aggregates": document.aggregates,
    }[section]
    assert [entry.namespace for entry in found] == ["a"]


@pytest.mark.parametrize("section", ["binds", "exposes", "aggregates"])
def test_a_file_of_one_section_can_be_read_alone(section: str) -> None:
    text = f"ikanos: 1.0.0-beta5\n{section}: [{{namespace: a, keys: {{K: K}}, type: mcp}}]"
    document = read(text).document
    assert len(document.binds) + len(document.servers) + len(document.aggregates) == 1


@pytest.mark.parametrize(
    "location",
    ["../a.yaml", "/etc/passwd", "x/../../a.yaml", "file:///etc/passwd", "https://h/a.yaml", "link.yaml", "up/a.yaml"],
)
def test_an_import_from_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "a.yaml").write_text(SHARED)
    path = importing(tmp_path, location)
    (path.parent / "link.yaml").symlink_to(tmp_path / "a.yaml")
    (path.parent / "up").symlink_to(tmp_path)
    with pytest.raises(CapabilityInvalid) as raised:
        load(path)
    assert raised.value.findings[0].rule == "import-outside"


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (None, "import-missing"),
        ("a: b: c", "yaml-broken"),
        ("naftiko: 1.0.0-alpha2\nconsumes: [{namespace: other, baseUri: x}]", "import-unknown"),
        ("- a", "import-unknown"),
        ("naftiko: 1.0.0-alpha2\nconsumes: [{import: a, location: b.yaml}]", "import-nested"),
        ("naftiko: 1.0.0-alpha2\nconsumes: [{import: a, location: cap.yaml}]", "import-cycle"),
        ("naftiko: 1.0.0-alpha2\nconsumes: [{import: x, as: a, location: a.yaml}]", "import-cycle"),
    ],
)
def test_an_import_that_gives_nothing_is_refused(tmp_path: Path, content: str | None, rule: str) -> None:
    path = importing(tmp_path, "a.yaml")
    if content is not None:
        (path.parent / "a.yaml").write_text(content)
    with pytest.raises(CapabilityInvalid) as raised:
        load(path)
    assert raised.value.findings[0].rule == rule


def test_a_file_that_imports_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapabilityInvalid) as raised:
        load(importing(tmp_path, "./cap.yaml"))
    assert raised.value.findings[0].rule == "import-cycle"


def test_the_number_of_imported_files_is_limited(tmp_path: Path) -> None:
    entries = []
    for number in range(60):
        (tmp_path / f"a{number}.yaml").write_text(SHARED)
        entries.append(f"{{import: a, location: a{number}.yaml, as: b{number}}}")
    path = tmp_path / "cap.yaml"
    path.write_text(f"{HEAD}capability: {{consumes: [{', '.join(entries)}]}}")
    with pytest.raises(CapabilityInvalid) as raised:
        load(path)
    assert raised.value.findings[0].rule == "import-many"


def test_without_files_nothing_that_needs_one_is_left() -> None:
    loaded = read(COMPLETE, allow_files=False)
    assert set(rules(loaded)) == {"file-refused"}
    document = loaded.document
    assert document.files == ()
    _, mcp, skill, _ = document.servers
    assert isinstance(mcp, McpServer)
    assert [tool.name for tool in mcp.tools] == ["summary"]
    assert [resource.name for resource in mcp.resources] == ["doc"]
    assert isinstance(skill, SkillServer)
    assert (skill.skills[0].location, [tool.name for tool in skill.skills[0].tools]) == (None, ["find"])


def test_without_files_imports_are_left_out(tmp_path: Path) -> None:
    path = importing(tmp_path, "a.yaml")
    (path.parent / "a.yaml").write_text(SHARED)
    with pytest.raises(CapabilityInvalid) as raised:
        load(path, text=path.read_text(), allow_files=False)
    assert [finding.rule for finding in raised.value.findings] == ["nothing-to-serve", "file-refused"]


def test_without_files_operations_with_schema_files_are_left_out() -> None:
    text = f"{HEAD}consumes: [{{namespace: a, baseUri: x, resources: [{{path: /, operations: ["
    text += "{name: a, outputRawFormat: Avro, outputSchema: /etc/passwd}, {name: b}]}]}]"
    loaded = read(text, allow_files=False)
    assert [operation.name for operation in loaded.document.consumes[0].resources[0].operations] == ["b"]


def test_the_text_is_taken_instead_of_the_file() -> None:
    assert load("nowhere/cap.yaml", text=COMPLETE.replace("\n    ", "\n")).document.path == "nowhere/cap.yaml"


WORDS = [
    *("naftiko", "ikanos", "info", "capability", "binds", "consumes", "exposes", "aggregates", "namespace", "type"),
    *("baseUri", "resources", "operations", "path", "method", "name", "inputParameters", "outputParameters", "in"),
    *("call", "with", "steps", "mappings", "ref", "tools", "prompts", "skills", "functions", "flows", "keys", "value"),
    *("mapping", "properties", "items", "values", "body", "data", "authentication", "token", "location", "import"),
    *("from", "forward", "hints", "template", "arguments", "port", "label", "description", "instruction", "x-toolcrib"),
]
TEXTS = [
    "1.0.0-alpha2",
    "http",
    "rest",
    "mcp",
    "skill",
    "control",
    "a",
    "a.b",
    "$.x",
    "{{x}}",
    "{{",
    "/a/{b}",
    "bearer",
    "",
    "GET",
]
LEAVES = st.sampled_from(TEXTS) | st.none() | st.booleans() | st.integers(-5, 99999) | st.floats(-1, 1)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=30,
)


def check_any(text: str) -> None:
    try:
        loaded = load("f.yaml", text=text, allow_files=False)
    except CapabilityInvalid as refused:
        sarif(refused.findings)
    else:
        sarif((*loaded.findings, *lint(loaded.document)))


@given(st.dictionaries(st.sampled_from(WORDS[:8]), TREES, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_tree_gives_a_document_or_a_refusal(tree: dict[str, object]) -> None:
    check_any(json.dumps(tree))


def mutated(tree: Any, draw: Any) -> Any:
    """The tree with a value here and there replaced by something else."""
    if draw(st.integers(0, 25)) == 0:
        return draw(TREES)
    if isinstance(tree, dict):
        return {key: mutated(child, draw) for key, child in tree.items() if draw(st.integers(0, 30))}
    if isinstance(tree, list):
        return [mutated(child, draw) for child in tree]
    return tree


@pytest.mark.parametrize("text", [COMPLETE, BETA])
def test_any_damage_to_a_file_gives_a_document_or_a_refusal(text: str) -> None:
    import_tree = _tree(text)

    @given(st.data())
    @settings(max_examples=120, deadline=None)
    def damaged(data: st.DataObject) -> None:
        check_any(json.dumps(mutated(import_tree, data.draw)))

    damaged()


def _tree(text: str) -> Any:
    return yaml.load(textwrap.dedent(text), Loader=yaml.BaseLoader)


def test_an_address_longer_than_servers_take_is_dropped() -> None:
    loaded = read(
        f"{HEAD}consumes: [{{namespace: a, baseUri: 'http://{'h' * 3000}'}}, {{namespace: b, baseUri: http://h}}]"
    )
    assert rules(loaded) == ["address-long"]
    assert [consumed.namespace for consumed in loaded.document.consumes] == ["b"]
