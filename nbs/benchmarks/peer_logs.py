"""What pm4py makes of a run that dtwb wrote: `peer_logs.py FOLDER` (run.json, .sqlite, .xml, .xes in it) prints JSON.

Runs in the venv of the peer: `.venv-peers/pm4py/bin/python nbs/benchmarks/peer_logs.py FOLDER` (made by `make peers`).
"""

import json
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import pm4py  # noqa: E402
from pm4py.objects.ocel.validation import ocel20_rel_validation  # noqa: E402

folder = Path(sys.argv[1])
found = {"version": pm4py.__version__, "ocel": {}}
for name, read in {
    "json": pm4py.read_ocel2_json,
    "sqlite": pm4py.read_ocel2_sqlite,
    "xml": pm4py.read_ocel2_xml,
}.items():
    log = read(str(folder / f"run.{name}"))
    jobs = pm4py.ocel_flattening(log, "job")
    follows, _, _ = pm4py.discover_dfg(jobs[jobs["concept:name"].str.startswith("finish ")])
    found["ocel"][name] = {
        "events": len(log.events),
        "objects": {str(k): int(n) for k, n in log.objects["ocel:type"].value_counts().items()},
        "relations": len(log.relations),
        "qualifiers": {str(k): int(n) for k, n in log.relations["ocel:qualifier"].value_counts().items()},
        "object_changes": len(log.object_changes),
        "between_objects": len(log.o2o),
        "follows": {f"{a[7:]} -> {b[7:]}": int(n) for (a, b), n in sorted(follows.items())},
        "remaining": float(log.events["remaining"].sum()) if "remaining" in log.events else 0.0,
        "time_type": str(log.events["ocel:timestamp"].dtype),
    }
found["sqlite_violations"] = list(ocel20_rel_validation.apply(str(folder / "run.sqlite"))[1])

xes = pm4py.read_xes(str(folder / "run.xes"))
complete = xes[xes["lifecycle:transition"] == "complete"]
follows, starts, ends = pm4py.discover_dfg(complete)
found["xes"] = {
    "cases": int(xes["case:concept:name"].nunique()),
    "events": len(xes),
    "transitions": {str(k): int(n) for k, n in xes["lifecycle:transition"].value_counts().items()},
    "follows": {f"{a} -> {b}": int(n) for (a, b), n in sorted(follows.items())},
    "starts": {str(k): int(n) for k, n in starts.items()},
    "ends": {str(k): int(n) for k, n in ends.items()},
    "resources": sorted(map(str, xes["org:resource"].unique())),
}
json.dump(found, sys.stdout, indent=1)
