"""Ray's start-up, what the cluster has, and the numeric profile of a worker."""

import importlib.metadata
import logging
import os
import platform
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import ray
from ray import exceptions

from curation.config import RuntimeConfig
from curation.errors import IncompleteError, RequestError

log = logging.getLogger("curation")

LIBRARIES = ("imagecodecs", "numpy", "open-clip-torch", "pillow", "tifffile", "timm", "torch")  # decode and encode
HEAD_PAUSE = 5.0  # seconds between two looks at the head
RAY_LOST = (  # what a job gets when the head dies, or the node that it runs on
    exceptions.ActorDiedError,
    exceptions.ActorUnavailableError,
    exceptions.LocalRayletDiedError,
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
    exceptions.RaySystemError,
    exceptions.RpcError,
)


@dataclass(frozen=True)
class Resources:
    """What the cluster can run at once, and the device that encoders run on."""

    cpus: float
    gpus: float
    device: str


@contextmanager
def ray_for_a_job() -> Iterator[None]:
    """A Ray that is started within ends with the block; one that was there before stays.

    Raises:
        IncompleteError: Ray was lost under way, as when the head's machine dies.
    """
    connected = ray.is_initialized()
    try:
        yield
    except RAY_LOST as error:
        reason = str(error).strip().partition("\n")[0]
        raise IncompleteError(
            f"Ray was lost ({type(error).__name__}: {reason}): once it is up again, the same command goes on from there"
        ) from error
    finally:
        if not connected and ray.is_initialized():
            ray.shutdown()


def start_ray(config: RuntimeConfig) -> Resources:
    """Connect to the configured cluster, or start Ray on this machine; a running connection is used as it is.

    Raises:
        RequestError: the cluster cannot be reached, or has no GPU where one is asked for.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine takes longer than 30,
        os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # and this is a part of it
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters reaches us as exceptions
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if config.address:
                ray.init(address=config.address, **common)
                Thread(target=_watch_head, args=(ray.get_runtime_context().gcs_address,), daemon=True).start()
            else:
                ray.init(
                    num_cpus=config.num_cpus or len(os.sched_getaffinity(0)),
                    include_dashboard=False,
                    object_store_memory=2 << 30,
                    **common,
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise RequestError(f"cannot reach Ray at {config.address or 'this machine'}: {reason}") from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # else what an actor refuses would be a fault of Ray's
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, most in (config.autoscale or {}).items():  # what waits for room there makes the autoscaler bring it
        total[name] = max(total.get(name, 0), most)
    gpus = float(total.get("GPU", 0))
    device = config.device if config.device != "auto" else ("cuda" if gpus else "cpu")
    if device == "cuda" and not gpus:
        raise RequestError("runtime.device=cuda, but the cluster has no GPU: take runtime.device=cpu")
    return Resources(float(total.get("CPU", 0)), gpus, device)


def _watch_head(address: str) -> None:
    """Say so when the cluster's head is gone: Ray ends this process a minute later, without a word."""
    host, _, port = address.rpartition(":")
    while ray.is_initialized():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=30).close()
        except OSError as error:
            log.error(
                "curate: error: Ray's head at %s does not answer (%s): unless it is back in a minute, this run ends; "
                "start the cluster anew, and the same command goes on from there",
                *(address, error.strerror or error),
            )
            return
        time.sleep(HEAD_PAUSE)


def limit_threads(threads: int) -> None:
    """Fix the thread count of everything that computes in this process: bits depend on it."""
    import torch

    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def numeric_profile(device: str, dtype: str) -> dict[str, str]:
    """What decides the bits of an embedding besides the config: device, instruction set, libraries, dtype."""
    import torch

    if device == "cuda":
        kind, capability = torch.cuda.get_device_name(), ".".join(map(str, torch.cuda.get_device_capability()))
    else:
        kind, capability = platform.machine(), torch.backends.cpu.get_cpu_capability()
    return {"device": device, "kind": kind, "capability": capability, "dtype": dtype, **versions(LIBRARIES)}
