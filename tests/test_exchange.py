"""What leaves is what others read (RFC 5545, Microsoft Project, spreadsheets); what comes back is checked."""

import json
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import icalendar
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from dtwb.core.errors import ScheduleError
from dtwb.core.factory import Factory
from dtwb.core.schedule import Schedule, ScheduledOperation, from_json
from dtwb.core.schedule import to_json as rows_to_json
from dtwb.scheduling.exchange import (
    MAX_BYTES,
    MSPDI,
    read_schedule,
    to_csv,
    to_icalendar,
    to_mspdi,
    write_calendars,
    write_schedule,
)
from dtwb.scheduling.problem import Problem
from dtwb.scheduling.solve import solve

BERLIN = ZoneInfo("Europe/Berlin")
START = datetime(2026, 11, 30, 6, tzinfo=BERLIN)


@pytest.fixture(scope="module")
def solution():
    problem = Problem.from_factory(Factory.load(ROOT / "data/factories/tile_plant.yaml"))
    return solve(problem, "weighted_tardiness", method="edd")


names = st.text(st.characters(categories=("L", "N", "P", "S", "Zs"), include_characters=" "), min_size=1, max_size=30)
names = names.filter(lambda s: s.strip() and s.isprintable())
times = st.floats(0, 1e7, allow_nan=False)


@st.composite
def schedules(draw):
    rows = {}
    for _ in range(draw(st.integers(0, 6))):
        start, lasts, waits = draw(times), draw(times), draw(st.none() | times)
        end = start + lasts
        row = ScheduledOperation(
            draw(names), draw(names), draw(names), start, end, None if waits is None else end + waits
        )
        rows[row.job, row.operation] = row
    return Schedule(tuple(rows.values()))


@settings(deadline=None, max_examples=150)
@given(plan=schedules(), suffix=st.sampled_from([".csv", ".json"]), start=st.sampled_from([None, START]))
def test_what_is_written_is_read(tmp_path_factory, plan, suffix, start):
    path = tmp_path_factory.mktemp("plans") / f"plan{suffix}"
    assert read_schedule(write_schedule(plan, path, start)) == plan
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing is left beside it


@settings(deadline=None, max_examples=150)
@given(plan=schedules())
def test_no_cell_is_a_formula(plan):
    import csv
    import io

    for cells in list(csv.reader(io.StringIO(to_csv(plan), newline="")))[1:]:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for cell in cells)


def test_the_row_lists_of_core_are_read_too(tmp_path, solution):
    path = tmp_path / "plan.json"
    path.write_text(rows_to_json(solution.schedule))
    assert read_schedule(path) == from_json(path.read_text()) == solution.schedule


