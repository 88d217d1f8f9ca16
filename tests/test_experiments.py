"""Experiments: scenarios on any path, intervals that hold together, procedures against independent ones, stopping."""

import itertools
import math
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from dtwb.core.errors import FactoryError, SimulationError
from dtwb.core.events import MachineStatusChanged
from dtwb.core.factory import Factory, parse_factory
from dtwb.twin.bottleneck import active_periods, bottleneck_shares
from dtwb.twin.changes import Change, Scenario, find_places, load_scenarios, save_scenarios, value_at
from dtwb.twin.replications import (
    antithetic_gain,
    antithetic_interval,
    common_luck_gain,
    enough_replications,
    mean_interval,
    mser5,
)
from dtwb.twin.scenarios import compare, comparison_sentence, holm, paired_differences, replicate, verdicts
from dtwb.twin.selection import select_best, select_by_kn
from dtwb.twin.simulation import simulate

LOADED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
PLANT = Factory.load("data/factories/tile_plant.yaml")


def leaves(data, path=()):
    "Every number in a factory's file, by its path with ids."
    if isinstance(data, dict):
        for key, value in data.items():
            yield from leaves(value, (*path, str(key)))
    elif isinstance(data, list):
        for i, part in enumerate(data):
            name = next((part[n] for n in ("id", "machine", "cause") if n in part), i) if isinstance(part, dict) else i
            yield from leaves(part, (*path, str(name)))
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield ".".join(path), data


LEAVES = list(leaves(PLANT.model_dump(mode="json", exclude_defaults=True)))


def queue(rate=0.8):
    "M/M/1, 60 customers."
    operation = {"id": "o", "modes": [{"machine": "m", "duration": {"distribution": "exponential", "mean": 1.0}}]}
    source = {"id": "s", "products": {"p": 1}, "limit": 60}
    parts = {
        "machines": [{"id": "m"}],
        "products": [{"id": "p", "operations": [operation]}],
        "sources": [source | {"interarrival": {"distribution": "exponential", "mean": 1 / rate}}],
    }
    return parse_factory({"name": "queue"} | parts)


# --- scenarios


@given(st.sampled_from(LEAVES))
@settings(LOADED, max_examples=60)
def test_every_number_of_a_factory_has_a_path(leaf):
    path, value = leaf
    assert value_at(PLANT, path) == value
    assert Scenario("same", {path: value}).apply(PLANT) == PLANT
    if value > 0:
        assert Scenario("same", [{"scale": path, "by": 1.0}]).apply(PLANT) == PLANT


CHANGES = [
    {"set": "machines.press_1.failure.mttr.mean", "to": 1200},
    {"scale": "machines.*.failure.mttr", "by": 0.5},
    {"add": "buffers.coat_in.capacity", "by": 2},
    {"append": "crews", "parts": [{"id": "fitters", "size": 2}]},
    {"remove": "machines.press_1.failure"},
    {"add_machine": {"id": "coater_2", "like": "coater_1"}},
    {"remove_machine": "press_2"},
    {"repair": "kiln_1", "by": 0.5},
    {"calendar": {"id": "always", "open": [[0, 86400]]}, "machines": ["press_1"]},
    {"demand": 1.5},
    {"rule": "spt"},
]


def test_every_kind_of_change_survives_a_file(tmp_path):
    assert {next(iter(change)) for change in CHANGES} == set(Change.kinds)
    all_of_them = [Scenario(f"s{i}", [change]) for i, change in enumerate(CHANGES)]
    save_scenarios(all_of_them, tmp_path / "ideas.yaml")
    again = load_scenarios(tmp_path / "ideas.yaml")
    for scenario in all_of_them:
        assert again[scenario.name] == scenario == Scenario.model_validate_json(scenario.model_dump_json())
        assert again[scenario.name].apply(PLANT) == scenario.apply(PLANT)
    sum_of_all = sum(all_of_them[1:-1], all_of_them[0])
    one_by_one = PLANT
    for scenario in all_of_them[:-1]:
        one_by_one = scenario.apply(one_by_one)
    assert sum_of_all.apply(PLANT) == one_by_one


