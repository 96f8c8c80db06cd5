"""What each `outputRawFormat` makes of an ordinary body: the table of the format, row by row."""

import base64
import csv
import io
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from toolcrib.capability.formats import open_format
from toolcrib.errors import Upstream


def decoded(name, body, schema=None, charset=None):
    return open_format(name, schema, ()).decode(body if isinstance(body, bytes) else body.encode(), charset)


def refusal(name, body, schema=None, charset=None):
    with pytest.raises(Upstream) as caught:
        decoded(name, body, schema, charset)
    assert caught.value.code == "upstream.undecodable"
    assert name.lower() in caught.value.message
    return caught.value.message


def test_no_format_is_json_and_case_does_not_matter() -> None:
    assert open_format(None, None, ()).is_json
    assert open_format(" JSON", None, ()).name == "json"
    assert open_format("Xml", None, ()).name == "xml"
    assert not open_format("XML", None, ()).is_json


def test_an_unknown_format_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'toml' is unknown: use one of json, xml, .*binary"):
        open_format("toml", None, ())


# json


@pytest.mark.parametrize(
    ("body", "tree"),
    [
        (b'{"a":[1,2.5,true,null,"\xc3\xa9"]}', {"a": [1, 2.5, True, None, "é"]}),
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        ('{"a":"é"}'.encode("utf-16"), {"a": "é"}),
        (b"18446744073709551615", 18446744073709551615),
        (b"-9223372036854775808", -9223372036854775808),
        (b"123456789012345678901234567890", 1.2345678901234568e29),
        (b"", None),
        (b" \n", None),
    ],
)
def test_json_bodies(body, tree) -> None:
    assert decoded("json", body) == tree


def test_json_in_another_declared_charset() -> None:
    assert decoded("json", '"é"'.encode("latin-1"), charset="ISO-8859-1") == "é"


@pytest.mark.parametrize("body", [b"{", b"NaN", b'"\\ud800"', b"<html>", b"1e999", b"\xff\xfe\x00", b"{'a':1}"])
def test_what_is_not_json_is_refused(body) -> None:
    refusal("json", body)


def test_the_refusal_quotes_nothing_of_the_body() -> None:
    assert "hunter2" not in refusal("json", b'{"password": "hunter2", oops}')


# xml


@pytest.mark.parametrize(
    ("body", "tree"),
    [
        ("<r><a>1</a><b>x</b></r>", {"a": "1", "b": "x"}),
        ("<r><a>1</a><a>2</a><a>3</a></r>", {"a": ["1", "2", "3"]}),
        ('<r id="7"><a k="v">text</a></r>', {"id": "7", "a": {"k": "v", "": "text"}}),
        ("<r><a/><b></b></r>", {"a": "", "b": ""}),
        ("<r/>", ""),
        ("<r>text</r>", "text"),
        ("<r>\n  <a>1</a>\n</r>", {"a": "1"}),
        ("<r><a> spaced </a></r>", {"a": " spaced "}),
        ("<r>one<a>1</a>two</r>", {"a": "1", "": ["one", "two"]}),
        ('<r><a x="1">t<b/></a></r>', {"a": {"x": "1", "b": "", "": "t"}}),
        ('<r a="attribute"><a>child</a></r>', {"a": ["attribute", "child"]}),
        ("<r><![CDATA[<raw>]]> &amp; more</r>", "<raw> & more"),
        ("<!-- c --><?p i?><r><!-- c --><a>1<!-- c -->2</a></r>", {"a": "12"}),
        ('<p:r xmlns:p="urn:x" xmlns="urn:y" p:k="v"><p:a>1</p:a><b>2</b></p:r>', {"k": "v", "a": "1", "b": "2"}),
        ('<r xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><a xsi:nil="true"/></r>', {"a": None}),
        ("<!DOCTYPE r><r><a>1</a></r>", {"a": "1"}),
        ("<r><a><i>1</i></a><a><i>2</i></a></r>", {"a": [{"i": "1"}, {"i": "2"}]}),
    ],
)
def test_xml_bodies(body, tree) -> None:
    assert decoded("xml", body) == tree


def test_the_charset_of_xml() -> None:
    assert decoded("xml", '<?xml version="1.0" encoding="ISO-8859-1"?><r>é</r>'.encode("latin-1")) == "é"
    assert decoded("xml", '<?xml version="1.0" encoding="shift_jis"?><r>日本</r>'.encode("shift_jis")) == "日本"
    assert decoded("xml", '<?xml version="1.0" encoding="ascii"?><r>é</r>'.encode(), charset="utf-8") == "é"
    assert decoded("xml", "<r>é</r>".encode("utf-16")) == "é"


@pytest.mark.parametrize("body", ["<r>", "<r></s>", "text", "<r>&nbsp;</r>", "<p:r/>", "<r/><r/>", "{}"])
def test_what_is_not_xml_is_refused(body) -> None:
    refusal("xml", body)


# yaml


