"""Scheduling: every real instance is read, random problems with everything in them, exact against brute force."""

import itertools
import os
import signal
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ortools.sat.python import cp_model
from problems import CLASSIC, objectives, problems

from dtwb.core.errors import ScheduleError
from dtwb.scheduling.cpsat import build_model, parameters, solve_cpsat
from dtwb.scheduling.problem import (
    REGULAR,
    Problem,
    ProblemJob,
    ProblemMachine,
    ProblemMode,
    ProblemOperation,
    Solution,
    check_problem,
    objective_value,
    verify,
    violations,
)
from dtwb.scheduling.rules import RULES, Policy, best_rule, dispatch, follow
from dtwb.scheduling.solve import impossible, solve

SHARED = Path(__file__).parent.parent.parent / "shared/data"
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "jobshop").is_dir(), reason="the shared data are not here")
def test_every_real_instance_is_read():
    classical = sorted((SHARED / "jobshop/instances").glob("*.txt"))
    flexible = [path for path in sorted((SHARED / "flexible_jobshop").rglob("*.txt")) if "LICENSE" not in path.name]
    assert (len(classical), len(flexible)) == (162, 258)
    for kind, paths in (("job shop", classical), ("flexible job shop", flexible)):
        for path in paths:
            problem = Problem.load(path)
            jobs, machines = map(int, path.read_text().split()[:2])
            assert problem.description == f"Read as a {kind}, machines counted from 0."
            assert (len(problem.jobs), len(problem.machines)) == (jobs, machines), path


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "jobshop").is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize(
    "name, optimum",
    [("jobshop/instances/ft06", 55), ("jobshop/instances/la16", 945), ("flexible_jobshop/brandimarte/mk01", 40)],
)
def test_published_optima_are_proved(name, optimum):
    solution = solve(Problem.load(SHARED / f"{name}.txt"), time_limit=1000)
    assert (solution.objective, solution.bound, solution.status) == (optimum, optimum, "optimal")


@given(st.binary(max_size=200))
@quick
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("files") / "x.txt"
    path.write_bytes(content)
    try:
        Problem.load(path)
    except ScheduleError as e:
        assert "x.txt" in str(e)


# --- random problems -------------------------------------------------------------------------------------------------


@given(
    problems(jobs=6, operations=4, machines=4, rich=CLASSIC),
    st.sampled_from(sorted(RULES)),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
)
@settings(quick, max_examples=600)
def test_rules_respect_everything(problem, rule, fill, keep):
    try:
        solution = dispatch(problem, Policy(rule, fill, keep), "flow_time")
    except ScheduleError as e:
        assert "block each other" in str(e) and problem.buffers
        return
    verify(problem, solution)
    again = follow(problem, solution, "flow_time")
    verify(problem, again)
    if not problem.buffers:
        assert again.starts == solution.starts


@given(problems(rich=CLASSIC), st.sampled_from(["makespan", "total_tardiness", "weighted_tardiness", "flow_time"]))
@settings(quick, max_examples=80)
def test_cpsat_is_verified_and_no_worse_than_any_rule(problem, objective):
    try:
        first = best_rule(problem, objective)
    except ScheduleError:
        return
    solution = solve_cpsat(problem, objective, time_limit=5, hint=first)
    verify(problem, solution)
    assert solution.objective <= first.objective


@given(problems(jobs=5, operations=4), objectives())
@settings(quick, max_examples=100)
def test_cpsat_respects_everything_and_a_plan_is_a_whole_hint(problem, objective):
    try:
        solution = solve_cpsat(problem, objective, time_limit=5)
    except ScheduleError as e:
        assert "no solution" in str(e)
        return
    verify(problem, solution)
    assert solution.bound is None or solution.bound <= solution.objective + 1e-9
    model = build_model(problem, objective, solution)
    hinted, variables = set(model.cp.proto.solution_hint.vars), model.cp.proto.variables
    assert all(i in hinted or len(set(x.domain)) == 1 for i, x in enumerate(variables))
    solver = parameters(problem, 20, 0, 1)
    solver.parameters.fix_variables_to_their_hinted_value = True
    assert solver.solve(model.cp) in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    assert solver.objective_value / model.scale == pytest.approx(solution.objective, abs=1e-6 + 2 * model.rounding)


