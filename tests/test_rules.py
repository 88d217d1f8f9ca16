"""Rules, generators, decoder, annealing, genetic search: every plan passes the check, whatever the problem holds."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import FEATURES, objectives, problems

from dtwb.core.errors import ScheduleError
from dtwb.scheduling import decoder as decoding
from dtwb.scheduling import generators, placing
from dtwb.scheduling.annealing import annealing
from dtwb.scheduling.decoder import Decoder
from dtwb.scheduling.generators import GENERATOR_RULES, Desk, covers, generated, solution_on
from dtwb.scheduling.genetic import genetic
from dtwb.scheduling.problem import (
    Problem,
    ProblemJob,
    ProblemMachine,
    ProblemMode,
    ProblemOperation,
    Stability,
    objective_value,
    verify,
)
from dtwb.scheduling.rules import RULES, Policy, best_rule, dispatch, follow

quick = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
COVERED = tuple(name for name in FEATURES if name != "buffers")
SURE = tuple(name for name in COVERED if name not in ("resources", "produces", "max_wait"))  # has a plan in any order


def one_machine(durations, **more):
    "One job of one operation for each duration; what is more is given by job."
    jobs = (
        ProblemJob(f"j{j}", (ProblemOperation("o", (ProblemMode(0, d),)),), **{k: v[j] for k, v in more.items()})
        for j, d in enumerate(durations)
    )
    return Problem(tuple(jobs), (ProblemMachine("m"),))


# --- every plan passes the check -------------------------------------------------------------------------------------


@given(problems(jobs=5, rich=COVERED), st.sampled_from(GENERATOR_RULES), st.sampled_from([0.0, 0.4, 1.0]))
@quick
def test_what_a_generator_makes_passes_the_check(problem, rule, delay):
    desk = Desk.of(problem)
    if generated(desk, rule, delay, np.arange(len(problem.operations))):
        verify(problem, solution_on(desk, "makespan"))


@given(problems(jobs=5, rich=SURE), st.sampled_from(GENERATOR_RULES), st.sampled_from([0.0, 1.0]))
@quick
def test_where_any_order_will_do_every_rule_finds_a_plan(problem, rule, delay):
    assert generated(Desk.of(problem), rule, delay, np.arange(len(problem.operations)))


@given(problems(), st.sampled_from(sorted(RULES)))
@quick
def test_running_a_rule_forward_gives_a_plan_or_says_why_not(problem, rule):
    try:
        plan = dispatch(problem, Policy(rule), "makespan")
    except ScheduleError:
        return
    verify(problem, plan)


@given(problems(), objectives())
@quick
def test_the_best_rule_is_no_worse_than_any(problem, objective):
    try:
        plan = best_rule(problem, objective)
    except ScheduleError:
        return
    verify(problem, plan)
    for rule in ("spt", "mwkr", "fifo") if covers(problem) else ():
        desk = Desk.of(problem)
        if generated(desk, rule, 0.0):
            assert plan.objective <= solution_on(desk, objective).objective + 1e-6


@given(problems(jobs=5, rich=COVERED), objectives(), st.randoms(use_true_random=False), st.booleans())
@quick
def test_any_order_is_a_plan_of_the_value_that_is_said(problem, objective, pick, with_reference):
    reference = None
    if with_reference:
        try:
            reference = dispatch(problem, "spt", objective).schedule
        except ScheduleError:
            return
    decoder = Decoder.of(problem, objective, reference, Stability(3.0, 0.5) if with_reference else None)
    order = decoder.desk.arrays.op_job.astype(np.int64)
    pick.shuffle(order)
    chosen = np.array([pick.choice([-1, *range(*decoder.desk.arrays.mode_ptr[o : o + 2])]) for o in range(len(order))])
    value = decoder.value(order, chosen)
    if value < math.inf:
        plan = decoder.solution()
        verify(problem, plan)
        assert plan.objective == pytest.approx(value)
        assert (chosen < 0).all() or (decoder.modes_of(plan.machines)[chosen >= 0] == chosen[chosen >= 0]).all()


@given(problems(jobs=5, rich=COVERED))
@quick
def test_a_plan_that_is_followed_stays_and_what_is_kept_stays(problem):
    try:
        plan = best_rule(problem)
    except ScheduleError:
        return
    same = follow(problem, plan)
    verify(problem, same)
    alone = all(machine.batch_capacity == 1 for machine in problem.machines)
    if alone and not problem.resources:  # a plan does not say who served: others may, and then something waits
        assert same.starts == plan.starts
    try:
        early = follow(problem, plan, on_time=False)
    except ScheduleError:
        assert not alone
        return
    verify(problem, early)
    plain = alone and not problem.materials and not problem.resources
    if plain and all(step.max_wait is None for job in problem.jobs for step in job.operations):
        assert all(a <= b for a, b in zip(early.starts, plan.starts))
    keep = {o: (plan.machines[o], plan.starts[o]) for o in range(len(plan.starts)) if plan.starts[o] < 5}
    decoder = Decoder.of(problem, "makespan", keep=keep)
    if decoder.value(decoder.order_of(plan.starts), decoder.modes_of(plan.machines)) < math.inf:
        kept = decoder.solution()
        verify(problem, kept)
        assert all((kept.machines[o], kept.starts[o]) == where for o, where in keep.items())


# --- what is known to be best ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 20), min_size=2, max_size=7), st.data())
@quick
def test_rules_that_are_optimal_on_one_machine(durations, data):
    n = len(durations)
    due = data.draw(st.lists(st.integers(0, 60), min_size=n, max_size=n))
    weight = data.draw(st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=n, max_size=n))
    problem = one_machine(durations, due=due, weight=weight)
    orders = [np.cumsum(np.array(durations)[list(p)])[np.argsort(p)] for p in itertools.permutations(range(n))]
    costs = {
        "spt": lambda ends: sum(ends),
        "edd": lambda ends: max(end - d for end, d in zip(ends, due)),
        "wspt": lambda ends: sum(end * w for end, w in zip(ends, weight)),
    }
    for rule, cost in costs.items():
        for plan in (dispatch(problem, rule), dispatch(problem, Policy(rule))):
            assert cost(plan.ends) == pytest.approx(min(map(cost, orders)))


@given(problems(jobs=3, operations=2, machines=2, rich=False))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_active_plans_and_orders_hold_an_optimal_one(problem):
    problem = replace(
        problem,
        jobs=tuple(
            replace(job, operations=tuple(replace(step, modes=step.modes[:1]) for step in job.operations))
            for job in problem.jobs
        ),
    )
    n, desk, decoder = len(problem.operations), Desk.of(problem), Decoder.of(problem, "makespan")
    active, ordered = math.inf, math.inf
    for ranks in itertools.permutations(range(n)):
        assert generated(desk, "rank", 1.0, ranks)
        active = min(active, solution_on(desk, "makespan").objective)
        ordered = min(ordered, decoder.value(decoder.order_of(ranks)))
    assert active == ordered == brute_force(problem)


def brute_force(problem):
    "The least makespan over all sequences of all machines, each as early as it can be."
    on = [[o for o in range(len(problem.operations)) if problem.operation(o).modes[0].machine == m] for m in range(2)]
    best = math.inf
    for sequences in itertools.product(*(itertools.permutations(members) for members in on)):
        ends, left = {}, [list(members) for members in sequences]
        free = [machine.available for machine in problem.machines]
        moved = True
        while moved:
            moved = False
            for m, members in enumerate(left):
                while members and (problem.operations[members[0]][1] == 0 or members[0] - 1 in ends):
                    o = members.pop(0)
                    j, k = problem.operations[o]
                    start = max(free[m], ends[o - 1] if k else problem.jobs[j].release)
                    ends[o] = free[m] = start + problem.operation(o).modes[0].duration
                    moved = True
        if not any(left):
            best = min(best, max(ends.values()))
    return best


# --- search by orders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [annealing, genetic])
@given(problem=problems(jobs=5), objective=objectives(), with_reference=st.booleans(), with_keep=st.booleans())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_search_gives_a_plan_that_passes_and_is_no_worse(method, problem, objective, with_reference, with_keep):
    stability = Stability(3.0, 0.5) if with_reference else None
    try:
        reference = dispatch(problem, "spt").schedule if with_reference else None
        first = best_rule(problem, objective, reference, stability)
    except ScheduleError:
        return
    keep = {o: (first.machines[o], start) for o, start in enumerate(first.starts) if start < 3} if with_keep else None
    told = []
    plan = method(
        problem, objective, first, time_limit=0.1, seed=1, reference=reference, stability=stability, keep=keep,
        callback=lambda *row: told.append(row),
    )  # fmt: skip
    verify(problem, plan)
    assert plan.objective <= first.objective + 1e-9
    assert all((plan.machines[o], plan.starts[o]) == where for o, where in (keep or {}).items())
    assert told == list(plan.trace) and sorted(told, key=lambda row: -row[1]) == told
    assert plan.how in ("the time is up", "nothing is left to improve")


@pytest.mark.parametrize("method", [annealing, genetic])
def test_search_finds_the_best_of_small_problems_and_stops_when_it_is_told_to(method):
    problem = one_machine([4, 7, 2, 9, 5, 3], due=[9, 12, 20, 15, 8, 30], weight=[1.0, 3.0, 2.0, 1.0, 2.0, 1.0])
    cost = {}
    for order in itertools.permutations(range(6)):
        end = np.cumsum([problem.jobs[j].operations[0].modes[0].duration for j in order])
        cost[order] = sum(problem.jobs[j].weight * max(0, e - problem.jobs[j].due) for j, e in zip(order, end))
    worst = dispatch(problem, "lpt", "weighted_tardiness")
    best, told = min(cost.values()), []
    found = lambda: bool(told) and told[-1] == best
    plan = method(
        problem,
        "weighted_tardiness",
        worst,
        time_limit=1000,
        stop=found,
        callback=lambda _, value, *rest: told.append(value),
    )
    assert (plan.objective, plan.how) == (best, "stopped")


@pytest.mark.parametrize("method", [annealing, genetic])
def test_search_meets_deadlines_that_no_rule_meets(method):
    jobs = (("a", 5, 30), ("b", 9, 9), ("c", 4, 26), ("d", 8, 17))
    steps = {id: (ProblemOperation("o", (ProblemMode(0, d),)),) for id, d, _ in jobs}
    problem = Problem(tuple(ProblemJob(id, steps[id], deadline=e) for id, _, e in jobs), (ProblemMachine("m"),))
    found = []
    plan = method(
        problem, "flow_time", time_limit=1000, callback=lambda *row: found.append(row), stop=lambda: bool(found)
    )
    verify(problem, plan)
    with pytest.raises(ScheduleError, match="deadline"):
        method(one_machine([5, 5], deadline=[7, 7]), "flow_time", time_limit=0.3)


# --- compiled and not ------------------------------------------------------------------------------------------------


@given(problems(jobs=4, rich=COVERED), st.sampled_from(GENERATOR_RULES), st.sampled_from([0.0, 1.0]))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_compiled_code_does_what_it_says(interpreted_pair, problem, rule, delay):
    compiled, python = interpreted_pair
    ranks = np.arange(len(problem.operations))
    assert compiled(problem, rule, delay, ranks) == python(problem, rule, delay, ranks)


@pytest.fixture(scope="module")
def interpreted_pair():
    def plan(problem, rule, delay, ranks):
        desk = Desk.of(problem)
        done = generated(desk, rule, delay, ranks)
        decoder = Decoder.of(problem, "makespan + flow_time")
        value = decoder.value(decoder.desk.arrays.op_job.astype(np.int64))
        return done, (solution_on(desk, "makespan").starts if done else None), value

    def python(*args):
        with pytest.MonkeyPatch.context() as patch:
            for module in (placing, generators, decoding):
                for name, function in list(vars(module).items()):
                    if hasattr(function, "py_func"):
                        patch.setattr(module, name, function.py_func)
            return plan(*args)

    return plan, python


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_no_rule_can_do_is_said():
    late = one_machine([5, 5], deadline=[7, 7])
    with pytest.raises(ScheduleError, match="its deadline is 7"):
        dispatch(late, "spt")
    with pytest.raises(ScheduleError, match="its deadline is 7"):
        best_rule(late)
    with pytest.raises(ScheduleError, match="known: atc"):
        dispatch(late, "beauty")
    assert dispatch(late, "spt", strict=False).ends == (5, 10)
    slow = ProblemJob("a", (ProblemOperation("o", (ProblemMode(0, 3),), max_wait=2),))
    with pytest.raises(ScheduleError, match="waits for 4, and may for 2"):
        dispatch(Problem((slow,), (ProblemMachine("m", available=4),)), Policy("spt"))


def test_values_are_those_of_the_problem():
    plan = dispatch(one_machine([3, 1, 2], due=[1, 1, 9]), "spt", "total_tardiness")
    assert plan.objective == 5
    assert objective_value(plan.problem, "makespan + flow_time", plan.starts, plan.ends, plan.machines) == 6 + 10
