"""The tiny diffusion model of `benchmarks.evidence.generation`; needs torch and diffusers, no Ray.

``python -m benchmarks.evidence.diffusion WORK`` trains what ``generation --prepare`` wrote down and is not done yet
(``WORK/tiles.npz``, a row a tile of the archive, and ``WORK/jobs.json``): perhaps on another machine, with a GPU.

The model: U-Net on 2 x 2 pixel blocks, v-prediction, cosine schedule, averaged weights, DDIM; after so few steps its
samples have the tiles' colours and coarse forms under much grain, so it says which set is better for a short training
of a small model, no more.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from benchmarks.output import write_json
from curation.scoring.network import warm_cosine

SIZE = 32  # pixels a side, of
BANDS = 3
WIDTHS = 32, 64, 64  # channels at 16, 8 and 4 places a side: 1.05 million parameters
RATE = 2e-3  # of AdamW, at its highest
DECAY = 0.995  # of the weights' average
TIMES = 1000  # of the diffusion
DRAWN = 512  # samples of each model, `ROW` in a row of its sheet
ROW = 32
DDIM_STEPS = 20

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """One model: which tiles (rows of ``tiles.npz``) it sees, in how many steps of how many, and how many it draws."""

    name: str
    rows: list[int]
    seed: int
    steps: int
    batch: int
    drawn: int = DRAWN


def network(seed: int) -> UNet2DModel:
    """The U-Net, on blocks of 2 x 2 pixels, with its first weights."""
    torch.manual_seed(seed)
    depth = len(WIDTHS)
    net = UNet2DModel(
        sample_size=SIZE // 2,
        in_channels=4 * BANDS,
        out_channels=4 * BANDS,
        layers_per_block=1,
        block_out_channels=WIDTHS,
        down_block_types=("DownBlock2D",) * depth,
        up_block_types=("UpBlock2D",) * depth,
        norm_num_groups=8,
        add_attention=False,
    )
    return net.to(memory_format=torch.channels_last)


def scheduler() -> DDIMScheduler:
    """Cosine schedule (Nichol and Dhariwal 2021), v-prediction (Salimans and Ho 2022)."""
    return DDIMScheduler(
        TIMES, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
    )


def train(net: UNet2DModel, pixels: Pixels, seed: int, steps: int, batch: int) -> float:
    """Train on uniform draws with replacement, and leave the averaged weights in it; the last tenth's mean loss."""
    device, noising = net.device, scheduler()
    torch.manual_seed(seed)
    data = F.pixel_unshuffle(torch.from_numpy(pixels).to(device).float() / 127.5 - 1, 2)
    signal = noising.alphas_cumprod.to(device)
    weights = list(net.parameters())
    averaged = [weight.detach().clone() for weight in weights]
    rate, graphed = torch.tensor(RATE, device=device), device.type == "cuda"
    optimiser = torch.optim.AdamW(weights, lr=rate, fused=True, capturable=graphed)
    said = torch.zeros((), device=device)

    def step() -> None:
        clean = data[torch.randint(len(data), (batch,), device=device)]
        noise, times = torch.randn_like(clean), torch.randint(TIMES, (batch,), device=device)
        kept = signal[times].view(-1, 1, 1, 1)
        noisy, velocity = (
            kept.sqrt() * clean + (1 - kept).sqrt() * noise,
            kept.sqrt() * noise - (1 - kept).sqrt() * clean,
        )
        loss = F.mse_loss(net(noisy, times).sample, velocity)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, weights, 1 - DECAY)
        said.copy_(loss.detach())

    take, losses = _graphed(step) if graphed else step, []
    for number in range(steps):
        rate.fill_(RATE * warm_cosine(number, steps))
        take()
        if number >= steps - max(1, steps // 10):
            losses.append(said.clone())
    with torch.no_grad():
        for weight, average in zip(weights, averaged, strict=True):
            weight.copy_(average)
    return float(torch.stack(losses).mean())


def _graphed(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one graph, for its kernels are shorter than their launch; a few steps are taken before."""
    apart = torch.cuda.Stream()
    apart.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(apart):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(apart)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.inference_mode()
def draw_samples(net: UNet2DModel, seed: int, count: int) -> Pixels:
    """(count, `BANDS`, `SIZE`, `SIZE`); the count is a multiple of `ROW`."""
    noise = torch.Generator().manual_seed(seed)
    steps = scheduler()
    steps.set_timesteps(DDIM_STEPS)
    parts = []
    for _ in range(count // ROW):
        x = torch.randn(ROW, 4 * BANDS, SIZE // 2, SIZE // 2, generator=noise).to(net.device)
        for time_step in steps.timesteps:
            x = steps.step(net(x, time_step).sample, time_step, x).prev_sample
        parts.append(F.pixel_shuffle(x, 2).add(1).mul(127.5).round().clamp(0, 255).byte().cpu().numpy())
    return np.concatenate(parts)


def generate(job: Job, pixels: Pixels, work: Path, device: str) -> str:
    """Train, draw, and keep the samples; runs in a process of its own, on one thread."""
    torch.set_num_threads(1)
    start = time.monotonic()
    net = network(job.seed).to(device)
    loss = train(net, pixels, job.seed, job.steps, job.batch) if job.steps else None
    trained = time.monotonic()
    write_sheet(work / "samples" / f"{job.name}.png", draw_samples(net.eval(), job.seed, job.drawn))
    seconds = {"train": round(trained - start, 1), "draw": round(time.monotonic() - trained, 1)}
    told = {"tiles": len(pixels), "loss": loss, "seconds": seconds, "device": device}
    write_json(work / "arms" / f"{job.name}.json", told)
    return f"{job.name}: loss {loss}, seconds {seconds}"


def generate_all(work: Path, processes: int, device: str) -> None:
    """The jobs that are not done yet, one a process."""
    with np.load(work / "tiles.npz") as file:
        tiles: Pixels = file["tiles"]
    jobs = [Job(**job) for job in json.loads((work / "jobs.json").read_text())]
    pending = [job for job in jobs if not (work / "arms" / f"{job.name}.json").exists()]
    print(f"training {len(pending)} of {len(jobs)} models in {processes} processes", file=sys.stderr)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(generate, job, tiles[job.rows], work, device) for job in pending]
        for done in as_completed(running):
            print(done.result(), file=sys.stderr, flush=True)


def write_jobs(work: Path, tiles: Pixels, jobs: list[Job]) -> None:
    """For :func:`generate_all`, here or elsewhere."""
    work.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(work / "tiles.npz", tiles=tiles)
    write_json(work / "jobs.json", [asdict(job) for job in jobs])


def write_sheet(path: Path, tiles: Pixels) -> None:
    """`ROW` tiles in a row, lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = tiles.reshape(-1, ROW, *tiles.shape[1:]).transpose(0, 3, 1, 4, 2)
    Image.fromarray(rows.reshape(len(rows) * SIZE, ROW * SIZE, BANDS)).save(path)


def read_sheet(path: Path) -> Pixels:
    """The tiles of a sheet, (n, `BANDS`, `SIZE`, `SIZE`)."""
    sheet = np.asarray(Image.open(path))
    rows = sheet.reshape(-1, SIZE, ROW, SIZE, BANDS).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(rows.reshape(-1, BANDS, SIZE, SIZE))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder that generation --prepare wrote to")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, help="models at a time; as many as cores, on a GPU one")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if options.device == "cpu" else 1
    generate_all(options.work, options.processes or cores, options.device)


if __name__ == "__main__":
    main()
