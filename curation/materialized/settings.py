"""The keys ``materialize.*``: their defaults, and every check that needs no data."""

from dataclasses import dataclass

from curation.errors import require
from curation.storage import PLAIN_NAME


@dataclass
class MaterializeConfig:
    """``curate materialize``: how kept samples are written out."""

    format: str = "webdataset"
    budget: int | None = None
    bytes: int = 256 << 20
    samples: int | None = None
    shuffle: bool = True
    name: str | None = None

    def __post_init__(self) -> None:
        forms = ("webdataset", "parquet")
        require(self.format in forms, f"materialize.format={self.format}: choose {' or '.join(forms)}")
        require(self.bytes > 0, f"materialize.bytes={self.bytes}: give a positive number of bytes a shard")
        ok = self.samples is None or self.samples > 0
        require(ok, f"materialize.samples={self.samples}: give a positive number of samples a shard")
        ok = self.name is None or PLAIN_NAME.fullmatch(self.name) is not None
        require(ok, f"materialize.name={self.name}: take letters, digits, - and _")
