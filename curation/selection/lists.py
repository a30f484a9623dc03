"""Lists of samples that must be kept or must not be: keys, ids, or areas with times."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.errors import RequestError
from curation.selection.footprints import SIDES, Floats, boxes, unrolled

NAMES = ("sample_id", "key", "source_id")  # the finest first: the first one that a table has counts
TIME = pa.timestamp("us", tz="UTC")
DAY = np.timedelta64(1, "D")


@dataclass(frozen=True)
class SampleList:
    """A table that names samples.

    Attributes:
        name: how the user named it, for messages.
        column: the catalog column that its values belong to, or ``None`` where it has areas.
        values: the values, or the areas: ``west, south, east, north`` in degrees and, in UTC, ``start, end``.
    """

    name: str
    column: str | None
    values: pa.Table

    @property
    def columns(self) -> tuple[str, ...]:
        """The catalog columns that `match` needs."""
        return (self.column,) if self.column else ("footprint", "time")

    @property
    def digest(self) -> str:
        """A hash over what it names."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.values.schema) as writer:
            writer.write_table(self.values.combine_chunks())
        return hashlib.sha256(sink.getvalue()).hexdigest()

    def match(self, catalog: pa.Table) -> NDArray[np.bool_]:
        """Which rows of the catalog the list names.

        A footprint matches an area that it touches, at a time from start to end
        where the area has them; a sample without a footprint or time does not.
        """
        if self.column:
            named = pc.is_in(catalog[self.column], value_set=self.values[self.column].drop_null().combine_chunks())
            return np.array(named, bool)
        footprint = boxes(catalog["footprint"])
        time = np.asarray(catalog["time"].cast(pa.timestamp("us")))
        found = np.zeros(catalog.num_rows, bool)
        for area in self.values.to_pylist():
            found |= _touches(area, footprint) & _during(area, time)
        return found


def parse_list(name: str, data: bytes) -> SampleList:
    """Read a Parquet or CSV table.

    Args:
        name: how the user named it.
        data: the file's bytes.

    Raises:
        RequestError: it is no such table, or says of nothing which samples it means.
    """
    texts = {column: pa.string() for column in NAMES}  # 007 is a key, not a number
    source = pa.BufferReader(data)
    try:
        if data[:4] == b"PAR1":
            table = pq.read_table(source)
        else:
            table = pa.csv.read_csv(source, convert_options=pa.csv.ConvertOptions(column_types=texts))
        for column in NAMES:
            if column in table.column_names:
                return SampleList(name, column, pa.table({column: table[column].cast(pa.string())}))
        if set(SIDES) <= set(table.column_names):
            return SampleList(name, None, _areas(table))
    except pa.ArrowException as error:
        raise RequestError(f"{name} is no Parquet or CSV table of samples: {str(error).splitlines()[0]}") from error
    raise RequestError(f"{name} needs a column {', '.join(NAMES)}, or {', '.join(SIDES)} with start and end if wanted")


def _areas(table: pa.Table) -> pa.Table:
    """Sides as numbers; times in UTC, an end that is a day up to its last moment."""
    areas = {side: table[side].cast(pa.float64()) for side in SIDES}
    for bound in ("start", "end"):
        if bound in table.column_names:
            areas[bound] = moments(table[bound], last=bound == "end")
    return pa.table(areas)


def moments(column: pa.ChunkedArray, last: bool = False) -> pa.ChunkedArray:
    """Times in UTC, which is meant where no zone is given; of a day its first moment, or its last."""
    moment = column.cast(pa.timestamp("us", tz=getattr(column.type, "tz", None)))
    if last and pa.types.is_date(column.type):
        moment = pc.add(moment, pa.scalar(DAY - np.timedelta64(1, "us")))
    return moment.cast(TIME) if moment.type.tz else pc.assume_timezone(moment, "UTC")


def _touches(area: dict[str, float], footprint: Floats) -> NDArray[np.bool_]:
    """Which of (n, 4) `boxes` touch an area, edges included; both may cross the antimeridian."""
    ((west, south, east, north),) = unrolled(np.array([[area[side] for side in SIDES]], np.float64))
    sideways = (footprint[:, 0] - west) % 360 <= east - west
    sideways |= (west - footprint[:, 0]) % 360 <= footprint[:, 2] - footprint[:, 0]
    return np.asarray(sideways & (footprint[:, 3] >= south) & (footprint[:, 1] <= north))


def _during(area: dict[str, object], time: NDArray[np.datetime64]) -> NDArray[np.bool_]:
    """Between start and end, both included; NaT is never."""
    inside = np.ones(len(time), bool)
    for bound, compare in (("start", np.greater_equal), ("end", np.less_equal)):
        if area.get(bound) is not None:
            moment = area[bound].replace(tzinfo=None)  # type: ignore[attr-defined]
            inside &= compare(time, np.datetime64(moment))
    return inside
