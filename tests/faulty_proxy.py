"""A proxy in front of an S3 server that sees every request and fails some of them, as object stores do.

Run as a process, ``python -m tests.faulty_proxy PORT BACKEND_PORT EVERY``, every
``EVERY``-th request fails, in turn with a 503, a reset connection, and a body
that is cut short. In a test, :func:`watched` tells what was asked for.
"""

import asyncio
import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from aiohttp import ClientSession, web

from tests.s3 import S3

CLIENT = web.AppKey("client", ClientSession)
CONDITIONS = ("if-match", "if-none-match")


@dataclass(frozen=True)
class Seen:
    """A request that came, and how many bytes of a body went back; ``connection`` is the client's port."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    connection: int
    status: int = 0
    size: int = 0


# unavailable, internal, reset, short, understated, unimplemented, unconditional (conditions are ignored), or none
Fault = Callable[[Seen], str | None]


@dataclass
class Watched:
    """A proxy under way."""

    endpoint: str
    fault: Fault
    seen: list[Seen] = field(default_factory=list)

    @property
    def storage(self) -> dict[str, dict[str, str]]:
        """Storage options that lead to it."""
        return {"s3": {"endpoint_url": self.endpoint}}

    def gets(self, key: str = "") -> list[Seen]:
        """The requests for objects, or for one."""
        return [one for one in self.seen if one.method == "GET" and "list-type" not in one.query and key in one.path]

    def lists(self) -> list[Seen]:
        """The requests for pages of listings."""
        return [one for one in self.seen if "list-type" in one.query]


def make_app(backend: str, fault: Fault, seen: list[Seen] | None = None) -> web.Application:
    """The proxy's application.

    Conditional PUTs go on one after the other, as S3 has it: moto compares in one step and writes in another.
    """
    conditional = asyncio.Lock()

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        peer = request.transport.get_extra_info("peername")[1] if request.transport else 0
        headers = {name: value for name, value in request.headers.items() if name.lower() != "transfer-encoding"}
        lower = {name.lower(): value for name, value in headers.items()}
        asked = Seen(request.method, request.path, dict(request.query), lower, peer)
        wrong = fault(asked)
        status, keep, data = 503, {}, b"<Error><Code>SlowDown</Code></Error>"
        if wrong == "internal":
            status, data = 500, b"<Error><Code>InternalError</Code></Error>"
        elif wrong == "unimplemented":
            status, data = 501, b"<Error><Code>NotImplemented</Code></Error>"
        elif wrong != "unavailable":
            if wrong == "unconditional":
                headers = {name: value for name, value in headers.items() if name.lower() not in CONDITIONS}
            alone = conditional if request.method == "PUT" and lower.keys() & CONDITIONS else nullcontext()
            async with (
                alone,
                request.app[CLIENT].request(
                    request.method, backend + request.raw_path, data=body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                status, data = answer.status, await answer.read()
                dropped = ("transfer-encoding", "connection", "date", "server")  # moto closes, stores do not
                keep = {name: value for name, value in answer.headers.items() if name.lower() not in dropped}
        if seen is not None:
            told = int(keep.get("Content-Length", len(data)))
            seen.append(Seen(request.method, request.path, asked.query, lower, peer, status, told))
        if wrong == "reset" and request.transport is not None:
            request.transport.abort()
        if wrong == "understated" and request.method == "GET":
            keep, data = {n: v for n, v in keep.items() if n != "Content-Length"}, data[: len(data) // 2]
        if wrong == "short" and request.method == "GET" and len(data) > 1:
            response = web.StreamResponse(status=status, headers=keep)
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            if request.transport is not None:
                request.transport.abort()
            return response
        return web.Response(status=status, headers=keep, body=data)

    async def client(app: web.Application):
        app[CLIENT] = ClientSession(auto_decompress=False)
        yield
        await app[CLIENT].close()

    app = web.Application(client_max_size=1 << 30)
    app.cleanup_ctx.append(client)
    app.router.add_route("*", "/{path:.*}", handle)
    return app


def every(count: int) -> Fault:
    """Each ``count``-th request fails, in another way each time."""
    requests, faults = itertools.count(1), itertools.cycle(["unavailable", "reset", "short"])
    return lambda _: next(faults) if next(requests) % count == 0 else None


def first(kind: str, times: int = 1, method: str = "GET", key: str = "") -> Fault:
    """The first requests of a method whose path has ``key`` in it fail."""
    left = itertools.count(times, -1)
    return lambda one: kind if one.method == method and key in one.path and next(left) > 0 else None


@contextmanager
def watched(server: S3, fault: Fault = lambda _: None) -> Iterator[Watched]:
    """A proxy in a thread of this process."""
    loop = asyncio.new_event_loop()
    proxy = Watched("", fault)
    app = make_app(server.endpoint, lambda one: proxy.fault(one), proxy.seen)
    runner = web.AppRunner(app)

    async def begin() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    proxy.endpoint = f"http://127.0.0.1:{asyncio.run_coroutine_threadsafe(begin(), loop).result(30)}"
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


if __name__ == "__main__":
    port, backend_port, count = (int(text) for text in sys.argv[1:4])
    asyncio.set_event_loop(asyncio.new_event_loop())
    web.run_app(make_app(f"http://127.0.0.1:{backend_port}", every(count)), host="127.0.0.1", port=port, print=None)