@pytest.mark.parametrize(
    ("body", "tree"),
    [
        ("a: 1\nb: [x, 2.5, true, null, ~]\n", {"a": 1, "b": ["x", 2.5, True, None, None]}),
        ("no: no\non: on\nday: 2024-01-02\nat: 12:30\n", {"no": "no", "on": "on", "day": "2024-01-02", "at": "12:30"}),
        ("quoted: '1'\ntagged: !!str 1\nint: !!int '1'\n", {"quoted": "1", "tagged": "1", "int": 1}),
        ("- 0x1F\n- 0o17\n- -5\n- 1e3\n- .5\n- 1.\n", [31, 15, -5, 1000.0, 0.5, 1.0]),
        ("- .nan\n- .inf\n- -.Inf\n", ["NaN", "Infinity", "-Infinity"]),
        ("- 123456789012345678901234567890\n", [1.2345678901234568e29]),
        ("1: a\ntrue: b\n", {"1": "a", "true": "b"}),
        ("a: &x {k: 1}\nb: *x\n", {"a": {"k": 1}, "b": {"k": 1}}),
        ("base: &b {k: 1, l: 2}\nc:\n  <<: *b\n  l: 3\n", {"base": {"k": 1, "l": 2}, "c": {"k": 1, "l": 3}}),
        ("first: 1\n---\nsecond: 2\n", {"first": 1}),
        ("--- !custom {a: !python/object:os.system 1}\n", {"a": "1"}),
        ("a: |\n  one\n  two\n", {"a": "one\ntwo\n"}),
        ("a:\n", {"a": None}),
        ("", None),
        ("plain", "plain"),
    ],
)
def test_yaml_bodies(body, tree) -> None:
    assert decoded("yaml", body) == tree


@pytest.mark.parametrize("body", ["a: [", "a: b: c", "? [1]\n: x", "a: *nowhere", "a: &a [*a]", "\x01", "\t- a"])
def test_what_is_not_usable_yaml_is_refused(body) -> None:
    refusal("yaml", body)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co", "Zl", "Zp"))),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text("abcdef<", min_size=1).filter(lambda key: key != "<<"), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(TREES)
def test_yaml_reads_back_what_json_writes(tree) -> None:
    assert decoded("yaml", json.dumps(tree, ensure_ascii=False)) == tree


@given(st.recursive(st.booleans() | st.integers(-(2**63), 2**63) | st.sampled_from(["a b", "é", "x: y", "'", "#", "- a", "5", "true", ""]), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b c", "5"]), inner, max_size=3), max_leaves=8))  # fmt: skip
def test_yaml_reads_back_what_pyyaml_writes(tree) -> None:
    assert decoded("yaml", yaml.safe_dump(tree, allow_unicode=True)) == tree


# csv, tsv, psv


@pytest.mark.parametrize(("name", "separator"), [("csv", ","), ("tsv", "\t"), ("psv", "|")])
def test_delimited_bodies(name, separator) -> None:
    body = 'id,name\r\n1,"A ""quoted"" , name"\r\n2,"two\nlines"\r\n'.replace(",", separator)
    quoted = 'A "quoted" , name'.replace(",", separator)
    assert decoded(name, body) == [{"id": "1", "name": quoted}, {"id": "2", "name": "two\nlines"}]


def test_the_byte_order_mark_that_spreadsheets_write_is_not_part_of_the_first_name() -> None:
    assert decoded("csv", b"\xef\xbb\xbfid\n1\n") == [{"id": "1"}]


def test_short_rows_lack_members_and_blank_lines_are_no_rows() -> None:
    assert decoded("csv", "a,b,c\n1\n\n,2\n") == [{"a": "1"}, {"a": "", "b": "2"}]


def test_only_empty_cells_may_exceed_the_header() -> None:
    assert decoded("csv", "a,b\n1,2,,\n") == [{"a": "1", "b": "2"}]
    assert "line 3 has 3 cells, but the header has 2" in refusal("csv", "a,b\n1,2\n1,2,3\n")


def test_no_rows_is_an_empty_array() -> None:
    assert decoded("csv", "") == []
    assert decoded("csv", "a,b\n") == []


@pytest.mark.parametrize("body", ['a\n"unclosed', 'a\n"x"y\n'])
def test_broken_quotes_are_refused(body) -> None:
    refusal("csv", body)


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), max_size=8), min_size=3, max_size=3), max_size=6))  # fmt: skip
def test_csv_reads_back_what_the_standard_library_writes(rows) -> None:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *rows])
    assert decoded("csv", out.getvalue()) == [dict(zip("abc", row, strict=True)) for row in rows]


@pytest.mark.parametrize("charset", ["windows-1252", "ISO-8859-15", '"utf-8"', "UTF-16LE", "gb18030", "Shift_JIS"])
def test_text_in_a_declared_charset(charset) -> None:
    text = "a\n日本\n" if charset in {"gb18030", "Shift_JIS"} else "a\né\n"
    assert decoded("csv", text.encode(charset.strip('"')), charset=charset) == [{"a": text.split()[1]}]


