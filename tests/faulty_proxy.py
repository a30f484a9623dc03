"""A proxy in front of an S3 server that fails now and then, as object stores do.

Run as a process: ``python -m tests.faulty_proxy PORT BACKEND_PORT EVERY``.
Every ``EVERY``-th request fails, in turn with a 503, a reset connection, and a
body that is cut short.
"""

import asyncio
import itertools
import sys

from aiohttp import ClientSession, web


def make_app(backend: str, every: int) -> web.Application:
    """The proxy's application."""
    requests = itertools.count(1)
    faults = itertools.cycle(["unavailable", "reset", "short"])

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        fault = next(faults) if next(requests) % every == 0 else None
        if fault == "unavailable":
            return web.Response(status=503, text="<Error><Code>SlowDown</Code></Error>")
        headers = {name: value for name, value in request.headers.items() if name.lower() != "transfer-encoding"}
        async with request.app["client"].request(
            request.method, backend + request.raw_path, data=body, headers=headers, allow_redirects=False
        ) as answer:
            data = await answer.read()
            keep = {n: v for n, v in answer.headers.items() if n.lower() not in ("transfer-encoding", "date", "server")}
            if fault == "reset" and request.transport is not None:
                request.transport.abort()
            if fault == "short" and request.method == "GET" and len(data) > 1:
                response = web.StreamResponse(status=answer.status, headers=keep)
                await response.prepare(request)
                await response.write(data[: len(data) // 2])
                if request.transport is not None:
                    request.transport.abort()
                return response
            return web.Response(status=answer.status, headers=keep, body=data)

    async def client(app: web.Application):
        app["client"] = ClientSession(auto_decompress=False)
        yield
        await app["client"].close()

    app = web.Application(client_max_size=1 << 30)
    app.cleanup_ctx.append(client)
    app.router.add_route("*", "/{path:.*}", handle)
    return app


if __name__ == "__main__":
    port, backend_port, every = (int(text) for text in sys.argv[1:4])
    asyncio.set_event_loop(asyncio.new_event_loop())
    web.run_app(make_app(f"http://127.0.0.1:{backend_port}", every), host="127.0.0.1", port=port, print=None)
