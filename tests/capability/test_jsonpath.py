"""JSONPath: what capability files write, what upstream documents may do to it."""

import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolcrib.capability.jsonpath import compile_path

TREE: dict[str, Any] = {
    "a": [
        {"p": 1, "n": "x", "t": ["u", "v"], "on": True},
        {"p": "2", "n": "yy", "t": []},
        {"n": "z", "p": None},
    ],
    "b": {"c": 1, "d": 2},
    "my key": {"in side": 5},
    "x-y": {"z-1": 7},
    "$ref": "r",
    "dotted.name": 8,
    "it's": 9,
    "wanted": ["x", "z"],
    "numbers": [4, 1, "7", None, True, 2.5],
    "nothing": None,
    "price (USD)": 3,
    "é": {"日本": 1},
}


@pytest.mark.parametrize("text", ["$", "$.", " $. ", "@"])
def test_the_root_in_all_its_spellings(text: str) -> None:
    path = compile_path(text)
    assert path.is_root
    assert path(TREE) is TREE
    assert path(None) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$.b.c", 1),
        ("b.c", 1),
        (".b.c", 1),
        ("$['b']['c']", 1),
        ('$.["b"].c', 1),
        ("$.a[0].n", "x"),
        ("$.a[-1].n", "z"),
        ("$.a[ 1 ].n", "yy"),
        ("$.my key.in side", 5),
        ("$['my key']['in side']", 5),
        ("$.x-y.z-1", 7),
        ("$.$ref", "r"),
        ("$['dotted.name']", 8),
        ("$['it\\'s']", 9),
        ("$['\\u00e9'].日本", 1),
        ("$.price (USD)", 3),
        ("$.nothing", None),
        ("$.missing", None),
        ("$.missing.deeper", None),
        ("$.a[3]", None),
        ("$.a[-4]", None),
        ("$.a.n", None),
        ("$.b[0]", None),
        ("$.b.c.d", None),
        ("$.a.0", None),
    ],
)
def test_a_path_of_names_and_indices_gives_one_value(text: str, expected: Any) -> None:
    path = compile_path(text)
    assert path(TREE) == expected
    assert path.steps is not None
    assert not path.is_root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$.a[*].n", ["x", "yy", "z"]),
        ("$.a.*.n", ["x", "yy", "z"]),
        ("$.a[*].missing", []),
        ("$.a[*].p", [1, "2", None]),
        ("$.b.*", [1, 2]),
        ("$.b.c[*]", []),
        ("$.missing[*].n", None),  # a missing path is null, even one that would give a list
        ("$..n", ["x", "yy", "z"]),
        ("$.a..n", ["x", "yy", "z"]),
        ("$..c", [1]),
        ("$..nowhere", []),
        ("$..t[0]", ["u"]),
        ("$..['c','d']", [{"c": 1, "d": 2}]),
        ("$..in side", [5]),
        ("$.a[0,2].n", ["x", "z"]),
        ("$.a[0,9].n", ["x"]),
        ("$.a[:2].n", ["x", "yy"]),
        ("$.a[1:].n", ["yy", "z"]),
        ("$.a[-2:].n", ["yy", "z"]),
        ("$.a[0:-1].n", ["x", "yy"]),
        ("$.a[::2].n", ["x", "z"]),
        ("$.a[::-1].n", ["z", "yy", "x"]),
        ("$.b[1:2]", None),
        ("$['b','my key'].c", [1]),
        ("$.b['c','d']", {"c": 1, "d": 2}),
        ("$.b['c','nope']", {"c": 1}),
    ],
)
def test_wildcards_descents_slices_and_unions(text: str, expected: Any) -> None:
    assert compile_path(text)(TREE) == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("@.p > 0", ["x"]),
        ("@.p >= 1 && @.p <= 1", ["x"]),
        ("@.n < 'y'", ["x"]),
        ("@.p < 'zzz'", ["yy"]),
        ("@.n == 'x'", ["x"]),
        ('@.n == "x"', ["x"]),
        ("@['n']=='x'", ["x"]),
        ("'x' == @.n", ["x"]),
        ("@.n != 'x'", ["yy", "z"]),
        ("@.p == 2", ["yy"]),  # a number equals the text that spells it
        ("@.p === 2", []),
        ("@.p == null", ["z"]),
        ("@.p != null", ["x", "yy"]),
        ("@.on == true", ["x"]),
        ("@.on == 1", []),
        ("@.on != true", ["yy", "z"]),  # a missing value equals nothing
        ("@.t", ["x", "yy"]),
        ("!@.t", ["z"]),
        ("@.t[0]", ["x"]),
        ("@.t[*]", ["x"]),
        ("!(@.n == 'x' || @.n == 'z')", ["yy"]),
        ("@.n == 'x' || @.n == 'yy' && @.p == 1", ["x"]),
        ("@.n =~ /Y+/i", ["yy"]),
        ("@.n =~ /y/", []),  # the whole text must match
        ("@.n =~ /\\w{1}/", ["x", "z"]),
        ("@.t =~ /u|v/", ["x"]),
        ("@.n in ['x', 'z']", ["x", "z"]),
        ("@.n in $.wanted", ["x", "z"]),
        ("@.n nin $.wanted", ["yy"]),
        ("@.n IN ['x']", ["x"]),
        ("$.wanted contains @.n", ["x", "z"]),
        ("@.t contains 'u'", ["x"]),
        ("@.n contains 'y'", ["yy"]),
        ("@.t subsetof ['u','v','w']", ["x", "yy"]),
        ("@.t all ['u']", ["x"]),
        ("@.t anyof ['u','q']", ["x"]),
        ("@.t noneof ['u']", ["yy"]),
        ("@.t size 2", ["x"]),
        ("@.t empty true", ["yy"]),
        ("@.t.length() > 1", ["x"]),
        ("@.p > $.b.d", []),
        ("@.p == $.b.c", ["x"]),
        ('@ == {"n": "z", "p": null}', ["z"]),
    ],
)
def test_filters(condition: str, expected: list[str]) -> None:
    assert compile_path(f"$.a[?({condition})].n")(TREE) == expected
    assert compile_path(f"$.a[? {condition} ].n")(TREE) == expected


