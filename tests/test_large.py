"""What is large: windows of a plan are improved, and every plan passes the check."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import FEATURES, objectives, problems

from dtwb.core.errors import ScheduleError
from dtwb.scheduling import generators
from dtwb.scheduling.graph import load, longest, selection, to_graph
from dtwb.scheduling.large import Whole, begin_by_rule, cut, improved, large, prices_in
from dtwb.scheduling.problem import (
    Objective,
    Problem,
    ProblemJob,
    ProblemMachine,
    ProblemMode,
    ProblemOperation,
    Stability,
    verify,
)
from dtwb.scheduling.rules import best_rule

quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
SHOP = ("travel", "started")


def shop(seed, jobs, machines, choices=1, steps=None):
    "A job shop; with choices a flexible one."
    rng = np.random.default_rng(seed)

    def step(k, m):
        where = dict.fromkeys([m, *rng.choice(machines, choices - 1, replace=False).tolist()])
        return ProblemOperation(f"o{k}", tuple(ProblemMode(x, int(rng.integers(10, 99))) for x in where))

    def job(j):
        way = rng.permutation(machines)[:steps]
        work = tuple(step(k, int(m)) for k, m in enumerate(way))
        return ProblemJob(
            f"j{j}", work, int(rng.integers(0, 99)), int(rng.integers(1, 75 * jobs)), weight=float(rng.integers(1, 5))
        )

    return Problem(tuple(job(j) for j in range(jobs)), tuple(ProblemMachine(f"m{m}") for m in range(machines)))


def until_better(first, told):
    "What `large` is given so that it ends once it has found something, however busy the machine is."
    more = {"callback": lambda *what: told.append(what[1]), "stop": lambda: bool(told) and told[-1] < first.objective}
    return more | {"time_limit": 1000}


# --- large shops -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("objective", ["makespan", "weighted_tardiness", "flow_time", "total_tardiness + 0.1*makespan"])
def test_two_thousand_operations_get_better_than_by_any_rule(choices, objective):
    problem = shop(1, 40, 50, choices)
    first = best_rule(problem, objective)
    values = []
    plan = large(problem, objective, first, **until_better(first, values))
    verify(problem, plan)
    assert plan.bound is not None and plan.bound <= plan.objective < first.objective
    assert values == sorted(values, reverse=True) and values[-1] == pytest.approx(plan.objective)


def test_twenty_thousand_operations():
    problem = shop(2, 1000, 40, steps=20)
    plan = large(problem, "makespan", time_limit=2)
    verify(problem, plan)
    assert plan.objective <= plan.trace[0][1]


def test_a_hundred_thousand_operations():
    problem = shop(2, 5000, 40, steps=20)
    first = best_rule(problem, "weighted_tardiness", time_limit=0.1)
    plan = large(problem, "weighted_tardiness", first, **until_better(first, []))
    verify(problem, plan)
    assert plan.objective < first.objective


@pytest.mark.parametrize("objective", ["makespan", "weighted_tardiness"])
@pytest.mark.parametrize("asked", [1, 3])
def test_it_stops_when_it_is_told_to(objective, asked):
    problem, answers = shop(3, 60, 40), []

    def stop() -> bool:
        answers.append(len(answers) + 1 >= asked)
        return answers[-1]

    plan = large(problem, objective, best_rule(problem), time_limit=1000, stop=stop)
    assert "stopped" in plan.how and answers == [False] * (asked - 1) + [True]


# --- windows ---------------------------------------------------------------------------------------------------------


@given(problems(jobs=6, operations=4, machines=4, rich=SHOP), st.data())
@quick
def test_a_window_put_back_is_the_plan_that_it_says(problem, data):
    plan = Whole(problem, to_graph(problem), {"weighted_tardiness": 1.0})
    plan.begin_at(*begin_by_rule(problem, Objective.of("weighted_tardiness"), None))
    first, n = int(plan.graph.fixed.sum()), plan.graph.operations
    if n - first < 2:
        return
    plan.line_up(*data.draw(st.sampled_from([(1, 0), (0, 1), (1, 1)])))
    low = data.draw(st.integers(first, n - 2))
    window = cut(plan.graph, plan.room, low, data.draw(st.integers(low + 2, n)))
    room = selection(window.graph)
    assert load(window.graph, room, window.machine, window.order)
    assert (room.head[1:] == plan.room.head[window.members]).all()
    assert longest(window.graph, room) <= longest(plan.graph, plan.room)
    by_price, prices = prices_in(window, plan)
    for which, costs in ((window, None), (by_price, prices)):
        before = plan.value
        part = improved(which, costs, plan.prices, 0, 0.0, lambda: False)
        if part is not None:
            plan.accept(window, part)
            assert plan.value <= before
            break
    again = selection(plan.graph)
    assert load(plan.graph, again, plan.room.machine.copy(), plan.room.order.copy())
    assert (again.head == plan.room.head).all() and (again.tail == plan.room.tail).all()


# --- whatever the problem holds --------------------------------------------------------------------------------------


@given(problems(jobs=6, operations=4, machines=4), objectives(), st.booleans(), st.integers(0, 99))
@quick
def test_every_plan_passes_the_check_and_is_no_worse(problem, objective, with_reference, seed):
    try:
        first = best_rule(problem, objective)
    except ScheduleError:
        return
    more = {"reference": first.schedule, "stability": Stability(3.0, 0.5)} if with_reference else {}
    if with_reference:
        first = best_rule(problem, objective, **more)
    plan = large(problem, objective, first, time_limit=0.05, seed=seed, workers=2, **more)
    verify(problem, plan)
    assert plan.objective <= first.objective + 1e-6
    assert plan.bound is None or plan.bound <= plan.objective + 1e-6


@given(problems(jobs=6, rich=tuple(name for name in FEATURES if name != "buffers")), objectives())
@quick
def test_it_begins_with_a_rule_where_nothing_is_given(problem, objective):
    try:
        plan = large(problem, objective, time_limit=0.05)
    except ScheduleError:
        return
    verify(problem, plan)


@given(problems(jobs=6, rich=("travel", "calendar", "setups")), st.sampled_from(["makespan", "total_tardiness"]))
@quick
def test_what_is_kept_stays(problem, objective):
    first = best_rule(problem, objective)
    keep = {o: (first.machines[o], first.starts[o]) for o in range(len(first.starts)) if first.starts[o] < 4}
    for given_first in (first, None):
        try:
            plan = large(problem, objective, given_first, time_limit=0.05, keep=keep)
        except ScheduleError:
            assert given_first is None
            continue
        verify(problem, plan)
        assert all((plan.machines[o], plan.starts[o]) == where for o, where in keep.items())


def test_a_stretch_of_the_order_gets_better_where_machines_have_setups():
    plain, rows = shop(4, 30, 10), tuple((a, b, 30) for a in "ab" for b in "ab" if a != b)
    rng = np.random.default_rng(0)
    jobs = tuple(
        ProblemJob(
            job.id, tuple(ProblemOperation(x.name, x.modes, str(rng.choice(["a", "b"]))) for x in job.operations)
        )
        for job in plain.jobs
    )
    problem = Problem(jobs, tuple(ProblemMachine(m.id, setups=rows) for m in plain.machines))
    assert generators.covers(problem)
    first = best_rule(problem)
    plan = large(problem, "makespan", first, **until_better(first, []))
    verify(problem, plan)
    assert plan.objective < first.objective
