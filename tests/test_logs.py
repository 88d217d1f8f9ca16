"""Logs for others and from others: the schemas of OCEL 2.0 and XES, pm4py, hostile tables, bounded memory."""

import csv
import json
import math
import sqlite3
import subprocess
import tracemalloc
from collections import Counter
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dtwb.core import events as ev
from dtwb.core.errors import DtwbError
from dtwb.core.events import in_order, log_hash
from dtwb.core.factory import Factory, operation_of, parse_factory
from dtwb.core.state import fold, initial_state
from dtwb.twin import logs
from dtwb.twin.fit import between_failures, causes, fit_factory, measure
from dtwb.twin.kpis import executed, kpis
from dtwb.twin.logs import LogFile, read_csv, read_parquet, replay, write_csv, write_parquet
from dtwb.twin.mining import write_ocel, write_xes
from dtwb.twin.plant_log import ImportedLog, import_log
from dtwb.twin.plant_table import COLUMNS, work_rows, write_work
from dtwb.twin.simulation import simulate

START = datetime(2026, 11, 25, 6)
QUICK = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking a table takes minutes


@pytest.fixture(scope="module")
def plant():
    return Factory.load("data/factories/tile_plant.yaml")


@pytest.fixture(scope="module")
def run(plant):
    """A day on which a failure interrupts work and the camera finds a defect."""
    days = (simulate(plant, seed=seed) for seed in range(99))
    return next(d for d in days if {"OperationInterrupted", "DefectDetected"} <= {e.kind for e in d.events})


def named(value):
    return {"type": "array", "items": {"type": "object", "required": ["name", "value"], "properties": value}}


def declared():
    one = {"name": {"type": "string"}, "type": {"enum": ["string", "time", "integer", "float", "boolean"]}}
    attributes = {"type": "array", "items": {"type": "object", "required": ["name", "type"], "properties": one}}
    properties = {"name": {"type": "string"}, "attributes": attributes}
    return {"type": "array", "items": {"type": "object", "required": ["name", "attributes"], "properties": properties}}


def ocel_schema():
    """The JSON schema of OCEL 2.0 (specification, section 8.2): every value is a string."""
    text, date = {"type": "string"}, {"type": "string", "format": "date-time"}
    relation = {
        "type": "object",
        "required": ["objectId", "qualifier"],
        "properties": {"objectId": text, "qualifier": text},
    }
    related = {"type": "array", "items": relation}
    event = {"id": text, "type": text, "time": date, "relationships": related,
             "attributes": named({"name": text, "value": text})}  # fmt: skip
    thing = {"id": text, "type": text, "relationships": related,
             "attributes": named({"name": text, "value": text, "time": date})}  # fmt: skip
    parts = {"events": (event, ["id", "type", "time"]), "objects": (thing, ["id", "type"])}
    lists = {
        name: {"type": "array", "items": {"type": "object", "properties": properties, "required": required}}
        for name, (properties, required) in parts.items()
    }
    lists |= {"eventTypes": declared(), "objectTypes": declared()}
    return {"type": "object", "properties": lists, "required": list(lists)}


def test_ocel_json_keeps_to_the_published_schema(plant, run, tmp_path):
    log = json.loads(write_ocel(run.events, tmp_path / "run.json", plant, START).read_text())
    jsonschema.validate(log, ocel_schema(), format_checker=jsonschema.FormatChecker())
    ids = [x["id"] for x in log["objects"]]
    assert len(set(ids)) == len(ids) and len({e["id"] for e in log["events"]}) == len(log["events"])
    types = {t["name"]: {a["name"]: a["type"] for a in t["attributes"]} for t in log["eventTypes"]}
    for event in log["events"]:
        datetime.fromisoformat(event["time"])
        assert {r["objectId"] for r in event["relationships"]} <= set(ids)
        for attribute in event["attributes"]:
            {"string": str, "integer": int, "float": float}[types[event["type"]][attribute["name"]]](attribute["value"])
    order = next(e for e in log["events"] if e["type"] == "order released")
    assert order["relationships"] == [{"objectId": order["relationships"][0]["objectId"], "qualifier": "order"}]
    assert Counter(x["type"] for x in log["objects"]) == {"order": 6, "job": 36, "machine": 10, "material": 1}


