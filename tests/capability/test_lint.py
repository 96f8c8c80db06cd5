"""Each rule finds its fault and says at which place, and finds nothing in a file that is as it should be."""

import textwrap

import jsonschema_rs
import pytest

from toolcrib.capability.findings import Finding
from toolcrib.capability.lint import RULES, description, lint
from toolcrib.capability.load import load
from toolcrib.capability.sarif import sarif

GOOD = textwrap.dedent(
    """
    naftiko: 1.0.0-alpha2
    info: {label: Shelf, description: Books, tags: [books]}
    binds:
    - {namespace: env, keys: {SHELF_KEY: SHELF_KEY, DOOR_KEY: DOOR_KEY}}
    - {namespace: vault, location: "file:///./v.yaml", keys: {OTHER: other}}
    capability:
      consumes:
      - type: http
        namespace: shelf
        baseUri: https://shelf.test/v1
        description: The shelf
        inputParameters:
        - {name: X-Other, in: header, value: "{{vault.OTHER}}"}
        authentication: {type: bearer, token: "{{SHELF_KEY}}"}
        resources:
        - name: book
          path: /books/{id}
          operations:
          - name: get-book
            method: GET
            outputRawFormat: json
            inputParameters:
            - {name: id, in: path}
            - {name: depth, in: query}
          - name: put-book
            method: PUT
            body: {type: json, data: {title: "{{title}}"}}
        - name: key
          path: /fixed
          operations:
          - {name: get-fixed, method: GET}
      exposes:
      - type: rest
        namespace: shelf-rest
        address: localhost
        port: 8080
        resources:
        - path: /books/{id}
          description: A book
          operations:
          - method: GET
            name: get-book
            description: One book
            inputParameters:
            - {name: id, in: path}
            call: shelf.get-book
            with: {id: rest.id, depth: 3}
          - method: PUT
            name: put-book
            description: Change it
            call: shelf.put-book
            with: {title: rest.title}
      - type: mcp
        namespace: shelf-mcp
        port: 9090
        authentication: {type: bearer, token: "{{env.DOOR_KEY}}"}
        tools:
        - name: get-book
          description: One book
          hints: {readOnly: true}
          inputParameters:
          - {name: book, type: string}
          call: shelf.get-book
          with: {id: shelf-mcp.book}
          outputParameters:
          - {type: object, properties: {title: {type: string, mapping: $.title}}}
        - name: both
          description: Steps
          steps:
          - {name: one, type: call, call: shelf.get-book, with: {id: tools.id}}
          - {name: two, type: lookup, index: one, match: id, lookupValue: $.one.id, outputParameters: [title]}
          - {name: three, type: script, language: python, location: "file:///./s", file: s.py}
          mappings:
          - {targetName: title, value: $.two.title}
        - name: sum
          description: Summary
          ref: books.sum
      - type: control
        address: localhost
        port: 9999
      aggregates:
      - namespace: books
        functions:
        - {name: sum, description: Sums up, semantics: {safe: true}, call: shelf.get-fixed}
    """
).lstrip()

