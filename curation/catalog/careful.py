"""Runs what may take its process along (a decoder's segfault) in a process of its own."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, ParamSpec, TypeVar

from curation.errors import BadSample

_SPAWN = multiprocessing.get_context("spawn")
P = ParamSpec("P")
T = TypeVar("T")


class Subprocess:
    """One process for many calls; a new one follows a dead one."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns.

        Raises:
            BadSample: it killed the process.
        """
        self.pool = self.pool or ProcessPoolExecutor(1, _SPAWN)
        try:
            return self.pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool:
            self.pool = None
            raise BadSample("decode", "DecoderCrash", "decoding this sample kills the process") from None

    def close(self) -> None:
        """End the process."""
        if self.pool:
            self.pool.shutdown(cancel_futures=True)


def stream(function: Callable[P, Iterable[T]], *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
    """What a function yields, made in a process of its own.

    Raises:
        BadSample: it killed the process; what came before it did is good.
    """
    receiver, sender = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_send, args=(sender, function, args, kwargs), daemon=True)
    process.start()
    sender.close()
    try:
        while (message := receiver.recv()) is not None:
            item, error = message
            if error is not None:
                raise error
            yield item
    except EOFError:
        raise BadSample("read", "DecoderCrash", "reading on from here kills the process") from None
    finally:
        process.kill()
        process.join()
        receiver.close()


def _send(sender: Any, function: Callable[..., Iterable[Any]], args: Any, kwargs: Any) -> None:
    try:
        for item in function(*args, **kwargs):
            sender.send((item, None))
    except Exception as error:  # noqa: BLE001 - raised again where it is received
        sender.send((None, error))
    sender.send(None)
