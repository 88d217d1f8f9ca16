"""Plans and the twin: an undisturbed plan comes out to the last bit, and any moment of a run can be replanned."""

import random
from dataclasses import replace

import pytest

from dtwb.core.factory import Factory
from dtwb.scheduling.problem import Problem, violations
from dtwb.scheduling.rescheduling import reschedule, right_shifted
from dtwb.scheduling.rules import dispatch, policies
from dtwb.scheduling.solve import solve
from dtwb.twin.simulation import Simulation, simulate


@pytest.fixture(scope="module")
def plant():
    return Factory.load("data/factories/tile_plant.yaml")


def starts(schedule):
    return {(row.job, row.operation): (row.machine, row.start) for row in schedule.rows}


@pytest.mark.parametrize("objective", ["weighted_tardiness", "makespan", "flow_time"])
def test_an_undisturbed_plan_comes_out_to_the_last_bit(plant, objective):
    plan = solve(Problem.from_factory(plant), objective, time_limit=0.5).schedule
    run = simulate(plant, schedule=plan, disturbances=False)
    assert run.how == "finished"
    assert starts(run.schedule) == starts(plan)


def test_what_every_rule_plans_comes_out(plant):
    problem = Problem.from_factory(plant)
    for policy in policies(problem):
        plan = dispatch(problem, policy).schedule
        assert starts(simulate(plant, schedule=plan, disturbances=False).schedule) == starts(plan), policy.name


@pytest.mark.parametrize("seed", range(6))
def test_any_moment_of_a_disturbed_run_can_be_replanned(plant, seed):
    "What has started is left alone, the rest is all planned, and the run goes on with the new plan to its end."
    rng = random.Random(seed)
    sim = Simulation(plant, dispatch(Problem.from_factory(plant), "edd").schedule, seed=seed)
    for _ in range(3):
        sim.run_until(sim.now + rng.uniform(600, 9000))
        if sim.how is not None:
            break
        state = sim.state()
        plan = reschedule(plant, state, sim.now, time_limit=0.1, stability=None)
        todo = {
            (id, visit)
            for id, job in state.jobs.items()
            if job.ended is None
            for visit in job.todo[bool(job.machine) :]
        } | {(job.id, o.id) for job in plant.jobs() if job.id not in state.jobs for o in plant.route(job.product)}
        assert set(starts(plan.schedule)) == todo
        assert all(row.start >= sim.now for row in plan.schedule.rows)
        assert not violations(plan.problem, right_shifted(plan.problem, state.schedule))
        sim.set_schedule(plan.schedule, "replanned")
    sim.run_until(1e9)
    assert sim.how is not None
    left = list(sim.plant.parts)
    # a part that is sent back after the last replanning chooses for itself, so nothing is left behind
    assert sim.how == "finished", (sim.how, left)


def test_replanned_without_disturbances_the_plan_comes_out_again(plant):
    "The state in the middle of an undisturbed run is read so well that the rest of the plan can be met exactly."
    plan = solve(Problem.from_factory(plant), "weighted_tardiness", method="rules").schedule
    for now in (1230.0, 4000.0, 7200.0, 12345.0, 20000.0):
        sim = Simulation(plant, plan, disturbances=False)
        sim.run_until(now)
        new = reschedule(plant, sim.state(), now, time_limit=0.1, stability=None)
        sim.set_schedule(new.schedule, "again")
        sim.run_until(1e9)
        assert sim.how == "finished"
        done = starts(Simulation_schedule(sim))
        late = {key: (row, done[key]) for key, row in starts(new.schedule).items() if done[key][1] > row[1] + 1e-6}
        assert not late, (now, late)


def Simulation_schedule(sim):
    from dtwb.twin.simulation import executed_schedule

    return executed_schedule(sim.events)


def test_following_the_plan_from_the_middle_keeps_its_times(plant):
    "On whole minutes nothing is rounded: right-shifted from an undisturbed moment, the plan is what it was."
    problem = Problem.from_factory(plant)
    plan = solve(problem, "weighted_tardiness", method="rules")
    for now in (1200.0, 4020.0, 7200.0, 12360.0, 20040.0):
        sim = Simulation(plant, plan.schedule, disturbances=False)
        sim.run_until(now)
        here = Problem.from_factory(plant, sim.state(), now)
        shifted = right_shifted(here, plan.schedule)
        late = sum(abs(a.start - starts(plan.schedule)[a.job, a.operation][1]) for a in shifted.schedule.rows)
        assert late <= 3 * 60 * 10, (now, late)
    assert replace(plan, bound=0.0).gap is not None
