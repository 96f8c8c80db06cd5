"""Servers of raw bytes on loopback, well behaved and not, and the outbound client to call them with."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from toolcrib.core.http import AddressPolicy, OutboundClient, Resolver

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
DEADLINE_S = 10.0


class Upstream:
    """A server of raw bytes; counts connections and tells when a peer went away."""

    def __init__(self) -> None:
        self.url = ""
        self.port = 0
        self.connections = 0
        self.requests: list[bytes] = []
        self.peer_gone = asyncio.Event()

    async def request(self, reader: Reader) -> bytes:
        """The next request, head and body."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
        request = head + await reader.readexactly(length)
        self.requests.append(request)
        return request

    async def until_gone(self, reader: Reader) -> None:
        """Wait until the client closes the connection."""
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        self.peer_gone.set()


Handler = Callable[[Upstream, Reader, Writer], Awaitable[None]]


@contextlib.asynccontextmanager
async def upstream(
    handler: Handler, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Upstream]:
    """A server that runs `handler` for every connection."""
    served = Upstream()
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: Reader, writer: Writer) -> None:
        served.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(served, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            served.peer_gone.set()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    server = await asyncio.start_server(accept, host, port, ssl=tls, backlog=1024)
    served.port = server.sockets[0].getsockname()[1]
    served.url = f"{'https' if tls else 'http'}://127.0.0.1:{served.port}"
    try:
        yield served
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def answering(data: bytes, *, keep: bool = False) -> Handler:
    """A handler that answers every request with these bytes; closes after the first unless `keep`."""

    async def handler(served: Upstream, reader: Reader, writer: Writer) -> None:
        while True:
            await served.request(reader)
            writer.write(data)
            await writer.drain()
            if not keep:
                return

    return handler


def hanging(data: bytes) -> Handler:
    """A handler that sends these bytes and then waits for the client to go away."""

    async def handler(served: Upstream, reader: Reader, writer: Writer) -> None:
        await served.request(reader)
        writer.write(data)
        await served.until_gone(reader)

    return handler


def ok(body: bytes, *headers: str) -> bytes:
    head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers])
    return f"{head}\r\n\r\n".encode() + body


@contextlib.asynccontextmanager
async def client(*allow: str, **options: object) -> AsyncIterator[OutboundClient]:
    made = OutboundClient(AddressPolicy.parse(allow or ["loopback"]), **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.close()


def resolver(*answers: Sequence[str]) -> tuple[Resolver, list[str]]:
    """DNS, which is not ours: gives these answers one after the other, then the last one for ever."""
    asked: list[str] = []

    async def resolve(host: str) -> Sequence[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    return resolve, asked


async def gone(served: Upstream) -> None:
    await asyncio.wait_for(served.peer_gone.wait(), DEADLINE_S)
