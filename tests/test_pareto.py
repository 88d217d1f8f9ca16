"""Pareto fronts: exact against brute force, roughly between the rules and the exact ones, and stopped at any moment."""

import itertools
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from problems import problems

from dtwb.core.errors import ScheduleError
from dtwb.scheduling.cpsat import solve_cpsat
from dtwb.scheduling.pareto import (
    Cell,
    Front,
    efficient,
    hypervolume,
    pareto,
    pareto_epsilon,
    pareto_nsga2,
    without,
)
from dtwb.scheduling.problem import (
    Problem,
    ProblemJob,
    ProblemMachine,
    ProblemMode,
    ProblemOperation,
    Solution,
    Stability,
    term_values,
    verify,
)
from dtwb.scheduling.rules import RULES, dispatch

quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
REGULAR = ("makespan", "weighted_tardiness", "flow_time", "number_late", "total_tardiness")
ONE = {"workers": 1, "time_limit": 60}


def names(*sizes, known=REGULAR):
    return st.sampled_from(sizes).flatmap(lambda n: st.permutations(known).map(lambda order: tuple(order[:n])))


# --- dominance and volume --------------------------------------------------------------------------------------------

grid = st.integers(2, 4).flatmap(
    lambda k: st.lists(st.tuples(*[st.integers(0, 6)] * k), min_size=1, max_size=25).map(lambda p: np.array(p, float))
)


@given(grid)
@settings(max_examples=60)
def test_efficient_points_are_those_that_none_dominates(points):
    for i, (point, keep) in enumerate(zip(points, efficient(points))):
        dominated = any((p <= point).all() and (p < point).any() for p in points)
        assert keep == (not dominated and not any((p == point).all() for p in points[:i]))


@given(grid)
@settings(max_examples=40)
def test_hypervolume_counts_the_unit_cells_that_are_dominated(points):
    k = points.shape[1]
    cells = np.array(list(itertools.product(range(7), repeat=k)))
    dominated = (points[None] <= cells[:, None]).all(2).any(1)
    assert hypervolume(points, [7] * k) == dominated.sum()


@given(st.integers(0, 10_000), st.integers(2, 4))
@settings(quick)
def test_hypervolume_is_that_of_pymoo(seed, k):
    from pymoo.indicators.hv import HV

    points = np.random.default_rng(seed).random((15, k))
    assert hypervolume(points, [0.9] * k) == pytest.approx(HV(ref_point=np.full(k, 0.9))(points))


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_hypervolume_of_a_line_of_points(n):
    points = [(i, n - i) for i in range(n + 1)]  # steps below the diagonal of a square
    assert hypervolume(points, (n, n)) == n * (n - 1) / 2


@given(st.data())
def test_what_is_left_of_a_cell_is_it_without_the_box(data):
    k = data.draw(st.integers(1, 3))
    corner = st.tuples(*[st.integers(0, 5)] * k)

    def box():
        a, b = data.draw(corner), data.draw(corner)
        return Cell(tuple(map(min, a, b)), tuple(max(x, y) + 1 for x, y in zip(a, b)))

    def held(cell):
        return list(itertools.product(*map(range, cell.low, cell.high)))

    cell, cut = box(), box()
    rest = [point for piece in without(cell, cut) for point in held(piece)]
    assert sorted(rest) == sorted(set(held(cell)) - set(held(cut)))


# --- exact -----------------------------------------------------------------------------------------------------------


def brute_force(problem, objectives):
    "The front over all sequences and modes of a plain problem, each operation as early as it can be."
    n, points = len(problem.operations), set()
    for order in set(itertools.permutations([j for j, _ in problem.operations])):
        for modes in itertools.product(*(problem.operation(o).modes for o in range(n))):
            free, there = [m.available for m in problem.machines], [j.release for j in problem.jobs]
            taken, starts, ends = [0] * len(problem.jobs), [0] * n, [0] * n
            for j in order:
                o = problem.first[j] + taken[j]
                taken[j] += 1
                machine, duration = modes[o]
                starts[o] = max(free[machine], there[j])
                ends[o] = free[machine] = there[j] = starts[o] + duration
            values = term_values(problem, starts, ends, [mode.machine for mode in modes])
            points.add(tuple(values[name] for name in objectives))
    points = sorted(points)
    return tuple(point for point, keep in zip(points, efficient(points)) if keep)