@pytest.mark.parametrize(
    "change, words",
    [
        ({"set": "machines.pres_1.failure", "to": None}, "there is no machine 'pres_1' (known: press_1, press_2"),
        ({"scale": "buffers.coat_in.kapacity", "by": 2}, "there is no 'kapacity' in buffers.coat_in (known: capacity"),
        ({"scale": "machines.press_1.calendar", "by": 2}, "'two_shifts', not a number"),
        ({"scale": "orders", "by": 2}, "not a number"),
        ({"scale": "machines.*.failures.*.mttr", "by": 2}, "scenario 'x'"),
        ({"add_machine": {"id": "press_1", "like": "press_2"}}, "'press_1' is there twice"),
        ({"add_machine": {"id": "p9"}}, "is 'like' one that is there"),
        ({"add_machine": {"id": "p9", "like": "press_1", "color": "red"}}, "machines.p9.color: there is no such field"),
        ({"remove_machine": "oven"}, "there is no machine 'oven'"),
        ({"remove": "buffers.coat_in"}, "there is no buffer 'coat_in'"),
        ({"repair": "oven", "by": 2}, "there is no machine 'oven'"),
        ({"calendar": "nights"}, "there is no calendar 'nights' (known: two_shifts)"),
        ({"append": "machines.press_1.kind", "parts": [1]}, "is not a list"),
        ({"append": "orders", "parts": [{"id": "o9", "product": "brick"}]}, "orders.o9.product: there is no product"),
    ],
)
def test_what_is_not_there_is_named(change, words):
    with pytest.raises(FactoryError) as error:
        Scenario("x", [change]).apply(PLANT)
    assert "scenario 'x'" in str(error.value) and words in str(error.value)


@pytest.mark.parametrize(
    "data", ["", "- 3", "name: x\nchanges: [3]", "- {name: x}\n- {name: x}", "name: x\nchanged: []", "{"]
)
def test_wrong_files_are_one_error(tmp_path, data):
    (tmp_path / "ideas.yaml").write_text(data)
    with pytest.raises(FactoryError, match=r"ideas\.yaml"):
        load_scenarios(tmp_path / "ideas.yaml")


def test_a_machine_that_nobody_uses_changes_nobodys_luck():
    more = Scenario("x", [{"add_machine": {"id": "press_9", "like": "press_1"}}]).apply(PLANT)
    data = more.model_dump(mode="json", by_alias=True)
    for product in data["products"]:
        for operation in product["operations"]:
            operation["modes"] = [mode for mode in operation["modes"] if mode["machine"] != "press_9"]
    unused = parse_factory(data)
    a, b = (simulate(factory, rule="edd", seed=4).kpis for factory in (PLANT, unused))
    assert a.makespan == b.makespan and a.tardiness == b.tardiness


# --- comparing


def test_a_scenario_is_the_factory_that_it_makes():
    slower = Scenario("slower", [{"scale": "products.p.operations.o.modes.m.duration", "by": 1.1}])
    one = compare([slower], n=6, factory=queue(), seed=2, executor="serial")
    two = compare({"as it is": queue(), "slower": slower.apply(queue())}, n=6, seed=2, workers=2)
    three = compare({"as it is": queue(), "slower": {"scenario": slower}}, n=6, seed=2, executor="serial")
    assert one.drop_vars("how").equals(two.drop_vars("how")) and one.drop_vars("how").equals(three.drop_vars("how"))
    assert verdicts(one).sel(kpi="lead_time_mean", scenario="slower") == "worse"
    assert "more mean lead time" in comparison_sentence(one, "lead_time_mean", "slower")
    assert common_luck_gain(one).sel(kpi="lead_time_mean", scenario="slower") > 5


