"""Into how many partitions rows are dealt, and which strata share one."""

import numpy as np
from numpy.typing import NDArray

ROWS_A_PARTITION = 1 << 19
PARTITIONS = 128  # at most: pieces must not become so small that the driver would hold them


def number_of_partitions(rows: int, each: int | None = None, most: int = PARTITIONS) -> int:
    """How many there are of ``each`` rows (None: `ROWS_A_PARTITION`), ``most`` of them at most."""
    return int(np.clip(-(-rows // (each or ROWS_A_PARTITION)), 1, most))


def deal_strata(sizes: NDArray[np.int64], each: int | None = None, most: int = PARTITIONS) -> NDArray[np.int16]:
    """The partition of each stratum: ranges of about equally many rows.

    Args:
        sizes: (strata,) rows.
        each: rows of a partition (None: `ROWS_A_PARTITION`).
        most: partitions.
    """
    rows = int(sizes.sum())
    number = number_of_partitions(rows, each, most)
    before = np.cumsum(sizes) - sizes
    return (before * number // max(rows, 1)).clip(max=number - 1).astype(np.int16)