def check(front):
    "What every front is."
    assert len(front) == len(front.points) == len(front.proved) > 0
    assert list(front.points) == sorted(front.points) and efficient(front.points).all()
    for plan, point in zip(front, front.points):
        verify(front.problem, plan)
        assert plan.objective == point[0] and plan.objective_name == front.objectives[0]
        for name, value in zip(front.objectives, point):
            assert name == "stability" or plan.values[name] == pytest.approx(value)


@given(problems(jobs=3, operations=2, machines=2, rich=False), names(2, 3))
@quick
def test_the_exact_front_is_that_of_brute_force(problem, objectives):
    front = pareto_epsilon(problem, objectives, **ONE)
    check(front)
    assert front.points == brute_force(problem, objectives)
    assert front.complete and all(front.proved) and front.how == "there are no others"


@given(problems(jobs=3, operations=2, machines=2, rich=False), names(2))
@settings(quick, max_examples=10)
def test_both_together_find_the_same(problem, objectives):
    assert pareto(problem, objectives, **ONE).points == brute_force(problem, objectives)


@given(problems(jobs=3, operations=2, machines=2), st.data())
@settings(quick, max_examples=5)
def test_fronts_of_whatever_a_plant_has_are_feasible_and_the_same_from_either_side(problem, data):
    assume(not problem.buffers and len(problem.operations) > 0)  # with buffers not all can be proved
    n = len(problem.operations)
    zeros, machines = [0] * n, [problem.operation(o).modes[0].machine for o in range(n)]
    possible = list(term_values(problem, zeros, zeros, machines))
    objectives = tuple(data.draw(st.permutations(possible))[:2])
    try:
        front = pareto_epsilon(problem, objectives, **ONE)
    except ScheduleError as e:
        assert any(words in str(e) for words in ("no plan", "no solution", "cannot hold", "cannot all hold"))
        return
    check(front)
    assert front.complete
    other = pareto_epsilon(problem, objectives[::-1], **ONE)
    assert sorted(point[::-1] for point in other.points) == list(front.points)


@given(problems(jobs=3, operations=2, machines=2, rich=False), st.data())
@quick
def test_a_limit_is_kept_and_the_optimum_within_it_is_brute_forces(problem, data):
    first, limited = data.draw(names(2))
    front = brute_force(problem, (first, limited))
    limit = data.draw(st.sampled_from([point[1] for point in front]))
    best = solve_cpsat(problem, first, limits={limited: limit}, **ONE)
    assert best.values[limited] <= limit
    assert best.objective == pytest.approx(min(a for a, b in front if b <= limit))
    impossible = min(b for _, b in front) - 0.5
    with pytest.raises(ScheduleError, match="there is no solution"):
        solve_cpsat(problem, first, limits={limited: impossible}, **ONE)


# --- roughly ---------------------------------------------------------------------------------------------------------


def shop(jobs=6, machines=3, seed=0):
    "A flexible shop with tight due dates."
    rng = np.random.default_rng(seed)

    def operation(k):
        where = rng.choice(machines, 2, replace=False)
        return ProblemOperation(f"o{k}", tuple(ProblemMode(int(m), int(rng.integers(2, 12))) for m in where))

    work = tuple(
        ProblemJob(f"j{j}", tuple(map(operation, range(3))), due=int(rng.integers(12, 40)), weight=float(1 + j % 3))
        for j in range(jobs)
    )
    return Problem(work, tuple(ProblemMachine(f"m{m}") for m in range(machines)), name="shop")


PAIR = ("makespan", "weighted_tardiness")


def test_nsga2_lies_between_the_rules_and_the_exact_front():
    problem = shop()
    rules = [dispatch(problem, rule).values for rule in RULES]
    seeds = [tuple(values[name] for name in PAIR) for values in rules]
    exact = pareto_epsilon(problem, PAIR, time_limit=1000)
    rough = pareto_nsga2(problem, PAIR, generations=30)
    check(exact)
    check(rough)
    assert exact.complete
    reference = np.max([*seeds, *exact.points], axis=0) + 1
    volumes = [hypervolume(points, reference) for points in (seeds, rough.points, exact.points)]
    assert volumes == sorted(volumes)
    assert volumes[1] > volumes[0]
    for point in rough.points:
        assert any(all(a <= b for a, b in zip(best, point)) for best in exact.points)