def test_ocel_sqlite_has_the_tables_and_keys_of_the_standard(plant, run, tmp_path):
    base = sqlite3.connect(write_ocel(run.events, tmp_path / "run.sqlite", plant, START))

    def column(sql):
        return [row[0] for row in base.execute(sql)]

    tables = column("SELECT name FROM sqlite_master WHERE type = 'table'")
    for kind in ("event", "object"):
        maps = column(f"SELECT ocel_type_map FROM {kind}_map_type")
        fixed = {f"{kind}_map_type", f"{kind}_object"}
        assert {t for t in tables if t.startswith(f"{kind}_")} - fixed == {f"{kind}_{m}" for m in maps}
        for m in maps:
            columns = {row[1]: row for row in base.execute(f"PRAGMA table_info({kind}_{m})")}
            assert columns["ocel_time"][2] == "TIMESTAMP" and "ocel_id" in columns
            assert ("ocel_changed_field" in columns) == (kind == "object")
            assert base.execute(f"PRAGMA foreign_key_list({kind}_{m})").fetchall()[0][2:5] == (
                kind,
                "ocel_id",
                "ocel_id",
            )
        total = sum(column(f"SELECT COUNT(DISTINCT ocel_id) FROM {kind}_{m}")[0] for m in maps)
        assert total == column(f"SELECT COUNT(*) FROM {kind}")[0]
    for table in ("event_object", "object_object"):
        assert [bool(row[5]) for row in base.execute(f"PRAGMA table_info({table})")] == [True] * 3
    assert base.execute("PRAGMA foreign_key_check").fetchall() == []
    base.close()


def test_xes_keeps_to_the_grammar_of_ieee_1849(plant, run, tmp_path):
    """The order of elements, the types of values, globals in every event, one key once: as in the standard's XSD."""
    log = ElementTree.parse(write_xes(run.events, tmp_path / "run.xes", plant, START)).getroot()
    check = {
        "string": str,
        "date": datetime.fromisoformat,
        "int": int,
        "float": float,
        "boolean": {"true": 1, "false": 0}.get,
    }

    def values(element, tags):
        rank = [0 if child.tag in check else tags.index(child.tag) + 1 for child in element]
        return rank == sorted(rank)

    heads = [c.tag for c in log if c.tag in ("extension", "global", "classifier")]
    rest = [c.tag for c in log][len(heads) :]
    assert heads == sorted(heads, key=["extension", "global", "classifier"].index) and log.get("xes.version")
    assert all(tag in check for tag in rest[: rest.index("trace")]) and set(rest[rest.index("trace") :]) == {"trace"}
    prefixes = {e.get("prefix") for e in log.iterfind("extension")}
    required = {scope.get("scope"): {a.get("key") for a in scope} for scope in log.iterfind("global")}
    for trace in log.iterfind("trace"):
        assert values(trace, ["event"]) and required["trace"] <= {a.get("key") for a in trace}
        times = []
        for event in trace.iterfind("event"):
            keys = [a.get("key") for a in event]
            assert len(set(keys)) == len(keys) and required["event"] <= set(keys)
            assert {key.partition(":")[0] for key in keys if ":" in key} <= prefixes
            for attribute in event:
                assert check[attribute.tag](attribute.get("value")) is not None
            times.append(next(a.get("value") for a in event if a.tag == "date"))
        assert times == sorted(times)


def test_pm4py_reads_all_four(plant, run, tmp_path, root):
    """The peer itself, where `make peers` has installed it."""
    python = root / ".venv-peers/pm4py/bin/python"
    if not python.exists():
        pytest.skip("no pm4py here (make peers)")
    for suffix in ("json", "sqlite", "xml"):
        write_ocel(run.events, tmp_path / f"run.{suffix}", plant, START)
    write_xes(run.events, tmp_path / "run.xes", plant, START)
    command = [python, root / "nbs/benchmarks/peer_logs.py", tmp_path]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    done = Counter(e.kind for e in run.events)
    state = run.state()
    follows = Counter()
    for job in state.jobs.values():
        follows.update(f"{operation_of(a[0])} -> {operation_of(b[0])}" for a, b in pairwise(job.done))
    assert found["sqlite_violations"] == []
    for form in found["ocel"].values():
        assert form["objects"] == {"order": 6, "job": 36, "machine": 10, "material": 1}
        assert form["follows"] == follows and form["time_type"].endswith("UTC]")
        assert form["object_changes"] == done["MachineStatusChanged"] + done["MaterialArrived"]
        assert form == found["ocel"]["json"]
    assert found["xes"]["cases"] == 36 and found["xes"]["follows"] == follows
    assert found["xes"]["transitions"]["complete"] == done["OperationFinished"]
    assert found["xes"]["starts"] == {"press": 36}


