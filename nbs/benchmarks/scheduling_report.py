"What the notebooks scheduling_* share: results as tables and curves, and as small JSON beside the notebook."

import json
import operator
import os
import platform
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from run_scheduling import DATA, PEERS, ROOT, best_known

from dtwb.core.schedule import OKABE_ITO

TIMES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)  # s, at which the objective is kept
KEPT = (
    "instance method seed limit objective bound status wall built cpu compiled valid error load imported again how at"
)


def at_time(trace: list, seconds: float) -> float | None:
    "The objective that was known by then."
    return next((objective for time, objective, _ in reversed(trace) if time <= seconds), None)


def records(rows: Iterable[dict], data: Path = DATA) -> list[dict]:
    "What is kept of each run, with the best that is known of its instance."
    found = []
    for row in rows:
        trace = row.get("trace", [])
        known = best_known(row["instance"], data) if row["objective_name"] == "makespan" else {}
        found.append(
            {name: row[name] for name in KEPT.split() if name in row}
            | {"best": known.get("ub"), "first": trace[0][0] if trace else None}
            | {"objectives": [at_time(trace, t) for t in TIMES if t <= row["limit"]]}
        )
    return found


def versions(rows: Iterable[dict]) -> dict[str, str]:
    "Of each package, by who uses it."
    found: dict[str, set] = {}
    for row in rows:
        for package, version in row.get("versions", {}).items():
            who = (
                package if package in ("python", "dtwb", "commit") else f"{package} ({row['method'].partition(':')[0]})"
            )
            if package != "ortools" or row["method"] in ("plain_cpsat", "pyjobshop", "job_shop_lib"):
                found.setdefault(who, set()).add(version)
    return {who: ", ".join(sorted(known)) for who, known in sorted(found.items())}


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def write(name: str, what: str, rows: list[dict], data: Path = DATA, **more) -> None:
    "Write `nbs/benchmarks/NAME.json`, a run to a line."
    head = {
        "what": what,
        "machine": machine(),
        "date": date.today().isoformat(),
        "versions": versions(rows),
        "times": TIMES,
    }
    lines = ",\n".join(json.dumps(record) for record in records(rows, data))
    text = json.dumps(head | more, indent=1).removesuffix("\n}") + f',\n "runs": [\n{lines}\n]}}\n'
    path = ROOT / f"nbs/benchmarks/{name}.json"
    aside = path.with_suffix(".json.tmp")
    aside.write_text(text)
    aside.replace(path)


def stored(name: str, instead: pd.DataFrame) -> tuple[pd.DataFrame, dict]:
    "The full run that lies beside the notebook, and where and when it was; `instead` where there is none yet."
    path = ROOT / f"nbs/benchmarks/{name}.json"
    if not path.exists():
        return instead, {"what": "not yet run in full"}
    full = json.loads(path.read_text())
    return frame(full.pop("runs")), full


def frame(runs: list[dict]) -> pd.DataFrame:
    "Records as a table, with the gap to the best known in %; a run without a plan has an infinite one."
    columns = [*KEPT.split(), "best", "first", "objectives"]
    table = pd.DataFrame(runs).reindex(columns=columns)
    table["instance"] = table.instance.str.partition("/")[2]
    objective = table.objective.astype(float).where(table.valid.eq(True), np.inf)
    table["gap"] = (objective / table.best.astype(float) - 1) * 100
    table["peer"] = table.method.str.partition(":")[0].isin(PEERS)
    table["proved"] = table.status.eq("optimal") & table.valid.eq(True)
    return table


def gaps_at(table: pd.DataFrame, seconds: float) -> pd.Series:
    "Each run's gap at `seconds` in %; infinite where there was no plan yet."
    n = TIMES.index(seconds)
    objective = table.objectives.map(lambda known: known[n] if n < len(known) and known[n] is not None else np.inf)
    return (objective.astype(float) / table.best.astype(float) - 1) * 100


def by_instance(table: pd.DataFrame, value: str = "gap") -> pd.DataFrame:
    "Means over the seeds, one column a method, with the mean and the worst below."
    means = table.pivot_table(value, "instance", "method", "mean", sort=False, dropna=False)
    below = pd.DataFrame({"mean": means.mean(), "worst": means.max()}).T
    return pd.concat([means, below])


def plot_anytime(table: pd.DataFrame, ax=None):
    "The mean gap over time, from when a method has a plan for every instance."
    ax = ax or plt.subplots(figsize=(7, 3.5))[1]
    limit = table.limit.max()
    times = [t for t in TIMES if t <= limit]
    for (method, runs), colour in zip(table.groupby("method", sort=False), OKABE_ITO):
        means = np.array([gaps_at(runs, t).mean() for t in times])
        ax.plot(np.array(times)[np.isfinite(means)], means[np.isfinite(means)], "o-", ms=4, color=colour, label=method)
    ax.set(
        xscale="log",
        xlabel="s",
        ylabel="mean gap to the best known, %",
        xticks=times,
        xticklabels=[f"{t:g}" for t in times],
    )
    ax.set_ylim(bottom=0)
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax


def busy(table: pd.DataFrame) -> pd.DataFrame:
    "How many cores each method had, the machine's load when it began, and the functions that numba compiled meanwhile."
    numbers = table.astype({"wall": float, "cpu": float, "compiled": float, "load": float})
    found = numbers.assign(cores=numbers.cpu / numbers.wall).groupby("method", sort=False)
    sums = pd.DataFrame({"longest": found.wall.max(), "compiled": found.compiled.sum()})
    return found[["wall", "cores", "load"]].mean().join(sums).round(2)


def failures(table: pd.DataFrame) -> pd.DataFrame:
    "Runs that ended without a plan, or with one that is none."
    return table[~table.valid.eq(True)][["instance", "method", "seed", "limit", "status", "valid", "error"]]


def ours(table: pd.DataFrame) -> str:
    "The method that is held to the goals."
    return next(m for m in ("portfolio", "cpsat", "rules") if m in set(table.method))


def goals(*lines: tuple[str, str, float, float]) -> pd.DataFrame:  # (what, sign, asked for, measured)
    "What was asked for beside what was measured."
    holds = {"<=": operator.le, ">=": operator.ge, "<": operator.lt}
    rows = [(what, f"{sign} {f'{asked:,}'}", round(x, 3), holds[sign](x, asked)) for what, sign, asked, x in lines]
    return pd.DataFrame(rows, columns=["", "asked for", "measured", "reached"]).set_index("")