@pytest.mark.parametrize("charset", ["zip", "punycode", "idna", "unicode_escape", "nonsense", "utf-7", "\0"])
def test_a_charset_that_is_none_is_refused(charset) -> None:
    assert "charset" in refusal("csv", "a\n1\n", charset=charset)


# html


TABLE = (
    "<table><thead><tr><th> Name </th><th>Age</th></tr></thead><tbody><tr><td>Ada</td><td>36</td></tr></tbody></table>"
)
ADA = [{"Name": "Ada", "Age": "36"}]


@pytest.mark.parametrize(
    ("body", "tables"),
    [
        (TABLE, [ADA]),
        ("<table><tr><th>Name<th>Age<tr><td>Ada<td>36</table>", [ADA]),
        (TABLE * 2, [ADA, ADA]),
        ("<table><tr><td>no headers</td></tr></table>", []),
        ("<table><tr><th> </th></tr><tr><td>x</td></tr></table>", []),
        (
            "<table><tr><th>a<th>b<tr><td>1<tr><th>sub<td>2<tr><td>3<td>4<td>5</table>",
            [[{"a": "1", "b": ""}, {"a": "3", "b": "4"}]],
        ),
        ("<table><tr><th>a</th></tr></table>", [[]]),
        (
            "<table><tr><th>a<tr><td>H<sub>2</sub>O<br>x <p>y</p>\n&nbsp;z<script>no</script></table>",
            [[{"a": "H2O x y z"}]],
        ),
        ("<table><tr><th>a<tr><td><table><tr><th>b<tr><td>1</table></table>", [[{"a": "b 1"}], [{"b": "1"}]]),
        ("<p>no table", []),
        ("", []),
    ],
)
def test_html_bodies(body, tables) -> None:
    assert decoded("html", body) == {"tables": tables}


def test_a_selector_keeps_the_tables_that_it_matches_or_contains() -> None:
    page = f"<div id=x>{TABLE}<p>{TABLE.replace('Ada', 'Bob')}</div><table class=y><tr><th>n<tr><td>1</table>"
    assert decoded("html", page, "#x")["tables"] == [ADA, [{"Name": "Bob", "Age": "36"}]]
    assert decoded("html", page, "table.y")["tables"] == [[{"n": "1"}]]
    assert decoded("html", page, "body, #x, table")["tables"] == decoded("html", page)["tables"]
    assert decoded("html", page, "#none")["tables"] == []


def test_a_selector_that_is_none_is_refused_when_the_file_is_loaded() -> None:
    with pytest.raises(ValueError, match="not a CSS selector"):
        open_format("html", "table[[", ())


def test_html_names_its_charset_itself() -> None:
    page = '<meta charset="windows-1252"><table><tr><th>a<tr><td>é</table>'.encode("cp1252")
    assert decoded("html", page) == {"tables": [[{"a": "é"}]]}


def test_a_page_parsed_in_the_child_process_gives_the_same() -> None:
    page = TABLE + "<p>" + "<a href=x>link</a> " * 10_000
    assert decoded("html", page, "table") == {"tables": [ADA]}


# markdown


PAGE = """---
title: Report
tags: [a, b]
---
Before any heading.

# First *part*

Text with `code`,
a [link](http://x.example) and ![a picture](p.png).\\
Next line.

- one
- two

| Name | Age |
|------|----:|
| Ada  | 36  |
| Bob  |

## Second

```
x = 1
```

> quoted

<div>html</div>
"""


def test_a_markdown_body() -> None:
    assert decoded("markdown", PAGE) == {
        "frontMatter": {"title": "Report", "tags": ["a", "b"]},
        "tables": [[{"Name": "Ada", "Age": "36"}, {"Name": "Bob", "Age": ""}]],
        "sections": [
            {
                "heading": "First part",
                "level": 1,
                "content": "Text with code, a link and a picture.\nNext line.\none\ntwo",
            },
            {"heading": "Second", "level": 2, "content": "x = 1\nquoted"},
        ],
    }


def test_a_markdown_body_with_windows_lines_is_the_same() -> None:
    assert decoded("markdown", PAGE.replace("\n", "\r\n")) == decoded("markdown", PAGE)


def test_the_schema_of_markdown_filters_sections_but_not_tables() -> None:
    tree = decoded("markdown", PAGE, "Sec")
    assert [section["heading"] for section in tree["sections"]] == ["Second"]
    assert len(tree["tables"]) == 1


@pytest.mark.parametrize("body", ["---\n---\n# a\n", "---\n- list\n---\n# a\n", "# a\n"])
def test_front_matter_is_a_mapping_or_empty(body) -> None:
    assert decoded("markdown", body) == {
        "frontMatter": {},
        "tables": [],
        "sections": [{"heading": "a", "level": 1, "content": ""}],
    }


def test_a_long_markdown_text_parsed_in_the_child_process_gives_the_same() -> None:
    tree = decoded("markdown", PAGE + "\n# Third\n\n" + "word " * 10_000, "Second")
    assert tree == decoded("markdown", PAGE, "Second")


# binary


@given(st.binary())
def test_a_binary_body_is_its_base64_text(body) -> None:
    assert base64.b64decode(decoded("binary", body)) == body
