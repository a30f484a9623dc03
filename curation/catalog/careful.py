"""Runs what may take its process along (a decoder's segfault) in a process of its own."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

from curation.errors import BadSample

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
        self.pool = self.pool or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            return self.pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool:
            self.pool = None
            raise BadSample("decode", "DecoderCrash", "decoding this sample kills the process") from None

    def close(self) -> None:
        """End the process."""
        if self.pool:
            self.pool.shutdown(cancel_futures=True)
