"""Measures sweeps beside plain papermill: what a run costs beyond its own work, many runs, busy cores, many results.

    python nbs/benchmarks/run_sweeps.py all          # some five minutes; writes nbs/benchmarks/sweeps.json
    python nbs/benchmarks/run_sweeps.py overhead --runs 3 --out /tmp/sweeps.json
    python nbs/benchmarks/run_sweeps.py many busy results --runs 50 --out /tmp/sweeps.json

Each suite runs in a process of its own. Plain papermill and ours take turns on the same notebooks, so that whatever
else the machine does meets both.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EMPTY = "import json", "x"
TORCH = "import torch\nimport xarray", "float(torch.ones(x + 1).sum())"
RECORD = "from dtwb.sweeps.record import record", "record(square=x * x)"
BURN = (
    "import time\n\nfrom dtwb.sweeps.record import record",
    "began, y = time.process_time(), x\n"
    "while time.process_time() - began < seconds:\n    y = (y * 16807 + 1) % 2147483647\n"
    "record(cpu=time.process_time() - began)",
)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def template(path: Path, imports: str, work: str) -> Path:
    "A notebook that takes `x` and `seconds`."
    from nbformat import v4, write

    cells = [v4.new_code_cell("x = 1\nseconds = 2.0", metadata={"tags": ["parameters"]})]
    cells += [v4.new_code_cell(imports, metadata={"tags": ["imports"]}), v4.new_code_cell(work)]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


# what a run costs


def spent(notebook: Path) -> tuple[float, float]:  # s
    "What papermill says that the code cells took, and of that the imports."
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    times = [(cell["metadata"]["papermill"]["duration"] or 0.0, cell["metadata"].get("tags", [])) for cell in cells]
    return sum(t for t, _ in times), sum(t for t, tags in times if "imports" in tags)


def overhead(folder: Path, runs: int = 12) -> list[dict]:
    "Plain papermill, then four of ours, until those are `runs`; the first one starts the warm parent: told apart."
    import papermill as pm

    from dtwb.sweeps.runner import run_point

    def plain(path: Path, out: Path, x: int) -> Path:
        out.mkdir(parents=True)
        pm.execute_notebook(path, out / "out.ipynb", {"x": x}, kernel_name="python3", progress_bar=False)
        return out / "out.ipynb"

    def warm(path: Path, out: Path, x: int) -> Path:
        how = run_point(path, {"x": x}, out, "warm", threads=1)
        if how != "finished":
            raise SystemExit(f"{path.name}: a run has {how}: {(out / 'run.json').read_text()}")
        return out / "out.ipynb"

    rows = []
    for name, cells in {"empty": EMPTY, "torch": TORCH}.items():
        path, number = template(folder / f"{name}.ipynb", *cells), itertools.count()

        def timed(kernel: str, call: Callable, when: str = "next", path=path, name=name, number=number) -> None:
            x, begun = next(number), time.perf_counter()
            out = call(path, folder / name / f"{kernel}{x}", x)
            wall = time.perf_counter() - begun
            cells, imports = spent(out)
            row = {"suite": "overhead", "template": name, "kernel": kernel, "when": when, "wall": wall}
            rows.append(row | {"cells": cells, "imports": imports})

        timed("warm", warm, "first")
        for k in range(runs):
            if k % 4 == 0:
                timed("plain", plain)
            timed("warm", warm)
        say(f"{name}: " + ", ".join(f"{r['kernel']} {r['wall']:.2f}" for r in rows if r["template"] == name))
    return rows


# many runs


def many(folder: Path, runs: int = 1000) -> list[dict]:
    "Trivial runs on two workers: how many a second, and what the runner, its workers and their parents hold meanwhile."
    import psutil

    from dtwb.sweeps.results import load_sweep
    from dtwb.sweeps.runner import run_sweep

    path, me, rows = template(folder / "square.ipynb", *RECORD), psutil.Process(), []
    marks = {round(runs * share) for share in (0.05, 0.25, 0.5, 0.75, 1.0)}

    def look(done: int, total: int) -> None:
        if done not in marks:
            return
        marks.discard(done)
        lasting = [p for p in me.children(recursive=True) if p.is_running() and time.time() - p.create_time() > 5]
        row = {"suite": "many", "runs": total, "done": done, "seconds": time.perf_counter() - begun}
        row |= {"runner_mb": me.memory_info().rss / 2**20, "runner_files": me.num_fds()}
        rows.append(row | {"workers_mb": sum(held(p) for p in lasting), "workers": len(lasting)})

    begun = time.perf_counter()
    swept = run_sweep(path, [{"x": x} for x in range(runs)], "many", folder, workers=2, threads=1, progress=look)
    took = time.perf_counter() - begun
    found = load_sweep(swept)
    wrong = sum(run.result.get("square") != run.parameters["x"] ** 2 for run in found.runs)
    rows.append({"suite": "many", "runs": runs, "whole": took, "wrong": wrong + runs - len(found.runs)})
    say(f"{runs} runs: {took:.1f} s, {[(round(r['runner_mb']), round(r['workers_mb'])) for r in rows[:-1]]} MB")
    return rows


def held(process: Any) -> float:  # MB that it alone holds; 0: it has ended
    import psutil

    try:
        return process.memory_full_info().uss / 2**20
    except psutil.Error:
        return 0.0


# busy cores


def busy(folder: Path, runs: int = 40, seconds: float = 2.0) -> list[dict]:
    "Runs that only compute: which share of two cores was used, and which by their own work."
    import psutil

    from dtwb.sweeps.results import load_sweep
    from dtwb.sweeps.runner import run_sweep

    path, me, row = template(folder / "burn.ipynb", *BURN), psutil.Process(), {"suite": "busy", "runs": runs}
    points, before = [{"x": x, "seconds": seconds} for x in range(runs)], sum(me.cpu_times()[:4])

    def look(done: int, total: int) -> None:
        if done == total:  # those that have worked are still there, and know what their kernels took
            family = [me, *me.children(recursive=True)]
            row.update(wall=time.perf_counter() - begun, used=sum(sum(p.cpu_times()[:4]) for p in family) - before)

    begun = time.perf_counter()
    found = load_sweep(run_sweep(path, points, "burn", folder, workers=2, threads=1, progress=look))
    told = [json.loads((found.folder / run.id / "run.json").read_text()) for run in found.runs]
    row |= {"each": seconds, "own": sum(run.result["cpu"] for run in found.runs)}
    row["running"] = seconds_between(min(t["started"] for t in told), max(t["ended"] for t in told))
    say(f"busy: {row['used'] / 2 / row['wall']:.3f} of two cores, {row['own'] / 2 / row['running']:.3f} by own work")
    return [row]


def seconds_between(first: str, last: str) -> float:
    from datetime import datetime

    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()


# many results

OPEN = """
import json, sys, time
from pathlib import Path
from dtwb.sweeps.results import load_sweep
begun = time.perf_counter()
sweep = load_sweep(Path(sys.argv[1]))
read = time.perf_counter() - begun
data = sweep.results()
print(json.dumps({"read": read, "seconds": time.perf_counter() - begun, "points": int(data.loss.notnull().sum())}))
"""


def results(folder: Path, runs: int = 10_000) -> list[dict]:
    "Opened as an array: for the first time, and from the index, each in a fresh process."
    swept = folder / "opened"
    for i in range(runs):
        one = swept / f"{i:016x}"
        one.mkdir(parents=True)
        about = {
            "id": one.name,
            "what": "sweep",
            "name": "opened",
            "parameters": {"a": i // 100, "b": i % 100, "c": 1.5},
        }
        about |= {"seed": None, "versions": {"python": "3.11", "dtwb": "0"}, "how": "finished", "error": None}
        about |= {"started": "2026-11-26T10:00:00.000+00:00", "ended": "2026-11-26T10:00:00.123+00:00"}
        (one / "run.json").write_text(json.dumps(about, indent=1))
        (one / "result.json").write_text(json.dumps({"loss": i / 7, "rate": i % 13}))
        (one / "out.ipynb").write_text("{}")
        (one / "log.txt").write_text("")
    rows = []
    for when in ("first", "index", "index"):
        said = subprocess.run([sys.executable, "-c", OPEN, swept], check=True, capture_output=True, text=True).stdout
        rows.append({"suite": "results", "runs": runs, "when": when} | json.loads(said))
    say(f"{runs} results: {[round(row['seconds'], 2) for row in rows]} s")
    return rows


SUITES = {"overhead": overhead, "many": many, "busy": busy, "results": results}


def write(path: Path, rows: list[dict]) -> None:
    "Where, when, with what, and a measurement to a line; suites that were not measured stay as they are."
    from importlib.metadata import version

    from run_twin import commit
    from scheduling_report import machine

    fresh = {row["suite"] for row in rows}
    kept = [row for row in json.loads(path.read_text())["runs"] if row["suite"] not in fresh] if path.exists() else []
    versions = {name: version(name) for name in ("papermill", "nbclient", "ipykernel", "torch", "xarray")}
    head = {"what": "sweeps beside plain papermill", "machine": machine(), "date": date.today().isoformat()}
    head |= {"versions": versions | {"commit": commit()}, "load": round(os.getloadavg()[0], 1)}
    shown = ({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in [*kept, *rows])
    lines = ",\n".join(json.dumps(row) for row in shown)
    aside = path.with_suffix(".json.tmp")
    aside.write_text(json.dumps(head, indent=1).removesuffix("\n}") + f',\n "runs": [\n{lines}\n]}}\n')
    aside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", choices=[*SUITES, "all"])
    parser.add_argument("--runs", type=int, help="of each suite, instead of its own number")
    parser.add_argument("--out", type=Path, default=ROOT / "nbs/benchmarks/sweeps.json")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in the suite's own process: where to write
    asked = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    given = {} if asked.runs is None else {"runs": asked.runs}
    if asked.measure:
        with tempfile.TemporaryDirectory() as folder:
            asked.measure.write_text(json.dumps(SUITES[asked.suites[0]](Path(folder), **given)))
        return
    for suite in SUITES if "all" in asked.suites else asked.suites:
        with tempfile.TemporaryDirectory() as folder:
            begun, rows = time.perf_counter(), Path(folder) / "rows.json"
            more = [] if asked.runs is None else ["--runs", str(asked.runs)]
            command = [sys.executable, __file__, suite, *more, "--measure", rows]
            subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
            write(asked.out, json.loads(rows.read_text()))
            say(f"{suite}: {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
