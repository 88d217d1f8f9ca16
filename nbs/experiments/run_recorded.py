"""Makes recorded sweeps anew: the experiments of this folder are swept with the code as it is, and their notebooks run.

    python nbs/experiments/run_recorded.py                            # all: an hour, where nothing else runs
    python nbs/experiments/run_recorded.py loop_worth solver_limits   # these: some ten minutes
    python nbs/experiments/run_recorded.py --trial                    # two runs of each; nothing is kept

The points are in `SWEEPS` of nbs/sweeps/30_recorded.ipynb. The runs lie in data/recorded until their sweep is packed;
after a crash or Ctrl-C the same command goes on. Then look at the notebooks, whose words must fit the new pictures,
and commit them with dtwb/sweeps/recorded/*.tar.xz.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

from dtwb.core.settings import settings
from dtwb.sweeps.recorded import RECORDED, SWEEPS, make
from dtwb.sweeps.results import Sweep

ALONE = {"solver_limits", "backbone_size", "stability_weight"}  # their runs use all cores, or measure time


def record(name: str, root: Path, target: Path) -> None:
    began = time.monotonic()
    packed = make(name, root, target, workers=1 if name in ALONE else None, progress=name)
    ended = Counter(run.how for run in Sweep.load(root / name).runs)
    told = ", ".join(f"{n} {how}" for how, n in ended.items())
    print(f"{packed}: {told}; {packed.stat().st_size // 1000} kB; {time.monotonic() - began:.0f} s", flush=True)


def show(name: str) -> None:
    "Run the experiment's notebook, which shows what the sweep says, and keep its outputs."
    notebook = f"nbs/experiments/{name}.ipynb"
    for command in (["nbdev-test", notebook, "--save", "--n-workers", "1"], ["nbdev-clean", "--fname", notebook]):
        subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], cwd=settings().root, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="SWEEP", help=f"of {', '.join(SWEEPS)}; all of them by default")
    parser.add_argument("--trial", action="store_true", help="two runs of each, in a temporary folder")
    given = parser.parse_args()
    if unknown := set(given.names) - SWEEPS.keys():
        parser.error(f"no such sweep: {', '.join(sorted(unknown))}; there are {', '.join(SWEEPS)}")
    for name in given.names or SWEEPS:
        if given.trial:
            SWEEPS[name] = list(islice(SWEEPS[name], 2))
            with tempfile.TemporaryDirectory() as place:
                record(name, Path(place), Path(place) / f"{name}.tar.xz")
            continue
        root = settings().path("data") / "recorded"
        record(name, root, RECORDED / f"{name}.tar.xz")
        show(name)
        shutil.rmtree(root / name)


if __name__ == "__main__":
    main()
