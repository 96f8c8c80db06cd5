"""Which path a request means."""

import time
from typing import Any

import pytest

from toolcrib.capability.routing import Router


def router(*paths: str, rest: tuple[str, ...] = ()) -> Router[str]:
    made: Router[str] = Router()
    for path in paths:
        made.add(path, path)
    for path in rest:
        made.add(path, path, rest=True)
    return made


@pytest.mark.parametrize(
    ("sent", "path", "variables"),
    [
        ("/users/reset", "/users/reset", {}),
        ("/users/u1", "/users/{id}", {"id": "u1"}),
        ("/users/u1/", "/users/{id}", {"id": "u1"}),
        ("/users/u-1.json", "/users/{id}.json", {"id": "u-1"}),
        ("/users/reset/x", "/users/{id}/x", {"id": "reset"}),
        ("/users/a%2Fb", "/users/{id}", {"id": "a/b"}),
        ("/users/%72eset", "/users/reset", {}),
        ("/users/a%20b/x", "/users/{id}/x", {"id": "a b"}),
        ("/range/1..2", "/range/{from}..{to}", {"from": "1", "to": "2"}),
        ("/all/a/b//c", "/all/{path}", {"path": "a/b//c"}),
        ("/all", "/all/{path}", {"path": ""}),
        ("/two/1/2", "/two/{a}/{{b}}", {"a": "1", "b": "2"}),
        ("/", "/", {}),
        ("", "/", {}),
    ],
)
def test_a_path_is_found(sent: str, path: str, variables: Any) -> None:
    made = router("/users/{id}", "/users/reset", "/users/{id}.json", "/users/{id}/x", "/range/{from}..{to}",
                  "/all/{path}", "/two/{a}/{{b}}", "/")  # fmt: skip
    assert made.find(sent) == [(path, variables)]


@pytest.mark.parametrize("sent", ["/users", "/users//", "//users/x", "/users/a/b", "/USERS/x", "/nope", "/users/x//"])
def test_a_path_is_not_found(sent: str) -> None:
    assert router("/users/{id}").find(sent) == []


def test_paths_of_one_shape_keep_their_own_names_in_order() -> None:
    assert router("/a/{x}", "/a/{y}").find("/a/1") == [("/a/{x}", {"x": "1"}), ("/a/{y}", {"y": "1"})]


def test_a_forwarding_path_takes_what_nothing_else_takes() -> None:
    made = router("/p/a/{id}", rest=("/p/{tail}", "/q"))
    assert made.find("/p/a/1") == [("/p/a/{id}", {"id": "1"})]
    assert made.find("/p/a/1/2") == [("/p/{tail}", {"tail": "a/1/2"})]
    assert [target for target, _ in made.find("/q")] == ["/q"]


def test_bytes_that_are_no_text_are_told() -> None:
    with pytest.raises(UnicodeDecodeError):
        router("/a/{x}").find("/a/%ff")


def test_a_long_segment_takes_no_long_time() -> None:
    made = router("/{a}-{b}-{c}.json")
    started = time.process_time()
    assert made.find("/" + "-" * 20_000) == []
    assert time.process_time() - started < 2
