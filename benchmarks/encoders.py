"""Accuracy and images/s of every encoder, beside the forward of open_clip's ViT-B-32 on the same cores.

Accuracy: cosine 5-NN and logistic regression on the final embedding (unit length, float16), trained on the samples
whose int(sha256(key)[:8 hex digits], 16) % 100 is below 60 and tested on the others; nothing is fitted on labels but
these classifiers. Speed: forward from prepared tiles to vectors, both sides in turn in this process on all its cores;
ViT-B-32 in float32 with random weights, which take as long as trained ones. ``ratio`` is random_conv's images/s over
ViT-B-32's, the median of paired repeats.

The archive is the AID dev shards (--data, or the environment's CURATION_BENCHMARK_DATA); where they are not, tiles are
generated, and the result says so. On a GPU the encoder's own stage is timed against the model's bare forward, and the
manifests of a CPU and a GPU run are compared.
"""

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.output import print_result
from curation.archive.decode import decode
from curation.archive.listing import list_archive
from curation.archive.reader import read_shard
from curation.archive.sample import RawSample, Sample
from curation.archive.settings import ArchiveConfig
from curation.catalog.fit import fixed_ranges
from curation.config import load_config
from curation.encoders import Encoder, build_encoder, fit_artefact
from curation.encoders.base import Config
from curation.errors import BadSample
from tests.recipes import write_sample_archive

FIT = 2000  # tiles that random_conv is fitted on
Array = NDArray[Any]


def read(url: str) -> list[Sample]:
    """Every readable, labelled sample below ``url`` that has the first one's bands and dtype."""
    settings = ArchiveConfig()
    found: list[Sample] = []
    for root in list_archive(url):
        for shard in root.shards:
            for raw in read_shard(root.folder, shard, settings):
                with contextlib.suppress(BadSample):
                    if isinstance(raw, RawSample) and (sample := decode(raw, settings)).label:
                        found.append(sample)
    kind = found[0].bands, found[0].pixels.dtype
    return [sample for sample in found if (sample.bands, sample.pixels.dtype) == kind]


def hashed(sample: Sample) -> int:
    """Where a sample lies in the split."""
    return int(hashlib.sha256(sample.key.encode()).hexdigest()[:8], 16)


def made(config: Config, samples: Sequence[Sample], device: str, threads: int) -> Encoder:
    """The encoder, fitted on a sample by hash."""
    chosen = sorted(samples, key=lambda sample: hashlib.sha256(f"fit {sample.key}".encode()).digest())[:FIT]
    bands, dtype = samples[0].bands, str(samples[0].pixels.dtype)
    artefact = fit_artefact(config, chosen, bands, fixed_ranges(chosen, ArchiveConfig(), dtype), 0)
    return build_encoder(config, artefact, bands, dtype, device, threads)


def embed(encoder: Encoder, samples: Sequence[Sample]) -> Array:
    """Unit vectors as the catalog keeps them: float16."""
    vectors = []
    for start in range(0, len(samples), encoder.batch):
        tiles = np.stack([encoder.prepare(sample) for sample in samples[start : start + encoder.batch]])
        vectors.append(encoder.encode(tiles).astype(np.float16))
    return np.concatenate(vectors)


def accuracy(vectors: Array, samples: Sequence[Sample], train: NDArray[np.bool_]) -> dict[str, float]:
    """Share of the test samples that each classifier gets right."""
    x, y = vectors.astype(np.float32), np.array([sample.label for sample in samples])
    classifiers = {
        "knn5": KNeighborsClassifier(5, metric="cosine", algorithm="brute"),
        "probe": LogisticRegression(max_iter=2000),
        "probe_standardised": make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)),
    }
    return {name: float(c.fit(x[train], y[train]).score(x[~train], y[~train])) for name, c in classifiers.items()}


def rate(work: Callable[[], Any], images: int) -> float:
    """Images a second of one call."""
    start = time.perf_counter()
    work()
    return images / (time.perf_counter() - start)


def vit_forward(tiles: Array, threads: int) -> Callable[[], Any]:
    """A forward of ViT-B-32 in float32 over one batch."""
    model = open_clip.create_model("ViT-B-32", load_weights=False).eval()
    batch = torch.as_tensor(tiles).float() / 255

    def work() -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            model.encode_image(batch)
        torch.set_num_threads(1)

    return work


def with_random_weights(folder: Path, channels: int, threads: int) -> dict[str, Config]:
    """Configs of the encoders with networks, their weights drawn here."""
    clip, net = folder / "clip.pt", folder / "resnet.pt"
    torch.manual_seed(0)
    torch.save(open_clip.create_model("ViT-B-32", load_weights=False).state_dict(), clip)
    torch.save(timm.create_model("resnet18", in_chans=channels).state_dict(), net)
    common = {"batch": 32, "threads": threads}
    return {
        "open_clip": {**preset("open_clip"), **common, "checkpoint": str(clip), "quick_gelu": False},
        "timm": {**preset("timm"), **common, "architecture": "resnet18", "checkpoint": str(net)},
    }


def preset(name: str) -> dict[str, Any]:
    """An encoder's config as it is shipped."""
    return dict(load_config([f"encoder={name}"]).encoder)


def look_up(folder: Path, samples: Sequence[Sample], vectors: Array) -> float:
    """Vectors a second that ``precomputed`` gives."""
    keys = [sample.key for sample in samples]
    rows = pa.array(list(vectors), pa.list_(pa.float16()))
    pq.write_table(pa.table({"key": keys, "embedding": rows}), folder / "vectors.parquet")
    config = {**preset("precomputed"), "path": str(folder / "vectors.parquet")}
    encoder: Any = build_encoder(config, fit_artefact(config, [], (), None, 0), (), "", "cpu", 1)
    return rate(lambda: [encoder.lookup("root", key) for key in keys], len(keys))


