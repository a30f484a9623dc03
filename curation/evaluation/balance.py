"""How evenly what was kept is spread over groups (clusters, classes, regions, seasons); what is left of rare ones.

All from two arrays of counts a group: of the archive and of what was kept. A sample's season and region are told by
`curation.selection.groups.group_texts`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.integer]


@dataclass(frozen=True)
class Balance:
    """The spread over the groups that the archive has.

    Attributes:
        groups: how many the archive has.
        present: how many of them have a kept sample.
        entropy: Shannon's, of the kept shares, over the logarithm of ``groups``: 1 where each has the same share, 0
            where one has all (Pielou 1966's evenness); 1 if there is one group only.
        archive_entropy: the same of the archive itself, which is what a random draw keeps.
        smallest: kept in the group with the fewest, times ``groups``, over all kept: 1 where all are equal, 0 where
            one is lost.
    """

    groups: int
    present: int
    entropy: float
    archive_entropy: float
    smallest: float


@dataclass(frozen=True)
class Tail:
    """What is left of the rare groups.

    Attributes:
        groups: int64, which they are: the rarest in the archive, ``share`` of those it has (rounded up), equally rare
            ones by their number.
        samples: of their samples in the archive, the share that is kept.
        found: of these groups, the share that has a kept sample at all.
        lift: ``samples`` over the share of the whole archive that is kept: 1 for a random draw, more if the tail is
            favoured.
    """

    groups: NDArray[np.int64]
    samples: float
    found: float
    lift: float


def balance(kept: Counts, archive: Counts) -> Balance:
    """The spread of what was kept over groups.

    Args:
        kept: (groups,) samples kept of each group, at least one in all.
        archive: (groups,) samples of each in the archive; those with none are left out.
    """
    kept, archive = kept[archive > 0], archive[archive > 0]
    return Balance(
        len(archive),
        int(np.count_nonzero(kept)),
        evenness(kept),
        evenness(archive),
        float(kept.min() * len(kept) / kept.sum()),
    )


def evenness(counts: Counts) -> float:
    """Shannon entropy of the shares over the logarithm of the number of groups (Pielou 1966), 0 to 1."""
    if len(counts) == 1:
        return 1.0
    shares = counts[counts > 0] / counts.sum()
    return float(max(0.0, -(shares * np.log(shares)).sum() / np.log(len(counts))))


def tail_recall(kept: Counts, archive: Counts, share: float = 0.2) -> Tail:
    """What is left of the rarest groups, by the archive's own counts.

    Args:
        kept: (groups,) samples kept of each group.
        archive: (groups,) samples of each in the archive; those with none are left out.
        share: of the groups, in (0, 1], that are the tail.
    """
    there = np.flatnonzero(archive > 0)
    tail = there[np.argsort(archive[there], kind="stable")][: int(np.ceil(share * len(there)))]
    samples = kept[tail].sum() / archive[tail].sum()
    return Tail(
        np.sort(tail).astype(np.int64),
        float(samples),
        float(np.mean(kept[tail] > 0)),
        float(samples * archive.sum() / max(kept.sum(), 1)),
    )
