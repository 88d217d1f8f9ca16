"""The twin against what is known exactly: queues, lines, machines that break, a published study; by both engines."""

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_twin import factories

from dtwb.core import events as ev
from dtwb.core.factory import Factory
from dtwb.twin.kpis import kpis
from dtwb.twin.scenarios import replicate
from dtwb.twin.simulation import RULES, simulate
from dtwb.twin.validation import (
    LAW_WORK,
    LAW_YEAR,
    cases,
    flow_shop,
    flow_shop_times,
    interval,
    law_job_shop,
    line_rate,
    queue_figures,
    run_case,
)

CASES = cases()
ENGINES = ["simpy", "fast"]
few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


# the others, and all again, in nbs/twin/70_validation
SOME = [name for name in CASES if name.startswith(("M/M/1 that", "line of 1/1/1 with", "Buzacott, 2"))]
SOME += [f"two that break, 10 places, {clock} clock" for clock in ("operating", "calendar")]


@pytest.mark.parametrize("name", SOME)
def test_what_is_known_comes_out(name):
    """With luck of its own: another seed than the notebook's."""
    found = run_case(CASES[name], seed=1, engine="fast")
    assert found["holds"], found


@pytest.mark.parametrize("name", CASES)
def test_the_readable_engine_gives_the_same(name):
    """Every model of the validation, for a while: event by event."""
    case = CASES[name]
    until = case.end / 200
    runs = [simulate(case.factory, seed=5, until=until, engine=engine) for engine in ENGINES]
    assert runs[0].hash == runs[1].hash and runs[0].engine == "simpy" and runs[1].engine == "fast"
    assert len(runs[0].events) > 50


@pytest.mark.parametrize("engine", ENGINES)
@few
@given(st.data())
def test_lines_without_chance_are_a_recursion(engine, data):
    """Blocking after service, any number of places: every start, exactly."""
    machines, jobs = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 15))
    places = data.draw(st.lists(st.sampled_from([0, 1, 2, 5, math.inf]), min_size=machines - 1, max_size=machines - 1))
    work = np.random.default_rng(data.draw(st.integers(0, 999))).integers(1, 9, (machines, jobs))
    start, leave = flow_shop_times(work, places)
    run = simulate(flow_shop(work, places), engine=engine)
    found = {(row.job, row.operation): row.start for row in run.schedule.rows}
    expected = {(f"j{j:04}-1", f"o{m}"): start[m, j] for m in range(machines) for j in range(jobs)}
    assert run.how == "finished" and found == expected
    assert max(e.time for e in run.events if isinstance(e, ev.JobFinished)) == leave.max()


@pytest.mark.parametrize("engine", ENGINES)
@few
@given(factories(), st.sampled_from(sorted(RULES)), st.integers(0, 99), st.floats(0, 1))
def test_littles_law_holds_in_every_run(engine, factory, rule, seed, share):
    """What is in the plant, over time, is the time that jobs are in it, over jobs; whatever happens to them."""
    run = simulate(factory, rule=rule, seed=seed, until=2000, engine=engine)
    end = run.events[-1].time * share
    came, stayed = {}, defaultdict(float)
    for e in run.events:
        if e.time <= end:
            if isinstance(e, ev.JobReleased):
                came[e.subject] = e.time
            elif isinstance(e, ev.JobFinished | ev.PartScrapped):
                stayed[e.subject] = e.time - came.pop(e.subject)
    time_in_plant = math.fsum(stayed.values()) + math.fsum(end - time for time in came.values())
    figures = kpis(run.events, factory, 0.0, end)
    assert end == 0 or figures.wip_mean.item() * end == pytest.approx(time_in_plant, rel=1e-9, abs=1e-6)
    assert figures.released == figures.finished + figures.scrapped + len(came)


def test_laws_job_shop():
    """17.86 +- .42 h over 1,000 replications (Law); one year differs from another by 6.7 h."""
    runs = replicate(law_job_shop(), n=16, seed=5, until=LAW_YEAR, end=LAW_YEAR, engine="fast", executor="serial")
    delays = runs.lead_time_mean.values / 3600 - LAW_WORK
    mean, half = interval(delays)
    assert half < 9 and abs(mean - 17.86) < half + 0.42


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_plan_that_nothing_disturbs_comes_out_exactly(engine, rule):
    plant = Factory.load("data/factories/tile_plant.yaml")
    first = simulate(plant, rule=rule, disturbances=False, engine=engine).schedule
    assert simulate(plant, first, disturbances=False, engine=engine).schedule == first


def test_the_closed_forms_are_those_of_the_books():
    assert list(queue_figures(0.8).values()) == pytest.approx([4, 3.2, 5, 4])
    assert [line_rate([1, 1], [b]) for b in (0, 5)] == pytest.approx([2 / 3, 7 / 8])
    assert line_rate([1, 1, 1], [0, 0]) == pytest.approx(22 / 39)
