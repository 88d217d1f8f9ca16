"""Runs notebooks as nbdev-test does, each in a process forked from this one, which has imported what most of them need.

Reads a notebook's path a line, answers with a line of JSON: {"code": exit status, "said": stdout and stderr}.
Importing torch, lightning and pandas takes three seconds; a hundred notebooks would do it a hundred times.
"""

import atexit
import importlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

HEAVY = (
    "dtwb.vision.models", "lightning", "pandas", "xarray", "sklearn.metrics", "matplotlib.pyplot", "nbdev.test",
    "panel", "panel_material_ui", "holoviews", "dtwb.scheduling.solve", "dtwb.twin.simulation",
)  # fmt: skip


def run(notebook: str, said: int) -> int:  # the exit status; `said` is an open file
    "In the forked process."
    os.dup2(said, 1)
    os.dup2(said, 2)
    from nbdev.test import nbdev_test

    try:
        nbdev_test(notebook, n_workers=0)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()  # what the notebook has started ends with it
    return code


def main() -> None:
    for name in HEAVY:  # imported, not used: threads that were started would not survive the fork
        importlib.import_module(name)
    for line in sys.stdin:
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if not child:
                sys.stdin.close()
                os._exit(run(line.strip(), said.fileno()))
            _, status = os.waitpid(child, 0)
            said.seek(0)
            text = said.read().decode(errors="replace")
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "said": text}), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