def test_the_same_seed_is_the_same_front_and_another_is_another():
    problem = shop(10, 4)
    one, same, other = (pareto_nsga2(problem, PAIR, generations=5, seed=seed) for seed in (1, 1, 2))
    assert one.points == same.points
    assert [plan.starts for plan in one] == [plan.starts for plan in same]
    assert [plan.starts for plan in one] != [plan.starts for plan in other]


def test_seeds_are_never_lost():
    problem = shop()
    best = pareto_epsilon(problem, PAIR, time_limit=1000)
    again = pareto_nsga2(problem, PAIR, generations=1, seeds=best)
    assert again.points == best.points


@given(problems(jobs=4, operations=3, machines=3), st.integers(0, 99))
@settings(quick, max_examples=40)
def test_nsga2_respects_everything(problem, seed):
    try:
        front = pareto_nsga2(problem, ("makespan", "flow_time"), generations=2, population=8, seed=seed)
    except ScheduleError as e:
        assert "no plan" in str(e)
        return
    check(front)


def test_deadlines_are_met_or_it_is_said_that_no_plan_is_known():
    problem = shop()
    strict = replace(problem, jobs=tuple(replace(job, deadline=60) for job in problem.jobs))
    found = []
    front = pareto(strict, PAIR, time_limit=1000, callback=found.append, stop=lambda: bool(found))
    check(front)
    hopeless = replace(problem, jobs=tuple(replace(job, deadline=1) for job in problem.jobs))
    with pytest.raises(ScheduleError):
        pareto(hopeless, PAIR, time_limit=1000)
    with pytest.raises(ScheduleError, match="no plan was found"):
        pareto_nsga2(hopeless, PAIR, generations=2)


# --- change ----------------------------------------------------------------------------------------------------------


def test_stability_against_a_former_plan_is_an_objective_like_others():
    problem = shop(4)
    former = dispatch(problem, "spt").schedule
    change = {"reference": former, "stability": Stability(move=2.0, shift=0.5)}
    front = pareto_epsilon(problem, ("makespan", "stability"), time_limit=1000, **change)
    check(front)
    assert front.complete
    assert front.points[-1][1] == 0.0  # the former plan itself
    assert front.points[0][0] == solve_cpsat(problem, "makespan", time_limit=1000).objective
    swapped = pareto_epsilon(problem, ("stability", "makespan"), time_limit=1000, **change)
    assert sorted(point[::-1] for point in swapped.points) == list(front.points)


def test_what_must_stay_stays():
    problem = shop(3)
    plan = dispatch(problem, "spt")
    keep = {0: (plan.machines[0], plan.starts[0]), 4: (plan.machines[4], plan.starts[4])}
    front = pareto(problem, PAIR, time_limit=1000, keep=keep)
    assert front.complete
    for found in front:
        assert all((found.machines[o], found.starts[o]) == where for o, where in keep.items())


# --- choosing --------------------------------------------------------------------------------------------------------


def by_hand(*points):
    "A front of points, with plans that are told apart by their number."
    problem = shop(1)
    plans = tuple(Solution(problem, (), (), (), (), float(i)) for i in range(len(points)))
    return Front(problem, PAIR, plans, points, (True,) * len(points))


def test_plans_are_picked_by_weights_wishes_and_the_bend():
    front = by_hand((0.0, 100.0), (1.0, 20.0), (5.0, 10.0), (10.0, 0.0))
    assert front.knee is front[1]
    assert front.pick({"makespan": 1.0}) is front[0]
    assert front.pick((0, 1)) is front[3]
    assert front.pick({"makespan": 1, "weighted_tardiness": 10}) is front[3]
    assert front.nearest({"makespan": 5, "weighted_tardiness": 10}) is front[2]
    assert front.nearest({"makespan": 4}) is front[1]  # of those that are good enough the best
    assert front.nearest((0, 0)) is front[1]
    assert front.hypervolume((10, 100)) == 9 * 80 + 5 * 10
    assert (front.ideal, front.nadir) == ((0.0, 0.0), (10.0, 100.0))
    assert list(front.table.columns) == [*PAIR, "proved", "method"]
    assert front.values.dims == ("plan", "objective") and front.values.sel(objective="makespan").max() == 10


