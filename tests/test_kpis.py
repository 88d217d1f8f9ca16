"""Key figures against a slow independent computation, laws of flow, traces and histories that lose nothing."""

import itertools
import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_twin import RULES, factories

from dtwb.core import events as ev
from dtwb.core.events import in_order, log_hash
from dtwb.core.factory import Factory, energy_price, open_windows, operation_of, parse_factory
from dtwb.core.state import FactoryState, History, fold, initial_state
from dtwb.core.trace import COLUMNS, KINDS, Trace, ranks, sort_trace
from dtwb.twin.kpis import ended_jobs, executed, key_figures, kpis, over_time, status_intervals, work_in_progress
from dtwb.twin.simulation import simulate

few = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def runs(draw):
    """A run of a random plant that uses energy and costs money."""
    data = draw(factories()).model_dump(mode="json", exclude_defaults=True)
    for m in data["machines"]:
        m["power"] = {status: draw(st.integers(0, 9)) for status in ("RUNNING", "IDLE", "SETUP", "ERROR")}
        m["cost_rate"], m["closing"] = draw(st.integers(0, 9)), draw(st.sampled_from(["overrun", "pause"]))
        if "setup" not in m and m.get("batch_capacity", 1) == 1:
            m["capacity"] = draw(st.integers(1, 2))
        if "failure" in m and draw(st.booleans()):
            m["failures"] = [m["failure"] | {"cause": "another", "clock": "calendar"}]
    if draw(st.booleans()):
        arrivals = {"interarrival": {"distribution": "exponential", "mean": 20}, "limit": 8}
        data["sources"] = [{"id": "source", "products": {p["id"]: 1 for p in data["products"]}} | arrivals]
    if draw(st.booleans()):
        data["release"] = {"policy": "conwip", "wip": draw(st.integers(1, 4))}
    data["tariff"] = [[draw(st.integers(0, 50)), 0.3], [60, 0.1], [draw(st.integers(70, 500)), 0.2]]
    data["costs"] = {"wip": 3, "tardiness": 7, "scrap": 11, "maintenance": 13, "repair": 17}
    data["materials"][0]["cost"] = 2
    factory = parse_factory(data)
    return factory, simulate(factory, rule=draw(st.sampled_from(sorted(RULES))), seed=draw(st.integers(0, 99)))


def close(a, b):
    return np.allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-9, atol=1e-6, equal_nan=True)


def overlap(a, b, spans):
    return sum(max(0.0, min(b, d) - max(a, c)) for c, d in spans)


