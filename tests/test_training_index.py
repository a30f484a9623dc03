"""The keep-index: versions that are complete or absent, never change, and are held against what was written."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import CurationError, RequestError
from curation.storage import Folder
from curation.training.index import KeepIndex, _opened, read_index, versions, write_index

ROWS = np.int32([1, 4, 5, 9])
WEIGHTS = np.float32([2, 1.5, 1, 4])
MADE_OF = {"strategy": "balanced", "seed": 0}
ID = st.binary(min_size=16, max_size=16)


@pytest.fixture
def folder(tmp_path) -> Folder:
    made = Folder(str(tmp_path / "index"))
    write_index(made, 1, ROWS, WEIGHTS, 12, MADE_OF)
    return made


def test_what_is_written_is_read_and_mapped(folder):
    index = read_index(folder)
    assert (index.version, index.total, index.kept) == (1, 12, 4)
    assert np.array_equal(index.rows, ROWS) and np.array_equal(index.weights, WEIGHTS)
    assert isinstance(index.rows, np.memmap) and not index.rows.flags.writeable
    assert index.sha256 == KeepIndex.of(1, ROWS, WEIGHTS, 12, MADE_OF).sha256
    assert np.array_equal(np.load(Path(folder.full("000001/rows.npy"))), ROWS)
    assert json.loads(folder.read("000001/index.json"))["made_of"] == MADE_OF


def test_the_newest_complete_version_is_taken(folder):
    write_index(folder, 7, ROWS[:2], WEIGHTS[:2], 12, MADE_OF)
    folder.publish("000008/rows.npy", b"the pruner was killed here")
    assert versions(folder) == [1, 7]
    assert read_index(folder).version == 7
    assert np.array_equal(read_index(folder, 1).rows, ROWS)
    with pytest.raises(RequestError, match="no version 8"):
        read_index(folder, 8)
    write_index(folder, 8, ROWS, WEIGHTS, 12, MADE_OF)  # and draws it again
    assert read_index(folder).version == 8


def test_none_yet(tmp_path):
    with pytest.raises(RequestError, match="no complete keep-index: draw one, or begin with the full set"):
        read_index(Folder(str(tmp_path)))


def test_a_version_never_changes(folder):
    write_index(folder, 1, ROWS, WEIGHTS, 12, MADE_OF)
    others = [(ROWS[:3], WEIGHTS[:3], 12, MADE_OF), (ROWS, WEIGHTS * 2, 12, MADE_OF), (ROWS, WEIGHTS, 13, MADE_OF)]
    for other in [*others, (ROWS, WEIGHTS, 12, {"seed": 1})]:
        with pytest.raises(RequestError, match="holds another index: versions do not change"):
            write_index(folder, 1, *other)
    assert np.array_equal(read_index(folder, 1).rows, ROWS)


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "header"])
def test_damage_is_one_line(folder, harm):
    path = Path(folder.full("000001/weights.npy"))
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[-1] ^= 1
    elif harm == "header":
        path = Path(folder.full("000001/index.json"))
        data = bytearray(b'{"version": 1, ')
    path.write_bytes(data[:-4] if harm == "cut" else data)
    if harm == "remove":
        path.unlink()
    with pytest.raises(CurationError, match="000001 is damaged .*: remove it and draw that version again") as caught:
        read_index(folder)
    assert "\n" not in str(caught.value)


def test_one_in_memory_is_written_as_it_is(folder):
    index = KeepIndex.of(2, ROWS, WEIGHTS, 12, MADE_OF, ids=[bytes([i]) * 16 for i in (3, 1, 2, 9)])
    index.write(folder)
    again = read_index(folder, 2)
    assert again.sha256 == index.sha256
    again.write(folder)
    assert again.weight_of_id(bytes([2]) * 16) == 1 and again.weight_of_id(bytes([4]) * 16) is None
    with pytest.raises(RequestError, match="not written"):
        KeepIndex.full(12).write(folder)


def test_what_is_no_index_is_refused(folder):
    wrong = [
        (0, ROWS, WEIGHTS, 12, "count from 1"),
        (2, ROWS[::-1], WEIGHTS, 12, "ascending"),
        (2, [1, 1, 2, 3], WEIGHTS, 12, "each once"),
        (2, ROWS, WEIGHTS, 9, "below 9"),
        (2, [-1, 2, 3, 4], WEIGHTS, 12, "from 0"),
        (2, [], [], 12, "at least one row"),
        (2, ROWS, WEIGHTS[:2], 12, "as many weights"),
        (2, ROWS, [1, 1, 0, 1], 12, "above 0"),
        (2, ROWS, WEIGHTS, 2**31 + 1, "int32"),
    ]
    for version, rows, weights, total, said in wrong:
        with pytest.raises(RequestError, match=said):
            write_index(folder, version, rows, weights, total, {})
    assert versions(folder) == [1]


def test_weights_of_rows(folder):
    index = read_index(folder)
    assert index.weights_of([9, 1, 9]).tolist() == [4, 2, 4]
    assert KeepIndex.full(5).weights_of([4, 0]).tolist() == [1, 1]
    for missing in ([1, 2], [10], [0]):
        with pytest.raises(RequestError, match="not kept by version 1"):
            index.weights_of(missing)
    with pytest.raises(RequestError, match="has no weights"):
        KeepIndex.of(1, ROWS, None, 12).weights_of([1])


@given(
    st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=30, unique=True),
    st.binary(min_size=16, max_size=16),
)
def test_ids_find_their_weights(ids, other):
    index = KeepIndex.of(1, range(len(ids)), np.arange(1, len(ids) + 1), 100, ids=np.array(ids, "S16"))
    assert [index.weight_of_id(one) for one in ids] == list(range(1, len(ids) + 1))
    assert index.weight_of_id(other) is None or other in ids


def test_another_process_maps_it_again(folder):
    index = read_index(folder)
    data = pickle.dumps(index)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert np.array_equal(again.rows, ROWS) and again.sha256 == index.sha256
    full = pickle.loads(pickle.dumps(KeepIndex.full(10**9)))
    assert (full.kept, full.version) == (10**9, 0)
    _opened.clear()  # as in another process
    folder.discard("000001")
    write_index(folder, 1, ROWS[1:], WEIGHTS[1:], 12, MADE_OF)
    with pytest.raises(CurationError, match="another index here"):
        pickle.loads(data)


def test_a_remote_version_is_copied_once(tmp_path, folder):
    import fsspec

    store = fsspec.filesystem("memory")
    for file in folder.list():
        store.pipe_file(f"/run/index/{file.path}", folder.read(file.path))
    remote = Folder("memory://run/index")
    with pytest.raises(RequestError, match="give cache="):
        read_index(remote)
    for _ in range(2):
        index = read_index(remote, cache=tmp_path / "cache")
        assert isinstance(index.rows, np.memmap) and np.array_equal(index.rows, ROWS)
    assert len(list((tmp_path / "cache").iterdir())) == 2