# rule, severity, what is replaced, by what, the text at the place of the finding
CASES = [
    ("base-uri-empty", "warning", "https://shelf.test/v1", "''", "type: http"),
    ("base-uri-shape", "error", "https://shelf.test/v1", "shelf.test", "type: http"),
    ("base-uri-shape", "error", "https://shelf.test/v1", "https:///x", "type: http"),
    ("base-uri-shape", "warning", "https://shelf.test/v1", "https://h/v1?a=b", "type: http"),
    ("base-uri-trailing-slash", "warning", "shelf.test/v1", "shelf.test/v1/", "type: http"),
    ("example-host", "note", "shelf.test/v1", "api.example.com/v1", "type: http"),
    ("consumed-path-shape", "warning", "path: /fixed", "path: fixed", "name: key"),
    ("consumed-path-shape", "warning", "path: /fixed", "path: '/#X-Amz-Target=a'", "name: key"),
    ("consumed-path-shape", "warning", "path: /fixed", "path: /fixed?a=b", "name: key"),
    (
        "path-input-not-in-path",
        "warning",
        "{name: id, in: path}\n        - {name: d",
        "{name: no, in: path}\n        - {name: d",
        "{name: no",
    ),
    (
        "exposed-path-input",
        "warning",
        "- {name: id, in: path}\n        call",
        "- {name: no, in: path}\n        call",
        "{name: no",
    ),
    ("namespace-duplicate", "error", "namespace: shelf-mcp", "namespace: shelf-rest", "type: mcp"),
    ("namespace-duplicate", "warning", "namespace: shelf-rest", "namespace: shelf", "type: rest"),
    (
        "operation-duplicate",
        "error",
        "name: put-book\n        method: PUT\n        body",
        "name: get-book\n        method: PUT\n        body",
        "name: get-book\n        method: PUT",
    ),
    ("format-unsupported", "error", "outputRawFormat: json", "outputRawFormat: cbor", "name: get-book"),
    ("format-unsupported", "error", "outputRawFormat: json", "outputRawFormat: avro", "name: get-book"),
    ("format-unsupported", "warning", "outputRawFormat: json", "outputRawFormat: binary", "name: get-book"),
    ("credential-in-file", "warning", '"{{SHELF_KEY}}"', "hunter2", "authentication"),
    ("credential-in-file", "warning", '"{{SHELF_KEY}}"', "SOME_OTHER", "authentication"),
    ("credential-in-file", "warning", "https://shelf.test", "https://me:hunter2@shelf.test", "type: http"),
    (
        "credential-in-file",
        "warning",
        '{name: X-Other, in: header, value: "{{vault.OTHER}}"}',
        "{name: X-Api-Key, in: header, value: hunter2}",
        "{name: X-Api",
    ),
    ("credential-bare-name", "warning", '"{{SHELF_KEY}}"', "SHELF_KEY", "authentication"),
    ("bind-undeclared", "error", '"{{SHELF_KEY}}"', '"{{NO_KEY}}"', "authentication"),
    ("bind-undeclared", "warning", '"{{SHELF_KEY}}"', '"{{env.NO_KEY}}"', "authentication"),
    ("bind-undeclared", "warning", "shelf.test/v1", "shelf.test/{{REGION}}", "type: http"),
    ("bind-unused", "note", "SHELF_KEY: SHELF_KEY,", "SHELF_KEY: SHELF_KEY, MORE: MORE,", "{namespace: env"),
    (
        "oauth2-insecure",
        "error",
        '{type: bearer, token: "{{env.DOOR_KEY}}"}',
        "{type: oauth2, authorizationServerUri: 'http://as.test', resource: 'https://r'}",
        "authentication",
    ),
    (
        "oauth2-fields",
        "note",
        '{type: bearer, token: "{{env.DOOR_KEY}}"}',
        "{type: oauth2, authorizationServerUri: 'https://as.test', resource: 'https://r'}",
        "authentication",
    ),
    (
        "oauth2-fields",
        "error",
        '{type: bearer, token: "{{env.DOOR_KEY}}"}',
        "{type: oauth2, authorizationServerUri: 'https://as', resource: 'https://r', scopes: [a], tokenValidation: introspection}",
        "authentication",
    ),
    (
        "oauth2-fields",
        "error",
        '{type: bearer, token: "{{SHELF_KEY}}"}',
        "{type: oauth2, scopes: [a]}",
        "authentication",
    ),
    ("consumes-description", "note", "    description: The shelf\n", "", "type: http"),
    ("exposed-path-shape", "warning", "- path: /books/{id}", "- path: books/{id}", "path: books"),
    ("exposed-path-shape", "note", "- path: /books/{id}", "- path: /books/{id}/", "path: /books"),
    ("exposed-path-shape", "warning", "- path: /books/{id}", "- path: /books/{id}?a", "path: /books"),
    ("exposed-path-shape", "warning", "- path: /books/{id}", "- path: '/books/{id}/}'", "path: '/books"),
    (
        "path-variable-unused",
        "warning",
        "call: shelf.get-book\n        with: {id: rest.id, depth: 3}",
        "call: shelf.get-fixed",
        "method: GET\n        name: get-book",
    ),
    (
        "route-duplicate",
        "error",
        "method: PUT\n        name: put-book\n        description",
        "method: GET\n        name: put-book\n        description",
        "method: GET\n        name: put",
    ),
    ("tool-duplicate", "error", "name: both", "name: get-book", "name: get-book\n      description: Steps"),
    (
        "call-unresolved",
        "error",
        "call: shelf.get-book\n      with",
        "call: shelf.gone\n      with",
        "name: get-book\n      description: One book\n      hints",
    ),
    (
        "call-unresolved",
        "error",
        "name: one, type: call, call: shelf.get-book",
        "name: one, type: call, call: nobody.get",
        "{name: one",
    ),
    (
        "call-unresolved",
        "warning",
        "call: shelf.put-book\n",
        "call: nobody.op\n        outputParameters: [{name: a, value: x}]\n",
        "method: PUT\n        name: put-book",
    ),
    (
        "call-unresolved",
        "error",
        "      description: A book\n",
        "      description: A book\n      forward: nobody\n",
        "forward",
    ),
    ("action-missing", "warning", "        call: shelf.put-book\n", "", "method: PUT\n        name: put-book"),
    ("with-unknown-input", "warning", "shelf-mcp.book}", "shelf-mcp.author}", "id: shelf-mcp.author"),
    ("with-unknown-key", "warning", "id: rest.id, depth: 3", "id: rest.id, size: 3", "size: 3"),
    ("reference-deprecated", "note", "depth: 3}", "depth: $this.shelf-rest.depth}", "depth: $this"),
    ("step-reference", "error", "index: one", "index: none", "{name: two"),
    ("step-reference", "warning", "name: three", "name: one", "{name: one, type: script"),
    ("step-reference", "warning", "$.two.title}\n    - name: sum", "$.nine.title}\n    - name: sum", "{targetName"),
    ("script-settings", "error", "language: python, ", "", "{name: three"),
    ("script-settings", "error", "language: python", "language: groovy", "{name: three"),
    ("script-settings", "error", 'location: "file:///./s", ', "", "{name: three"),
    (
        "hints-contradict",
        "warning",
        "readOnly: true",
        "readOnly: true, destructive: true",
        "name: get-book\n      description: One book\n      hints",
    ),
    (
        "hints-contradict",
        "warning",
        "call: shelf.get-book\n      with: {id: shelf-mcp.book}",
        "call: shelf.put-book\n      with: {title: shelf-mcp.book}",
        "name: get-book\n      description: One book\n      hints",
    ),
    (
        "hints-contradict",
        "warning",
        "      ref: books.sum",
        "      ref: books.sum\n      hints: {readOnly: false}",
        "name: sum",
    ),
    (
        "hints-contradict",
        "warning",
        "call: shelf.put-book\n        with: {title: rest.title}",
        "ref: books.sum",
        "method: PUT\n        name: put-book",
    ),
    ("port-shared", "error", "port: 9090", "port: 8080", "type: mcp"),
    ("port-shared", "warning", "    port: 9090\n", "", "type: mcp"),
    (
        "control-server",
        "warning",
        "type: control\n    address: localhost",
        "type: control\n    address: 0.0.0.0",
        "type: control",
    ),
    ("control-server", "error", "  aggregates:", "  - {type: control, port: 7}\n  aggregates:", "{type: control"),
    ("server-open", "note", "address: localhost\n    port: 8080", "address: 0.0.0.0\n    port: 8080", "type: rest"),
    ("stdio-settings", "warning", "    port: 9090\n", "    transport: stdio\n", "type: mcp"),
    ("stdio-settings", "note", "    port: 9090\n", "    transport: stdio\n    port: 9090\n", "type: mcp"),
    (
        "output-object-open",
        "note",
        "{type: object, properties: {title: {type: string, mapping: $.title}}}",
        "{type: object, mapping: $.}",
        "{type: object",
    ),
    ("identifier-shape", "note", "name: key", "name: key_1", "name: key_1"),
    ("identifier-shape", "note", "{name: book, type", "{name: the book, type", "{name: the"),
    ("identifier-shape", "note", "namespace: books\n", "namespace: my.books\n", "namespace: my.books"),
    ("description-missing", "warning", "      description: Steps\n", "", "name: both"),
    ("description-missing", "note", "        description: Change it\n", "", "method: PUT\n        name: put"),
    ("info-incomplete", "note", "label: Shelf, ", "", "naftiko"),
    ("info-incomplete", "note", ", tags: [books]", "", "naftiko"),
    ("markdown-unsafe", "error", "description: The shelf", "description: 'a <script>x</script>'", "type: http"),
    ("exposes-empty", "warning", GOOD[GOOD.index("  exposes:") : GOOD.index("  aggregates:")], "", "naftiko"),
]


