"""Damaged and hostile model files: does each end in one sentence, in bounded memory and time?

    python benchmarks/hostile.py [--files 500] [--seed 0] [--out hostile]

Files are made by ``tests/helpers/hostile_files.py``; each is quantized in a process with a limit to its address space.
A table of what came of each kind goes to OUT.md, every file to OUT.json. The exit status is 1 where a file raised
anything but an error of onnxq, took too long, took too much memory, or ended the process.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import record

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from hostile_files import GOOD, run_files


def main() -> None:
    """Run as many files as the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("hostile"))
    args = parser.parse_args()
    with TemporaryDirectory(prefix="onnxq-") as folder:
        rows = run_files(args.seed, 0, args.files, Path(folder))
    bad = [row for row in rows if row["outcome"] not in GOOD]
    cells = []
    for kind in sorted({row["kind"] for row in rows}):
        found = [row for row in rows if row["kind"] == kind]
        counts = Counter(row["outcome"] for row in found)
        slowest = max(row.get("seconds", 0.0) for row in found)
        others = len(found) - sum(counts[outcome] for outcome in GOOD)
        cells.append(
            [kind, str(len(found)), *(str(counts[outcome]) for outcome in GOOD), str(others), f"{slowest:.1f}"]
        )
    table = record.markdown(("damage", "files", *GOOD, "neither", "slowest, s"), cells)
    record.write(args.out, rows, table, seed=args.seed)
    print(table)
    for row in bad:
        print(row)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
