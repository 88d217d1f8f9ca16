"""Why there is no plan, new plans for what is left, and what they come to: planted conflicts, brute force."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from problems import CLASSIC, FEATURES, problems

from dtwb.core.errors import ScheduleError
from dtwb.core.factory import Factory
from dtwb.core.schedule import difference
from dtwb.loop.robustness import insert_slack, outcome, robustness, slowed
from dtwb.scheduling.cpsat import solve_cpsat
from dtwb.scheduling.explain import (
    explain_infeasible,
    feasible,
    quickxplain,
    relaxation,
    relaxed,
    requirements,
    why_infeasible,
)
from dtwb.scheduling.freezing import starting_in, staying
from dtwb.scheduling.generators import covers as generators_cover
from dtwb.scheduling.problem import (
    Problem,
    ProblemJob,
    ProblemMachine,
    ProblemMaterial,
    ProblemMode,
    ProblemOperation,
    ProblemResource,
    Solution,
    Stability,
    objective_value,
    planned,
    verify,
    violations,
)
from dtwb.scheduling.rescheduling import (
    STRATEGIES,
    Breakdown,
    Cancelled,
    LateMaterial,
    Rework,
    SlowMachine,
    UrgentOrder,
    apply_change,
    explain_change,
    frozen,
    remaining,
    replan,
    right_shifted,
)
from dtwb.scheduling.rules import Policy, best_rule, dispatch
from dtwb.scheduling.solve import keeps
from dtwb.twin.simulation import simulate

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def step(name, *modes, **more):
    return ProblemOperation(name, tuple(ProblemMode(m, d) for m, d in modes), **more)


def job(id, *steps, **more):
    return ProblemJob(id, steps, **more)


def shop(*jobs, machines=("A", "B"), **more):
    machines = tuple(m if isinstance(m, ProblemMachine) else ProblemMachine(m) for m in machines)
    return Problem(tuple(jobs), machines, **more)


# --- planted conflicts -----------------------------------------------------------------------------------------------

# each with a bystander whose deadline is easily met, and more that has nothing to do with it
EASY = job("easy", step("x", (1, 1)), deadline=50)

PLANTED = {
    "its own route": (
        shop(job("1", step("a", (0, 5)), step("b", (1, 4)), deadline=8), EASY),
        {},
        {("deadline", "1")},
    ),
    "two deadlines for one machine": (
        shop(job("1", step("a", (0, 5)), deadline=7), job("2", step("a", (0, 5)), deadline=7), EASY),
        {},
        {("deadline", "1"), ("deadline", "2")},
    ),
    "three, of which any two fit": (
        shop(*(job(str(i), step("a", (0, 4)), deadline=11) for i in (1, 2, 3)), EASY),
        {},
        {("deadline", "1"), ("deadline", "2"), ("deadline", "3")},
    ),
    "maintenance": (
        shop(
            job("7", step("a", (0, 6)), deadline=12, release=2),
            EASY,
            machines=(ProblemMachine("A", ((0, 2), (8, 20), (30, 90))), "B"),
        ),
        {},
        {("deadline", "7"), ("closed", "A"), ("release", "7")},
    ),
    "two frozen operations": (
        shop(job("1", step("a", (0, 5))), job("2", step("a", (0, 5))), EASY),
        {0: (0, 3), 1: (0, 6), 2: (1, 9)},
        {("frozen", "1"), ("frozen", "2")},
    ),
    "frozen and a deadline": (
        shop(job("1", step("a", (0, 5)), deadline=9), job("2", step("a", (0, 5))), EASY),
        {1: (0, 2)},
        {("deadline", "1"), ("frozen", "2")},
    ),
    "frozen and maintenance": (
        shop(job("1", step("a", (0, 5))), EASY, machines=(ProblemMachine("A", ((0, 3), (6, 90))), "B")),
        {0: (0, 4)},
        {("frozen", "1"), ("closed", "A")},
    ),
    "a late delivery": (
        shop(
            job("1", step("a", (0, 5), materials=((0, 2.0),)), deadline=9),
            EASY,
            materials=(ProblemMaterial("clay", 1.0, ((6, 3.0),)),),
        ),
        {},
        {("deadline", "1"), ("stock", "clay"), ("arrival", "clay")},
    ),
    "too little of it": (
        shop(
            job("1", step("a", (0, 5), materials=((0, 2.0),))),
            job("2", step("a", (0, 5), materials=((0, 2.0),))),
            EASY,
            materials=(ProblemMaterial("clay", 3.0),),
        ),
        {},
        {("stock", "clay")},
    ),
    "a machine that is down": (
        shop(job("1", step("a", (0, 5)), deadline=9), EASY, machines=(ProblemMachine("A", available=7), "B")),
        {},
        {("deadline", "1"), ("down", "A")},
    ),
    "closed for good": (
        shop(job("1", step("a", (0, 5), (1, 90)), deadline=40), EASY, machines=(ProblemMachine("A", ((0, 1),)), "B")),
        {0: (0, 2)},
        {("frozen", "1"), ("closed", "A")},
    ),
    "a machine that cannot do it": (
        shop(job("1", step("a", (0, 5))), EASY),
        {0: (1, 2)},
        {("frozen", "1")},
    ),
    "no waiting": (
        shop(
            job("1", step("a", (0, 5)), step("b", (1, 4), max_wait=0), deadline=20),
            EASY,
            machines=("A", ProblemMachine("B", ((0, 2), (9, 12)))),
        ),
        {0: (0, 0)},
        {("frozen", "1"), ("max_wait", "1"), ("closed", "B")},
    ),
    "one welder": (
        shop(
            job("1", step("a", (0, 5), needs=(("weld", 1),)), deadline=8),
            job("2", step("a", (1, 5), needs=(("weld", 1),)), deadline=8),
            resources=(ProblemResource("anna", 1, ("weld",)),),
        ),
        {},
        {("deadline", "1"), ("deadline", "2"), ("resource", "anna")},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_conflicts_are_found_exactly(name):
    problem, keep, expected = PLANTED[name]
    conflict = explain_infeasible(problem, keep, time_limit=1000)
    assert {(r.kind, r.key[0]) for r in conflict.requirements} == expected
    assert conflict.infeasible and conflict.minimal
    assert all(str(r) in str(conflict) for r in conflict.requirements)


def test_a_remedy_is_the_least_that_helps():
    problem, keep, _ = PLANTED["a machine that is down"]
    remedies = {remedy.requirement.kind: remedy for remedy in explain_infeasible(problem, keep).remedies}
    assert remedies["deadline"].amount == 3 and remedies["down"].amount == 3
    for remedy in remedies.values():
        assert feasible(*remedy.requirement.loosen(problem, keep, remedy.amount))
        assert not feasible(*remedy.requirement.loosen(problem, keep, remedy.amount - 1))


def test_there_may_be_a_plan_or_no_time_to_tell():
    problem = shop(EASY)
    assert explain_infeasible(problem).infeasible is False
    assert why_infeasible(problem).startswith("there is a plan")
    tight, keep, _ = PLANTED["three, of which any two fit"]
    conflict = explain_infeasible(tight, keep, time_limit=10, stop=lambda: True)
    assert conflict.infeasible is None and "not proved" in str(conflict)
    assert relaxation(tight).proved and sum(late for _, late in relaxation(tight).missed) == 1


@given(st.sets(st.integers(0, 39), min_size=1, max_size=6), st.sets(st.integers(0, 39), min_size=1, max_size=6))
@quick
def test_quickxplain_finds_one_of_the_conflicts(one, other):
    found = set(quickxplain(lambda held: not (one <= set(held) or other <= set(held)), list(range(40))))
    assert found in (one, other)


ALL_BUT_BUFFERS = tuple(feature for feature in FEATURES if feature != "buffers")


@given(problems(jobs=4, operations=2, machines=2, rich=ALL_BUT_BUFFERS), st.data())
@quick
def test_a_conflict_clashes_and_is_minimal(problem, data):
    problem = with_deadlines(problem, data)
    keep = {}
    for o in range(len(problem.operations)):
        if not problem.is_started(o) and data.draw(st.booleans()):
            keep[o] = problem.operation(o).modes[0].machine, data.draw(st.integers(0, 12))
    conflict = explain_infeasible(problem, keep, time_limit=1000, each=300, how_far=False)
    assert conflict.infeasible is not None
    assume(conflict.infeasible)
    assert conflict.minimal
    everything = requirements(problem, keep)
    held = set(conflict.requirements)
    others = [r for r in everything if r not in held]
    assert not is_solved(*relaxed(problem, keep, others))
    for one in conflict.requirements:
        assert is_solved(*relaxed(problem, keep, [*others, one]))


def with_deadlines(problem, data):
    jobs = (replace(job, deadline=data.draw(st.sampled_from([None, 5, 9, 14]))) for job in problem.jobs)
    return replace(problem, jobs=tuple(jobs))


def is_solved(problem, keep):
    "Whether the solver finds a plan that `verify` accepts, and that keeps what must stay."
    unused = ProblemMaterial("far", 0.0, ((20, 0.0),))  # so that the horizon is beyond what is kept
    try:
        found = solve_cpsat(replace(problem, materials=(*problem.materials, unused)), "makespan", 300, keep=keep)
    except ScheduleError as e:
        assert "there is no solution" in str(e)
        return False
    found = replace(found, problem=problem)
    verify(problem, found)
    return all((found.machines[o], found.starts[o]) == kept for o, kept in keep.items())


@given(problems(jobs=3, operations=2, machines=2, rich=("calendar",)), st.data())
@quick
def test_conflicts_of_deadlines_are_those_of_brute_force(problem, data):
    problem = with_deadlines(problem, data)
    conflict = explain_infeasible(problem, time_limit=1000, each=300, how_far=False)
    assert conflict.infeasible == (not all_sequences(problem))
    if conflict.infeasible:
        held = set(conflict.requirements)
        others = [r for r in requirements(problem) if r not in held]
        assert not all_sequences(relaxed(problem, None, others)[0])
        for one in conflict.requirements:
            assert all_sequences(relaxed(problem, None, [*others, one])[0])


def all_sequences(problem):
    "Whether any order of all operations, each as early as it can be, meets the deadlines."
    n, jobs = len(problem.operations), [j for j, _ in problem.operations]
    for order in set(itertools.permutations(jobs)):
        for modes in itertools.product(*(problem.operation(o).modes for o in range(n))):
            free, there = [m.available for m in problem.machines], [job.release for job in problem.jobs]
            taken, fits = [0] * len(problem.jobs), True
            for j in order:
                machine, duration = modes[problem.first[j] + taken[j]]
                start = problem.machines[machine].next_open(max(free[machine], there[j]))
                if start is None:
                    fits = False
                    break
                taken[j] += 1
                free[machine] = there[j] = start + duration
            late = (job.deadline is not None and end > job.deadline for job, end in zip(problem.jobs, there))
            if fits and not any(late):
                return True
    return False


# --- what is left ----------------------------------------------------------------------------------------------------


def carried_on(problem, plan, left, now):
    "The rest of `plan`, in the terms of what is left."
    numbers = {
        (problem.jobs[j].id, problem.jobs[j].operations[k].name): o for o, (j, k) in enumerate(problem.operations)
    }
    starts, ends, machines, leaves, served = [], [], [], [], []
    for j, k in left.operations:
        was = numbers[left.jobs[j].id, left.jobs[j].operations[k].name]
        starts.append(max(0, plan.starts[was] - now))
        ends.append(max(0, plan.ends[was] - now))
        machines.append(plan.machines[was])
        leaves.append(max(ends[-1], plan.leaves[was] - now))
        served.append(plan.resources[was] if plan.resources and left.jobs[j].operations[k].needs else ())
    return Solution.of(left, "makespan", starts, ends, machines, leaves, served)


@given(problems(jobs=5, operations=4, machines=3, rich=CLASSIC), st.data())
@settings(quick, max_examples=300)
def test_what_is_left_can_be_carried_on(problem, data):
    try:
        plan = dispatch(problem, "fifo", "makespan")
    except ScheduleError:
        return
    check_what_is_left(problem, plan, data)


@given(problems(jobs=3, operations=3, machines=2, rich=ALL_BUT_BUFFERS), st.data())
@settings(quick, max_examples=100)
def test_so_it_can_with_everything_that_a_problem_may_hold(problem, data):
    try:
        plan = solve_cpsat(problem, "makespan", 5, workers=1)
    except ScheduleError:
        return
    check_what_is_left(problem, plan, data)


def check_what_is_left(problem, plan, data):
    now = data.draw(st.integers(0, max(plan.ends)))
    left = remaining(problem, plan, now)
    open_ = {o for o in range(len(plan.ends)) if plan.ends[o] > now}
    stands = sum(job.started and job.operations[0].modes[0].duration == 0 for job in left.jobs)
    assert len(left.operations) - len(open_) in range(stands + 1)
    rest = carried_on(problem, plan, left, now)
    verify(left, rest)
    if left.jobs:
        assert rest.objective == max(plan.ends) - now


@given(
    problems(jobs=5, operations=3, machines=3, rich=("batches", "buffers", "calendar", "materials", "started")),
    st.data(),
)
@settings(quick, max_examples=300)
def test_any_plan_for_what_is_left_fits_what_has_been(problem, data):
    try:
        plan = dispatch(problem, "fifo", "makespan")
        now = data.draw(st.integers(0, max(plan.ends)))
        left = remaining(problem, plan, now)
        new = dispatch(left, data.draw(st.sampled_from(["spt", "mwkr", "lwkr"])), "makespan")
    except ScheduleError:
        return
    check_together(problem, plan, left, new, now)


WITHOUT_DETOURS = tuple(feature for feature in ALL_BUT_BUFFERS if feature not in ("setups", "travel"))


@given(problems(jobs=3, operations=3, machines=2, rich=WITHOUT_DETOURS), st.data())
@settings(quick, max_examples=100)
def test_so_it_does_with_everything_that_a_problem_may_hold(problem, data):
    try:
        plan = solve_cpsat(problem, "makespan", 5, workers=1)
        now = data.draw(st.integers(0, max(plan.ends)))
        left = remaining(problem, plan, now)
        new = solve_cpsat(left, data.draw(st.sampled_from(["flow_time", "number_late"])), 5, workers=1)
    except ScheduleError:
        return
    check_together(problem, plan, left, new, now)


def check_together(problem, plan, left, new, now):
    "What has been and what is planned now are one plan."
    found = {(left.jobs[j].id, left.jobs[j].operations[k].name): o for o, (j, k) in enumerate(left.operations)}
    arrays = plan.starts, plan.ends, plan.machines, plan.leaves, plan.resources
    starts, ends, machines, leaves, served = (list(array) for array in arrays)
    for o, (j, k) in enumerate(problem.operations):
        i = found.get((problem.jobs[j].id, problem.jobs[j].operations[k].name))
        if i is None:
            continue
        leaves[o] = new.leaves[i] + now
        if not left.is_started(i):
            starts[o], ends[o], machines[o] = new.starts[i] + now, new.ends[i] + now, new.machines[i]
            served[o : o + 1] = new.resources[i : i + 1]
        # a part that is called to a machine behind another buffer has been in two places; one solution cannot say so
        job, under_way = left.jobs[left.operations[i][0]], k > 0 and i in left.first and not left.is_started(i)
        assume(not under_way or left.machines[new.machines[i]].buffer == job.buffer)
    verify(problem, Solution.of(problem, "makespan", starts, ends, machines, leaves, served))


def test_what_is_left_in_stock():
    plant = shop(
        job("1", step("a", (0, 4), materials=((0, 2.0),), produces=((1, 3.0),))),
        job(
            "2",
            step("b", (1, 6), materials=((0, 1.0),)),
            step("c", (0, 2), materials=((1, 2.0),), produces=((1, 1.0),)),
        ),
        materials=(ProblemMaterial("clay", 4.0, ((3, 5.0), (9, 7.0))), ProblemMaterial("core", 0.0)),
        tariff=((0, 1.0), (4, 2.0), (8, 3.0)),
    )
    plan = Solution.of(plant, "makespan", [0, 0, 6], [4, 6, 8], [0, 1, 0])
    verify(plant, plan)
    for now, clay, core in ((0, 4.0, 0.0), (1, 1.0, 0.0), (3, 6.0, 0.0), (4, 6.0, 3.0), (7, 6.0, 1.0), (8, 6.0, 2.0)):
        left = remaining(plant, plan, now)
        assert [material.stock for material in left.materials] == [clay, core], now
    assert remaining(plant, plan, 4).materials[0].arrivals == ((5, 7.0),)
    assert remaining(plant, plan, 5).tariff == ((0, 2.0), (3, 3.0))
    assert remaining(plant, plan, 7).jobs[0].operations[0].produces == ((1, 1.0),)


# --- new plans -------------------------------------------------------------------------------------------------------


@st.composite
def changes(draw, problem):
    "Something that happens, and could happen here."
    machine = draw(st.sampled_from([m.id for m in problem.machines]))
    kinds = [Breakdown(machine, draw(st.integers(1, 9))), SlowMachine(machine, draw(st.sampled_from([0.5, 1.3, 2.0])))]
    kinds.append(Breakdown(machine, draw(st.integers(8, 12)), since=draw(st.integers(1, 7))))
    new = step("new", (0, draw(st.integers(1, 4))))
    kinds.append(UrgentOrder(ProblemJob("urgent", (new,), due=draw(st.integers(1, 9)), weight=5.0)))
    if problem.jobs:
        job = draw(st.sampled_from(problem.jobs))
        kinds += [Cancelled(job.id), Rework(job.id, job.operations[-1:])]
    if any(material.arrivals for material in problem.materials[:1]):
        kinds.append(LateMaterial(problem.materials[0].id, draw(st.integers(0, 20))))
    return draw(st.sampled_from(kinds))


@given(
    problems(
        jobs=5, operations=3, machines=3, rich=("setups", "calendar", "materials", "travel", "batches", "buffers")
    ),
    st.data(),
)
@settings(quick, max_examples=80)
def test_no_strategy_is_worse_than_waiting(problem, data):
    try:
        plan = dispatch(problem, "edd", "weighted_tardiness")
    except ScheduleError:
        return
    now = data.draw(st.integers(0, max(plan.ends)))
    left = remaining(problem, plan, now)
    left = apply_change(left, data.draw(changes(left)))
    freeze = data.draw(st.sampled_from([0, 3])) * left.tick
    try:
        waiting = right_shifted(left, plan.schedule, "weighted_tardiness", plan.schedule, Stability())
    except ScheduleError:
        return
    assume(not violations(left, waiting))
    for strategy in STRATEGIES:
        try:
            found = replan(left, plan.schedule, strategy=strategy, time_limit=0.4, freeze=freeze, workers=1)
        except ScheduleError:
            assert not left.operations or left.buffers
            continue
        verify(left, found)
        assert found.objective <= waiting.objective + 1e-6
        value = objective_value(
            left, "weighted_tardiness", found.starts, found.ends, found.machines, plan.schedule, Stability()
        )
        if left.operations:
            assert found.objective == pytest.approx(value)
            kept = frozen(left, plan.schedule, waiting, freeze)
            assert all((found.machines[o], found.starts[o]) == where for o, where in kept.items())
        told = explain_change(left, plan, found)
        known = planned(left, plan.schedule)
        moved = {o for o, where in known.items() if where != (found.machines[o], found.starts[o])}
        new = {o for o in range(len(left.operations)) if o not in known and not left.is_started(o)}
        assert len(told.moves) == len(moved) + len(new) and all(move.why for move in told.moves)
        shift = sum(abs(found.starts[o] - start) for o, (_, start) in known.items())
        assert told.total_shift == shift


@given(problems(jobs=4, operations=3, machines=3, rich=FEATURES), st.data())
@settings(quick, max_examples=30)
def test_so_it_is_with_everything_that_a_problem_may_hold(problem, data):
    try:
        plan = solve_cpsat(problem, "weighted_tardiness", 5, workers=1)
        now = data.draw(st.integers(0, max(plan.ends)))
        left = remaining(problem, plan, now)
        left = apply_change(left, data.draw(changes(left)))
        waiting = right_shifted(left, plan.schedule, "weighted_tardiness", plan.schedule, Stability())
    except ScheduleError:
        return
    assume(not violations(left, waiting))
    for strategy in STRATEGIES:
        found = replan(left, plan.schedule, strategy=strategy, time_limit=0.4, workers=1)
        verify(left, found)
        assert found.objective <= waiting.objective + 1e-6
        assert explain_change(left, plan, found).common == len(planned(left, plan.schedule))


@given(
    problems(
        jobs=5,
        operations=3,
        machines=3,
        rich=("setups", "calendar", "travel", "batches", "buffers", "started", "closing"),
    ),
    st.data(),
)
@settings(quick, max_examples=25)
def test_what_is_frozen_stays_and_rules_go_around_it(problem, data):
    try:
        plan = dispatch(problem, "edd", "weighted_tardiness")
    except ScheduleError:
        return
    out = Breakdown(f"m{data.draw(st.integers(0, 2))}", data.draw(st.integers(1, 6)), data.draw(st.integers(0, 4)))
    if any(machine.id == out.machine for machine in problem.machines) and out.until > out.since:
        problem = apply_change(problem, out)
    try:
        shifted = right_shifted(problem, plan.schedule)
    except ScheduleError:
        shifted = None
    wanted = starting_in(problem, plan.schedule, [(0, data.draw(st.integers(2, 8)))])
    keep, stays = staying(problem, plan.schedule, wanted, shifted, time_limit=60)
    assume(stays is not None)
    assert keep.items() <= wanted.items() and keeps(stays, keep) and not violations(problem, stays)
    for o in wanted.keys() - keep.keys():  # no more can stay
        assert feasible(problem, keep | {o: wanted[o]}, 60) is not True
    rush = replace(problem, jobs=(*problem.jobs, replace(problem.jobs[-1], id="rush", started=False, place=-1)))
    inserted = []
    for rule in ("atc", "edd", "spt", "fifo"):
        try:
            found = dispatch(rush, Policy(rule, keep=keep), "weighted_tardiness")
        except ScheduleError:
            continue
        assert not violations(rush, found)
        inserted += [found] * keeps(found, keep)
    try:
        best = best_rule(rush, "weighted_tardiness", keep=keep)
    except ScheduleError:
        assert not inserted
        return
    assert keeps(best, keep) and not violations(rush, best)
    least = min([best.objective, *(plan.objective for plan in inserted)])
    assert generators_cover(rush) or best.objective <= least + 1e-6
    found = replan(rush, plan.schedule, keep=keep, first=best, stability=None, time_limit=0.1, workers=1)
    assert keeps(found, keep) and not violations(rush, found) and found.objective <= best.objective + 1e-6


def until_better(left, schedule):
    "A new plan that is better than the one that is there at once, however busy the machine is."
    first, told = [], []
    more = {"callback": lambda _, value, bound: told.append(value), "at_once": first.append}
    found = replan(
        left, schedule, time_limit=300, stop=lambda: min(told, default=math.inf) < first[0].objective, **more
    )
    verify(left, first[0])
    assert found.objective < first[0].objective
    return found


def test_each_change_does_what_it_says():
    problem = shop(
        job("1", step("a", (0, 5), (1, 4)), step("b", (1, 3), materials=((0, 1.0),)), started=False),
        job("2", step("a", (0, 6)), started=True, place=0),
        materials=(ProblemMaterial("clay", 0.0, ((4, 1.0), (9, 1.0))),),
    )
    down = apply_change(problem, Breakdown("A", 7))
    assert down.machines[0].available == 7 and down.jobs[1].operations[0].modes[0].duration == 13
    later = apply_change(problem, Breakdown("A", 7, since=3))
    assert later.machines[0].windows[0] == (0, 3) and later.machines[0].windows[1][0] == 7
    assert apply_change(later, Breakdown("A", 12, since=10)).machines[0].windows[:2] == ((0, 3), (7, 10))
    assert [j.id for j in apply_change(problem, Cancelled("1")).jobs] == ["2"]
    assert apply_change(problem, Cancelled("2")).jobs == problem.jobs
    again = apply_change(problem, Rework("2", (step("a", (0, 2)),)))
    assert [o.name for o in again.jobs[1].operations] == ["a", "a#2"]
    back = apply_change(problem, Rework("3", (step("a", (0, 2)),), due=9, weight=2.0))
    assert (back.jobs[2].id, back.jobs[2].due, back.jobs[2].weight) == ("3", 9, 2.0)
    late = apply_change(problem, LateMaterial("clay", 12))
    assert late.materials[0].arrivals == ((9, 1.0), (12, 1.0))
    slow = apply_change(problem, SlowMachine("A", 1.5))
    assert [m.duration for m in slow.jobs[0].operations[0].modes] == [8, 4]
    for wrong in (Breakdown("Z", 3), Cancelled("9"), LateMaterial("sand", 3), LateMaterial("clay", 3, arrival=2)):
        with pytest.raises(ScheduleError, match=r"Z|9|sand|2 deliveries"):
            apply_change(problem, wrong)


def test_the_reasons_are_told():
    plant = shop(
        job("1", step("a", (0, 4)), step("b", (1, 2)), due=6),
        job("2", step("a", (0, 4)), step("b", (1, 2)), due=10),
        job("3", step("c", (1, 1)), due=1),
    )
    plan = solve_cpsat(plant, "total_tardiness", 1000, workers=1)
    broken = apply_change(plant, Breakdown("A", 3))
    found = replan(broken, plan.schedule, "total_tardiness", "right_shift")
    told = {(move.job, move.operation): move for move in explain_change(broken, plan, found).moves}
    assert told["1", "a"].reason == "machine" and "A is not available before 3" in told["1", "a"].why
    assert told["2", "a"].reason == "pushed" and "a of 1 on A" in told["2", "a"].why
    assert told["1", "b"].reason == "job" and told["1", "b"].shift == 3
    rush = apply_change(plant, UrgentOrder(job("rush", step("a", (0, 2)), due=2, weight=100.0)))
    quick_one = until_better(rush, plan.schedule)
    why = explain_change(rush, plan, quick_one)
    assert any(move.reason == "urgent" and "rush" in move.why for move in why.moves)
    assert "new" in str(why) and len(why.table) == len(why.moves)
    assert explain_change(plant, plan, replace(plan, problem=plant)).moves == ()


def test_five_hundred_operations_have_a_plan_at_once():
    def steps(i):
        return (step(f"o{k}", ((3 * i + 7 * k) % 10, 5 + (11 * i + 5 * k) % 40)) for k in range(10))

    big = shop(*(job(f"j{i}", *steps(i), due=500 + 20 * i) for i in range(55)), machines=[f"m{i}" for i in range(10)])
    plan = best_rule(big, "weighted_tardiness")
    left = apply_change(remaining(big, plan, 100), Breakdown("m3", 60))
    assert len(left.operations) > 500
    verify(left, until_better(left, plan.schedule))


def test_strategies_and_errors():
    with pytest.raises(ScheduleError, match="known: full, repair, right_shift"):
        replan(shop(EASY), dispatch(shop(EASY), "spt").schedule, strategy="panic")


# --- robustness ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiles(root):
    return Factory.load(root / "data/factories/tile_plant.yaml")


def test_slack_keeps_machines_and_sequences_and_gives_room(tiles):
    problem = Problem.from_factory(tiles)
    plan = best_rule(problem, "weighted_tardiness")
    loose = insert_slack(tiles, plan, 1.0)
    verify(problem, loose)
    assert loose.machines == plan.machines
    assert all(b >= a for a, b in zip(plan.starts, loose.starts)) and loose.starts != plan.starts
    assert insert_slack(tiles, plan, 0.0).starts == plan.starts
    assert slowed(tiles, problem, 0.0) == problem
    moved = difference(plan.schedule, loose.schedule)
    assert not moved.moved and not moved.advanced and moved.delayed


def test_runs_without_bad_luck_come_to_what_was_planned(tiles):
    plan = best_rule(Problem.from_factory(tiles), "weighted_tardiness")
    run = simulate(tiles, plan.schedule, disturbances=False)
    found = outcome(run.events, plan.schedule)
    assert found["promise"] == 0
    for name in ("makespan", "total_tardiness", "weighted_tardiness", "flow_time"):
        assert math.isclose(found[name], plan.values[name] * tiles.tick, abs_tol=1), name


def test_the_same_luck_for_every_plan_and_every_time(tiles):
    plan = best_rule(Problem.from_factory(tiles), "weighted_tardiness")
    twice = robustness(tiles, {"a": plan, "b": plan}, n=3, seed=4, workers=1)
    assert (twice.values.sel(plan="a") == twice.values.sel(plan="b")).all()
    again = robustness(tiles, {"a": plan}, n=3, seed=4, workers=1)
    assert (again.values.sel(plan="a") == twice.values.sel(plan="a")).all()
    assert len(set(again.values.values.ravel().tolist())) == 3
