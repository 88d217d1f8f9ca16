"""Scheduling: every real instance is read, random problems with everything in them, exact against brute force."""

import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import CLASSIC, problems

from dtwb.core.errors import ScheduleError
from dtwb.scheduling.cpsat import solve_cpsat
from dtwb.scheduling.problem import (
    Problem,
    Solution,
    objective_value,
    verify,
    violations,
)
from dtwb.scheduling.rules import RULES, Policy, best_rule, dispatch, follow
from dtwb.scheduling.solve import solve

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
    solution = solve(Problem.load(SHARED / f"{name}.txt"), time_limit=120)
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


# --- exact -----------------------------------------------------------------------------------------------------------


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
    solution = solve(problem, objective, time_limit=20)
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
        solution = solve(problem, time_limit=20)
    except ScheduleError:
        return
    if solution.objective <= 9:
        assert solution.status == "optimal" or problem.buffers
        least = all_times(problem, int(solution.objective))
        assert least == solution.objective


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


# --- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "jobshop").is_dir(), reason="the shared data are not here")
def test_ctrl_c_is_heard_at_once_and_the_best_so_far_is_in_the_callers_hands():
    code = (
        "from dtwb.scheduling.problem import Problem, verify; from dtwb.scheduling.solve import solve\n"
        f"p, found = Problem.load({str(SHARED / 'jobshop/instances/ta40.txt')!r}), []\n"
        "def better(solution):\n"
        "    found.append(solution)\n"
        "    print('found', flush=True)\n"
        "try:\n"
        "    solve(p, time_limit=120, callback=better)\n"
        "except KeyboardInterrupt:\n"
        "    verify(p, found[-1])\n"
        "    print('stopped', flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert child.stdout.readline() == "found\n"
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    rest, _ = child.communicate(timeout=60)
    assert rest.splitlines()[-1] == "stopped" and child.returncode == 0
    assert time.monotonic() - began < 30