def test_intervals_hold_together():
    "Six plants that are all the same: some interval that holds alone excludes zero in a fifth of the experiments."
    rng = np.random.default_rng(1)
    wrong = {"bonferroni": 0, "none": 0}
    for _ in range(600):
        values = rng.normal(size=(7, 10, 1)) + rng.normal(size=(1, 10, 1))
        for correction in wrong:
            found = paired_differences(values, correction=correction)
            wrong[correction] += bool(((found["low"][1] > 0) | (found["high"][1] < 0))[1:].any())
    assert wrong["bonferroni"] < 0.07 * 600 < 0.12 * 600 < wrong["none"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@LOADED
def test_holm(p):
    order = sorted(range(len(p)), key=lambda i: p[i])
    expected, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        expected[i] = worst
    assert np.allclose(holm(np.array(p)), expected)


def test_antithetic_pairs_share_their_seed():
    runs = replicate(queue(0.8), n=160, seed=3, antithetic=True, executor="serial")
    assert (runs.seed[::2].values == runs.seed[1::2].values).all()
    assert runs.antithetic.values.tolist() == [False, True] * 80
    values = runs.lead_time_mean.values
    assert math.isclose(antithetic_interval(values).mean, mean_interval(values).mean)
    assert antithetic_interval(values).n == 80 and antithetic_gain(values) > 1.05
    with pytest.raises(SimulationError, match="come in pairs, not 3"):
        replicate(queue(), n=3, antithetic=True)


def test_stopped_work_keeps_what_was_done():
    stop = threading.Event()

    def progress(done, total):
        assert total == 64
        if done >= 6:
            stop.set()

    result = compare([Scenario("x", [{"demand": 1.1}])], n=64, factory=queue(), progress=progress, stop=stop)
    assert 6 <= result.sizes["replication"] < 64 and "stopped with" in result.attrs["stopped"]
    whole = compare([Scenario("x", [{"demand": 1.1}])], n=64, factory=queue(), executor="serial")
    assert whole.value[:, : result.sizes["replication"]].equals(result.value)


# --- replications


@given(st.lists(st.floats(-100, 100), min_size=20, max_size=120))
@LOADED
def test_mser5_is_the_smallest_error(series):
    means = np.array(series[: len(series) // 5 * 5]).reshape(-1, 5).mean(1)
    brute = [np.var(means[d:]) / (len(means) - d) for d in range(len(means) - 3)]
    assert brute[mser5(series).index // 5] <= min(brute) + 1e-9 * (1 + max(brute))


def one_by_one(values, relative, look_ahead=5, least=3):
    "Hoad, Robinson and Davies (2010), replication by replication."
    good = []
    for n in range(1, len(values) + 1):
        x = values[:n]
        half = stats.t.ppf(0.975, n - 1) * np.std(x, ddof=1) / math.sqrt(n) if n > 1 else math.inf
        good.append(half <= relative * abs(np.mean(x)))
    for n in range(max(2, least), len(values) + 1):
        ahead = look_ahead if n <= 100 else look_ahead * n // 100
        if n + ahead <= len(values) and all(good[n - 1 : n + ahead]):
            return n
    return None


@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.1, 0.2]), st.integers(1, 9))
@settings(LOADED, max_examples=20)
def test_enough_is_enough_however_many_at_once(seed, relative, at_once):
    values = np.random.default_rng(seed).normal(10, 5, 2000)
    options = {"relative": relative, "most": 1000}
    needed, _ = enough_replications(lambda first, n: values[first : first + n], at_once=at_once, **options)
    assert needed == one_by_one(values[: (needed or 1000) + 100], relative)


# --- selection


def kn_one_by_one(x, delta, alpha=0.05, first=10):
    "Kim and Nelson (2001), figure 2."
    k = len(x)
    eta = 0.5 * ((2 * alpha / (k - 1)) ** (-2 / (first - 1)) - 1)
    h2 = 2 * eta * (first - 1)
    s2 = np.array([[np.var(x[i, :first] - x[j, :first], ddof=1) for j in range(k)] for i in range(k)])
    left, r = set(range(k)), first
    while True:
        mean = x[:, :r].mean(1)
        limit = np.maximum(0.0, delta / (2 * r) * (h2 * s2 / delta**2 - r))
        left = {i for i in left if all(mean[i] >= mean[j] - limit[i, j] for j in left - {i})}
        if len(left) == 1:
            return left.pop(), r
        r += 1


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 12), st.floats(0, 0.9))
@settings(LOADED, max_examples=40)
def test_kn_is_kim_and_nelsons(seed, k, at_once, correlation):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(k, 3000)) * math.sqrt(1 - correlation) + rng.normal(size=3000) * math.sqrt(correlation)
    x += np.linspace(0, 1, k)[:, None]
    found = select_by_kn(lambda left, first, n: x[left, first : first + n], k, indifference=0.5, at_once=at_once)
    best, r = kn_one_by_one(x, 0.5)
    assert found.left == [best] and max(found.gone) == r


