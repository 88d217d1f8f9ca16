"""Runs the twin's benchmarks, each measurement in a fresh process of its own, one after the other.

    python nbs/benchmarks/run_twin.py all
    python nbs/benchmarks/run_twin.py line --jobs 20000 --repeats 3

A suite's results are written as `data/benchmarks/twin_SUITE.json`, where `twin_engines.ipynb` finds them. All of
them together take less than five minutes on two cores.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "data/benchmarks"
PEERS = {
    "salabim": "salabim",
    "ciw": "ciw",
    "prodsys": "prodsys",
}  # model -> venv; the others are run by our own Python
OURS = ["dtwb:simpy", "dtwb:simpy+record", "dtwb:fast", "dtwb:fast+record"]
BARE = ["numba_heap", "max_plus"]
LINE = {"machines": 10, "capacity": 10, "rate": 0.5, "mean": 1.0, "mtbf": 100.0, "mttr": 10.0, "seed": 1}
SHARE = {"prodsys": 20, "salabim": 4, "ciw": 2}  # of the jobs: a slow one gets fewer


# The line


def exponential(mean: float) -> dict:
    return {"distribution": "exponential", "mean": mean}


def line_factory(line: dict) -> Any:  # a Factory
    "Poisson arrivals at machines in a row, with buffers between them and failures that count time at work."
    from dtwb.core.factory import parse_factory

    machines = range(line["machines"])
    failure = {"mtbf": exponential(line["mtbf"]), "mttr": exponential(line["mttr"])}
    work = exponential(line["mean"])
    source = {
        "id": "jobs",
        "products": {"part": 1},
        "interarrival": exponential(1 / line["rate"]),
        "limit": line["jobs"],
    }
    return parse_factory(
        {
            "name": "line",
            "buffers": [{"id": f"b{m}", "capacity": line["capacity"]} for m in machines if m],
            "machines": [{"id": f"m{m}", "buffer": f"b{m}" if m else None, "failure": failure} for m in machines],
            "products": [
                {
                    "id": "part",
                    "operations": [
                        {"id": f"o{m}", "modes": [{"machine": f"m{m}", "duration": work}]} for m in machines
                    ],
                }
            ],
            "sources": [source],
        }
    )


def write_draws(folder: Path, line: dict) -> None:
    "What our engines will draw, for the peers."
    from dtwb.core.distributions import Distribution, quantile
    from dtwb.core.streams import uniforms

    def draws(thing: str, purpose: str, mean: float, n: int) -> np.ndarray:
        u = uniforms(line["seed"], thing, purpose, 0, n)
        return quantile(Distribution(distribution="exponential", mean=mean), u)

    jobs = line["jobs"]
    failures = int(1.3 * jobs * line["mean"] / line["mtbf"]) + 60
    np.cumsum(draws("jobs", "arrivals", 1 / line["rate"], jobs)).tofile(folder / "arrivals")
    for m in range(line["machines"]):
        draws(f"m{m}", f"work part o{m}", line["mean"], jobs).tofile(folder / f"work_{m}")
        draws(f"m{m}", "failures breakdown", line["mtbf"], failures).tofile(folder / f"failures_{m}")
        draws(f"m{m}", "repairs breakdown", line["mttr"], failures).tofile(folder / f"repairs_{m}")
    (folder / "line.json").write_text(json.dumps(line))


def run_line(
    jobs: int = 20_000,
    repeats: int = 3,
    models: Iterable[str] = ("hand_written", "hand_written+record", *OURS, *BARE, *PEERS),
    say: Callable[[str], Any] = print,
) -> list[dict]:  # one row a run
    "Every model on the same line, in turn, so that a busy machine is busy for all."
    line, rows = LINE | {"jobs": jobs}, []
    with tempfile.TemporaryDirectory() as there:
        write_draws(Path(there), line)
        for repeat in range(repeats):
            for model in models:
                python = interpreter(model)
                if not python.exists() or (repeat and model == "prodsys"):
                    continue
                asked = [
                    python,
                    Path(__file__).with_name("peer_simulate.py"),
                    model,
                    there,
                    jobs // SHARE.get(model, 1),
                ]
                row = {"model": model, "suite": "line", "repeat": repeat} | answer(asked)
                say(f"line {model}: {row.get('error') or f'{speed(row):,.0f} operations/s'}")
                rows.append(row)
    return rows


def speed(row: dict) -> float:  # operations/s
    return row["operations"] / row["seconds"]


# Other things, each in a fresh process: `run_twin.py measure NAME {...}`


def job_shop(jobs: int, seed: int = 0) -> Any:  # a Factory
    "Twelve machines with failures, set-ups and ways between them, eight products with routes of six operations."
    from dtwb.core.factory import parse_factory

    luck, names = np.random.default_rng(seed), [f"m{m}" for m in range(12)]
    products, load = [], dict.fromkeys(names, 0.0)
    for p in range(8):
        operations = []
        for i, m in enumerate(luck.permutation(12)[:6]):
            modes, mean = [names[m], names[(m + 1) % 12]][: 1 + (i % 3 == 0)], float(luck.integers(60, 600))
            duration = {"distribution": "lognormal", "mean": mean, "cv": 0.3}
            operations.append({"id": f"o{i}", "modes": [{"machine": n, "duration": duration} for n in modes]})
            for n in modes:
                load[n] += mean / len(modes) / 8
        products.append({"id": f"p{p}", "operations": operations})
    gap = max(load.values()) / 0.75  # the busiest one works three quarters of the time
    families = [product["id"] for product in products]
    failure = {"mtbf": exponential(36_000), "mttr": {"distribution": "lognormal", "mean": 1800, "cv": 0.5}}
    machines = []
    for m, name in enumerate(names):
        times = {a: {b: int(luck.integers(5, 40)) for b in families if a != b} for a in families}
        place = [10 * (m % 4), 10 * (m // 4)]
        machines.append({"id": name, "position": place, "failure": failure, "setup": {"times": times}})
    source = {"id": "jobs", "products": dict.fromkeys(families, 1), "interarrival": exponential(gap), "limit": jobs}
    transport = {"speed": 1.0, "handling": 10}
    return parse_factory(
        {"name": "job_shop", "machines": machines, "products": products, "sources": [source], "transport": transport}
    )


def measure_jobshop(engine: str, jobs: int, record: bool, rule: str = "fifo") -> dict:
    "Time, and what came out: the same for both engines."
    from dtwb.twin.simulation import simulate

    simulate(job_shop(20), rule=rule, seed=1, engine=engine, record=record)  # compile
    plant = job_shop(jobs)
    began = time.perf_counter()
    run = simulate(plant, rule=rule, seed=1, engine=engine, record=record)
    seconds = time.perf_counter() - began
    return {"operations": 6 * jobs, "seconds": round(seconds, 5), "how": run.how} | (
        {"hash": run.trace.hash, "events": len(run.trace)} if record else {}
    )


def measure_start(engine: str) -> dict:
    "What a process pays before its first run ends."
    began = time.perf_counter()
    from dtwb.core.factory import Factory
    from dtwb.twin.simulation import simulate

    imported = time.perf_counter()
    plant = Factory.load(ROOT / "data/factories/tile_plant.yaml")
    loaded = time.perf_counter()
    simulate(plant, rule="edd", seed=1, engine=engine)
    ended = time.perf_counter()
    simulate(plant, rule="edd", seed=2, engine=engine)
    again = time.perf_counter() - ended
    times = {"imported": imported - began, "loaded": loaded - imported, "first": ended - loaded, "again": again}
    return {name: round(value, 4) for name, value in times.items()}


def measure_replications(n: int, hours: float, workers: int | None = None) -> dict:
    "Many shifts of the tile plant, and the memory of all processes together."
    import psutil

    from dtwb.core.factory import Factory
    from dtwb.twin.scenarios import replicate

    plant = Factory.load(ROOT / "data/factories/tile_plant.yaml")
    asked: dict[str, Any] = {
        "rule": "edd",
        "until": hours * 3600,
        "end": hours * 3600,
        "engine": "fast",
        "workers": workers,
    }
    replicate(plant, n=4, **asked)  # compile
    me, peak, over = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    before, began = me.memory_info().rss, time.perf_counter()
    runs = replicate(plant, n=n, **asked)
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
    return {
        "n": n,
        "hours": hours,
        "seconds": round(seconds, 3),
        "before_mb": before >> 20,
        "peak_mb": peak[0] >> 20,
        "result_mb": round(runs.nbytes / 2**20, 1),
        "oee": round(float(runs.oee_overall.mean()), 4),
    }


def measure_state(jobs: int, times: int = 200) -> dict:
    "The state at random times of a long run, and the key figures of a short one."
    from dtwb.core.factory import Factory
    from dtwb.core.state import History, initial_state
    from dtwb.twin.kpis import key_figures
    from dtwb.twin.simulation import simulate

    plant = line_factory(LINE | {"jobs": jobs})
    run = simulate(plant, seed=1, engine="fast")
    began = time.perf_counter()
    history = History(run.trace, initial_state(plant)).build()
    built, taken = time.perf_counter() - began, []
    for at in np.random.default_rng(0).uniform(0, run.trace.rows["time"][-1], times):
        began = time.perf_counter()
        history.state(at)
        taken.append(time.perf_counter() - began)
    tiles = Factory.load(ROOT / "data/factories/tile_plant.yaml")
    trace = simulate(tiles, rule="edd", seed=1).trace
    end, figures = float(trace.rows["time"][-1]), []
    for _ in range(21):
        began = time.perf_counter()
        key_figures(trace, tiles, 0.0, end)
        figures.append(time.perf_counter() - began)
    return {
        "events": len(run.trace),
        "built": round(built, 3),
        "state_ms": round(1000 * statistics.median(taken), 2),
        "state_worst_ms": round(1000 * max(taken), 2),
        "kpis_events": len(trace),
        "kpis_ms": round(1000 * statistics.median(figures), 3),
    }


def measure_law(n: int, seed: int = 0, antithetic: bool = False) -> dict:
    "The published study, with as many replications."
    from dtwb.twin.scenarios import pair_means, replicate
    from dtwb.twin.validation import LAW_WORK, LAW_YEAR, interval, law_job_shop

    began = time.perf_counter()
    luck = {"seed": seed, "antithetic": antithetic, "engine": "fast"}
    runs = replicate(law_job_shop(), n=n, until=LAW_YEAR, end=LAW_YEAR, **luck)
    seconds = time.perf_counter() - began
    delays = runs.lead_time_mean.values / 3600 - LAW_WORK
    mean, half = interval(pair_means(delays[None])[0] if antithetic else delays, 0.95)
    facts = {"delay": mean, "half": half, "std": float(delays.std(ddof=1))}
    return {"n": n, "seconds": round(seconds, 2)} | {name: round(value, 3) for name, value in facts.items()}


MEASURES = {
    "jobshop": measure_jobshop,
    "start": measure_start,
    "replications": measure_replications,
    "state": measure_state,
    "law": measure_law,
}


def measure(name: str, say: Callable[[str], Any] = print, **asked: Any) -> dict:
    "One measurement, in a fresh process; `process` is how long that was there."
    began = time.perf_counter()
    row = answer([sys.executable, Path(__file__), "measure", name, json.dumps(asked)])
    row |= {"suite": name, "process": round(time.perf_counter() - began, 3)} | asked
    say(f"{name} {asked}: {row.get('error') or row.get('seconds', row['process'])}")
    return row


def run_jobshop(jobs: int = 10_000, repeats: int = 3, say: Callable[[str], Any] = print) -> list[dict]:
    "Both engines, recording and not."
    asked = [(engine, record) for engine in ("simpy", "fast") for record in (False, True)]
    few = {"simpy": max(20, jobs // 10), "fast": jobs}
    rows = [
        measure("jobshop", say, engine=engine, record=record, jobs=few[engine])
        for _ in range(repeats)
        for engine, record in asked
    ]
    return [*rows, measure("jobshop", say, engine="fast", record=True, jobs=few["simpy"])]  # the same run as simpy's


def run_start(repeats: int = 3, say: Callable[[str], Any] = print) -> list[dict]:
    "A process's first run; the one before the first has compiled what was not there."
    measure("start", say, engine="fast")
    return [measure("start", say, engine=engine) for _ in range(repeats) for engine in ("fast", "simpy")]


def run_replications(n: int = 10_000, hours: float = 8, say: Callable[[str], Any] = print) -> list[dict]:
    "Twice: a tenth as well, to see what grows."
    return [measure("replications", say, n=k, hours=hours) for k in (max(4, n // 10), n)]


def run_state(jobs: int = 20_000, say: Callable[[str], Any] = print) -> list[dict]:
    return [measure("state", say, jobs=jobs)]


def run_law(n: int = 1000, say: Callable[[str], Any] = print) -> list[dict]:
    "Twice, with other luck: independent years, and pairs with opposite luck."
    return [measure("law", say, n=n, seed=seed, antithetic=bool(seed)) for seed in (0, 77)]


SUITES: dict[str, Callable[..., list[dict]]] = {
    "line": run_line,
    "jobshop": run_jobshop,
    "start": run_start,
    "replications": run_replications,
    "state": run_state,
    "law": run_law,
}


# How


def interpreter(model: str) -> Path:
    "The Python that has what `model` needs."
    return ROOT / f".venv-peers/{PEERS[model]}/bin/python" if model in PEERS else Path(sys.executable)


def answer(command: list, patience: float = 600) -> dict:
    "The JSON that `command` prints; it and its children end with us."
    paths = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
    environment = os.environ | {"PYTHONPATH": paths, "TQDM_DISABLE": "1"}
    load = os.getloadavg()[0]
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=-1,
        stderr=-1,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {patience:g} s"}
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    if process.returncode:
        return {"error": (err.strip().splitlines() or [f"exit code {process.returncode}"])[-1]}
    return json.loads(out) | {"load": round(load, 2), "at": datetime.now().isoformat(timespec="seconds")}


def save(suite: str, rows: list[dict], folder: Path = RESULTS) -> None:
    "All rows of a suite; what was there is replaced."
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"twin_{suite}.json.tmp"
    aside.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    aside.replace(folder / f"twin_{suite}.json")


def read_rows(folder: Path, suite: str) -> list[dict]:
    path = folder / f"twin_{suite}.json"
    return json.loads(path.read_text()) if path.exists() else []


def write_rows(name: str, what: str, rows: list[dict]) -> None:
    "Write `nbs/benchmarks/NAME.json`: where, when, with what, and a run to a line."
    from scheduling_report import machine

    versions = {package: version for row in rows for package, version in row.get("versions", {}).items()}
    versions |= {"commit": commit()}
    rows = [{key: value for key, value in row.items() if key != "versions"} for row in rows]
    head = {"what": what, "machine": machine(), "date": date.today().isoformat(), "versions": versions}
    lines = ",\n".join(json.dumps(row) for row in rows)
    path = ROOT / f"nbs/benchmarks/{name}.json"
    aside = path.with_suffix(".json.tmp")
    aside.write_text(json.dumps(head, indent=1).removesuffix("\n}") + f',\n "runs": [\n{lines}\n]}}\n')
    aside.replace(path)


def stored_rows(name: str, instead: list[dict]) -> tuple[list[dict], dict]:
    "The full run that lies beside the notebook, and where and when it was; `instead` where there is none yet."
    path = ROOT / f"nbs/benchmarks/{name}.json"
    if not path.exists():
        return instead, {"what": "not yet run in full"}
    full = json.loads(path.read_text())
    return full.pop("runs"), full


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        name, asked = sys.argv[2:]
        out.write(json.dumps(MEASURES[name](**json.loads(asked))))
        out.close()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=["all", *SUITES])
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--n", type=int, help="replications")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    given = {name: value for name in ("jobs", "n", "repeats") if (value := getattr(asked, name)) is not None}
    for suite in SUITES if asked.suite == "all" else [asked.suite]:
        takes = SUITES[suite].__code__.co_varnames[: SUITES[suite].__code__.co_argcount]
        rows = SUITES[suite](**{name: value for name, value in given.items() if name in takes})
        save(suite, rows, asked.results)


if __name__ == "__main__":
    main()
