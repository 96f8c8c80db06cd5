"""The outbound client's limits, streams, pooled connections and cancellation."""

import asyncio
import gzip
import math
import os
import socket
import zlib
from collections.abc import Sequence

import pytest

from raw_upstream import DEADLINE_S, Reader, Upstream, Writer, answering, client, gone, hanging, ok, upstream
from toolcrib.core import http, http1
from toolcrib.core.http import OutboundClient, OutboundError
from toolcrib.core.http1 import Connection, Deadline

# -- limits ---------------------------------------------------------------------------------------------------------


async def test_headers_that_do_not_come_end_the_call_at_its_limit():
    async with upstream(hanging(b"")) as served, client() as c:
        with pytest.raises(OutboundError, match=r"did not answer within 0\.1 s$") as caught:
            await c.request("GET", served.url, timeout_s=0.1)
        assert caught.value.code == "outbound.timeout"
        await gone(served)
        served.peer_gone.clear()
        with pytest.raises(OutboundError, match=r"did not answer within 0\.1 s$"):
            async with c.stream("GET", served.url, timeout_s=0.1):
                raise AssertionError("there is no head")
        await gone(served)


async def test_a_body_that_does_not_end_ends_the_call_at_its_limit():
    async with (
        upstream(hanging(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")) as served,
        client(timeout_s=0.1) as c,
    ):
        with pytest.raises(OutboundError, match=r"did not answer within 0\.1 s$"):
            await c.request("GET", served.url)
        await gone(served)


async def test_silence_within_a_stream_has_its_own_limit():
    async with upstream(hanging(b"HTTP/1.1 200 OK\r\n\r\nabc")) as served, client() as c:
        async with c.stream("GET", served.url, idle_timeout_s=0.1) as stream:
            chunks = stream.chunks()
            assert await anext(chunks) == b"abc"
            with pytest.raises(OutboundError, match=r"sent nothing for 0\.1 s$") as caught:
                await anext(chunks)
        assert caught.value.code == "outbound.timeout"
        await gone(served)


async def test_a_declared_length_above_the_limit_fails_before_the_body_comes():
    async with upstream(hanging(b"HTTP/1.1 200 OK\r\nContent-Length: 10485761\r\n\r\n")) as served, client() as c:
        with pytest.raises(OutboundError, match="answered with 10485761 bytes, the limit is 10485760 bytes") as caught:
            await c.request("GET", served.url)
        assert caught.value.code == "outbound.too_large"
        await gone(served)
        with pytest.raises(OutboundError, match="the limit is 5 bytes"):
            async with c.stream("GET", served.url, max_bytes=5):
                raise AssertionError("it is too large")


async def endless(served: Upstream, reader: Reader, writer: Writer) -> None:
    await served.request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def test_a_body_without_end_is_cut_at_the_limit():
    async with upstream(endless) as served, client() as c:
        with pytest.raises(OutboundError, match="more than 1000000 bytes") as caught:
            await c.request("GET", served.url, max_bytes=1_000_000)
        assert caught.value.code == "outbound.too_large"
        await gone(served)
        for limits, read in (({"max_bytes": 1000}, 10**9), ({}, 1000)):
            with pytest.raises(OutboundError, match="more than 1000 bytes"):
                async with c.stream("GET", served.url, **limits) as stream:
                    await stream.read(read)


async def test_a_body_of_fifty_megabytes_passes_under_a_limit_that_allows_it():
    body = bytes(1000) * 50_000

    async with upstream(answering(ok(body))) as served, client() as c:
        with pytest.raises(OutboundError, match="the limit is 10485760 bytes"):
            await c.request("GET", served.url)
        assert (await c.request("GET", served.url, max_bytes=len(body))).body == body


async def test_a_compressed_bomb_is_refused_by_its_decoded_size():
    deflate = zlib.compressobj(9, wbits=31)
    bomb = b"".join(deflate.compress(bytes(2**20)) for _ in range(200)) + deflate.flush()
    assert len(bomb) < 300_000
    async with upstream(answering(ok(bomb, "Content-Encoding: gzip"))) as served, client() as c:
        with pytest.raises(OutboundError, match="more than 10485760 bytes") as caught:
            await c.request("GET", served.url)
        assert caught.value.code == "outbound.too_large"
        async with c.stream("GET", served.url) as stream:
            sizes = [len(chunk) async for chunk in stream.chunks()]
        assert (sum(sizes), max(sizes)) == (200 * 2**20, 65536)  # never in memory as a whole


async def test_a_body_of_exactly_the_limit_is_accepted():
    for encoding, data in (("identity", b"x" * 1000), ("gzip", gzip.compress(b"x" * 1000))):
        async with upstream(answering(ok(data, f"Content-Encoding: {encoding}"))) as served, client() as c:
            assert len((await c.request("GET", served.url, max_bytes=1000)).body) == 1000
            with pytest.raises(OutboundError):
                await c.request("GET", served.url, max_bytes=999)


# -- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoded", [False, True])
async def test_events_arrive_one_by_one(encoded):
    heard = asyncio.Queue[int]()

    async def events(served: Upstream, reader: Reader, writer: Writer) -> None:
        await served.request(reader)
        gzipped = zlib.compressobj(wbits=31)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n")
        writer.write(b"Content-Encoding: gzip\r\n\r\n" if encoded else b"\r\n")
        for number in range(5):
            data = b"data: %d\n\n" % number
            if encoded:
                data = gzipped.compress(data) + gzipped.flush(zlib.Z_SYNC_FLUSH)
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            assert await heard.get() == number  # the next event is sent only after this one was received
        data = gzipped.flush() if encoded else b""
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n")

    async with upstream(events) as served, client(timeout_s=DEADLINE_S) as c:
        received = []
        async with c.stream("GET", served.url, idle_timeout_s=math.inf) as stream:
            assert stream.headers.get("content-type") == "text/event-stream"
            async for chunk in stream.chunks():
                received.append(chunk)
                heard.put_nowait(len(received) - 1)
    assert received == [b"data: %d\n\n" % number for number in range(5)]


async def test_a_stream_that_breaks_off_gives_what_came_and_then_fails():
    handler = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    async with upstream(handler) as served, client() as c, c.stream("GET", served.url) as stream:
        chunks = stream.chunks()
        assert await anext(chunks) == b"abc"
        with pytest.raises(OutboundError, match="broke off"):
            await anext(chunks)


async def test_a_slow_reader_holds_the_upstream_back():
    sent = 0
    total = 64 * 2**20
    all_sent = asyncio.Event()

    async def flood(served: Upstream, reader: Reader, writer: Writer) -> None:
        nonlocal sent
        await served.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent < total:
            writer.write(bytes(2**18))
            sent += 2**18
            await writer.drain()
        all_sent.set()

    async with upstream(flood) as served, client() as c, c.stream("GET", served.url) as stream:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(all_sent.wait(), 0.3)
        assert sent < total / 2  # what the sockets' buffers hold
        assert sum([len(chunk) async for chunk in stream.chunks()]) == total


async def test_leaving_a_stream_early_closes_the_connection():
    async with upstream(endless) as served, client() as c:
        async with c.stream("GET", served.url) as stream:
            async for _ in stream.chunks():
                break
        await gone(served)


async def test_a_stream_read_to_its_end_gives_its_connection_back():
    async with upstream(answering(ok(b"abc"), keep=True)) as served, client() as c:
        for _ in range(3):
            async with c.stream("GET", served.url) as stream:
                assert await stream.read(10) == b"abc"
        assert served.connections == 1


async def test_a_stream_that_was_left_cannot_read_from_its_connection():
    async with upstream(answering(ok(b"abc"), keep=True)) as served, client() as c:
        async with c.stream("GET", served.url) as stream:
            pass
        with pytest.raises(OutboundError, match="was left") as caught:
            await stream.read(10)
        assert caught.value.code == "outbound.closed"


# -- connections ----------------------------------------------------------------------------------------------------


async def test_calls_one_after_the_other_share_a_connection():
    async with upstream(answering(ok(b"abc"), keep=True)) as served, client() as c:
        for _ in range(10):
            assert (await c.request("POST", served.url, body=b"x")).body == b"abc"
        assert (served.connections, len(served.requests)) == (1, 10)


@pytest.mark.parametrize("header", ["Connection: close", "Keep-Alive: timeout=1"])
async def test_a_connection_that_the_upstream_will_close_is_not_used_again(header):
    async with upstream(answering(ok(b"abc", header), keep=True)) as served, client() as c:
        for _ in range(2):
            await c.request("POST", served.url)
        assert served.connections == 2


async def test_bytes_after_an_answer_are_not_taken_for_the_next_one():
    async def poison(served: Upstream, reader: Reader, writer: Writer) -> None:
        await served.request(reader)
        writer.write(ok(b"mine") + (ok(b"poison") if served.connections == 1 else b""))
        await served.until_gone(reader)

    async with upstream(poison) as served, client() as c:
        for _ in range(2):
            assert (await c.request("GET", served.url)).body == b"mine"
        assert served.connections == 2


async def test_a_request_that_waited_in_vain_is_not_repeated():
    async def once(served: Upstream, reader: Reader, writer: Writer) -> None:
        await served.request(reader)
        writer.write(ok(b"abc"))
        await served.until_gone(reader)

    async with upstream(once) as served, client() as c:
        await c.request("GET", served.url)
        with pytest.raises(OutboundError, match="did not answer within"):
            await c.request("GET", served.url, timeout_s=0.1)
        assert served.connections == 1


async def test_an_end_that_the_loop_has_not_come_round_to_is_seen_before_use(monkeypatch):
    monkeypatch.setattr(http1, "_TRUSTED_S", 0.0)
    handles = []

    async def keeping(served: Upstream, reader: Reader, writer: Writer) -> None:
        handles.append(os.dup(writer.get_extra_info("socket").fileno()))
        await served.request(reader)
        writer.write(ok(b"abc"))
        await served.until_gone(reader)

    async with upstream(keeping) as served, client() as c:
        await c.request("POST", served.url)
        with socket.socket(fileno=handles[0]) as end:
            end.shutdown(socket.SHUT_RDWR)  # and not one round of the loop before the next call
        assert (await c.request("POST", served.url)).body == b"abc"
        assert served.connections == 2
        os.close(handles[1])


async def test_bytes_on_an_idle_connection_end_it():
    async def chatty(served: Upstream, reader: Reader, writer: Writer) -> None:
        await served.request(reader)
        writer.write(ok(b"abc"))
        await asyncio.wait_for(received.wait(), DEADLINE_S)
        writer.write(b"\r\n")
        await served.until_gone(reader)

    received = asyncio.Event()
    async with upstream(chatty) as served, client() as c:
        await c.request("GET", served.url)
        received.set()
        await gone(served)


async def test_a_connection_that_closed_before_its_first_request_says_so_at_once():
    async def slam(_served: Upstream, _reader: Reader, writer: Writer) -> None:
        writer.close()

    loop = asyncio.get_running_loop()
    lost = asyncio.Event()
    async with upstream(slam) as served:
        _, connection = await loop.create_connection(
            lambda: Connection("up.test", loop, lambda _: lost.set()), "127.0.0.1", served.port
        )
        await asyncio.wait_for(lost.wait(), DEADLINE_S)
        await connection.exchange(
            b"",
            None,
            bodiless=False,
            streaming=False,
            limit=None,
            deadline=Deadline(loop.time() + DEADLINE_S, DEADLINE_S),
        )
        assert connection.error is not None
        assert connection.error.message == "up.test closed the connection without an answer"


async def closing_on_the_second_request(served: Upstream, reader: Reader, writer: Writer) -> None:
    await served.request(reader)
    writer.write(ok(b"abc"))
    await served.request(reader)


async def test_a_safe_request_is_repeated_when_a_pooled_connection_turns_out_to_be_closed():
    async with upstream(closing_on_the_second_request) as served, client() as c:
        for _ in range(2):
            assert (await c.request("GET", served.url)).body == b"abc"
        assert (served.connections, len(served.requests)) == (2, 3)


async def test_an_unsafe_request_is_never_repeated():
    async with upstream(closing_on_the_second_request) as served, client() as c:
        await c.request("POST", served.url)
        with pytest.raises(OutboundError, match="without an answer"):
            await c.request("POST", served.url)
        assert (served.connections, len(served.requests)) == (1, 2)


async def test_a_pooled_connection_that_the_upstream_closed_is_not_used():
    closed = asyncio.Event()

    async def once(served: Upstream, reader: Reader, writer: Writer) -> None:
        await served.request(reader)
        writer.write(ok(b"abc"))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with upstream(once) as served, client() as c:
        for _ in range(3):
            closed.clear()
            assert (await c.request("POST", served.url)).body == b"abc"
            await asyncio.wait_for(closed.wait(), DEADLINE_S)
            await asyncio.sleep(0)  # the round of the loop in which the client hears of it
        assert served.connections == 3


async def test_two_hundred_calls_at_once_get_their_own_answers():
    async def echo(served: Upstream, reader: Reader, writer: Writer) -> None:
        while True:
            request = await served.request(reader)
            writer.write(ok(request.split(b" ", 2)[1]))

    async with upstream(echo) as served, client() as c:
        for _ in range(2):
            answers = await asyncio.gather(*(c.request("GET", f"{served.url}/{number}") for number in range(200)))
            assert [answer.body for answer in answers] == [b"/%d" % number for number in range(200)]
        assert 200 <= served.connections <= 400 - http._IDLE_PER_ORIGIN


async def test_connections_that_are_unused_for_long_are_closed(monkeypatch):
    monkeypatch.setattr(http, "_IDLE_S", 0.05)
    async with upstream(answering(ok(b""), keep=True)) as served, client() as c:
        await c.request("GET", served.url)
        await gone(served)


# -- giving up ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"])
@pytest.mark.parametrize("streaming", [False, True])
async def test_a_cancelled_call_closes_its_connection_at_once(data, streaming):
    arrived = asyncio.Event()

    async def hang(served: Upstream, reader: Reader, writer: Writer) -> None:
        await served.request(reader)
        writer.write(data)
        arrived.set()
        await served.until_gone(reader)

    async def call(c: OutboundClient, url: str) -> None:
        if not streaming:
            await c.request("GET", url)
            return
        async with c.stream("GET", url) as stream:
            await stream.read(100)

    async with upstream(hang) as served, client() as c:
        task = asyncio.create_task(call(c, served.url))
        await asyncio.wait_for(arrived.wait(), DEADLINE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone(served)


async def test_one_caller_that_gives_up_does_not_spoil_a_shared_lookup():
    answered = asyncio.Event()
    asked = asyncio.Event()

    async def resolve(host: str) -> Sequence[str]:
        asked.set()
        await answered.wait()
        return ["127.0.0.1"]

    async with upstream(answering(ok(b"hi"))) as served, client(resolver=resolve) as c:
        tasks = [asyncio.create_task(c.request("GET", f"http://shared.test:{served.port}/")) for _ in range(2)]
        await asked.wait()
        tasks[0].cancel()
        answered.set()
        assert (await tasks[1]).body == b"hi"
        assert tasks[0].cancelled()


async def test_closing_the_client_ends_calls_in_flight_and_later_ones():
    arrived = asyncio.Event()

    async def hang(served: Upstream, reader: Reader, writer: Writer) -> None:
        await served.request(reader)
        arrived.set()
        await served.until_gone(reader)

    async def never(host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    async with upstream(hang) as served, client(resolver=never) as c:
        calls = [
            asyncio.create_task(c.request("GET", served.url)),
            asyncio.create_task(c.request("GET", "http://unresolved.test/")),
        ]
        await asyncio.wait_for(arrived.wait(), DEADLINE_S)
        await c.close()
        for outcome in await asyncio.gather(*calls, c.request("GET", served.url), return_exceptions=True):
            assert isinstance(outcome, OutboundError)
            assert outcome.code == "outbound.closed"
        await gone(served)
