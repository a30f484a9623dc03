"""An archive and a test set of multi-band windows, out of a WebDataset tar of windows cut from a few scenes.

``python -m benchmarks.evidence.windows TAR DESTINATION`` copies the Sentinel-2 windows (keys ``s2_…_r<row>_c<column>``)
into ``archive/`` and ``test/``: of each scene the windows of the upper rows and those of the lower ones, so that no
window of one lies among the other's. A window's label is its scene.
"""

import argparse
import json
import re
import tarfile
from collections import defaultdict
from pathlib import Path

KEY = re.compile(r"(?P<scene>s2_.+)_r(?P<row>\d+)_c\d+")
UPPER = 0.6  # share of a scene's windows, by rows, that is the archive's


def split(source: Path, destination: Path) -> dict[str, int]:
    """Copy the members as they are; how many windows each part got."""
    with tarfile.open(source) as tar:
        members: dict[str, list[tarfile.TarInfo]] = defaultdict(list)
        for member in tar:
            members[member.name.partition(".")[0]].append(member)
        found = {key: match for key in members if (match := KEY.fullmatch(key))}
        scenes: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for key, match in found.items():
            scenes[match["scene"]].append((int(match["row"]), key))
        parts: dict[str, list[str]] = {"archive": [], "test": []}
        for windows in scenes.values():
            windows.sort()
            edge = windows[int(UPPER * len(windows))][0]
            for row, key in windows:
                parts["archive" if row < edge else "test"].append(key)
        for name, keys in parts.items():
            (destination / name).mkdir(parents=True)
            with tarfile.open(destination / name / "windows-000.tar", "w") as out:
                for key in keys:
                    for member in members[key]:
                        out.addfile(member, tar.extractfile(member))
    return {name: len(keys) for name, keys in parts.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the tar")
    parser.add_argument("destination", type=Path, help="a folder that is not there yet")
    options = parser.parse_args()
    print(json.dumps(split(options.source, options.destination)))


if __name__ == "__main__":
    main()
