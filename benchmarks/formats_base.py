"""What a format of `benchmarks.formats` is: how an archive of it is written, and the loop that its users write."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from curation.archive.settings import ArchiveConfig

Pixels = Iterator[NDArray[Any]]  # (bands, height, width) of each sample


@dataclass(frozen=True)
class Format:
    """One way of storing samples.

    Attributes:
        write: writes an archive of about so many units (samples, rows of tiles) into an empty folder.
        plain: loops that read the same samples, by the library that they use; the fastest one counts.
        size: units for speed.
        memory: units for peak memory, of which ten times is taken too; 0: it is not measured.
        settings: how we read it.
    """

    write: Callable[[Path, int], None]
    plain: Mapping[str, Callable[[Path], Pixels]]
    size: int
    memory: int
    settings: ArchiveConfig = field(default_factory=ArchiveConfig)