@given(problems(), objectives(REGULAR), st.sampled_from(REGULAR))
@settings(quick, max_examples=40)
def test_cpsat_keeps_limits_and_what_is_to_stay(problem, objective, other):
    try:
        first = solve_cpsat(problem, other, time_limit=5)
    except ScheduleError:
        return
    o = len(first.starts) - 1
    stays, limits = {o: (first.machines[o], first.starts[o])}, {other: first.objective}
    solution = solve_cpsat(problem, objective, time_limit=5, keep=stays, limits=limits, hint=first)
    verify(problem, solution)
    assert (solution.machines[o], solution.starts[o]) == stays[o]
    assert objective_value(problem, other, solution.starts, solution.ends, solution.machines) <= first.objective + 1e-6


def test_cpsat_says_what_it_knows_while_it_searches_and_can_be_repeated():
    problem = Problem(
        tuple(
            ProblemJob(
                f"j{j}",
                tuple(
                    ProblemOperation(f"o{k}", (ProblemMode((j * k + k) % 5, 1 + (7 * j + 3 * k) % 9),))
                    for k in range(5)
                ),
            )
            for j in range(8)
        ),
        tuple(ProblemMachine(f"m{m}") for m in range(5)),
    )
    told, plans, bounds = [], [], []
    again = [
        solve_cpsat(
            problem,
            time_limit=1000,
            work_limit=0.5,
            callback=lambda *now: told.append(now),
            on_solution=plans.append,
            on_bound=bounds.append,
        )
        for _ in range(2)
    ]
    assert again[0].starts == again[1].starts and again[0].bound == again[1].bound
    first = told[: len(told) // 2]
    assert [t for t, *_ in first] == sorted(t for t, *_ in first)
    assert [value for _, value, _ in first] == sorted((value for _, value, _ in first), reverse=True)
    assert plans[0].objective == again[0].trace[0][1] and max(bounds) <= again[0].objective


# --- exact -----------------------------------------------------------------------------------------------------------


def patience(problem) -> float:  # s
    "Some best plans are found, and not proved: that they are the best is what these tests are for."
    return 3 if problem.buffers else 20


def semi_active(problem, objective):
    "The best objective over all sequences and modes of a plain problem, each operation as early as it can be."
    n, best = len(problem.operations), float("inf")
    jobs = [j for j, _ in problem.operations]
    for order in set(itertools.permutations(jobs)):
        for modes in itertools.product(*(problem.operation(o).modes for o in range(n))):
            free, there, taken = (
                [m.available for m in problem.machines],
                [j.release for j in problem.jobs],
                [0] * len(problem.jobs),
            )
            ends = [0] * n
            for j in order:
                o = problem.first[j] + taken[j]
                taken[j] += 1
                machine, duration = modes[o]
                ends[o] = free[machine] = there[j] = max(free[machine], there[j]) + duration
            best = min(best, objective_value(problem, objective, ends, ends, [0] * n))
    return best


@given(
    problems(jobs=3, operations=2, machines=2, rich=False),
    st.sampled_from(["makespan", "weighted_tardiness", "flow_time"]),
)
@settings(quick, max_examples=40)
def test_cpsat_equals_brute_force_over_sequences(problem, objective):
    solution = solve(problem, objective, time_limit=1000)
    assert solution.status == "optimal"
    assert solution.objective == pytest.approx(semi_active(problem, objective))


def all_times(problem, horizon):
    "The least makespan over every choice of starts, leaves and modes up to `horizon`; judged by `violations` alone."
    n = len(problem.operations)
    for limit in range(horizon + 1):
        modes = [problem.operation(o).modes for o in range(n)]
        for chosen in itertools.product(*modes):
            machines = tuple(mode.machine for mode in chosen)
            for starts in itertools.product(*([0] if problem.is_started(o) else range(limit + 1) for o in range(n))):
                ends = _ends(problem, starts, machines)
                if max(ends) > limit:
                    continue
                for leaves in itertools.product(*(_leaves(problem, o, starts, ends, machines) for o in range(n))):
                    solution = Solution(problem, starts, ends, machines, leaves, float(max(ends)))
                    if not violations(problem, solution):
                        return max(ends)
    return None


def _ends(problem, starts, machines):
    lasts = {}
    for o, key in enumerate(zip(machines, starts)):
        group = (
            *key,
            problem.is_started(o),
            None if problem.machines[key[0]].batch_capacity > 1 or problem.is_started(o) else o,
        )
        lasts.setdefault(group, []).append(o)
    ends = [0] * len(starts)
    for (machine, start, *_), members in lasts.items():
        for o in members:
            ends[o] = start + max(problem.duration(i, machine) for i in members)
    return tuple(ends)


def _leaves(problem, o, starts, ends, machines):
    j, k = problem.operations[o]
    last = k == len(problem.jobs[j].operations) - 1
    if last or problem.machines[machines[o + 1]].buffer is None:
        return [ends[o]]
    return range(ends[o], max(ends[o], starts[o + 1]) + 1)


@given(problems(jobs=3, operations=2, machines=2, rich=CLASSIC))
@settings(quick, max_examples=60)
def test_cpsat_equals_brute_force_over_times(problem):
    if len(problem.operations) > 4 or any(
        mode.duration > 3 for j in problem.jobs for o in j.operations for mode in o.modes
    ):
        return
    try:
        solution = solve(problem, time_limit=min(6, patience(problem)))
    except ScheduleError:
        return
    if solution.objective <= 9:
        assert solution.status == "optimal" or problem.buffers
        least = all_times(problem, int(solution.objective))
        assert least == solution.objective


# --- exact, with everything ------------------------------------------------------------------------------------------


def worked_until(machine, start, duration, closing):
    "The end of work, tick by tick; None: it may not start then."

    def is_open(t):
        return machine.windows is None or any(a <= t < b for a, b in machine.windows)

    if not is_open(start):
        return None
    if closing == "fit" and not all(is_open(t) for t in range(start, start + duration)):
        return None
    t = start
    while duration:
        duration -= closing != "pause" or is_open(t)
        t += 1
        if t > 500:
            return None
    return t


def grid_ends(problem, starts, machines):
    "The ends of all operations; a batch lasts as long as its slowest member. None: something may not start then."
    ends = []
    for o, (m, start) in enumerate(zip(machines, starts)):
        machine, step = problem.machines[m], problem.operation(o)
        together = [o]
        if machine.batch_capacity > 1 or problem.is_started(o):
            together = [
                i
                for i in range(len(starts))
                if (machines[i], starts[i], problem.is_started(i)) == (m, start, problem.is_started(o))
            ]
        lasts = max(problem.duration(i, m) for i in together)
        if problem.is_started(o) and step.closing != "pause":
            ends.append(start + lasts)
            continue
        if problem.is_started(o):  # under way: the machine may be closed just now
            always = replace(machine, windows=((-1, 0), *machine.windows)) if machine.windows else machine
            ends.append(worked_until(always, -1, lasts + 1, "pause") if lasts else 0)
        else:
            ends.append(worked_until(machine, start, lasts, step.closing))
        if ends[-1] is None:
            return None
    return tuple(ends)


def naive_value(problem, objective, starts, ends, machines):
    "Each term by its definition, tick by tick and job by job."
    last = [ends[i - 1] for i in problem.first[1:]]
    late = [max(0, end - job.due) if job.due is not None else 0 for job, end in zip(problem.jobs, last)]
    slots = {}  # (machine, start, end, who) -> (family, closing)
    for o, m in enumerate(machines):
        started, step = problem.is_started(o), problem.operation(o)
        alone = problem.machines[m].batch_capacity == 1 and not started
        slots[m, not started, starts[o], ends[o], o if alone else -1] = step.family, step.closing
    setup = energy = 0.0
    for m, machine in enumerate(problem.machines):
        family = machine.family
        for (at, waits, start, end, _), (following, closing) in sorted(slots.items()):
            if at != m:
                continue
            setup += machine.setup(family, following) if waits else 0
            family = following
            for t in range(start, end):
                closed = machine.windows is not None and not any(a <= t < b for a, b in machine.windows)
                price = [price for since, price in problem.tariff if since <= t][-1:] or [0.0]
                energy += 0.0 if closed and closing == "pause" else machine.power * price[0] * problem.tick / 3600
    terms = {
        "makespan": max(last),
        "total_tardiness": sum(late),
        "weighted_tardiness": sum(job.weight * t for job, t in zip(problem.jobs, late)),
        "number_late": sum(t > 0 for t in late),
        "flow_time": sum(end - job.release for job, end in zip(problem.jobs, last)),
        "setup_time": setup,
        "energy_cost": energy,
    }
    return sum(weight * terms[name] for name, weight in objective.terms.items())


def grid_best(problem, objective, limit):
    "The least value over every choice of machines, starts, leaves and resources up to `limit`, judged by `violations`."
    n, best = len(problem.operations), None
    served = [
        list(itertools.product(*(problem.servers[name] for name, _ in problem.operation(o).needs))) for o in range(n)
    ]
    for chosen in itertools.product(*(problem.operation(o).modes for o in range(n))):
        machines = tuple(mode.machine for mode in chosen)
        for starts in itertools.product(*([0] if problem.is_started(o) else range(limit + 1) for o in range(n))):
            ends = grid_ends(problem, starts, machines)
            if ends is None or max(ends) > limit:
                continue
            value = naive_value(problem, objective, starts, ends, machines)
            if best is not None and value >= best - 1e-9:
                continue
            for leaves in itertools.product(*(_leaves(problem, o, starts, ends, machines) for o in range(n))):
                for who in itertools.product(*served) if problem.resources else [()]:
                    plan = Solution(problem, starts, ends, machines, leaves, value, str(objective), resources=who)
                    if best is None or value < best - 1e-9:
                        if not violations(problem, plan):
                            best = value
    return best


@given(problems(jobs=3, operations=2, machines=2), objectives())
@settings(quick, max_examples=120)
def test_cpsat_equals_brute_force_over_everything(problem, objective):
    n = len(problem.operations)
    assume(n <= 3)
    try:
        solution = solve_cpsat(problem, objective, time_limit=patience(problem), workers=1)
    except ScheduleError as e:
        if problem.buffers and "in a circle" in str(e):
            return
        assert "there is no solution" in str(e)
        assert grid_best(problem, objective, {1: 40, 2: 20, 3: 9}[n]) is None
        return
    verify(problem, solution)
    assert solution.status == "optimal" or problem.buffers
    if max(solution.ends) ** n < 3000:
        best = grid_best(problem, objective, max(solution.ends))
        assert best == pytest.approx(solution.objective)


# --- every mutation is noticed ---------------------------------------------------------------------------------------


@given(problems(jobs=5, operations=3, machines=3, rich=CLASSIC), st.data())
@settings(quick, max_examples=150)
def test_verify_notices_what_is_broken(problem, data):
    try:
        solution = dispatch(problem, "fifo", "flow_time")
    except ScheduleError:
        return
    n = len(problem.operations)
    o = data.draw(st.integers(0, n - 1))
    duration = solution.ends[o] - solution.starts[o]

    def broken(**changes):
        with pytest.raises(ScheduleError):
            verify(problem, replace(solution, **changes))

    def changed(array, value):
        return tuple(value if i == o else x for i, x in enumerate(array))

    broken(ends=changed(solution.ends, solution.ends[o] + 1))
    broken(machines=changed(solution.machines, 99))
    broken(starts=solution.starts[:-1])
    broken(objective=solution.objective - 1)
    broken(bound=solution.objective + 1)
    if duration:
        broken(leaves=changed(solution.leaves, solution.ends[o] - 1))
        j, k = problem.operations[o]
        if k + 1 < len(problem.jobs[j].operations):
            early = solution.leaves[o] - 1
            next_duration = solution.ends[o + 1] - solution.starts[o + 1]
            starts = tuple(early if i == o + 1 else x for i, x in enumerate(solution.starts))
            ends = tuple(early + next_duration if i == o + 1 else x for i, x in enumerate(solution.ends))
            broken(starts=starts, ends=ends)
    if problem.is_started(o):
        broken(starts=changed(solution.starts, 1), ends=changed(solution.ends, solution.ends[o] + 1))


@given(problems(jobs=4, operations=3, machines=3), objectives(), st.data())
@settings(quick, max_examples=120)
def test_verify_notices_who_waits_too_long_who_is_not_there_and_what_is_overstated(problem, objective, data):
    try:
        solution = solve_cpsat(problem, objective, time_limit=3)
    except ScheduleError:
        return

    def broken(words, problem=problem, **changes):
        with pytest.raises(ScheduleError, match=words):
            verify(problem, replace(solution, problem=problem, **changes))

    broken("not", objective=solution.objective + 1)
    broken("not", objective=solution.objective - 1)
    name = data.draw(st.sampled_from(sorted(solution.values)))
    broken(f"the {name} is", values=solution.values | {name: solution.values[name] + 1})
    o = data.draw(st.integers(0, len(solution.starts) - 1))
    j, k = problem.operations[o]
    waited = solution.starts[o] - (solution.ends[o - 1] if k else problem.jobs[j].release)
    if waited > 0 and not problem.is_started(o):
        steps = list(problem.jobs[j].operations)
        steps[k] = replace(steps[k], max_wait=waited - 1)
        jobs = list(problem.jobs)
        jobs[j] = replace(jobs[j], operations=tuple(steps))
        broken(f"more than {waited - 1} after", replace(problem, jobs=tuple(jobs)))
    if problem.resources and problem.operation(o).needs:
        others = {
            r for r in range(len(problem.resources)) if r not in problem.servers[problem.operation(o).needs[0][0]]
        }
        for wrong in (*others, 99):
            served = list(solution.resources)
            served[o] = (wrong, *served[o][1:])
            broken("cannot serve that", resources=tuple(served))
        broken("needs, and", resources=tuple(() if i == o else who for i, who in enumerate(solution.resources)))


# --- bad input -------------------------------------------------------------------------------------------------------

POISON = [-1, 0, 1.5, float("nan"), float("inf"), 2**53, 2**63 - 1, 2**63, 10**30, None, "x", (), 99]


def leaves_of(thing, path=()):
    "Every value in a problem with the path to it."
    if is_dataclass(thing):
        parts = [(field.name, getattr(thing, field.name)) for field in fields(thing)]
    elif isinstance(thing, tuple):
        parts = list(enumerate(thing))
    else:
        yield path
        return
    for key, part in parts:
        yield from leaves_of(part, (*path, key))


def poisoned(thing, path, value):
    "`thing` with `value` at `path`."
    if not path:
        return value
    key, *rest = path
    if is_dataclass(thing):
        return replace(thing, **{key: poisoned(getattr(thing, key), rest, value)})
    parts = [poisoned(part, rest, value) if i == key else part for i, part in enumerate(thing)]
    return type(thing)(*parts) if hasattr(thing, "_fields") else tuple(parts)


@given(problems(jobs=2, operations=2, machines=2), st.data())
@settings(quick, max_examples=300)
def test_whatever_is_wrong_in_a_problem_is_refused_in_one_line_or_planned(problem, data):
    path = data.draw(st.sampled_from(sorted(leaves_of(problem), key=str)))
    bad = poisoned(problem, path, data.draw(st.sampled_from(POISON)))
    try:
        plan = solve_cpsat(bad, time_limit=1) if check_problem(bad) is None and not impossible(bad) else None
    except ScheduleError as e:
        assert "\n" not in str(e) and len(str(e)) > 10
        return
    if plan is not None:
        verify(bad, plan)


# --- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "jobshop").is_dir(), reason="the shared data are not here")
def test_ctrl_c_is_heard_at_once_and_brings_the_best_so_far():
    code = (
        "from dtwb.scheduling.problem import Problem, verify; from dtwb.scheduling.solve import Interrupted, solve\n"
        f"p = Problem.load({str(SHARED / 'jobshop/instances/ta40.txt')!r})\n"
        "try:\n"
        "    solve(p, time_limit=3000, callback=lambda *news: print('found', flush=True))\n"
        "except Interrupted as e:\n"
        "    verify(p, e.best)\n"
        "    print(e.best.how, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert child.stdout.readline() == "found\n"
    child.send_signal(signal.SIGINT)
    rest, _ = child.communicate(timeout=600)
    assert rest.splitlines()[-1] == "stopped" and child.returncode == 0
