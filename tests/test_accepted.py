"A plan that somebody accepts while the run still goes: from the dashboard over the store into the plant."

import threading

import pytest
from browser import PLANT
from waiting import wait_for

from dtwb.core import events as ev
from dtwb.core.errors import ScheduleError
from dtwb.core.settings import LoopSettings, settings
from dtwb.loop.accepted import inbox
from dtwb.loop.closed_loop import LoopController, at_pace
from dtwb.loop.session import record
from dtwb.store.database import Store
from dtwb.twin.simulation import Simulation, simulate
from dtwb.ui.schedule_app import Schedules
from dtwb.ui.what_if import Freeze, MachineOut, NewOrder


@pytest.fixture
def plant(tmp_path, monkeypatch):
    "A plant that works by the clock, ten minutes in a second, until the test is over; and the store it writes to."
    for name, value in {"DATA": tmp_path, "RUNS": tmp_path / "runs"}.items():
        monkeypatch.setenv(f"DTWB_PATHS__{name}", str(value))
    settings.cache_clear()
    plan = simulate(PLANT, rule="edd", disturbances=False).schedule
    over, failed = threading.Event(), []

    def work():
        try:
            with record("loop", PLANT, {}, 1) as recording:
                policy = LoopSettings(reschedule_time_limit=0.2)
                controller = LoopController(PLANT, policy, accepted=inbox(recording.store, recording.run.id))
                how = {"bus": recording.bus, "run": recording.run.id, "stop": over.is_set}
                at_pace(Simulation(PLANT, plan, seed=1, controller=controller, **how), 600, controller.look)
        except BaseException as e:
            failed.append(e)
            raise

    thread = threading.Thread(target=work)
    thread.start()
    with Store.open() as store:
        wait_for(lambda: failed or store.news()[-1])
        yield store, store.news()[-1], over
        over.set()
        thread.join(240)
    settings.cache_clear()
    assert not failed


def taken(store, run, version):
    return [
        e for e in store.events(run, kinds=[ev.ScheduleChanged]) if e.reason.startswith(f"plan {version}, accepted")
    ]


def ask(app, *changes):
    "Ask and solve, as the buttons do."
    app.refresh()
    app.panel.changes = changes
    app.panel.limit.param.update(options={"0.5 s": 0.5}, value=0.5)
    app.solve()
    app.job.wait(240)
    assert app.answer.solution, app.answer.why


def accept(app):  # the version of the plan
    app.accept()
    return app.store.schedules(app.view.id).query("accepted == accepted").index[-1]


def test_a_run_that_goes_takes_up_what_is_accepted_and_one_that_is_over_keeps_it(plant):
    store, run, over = plant
    app, another = Schedules(store), Schedules(store)
    rush = NewOrder("rush", PLANT.orders[0].product, must=False)
    out = MachineOut("press_1", until=6 * 3600.0)
    ask(another, rush)
    ask(app, rush, out)
    version = accept(app)
    event = wait_for(lambda: taken(store, run, version))[0]
    assert "an order rush for 1" in event.reason and "rush-1" in {row[0] for row in event.rows}
    started = [row for row in event.rows if row[2] == "press_1"]
    assert all(row[3] >= 6 * 3600 for row in started)
    wait_for(lambda: any(e.subject == "rush-1" for e in store.events(run, kinds=[ev.JobReleased])))
    seen = Schedules(store)  # another page, or this one after a reload
    assert "the run took it up at" in seen.bodies["accepted"][0].object

    with pytest.raises(ScheduleError, match="accepted version"):  # who asked for the same order at the same time
        accept(another)
    another._known = version  # had both accepted in the same moment, the run would see it
    again = accept(another)
    told = lambda: [e for e in store.events(run, kinds=[ev.AlarmRaised]) if e.message.startswith(f"plan {again},")]
    assert "there is an order 'rush' already" in wait_for(told)[0].message

    over.set()
    wait_for(lambda: store.run(run)["status"] != "running")
    app.at = 3600.0
    ask(app, Freeze(until=2 * 3600.0))
    last = accept(app)
    assert not taken(store, run, last)
    assert f"Version {last}" in app.bodies["accepted"][0].object
    assert "kept with the run; the run is over" in app.bodies["accepted"][0].object