def found(text: str) -> tuple[Finding, ...]:
    return lint(load("cap.yaml", text=text).document)


def test_a_file_that_is_as_it_should_be_has_no_findings() -> None:
    assert load("cap.yaml", text=GOOD).findings == ()
    assert found(GOOD) == ()


@pytest.mark.parametrize(
    ("rule", "severity", "old", "new", "place"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_a_rule_finds_its_fault_at_its_place(rule: str, severity: str, old: str, new: str, place: str) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if rule == "identifier-shape":
        text = text.replace("books.sum", "my.books.sum") if "my.books" in new else text
    findings = [finding for finding in found(text) if (finding.rule, finding.severity) == (rule, severity)]
    assert len(findings) == 1
    finding = findings[0]
    lines = text.splitlines(keepends=True)
    assert ("".join(lines[finding.at.line - 1 :])[finding.at.column - 1 :]).startswith(place)
    assert finding.message
    assert finding.effect
    assert finding.mend
    assert "hunter2" not in f"{finding.message} {finding.effect} {finding.mend}"


def test_every_rule_has_a_case_and_a_description() -> None:
    assert {case[0] for case in CASES} == RULES.keys()
    assert all((description(rule) or "").endswith(".") for rule in RULES)
    assert description("no-such-rule") is None


def test_a_free_upstream_variable_keeps_the_path_rule_quiet() -> None:
    text = GOOD.replace("with: {id: rest.id, depth: 3}", "with: {depth: 3}").replace(
        "- path: /books/{id}", "- path: /books/{number}"
    )
    assert "path-variable-unused" not in {finding.rule for finding in found(text)}


def test_names_match_whatever_their_dashes_and_case() -> None:
    text = GOOD.replace("{name: id, in: path}\n        - {name: d", "{name: BOOK-ID, in: path}\n        - {name: d")
    text = text.replace("path: /books/{id}\n      op", "path: /books/{book_id}\n      op").replace(
        "with: {id:", "with: {bookId:"
    )
    assert {finding.rule for finding in found(text)} <= {"exposed-path-input"}


def test_defaults_of_the_control_server_serve_scripts() -> None:
    text = GOOD.replace('language: python, location: "file:///./s", ', "")
    text = text.replace(
        "port: 9999", "port: 9999\n    management: {scripting: {defaultLanguage: python, defaultLocation: 'file:///s'}}"
    )
    assert found(text) == ()


def test_a_shared_file_need_not_declare_its_binds() -> None:
    text = "naftiko: 1.0.0-alpha2\nconsumes: [{namespace: a, baseUri: 'http://h', description: d, authentication: {type: bearer, token: '{{K}}'}}]"
    assert {(finding.rule, finding.severity) for finding in found(text)} == {
        ("bind-undeclared", "warning"),
        ("exposes-empty", "warning"),
    }


def test_the_gravest_come_first() -> None:
    text = GOOD.replace("name: key", "name: key_1").replace("port: 9090", "port: 8080").replace("test/v1", "test/v1/")
    assert [finding.severity for finding in found(text)] == ["error", "warning", "note"]


def test_a_rule_is_cut_off_after_many_findings() -> None:
    tools = "\n".join("  - {name: t, call: a.b, description: d}" for _ in range(3000))
    text = f"naftiko: 1.0.0-alpha2\nexposes:\n- type: mcp\n  namespace: m\n  tools:\n{tools}\n"
    assert len([finding for finding in found(text) if finding.rule == "call-unresolved"]) == 500


SARIF = {
    "type": "object",
    "required": ["version", "runs"],
    "properties": {
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "items": {
                "required": ["tool", "results"],
                "properties": {
                    "tool": {
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "required": ["name", "rules"],
                                "properties": {
                                    "rules": {
                                        "uniqueItems": True,
                                        "items": {
                                            "required": ["id", "shortDescription", "help"],
                                            "properties": {
                                                "defaultConfiguration": {
                                                    "properties": {
                                                        "level": {"enum": ["none", "note", "warning", "error"]}
                                                    }
                                                }
                                            },
                                        },
                                    }
                                },
                            }
                        },
                    },
                    "results": {
                        "items": {
                            "required": ["message", "ruleId", "level", "locations"],
                            "properties": {
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "ruleIndex": {"type": "integer", "minimum": 0},
                                "message": {"required": ["text"], "properties": {"text": {"minLength": 1}}},
                                "locations": {
                                    "minItems": 1,
                                    "items": {
                                        "properties": {
                                            "physicalLocation": {
                                                "required": ["artifactLocation", "region"],
                                                "properties": {
                                                    "artifactLocation": {
                                                        "properties": {"uri": {"format": "uri-reference"}}
                                                    },
                                                    "region": {
                                                        "required": ["startLine", "startColumn"],
                                                        "properties": {
                                                            "startLine": {"type": "integer", "minimum": 1},
                                                            "startColumn": {"type": "integer", "minimum": 1},
                                                        },
                                                    },
                                                },
                                            }
                                        }
                                    },
                                },
                            },
                        }
                    },
                },
            },
        },
    },
}


def test_findings_become_sarif() -> None:
    text = (
        GOOD.replace("port: 9090", "port: 8080")
        .replace("test/v1", "test/v1/")
        .replace("name: key", "name: key_1\n      extra: 1")
    )
    loaded = load("a folder/cap.yaml", text=text)
    log = sarif((*loaded.findings, *lint(loaded.document)))
    jsonschema_rs.validator_for(SARIF).validate(log)
    run = log["runs"][0]
    names = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert names == ["base-uri-trailing-slash", "identifier-shape", "port-shared", "unknown-key"]
    assert all(names[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "a%20folder/cap.yaml"
    assert place["region"]["startLine"] > 1


def test_no_findings_are_sarif_too() -> None:
    assert sarif([])["runs"][0]["results"] == []
