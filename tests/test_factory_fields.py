"""Every field of a factory survives being written and read, and what cannot be is refused by one line that names it."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from dtwb.core.distributions import Distribution, describe, frozen, quantile, scaled, variance
from dtwb.core.errors import FactoryError
from dtwb.core.events import MachineStatus
from dtwb.core.factory import Factory, energy_price, open_windows, parse_factory, to_yaml

amounts = st.floats(0.01, 1e5)
shares = st.floats(0, 1)


@st.composite
def distributions(draw) -> dict | float:
    kind = draw(st.sampled_from(["number", *Distribution.model_fields["distribution"].annotation.__args__]))
    mean = draw(amounts)
    match kind:
        case "number":
            return mean
        case "gamma" | "lognormal":
            return {"distribution": kind, "mean": mean, "cv": draw(st.just(0.0) | st.floats(0.001, 3))}
        case "uniform":
            return {"distribution": kind, "mean": mean, "cv": draw(st.just(0.0) | st.floats(0.001, 0.57))}
        case "weibull":
            return {"distribution": kind, "mean": mean, "shape": draw(st.floats(0.3, 5))}
        case "triangular":
            low, mode, high = sorted(draw(st.lists(st.integers(1, 9999), min_size=3, max_size=3, unique=True)))
            return {"distribution": kind, "low": low, "mode": mode, "high": high}
        case "empirical":
            return {"distribution": kind, "values": draw(st.lists(amounts, min_size=1, max_size=4))}
        case "scipy":
            args = {"loc": draw(st.floats(0, 10)), "scale": mean}
            name, shapes = draw(
                st.sampled_from([("expon", {}), ("weibull_min", {"c": 1.5}), ("truncnorm", {"a": 0.0, "b": 2.0})])
            )
            return {"distribution": kind, "name": name, "args": shapes | args}
    return {"distribution": kind, "mean": mean}


def maybe(strategy):
    return st.none() | strategy


def record(**fields):
    "A mapping without the fields that are None."
    return st.fixed_dictionaries(fields).map(lambda data: {k: v for k, v in data.items() if v is not None})


@st.composite
def machines(draw, number: int) -> dict:
    capacity, batch = draw(st.sampled_from([(1, 1), (3, 1), (1, 4)]))
    several = capacity > 1
    mode = {"mtbf": distributions(), "mttr": distributions(), "crew": maybe(st.just("mechanics"))}
    clock = maybe(st.sampled_from(["operating", "calendar"]))
    wears = draw(st.booleans())
    return draw(
        record(
            id=st.just(f"machine_{number}"),
            position=st.lists(st.floats(-50, 50), min_size=2, max_size=3),
            calendar=maybe(st.just("shift")),
            closing=st.sampled_from(["overrun", "pause"]),
            buffer=maybe(st.sampled_from(["small", "none"])),
            kanban=maybe(st.integers(4, 9)),
            capacity=st.just(capacity),
            batch_capacity=st.just(batch),
            setup=st.none() if several or batch > 1 else maybe(st.just({"default": 9, "times": {"x": {"y": 3}}})),
            failure=maybe(record(**mode, clock=clock)),
            failures=st.tuples(
                record(**mode, clock=clock, cause=st.just("spindle")), record(**mode, cause=st.just("b"))
            ),
            degradation=st.just({"life": 900, "defects": {"crack": 2, "burr": 1}}) if wears else st.none(),
            maintenance=maybe(
                record(
                    duration=distributions(),
                    every=maybe(amounts),
                    interval=maybe(amounts),
                    at_wear=maybe(amounts) if wears else st.none(),
                    crew=maybe(st.just("mechanics")),
                )
            ),
            camera=st.just({"width": 40}),
            sensors=st.lists(
                record(id=st.sampled_from(["a", "b"]), new=amounts, worn=amounts, noise=amounts),
                max_size=2,
                unique_by=lambda sensor: sensor["id"],
            ),
            power=st.dictionaries(st.sampled_from([status.value for status in MachineStatus]), amounts, max_size=3),
            cost_rate=amounts,
        )
    )


@st.composite
def products(draw, id: str, number: int) -> dict:
    names = [f"step_{i}" for i in range(draw(st.integers(1, 3)))]
    drawn = draw(st.booleans())
    steps = [
        draw(
            record(
                id=st.just(name),
                modes=st.lists(
                    record(
                        machine=st.sampled_from([f"machine_{i}" for i in range(number)]),
                        duration=distributions(),
                    ),
                    min_size=1,
                    max_size=2,
                    unique_by=lambda mode: mode["machine"],
                ),
                family=maybe(st.sampled_from(["x", "y"])),
                materials=st.dictionaries(st.just("steel"), amounts),
                produces=st.dictionaries(st.just("swarf"), amounts),
                needs=st.dictionaries(st.sampled_from(["weld", "check"]), st.just(1)),
                max_wait=maybe(st.floats(0, 1e4)),
                inspection=maybe(
                    record(
                        rework=st.just({}) if drawn else st.dictionaries(st.just("crack"), st.just(names[0])),
                        missed=shares,
                        false_alarm=shares,
                    )
                ),
            )
        )
        for name in names
    ]
    product = {"id": id, "operations": steps}
    if drawn:  # on, back, or out
        rows = {name: {names[0]: 0.25, "exit": 0.75} for name in names}
        product["routing"] = {"entry": {name: 1 / len(names) for name in names}} | rows
    return product


@st.composite
def factories(draw) -> dict:
    "What a YAML file with any of a factory's fields holds."
    number = draw(st.integers(1, 3))
    conwip = draw(st.booleans())
    return {
        "name": "any",
        "calendars": [{"id": "shift", "open": [[0, 28800], [30000, 50000]], "closed": [[86400, 90000]]}],
        "buffers": [{"id": "small", "capacity": draw(st.integers(1, 9))}, {"id": "none", "capacity": 0}],
        "materials": [
            draw(
                record(
                    id=st.just(id),
                    stock=amounts,
                    cost=amounts,
                    reorder=maybe(record(point=st.floats(0, 50), quantity=amounts, lead_time=distributions())),
                )
            )
            for id in ("steel", "swarf")
        ],
        "machines": [draw(machines(i)) for i in range(number)],
        "crews": [{"id": "mechanics", "size": draw(st.integers(1, 3)), "calendar": "shift"}],
        "operators": [{"id": "anna", "skills": ["weld"]}, {"id": "ben", "skills": ["weld", "check"]}],
        "transport": draw(
            record(
                speed=amounts,
                times=st.dictionaries(st.just("entry"), st.just({"machine_0": 4.0})),
                vehicles=maybe(
                    record(
                        size=st.integers(1, 5),
                        speed=amounts,
                        loading=amounts,
                        unloading=amounts,
                        home=st.just([1, 2]),
                        battery=maybe(
                            record(range=st.just(1e6), charge=amounts, reserve=st.floats(0, 0.9), chargers=st.just(2))
                        ),
                    )
                ),
                conveyors=st.lists(
                    record(
                        **{"from": st.just("entry"), "to": st.just("machine_0")},
                        time=amounts,
                        capacity=maybe(st.integers(1, 9)),
                        headway=maybe(amounts),
                    ),
                    max_size=1,
                ),
            )
        ),
        "products": [draw(products(id, number)) for id in ("one", "two")],
        "orders": [{"id": "o1", "product": "one", "quantity": 3, "due": 900.0}],
        "sources": [
            draw(
                record(
                    id=st.just("calls"),
                    products=st.just({"one": 2, "two": 1}),
                    interarrival=distributions(),
                    first=maybe(distributions()),
                    due=maybe(distributions()),
                    weight=amounts,
                    limit=maybe(st.integers(1, 99)),
                )
            )
        ],
        "release": {"policy": "conwip", "wip": 4} if conwip else {},
        "tariff": draw(st.sampled_from([[], [[0, 0.2]], [[3600, 0.3], [7200, 0.1]]])),
        "costs": draw(st.dictionaries(st.sampled_from(["energy", "wip", "scrap", "repair"]), amounts)),
    }


@settings(max_examples=30, deadline=None)
@given(factories())
def test_it_is_read_as_it_was_written(data):
    factory = parse_factory(data)
    assert parse_factory(yaml.safe_load(to_yaml(factory))) == factory
    assert parse_factory(factory.model_dump(mode="json")) == factory  # with all that is as usual
    assert parse_factory(factory.model_dump()) == factory


@settings(max_examples=60, deadline=None)
@given(distributions(), st.floats(0.2, 5))
def test_draws_have_the_mean_and_variance_that_are_said(data, factor):
    d = Distribution.model_validate(data)
    u = np.linspace(0, 1, 501)[1:-1]
    x = quantile(d, u)
    assert (np.diff(x) >= 0).all() and x.min() > 0
    assert np.allclose(quantile(scaled(d, factor), u), np.maximum(factor * x, 1e-6), rtol=1e-6, atol=2e-5)
    if (known := frozen(d)) is not None:
        assert np.isclose(known.mean(), d.mean, rtol=1e-6)
        assert np.isclose(known.var(), variance(d), rtol=1e-6)
        assert np.allclose(known.cdf(x)[x > 1.001e-6], u[x > 1.001e-6], atol=1e-6)
    else:
        values = np.array(d.values or [d.mean])
        assert np.isclose(values.mean(), d.mean) and np.isclose(values.var(), variance(d))
    assert str(d.name or f"{d.mean:g}") in describe(d) or d.distribution == "triangular"


@pytest.mark.parametrize("name", ["assembly_cell", "flow_line", "tile_plant"])
def test_the_factories_that_come_along(name, tmp_path):
    factory = Factory.load(ROOT / f"data/factories/{name}.yaml")
    factory.save(tmp_path / "copy.yaml")
    assert Factory.load(tmp_path / "copy.yaml") == factory
    assert "<svg" in factory._repr_html_()


def test_the_flow_line_is_the_line_of_the_benchmarks():
    line = Factory.load(ROOT / "data/factories/flow_line.yaml")
    assert len(line.machines) == len(line.route("part")) == 10
    assert {buffer.capacity for buffer in line.buffers} == {10} and len(line.buffers) == 9
    assert 1 / line.sources[0].interarrival.mean == 0.5
    for machine, operation in zip(line.machines, line.route("part")):
        assert [mode.machine for mode in operation.modes] == [machine.id]
        assert (operation.modes[0].duration.distribution, operation.modes[0].duration.mean) == ("exponential", 1)
        (failure,) = machine.failure_modes
        assert (failure.mtbf.mean, failure.mttr.mean, failure.clock) == (100, 10, "operating")
    places = ["entry", *(machine.id for machine in line.machines), "exit"]
    assert not any(line.travel_time(a, b) for a, b in pairwise(places))


def test_the_assembly_cell_means_what_it_says():
    cell = Factory.load(ROOT / "data/factories/assembly_cell.yaml")
    wound = sum(job.product == "coil_set" for job in cell.jobs()) * 4 + cell.material("coil").stock
    assert wound >= sum(job.product == "valve" for job in cell.jobs())  # every valve gets a coil
    assert cell.crew("mechanics").size == 1 and cell.transport.vehicles.size == 2
    assert {mode.cause for mode in cell.machine("press_1").failure_modes} == {"hydraulics", "control"}
    assert cell.travel_time("feeder_1", "press_1") == 20
    assert cell.travel_time("press_1", "assembly_1") == pytest.approx(10 + 8 / 1.2 + 10)
    assert [energy_price(cell, hour * 3600) for hour in (0, 2, 11, 23, 24)] == [0.31, 0.24, 0.36, 0.19, 0.31]
    assert open_windows(cell.calendar("press_1"), 0, 86400) == [(0, 57600)]


GOOD = {
    "name": "good",
    "calendars": [{"id": "shift", "open": [[0, 28800]]}],
    "buffers": [{"id": "before", "capacity": 2}],
    "materials": [{"id": "steel", "stock": 9, "reorder": {"point": 3, "quantity": 6, "lead_time": 60}}],
    "machines": [
        {
            "id": "saw",
            "calendar": "shift",
            "failure": {"mtbf": 900, "mttr": 60, "crew": "mechanics"},
            "maintenance": {"duration": 60, "interval": 3600},
            "sensors": [{"id": "vibration", "unit": "mm/s"}],
            "power": {"RUNNING": 4},
        },
        {"id": "oven", "buffer": "before", "batch_capacity": 4},
        {"id": "bench", "capacity": 3, "camera": {}},
    ],
    "crews": [{"id": "mechanics", "size": 1}],
    "operators": [{"id": "anna", "skills": ["weld"]}, {"id": "ben", "skills": ["weld", "check"]}],
    "transport": {
        "vehicles": {"size": 2, "battery": {"range": 900, "charge": 600}},
        "conveyors": [{"from": "saw", "to": "oven", "time": 5}],
    },
    "products": [
        {
            "id": "frame",
            "operations": [
                {"id": "cut", "modes": [{"machine": "saw", "duration": 60}], "materials": {"steel": 2}},
                {"id": "bake", "modes": [{"machine": "oven", "duration": 600}]},
                {"id": "join", "modes": [{"machine": "bench", "duration": 90}], "needs": {"weld": 2}},
                {"id": "look", "modes": [{"machine": "bench", "duration": 9}], "inspection": {"missed": 0.1}},
            ],
        },
        {
            "id": "odd",
            "operations": [
                {"id": "a", "modes": [{"machine": "bench", "duration": 60}]},
                {"id": "b", "modes": [{"machine": "bench", "duration": 60}]},
            ],
            "routing": {"entry": {"a": 1}, "a": {"b": 0.5, "exit": 0.5}, "b": {"a": 1}},
        },
    ],
    "orders": [{"id": "o1", "product": "frame", "due": 9000}],
    "sources": [{"id": "calls", "products": {"odd": 1}, "interarrival": 60}],
    "tariff": [[0, 0.2], [7200, 0.3]],
}
SAW, OVEN, BENCH = 0, 1, 2


def at(*path):
    "Sets what lies at `path` of a factory to a value."

    def spoil(data, value):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return spoil


MTBF, DURATION = at("machines", SAW, "failure", "mtbf"), at("products", 0, "operations", 0, "modes", 0, "duration")
ROUTING, CLOCKS = at("products", 1, "routing"), at("machines", SAW, "failures")
VEHICLES, NEEDS = at("transport", "vehicles"), at("products", 0, "operations", 2, "needs")
BAD = [
    (MTBF, 0, "machines.saw.failure.mtbf.mean", "greater than 0"),
    (MTBF, -900, "machines.saw.failure.mtbf.mean", "greater than 0"),
    (MTBF, float("nan"), "machines.saw.failure.mtbf.mean", "finite number"),
    (MTBF, float("inf"), "machines.saw.failure.mtbf.mean", "finite number"),
    (at("machines", SAW, "failure", "mttr"), 0, "machines.saw.failure.mttr.mean", "greater than 0"),
    (CLOCKS, [{"mtbf": 0, "mttr": 1, "cause": "x"}], "machines.saw.failures.0.mtbf.mean", "greater than 0"),
    (CLOCKS, [{"mtbf": 9, "mttr": 1}], "machines.saw.failures", "two modes of failure have the cause 'breakdown'"),
    (at("machines", SAW, "failure", "crew"), "nobody", "machines.saw.failures.breakdown.crew", "there is no crew"),
    (at("machines", SAW, "maintenance", "crew"), "x", "machines.saw.maintenance.crew", "there is no crew 'x'"),
    (at("machines", SAW, "maintenance", "interval"), 0, "machines.saw.maintenance.interval", "greater than 0"),
    (at("machines", SAW, "maintenance", "at_wear"), 0.9, "machines.saw.maintenance.at_wear", "never wears"),
    (DURATION, 0, "frame.operations.cut.modes.0.duration.mean", "greater than 0"),
    (DURATION, {"distribution": "normal", "mean": 60, "cv": 0.1}, "modes.0.duration", "can be negative"),
    (DURATION, {"distribution": "uniform", "mean": 60, "cv": 0.9}, "modes.0.duration", "can be negative"),
    (DURATION, {"distribution": "scipy", "name": "norm", "args": {"loc": 60}}, "duration", "norm can be negative"),
    (DURATION, {"distribution": "scipy", "name": "t", "args": {"df": 3}}, "duration", "t can be negative"),
    (DURATION, {"distribution": "scipy", "name": "nrom"}, "duration", "no continuous distribution 'nrom'"),
    (DURATION, {"distribution": "scipy", "name": "poisson", "args": {"mu": 3}}, "duration", "no continuous"),
    (DURATION, {"distribution": "scipy", "name": "lognorm", "args": {"s": -1}}, "duration", "not defined"),
    (DURATION, {"distribution": "scipy", "name": "expon", "args": {"scale": 0}}, "duration", "not defined"),
    (
        DURATION,
        {"distribution": "scipy", "name": "expon", "args": {"k": 1}},
        "duration",
        "args of expon are loc, scale",
    ),
    (DURATION, {"distribution": "scipy", "name": "pareto", "args": {"b": 1}}, "duration", "no finite mean"),
    (DURATION, {"distribution": "scipy"}, "duration", "no continuous distribution"),
    (DURATION, {"distribution": "triangular", "low": 5, "mode": 4, "high": 6}, "duration", "low <= mode <= high"),
    (DURATION, {"distribution": "triangular", "low": 5, "mode": 5}, "duration", "needs low, mode and high"),
    (DURATION, {"distribution": "empirical", "values": [3, -1]}, "duration", "positive numbers"),
    (DURATION, {"distribution": "empirical", "values": []}, "duration", "go together"),
    (DURATION, {"distribution": "empirical", "values": [3, "x"]}, "duration.values", "valid number"),
    (DURATION, {"mean": 60, "cv": 0.2}, "duration", "'cv' is no parameter of 'constant'"),
    (DURATION, {"distribution": "empirical", "values": [3, 5], "mean": 9}, "duration", "follows from the rest"),
    (ROUTING, {"entry": {"a": 1}, "a": {"b": 1}, "b": {"a": 1}}, "odd.routing.entry", "a route without end"),
    (ROUTING, {"entry": {"a": 0.5, "b": 0.5}, "a": {"exit": 1}, "b": {"b": 1}}, "odd.routing.b", "route without end"),
    (ROUTING, {"entry": {"a": 1}, "a": {"b": 0.5, "exit": 0.4}, "b": {"a": 1}}, "odd.routing.a", "sum to 0.9"),
    (ROUTING, {"entry": {"a": 1}, "a": {"c": 0.5, "exit": 0.5}}, "odd.routing.a", "there is no operation 'c'"),
    (ROUTING, {"entry": {"a": 1}, "a": {"b": 1}}, "odd.routing.b", "not said where a job goes"),
    (ROUTING, {"a": {"exit": 1}}, "odd.routing.entry", "not said where a job goes"),
    (ROUTING, {"entry": {"exit": 1}}, "odd.routing.entry", "one operation at least"),
    (ROUTING, {"entry": {"a": 1}, "a": {"exit": 1.5, "b": -0.5}}, "odd.routing.a", "less than or equal to 1"),
    (at("products", 1, "operations", 1, "after"), ["a"], "odd.operations.b.after", "has no meaning"),
    (at("machines", BENCH, "batch_capacity"), 2, "machines.bench.capacity", "neither set-ups nor batches"),
    (at("machines", BENCH, "setup"), {"default": 9}, "machines.bench.capacity", "neither set-ups nor batches"),
    (at("machines", BENCH, "kanban"), 2, "machines.bench.kanban", "never fill a machine that takes 3"),
    (at("machines", OVEN, "kanban"), 3, "machines.oven.kanban", "never fill a machine that takes 4"),
    (at("machines", OVEN, "kanban"), 0, "machines.oven.kanban", "greater than or equal to 1"),
    (at("machines", OVEN, "capacity"), 0, "machines.oven.capacity", "greater than or equal to 1"),
    (at("machines", SAW, "closing"), "stop", "machines.saw.closing", "'overrun', 'fit' or 'pause'"),
    (at("machines", SAW, "power"), {"RUNING": 3}, "machines.saw.power.RUNING", "'RUNNING'"),
    (at("machines", SAW, "power"), {"RUNNING": -3}, "machines.saw.power.RUNNING", "greater than or equal to 0"),
    (at("machines", SAW, "id"), "exit", "machines.exit", "name of a place"),
    (at("machines", BENCH, "sensors"), [{"id": "vibration", "unit": "g"}], "bench.sensors.vibration.unit", "one unit"),
    (at("machines", BENCH, "sensors"), [{"id": "a"}, {"id": "a"}], "machines.bench.sensors", "'a' is there twice"),
    (VEHICLES, {"size": 0}, "transport.vehicles.size", "greater than or equal to 1"),
    (VEHICLES, {"size": 1, "speed": 0}, "transport.vehicles.speed", "greater than 0"),
    (VEHICLES, {"size": 1, "battery": {"range": 0, "charge": 9}}, "vehicles.battery.range", "greater than 0"),
    (VEHICLES, {"size": 1, "battery": {"range": 9, "charge": 9, "reserve": 1}}, "battery.reserve", "less than 1"),
    (
        at("transport", "vehicles", "home"),
        [3000, 0],
        "vehicles.battery.range",
        "900 s of driving are too few from home",
    ),
    (at("transport", "conveyors", 0, "to"), "ovn", "transport.conveyors.saw-ovn.to", "there is no machine 'ovn'"),
    (at("transport", "conveyors", 0, "time"), 0, "transport.conveyors.0.time", "greater than 0"),
    (at("transport", "conveyors", 0, "capacity"), 0, "transport.conveyors.0.capacity", "greater than or equal to 1"),
    (NEEDS, {"solder": 1}, "operations.join.needs", "no operator with the skill 'solder'; known: check, weld"),
    (NEEDS, {"weld": 3}, "operations.join.needs", "not enough operators who can do 'weld'"),
    (NEEDS, {"weld": 2, "check": 1}, "operations.join.needs", "not enough operators who can do 'check'"),
    (NEEDS, {"weld": 0}, "operations.join.needs.weld", "greater than or equal to 1"),
    (at("operators", 0, "skills"), [], "operators.anna.skills", "at least 1 item"),
    (at("operators", 0, "calendar"), "night", "operators.anna.calendar", "there is no calendar 'night'"),
    (at("operators", 0, "id"), "check", "operators.check", "name of a skill"),
    (at("crews", 0, "size"), 0, "crews.mechanics.size", "greater than or equal to 1"),
    (at("materials", 0, "reorder", "quantity"), 0, "materials.steel.reorder.quantity", "greater than 0"),
    (at("materials", 0, "reorder", "lead_time"), -3, "materials.steel.reorder.lead_time.mean", "greater than 0"),
    (at("products", 0, "operations", 1, "produces"), {"gold": 1}, "bake.produces", "there is no material 'gold'"),
    (at("products", 0, "operations", 1, "max_wait"), -1, "bake.max_wait", "greater than or equal to 0"),
    (
        at("products", 0, "operations", 3, "inspection", "missed"),
        2,
        "look.inspection.missed",
        "less than or equal to 1",
    ),
    (at("sources", 0, "products"), {"odder": 1}, "sources.calls.products", "there is no product 'odder'"),
    (at("sources", 0, "products"), {}, "sources.calls.products", "at least 1 item"),
    (at("sources", 0, "interarrival"), 0, "sources.calls.interarrival.mean", "greater than 0"),
    (at("sources", 0, "limit"), 0, "sources.calls.limit", "greater than or equal to 1"),
    (at("orders", 0, "id"), "calls-17", "orders.calls-17", "belong to what the source 'calls' makes"),
    (at("orders", 0, "id"), "calls", "orders.calls", "belong to what the source 'calls' makes"),
    (at("release"), {"policy": "conwip"}, "release", "'conwip' and 'wip' go together"),
    (at("release"), {"wip": 3}, "release", "'conwip' and 'wip' go together"),
    (at("release"), {"policy": "conwip", "wip": 0}, "release.wip", "greater than or equal to 1"),
    (at("tariff"), [[0, 0.2], [90000, 0.3]], "tariff", "below 86400 s of a day"),
    (at("tariff"), [[7200, 0.2], [0, 0.3]], "tariff", "its times go up"),
    (at("costs"), {"wip": -1}, "costs.wip", "greater than or equal to 0"),
    (at("costs"), {"coffee": 1}, "costs.coffee", "no such field"),
]


def test_the_good_one_is_good():
    parse_factory(copy.deepcopy(GOOD))


@pytest.mark.parametrize(
    ("spoil", "value", "field", "words"), BAD, ids=[f"{i}-{field}" for i, (_, _, field, _) in enumerate(BAD)]
)
def test_what_cannot_be_is_refused_by_one_line_that_names_it(spoil, value, field, words):
    data = copy.deepcopy(GOOD)
    spoil(data, value)
    with pytest.raises(FactoryError) as refused:
        parse_factory(data, "plant.yaml")
    line = str(refused.value)
    assert field in line and words in line and line.startswith("plant.yaml: "), line
    assert "\n" not in line


def test_two_sources_do_not_make_the_same_ids():
    data = copy.deepcopy(GOOD)
    data["sources"] += [{"id": "calls-2", "products": {"odd": 1}, "interarrival": 60}]
    with pytest.raises(FactoryError, match=r"sources\.calls-2: the ids calls and calls-\.\.\. belong"):
        parse_factory(data)


def test_work_that_no_shift_is_long_enough_for():
    data = copy.deepcopy(GOOD)
    data["machines"][SAW]["closing"] = "fit"
    parse_factory(data)
    DURATION(data, 30000)
    with pytest.raises(FactoryError, match=r"cut\.modes\.0\.duration: 30000 s never fit into the 28800 s"):
        parse_factory(data)