def test_a_filter_on_an_object_tests_the_object_itself() -> None:
    assert compile_path("$.b[?(@.c == 1)].d")(TREE) == [2]
    assert compile_path("$.b[?(@.c == 2)].d")(TREE) == []
    assert compile_path("$.b.c[?(@ == 1)]")(TREE) is None


def test_a_filter_below_a_descent_finds_each_object_once() -> None:
    assert compile_path("$..[?(@.p == 1)].n")(TREE) == ["x"]
    assert compile_path("$..[?(@ == 'u')]")(TREE) == ["u"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$.a.length()", 3),
        ("$.a.size()", 3),
        ("$.b.length()", 2),
        ("$.b.c.length()", None),
        ("$.missing.length()", None),
        ("$..n.length()", 3),
        ("$.a[*].n.length()", 3),
        ("$.b.keys()", ["c", "d"]),
        ("$.b.keys()[1]", "d"),
        ("$.numbers.sum()", 7.5),
        ("$.numbers.avg()", 2.5),
        ("$.numbers.min()", 1),
        ("$.numbers.max()", 4),
        ("$.wanted.sum()", None),
        ("$..p.sum()", 1),
        ("$.numbers.max(100, $.b.d)", 100),
        ("$.a.first().n", "x"),
        ("$.a.last().n", "z"),
        ("$.a.index(1).n", "yy"),
        ("$.a[7:].first()", None),
        ("$.wanted.concat('!')", "xz!"),
        ("$.wanted.append('q')", ["x", "z", "q"]),
        ("$.a[*].t.first()", ["u", "v"]),
    ],
)
def test_functions_take_the_whole_result_before_them(text: str, expected: Any) -> None:
    assert compile_path(text)(TREE) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the path is empty"),
        ("$a", "'.' or '['"),
        ("$5.00", "'.' or '['"),
        ("$.a.", "a name is expected"),
        ("$.a..", "a name is expected"),
        ("$.a[", "an index, a quoted name"),
        ("$.a[0", "']' is expected"),
        ("$.a[name]", "an index, a quoted name"),
        ("$.a['x]", "a closed quotation"),
        ("$.a]", "']' without '['"),
        ("$.a[(@.length-1)]", "an index, a quoted name"),
        ("$.a[::0]", "cannot step by 0"),
        ("$.a[?(@.p >)]", "a path, a value"),
        ("$.a[?(@.p > 1]", "')' is expected"),
        ("$.a[?('x')]", "a comparison is expected"),
        ("$.a[?(@.n =~ 'x')]", "'=~' compares"),
        ("$.a[?(@.n == /x/)]", "'=~' compares"),
        ("$.a[?(@.n =~ /(?=x)/)]", "not usable"),
        ("$.a[?(@.n =~ /x/q)]", "unknown flag 'q'"),
        ("$.a[?(@ == {)]", "a JSON object is expected"),
        ("$.a.median()", "unknown function median()"),
        ("$.a[?(" + "(" * 100 + "@.n" + ")" * 100 + ")]", "nested too deeply"),
        ("$.a[?(@ in " + "[" * 100 + "]" * 100 + ")]", "nested too deeply"),
        ("$.a[?(@ == " + '{"a":' * 800 + ")]", "a JSON object is expected"),
        ("$" + ".a" * 3000, "longer than"),
    ],
)
def test_what_is_no_path_is_refused_with_a_reason(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        compile_path(text)


def test_an_array_of_100_000_elements_is_quick() -> None:
    tree = {"rows": [{"p": i, "n": "x", "tags": ["t"]} for i in range(100_000)]}
    started = time.perf_counter()
    assert len(compile_path("$.rows[*].p")(tree)) == 100_000
    assert len(compile_path("$..p")(tree)) == 100_000
    assert len(compile_path("$.rows[?(@.p >= 50000 && @.n =~ /x+/)].n")(tree)) == 50_000
    assert compile_path("$.rows[*].p.sum()")(tree) == sum(range(100_000))
    assert time.perf_counter() - started < 5  # about 0.3 s on an idle machine


def test_deep_nesting_does_not_reach_the_stack() -> None:
    tree: Any = {"v": 1}
    for _ in range(50_000):
        tree = {"a": [tree]}
    assert compile_path("$..v")(tree) == [1]
    assert len(compile_path("$..a")(tree)) == 50_000
    assert compile_path("$" + ".a[0]" * 800)(tree) is not None
    while tree:  # unwound by hand: the interpreter would free it recursively
        tree = tree["a"][0] if "a" in tree else None


@pytest.mark.parametrize(
    "text",
    [
        "$..a..a..a..a..a..a..a..a",
        "$..*..*..*..*..*",
        "$..[?(@..[?(@..a)])]",
        "$.rows[?($.rows contains @)]",
        "$.rows[?(@ in $.rows[*])]",
        "$.rows[?($.text contains 'yy')]",
        "$.rows[?($.text =~ /(x+x+)+y/)]",
    ],
)
def test_a_hostile_document_cannot_make_a_path_run_away(text: str) -> None:
    nest: Any = {}
    for _ in range(90):
        nest = {"a": nest, "b": [1, nest]} if len(str(nest)) < 2_000 else {"a": nest}
    tree = {"a": nest, "rows": list(range(100_000)), "text": "x" * 1_000_000}
    started = time.perf_counter()
    compile_path(text)(tree)
    assert time.perf_counter() - started < 10  # a second or two on an idle machine


def test_a_regular_expression_takes_linear_time() -> None:
    tree = ["x" * 200_000 + "!"]
    started = time.perf_counter()
    assert compile_path("$[?(@ =~ /(x+x+)+y/)]")(tree) == []
    assert time.perf_counter() - started < 5


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["a", "b"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "n", "1"]), inner, max_size=4)
    ),
    max_leaves=20,
)
_part = st.sampled_from(
    [
        *(".a", ".b", "..a", "..*", "[*]", "[0]", "[-1]", "[0:2]", "[::-1]", "[0,1]", "['a']", "['a','b']", ".n"),
        *("[?(@.a)]", "[?(@.a > @.b)]", "[?(@ == $)]", "[?(@.a =~ /.*/)]", "[?(@.b in $..a)]", "[?(!@..b)]"),
        *("[?(@.a contains @.b)]", "[?(@.a size 1)]", "[?(@.a empty true || @.b nin [1,'a'])]"),
        *(".length()", ".sum()", ".max(1)", ".stddev()", ".keys()", ".first()", ".concat($.a)", ".append($..b)"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(parts=st.lists(_part, max_size=5), tree=_json)
def test_evaluation_never_raises(parts: list[str], tree: Any) -> None:
    compile_path("$" + "".join(parts))(tree)


@settings(max_examples=400, deadline=None)
@given(text=st.text(alphabet="$@.[]()?*:,'\"/ab1 =<>!&|~-{}\\é", max_size=30), tree=_json)
def test_any_text_is_a_path_or_refused(text: str, tree: Any) -> None:
    try:
        path = compile_path(text)
    except ValueError:
        return
    path(tree)
