"""The fast engine does what the reference engine does, event by event; a saved run goes on as if it had not been."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_twin import factories

from dtwb.core.factory import Factory
from dtwb.twin.fast import FastSimulation
from dtwb.twin.fork import Snapshot
from dtwb.twin.simulation import RULES, Simulation, simulate

PLANT = Factory.load("data/factories/tile_plant.yaml")
some = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
LONG = 20_000.0  # s, more than any of these plants needs


@some
@given(factories(stream=True), st.sampled_from(sorted(RULES)), st.integers(0, 99), st.booleans(), st.booleans())
def test_the_same_story_under_every_rule(factory, rule, seed, antithetic, record_sensors):
    same = {"rule": rule, "seed": seed, "until": LONG, "antithetic": antithetic, "record_sensors": record_sensors}
    assert FastSimulation(factory, **same).run().hash == Simulation(factory, **same).run().hash


@some
@given(factories(), st.sampled_from(sorted(RULES)), st.integers(0, 99))
def test_the_same_story_under_a_plan(factory, rule, seed):
    first = simulate(factory, rule=rule, disturbances=False, engine="fast", until=LONG)
    if first.how == "finished":
        runs = [simulate(factory, first.schedule, seed=seed, engine=engine) for engine in ("simpy", "fast")]
        assert runs[0].hash == runs[1].hash


def test_the_same_reason_where_a_plan_ends_in_a_deadlock():
    """Parts that go back share one place with those that come: the fast engine, too, says which waits for which."""

    def operation(name, machine):
        mode = {"machine": machine, "duration": 3}
        return {"id": name, "modes": [mode], "inspection": {"rework": {"d0": "o0"}, "false_alarm": 0.4}}

    machines = [{"id": "m0", "buffer": "b0", "camera": {}}, {"id": "m1", "buffer": "b0", "camera": {}}]
    machines[0]["degradation"] = {"life": 100, "defect_rate": 0.1, "defects": {"d0": 1}}
    route = [operation("o0", "m0"), operation("o1", "m1")]
    orders = [{"id": f"j{i}", "product": "p0"} for i in range(4)]
    plant = {"name": "jam", "buffers": [{"id": "b0", "capacity": 1}], "machines": machines, "orders": orders}
    factory = Factory.model_validate(plant | {"products": [{"id": "p0", "operations": route}]})
    plan = simulate(factory, disturbances=False, engine="fast").schedule
    pairs = [[simulate(factory, plan, seed=s, engine=e).how for e in ("simpy", "fast")] for s in range(30)]
    assert all(how == fast for how, fast in pairs)
    assert any("waits for m0, which holds" in how for how, _ in pairs)


def interfere(sim, factory, moments, what):
    """Stop at some moments, and do something from outside at each."""
    for moment, act in zip(sorted(moments), what):
        sim.run_until(moment)
        if sim.how is not None:
            break
        machine = factory.machines[act % len(factory.machines)]
        m = sim.state().machines[machine.id]
        if act % 4 == 0:
            sim.set_rule(sorted(RULES)[act % len(RULES)])
        elif act % 4 == 1 and machine.maintenance:
            sim.request_maintenance(machine.id, "asked for")
        elif m.down_since is None and (machine.failure_modes or act % 2):
            sim.break_down(machine.id, None if machine.failure_modes else 7.5)
    return sim.run()


@some
@given(
    factories(stream=True),
    st.integers(0, 99),
    st.lists(st.floats(0, 300), max_size=4),
    st.lists(st.integers(0, 99), max_size=4),
)
def test_the_same_story_when_somebody_interferes(factory, seed, moments, what):
    runs = [
        interfere(kind(factory, seed=seed, until=LONG), factory, moments, what) for kind in (Simulation, FastSimulation)
    ]
    assert runs[0].hash == runs[1].hash


@some
@given(factories(stream=True), st.sampled_from(sorted(RULES)), st.integers(0, 99), st.floats(0, 400), st.booleans())
def test_a_run_goes_on_exactly_from_any_moment(factory, rule, seed, moment, on_disk):
    sim = FastSimulation(factory, rule=rule, seed=seed, until=LONG)
    sim.run_until(moment)
    saved = sim.snapshot()
    if on_disk:
        with tempfile.TemporaryDirectory() as folder:
            saved.save(Path(folder) / "moment.npz")
            saved = Snapshot.load(Path(folder) / "moment.npz", factory)
    resumed = FastSimulation.resume(saved)
    assert resumed.now == sim.now and resumed.state() == sim.state()
    assert resumed.run().hash == sim.run().hash == FastSimulation(factory, rule=rule, seed=seed, until=LONG).run().hash


def test_steps_are_the_same_instants():
    kinds = [Simulation(PLANT, rule="edd", seed=4), FastSimulation(PLANT, rule="edd", seed=4)]
    for _ in range(300):
        assert [sim.step() for sim in kinds] == [True, True]
        assert kinds[0].now == kinds[1].now
    assert kinds[0].state() == kinds[1].state()


def test_the_same_without_numba():
    """The kernels are Python: slowly, for a debugger, they tell the same story."""
    plan = simulate(PLANT, rule="edd", disturbances=False).schedule
    code = (
        "from dtwb.core.factory import Factory; from dtwb.twin.simulation import simulate;"
        "plant = Factory.load('data/factories/tile_plant.yaml');"
        "plan = simulate(plant, rule='edd', disturbances=False, engine='fast').schedule;"
        "print(*(simulate(plant, *more, seed=7, engine='fast').hash for more in ((), (plan,))))"
    )
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [simulate(PLANT, seed=7).hash, simulate(PLANT, plan, seed=7).hash]
