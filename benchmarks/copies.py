"""How well copies are found in an archive whose sidecars say which tiles show one place, and how fast.

Tiles of one ``row`` and ``col`` are copies (mirrored, rotated), all other pairs are not, half-overlapping
neighbours among them. The search runs on catalog columns with all tiles in one cluster; with ``--manifest`` its
groups are read from the decisions of a finished run instead. Pairs are counted within whole groups.
``ratio`` is our seconds (description and search) over those of a plain loop with ImageHash's perceptual hash, each
tile in its eight orientations, pairs within a Hamming distance of 8 of 64: what a user would write.
"""

import argparse
import json
import time
from itertools import combinations
from pathlib import Path
from typing import Any