def endless(count):
    """A log of jobs, one after the other, that is never in memory."""
    for i in range(count // 5):
        t, job = 10.0 * i, f"j{i}"
        yield ev.JobReleased(t, job, "o", "p", route=("a",))
        yield ev.OperationStarted(t, "m", job, "a")
        yield ev.OperationFinished(t + 9, "m", job, "a")
        yield ev.JobFinished(t + 9, job)
        yield ev.PartMoved(t + 9, job, "m", "exit")


@pytest.mark.parametrize("write", [write_csv, write_xes, write_work])
def test_a_long_log_is_written_in_bounded_memory(tmp_path, write):
    tracemalloc.start()
    write(endless(5_000), tmp_path / "long")
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert peak < 2  # MB


def test_parquet_is_written_and_read_in_pieces(tmp_path, monkeypatch):
    sizes, to_table = [], logs.to_table
    monkeypatch.setattr(logs, "PIECE", 1000)
    monkeypatch.setattr(logs, "to_table", lambda events: sizes.append(len(events)) or to_table(events))
    path = write_parquet(endless(4_500), tmp_path / "long.parquet")
    assert sizes == [1000] * 4 + [500]
    assert log_hash(LogFile(path)) == log_hash(endless(4_500))


def test_an_interrupted_or_impossible_write_leaves_what_was_there(run, tmp_path):
    path = tmp_path / "run.parquet"
    write_parquet(run.events, path)

    def breaking():
        yield from run.events
        raise KeyboardInterrupt

    for write in (write_parquet, write_csv, write_xes, write_ocel):
        before = path.read_bytes()
        target = path if write is not write_ocel else tmp_path / "run.json"
        with pytest.raises(KeyboardInterrupt):
            write(breaking(), target)
        assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["run.parquet"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DtwbError, match="cannot be written"):
        write_csv(run.events, tmp_path / "file" / "run.csv")


def test_what_others_make_of_our_columns_comes_back(run, tmp_path):
    """The table through pandas and back, columns in another order, one more and one less."""
    path = write_parquet(run.events, tmp_path / "run.parquet")
    frame = pd.read_parquet(path).drop(columns="exact")
    frame["mine"] = 1
    frame[sorted(frame.columns)].to_parquet(tmp_path / "other.parquet")
    assert log_hash(read_parquet(tmp_path / "other.parquet")) == run.hash
    for column, value in {"time": math.nan, "subject": None, "job": None, "kind": None}.items():
        broken = frame.copy()
        broken.loc[broken.index[broken.kind == "OperationStarted"][0], column] = value
        broken.to_parquet(tmp_path / "broken.parquet")
        with pytest.raises(DtwbError, match=r"row|unknown kind"):
            read_parquet(tmp_path / "broken.parquet")


TEXT = st.text(max_size=12)
NUMBER = st.floats(0, 1e9)
EVENTS = st.one_of(
    st.builds(ev.PartScrapped, NUMBER, TEXT, reason=TEXT),
    st.builds(ev.OperationInterrupted, NUMBER, TEXT, TEXT, TEXT, TEXT, NUMBER),
    st.builds(
        ev.JobReleased, NUMBER, TEXT, TEXT, TEXT, st.integers(), st.none() | NUMBER, NUMBER, st.lists(TEXT).map(tuple)
    ),
    st.builds(ev.PartInspected, NUMBER, TEXT, TEXT, TEXT, TEXT, NUMBER, st.none() | TEXT, st.none() | TEXT),
    st.builds(ev.DefectDetected, NUMBER, TEXT, bbox=st.lists(st.integers(-9, 9)).map(tuple)),
)


@settings(max_examples=30, deadline=None, phases=QUICK)
@given(st.lists(EVENTS, max_size=8))
def test_any_events_come_back_from_parquet_and_csv(tmp_path_factory, events):
    folder = tmp_path_factory.mktemp("any")
    assert log_hash(read_parquet(write_parquet(events, folder / "a.parquet"))) == log_hash(events)
    path = write_csv(events, folder / "a.csv")
    assert log_hash(read_csv(path)) == log_hash(events)
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in list(csv.reader(file))[1:]:
            assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in row)