def on_cpu(
    samples: Sequence[Sample], ours: Encoder, threads: int, repeats: int, folder: Path
) -> tuple[float, dict[str, Any]]:
    """Images/s of every encoder, in turn, and the median ratio of random_conv to ViT-B-32's forward."""
    some = [samples[i % len(samples)] for i in range(512)]
    tiles = np.stack([ours.prepare(sample) for sample in some])
    configs = with_random_weights(folder, len(samples[0].bands), threads)
    nets = {name: made(config, samples, "cpu", threads) for name, config in configs.items()}
    large = {name: np.stack([net.prepare(sample) for sample in some[: net.batch]]) for name, net in nets.items()}
    vit = vit_forward(large["open_clip"], threads)

    def forward() -> None:
        torch.set_num_threads(1)  # random_conv has its own threads
        for start in range(0, len(tiles), ours.batch):
            ours.encode(tiles[start : start + ours.batch])

    def net_forward(name: str) -> None:
        torch.set_num_threads(threads)
        nets[name].encode(large[name])
        torch.set_num_threads(1)

    forward(), vit()
    rates: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, work, images in (
            ("random_conv", forward, len(some)),
            ("vit_b_32_forward", vit, len(large["open_clip"])),
            ("random_conv_with_prepare", lambda: embed(ours, some), len(some)),
            ("open_clip_vit_b_32_with_prepare", lambda: embed(nets["open_clip"], some[:32]), 32),
            ("open_clip_vit_b_32", lambda: net_forward("open_clip"), 32),
            ("timm_resnet18", lambda: net_forward("timm"), 32),
        ):
            rates.setdefault(name, []).append(rate(work, images))
    pairs = zip(rates["random_conv"], rates["vit_b_32_forward"], strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    return ratio, {name: statistics.median(values) for name, values in rates.items()}


def on_gpu(samples: Sequence[Sample], url: str, repeats: int, folder: Path) -> dict[str, float]:
    """The stage of open_clip over its model's bare forward, and the overlap of a CPU's and a GPU's manifest."""
    config = {
        **with_random_weights(folder, len(samples[0].bands), 1)["open_clip"],
        "batch": preset("open_clip")["batch"],
    }
    encoder = made(config, samples, "cuda", 1)
    some = np.stack([encoder.prepare(samples[i % len(samples)]) for i in range(encoder.batch)])
    model = open_clip.create_model("ViT-B-32", load_weights=False).eval().cuda()
    batch = torch.as_tensor(some).cuda().float() / 255

    def bare() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            for _ in range(20):
                model.encode_image(batch)
        torch.cuda.synchronize()

    def stage() -> None:
        for _ in range(20):
            encoder.encode(some)

    bare(), stage()
    images = 20 * encoder.batch
    pairs = [(rate(stage, images), rate(bare, images)) for _ in range(repeats)]
    kept = [kept_ids(url, device, folder / device) for device in ("cpu", "cuda")]
    return {
        "gpu_stage": statistics.median(a for a, _ in pairs),
        "gpu_bare_forward": statistics.median(b for _, b in pairs),
        "gpu_stage_over_forward": statistics.median(a / b for a, b in pairs),
        "cpu_gpu_selection_overlap": len(kept[0] & kept[1]) / len(kept[0]),
    }


def kept_ids(url: str, device: str, workspace: Path) -> set[str]:
    """What a run of the main job on ``device`` keeps."""
    command = [sys.executable, "-m", "jobs.prune", f"archive.url={url}", f"workspace={workspace}"]
    done = subprocess.run([*command, f"runtime.device={device}"], check=True, stdout=subprocess.PIPE, text=True)
    manifest = Path(json.loads(done.stdout.splitlines()[-1])["manifest"].removeprefix("file://"))
    return set(pq.read_table(manifest.with_suffix(".parquet"), columns=["sample_id"])["sample_id"].to_pylist())


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("CURATION_BENCHMARK_DATA", "../shared/data"))
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = sorted(Path(options.data).glob("aid150_dev-*.tar"))
        if shards:
            archive, url = "AID dev shards", str(Path(options.data) / "aid150_dev-*.tar")
        else:
            print(f"no AID shards in {options.data}: generated tiles", file=sys.stderr)
            archive, url = "generated", str(folder / "archive")
            write_sample_archive(folder, tiles=2000)
        samples = read(url)
        print(f"{len(samples)} samples read; fitting and encoding", file=sys.stderr)
        ours = made(preset("random_conv"), samples, "cpu", threads)
        vectors = embed(ours, samples)
        train = np.array([hashed(sample) % 100 < 60 for sample in samples])
        reverse = np.array([hashed(sample) % 100 >= 40 for sample in samples])
        right = {"random_conv": accuracy(vectors, samples, train)}
        right["random_conv_other_split"] = accuracy(vectors, samples, reverse)
        print(json.dumps(right), file=sys.stderr)
        ratio, rates = on_cpu(samples, ours, threads, options.repeats, folder)
        rates["precomputed"] = look_up(folder, samples, vectors)
        gpu = on_gpu(samples, url, options.repeats, folder) if torch.cuda.is_available() else {}
    print_result(
        ratio, archive=archive, samples=len(samples), dim=ours.dim, accuracy=right, images_per_second=rates, **gpu
    )


if __name__ == "__main__":
    main()
