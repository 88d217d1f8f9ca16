"""Tabu search over orders, and the genetic search with tabu for its local search: what they give passes the check."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import objectives, problems

from dtwb.core.errors import ScheduleError
from dtwb.scheduling.orders import search_orders
from dtwb.scheduling.problem import (
    Stability,
    verify,
)
from dtwb.scheduling.rules import best_rule, dispatch

thorough = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


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
        problem, objective, first, time_limit=0.15, seed=1, workers=workers, reference=reference, stability=stability,
        keep=keep, callback=lambda *row: told.append(row),
    )  # fmt: skip
    verify(problem, plan)
    assert plan.objective <= first.objective + 1e-9
    assert all((plan.machines[o], plan.starts[o]) == where for o, where in (keep or {}).items())
    assert told == list(plan.trace) and told[-1][1] == pytest.approx(plan.objective)
    assert plan.how in ("the time is up", "nothing is left to improve")
