"""Tabu search over orders, and the genetic search with tabu for its local search: what they give passes the check."""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import objectives, problems

from dtwb.core.errors import ScheduleError
from dtwb.scheduling.genetic import genetic
from dtwb.scheduling.orders import search_orders
from dtwb.scheduling.problem import (
    OBJECTIVES,
    Problem,
    ProblemJob,
    ProblemMachine,
    ProblemMode,
    ProblemOperation,
    Stability,
    is_regular,
    verify,
)
from dtwb.scheduling.rules import best_rule, dispatch
from dtwb.scheduling.tabu import covers, tabu

thorough = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))


@given(
    problem=problems(jobs=5),
    objective=objectives(),
    with_reference=st.booleans(),
    with_keep=st.booleans(),
    workers=st.sampled_from([1, 2]),
)
@thorough
def test_search_over_orders_gives_a_plan_that_passes_and_is_no_worse(
    problem, objective, with_reference, with_keep, workers
):
    stability = Stability(3.0, 0.5) if with_reference else None
    try:
        reference = dispatch(problem, "spt").schedule if with_reference else None
        first = best_rule(problem, objective, reference, stability)
    except ScheduleError:
        return
    keep = {o: (first.machines[o], start) for o, start in enumerate(first.starts) if start < 3} if with_keep else None
    told = []
    plan = search_orders(
        problem, objective, first, time_limit=0.1, seed=1, workers=workers, reference=reference, stability=stability,
        keep=keep, callback=lambda *row: told.append(row),
    )  # fmt: skip
    verify(problem, plan)
    assert plan.objective <= first.objective + 1e-9
    assert all((plan.machines[o], plan.starts[o]) == where for o, where in (keep or {}).items())
    assert told == list(plan.trace) and told[-1][1] == pytest.approx(plan.objective)
    assert plan.how in ("the time is up", "nothing is left to improve")


def one_machine(durations, **more):
    "One job of one operation for each duration, with set-ups; what is more is given by job."
    jobs = (
        ProblemJob(
            f"j{j}", (ProblemOperation("o", (ProblemMode(0, d),), "xy"[j % 2]),), **{k: v[j] for k, v in more.items()}
        )
        for j, d in enumerate(durations)
    )
    return Problem(tuple(jobs), (ProblemMachine("m", setups=(("x", "y", 3), ("y", "x", 5))),))


def test_with_set_ups_it_finds_the_best_sequence_of_all_and_stops_when_it_is_told_to():
    due, weight = [9, 12, 20, 15, 8, 30], [1.0, 3.0, 2.0, 1.0, 2.0, 1.0]
    problem = one_machine([4, 7, 2, 9, 5, 3], due=due, weight=weight)
    assert not covers(problem, "weighted_tardiness")

    def cost(sequence):
        time, total = 0, 0
        for j, before in zip(sequence, (None, *sequence)):
            time += 0 if before is None or before % 2 == j % 2 else 5 if before % 2 else 3
            time += problem.operation(j).modes[0].duration
            total += weight[j] * max(0, time - due[j])
        return total

    best, told = min(map(cost, itertools.permutations(range(6)))), []
    worst = dispatch(problem, "lpt", "weighted_tardiness")
    more = {"callback": lambda _, value, bound: told.append(value), "stop": lambda: told[-1:] == [best]}
    plan = tabu(problem, "weighted_tardiness", worst, time_limit=1000, workers=1, **more)
    assert (plan.objective, plan.how, plan.method) == (best, "stopped", "tabu")
    assert worst.objective > best


def test_one_worker_finds_the_same_plans_in_the_same_order():
    pick = np.random.default_rng(5)
    durations = pick.integers(1, 20, 15).tolist()
    problem = one_machine(durations, due=pick.integers(10, 150, 15).tolist())
    told = []
    search = partial(search_orders, problem, "total_tardiness", seed=3, workers=1)
    first = [row[1] for row in search(time_limit=0.5).trace]
    search(time_limit=1000, callback=lambda _, value, bound: told.append(value), stop=lambda: told[-1] <= first[-1])
    assert told[0] == first[0] and told[-1] <= first[-1]  # it comes to the same plan, however long that takes


@pytest.mark.parametrize("method", [search_orders, genetic])
def test_it_meets_deadlines_that_no_rule_meets_and_says_so_when_there_is_no_plan(method):
    problem = one_machine([5, 9, 4, 8], deadline=[None, 12, None, 20])
    found = []
    more = {"callback": lambda *row: found.append(row), "stop": lambda: bool(found)}
    verify(problem, method(problem, "flow_time", time_limit=1000, **more))
    with pytest.raises(ScheduleError, match="deadline"):
        method(one_machine([5, 5], deadline=[7, 7]), "flow_time", time_limit=0.3)


# --- genetic search in the graph -------------------------------------------------------------------------------------


@given(
    problem=problems(jobs=5, rich=("travel", "started")),
    objective=objectives([name for name in OBJECTIVES if is_regular(name)]),
    with_keep=st.booleans(),
    deadline=st.booleans(),
)
@thorough
def test_genetic_search_with_tabu_gives_a_plan_that_passes_and_is_no_worse(problem, objective, with_keep, deadline):
    first = best_rule(problem, objective)
    keep = {o: (first.machines[o], start) for o, start in enumerate(first.starts) if start < 3} if with_keep else {}
    if deadline:
        jobs = (replace(job, deadline=first.ends[problem.first[j + 1] - 1]) for j, job in enumerate(problem.jobs))
        problem = replace(problem, jobs=tuple(jobs))
        first = replace(first, problem=problem)
    assert covers(problem, objective, keep=keep)
    told = []
    plan = genetic(problem, objective, first, time_limit=0.1, keep=keep, callback=lambda *row: told.append(row))
    verify(problem, plan)
    assert plan.bound <= plan.objective <= first.objective + 1e-9
    assert all((plan.machines[o], plan.starts[o]) == where for o, where in keep.items())
    assert told == list(plan.trace) and told[-1][1] == pytest.approx(plan.objective)
    assert plan.status == "optimal" or plan.how == "the time is up"
