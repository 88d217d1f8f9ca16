"""Pictures of plans: what is read off a plan, by other means too; what is drawn, in a real browser without network."""

import itertools
from itertools import combinations, pairwise

import holoviews as hv
import numpy as np
import pandas as pd
import pytest
from browser import until
from conftest import ROOT
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import problems

from dtwb.core.errors import ScheduleError
from dtwb.core.factory import Factory
from dtwb.core.schedule import Schedule, ScheduledOperation, difference
from dtwb.scheduling.critical import closed_times, critical_links, critical_path, setup_times
from dtwb.scheduling.gantt import gantt, lanes
from dtwb.scheduling.pictures import (
    changes,
    machine_states,
    plot_difference,
    plot_pareto,
    plot_progress,
    plot_utilisation,
    progress_table,
    save_html,
    utilisation,
    utilisation_over_time,
)
from dtwb.scheduling.problem import Problem, ProblemJob, ProblemMachine, ProblemMode, ProblemOperation, Solution
from dtwb.scheduling.solve import solve


def planned(problem: Problem) -> Solution:
    try:
        return solve(problem, "makespan", method="edd")
    except ScheduleError:
        assume(False)
        raise


def shop(jobs: int, machines: int, seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    work = [
        ProblemJob(
            f"j{j:03}",
            tuple(
                ProblemOperation(f"o{k}", (ProblemMode(int(m), int(rng.integers(1, 20))),))
                for k, m in enumerate(rng.permutation(machines))
            ),
            due=20 * machines,
        )
        for j in range(jobs)
    ]
    return Problem(tuple(work), tuple(ProblemMachine(f"m{m}") for m in range(machines)), name="shop")


# What is read off a plan


@settings(deadline=None, max_examples=60)
@given(jobs=st.integers(1, 6), machines=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_the_critical_path_is_what_has_no_slack(jobs, machines, seed):
    "By heads and tails of the graph of job and machine sequences, which is another way to find it."
    problem = shop(jobs, machines, seed)
    plan = planned(problem)
    n = len(problem.operations)
    after: dict[int, set[int]] = {o: set() for o in range(n)}
    for j in range(jobs):
        for o in range(problem.first[j], problem.first[j + 1] - 1):
            after[o].add(o + 1)
    for m in range(machines):
        on = sorted((o for o in range(n) if plan.machines[o] == m), key=lambda o: plan.starts[o])
        for a, b in pairwise(on):
            after[a].add(b)
    order = sorted(range(n), key=lambda o: plan.starts[o])
    head, tail = [0] * n, [0] * n
    for o in order:
        for q in after[o]:
            head[q] = max(head[q], head[o] + plan.ends[o] - plan.starts[o])
    for o in reversed(order):
        tail[o] = max((tail[q] + plan.ends[q] - plan.starts[q] for q in after[o]), default=0)
    end = max(plan.ends)
    longest = max(head[o] + plan.ends[o] - plan.starts[o] + tail[o] for o in range(n))
    assume(longest == end and list(plan.starts) == head)  # nothing waits without a reason
    wanted = {o for o in range(n) if head[o] + plan.ends[o] - plan.starts[o] + tail[o] == end}
    assert set(critical_path(problem, plan)) == wanted


@settings(deadline=None, max_examples=10)
@given(problem=problems())
def test_everything_can_be_drawn(problem):
    plan = planned(problem)
    for critical in (False, True):
        hv.render(gantt(plan, critical=critical, now=3 * problem.tick), backend="bokeh")
    for picture in (plot_utilisation(plan), plot_progress(plan), plot_difference(plan, plan)):
        hv.render(picture, backend="bokeh")
    for before, after in critical_links(problem, plan):
        assert before == after or plan.starts[before] <= plan.starts[after]
    assert set(critical_path(problem, plan)) <= set(range(len(problem.operations)))


@settings(deadline=None, max_examples=80)
@given(problem=problems())
def test_time_is_spent_once(problem):
    plan = planned(problem)
    assume(max(plan.ends) > 0)
    states = machine_states(plan)
    for _, mine in states.groupby("machine"):
        assert (mine.end > mine.start).all()
        assert (mine.start.to_numpy()[1:] == mine.end.to_numpy()[:-1]).all()
        assert mine.start.iloc[0] == states.start.min() and mine.end.iloc[-1] == states.end.max()
    shares = utilisation(plan)
    assert np.allclose(shares.sum(axis=1), 1)
    over = utilisation_over_time(plan, bins=7)
    names = list(shares.columns)
    assert np.allclose(over[names].sum(axis=1), len(shares))
    assert np.allclose(over[names].mean(), shares.sum())
    # work, tick by tick
    begin, ticks = 0, max(plan.ends)
    for machine, row in shares.iterrows():
        m = next(i for i, other in enumerate(problem.machines) if other.id == machine)
        at_work, shut = np.zeros(max(1, ticks - begin), bool), np.zeros(max(1, ticks - begin), bool)
        for a, b in ((a, b) for k, a, b, why in closed_times(problem, ticks) if k == m and why == "closed"):
            shut[a:b] = True
        for o, on in enumerate(plan.machines):
            if on == m:
                during = np.zeros_like(at_work)
                during[plan.starts[o] : plan.ends[o]] = True
                pauses = problem.operation(o).closing == "pause" and problem.machines[m].windows is not None
                at_work |= during & ~shut if pauses else during
        assert np.isclose(row.working * ticks, at_work.sum()) or ticks == 0


@settings(deadline=None, max_examples=80)
@given(problem=problems(rich=("setups", "batches", "calendar", "started", "travel")))
def test_setups_fit_between_the_work(problem):
    "Each ends where work starts, and before it nothing has been on the machine since the set-up began."
    plan = planned(problem)
    for m, a, b, _ in setup_times(plan):
        on = [o for o, machine in enumerate(plan.machines) if machine == m]
        assert any(plan.starts[o] == b for o in on)
        assert not any(plan.starts[o] < b and plan.leaves[o] > a and not problem.is_started(o) for o in on)


rows = st.builds(
    lambda j, o, m, a, n: ScheduledOperation(f"j{j}", f"o{o}", f"m{m}", float(a), float(a + n)),
    *(st.integers(0, n) for n in (4, 3, 2, 9, 5)),
)
plans = st.lists(rows, max_size=12, unique_by=lambda r: (r.job, r.operation)).map(lambda r: Schedule(tuple(r)))


@settings(deadline=None)
@given(plan=plans)
def test_bars_do_not_cover_each_other(plan):
    lane, of = lanes(plan.rows)
    assert all(0 <= k < n for k, n in zip(lane, of))
    for (i, a), (k, b) in combinations(enumerate(plan.rows), 2):
        if a.machine == b.machine and max(a.start, b.start) < min(a.end, b.end):
            assert of[i] == of[k] and lane[i] != lane[k]


@settings(deadline=None)
@given(old=plans, new=plans)
def test_changes_agree_with_the_difference(old, new):
    table, known = changes(old, new), difference(old, new)
    keys = {kind: set(zip(mine.job, mine.operation)) for kind, mine in table.groupby("change")}
    assert keys.get("other machine", set()) == set(known.moved)
    assert keys.get("later", set()) == set(known.delayed) - set(known.moved)
    assert keys.get("earlier", set()) == set(known.advanced) - set(known.moved)
    assert len(keys.get("gone", ())) == len(old) - known.common and len(keys.get("new", ())) == len(new) - known.common
    assert np.isclose(table["shift"].abs().sum(), known.total_shift)


@settings(deadline=None, max_examples=10)
@given(old=plans, new=plans)
def test_any_difference_can_be_drawn(old, new):
    hv.render(plot_difference(old, new), backend="bokeh")


# What is drawn


def bars_of(picture) -> dict:
    figure = hv.render(picture, backend="bokeh")
    return {r.name: r.data_source.data for r in figure.renderers if r.name}


def test_what_the_colours_mean():
    problem = Problem.from_factory(Factory.load(ROOT / "data/factories/tile_plant.yaml"))
    plan = solve(problem, "weighted_tardiness", method="edd")
    for by, wanted in (
        ("order", {f"o{i}" for i in range(1, 7)}),
        ("job", set(plan.schedule.by_job())),
        ("operation", {row.operation for row in plan.schedule.rows}),
        ("late", {"late", "on time"}),
    ):
        data = bars_of(gantt(plan, by=by))["planned"]
        assert set(data["group"]) == wanted
        assert len(set(zip(data["group"], data["colour"]))) == len(wanted)
    late = {
        problem.jobs[j].id
        for j in range(len(problem.jobs))
        if plan.ends[problem.first[j + 1] - 1] > problem.jobs[j].due
    }
    data = bars_of(gantt(plan, by="late"))["planned"]
    assert {job for job, group in zip(data["job"], data["group"]) if group == "late"} == late
    data = bars_of(gantt(plan, by="product", products={job: job[-1] for job in plan.schedule.by_job()}))["planned"]
    assert set(data["group"]) == {job[-1] for job in plan.schedule.by_job()}


def test_two_thousand_bars(tmp_path):
    plan = solve(shop(100, 20, 1), "makespan", method="mwkr")
    data = bars_of(gantt(plan, critical=True, by="job"))["planned"]
    assert len(data["job"]) == 2000
    assert sum(line == "#000000" for line in data["line"]) == len(critical_path(plan.problem, plan))
    assert save_html(gantt(plan), tmp_path / "plan.html").stat().st_size < 2_500_000


def test_progress_of_odd_traces():
    assert progress_table([]).empty and progress_table({"a": []}).empty
    table = progress_table({"a": [(0.0, 10.0, None), (1.0, 8.0, float("-inf")), (2.0, 8.0, 8.0), (3.0, 8.0, 7.0)]})
    assert table.gap.isna().tolist() == [True, True, False, False] and table.bound.iloc[-1] == 8.0
    for runs in ([], {"a": []}, {"a": [(0.0, 0.0, 0.0)]}, [(0.0, 5.0, None)]):
        hv.render(plot_progress(runs), backend="bokeh")


def test_fronts_that_are_none():
    for front in ([], [{"makespan": 1.0}], pd.DataFrame({"method": ["a"]})):
        with pytest.raises(ScheduleError, match="at least two objectives"):
            plot_pareto(front)
    same = [{"a": 1.0, "b": 2.0}] * 2
    hv.render(plot_pareto(same), backend="bokeh")
    hv.render(plot_pareto(pd.DataFrame({"a": [1.0, 2.0], "b": [float("nan"), 1.0]})), backend="bokeh")


@pytest.mark.browser
def test_in_a_browser(tmp_path, browser):
    "Every picture in one file: drawn, asking nobody for anything, telling what the mouse is on."
    problem = Problem.from_factory(Factory.load(ROOT / "data/factories/tile_plant.yaml"))
    plan = solve(problem, "weighted_tardiness", method="edd")
    moved = [r._replace(start=r.start + 600, end=r.end + 600, leave=None) for r in plan.schedule.rows]
    front = pd.DataFrame({"makespan": [1.0, 2.0], "<b>cost</b>": [2.0, 1.0]})
    pictures = [
        gantt(plan, critical=True, labels=False, now=3600.0),
        plot_utilisation(plan),
        plot_progress([(0.0, 9.0, 1.0), (1.0, 7.0, 3.0)]),
        plot_pareto(front),
        plot_difference(plan, Schedule(tuple(moved))),
        changes(plan, Schedule(tuple(moved))).head(3),
    ]
    path = save_html(pictures, tmp_path / "plan.html", "Plan <script>alert(1)</script>")
    asked, wrong = [], []
    page = browser.new_page(viewport={"width": 1200, "height": 900}, offline=True)
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append("dialog"), dialog.dismiss()))
    page.goto(path.as_uri())
    page.wait_for_function("window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].roots().length == 5")
    box = page.locator(".picture").first.bounding_box()
    along = itertools.cycle(range(120, 420, 15))  # the first machine's row

    def pointed_at() -> str:
        page.mouse.move(box["x"] + next(along), box["y"] + 60)
        page.wait_for_timeout(30)
        return page.evaluate(
            "() => { const all = [], seek = n => { if (n.shadowRoot) seek(n.shadowRoot);"
            " if (n.nodeType == 1 && n.className?.toString().includes('bk-tooltip')) all.push(n.textContent);"
            " n.childNodes.forEach(seek) }; seek(document.body);"
            " document.querySelectorAll('*').forEach(n => n.shadowRoot && all.push(n.shadowRoot.textContent));"
            " return all.join(' ') }"
        )

    until(page, pointed_at, lambda texts: "o1-" in texts and "press_1" in texts)
    rows = page.locator("table tbody tr").count()
    picture = page.screenshot()
    page.close()
    assert rows == 3 and not wrong and len(picture) > 10_000
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked), asked