@pytest.mark.parametrize("given", [{}, {"cost": 1}, (1,), {"makespan": math.nan}, {"makespan": -1}])
def test_what_cannot_be_chosen_by_is_refused(given):
    with pytest.raises(ScheduleError):
        by_hand((0.0, 1.0), (1.0, 0.0)).pick(given)


def test_a_front_is_shown():
    html = by_hand((0.0, 100.0), (1.0, 20.0), (10.0, 0.0))._repr_html_()
    assert html.count("<circle") == 3 and html.count("<tr>") == 4


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, said",
    [
        ({"objectives": ("makespan", "costs")}, "no objective 'costs'"),
        ({"objectives": ("makespan",)}, "two objectives"),
        ({"objectives": "makespan"}, "two objectives"),
        ({"objectives": ()}, "two objectives"),
        ({"objectives": ("makespan", "makespan")}, "given twice"),
        ({"objectives": ("makespan", "energy_cost")}, "no tariff"),
        ({"objectives": ("makespan", "setup_time")}, "no set-up time"),
        ({"objectives": ("makespan", "stability")}, "measured against a plan"),
        ({"stability": Stability()}, "there for nothing"),
        ({"time_limit": 0}, "time limit"),
        ({"time_limit": -1}, "time limit"),
        ({"time_limit": math.nan}, "time limit"),
        ({"workers": 0}, "worker"),
        ({"points": 1}, "points"),
        ({"seed": -1}, "seed"),
        ({"method": "magic"}, "no method 'magic'"),
        ({"seeds": [dispatch(shop(2), "spt")]}, "another problem"),
    ],
)
def test_bad_input_is_one_clear_line(options, said):
    with pytest.raises(ScheduleError, match=said) as error:
        pareto(shop(), **options)
    assert "\n" not in str(error.value)


def test_bad_input_of_nsga2():
    for options in ({"generations": 0}, {"population": 1}, {"time_limit": 0}):
        with pytest.raises(ScheduleError):
            pareto_nsga2(shop(), **options)


def test_nothing_to_do_is_one_plan():
    nothing = Problem((), (ProblemMachine("m"),))
    front = pareto(nothing, ("makespan", "flow_time"))
    assert front.points == ((0.0, 0.0),) and front.complete


def test_without_due_dates_there_is_no_tardiness_to_weigh():
    problem = replace(shop(), jobs=tuple(replace(job, due=None) for job in shop().jobs))
    with pytest.raises(ScheduleError, match="no due date"):
        pareto(problem)


# --- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["both", "epsilon", "nsga2"])
def test_a_stop_gives_what_there_is_at_once(method):
    problem, seen = shop(30, 6), []
    front = pareto(problem, PAIR, method, time_limit=1000, callback=seen.append, stop=lambda: len(seen) > 1)
    assert front.how == "stopped" and not front.complete
    check(front)
    for earlier in seen:
        assert efficient(earlier.points).all()


@pytest.mark.parametrize("method", ["both", "epsilon", "nsga2"])
def test_the_time_limit_is_kept(method):
    "It ends, and says why: nobody comes to the end of this front."
    front = pareto(shop(30, 6), PAIR, method, time_limit=1)
    assert not front.complete and "time" in front.how
    check(front)


def test_as_many_points_as_asked_for():
    front = pareto_epsilon(shop(5), PAIR, points=3, time_limit=1000)
    assert 2 <= len(front) <= 4


def test_ctrl_c_keeps_what_there_is():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_pareto import PAIR, check, pareto, shop\n"
        "front = pareto(shop(30, 6), PAIR, time_limit=3000, callback=lambda front: print('found', flush=True))\n"
        "check(front)\n"
        "print(front.how, flush=True)\n"
    )
    root = Path(__file__).parent.parent
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root, env=os.environ)
    assert child.stdout.readline() == "found\n"
    assert child.stdout.readline() == "found\n"
    child.send_signal(signal.SIGINT)
    rest, _ = child.communicate(timeout=600)
    assert rest.splitlines()[-1] == "Ctrl-C" and child.returncode == 0


def test_solving_does_not_import_pymoo():
    code = "import sys, dtwb.scheduling.solve, dtwb.scheduling.pareto; sys.exit('pymoo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
