"""Runs a training loop on Ray Train: a group of workers, started again where one dies, watched until it ends (Ray)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from threading import Thread
from typing import Any

import pyarrow.fs
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from curation.errors import CurationError, RequestError
from curation.runtime import Resources
from curation.storage import Folder

log = logging.getLogger("curation")

PATIENCE = 24 * 3600  # seconds that ranks wait for rank 0, which may be at work alone


@dataclass(frozen=True)
class Group:
    """The workers of a training.

    Attributes:
        workers: how many.
        cpus, gpus: of each, as Ray is asked for them.
    """

    workers: int
    cpus: float
    gpus: float

    @classmethod
    def of(cls, key: str, workers: int, threads: int, resources: Resources, least: float = 0.0) -> Group:
        """As much as the cluster has room for: several workers may share a core, but not a GPU.

        Args:
            key: the setting that says how many workers, for messages.
            workers: how many.
            threads: of each; with a GPU one core is asked for.
            resources: what the cluster has.
            least: CPUs that must be left for others.

        Raises:
            RequestError: the cluster has not as much.
        """
        cuda = resources.device == "cuda"
        if cuda and resources.gpus < workers:
            raise RequestError(f"{key}={workers} need as many GPUs, and the cluster has {resources.gpus:g}")
        cpus = min(1.0 if cuda else float(threads), math.floor((resources.cpus - least) / workers * 100) / 100)
        if cpus <= 0:
            raise RequestError(f"{resources.cpus:g} CPU has no room for {key}={workers}: raise runtime.num_cpus")
        return cls(workers, cpus, float(cuda))


def train(
    loop: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    group: Group,
    folder: Folder,
    restarts: int,
    key: str,
    watch: Callable[[Future[Any]], None],
) -> None:
    """Run a loop to its end.

    Args:
        loop: what each worker runs.
        config: that it is given.
        group: the workers.
        folder: of the training; what Ray Train leaves there is removed.
        restarts: of workers that died.
        key: the setting that says how many, for messages.
        watch: told of the future of the whole, waits until it is done and takes its result.

    Raises:
        CurationError: a worker's own, or that it died too often.
        OSError: a worker's own.
    """
    store = folder.child("ray")  # Ray Train wants a folder that all nodes see; nothing of worth lies there
    trainer = TorchTrainer(
        loop,
        train_loop_config=config,
        torch_config=TorchConfig(timeout_s=PATIENCE),
        scaling_config=ray.train.ScalingConfig(
            num_workers=group.workers,
            use_gpu=group.gpus > 0,
            resources_per_worker={"CPU": group.cpus, **({"GPU": group.gpus} if group.gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=store.full(""),
            storage_filesystem=None if store.local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store.fs)),
            failure_config=ray.train.FailureConfig(max_failures=restarts),
            callbacks=[_Failures(store)],  # type: ignore[list-item] # typed as those of Ray Tune
        ),
    )
    finished: Future[Any] = Future()

    def fit() -> None:
        try:
            finished.set_result(trainer.fit())
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            finished.set_exception(error)

    # in the main thread Ray Train would take Ctrl-C for itself, and exit with 0
    Thread(target=fit, daemon=True).start()
    telling = Thread(target=_tell_failures, args=(store, finished, restarts, key), daemon=True)
    telling.start()
    try:
        watch(finished)
    except ray.train.WorkerGroupError as error:
        for cause in error.worker_failures.values():
            known = getattr(cause, "cause", cause)
            if isinstance(known, CurationError | OSError):
                raise known from error
        rank, cause = next(iter(error.worker_failures.items()))
        raise CurationError(
            f"worker {rank} of the training failed more than {key}={restarts} times; "
            f"the same command goes on from the last checkpoint: {_reason(cause)}"
        ) from error
    finally:
        if finished.done():
            telling.join()
        store.discard("")


class _Failures(ray.train.UserCallback):
    """Writes down why workers failed; Ray Train calls it in a process of its own."""

    def __init__(self, store: Folder) -> None:
        self.store, self.count = store, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        rank, cause = min(worker_exceptions.items(), key=lambda item: item[0])
        why = f"worker {rank} of the training failed: {_reason(getattr(cause, 'cause', cause))}"
        self.store.publish(_failure(self.count), why.encode())
        self.count += 1


def _reason(error: BaseException) -> str:
    """The end of what an error says, in a line."""
    return " ".join(str(error).split())[-300:]


def _failure(number: int) -> str:
    return f"failure-{number}.txt"


def _tell_failures(store: Folder, finished: Future[Any], restarts: int, key: str) -> None:
    """Tell people as it happens: else they see a training that stands still while it begins again."""
    told, over = 0, False
    while not over and told < restarts:
        over = bool(wait([finished], 2).done)
        try:
            why = store.read(_failure(told)).decode()
        except (CurationError, OSError):
            continue
        told += 1
        log.warning("%s; it goes on from the last checkpoint, %d of %s=%d", why, told, key, restarts)
