"""Plans of plants with shifts, servers, kanbans, stocks and people come out in the twin, and never lock it up."""

import random

import pytest
from conftest import ROOT

from dtwb.core.factory import Factory, parse_factory
from dtwb.scheduling.problem import Problem, verify, violations
from dtwb.scheduling.rescheduling import right_shifted
from dtwb.scheduling.rules import dispatch, policies
from dtwb.scheduling.solve import solve
from dtwb.twin.simulation import Simulation, executed_schedule, simulate


def plant(seed: int, rich: bool = True) -> Factory:
    "A random plant of two to four stages, with small buffers and machines that fail; `rich`: and all the rest."
    rng = random.Random(seed)

    def maybe(chance: float) -> bool:
        return rng.random() < chance

    stages = [[f"m{s}{k}" for k in range(rng.randint(1, 3))] for s in range(rng.randint(2, 4))]
    buffers, machines, products = [], [], []
    close = rich and maybe(0.3)  # parts need no time to get anywhere, and so no place before a machine
    for s, names in enumerate(stages):
        shared = bool(s) and maybe(0.8)
        if shared:
            buffers.append({"id": f"b{s}", "capacity": rng.randint(0 if close else 1, 3)})
        for name in names:
            mtbf = {"distribution": "exponential", "mean": rng.choice([200, 600, 2000])}
            mttr = {"distribution": "lognormal", "mean": rng.choice([60, 300]), "cv": 1}
            machine = {
                "id": name,
                "position": [0, 0] if close else [s * 10, rng.randint(0, 9)],
                "failure": {"mtbf": mtbf, "mttr": mttr},
            }
            machine |= {"buffer": f"b{s}"} if shared else {}
            kind = rng.choice(["plain", "batch", "setup"] + ["servers", "kanban"] * rich)
            machine |= {
                "plain": {},
                "batch": {"batch_capacity": 2},
                "setup": {"setup": {"default": 20}},
                "servers": {"capacity": rng.randint(2, 3)},
                "kanban": {} if shared else {"kanban": rng.randint(1 if close else 2, 3)},
            }[kind]
            if rich and maybe(0.5):
                machine |= {
                    "calendar": rng.choice(["day", "breaks"]),
                    "closing": rng.choice(["overrun", "fit", "pause"]),
                }
            machines.append(machine)
    for p in range(rng.randint(1, 3)):
        visits = list(range(len(stages))) + ([rng.randrange(len(stages))] if maybe(0.3) else [])
        steps = []
        for i, s in enumerate(visits):
            ways = rng.sample(stages[s], rng.randint(1, len(stages[s])))
            modes = [
                {"machine": m, "duration": {"distribution": "gamma", "mean": rng.choice([30, 60, 90, 200]), "cv": 0.5}}
                for m in ways
            ]
            step = {"id": f"o{i}", "modes": modes}
            if rich and maybe(0.3):
                step["needs"] = {rng.choice(["weld", "check"]): 1}
            steps.append(step)
        products.append({"id": f"p{p}", "operations": steps})
    if rich:  # the first product's parts go into the others
        products[0]["operations"][-1]["produces"] = {"part": 1}
        for product in products[1:]:
            product["operations"][0]["materials"] = {"part": 1}
    names = [product["id"] for product in products]
    orders = [
        {"id": f"q{i}", "product": rng.choice(names), "quantity": rng.randint(1, 4), "due": rng.randint(100, 3000)}
        for i in range(5)
    ]
    return parse_factory(
        {
            "name": f"plant_{seed}",
            "tick": 5,
            "calendars": [
                {"id": "day", "period": 2000, "open": [[0, 1000]]},
                {"id": "breaks", "period": 1000, "open": [[0, 400], [450, 900]]},
            ],
            "buffers": buffers,
            "materials": [{"id": "part", "stock": 20}],
            "machines": machines,
            "operators": [{"id": "anna", "skills": ["weld"]}, {"id": "ben", "skills": ["check", "weld"]}],
            "transport": {"speed": rng.choice([1, 5]), "handling": 0 if close else rng.choice([0, 5])},
            "products": products,
            "orders": orders,
        }
    )