def imported(frame, factory=None):
    """The log; an empty one where nothing can be used, which is said."""
    try:
        return import_log(frame, factory=factory)
    except DtwbError as e:
        assert "nothing in it can be used" in str(e)
        return ImportedLog([], pd.DataFrame({"row": []}), None)


CELL = {
    "case": st.sampled_from(["A", "B", "C", "", "ä;,\n", "=A"]),
    "activity": st.sampled_from(
        ["press", "sinter", "grind", "grind#2", "breakdown", "setup", "maintenance", "polish", ""]
    ),
    "resource": st.sampled_from(["press_1", "kiln_1", "grinder_1", "grinder_1", "unknown", ""]),
    "start": st.sampled_from([*map(str, range(0, 100, 7)), "", "nan", "-5", "1e400", "soon"]),
    "end": st.sampled_from([*map(str, range(5, 120, 9)), "", "inf", "0"]),
    "status": st.sampled_from(["finished", "interrupted", "under way", ""]),
    "quantity": st.sampled_from(["1", "12", "-3", "NaN", "1e400", "zwei", ""]),
    "verdict": st.sampled_from(["good", "crack", ""]),
    "outcome": st.sampled_from(["finished", "scrapped", "rework", ""]),
    "leave": st.sampled_from(["", "50", "110"]),
    "release": st.sampled_from(["", "0", "60"]),
}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.fixed_dictionaries(CELL), min_size=1, max_size=12),
    known=st.booleans(),
    columns=st.sets(st.sampled_from(["status", "quantity", "verdict", "outcome", "leave", "release"])),
)
def test_any_table_is_imported_or_refused_and_what_is_imported_can_have_happened(plant, rows, known, columns):
    frame = pd.DataFrame(rows)[["case", "activity", "resource", "start", "end", *sorted(columns)]]
    log = imported(frame, plant if known else None)
    assert log.events == in_order(log.events)
    state = fold(log.events, initial_state(plant) if known else None)
    assert replay(log, plant if known else None).counts == state.counts
    assert set(log.findings.row) <= set(range(2, len(rows) + 2))
    if any(isinstance(e, ev.OperationStarted) for e in log):
        fitted, _ = fit_factory(log, bootstrap=0)
        kpis(log.events, plant if known else fitted)
    assert state.counts["finished"] + state.counts["scrapped"] <= state.counts["released"]


@settings(max_examples=25, deadline=None, phases=QUICK)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("AB"),
            st.sampled_from(["press", "grind"]),
            st.sampled_from(["start", "suspend", "resume", "complete", "schedule", ""]),
            st.integers(0, 60),
        ),
        min_size=1,
        max_size=14,
    )
)
def test_any_transitions_are_imported(rows):
    frame = pd.DataFrame([(*r[:3], str(r[3]), f"{r[1]}er") for r in rows])
    frame.columns = ["case", "concept:name", "lifecycle:transition", "time:timestamp", "org:resource"]
    fold(imported(frame))


@pytest.mark.parametrize("seed", range(3))
def test_there_and_back_the_schedule_is_the_same(plant, tmp_path, seed):
    one = simulate(plant, seed=seed + 10)
    log = import_log(write_work(one.events, tmp_path / "work.csv"), factory=plant)
    assert log.schedule == one.schedule and len(log.findings) == 0
    alone = import_log(tmp_path / "work.csv")  # without the factory: the same work
    assert alone.schedule == one.schedule
    pieces = [(r["case"], r["activity"], r["start"], r["end"]) for r in work_rows(one.events) if "case" in r]
    again = [(r["case"], r["activity"], r["start"], r["end"]) for r in work_rows(log.events) if "case" in r]
    assert sorted(again) == sorted(pieces)


def test_a_spreadsheet_and_parquet_say_the_same(plant, run, tmp_path):
    frame = pd.DataFrame(work_rows(run.events), columns=list(COLUMNS))
    frame.to_parquet(tmp_path / "work.parquet")
    log = import_log(tmp_path / "work.parquet", factory=plant)
    assert log.schedule == run.schedule
    semicolons = Path(write_work(run.events, tmp_path / "work.csv", START)).read_text("utf-8-sig").replace(",", ";")
    (tmp_path / "semicolons.csv").write_text(semicolons)
    assert len(import_log(tmp_path / "semicolons.csv", factory=plant)) == len(log)


