"""The multi-band windows of the evidence: two parts of each scene that do not touch."""

import io
import tarfile
from pathlib import Path

from benchmarks.evidence.windows import split


def test_upper_rows_are_the_archive_s(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "windows.tar", "w") as tar:
        for scene, rows in (("s2_one", 5), ("s2_two", 10), ("s1_other", 4)):
            for row in range(rows):
                for suffix in (".tif", ".json"):
                    member = tarfile.TarInfo(f"{scene}_r{64 * row:04}_c0000{suffix}")
                    member.size = 3
                    tar.addfile(member, io.BytesIO(b"abc"))
    assert split(tmp_path / "windows.tar", tmp_path / "out") == {"archive": 9, "test": 6}
    names = []
    for part in ("archive", "test"):
        with tarfile.open(tmp_path / "out" / part / "windows-000.tar") as tar:
            names.append(tar.getnames())
    assert names[0][:2] == ["s2_one_r0000_c0000.tif", "s2_one_r0000_c0000.json"]
    assert not {name.partition("_c")[0] for name in names[0]} & {name.partition("_c")[0] for name in names[1]}
