"""What ``select.*`` asks for, held against archive and clusters: the budget, lists, columns, clusters and the guide."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation.archive.tables import Table, columns_by_table
from curation.catalog.schema import catalog_schema
from curation.clustering.classifier import CLASSIFIER, Classifier
from curation.errors import RequestError
from curation.manifests.steps import Guide
from curation.selection import groups
from curation.selection.guided import CALM
from curation.selection.lists import SampleList, parse_list
from curation.selection.settings import SelectConfig
from curation.selection.strategies import STRATEGIES
from curation.storage import Folder, file_name, public_url


def check_budget(asked: float, samples: int) -> int:
    """Samples to keep: a fraction below 1, to the nearest sample, or a count.

    Raises:
        RequestError: the archive has fewer, or the fraction comes to none.
    """
    budget = int(asked * samples + 0.5) if asked < 1 else int(asked)
    if budget > samples:
        raise RequestError(f"select.budget={asked:g}, but the archive has {samples} readable samples: lower it")
    if budget == 0:
        raise RequestError(f"select.budget={asked:g} of {samples} readable samples is not one sample: raise it")
    return budget


def read_list(name: str, url: str | None, workspace: Folder) -> SampleList | None:
    """The list that ``select.<name>`` names, if it names one.

    Raises:
        RequestError: there is no such file.
    """
    if url is None:
        return None
    folder, _, file = url.rpartition("/")
    try:
        return parse_list(
            file_name(url), Folder(folder or ("/" if url.startswith("/") else "."), workspace.options).read(file)
        )
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise RequestError(f"select.{name}={public_url(url)}: there is no such file") from error


def excluded_clusters(settings: SelectConfig, number: int) -> NDArray[np.bool_]:
    """(K,) which of ``number`` clusters nothing is kept of.

    Raises:
        RequestError: there is no such cluster.
    """
    factors = settings.clusters.weight or {}
    for cluster in (*settings.clusters.exclude, *factors):
        if not 0 <= cluster < number:
            raise RequestError(f"select.clusters names cluster {cluster}, but there are 0 to {number - 1}")
    excluded = np.zeros(number, bool)
    excluded[[*settings.clusters.exclude, *(cluster for cluster, factor in factors.items() if factor == 0)]] = True
    return excluded


def deciding_columns(
    settings: SelectConfig, lists: list[SampleList], tables: Sequence[Table], label: str
) -> tuple[tuple[str, ...], dict[Table, tuple[str, ...]]]:
    """Columns that decide: of the catalog, and of tables.

    Raises:
        RequestError: there is no such column.
    """
    columns = {column for listed in lists for column in listed.columns}
    scalar = [field.name for field in catalog_schema(1) if _is_scalar(field.type)]
    if settings.entropy.keep is not None or STRATEGIES[settings.strategy].order == "entropy":
        columns.add("entropy")
    if settings.splits:
        columns.add("footprint")
    if settings.min_valid is not None:
        columns.add("valid_fraction")
    if settings.max_cloud is not None:
        columns.update({"cloud_fraction", "radiometry"} & set(scalar))
    more = [field.name for table in tables for field in table.schema if _is_scalar(field.type)]
    more = [name for name in more if name not in catalog_schema(1).names]
    if taken := {*settings.by} & {*groups.KEYS} & {*more}:
        raise RequestError(
            f"select.by={min(taken)} is told from time and footprint, but a table has a column of that name: rename it"
        )
    asked: list[tuple[str, str, Mapping[str, Any]]] = [("select.by", name, groups.KEYS) for name in settings.by]
    asked += [(f"select.{key}", name, {}) for key in ("unit", "split_by") if (name := getattr(settings, key))]
    asked += [("score.label", label, {})] * STRATEGIES[settings.strategy].labelled
    for option, name, keys in asked:
        if name not in (*keys, *scalar, *more):
            known = ", ".join([*keys, *scalar, *more])
            raise RequestError(f"{option}={name} is no column of catalog or tables; choose one of {known}")
        columns.update(keys.get(name, (name,)))
    joined = columns_by_table(tables, sorted(columns & set(more)), "select")
    columns.update(table.on for table in joined)
    return tuple(sorted(columns - set(more))), joined


def _is_scalar(kind: pa.DataType) -> bool:
    return not pa.types.is_nested(kind) and not pa.types.is_binary(kind)


def find_guide(settings: SelectConfig, clusters: Folder) -> tuple[Guide | None, str | None]:
    """The classes of the bank, if they are to guide; why they cannot.

    Raises:
        RequestError: they were asked for by a number.
    """
    asked = settings.guided
    if asked == 0 or not STRATEGIES[settings.strategy].guided:
        return None, None
    if settings.grouped:
        why = "units of samples are kept or dropped together"
    elif not clusters.exists(CLASSIFIER):
        why = "there is no bank (references.url) with two labels or more"
    else:
        found = Classifier.from_bytes(clusters.read(CLASSIFIER))
        if not np.isnan(found.least_entropy):
            return Guide(tuple(found.classes.tolist()), float(found.least_entropy) - CALM), None
        why = "the bank's samples have no entropy"
    if asked:
        raise RequestError(f"select.guided={asked:g}: {why}; take select.guided=0")
    return None, why
