"""Runs notebooks as nbdev-test does, and `dtwb ...` as a shell does, each in a process forked from this one.

Reads a line of JSON, {"notebook": path} or {"dtwb": arguments, "env": all variables, "timeout": seconds}, and answers
with another: {"code": exit status, "out": stdout, "err": stderr}. This process has imported what most of them need:
importing torch, lightning and pandas takes three seconds; a hundred notebooks would do it a hundred times.
"""

import atexit
import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path

HEAVY = (
    "dtwb.vision.models", "lightning", "pandas", "xarray", "sklearn.metrics", "matplotlib.pyplot", "nbdev.test",
    "panel", "panel_material_ui", "holoviews", "dtwb.scheduling.solve", "dtwb.twin.simulation", "dtwb.cli",
    "dtwb.vision.inspector", "dtwb.loop.session", "onnxruntime", "onnxscript", "torch.onnx._internal.exporter._core",
)  # fmt: skip


def notebook(path: str) -> None:
    "All cells of a notebook, and its tests, with the same luck each time."
    import random

    import numpy
    import torch
    from hypothesis import settings
    from nbdev.test import nbdev_test

    settings.register_profile("same", derandomize=os.environ.get("HYPOTHESIS_PROFILE") != "explore")  # as in conftest
    settings.load_profile("same")
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(0)
    nbdev_test(path, n_workers=0)


def dtwb(arguments: list[str], env: dict[str, str], timeout: int) -> None:
    "The command line; one that does not end is killed."
    from dtwb.cli import main
    from dtwb.core.settings import settings

    os.environ.clear()
    os.environ.update(env)
    settings.cache_clear()
    sys.argv = ["dtwb", *arguments]
    signal.alarm(timeout)
    main()


def run(task: dict, out: int, err: int) -> int:  # the exit status; `out` and `err` are open files
    "In the forked process."
    os.dup2(out, 1)
    os.dup2(err, 2)
    try:
        notebook(task["notebook"]) if "notebook" in task else dtwb(task["dtwb"], task["env"], task["timeout"])
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()  # what was started ends with it
    return code


def main() -> None:
    for name in HEAVY:  # imported, not used: threads that were started would not survive the fork
        importlib.import_module(name)
    for line in sys.stdin:
        task = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os._exit(run(task, out.fileno(), err.fileno()))
            _, status = os.waitpid(child, 0)
            said = {}
            for name, file in (("out", out), ("err", err)):
                file.seek(0)
                said[name] = file.read().decode(errors="replace")
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)} | said), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