HEAD = "job,operation,machine,start,end,leave\n"


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.csv", "", ["a.csv", "empty"]),
        ("a.csv", "job,operation,start,end\n", ["line 1", "no column machine"]),
        ("a.csv", HEAD + "a,b,c,0,5,\na,b2,c\n", ["line 3", "3 cells under 6 columns"]),
        ("a.csv", HEAD + "a,b,c,zero,5,\n", ["line 2", "start", "'zero'"]),
        ("a.csv", HEAD + "a,b,c,nan,5,\n", ["line 2", "start", "'nan'"]),
        ("a.csv", HEAD + "a,b,c,0,inf,\n", ["line 2", "end", "'inf'"]),
        ("a.csv", HEAD + "a,b,c,0,1e400,\n", ["line 2", "end"]),
        ("a.csv", HEAD + "a,b,c,1_0,20,\n", ["line 2", "start"]),
        ("a.csv", HEAD + "a,b,c,,5,\n", ["line 2", "start is missing"]),
        ("a.csv", HEAD + "a,b,c,6,5,\n", ["line 2", "starts at 6"]),
        ("a.csv", HEAD + "a,b,c,0,5,4\n", ["line 2", "leaves at 4"]),
        ("a.csv", HEAD + "a,b,c,0,5,\na,b,d,6,7,\n", ["line 3", "a b is there twice", "line 2"]),
        ("a.csv", HEAD + ",b,c,0,5,\n", ["line 2", "job is a name"]),
        ("a.csv", HEAD + "a\0,b,c,0,5,\n", ["line 2"]),
        ("a.csv", HEAD + f"{'x' * 300},b,c,0,5,\n", ["line 2", "job"]),
        ("a.csv", HEAD + '"a,b,c,0,5,\n', ["no CSV"]),
        ("a.csv", HEAD + "x" * 200_000 + ",b,c,0,5,\n", ["no CSV"]),
        ("a.json", "", ["no JSON", "line 1"]),
        ("a.json", "{", ["no JSON"]),
        ("a.json", "[" * 200_000, ["a.json"]),
        ("a.json", "3", ["no list of operations"]),
        ("a.json", '{"plan": []}', ["no list of operations"]),
        ("a.json", "[[1, 2, 3, 4, 5]]", ["row 0", "job"]),
        ("a.json", '[["a", "b", "c", true, 5]]', ["row 0", "start", "True"]),
        ("a.json", '[["a", "b", "c", NaN, 5]]', ["row 0", "start"]),
        ("a.json", '[["a", "b", "c", 0, Infinity]]', ["row 0", "end"]),
        ("a.json", '[["a", "b", "c", 0, [5]]]', ["row 0", "end"]),
        ("a.json", f'[["a", "b", "c", 0, {"9" * 500}]]', ["row 0", "end"]),
        ("a.json", f'[["a", "b", "c", 0, {"9" * 5000}]]', ["a.json"]),
        ("a.json", '[["a", "b", "c", 0, 5], ["a", "b"]]', ["row 1", "no operation"]),
        ("a.json", '[{"job": "a", "operation": "b", "start": 0, "end": 5}]', ["row 0", "machine"]),
        ("a.json", '[["a\\u0000", "b", "c", 0, 5]]', ["row 0", "job"]),
        ("a.xlsx", "", [".xlsx", "known: .csv, .json"]),
        ("a", "", ["suffix"]),
    ],
)
def test_hostile_files(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ScheduleError) as refused:
        read_schedule(path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    for word in [str(path), *words]:
        assert word in str(refused.value)


def test_files_that_are_none(tmp_path):
    (tmp_path / "latin.csv").write_bytes(b"job\xe4")
    with open(tmp_path / "huge.json", "wb") as huge:
        huge.truncate(MAX_BYTES + 1)
    for name, word in (("latin.csv", "not UTF-8"), ("huge.json", "larger than"), ("gone.csv", "cannot be read")):
        with pytest.raises(ScheduleError, match=word):
            read_schedule(tmp_path / name)


def test_spreadsheets_elsewhere(tmp_path):
    path = tmp_path / "plan.csv"
    path.write_bytes("\ufeffMachine;Job;Operation;End;Start;color\r\nm;j;o;5;1;red\r\n\r\n".encode())
    assert read_schedule(path).rows == (ScheduledOperation("j", "o", "m", 1.0, 5.0),)


# Calendars, read by the icalendar library


def events(data: bytes):
    return [c for c in icalendar.Calendar.from_ical(data).walk() if c.name == "VEVENT"]


def test_calendar(solution):
    found = events(to_icalendar(solution, START, stamp=START))
    rows = solution.schedule.rows
    assert len(found) == len(rows)
    for event, row in zip(found, rows):
        assert event.decoded("dtstart") == START.astimezone(UTC) + timedelta(seconds=row.start)
        assert event.decoded("dtend") == START.astimezone(UTC) + timedelta(seconds=row.end)
        assert (str(event["summary"]), str(event["location"])) == (f"{row.job} {row.operation}", row.machine)
        assert event.decoded("dtstamp") == START.astimezone(UTC)
    assert len({event["uid"] for event in found}) == len(rows)


def test_a_new_plan_moves_the_events(solution):
    later = Schedule(tuple(r._replace(start=r.start + 60, end=r.end + 60, leave=None) for r in solution.schedule.rows))
    old, new = (
        {e["uid"]: e for e in events(to_icalendar(p, START, name="plant", sequence=i))}
        for i, p in enumerate((solution.schedule, later))
    )
    assert old.keys() == new.keys()
    for uid in old:
        assert new[uid].decoded("dtstart") - old[uid].decoded("dtstart") == timedelta(minutes=1)
        assert new[uid]["sequence"] == 1
    assert {e["uid"] for e in events(to_icalendar(later, START, name="another"))}.isdisjoint(old)


@settings(deadline=None, max_examples=150)
@given(plan=schedules(), title=names)
def test_calendar_keeps_every_text(plan, title):
    data = to_icalendar(plan, START, name=title)
    text = data.decode()
    assert all(len(line.encode()) <= 75 for line in text.split("\r\n"))
    assert "\n" not in text.replace("\r\n", "")
    found = events(data)
    assert [str(e["summary"]) for e in found] == [f"{r.job} {r.operation}" for r in plan.rows]
    assert [str(e["location"]) for e in found] == [r.machine for r in plan.rows]
    for event, row in zip(found, plan.rows):
        assert ("dtend" in event) == (round(row.end) > round(row.start)) or abs(row.end - row.start) <= 1


def test_nobody_smuggles_lines_into_a_calendar():
    row = ScheduledOperation("j\r\nEND:VEVENT\r\nBEGIN:VALARM", "o\nX:1", "m;LANGUAGE=x:", 0.0, 60.0)
    (event,) = events(to_icalendar(Schedule((row,)), START))
    assert not event.subcomponents and "X" not in event
    assert str(event["location"]) == row.machine


def test_a_calendar_for_each_machine(tmp_path, solution):
    odd = Schedule(
        tuple(ScheduledOperation("j", f"o{i}", m, i, i + 1) for i, m in enumerate(["../a", "a", "A", "ä b", "/"]))
    )
    files = write_calendars(odd, tmp_path / "floor", START)
    assert len({f.name.lower() for f in files}) == 5 and all(
        f.parent == tmp_path / "floor" and f.is_file() for f in files
    )
    files = write_calendars(solution, tmp_path / "plant", START)
    assert sum(len(events(f.read_bytes())) for f in files) == len(solution.schedule)
    with pytest.raises(ScheduleError, match=r"no work in this plan.*kiln_1"):
        to_icalendar(solution, START, machine="oven")


def test_clocks_that_are_changed():
    "Second 0 is two hours before the clocks go back: three hours of work later it is 04:00, minus one."
    start = datetime(2026, 10, 25, 1, tzinfo=BERLIN)
    plan = Schedule((ScheduledOperation("j", "o", "m", 3 * 3600.0, 4 * 3600.0),))
    (event,) = events(to_icalendar(plan, start))
    assert event.decoded("dtstart") == datetime(2026, 10, 25, 2, tzinfo=UTC)
    assert "2026-10-25T03:00:00+01:00" in to_csv(plan, start)
    assert project(to_mspdi(plan, start)).findtext("p:Tasks/p:Task/p:Start", namespaces=SPACE) == "2026-10-25T03:00:00"


# Microsoft Project: the order of mspdi_pj12.xsd, an xsd:sequence, for the elements that we write

SPACE = {"p": MSPDI}
ORDER = {
    "Project": "SaveVersion UID Name Title ScheduleFromStart StartDate FinishDate CurrencyCode CalendarUID "
    "DefaultStartTime DefaultFinishTime MinutesPerDay MinutesPerWeek DaysPerMonth Calendars Tasks Resources "
    "Assignments",
    "Task": "UID ID Name Type IsNull CreateDate WBS OutlineNumber OutlineLevel Priority Start Finish Duration "
    "DurationFormat Work EffortDriven Recurring OverAllocated Estimated Milestone Summary Critical ConstraintType "
    "CalendarUID ConstraintDate Deadline Notes PredecessorLink",
    "PredecessorLink": "PredecessorUID Type CrossProject CrossProjectName LinkLag LagFormat",
    "Resource": "UID ID Name Type IsNull Initials MaxUnits CalendarUID",
    "Assignment": "UID TaskUID ResourceUID Finish Start Units Work",
    "Calendar": "UID Name IsBaseCalendar BaseCalendarUID WeekDays",
    "WeekDay": "DayType DayWorking WorkingTimes",
    "WorkingTime": "FromTime ToTime",
}
DATE, LASTS = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", r"PT\d+H\d+M\d+S"


def project(data: bytes):
    return ElementTree.fromstring(data)


def plain(element):
    return element.tag.removeprefix(f"{{{MSPDI}}}")


@settings(deadline=None, max_examples=60)
@given(plan=schedules(), title=names)
def test_project_follows_the_schema(plan, title):
    root = project(to_mspdi(plan, START, name=title))
    assert root.tag == f"{{{MSPDI}}}Project"
    for element in root.iter():
        if plain(element) in ORDER:
            order = ORDER[plain(element)].split()
            places = [order.index(plain(child)) for child in element]
            assert all(a < b for a, b in pairwise(places)), (plain(element), [plain(c) for c in element])
        kind = plain(element)
        if kind in ("Start", "Finish", "StartDate", "FinishDate", "ConstraintDate"):
            assert re.fullmatch(DATE, element.text)
        if kind in ("Duration", "Work"):
            assert re.fullmatch(LASTS, element.text)
        if kind in ("UID", "ID", "Type", "OutlineLevel", "Summary", "Milestone", "PredecessorUID"):
            assert re.fullmatch(r"-?\d+", element.text)
    tasks = root.findall("p:Tasks/p:Task", SPACE)
    uids = [t.findtext("p:UID", namespaces=SPACE) for t in tasks]
    assert len(set(uids)) == len(uids) == len(plan) + len(plan.by_job())


def test_project_is_the_plan(solution):
    root = project(to_mspdi(solution, START))
    plan = solution.schedule

    def text(element, name):
        return element.findtext(f"p:{name}", namespaces=SPACE)

    tasks = {text(t, "UID"): t for t in root.findall("p:Tasks/p:Task", SPACE)}
    resources = {text(r, "UID"): text(r, "Name") for r in root.findall("p:Resources/p:Resource", SPACE)}
    assert sorted(resources.values()) == sorted(plan.by_machine())
    done = set()
    for assignment in root.findall("p:Assignments/p:Assignment", SPACE):
        task = tasks[text(assignment, "TaskUID")]
        start, finish = (datetime.fromisoformat(text(task, name)) for name in ("Start", "Finish"))
        operation = text(task, "Name").partition(" ")[0]
        done.add((operation, resources[text(assignment, "ResourceUID")], start, finish))
        hours, minutes, seconds = map(int, re.fullmatch(r"PT(\d+)H(\d+)M(\d+)S", text(task, "Duration")).groups())
        assert timedelta(hours=hours, minutes=minutes, seconds=seconds) == finish - start
        for link in task.findall("p:PredecessorLink", SPACE):
            before = tasks[text(link, "PredecessorUID")]
            assert text(before, "OutlineNumber").split(".")[0] == text(task, "OutlineNumber").split(".")[0]
            assert datetime.fromisoformat(text(before, "Finish")) <= start
    zero = START.replace(tzinfo=None)
    wanted = {(r.operation, r.machine, *(zero + timedelta(seconds=s) for s in (r.start, r.end))) for r in plan.rows}
    assert done == wanted
    links = root.findall("p:Tasks/p:Task/p:PredecessorLink", SPACE)
    assert len(links) == len(plan) - len(plan.by_job())


# Files


def test_formats(tmp_path, solution):
    with pytest.raises(ScheduleError, match=r"no format '.xlsx' \(known: .csv, .json, .xml, .ics\)"):
        write_schedule(solution, tmp_path / "plan.xlsx")
    with pytest.raises(ScheduleError, match="no suffix"):
        write_schedule(solution, tmp_path / "plan")
    for suffix in (".xml", ".ics"):
        with pytest.raises(ScheduleError, match="needs dates"):
            write_schedule(solution, tmp_path / f"plan{suffix}")
    assert not list(tmp_path.iterdir())
    about = json.loads(write_schedule(solution, tmp_path / "plan.JSON", START).read_text())
    assert about["start"] == "2026-11-30T06:00:00+01:00"
    assert about["schedule"][0]["start_date"].startswith("2026-11-30T06:")


def test_what_was_there_stays_where_writing_fails(tmp_path, solution, monkeypatch):
    path = write_schedule(solution, tmp_path / "plan.csv")
    before = path.read_bytes()

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(ScheduleError, match="cannot be written: No space left"):
        write_schedule(Schedule(), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["plan.csv"]


def test_dates_beyond_the_calendar(tmp_path):
    plan = Schedule((ScheduledOperation("j", "o", "m", 0.0, 1e13),))
    for suffix in (".csv", ".json", ".xml", ".ics"):
        with pytest.raises(ScheduleError, match="is no date"):
            write_schedule(plan, tmp_path / f"plan{suffix}", START)
