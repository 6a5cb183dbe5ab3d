"""The demonstration as a new user sees it: what `lrfgraph demo` prints, and how long it takes."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from networks import write
from processes import finish, start


def main() -> None:
    """Run it in a folder of its own and write down what it printed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    asked = parser.parse_args()
    out = asked.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        output, _ = finish(start(["demo"], cwd=folder))
    write(out, {"seconds": round(time.perf_counter() - started, 1), "load": os.getloadavg(), "output": output})
    print(output)


if __name__ == "__main__":
    main()