def rows(schedule):
    return {(row.job, row.operation): (row.machine, row.start, row.end) for row in schedule.rows}


@pytest.mark.parametrize("seed", range(7, 47))
def test_what_a_rule_plans_comes_out_to_the_last_bit(seed):
    factory = plant(seed)
    problem = Problem.from_factory(factory)
    plan = dispatch(problem, policies(problem)[seed % 4])
    verify(problem, plan)
    run = simulate(factory, plan.schedule, disturbances=False)
    assert run.how == "finished"
    assert rows(run.schedule) == rows(plan.schedule)


@pytest.mark.parametrize("seed", range(3))
def test_what_the_solver_plans_comes_out_to_the_last_bit(seed):
    factory = plant(seed)
    plan = solve(Problem.from_factory(factory), "weighted_tardiness + 0.1*makespan", time_limit=0.4)
    verify(plan.problem, plan)
    run = simulate(factory, plan.schedule, disturbances=False)
    assert rows(run.schedule) == rows(plan.schedule)


def test_the_plan_of_the_assembly_cell_comes_out_and_waits_for_vehicles_alone():
    cell = Factory.load(ROOT / "data/factories/assembly_cell.yaml")
    on_foot = cell.transport.model_copy(update={"vehicles": None, "handling": 15.0})
    for factory in (cell.model_copy(update={"transport": on_foot}), cell):
        problem = Problem.from_factory(factory)
        plan = dispatch(problem, "edd")
        verify(problem, plan)
        run = simulate(factory, plan.schedule, disturbances=False)
        assert run.how == "finished" and run.engine == "simpy"
        planned, done = rows(plan.schedule), rows(run.schedule)
        if factory is cell:
            assert all(done[key][1] >= start for key, (_, start, _) in planned.items())
            assert done != planned
        else:
            assert done == planned
        assert simulate(factory, plan.schedule, seed=1).how == "finished"


@pytest.mark.parametrize("seed", range(40))
def test_no_delay_locks_up_a_plan(seed):
    "Before parts kept the places that the plan has promised to others, two or three of a hundred runs were."
    factory = plant(seed, rich=False)
    problem = Problem.from_factory(factory)
    plan = dispatch(problem, policies(problem)[seed % 4]).schedule
    for luck in range(3):
        assert simulate(factory, plan, seed=luck).how == "finished"


@pytest.mark.parametrize("seed", [7, 8, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19])
def test_any_moment_is_read_so_well_that_the_rest_of_the_plan_is_met(seed):
    "What is under way on which server, what waits for a kanban, what is open for how long."
    factory = plant(seed)
    problem = Problem.from_factory(factory)
    plan = dispatch(problem, policies(problem)[seed % 4]).schedule
    for share in (0.2, 0.45, 0.7):
        sim = Simulation(factory, plan, disturbances=False)
        sim.run_until(round(plan.makespan * share))
        here = Problem.from_factory(factory, sim.state(), sim.now)
        rest = right_shifted(here, plan)
        assert not violations(here, rest)
        sim.set_schedule(rest.schedule, "again")
        sim.run_until(1e9)
        assert sim.how == "finished"
        done = rows(executed_schedule(sim.events))
        assert all(done[key][1] <= start + 1e-6 for key, (_, start, _) in rows(rest.schedule).items())


@pytest.mark.parametrize("seed", range(12))
def test_both_engines_carry_out_a_plan_in_the_same_way(seed):
    factory = plant(seed, rich=False)
    problem = Problem.from_factory(factory)
    plan = dispatch(problem, policies(problem)[seed % 4]).schedule
    for luck in range(2):
        one, other = (simulate(factory, plan, seed=luck, engine=engine) for engine in ("simpy", "fast"))
        assert one.trace.hash == other.trace.hash