def test_selection_is_the_same_for_any_number_of_workers_and_can_be_stopped():
    ideas = [Scenario(f"demand {d}", {"demand": d}) for d in (0.9, 1.0, 1.1)]
    options = {"indifference": 0.1, "factory": queue(), "first": 6, "most": 40, "seed": 5}
    found = [select_best(ideas, "lead_time_mean", executor="serial", workers=w, **options) for w in (1, 3)]
    assert {one.attrs["best"] for one in found} == {"demand 0.9"} and found[0].gone.equals(found[1].gone)
    stop = threading.Event()
    options |= {"progress": lambda done, bound: stop.set(), "indifference": 1e-3}
    short = select_best(ideas, "lead_time_mean", executor="serial", stop=stop, **options)
    assert short.attrs["how"] == "stopped" and short.chance.sum().item() == pytest.approx(1)


# --- bottleneck


SPANS = st.lists(st.lists(st.integers(0, 40), min_size=2, max_size=8, unique=True), min_size=1, max_size=4)


@given(SPANS)
@settings(LOADED, max_examples=50)
def test_bottleneck_shares_by_a_clock_that_ticks(spans):
    names = [f"m{i}" for i in range(len(spans))]
    periods = {
        m: list(itertools.batched(sorted(times[: len(times) // 2 * 2]), 2))
        if hasattr(itertools, "batched")
        else list(zip(*[iter(sorted(times[: len(times) // 2 * 2]))] * 2))
        for m, times in zip(names, spans)
    }
    events = [
        MachineStatusChanged(float(t), m, *(("IDLE", "RUNNING") if on else ("RUNNING", "IDLE")))
        for m, pairs in periods.items()
        for pair in pairs
        for t, on in zip(pair, (True, False))
    ]
    found = bottleneck_shares(
        active_periods(sorted(events, key=lambda e: (e.time, e.subject)), names, 40.0), names, 0.0, 40.0
    )
    chosen, now = set(), []
    for tick in range(40):
        active = [(b - a, m, (a, b)) for m, pairs in periods.items() for a, b in pairs if a <= tick < b]
        longest = max((length for length, *_ in active), default=0)
        now.append([(m, span) for length, m, span in active])
        chosen |= {(m, span) for length, m, span in active if length == longest}
    ties = {span[1] - span[0] for m, span in chosen if sum(s[1] - s[0] == span[1] - span[0] for _, s in chosen) > 1}
    if ties:
        return  # which of two equally long ones counts is a matter of order
    sole, shifting = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for there in now:
        of = [m for m, span in there if (m, span) in chosen]
        for m in of:
            (sole if len(of) == 1 else shifting)[m] += 1
    assert np.allclose(found.sole * 40, [sole[m] for m in names])
    assert np.allclose(found.shifting * 40, [shifting[m] for m in names])


def test_a_night_does_not_end_an_active_period():
    turns = [
        (0, "IDLE", "RUNNING"),
        (10, "RUNNING", "OFF"),
        (20, "OFF", "RUNNING"),
        (25, "RUNNING", "SETUP"),
        (30, "SETUP", "IDLE"),
    ]
    periods = active_periods([MachineStatusChanged(float(t), "m", a, b) for t, a, b in turns], ["m"], 40.0)
    assert periods.period.nunique() == 1 and periods.length.tolist() == [20, 20]
    assert periods[["start", "end"]].values.tolist() == [[0, 10], [20, 30]]
    assert bottleneck_shares(periods, ["m"], 0.0, 40.0).sole.tolist() == [0.5]


def test_a_path_through_ids_with_dots():
    dotted = Scenario("x", [{"append": "buffers", "parts": [{"id": "a.b", "capacity": 3}, {"id": "a", "capacity": 4}]}])
    factory = dotted.apply(PLANT)
    assert (value_at(factory, "buffers.a.b.capacity"), value_at(factory, "buffers.a.capacity")) == (3, 4)
    assert find_places(factory, "buffers.a.b") == [("buffers", 6)]
