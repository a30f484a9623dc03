"""How far a sample's image agrees with what is said of it: with a text, with its class, or with another modality.

Everything that is fitted is cross-fitted: samples lie in folds by a hash of their ids, and those of a fold are judged
by what the other folds taught, so that no pair decides its own figure. A sample's figure is then its rank within its
class, so that a class that is hard to tell is not taken for wrong. Nothing here imports Ray.

What is fitted is a flat mapping of arrays, the first axis the fold that it is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from curation.encoders.base import unit_length
from curation.errors import RequestError
from curation.scoring.settings import ConsistencyConfig

if TYPE_CHECKING:
    from curation.storage import Folder

Vectors = NDArray[np.float16] | NDArray[np.float32]
Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Fitted = Mapping[str, NDArray[np.float32]]

ROWS = 8192  # worked on at once
ABOUT = "consistency.json"  # of the result, written last


def read_consistency(folder: Folder) -> NDArray[np.float32]:
    """The consistency of every row of the archive, float32 (rows,), NaN for none: what `training.policies` take.

    Rows are in the order of shards by name, in each by index.

    Args:
        folder: ``scores/<id>``, as ``curate consistency`` prints it.

    Raises:
        RequestError: there is none.
    """
    if not folder.exists(ABOUT):
        raise RequestError(f"{folder.public()} holds no consistency: give the folder that curate consistency prints")
    paths = sorted(file.path for file in folder.list(recursive=False) if file.path.startswith("part-"))
    columns = ["shard", "index", "consistency"]
    found = pa.concat_tables(pq.read_table(pa.BufferReader(folder.read(path)), columns=columns) for path in paths)
    ordered = found.sort_by([("shard", "ascending"), ("index", "ascending")])
    values: NDArray[np.float32] = ordered["consistency"].fill_null(np.nan).to_numpy().astype(np.float32)
    return values


# second view


def class_sums(vectors: Vectors, codes: Codes, fold: Codes, classes: int, folds: int) -> Floats:
    """The sum of the vectors of each fold and class, (folds, classes, d); a code of -1 is none."""
    sums = np.zeros((folds * classes, vectors.shape[1]))
    known = codes >= 0
    np.add.at(sums, fold[known] * classes + codes[known], vectors[known].astype(np.float64))
    return sums.reshape(folds, classes, -1)


def fit_prototypes(sums: Floats) -> dict[str, NDArray[np.float32]]:
    """For each fold a prototype a class, of unit length: the mean direction of the other folds' members; 0 of none."""
    others = sums.sum(axis=0) - sums
    others[np.abs(others) < 1e-9] = 0  # a class that this fold alone has
    lengths = np.linalg.norm(others, axis=2, keepdims=True)
    return {"prototypes": np.divide(others, lengths, out=np.zeros_like(others), where=lengths > 0).astype(np.float32)}


def by_prototypes(fitted: Fitted, vectors: Vectors, codes: Codes, fold: Codes) -> NDArray[np.float32]:
    """The cosine to the own class's prototype less the greatest one to another class's, (n,).

    NaN where there is no class, or no other member of it in the other folds.
    """
    found = np.full(len(codes), np.nan, np.float32)
    for number, prototypes in enumerate(fitted["prototypes"]):
        there = prototypes.any(axis=1)
        rows = np.flatnonzero((fold == number) & (codes >= 0))
        rows = rows[there[codes[rows]]]
        for some in np.split(rows, range(ROWS, len(rows), ROWS)):
            cosines = unit_length(vectors[some].astype(np.float32)) @ prototypes.T
            at = np.arange(len(some))
            own = cosines[at, codes[some]]
            cosines[at, codes[some]] = -np.inf
            cosines[:, ~there] = -np.inf
            found[some] = own - cosines.max(axis=1, initial=-1.0)
    return found


# modalities


def moments(one: Vectors, other: Vectors, fold: Codes, folds: int) -> dict[str, Floats]:
    """What a ridge regression between two modalities needs of each fold: counts, sums and products, float64.

    Args:
        one: (n, d) embeddings of a modality.
        other: (n, e) of the other.
        fold: (n,) of each pair.
        folds: how many.
    """
    d, e = one.shape[1], other.shape[1]
    made = {"n": np.zeros(folds), "products": np.zeros((folds, d + e, d + e)), "sums": np.zeros((folds, d + e))}
    for start in range(0, len(one), ROWS):
        rows = slice(start, start + ROWS)
        both = np.concatenate([unit_length(x[rows].astype(np.float32)) for x in (one, other)], axis=1)
        for number in range(folds):
            some = both[fold[rows] == number].astype(np.float64)
            made["n"][number] += len(some)
            made["sums"][number] += some.sum(axis=0)
            made["products"][number] += some.T @ some
    return made


def fit_maps(found: Mapping[str, Floats], d: int, ridge: float) -> dict[str, NDArray[np.float32]]:
    """For each fold the two linear maps between the modalities that the other folds teach, and their means.

    Args:
        found: of `moments`, summed.
        d: length of the first modality's vectors.
        ridge: the penalty, as a share of the mean eigenvalue of the covariance.

    Returns:
        ``forward`` (folds, d, e), ``backward`` (folds, e, d), ``mean`` (folds, d + e).
    """
    made: dict[str, list[Floats]] = {"forward": [], "backward": [], "mean": []}
    for number in range(len(found["n"])):
        n, sums, products = (values.sum(axis=0) - values[number] for values in (found[k] for k in _MOMENTS))
        mean = sums / max(n, 1)
        covariance = products / max(n, 1) - np.outer(mean, mean)
        one, other, cross = covariance[:d, :d], covariance[d:, d:], covariance[:d, d:]
        for name, own, to in (("forward", one, cross), ("backward", other, cross.T)):
            penalty = max(ridge * np.trace(own) / len(own), 1e-12)
            made[name].append(np.linalg.solve(own + penalty * np.eye(len(own)), to))
        made["mean"].append(mean)
    return {name: np.stack(values).astype(np.float32) for name, values in made.items()}