def test_durations_are_measured_as_they_were(plant):
    """Independently: pieces of work added up, interruptions and batches included."""
    one = next(r for r in (simulate(plant, seed=s) for s in range(99)) if r.kpis.failures > 2)
    found = measure(one.events)
    pieces = executed(one.events)
    product = {e.subject: e.product for e in one.events if isinstance(e, ev.JobReleased)}
    total = Counter()
    for row in pieces.itertuples():
        total[row.job, row.operation, row.machine] += row.end - row.start
    for (of, operation, machine), rows in found.work.items():
        whole = [
            t
            for (job, visit, m), t in total.items()
            if (product[job], operation_of(visit), m) == (of, operation, machine)
        ]
        if machine != "kiln_1":
            assert sorted(d for d, cut, _ in rows if not cut) == pytest.approx(sorted(whole), rel=1e-9)
        else:
            assert {round(d, 6) for d, *_ in rows} == {round(t, 6) for t in whole}
    for machine in plant.machines:
        gaps = [
            g
            for m, cause in causes(found)
            for g in between_failures(found, m, cause)[0]["operating"]
            if m == machine.id
        ]
        if gaps:
            work = one.kpis.actual_production_time.sel(machine=machine.id).item()
            assert sum(t for t, _ in gaps) == pytest.approx(work, rel=1e-9)


def test_what_was_put_in_comes_out():
    """A station with known distributions of every kind: the truth is in the intervals, 95 % of them."""
    known = {
        "name": "line",
        "machines": [
            {"id": "a", "failure": {"mtbf": {"distribution": "exponential", "mean": 4000}, "clock": "calendar",
                                    "mttr": {"distribution": "gamma", "mean": 300, "cv": 0.7}}},
            {"id": "b", "failure": {"mtbf": {"distribution": "weibull", "mean": 3000, "shape": 2},
                                    "mttr": {"distribution": "lognormal", "mean": 200, "cv": 0.5}}},
        ],
        "products": [{"id": "p", "operations": [
            {"id": "x", "modes": [{"machine": "a", "duration": {"distribution": "gamma", "mean": 60, "cv": 0.5}}]},
            {"id": "y", "modes": [{"machine": "b", "duration": {"distribution": "weibull", "mean": 70, "shape": 3}}]},
        ]}],
        "orders": [{"id": f"o{i}", "product": "p", "release": 100.0 * i} for i in range(2000)],
    }  # fmt: skip
    line = parse_factory(known)
    held, clocks = [], []
    for seed in range(3):
        fitted, report = fit_factory(simulate(line, seed=seed), bootstrap=0)
        for machine in line.machines:
            truth = {"between failures": machine.failure.mtbf.mean, "repair": machine.failure.mttr.mean}
            for what, mean in truth.items():
                low, high = report.fits[what, machine.id, "", "", "breakdown"].interval["mean"]
                held.append(low <= mean <= high)
            clocks.append(fitted.machine(machine.id).failure.clock)
        for operation in line.route("p"):
            mode = operation.modes[0]
            low, high = report.fits["work", mode.machine, "p", operation.id].interval["mean"]
            held.append(low <= mode.duration.mean <= high)
    assert clocks == ["calendar", "operating"] * 3
    assert sum(held) >= len(held) - 3, held  # of 18; four or more outside have a chance below 1 in 500


def test_command_line(workbench, tmp_path):
    assert workbench.fresh("simulate", "--seed", "2").returncode == 0
    work, ocel, plan = tmp_path / "work.csv", tmp_path / "run.sqlite", tmp_path / "fitted.yaml"
    said = workbench("export-log", "latest", "--format", "work", "--out", work, "--start", "2026-11-25T06:00")
    assert said.returncode == 0 and f"Wrote {work}" in said.stdout, said.stderr
    said = workbench("export-log", "latest", "--format", "ocel", "--out", ocel, "--json")
    assert json.loads(said.stdout)["events"] > 1000 and ocel.stat().st_size > 100_000, said.stderr
    said = workbench("fit", work, "--factory", "data/factories/tile_plant.yaml", "--out", plan, "--json")
    answer = json.loads(said.stdout)
    assert answer["findings"] == [] and len(answer["fits"]) > 20, said.stderr
    assert Factory.load(plan).machine("kiln_1").batch_capacity == 6
