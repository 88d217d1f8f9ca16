"""Runs the scheduling benchmarks, each (instance, method, seed) in a fresh process of its own, one after the other.

    python nbs/benchmarks/run_scheduling.py jobshop --methods portfolio,plain_cpsat,pyjobshop --seeds 3 --limit 20

Each result is written at once, as a line of `data/benchmarks/SUITE.jsonl`; what is there is not run again. So a
run that was killed goes on where it was, and the notebook of that suite finds all it asks for. `verify` checks
every plan, also a peer's.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from dtwb.core.errors import ScheduleError
from dtwb.scheduling import solve
from dtwb.scheduling.problem import Problem, ProblemJob, ProblemMachine, ProblemMode, ProblemOperation, Solution, verify
from dtwb.scheduling.solve import METHODS

ROOT = Path(__file__).resolve().parents[2]
DATA, RESULTS = ROOT / "../shared/data", ROOT / "data/benchmarks"
NO_ANSWER = "no answer within"  # an error that would come again
PEERS = ("plain_cpsat", "pyjobshop", "job_shop_lib")  # every other method is one of ours

CLASSICAL = "ft10 la38 la40 abz8 orb03 swv03 swv12 yn2 ta11 ta21 ta31 ta41 ta61".split()
PROOFS = ["ft06", "ft10", "ft20", *(f"la{i:02}" for i in range(1, 41)), *(f"orb{i:02}" for i in range(1, 11))]
MORE = "ft06 ft20 la16 la21 la31 abz5 abz7 orb01 orb07 swv06 swv09 yn1 yn3 ta01 ta51".split()  # for each class
OWN = {"own/ft06": 55, "random/6x4x2": 233}  # and their optima
FT06 = """6 6
2 1 0 3 1 6 3 7 5 3 4 6
1 8 2 5 4 10 5 10 0 10 3 4
2 5 3 4 5 8 0 9 1 1 4 7
1 5 0 5 2 5 3 3 4 8 5 9
2 9 1 3 4 5 5 4 0 3 3 1
1 3 3 3 5 9 0 10 4 4 2 1
"""


def suite(name: str, data: Path = DATA) -> tuple[list[str], str]:  # instances, objective
    "What each benchmark runs."
    if name == "flexible":
        known = json.loads((data / "flexible_jobshop/bounds.json").read_text())
        third = [
            n for family in ("hurink/vdata/", "barnes/") for n in sorted(k for k in known if k.startswith(family))[::3]
        ]
        return [f"flexible_jobshop/{n}" for n in [*(f"brandimarte/mk{i:02}" for i in range(1, 11)), *third]], "makespan"
    if name == "large":
        return ["random/500x20", "random/5000x20"], "makespan"
    names = {"jobshop": CLASSICAL, "proofs": PROOFS, "tardiness": sorted(CLASSICAL + MORE)}[name]
    return [f"jobshop/{n}" for n in names], "weighted_tardiness" if name == "tardiness" else "makespan"


SUITES = ("jobshop", "flexible", "proofs", "tardiness", "large")


# Instances


def load(
    instance: str,  # jobshop/ft10, flexible_jobshop/brandimarte/mk01, own/ft06, random/500x20, flexible: random/6x4x2
    objective: str = "makespan",
    data: Path = DATA,
) -> Problem:
    "An instance by its name; with due dates and weights where the objective asks for them."
    folder, _, name = instance.partition("/")
    if folder == "random":
        problem = random_problem(*map(int, name.split("x")))
    elif folder == "own":
        with tempfile.TemporaryDirectory() as there:
            (path := Path(there) / "ft06.txt").write_text(FT06)
            problem = Problem.load(path)
    else:
        problem = Problem.load(data / folder / ("instances" if folder == "jobshop" else "") / f"{name}.txt")
    return problem if objective == "makespan" else with_due_dates(problem)


def random_problem(jobs: int, machines: int, modes: int = 1, seed: int = 0) -> Problem:
    "Durations from 1 to 99, routes at random: Taillard's way."
    rng = np.random.default_rng([seed, jobs, machines, modes])
    routes = np.argsort(rng.random((jobs, machines)))
    durations = rng.integers(1, 100, (jobs, machines, modes)).tolist()

    def operation(j: int, k: int, m: int) -> ProblemOperation:
        return ProblemOperation(
            f"o{k}", tuple(ProblemMode((m + i) % machines, t) for i, t in enumerate(durations[j][k]))
        )

    return Problem(
        tuple(
            ProblemJob(f"j{j}", tuple(operation(j, k, m) for k, m in enumerate(routes[j].tolist())))
            for j in range(jobs)
        ),
        tuple(ProblemMachine(f"m{m}") for m in range(machines)),
        name=f"random {jobs}x{machines}",
    )


def with_due_dates(problem: Problem) -> Problem:
    "Due at 1.3 times the job's work; the first fifth of the jobs weighs 4, the last 1, others 2 (Singer, Pinedo 1998)."
    n = len(problem.jobs)

    def dated(j: int, job: ProblemJob) -> ProblemJob:
        work = sum(min(mode.duration for mode in operation.modes) for operation in job.operations)
        return replace(
            job, due=13 * work // 10, weight=4.0 if j < round(n / 5) else 2.0 if j < round(4 * n / 5) else 1.0
        )

    return replace(problem, jobs=tuple(dated(j, job) for j, job in enumerate(problem.jobs)))


def best_known(instance: str, data: Path = DATA) -> dict[str, float]:  # lb, ub; empty: nothing is known
    folder, _, name = instance.partition("/")
    if instance in OWN:
        return {"lb": OWN[instance], "ub": OWN[instance]}
    path = data / folder / "bounds.json"
    return json.loads(path.read_text()).get(name, {}) if path.exists() else {}


# One run


@dataclass(frozen=True)
class Run:
    "What identifies a result."

    instance: str
    method: str  # a peer, or a method of ours
    seed: int
    limit: float  # s
    workers: int = 2
    objective_name: str = "makespan"


def interpreter(method: str) -> Path:
    "The Python that has what `method` needs."
    name = method.partition(":")[0]
    return ROOT / f".venv-peers/{name}/bin/python" if name in PEERS[1:] else Path(sys.executable)


def is_missing(method: str) -> bool:
    name = method.partition(":")[0]
    return not interpreter(method).exists() or (name not in PEERS and name not in METHODS)


def execute(run: Run, data: Path = DATA) -> dict:
    "The result of `run`, from a process of its own, verified."
    problem = load(run.instance, run.objective_name, data)
    peer = run.method.partition(":")[0] in PEERS
    jobs = [
        {"operations": [operation.modes for operation in job.operations], "due": job.due, "weight": int(job.weight)}
        for job in problem.jobs
    ]
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as there:
        (path := Path(there) / "instance.json").write_text(
            json.dumps({"objective": run.objective_name, "machines": len(problem.machines), "jobs": jobs})
        )
        solver = run.method if peer else f"dtwb:{run.method}"
        script = Path(__file__).with_name("peer_solve.py")
        asked = [interpreter(run.method), script, solver, path, run.limit, run.seed, run.workers]
        found = answer([str(x) for x in asked], 3 * run.limit + 300)
    found |= {"load": round(load_before, 2), "at": datetime.now().isoformat(timespec="seconds")}
    if "starts" in found:
        found |= verified(problem, run.objective_name, found.pop("starts"), found.pop("machines"), found["objective"])
    if "versions" in found:
        found["versions"] |= {"python": sys.version.split()[0]} | ({} if peer else {"commit": commit()})
    return asdict(run) | found


def answer(command: list[str], patience: float) -> dict:
    "The line of JSON that `command` prints; it and its children end with us."
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=-1, stderr=-1, text=True, cwd=ROOT, env=environment, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        return {"error": f"{NO_ANSWER} {patience:g} s"}
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    if process.returncode:
        return {"error": (err.strip().splitlines() or [f"exit code {process.returncode}"])[-1]}
    return json.loads(out)


def verified(problem: Problem, objective: str, starts: list[int], machines: list[int], value: float) -> dict:
    "Is it a plan, and is its objective what is claimed?"
    try:
        ends = tuple(start + problem.duration(o, m) for o, (start, m) in enumerate(zip(starts, machines)))
        verify(problem, Solution(problem, tuple(starts), ends, tuple(machines), ends, value, objective))
    except (ScheduleError, TypeError) as e:  # TypeError: there is no such mode
        return {"valid": False, "violations": str(e)}
    return {"valid": True}


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


# Many runs, resumed


def read(path: Path) -> Iterator[tuple[Run, dict]]:
    "The results in a file; a line that was cut short by a kill is not one."
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        yield Run(**{name: row[name] for name in Run.__dataclass_fields__}), row


def append(path: Path, row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        else:
            torn = False
        file.write(b"\n" * torn + json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def forget(path: Path, methods: Iterable[str]) -> None:
    "Drop the results of `methods`: their code has changed."
    kept = [json.dumps(row) + "\n" for run, row in read(path) if run.method not in methods]
    if path.exists():
        aside = path.with_suffix(".tmp")
        aside.write_text("".join(kept))
        aside.replace(path)


def run_all(
    name: str,  # of the file of results
    instances: list[str],
    methods: list[str],
    seeds: int | dict[str, int] = 1,  # by method, if not all have as many
    limit: float = 20,  # s
    workers: int = 2,
    objective: str = "makespan",
    folder: Path = RESULTS,
    data: Path = DATA,
    say=lambda text: print(text, flush=True),
) -> list[dict]:  # one row a run, in the order asked for; one that failed has an `error`
    "Run what is not yet there, on each instance one method after the other: a busy machine is busy for all of them."
    path = folder / f"{name}.jsonl"
    for method in methods:
        if is_missing(method):
            say(f"{method} is left out: neither a method of ours nor installed (`make peers`)")
    methods = [method for method in methods if not is_missing(method)]
    count = {m: seeds if isinstance(seeds, int) else seeds.get(m, 1) for m in methods}
    turns = [(seed, m) for seed in range(max(count.values(), default=0)) for m in methods if seed < count[m]]
    wanted = [Run(i, m, seed, limit, workers, objective) for i in instances for seed, m in turns]
    rows = {run: row for run, row in read(path) if row.get("error", NO_ANSWER).startswith(NO_ANSWER)}
    todo = [run for run in wanted if run not in rows]
    warm_up(todo)
    began = time.monotonic()
    for n, run in enumerate(todo, 1):
        row = rows[run] = execute(run, data)
        append(path, row)
        left = (time.monotonic() - began) / n * (len(todo) - n)
        value = row.get("error") or f"{row.get('objective')} in {row.get('wall', 0):.1f} s"
        warning = "" if row.get("valid", True) else f" NOT VALID: {row['violations']}"
        say(f"[{n}/{len(todo)}, {left / 60:.0f} min left] {run.instance} {run.method} {run.seed}: {value}{warning}")
    return [rows[run] for run in wanted]


def warm_up(todo: list[Run]) -> None:
    "Compile our kernels outside the clock; numba keeps them on disk. A run that compiled one all the same says so."
    if any(run.method in METHODS for run in todo):
        solve.warm_up()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--methods", default="portfolio,plain_cpsat,pyjobshop,job_shop_lib")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit", type=float, default=20, help="s of wall clock")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--instances", help="only these, as jobshop/ft10,jobshop/la38")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--forget", default="", help="methods whose results are dropped first")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    instances, objective = suite(asked.suite, asked.data)
    if asked.instances:
        instances = asked.instances.split(",")
    forget(asked.results / f"{asked.suite}.jsonl", asked.forget.split(","))
    run_all(
        asked.suite,
        instances,
        asked.methods.split(","),
        asked.seeds,
        asked.limit,
        asked.workers,
        objective,
        asked.results,
        asked.data,
    )


if __name__ == "__main__":
    main()