_MOMENTS = ("n", "sums", "products")


def by_maps(fitted: Fitted, one: Vectors, other: Vectors, fold: Codes) -> NDArray[np.float32]:
    """The cosine of a mapped modality with the real one less its mean over non-pairs; the mean of both ways, (n,).

    The non-pairs are all samples of the other folds.
    """
    found, d = np.empty(len(fold), np.float32), one.shape[1]
    for number in range(len(fitted["mean"])):
        mean = fitted["mean"][number]
        rows = np.flatnonzero(fold == number)
        for some in np.split(rows, range(ROWS, len(rows), ROWS)):
            x, z = (unit_length(vectors[some].astype(np.float32)) for vectors in (one, other))
            to_z = unit_length((x - mean[:d]) @ fitted["forward"][number] + mean[d:])
            to_x = unit_length((z - mean[d:]) @ fitted["backward"][number] + mean[:d])
            found[some] = ((to_z * (z - mean[d:])).sum(axis=1) + (to_x * (x - mean[:d])).sum(axis=1)) / 2
    return found


# text


class Pairs(NamedTuple):
    """Images and their texts.

    Attributes:
        images: (n, d) embeddings.
        texts: (n, d) embeddings in the same space.
        same: (n,) the same number for the same text.
        fold: (n,).
    """

    images: Vectors
    texts: Vectors
    same: NDArray[np.int64]
    fold: Codes


class Adapter(nn.Module):
    """Moves unit vectors a little: x + layer(x), to unit length; as it begins, it leaves them as they are."""

    def __init__(self, dim: int, kind: str) -> None:
        super().__init__()
        last = nn.Linear(dim, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layer = last if kind == "linear" else nn.Sequential(nn.Linear(dim, dim), nn.GELU(), last)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, dim)`` -> ``(n, dim)``, unit length."""
        return F.normalize(x + self.layer(x), dim=1)


def train_adapters(pairs: Pairs, settings: ConsistencyConfig, seed: int, device: str) -> nn.ModuleDict:
    """Adapters of images and texts by symmetric InfoNCE (van den Oord et al. 2018), AdamW, a constant rate.

    Pairs of one text in a batch (prompts of one class) are all right for one another: the target is even among them.
    """
    both = _adapters(pairs.images.shape[1], settings.adapter, seed).to(device)
    optimiser = torch.optim.AdamW(both.parameters(), lr=settings.rate)
    draw = np.random.default_rng(seed)
    for _ in range(settings.steps if len(pairs.fold) > 1 else 0):
        rows = draw.choice(len(pairs.fold), min(settings.batch, len(pairs.fold)), replace=False)
        image, text = (
            both[name](torch.from_numpy(unit_length(vectors[rows].astype(np.float32))).to(device))
            for name, vectors in (("image", pairs.images), ("text", pairs.texts))
        )
        alike = torch.from_numpy(pairs.same[rows, None] == pairs.same[rows]).to(device).float()
        loss = info_nce(image @ text.T / settings.temperature, alike)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return both.eval()


def _adapters(dim: int, kind: str, seed: int = 0) -> nn.ModuleDict:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.ModuleDict({name: Adapter(dim, kind) for name in ("image", "text")})


def info_nce(logits: Tensor, alike: Tensor) -> Tensor:
    """The mean of both directions' cross entropy, the target even among the alike.

    Args:
        logits: (n, n) of images by texts.
        alike: (n, n) 1 where a text is right for an image, else 0; symmetric.
    """
    target = alike / alike.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def fit_adapters(
    pairs: Pairs, settings: ConsistencyConfig, seed: int, number: int, device: str = "cpu"
) -> dict[str, NDArray[np.float32]]:
    """What judges the samples of one fold: adapters that the others taught, and the mean of the others' texts."""
    taught = Pairs(*(values[pairs.fold != number] for values in pairs))
    if not len(taught.fold):
        taught = pairs  # nobody is there to teach: a sample of a handful
    both = train_adapters(taught, settings, int(np.random.SeedSequence([seed, number]).generate_state(1)[0]), device)
    made = {name: tensor.detach().cpu().numpy() for name, tensor in both.state_dict().items()}
    made["mean"] = _adapted(both["text"], taught.texts).mean(axis=0, dtype=np.float64).astype(np.float32)
    return made


def by_adapters(fitted: Fitted, images: Vectors, texts: Vectors, kind: str) -> NDArray[np.float32]:
    """The cosine of adapted image and adapted text less its mean over the texts of non-pairs, (n,); one fold's rows."""
    both = _adapters(images.shape[1], kind)
    both.load_state_dict({name: torch.from_numpy(values) for name, values in fitted.items() if name != "mean"})
    image, text = _adapted(both["image"], images), _adapted(both["text"], texts)
    return np.asarray((image * (text - fitted["mean"])).sum(axis=1), np.float32)


def _adapted(adapter: nn.Module, vectors: Vectors) -> NDArray[np.float32]:
    device = next(adapter.parameters()).device
    made = [np.empty((0, vectors.shape[1]), np.float32)]
    with torch.inference_mode():
        for start in range(0, len(vectors), ROWS):
            x = torch.from_numpy(unit_length(vectors[start : start + ROWS].astype(np.float32)))
            made.append(adapter(x.to(device)).cpu().numpy())
    return np.concatenate(made)
