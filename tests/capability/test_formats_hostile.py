"""Bodies that are meant to hurt: every decoder answers soon, within its limits, with a tree or a clear refusal."""

import resource
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolcrib.capability.formats import open_format
from toolcrib.capability.formats.limits import MAX_DEPTH
from toolcrib.errors import Upstream

NAMES = ["json", "xml", "yaml", "csv", "tsv", "psv", "html", "markdown", "binary"]
SOON_S = 15.0  # far above what any of these takes, far below what quadratic time would take


def tree_or_refusal(name, body, charset=None):
    """The tree, which can be written, or None if the body was refused as it should be."""
    try:
        tree = open_format(name, None, ()).decode(body, charset)
    except Upstream as e:
        refused = e
    else:
        orjson.dumps(tree)
        return tree
    assert refused.code == "upstream.undecodable"
    assert len(refused.message) < 400
    return None


@pytest.mark.parametrize("name", NAMES)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_tree_that_can_be_written_or_a_refusal(name, body) -> None:
    tree_or_refusal(name, body)


PIECES = ["<a>", "</a>", "<table>", "<tr>", "<td>", "<th>", "x", "&amp;", "&#xD800;", "&e;", "<![CDATA[", "]]>", "<!--", "<!DOCTYPE a>", "[", "]", "{", "}", ":", ": ", "- ", "&a ", "*a", "<<: ", "? ", "!!int ", "!!float ", '"', "'", "\\ud800", ",", "|", "\t", "\n", "\r", "  ", "# ", "```\n", "---\n", "|-|\n", "1e999", ".nan", "0x", "-", "\0", "\ufeff", "é", "\u2028", "%TAG ! x\n"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@given(st.lists(st.sampled_from(PIECES), max_size=30), st.sampled_from([None, "utf-8", "utf-16", "latin-1"]))
def test_any_jumble_of_syntax_gives_a_tree_that_can_be_written_or_a_refusal(name, pieces, charset) -> None:
    tree_or_refusal(name, "".join(pieces).encode(), charset)


DEEP = {
    "json": ("[", "]"),
    "xml": ("<a>", "</a>"),
    "yaml": ("[", "]"),
}


@pytest.mark.parametrize("name", DEEP)
def test_the_depth_of_a_tree_is_limited(name) -> None:
    start, end = DEEP[name]
    tree = tree_or_refusal(name, (start * MAX_DEPTH + end * MAX_DEPTH).encode())
    assert tree is not None
    for levels in (MAX_DEPTH + 1, 500, 100_000):
        body = (start * levels + end * levels).encode()
        assert tree_or_refusal(name, body) is None


@pytest.mark.parametrize(
    "body",
    [
        '<!DOCTYPE r [<!ENTITY a "x"><!ENTITY b "&a;&a;">]><r>&b;</r>',
        '<!DOCTYPE r [<!ENTITY f SYSTEM "file:///etc/passwd">]><r>&f;</r>',
        '<!DOCTYPE r SYSTEM "http://127.0.0.1:1/x.dtd"><r>&f;</r>',
        '<!DOCTYPE r [<!ATTLIST r a CDATA "default">]><r/>',
        '<!DOCTYPE r [<!ENTITY % p SYSTEM "file:///etc/passwd">%p;]><r/>',
    ],
)
def test_xml_entities_and_declarations_are_refused(body) -> None:
    assert tree_or_refusal("xml", body.encode()) is None


def test_an_external_document_type_is_never_fetched() -> None:
    assert tree_or_refusal("xml", b'<!DOCTYPE r SYSTEM "http://127.0.0.1:1/x.dtd"><r><a>1</a></r>') == {"a": "1"}


def bomb(levels: int) -> bytes:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines).encode()


def test_an_alias_bomb_is_refused_and_ordinary_aliases_are_not() -> None:
    assert tree_or_refusal("yaml", bomb(20)) is None
    assert tree_or_refusal("yaml", bomb(4)) is not None
    long = b"a: &a " + b"y" * 1_000_000 + b"\nb: [" + b"*a," * 1000 + b"]"
    assert tree_or_refusal("yaml", long) is None


def test_aliases_that_add_up_to_depth_are_refused() -> None:
    lines = [b"a0: &a0 [x]"] + [b"a%d: &a%d [*a%d]" % (i, i, i - 1) for i in range(1, 300)]
    assert tree_or_refusal("yaml", b"\n".join(lines)) is None


def test_front_matter_has_the_limits_of_yaml() -> None:
    assert tree_or_refusal("markdown", b"---\n" + bomb(20) + b"\n---\n# a\n") is None


LONG = 1_000_000
BIG = [
    ("json", '{"a":' * (LONG // 5)),
    ("xml", "<a>" + "t<b/>" * (LONG // 5) + "</a>"),
    ("xml", "<a>" + "\n" * LONG + "</a>"),
    ("xml", "<a " + " ".join(f'a{i}="1"' for i in range(LONG // 10)) + "/>"),
    ("yaml", "%TAG !a! b\n" * (LONG // 11)),
    ("yaml", "? " * (LONG // 2)),
    ("yaml", "&a {" + ",".join(f"k{i}: 1" for i in range(LONG // 10)) + "}"),
    ("csv", '"' * LONG),
    ("csv", "a," * (LONG // 10) + "\n" + "b\n" * (LONG // 10)),
    ("html", "<" * LONG),
    ("html", "<table><tr><th>a<tr><td>" * (LONG // 100)),
    ("html", "<table><tr>" + "<th>a" * (LONG // 50) + "<tr><td>x" * (LONG // 50)),
    ("html", "<div>" * 12_000),
    ("html", "<p " + " ".join(f"a{i}=1" for i in range(9000)) + ">"),
    ("markdown", "![" * 16_000),
    ("markdown", "> " * LONG),
    ("markdown", "- " * (LONG // 2)),
]


@pytest.mark.parametrize(("name", "text"), BIG, ids=lambda value: value[:12])
def test_a_big_body_takes_no_quadratic_time(name, text) -> None:
    started = time.monotonic()
    tree_or_refusal(name, text.encode())
    assert time.monotonic() - started < SOON_S


def test_a_short_page_that_stands_for_gigabytes_ends_in_the_child_process() -> None:
    """Each paragraph opens anew all elements left open before it: 29 KB are two million elements."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    page = "<p>" + "".join(f"<b id={i}>" for i in range(2000)) + "<p>x" * 2000
    assert tree_or_refusal("html", page.encode()) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_a_table_with_too_many_rows_is_refused() -> None:
    assert tree_or_refusal("csv", b"a\n" + b"b\n" * 1_000_001) is None
