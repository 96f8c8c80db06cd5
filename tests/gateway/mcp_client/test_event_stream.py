"""Server-sent events: the framing rules of the HTML standard, however the bytes are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolcrib.gateway.mcp_client.event_stream import EventReader, EventTooLarge

STREAM = (
    b"\xef\xbb\xbf: a comment\r\n\r\nid: 1\r\ndata:\r\n\r\n"
    b'event: message\ndata: {"a":\ndata: 1}\nid: 2\nretry: 250\nnonsense: x\n\n'
    b"data:no space\rdata\rdata: end\r\r"
    b"event: endpoint\r\ndata: /messages?id=\xc3\xa9\r\n\r\n"
    b"data: never finished"
)
EVENTS = [("message", b'{"a":\n1}'), ("message", b"no space\n\nend"), ("endpoint", "/messages?id=é".encode())]


def read(pieces: list[bytes]) -> tuple[list[tuple[str, bytes]], EventReader]:
    reader = EventReader(1000)
    return [(event.name, event.data) for piece in pieces for event in reader.feed(piece)], reader


def test_a_whole_stream_is_read_at_once() -> None:
    events, reader = read([STREAM])
    assert events == EVENTS
    assert (reader.last_id, reader.retry_s) == ("2", 0.25)


def test_a_stream_that_arrives_byte_by_byte_gives_the_same_events() -> None:
    events, reader = read([STREAM[i : i + 1] for i in range(len(STREAM))])
    assert events == EVENTS
    assert (reader.last_id, reader.retry_s) == ("2", 0.25)


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_where_the_chunks_are_cut_does_not_matter(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    events, _ = read([STREAM[a:b] for a, b in itertools.pairwise(edges)])
    assert events == EVENTS


def test_an_event_that_only_carries_an_id_moves_the_last_id() -> None:
    events, reader = read([b"id: primed\ndata: \n\n"])
    assert (events, reader.last_id) == ([], "primed")


def test_an_empty_id_takes_the_last_id_back() -> None:
    _, reader = read([b"id: 1\ndata: x\n\n", b"id\ndata: y\n\n"])
    assert reader.last_id is None


def test_an_id_counts_only_when_its_event_is_complete() -> None:
    _, reader = read([b"id: 1\ndata: x\n\n", b"id: 2\ndata: y\n"])
    assert reader.last_id == "1"


def test_malformed_fields_are_passed_over() -> None:
    events, reader = read([b"retry: soon\nid: a\0b\nretry: 99999999999999\ndata: x\n\n"])
    assert (events, reader.last_id, reader.retry_s) == ([("message", b"x")], None, None)


@pytest.mark.parametrize("pieces", [[b"data: " + b"x" * 1001], [b"data: ", *[b"x" * 100] * 11], [b"data: xxx\n"] * 300])
def test_an_event_over_the_limit_is_refused_while_it_arrives(pieces: list[bytes]) -> None:
    with pytest.raises(EventTooLarge):
        read(pieces)


def test_many_events_under_the_limit_are_no_trouble() -> None:
    events, _ = read([b"data: " + b"x" * 900 + b"\n\n"] * 20)
    assert len(events) == 20