def paid(factory, a, b):
    """Money for one kW from a to b, from one change of the price to the next."""
    changes = {d * 86400 + start for d in range(int(b // 86400) + 1) for start, _ in factory.tariff} | {0.0, b, a}
    times = sorted(t for t in changes if a <= t <= b)
    return sum(energy_price(factory, s) * (e - s) for s, e in itertools.pairwise(times)) / 3600


@few
@given(runs(), st.floats(0, 0.6), st.floats(0.61, 1.3))
def test_machine_figures_are_what_the_intervals_say(run, a, b):
    factory, run = run
    last = run.events[-1].time
    start, end = a * last, b * last
    if end <= start:
        return
    figures = key_figures(run.events, factory, start, end)
    intervals = status_intervals(run.events, [m.id for m in factory.machines], end)
    for i, m in enumerate(factory.machines):
        mine = [x for x in intervals.itertuples() if x.machine == m.id]
        spent = dict.fromkeys(("RUNNING", "SETUP", "ERROR", "BLOCKED", "WARNING", "MAINTENANCE"), 0.0)
        opened = open_windows(factory.calendar(m.id), 0.0, end)
        planned = overlap(start, end, opened)
        energy = money = 0.0
        for x in mine:
            c, d = max(x.start, start), min(x.end, end)
            if d <= c:
                continue
            spent[x.status] = spent.get(x.status, 0.0) + d - c
            planned += (x.status == "RUNNING") * (d - c - overlap(c, d, opened))
            planned -= (x.status == "MAINTENANCE") * overlap(c, d, opened)
            energy += m.power.get(x.status, 0) * (d - c) / 3600
            money += m.power.get(x.status, 0) * paid(factory, c, d)
        work, delay = spent["RUNNING"], spent["ERROR"] + spent["BLOCKED"] + spent["WARNING"]
        expected = {"actual_production_time": work, "planned_busy_time": planned, "machine_energy": energy}
        expected |= {"machine_energy_cost": money, "utilisation": work / (end - start)}
        repairs = [
            e for e in run.events if e.kind == "MachineRepaired" and e.subject == m.id and start <= e.time <= end
        ]
        expected["mttr"] = np.mean([e.downtime for e in repairs]) if repairs else math.nan
        if work + spent["SETUP"] + delay > 1e-6:
            expected["utilisation_efficiency"] = work / (work + spent["SETUP"] + delay)
        for name, value in expected.items():
            assert close(figures[name][i], value), (name, m.id)
    assert close(figures["status_share"].sum(1), 1)


@few
@given(runs())
def test_plant_figures_are_what_the_jobs_say(run):
    factory, run = run
    end = run.events[-1].time
    figures = key_figures(run.events, factory, 0.0, end)
    jobs = ended_jobs(run.events)
    leads = jobs.lead_time[jobs.how == "finished"]
    assert figures["finished"] == len(leads) and figures["scrapped"] == sum(jobs.how == "scrapped")
    if len(leads):
        for name, q in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9), ("max", 1.0)):
            assert close(figures[f"lead_time_{name}"], np.quantile(leads, q))
        assert close(figures["lead_time_std"], np.std(leads))
        work = executed(run.events).assign(long=lambda d: d.end - d.start).groupby("job").long.sum()
        ended = jobs.job[jobs.how == "finished"]
        if run.how == "finished" and end > 0:
            assert close(figures["production_process_ratio"], work.reindex(ended).sum() / leads.sum())
    began = {(e.job, e.operation): e for e in run.events if isinstance(e, ev.OperationStarted)}
    products = {e.subject: e.product for e in run.events if isinstance(e, ev.JobReleased)}
    used = sum(sum(factory.operation(products[job], visit).materials.values()) for job, visit in began)
    assert close(figures["cost_material"], 2 * used)
    assert close(figures["cost_repair"], 17 * sum(isinstance(e, ev.MachineRepaired) for e in run.events))
    assert close(
        figures["cost"], sum(value for name, value in figures.items() if name.startswith("cost_") and "per" not in name)
    )
    went_back = {e.subject for e in run.events if isinstance(e, ev.PartReworked)}
    if len(jobs):
        assert close(figures["rework_ratio"], jobs.job.isin(went_back).mean())
        first = (jobs.how == "finished") & ~jobs.job.isin(went_back)
        assert close(figures["first_pass_yield"], first.mean())


@few
@given(runs(), st.floats(0, 1))
def test_littles_law_and_conservation_hold_in_every_run(run, share):
    """L = lambda W over any time, if what is in the plant at the end counts with its time so far."""
    factory, run = run
    end = run.events[-1].time * share
    released = {e.subject: e.time for e in run.events if isinstance(e, ev.JobReleased) and e.time <= end}
    gone = {e.subject: e.time for e in run.events if isinstance(e, ev.JobFinished | ev.PartScrapped) and e.time <= end}
    figures = key_figures(run.events, factory, 0.0, end)
    assert figures["released"] == figures["finished"] + figures["scrapped"] + figures["wip_end"] == len(released)
    assert gone.keys() <= released.keys()
    if end > 0:
        assert close(figures["wip_mean"] * end, sum(gone.get(job, end) - time for job, time in released.items()))
    level = 0
    for e in run.events:  # parts in = out + scrap + WIP at every event
        level += isinstance(e, ev.JobReleased) - isinstance(e, ev.JobFinished | ev.PartScrapped)
        assert level >= 0
    levels = work_in_progress(run.events)
    assert int(levels[-1]) == level and (levels >= 0).all()


SUMS = (
    "finished",
    "scrapped",
    "reworked",
    "failures",
    "energy",
    "cost_energy",
    "cost_wip",
    "cost_material",
    "cost_repair",
)


@few
@given(runs(), st.integers(1, 9))
def test_intervals_add_up_and_are_what_their_windows_are(run, n):
    factory, run = run
    end = run.events[-1].time
    if end <= 0:
        return
    every = end / n * 1.0000123
    pieces, whole = over_time(run.events, factory, every), kpis(run.events, factory)
    for name in SUMS:
        assert close(pieces[name].sum(), whole[name]), name
    assert close(pieces.actual_production_time.sum("time"), whole.actual_production_time)
    assert close((pieces.wip_mean * (pieces.until - pieces.time)).sum() / end, whole.wip_mean)
    times = {e.time for e in run.events}
    for k in range(pieces.sizes["time"]):
        one = pieces.isel(time=k)
        if one.until.item() in times and k < pieces.sizes["time"] - 1:
            continue  # what happens there belongs to both windows, but to one interval
        alone = key_figures(run.events, factory, one.time.item(), one.until.item())
        for name, value in alone.items():
            assert close(one[name], value), name


@few
@given(runs(), st.lists(st.floats(-0.1, 1.2), min_size=1, max_size=8), st.integers(1, 60))
def test_any_moment_of_a_history_is_the_plain_fold(run, moments, every):
    factory, run = run
    history, last = History(Trace.of(run.events), initial_state(factory), every), run.events[-1].time
    if every % 2:
        history.build()
    for at in [share * last for share in moments]:
        expected = fold([e for e in run.events if e.time <= at], initial_state(factory))
        expected.time = max(expected.time, at)
        state = history.state(at)
        assert state == expected
        assert list(state.jobs) == list(expected.jobs) and list(state.orders) == list(expected.orders)
        for job in state.jobs.values():  # what is under way is the caller's own
            if job.ended is None:
                job.todo, job.place = (), "nowhere"
        state.machines.clear(), state.orders.clear(), state.counts.clear()
    assert history.state() == fold(run.events, initial_state(factory))


def test_a_history_goes_on_after_a_contradiction():
    broken = [
        ev.RunStarted(0.0, "r"),
        *(ev.OrderReleased(1.0 + i, f"o{i}") for i in range(5)),
        ev.MachineRepaired(9.0, "m"),
    ]
    history = History(broken, FactoryState(), every=2)
    for _ in range(2):
        with pytest.raises(ev.SimulationError, match="the machine was not down"):
            history.state()
        assert list(history.state(3.5).orders) == ["o0", "o1", "o2"]


words = st.text(max_size=6)
numbers = st.floats(allow_nan=False)
values = {
    "str": words,
    "float": numbers,
    "int": st.integers(-(2**53), 2**53),
    "tuple": st.lists(words | st.integers(0, 9) | numbers, max_size=3).map(tuple),
}


@st.composite
def any_event(draw):
    kind = draw(st.integers(0, len(KINDS) - 1))
    payload = {}
    for c in COLUMNS[kind]:
        own = st.lists(words, max_size=3).map(tuple) if c.shared else values[c.kind]
        payload[c.name] = draw(st.none() | own if c.optional else own)
    return KINDS[kind](draw(st.floats(0, 9) | numbers), draw(words), **payload)


@settings(max_examples=150, deadline=None)
@given(st.lists(any_event(), max_size=12))
def test_a_trace_is_its_events(events):
    trace = Trace.of(events)
    assert trace.events == events
    assert [[type(getattr(e, f.name)) for f in fields(e)] for e in trace] == [
        [type(getattr(e, f.name)) for f in fields(e)] for e in events
    ]
    assert trace.hash == log_hash(events)
    ordered = Trace(sort_trace(trace.rows, ranks(trace.names)), trace.names, trace.objects)
    assert ordered.events == in_order(events)
    assert [trace[i] for i in range(len(events))] == events and trace[3:9].events == events[3:9]


def test_every_kind_has_room_in_a_row():
    for cls, columns in zip(KINDS, COLUMNS):
        assert [c.name for c in columns] == [f.name for f in fields(cls)[2:]]
        assert len({c.at for c in columns}) == len(columns)


def test_planned_work_of_parallel_servers_is_shared():
    """Two servers, each piece exactly as long as planned: busy both for 30 s, then one for 10 s."""
    modes = [{"machine": "m", "duration": 10}]
    factory = parse_factory(
        {
            "name": "two",
            "machines": [{"id": "m", "capacity": 2}],
            "products": [{"id": "p", "operations": [{"id": "o", "modes": modes}]}],
            "orders": [{"id": "a", "product": "p", "quantity": 7}],
        }
    )
    events: list[ev.Event] = [ev.JobReleased(0.0, f"a-{i}", order="a", product="p", route=("o",)) for i in range(7)]
    events.append(ev.MachineStatusChanged(0.0, "m", old="IDLE", new="RUNNING"))
    for i in range(7):
        begin = 10.0 * (i // 2)
        events += [ev.OperationStarted(begin, "m", job=f"a-{i}", operation="o")]
        events += [
            ev.OperationFinished(begin + 10, "m", job=f"a-{i}", operation="o"),
            ev.JobFinished(begin + 10, f"a-{i}"),
        ]
    events.append(ev.MachineStatusChanged(40.0, "m", old="RUNNING", new="IDLE"))
    figures = kpis(in_order(events), factory)
    assert figures.effectiveness.item() == pytest.approx(35 / 40)
    assert kpis(in_order(events), factory, 0, 15).effectiveness.item() == pytest.approx(10 / (15 - 5))


def test_the_tile_plant_has_the_operations_it_names():
    factory = Factory.load("data/factories/tile_plant.yaml")
    run = simulate(factory, seed=3)
    figures = kpis(run.events, factory)
    done = [e for e in run.events if isinstance(e, ev.OperationFinished)]
    product = {e.subject: e.product for e in run.events if isinstance(e, ev.JobReleased)}
    planned = 0.0
    for e in done:
        mode = next(
            m for m in factory.operation(product[e.job], operation_of(e.operation)).modes if m.machine == e.subject
        )
        planned += mode.duration.mean / factory.machine(e.subject).batch_capacity
    assert close(figures.effectiveness_overall, planned / figures.actual_production_time.sum())
