"""Simulates the line of the twin's benchmarks with one simulator, in whichever interpreter has it, and prints JSON.

    python peer_simulate.py MODEL FOLDER JOBS

The line: Poisson arrivals, exponential work, machines one after the other with buffers of 10 between them, blocking
after service, and failures that count time at work; a machine goes on where it stopped. FOLDER holds the draws as
raw float64 (`arrivals`, `work_0`, `failures_0`, `repairs_0`, `work_1`, ...) and `line.json`. The clock runs from
there, in memory and after all imports and compilation, to the end of the run: models are built within it. MODEL is
one of MODELS or `dtwb:ENGINE` with `+record` where it has a trace; nothing of dtwb is imported for a peer.
"""

import json
import os
import resource
import sys
import time
from array import array
from functools import partial
from importlib.metadata import version
from itertools import repeat


def read_line(folder, jobs):
    "The draws: arrivals (times), and of each machine the work, the times to failure and the repairs."
    with open(f"{folder}/line.json", encoding="utf-8") as file:
        line = json.load(file)

    def draws(name):
        values = array("d")
        path = f"{folder}/{name}"
        with open(path, "rb") as file:
            values.fromfile(file, os.path.getsize(path) // 8)
        return values.tolist()

    line |= {name: [draws(f"{name}_{m}") for m in range(line["machines"])] for name in ("work", "failures", "repairs")}
    line["arrivals"] = draws("arrivals")[:jobs]
    line["work"] = [work[:jobs] for work in line["work"]]
    return line


def with_repairs(line):
    "What each job keeps each machine for: its work, and the repairs that fall into it."
    found = []
    for work, failures, repairs in zip(line["work"], line["failures"], line["repairs"]):
        k, left, times = 0, failures[0], []
        for rest in work:
            time = 0.0
            while rest > left:
                time, rest = time + left + repairs[k], rest - left
                k += 1
                left = failures[k]
            left -= rest
            times.append(time + rest)
        found.append(times)
    return found


# SimPy as one writes it: a process for each machine, stores between them


def hand_written(line, record):
    import simpy

    def run():
        env, rows, last = simpy.Environment(), [], [0.0, 0]
        stores = [simpy.Store(env)] + [simpy.Store(env, line["capacity"]) for _ in line["work"][1:]]
        told = rows.append

        def source():
            for job, when in enumerate(line["arrivals"]):
                yield env.timeout(when - env.now)
                yield stores[0].put(job)

        def machine(m):
            work, failures, repairs = line["work"][m], iter(line["failures"][m]), iter(line["repairs"][m])
            source, target = stores[m], stores[m + 1] if m + 1 < len(stores) else None
            left = next(failures)
            while True:
                job = yield source.get()
                rest = work[job]
                if record:
                    told((env.now, "started", m, job))
                while rest > left:
                    yield env.timeout(left)
                    rest -= left
                    if record:
                        told((env.now, "failed", m, job))
                    yield env.timeout(next(repairs))
                    left = next(failures)
                    if record:
                        told((env.now, "repaired", m, job))
                yield env.timeout(rest)
                left -= rest
                if record:
                    told((env.now, "finished", m, job))
                if target is None:
                    last[0], last[1] = env.now, last[1] + 1
                else:
                    yield target.put(job)
                    if record:
                        told((env.now, "moved", m, job))

        env.process(source())
        for m in range(len(stores)):
            env.process(machine(m))
        env.run()
        return {"makespan": last[0], "finished": last[1], "rows": len(rows)}

    return run


def salabim(line, record):
    import salabim as sim

    sim.yieldless(False)

    def run():
        env, last = sim.Environment(trace=False), [0.0, 0]
        stores = [sim.Store("", monitor=False)]
        stores += [sim.Store("", capacity=line["capacity"], monitor=False) for _ in line["work"][1:]]
        items = [sim.Component("", process="") for _ in line["arrivals"]]

        class Source(sim.Component):
            def process(self):
                for item, when in zip(items, line["arrivals"]):
                    yield self.hold(till=when)
                    yield self.to_store(stores[0], item)

        class Machine(sim.Component):
            def process(self, m):
                work, failures, repairs = iter(line["work"][m]), iter(line["failures"][m]), iter(line["repairs"][m])
                source, target = stores[m], stores[m + 1] if m + 1 < len(stores) else None
                left = next(failures)
                while True:
                    item = yield self.from_store(source)
                    item, rest = self.from_store_item(), next(work)
                    while rest > left:
                        yield self.hold(left)
                        rest -= left
                        yield self.hold(next(repairs))
                        left = next(failures)
                    yield self.hold(rest)
                    left -= rest
                    if target is None:
                        last[0], last[1] = env.now(), last[1] + 1
                    else:
                        yield self.to_store(target, item)

        Source("")
        for m in range(len(stores)):
            Machine("", m=m)
        env.run()
        return {"makespan": last[0], "finished": last[1]}

    return run


def ciw(line, record):
    import ciw

    def run():
        machines, jobs = line["machines"], len(line["arrivals"])
        gaps = [b - a for a, b in zip([0.0, *line["arrivals"]], line["arrivals"])] + [float("inf")]
        network = ciw.create_network(
            arrival_distributions=[ciw.dists.Sequential(gaps), *repeat(None, machines - 1)],
            service_distributions=[ciw.dists.Sequential(times) for times in with_repairs(line)],
            routing=[[float(b == a + 1) for b in range(machines)] for a in range(machines)],
            number_of_servers=[1] * machines,
            queue_capacities=[float("inf"), *repeat(line["capacity"], machines - 1)],
        )
        simulation = ciw.Simulation(network)
        simulation.simulate_until_max_customers(jobs, method="Finish")
        ends = [r.exit_date for r in simulation.get_all_records() if r.node == machines]
        return {"makespan": max(ends), "finished": len(ends)}

    return run


def prodsys(line, record):
    "Its own draws, of the same distributions. It wants a transport between machines: one that takes no time."
    import prodsys.express as psx
    from prodsys.models.port_data import PortInterfaceType

    def exponential(mean, name):
        return psx.FunctionTimeModel("exponential", mean, 0.0, ID=name)

    def queue(name, places, x, direction):
        return psx.Queue(ID=name, capacity=places, location=[x, 0], interface_type=direction)

    def run():  # pydantic evaluates annotations among these names: none may be that of a module of prodsys
        jobs, steps, stations = len(line["arrivals"]), [], []
        no_time = psx.FunctionTimeModel("constant", 0.0, 0.0, ID="no time")
        moving = psx.TransportProcess(no_time, ID="moving")
        for m in range(line["machines"]):
            steps.append(psx.ProductionProcess(exponential(line["mean"], f"work {m}"), ID=f"step {m}"))
            fails, repaired = exponential(line["mtbf"], f"fails {m}"), exponential(line["mttr"], f"repaired {m}")
            down = psx.BreakDownState(fails, repaired, ID=f"down {m}")
            station = psx.Resource([steps[m]], location=[m + 1, 0], states=[down], ID=f"station {m}")
            places = line["capacity"] - 1 if m else 0  # 0: without limit; one place is in the queue for what is done
            station.ports = [
                queue(f"in {m}", places, m + 0.9, PortInterfaceType.INPUT),
                queue(f"out {m}", 1, m + 1.1, PortInterfaceType.OUTPUT),
            ]
            stations.append(station)
        mover = psx.Resource([moving], location=[0, 1], capacity=1000, ID="mover")
        part = psx.Product(steps, transport_process=moving, ID="part")
        entry = psx.Source(part, exponential(1 / line["rate"], "arrivals"), location=[0, 0], ID="entry")
        plant = psx.ProductionSystem(
            [*stations, mover], [entry], [psx.Sink(part, location=[line["machines"] + 1, 0], ID="exit")]
        )
        plant.run(jobs / line["rate"])
        done = plant.runner.product_factory.finished_products
        return {"makespan": None, "finished": len(done)}

    return run


# What the machine can do: an event list and counters under numba, and the recursion that needs no event list


def numba_heap(line, record):
    from heapq import heappop, heappush

    import numpy as np
    from numba import njit

    @njit(cache=False)
    def simulate(arrivals, work, failures, repairs, capacity):
        machines, jobs = work.shape
        queue, place = np.zeros(machines, np.int64), np.full(machines, capacity)
        place[0] = jobs
        busy, blocked = np.zeros(machines, np.bool_), np.zeros(machines, np.bool_)
        rest, left, fails = np.zeros(machines), failures[:, 0].copy(), np.zeros(machines, np.int64)
        phase, job = np.zeros(machines, np.int64), np.zeros(machines, np.int64)  # phase 0 ends, 1 fails, 2 is repaired
        heap, sequence, arrived, now = [(arrivals[0], 0, -1)], 1, 0, 0.0
        stack = np.zeros(4 * machines, np.int64)
        while heap:
            now, _, m = heappop(heap)
            if m < 0:
                queue[0] += 1
                arrived += 1
                if arrived < jobs:
                    heappush(heap, (arrivals[arrived], sequence, -1))
                    sequence += 1
                stack[0] = 0
            elif phase[m] == 1:
                rest[m] -= left[m]
                phase[m] = 2
                heappush(heap, (now + repairs[m, fails[m]], sequence, m))
                sequence += 1
                continue
            elif phase[m] == 2:
                fails[m] += 1
                left[m] = failures[m, fails[m]]
                phase[m] = 1 if rest[m] > left[m] else 0
                heappush(heap, (now + min(rest[m], left[m]), sequence, m))
                sequence += 1
                continue
            else:
                left[m] -= rest[m]
                blocked[m] = True
                stack[0] = m
            n = 1
            while n:  # let go, then start, then look at the one before
                n -= 1
                m = stack[n]
                if blocked[m]:
                    if m + 1 == machines:
                        blocked[m] = busy[m] = False
                    elif queue[m + 1] < place[m + 1] or not busy[m + 1]:
                        blocked[m] = busy[m] = False
                        queue[m + 1] += 1
                        stack[n] = m + 1
                        n += 1
                if not busy[m] and queue[m]:
                    queue[m] -= 1
                    busy[m] = True
                    rest[m] = work[m, job[m]]
                    job[m] += 1
                    phase[m] = 1 if rest[m] > left[m] else 0
                    heappush(heap, (now + min(rest[m], left[m]), sequence, m))
                    sequence += 1
                    if m and blocked[m - 1]:
                        stack[n] = m - 1
                        n += 1
        return now, job[machines - 1]

    return compiled(simulate, line)


def max_plus(line, record):
    import numpy as np
    from numba import njit

    @njit(cache=False)
    def simulate(arrivals, work, failures, repairs, capacity):
        machines, jobs = work.shape
        left, fails = failures[:, 0].copy(), np.zeros(machines, np.int64)
        gone = np.zeros((machines, jobs))  # when each job left each machine
        for i in range(jobs):
            free = arrivals[i]
            for m in range(machines):
                rest = work[m, i]
                end = max(free, gone[m, i - 1]) if i else free
                while rest > left[m]:
                    end += left[m] + repairs[m, fails[m]]
                    rest -= left[m]
                    fails[m] += 1
                    left[m] = failures[m, fails[m]]
                left[m] -= rest
                end += rest
                if m + 1 < machines and i > capacity:  # as many are before and on the next one
                    end = max(end, gone[m + 1, i - capacity - 1])
                gone[m, i] = free = end
        return gone[-1, -1], jobs

    return compiled(simulate, line)


def compiled(simulate, line):
    import numpy as np

    def same_length(rows):
        return np.array([row[: min(map(len, rows))] for row in rows])

    draws = np.array(line["arrivals"]), *(same_length(line[name]) for name in ("work", "failures", "repairs"))

    def run():
        makespan, finished = simulate(*draws, line["capacity"])
        return {"makespan": makespan, "finished": int(finished)}

    run()
    return run


# Ours


def dtwb(line, record, engine):
    from run_twin import line_factory

    from dtwb.twin.fast import FastSimulation
    from dtwb.twin.simulation import Simulation

    simulation = {"simpy": Simulation, "fast": FastSimulation}[engine]
    simulation(line_factory(line | {"jobs": 20}), seed=line["seed"], record=record).run()  # compile

    def run():
        jobs = len(line["arrivals"])
        sim = simulation(line_factory(line | {"jobs": jobs}), seed=line["seed"], record=record)
        found = sim.run()
        assert found.how == "finished", found.how
        return {"makespan": sim.now, "finished": jobs, "rows": len(found.trace)}

    return run


MODELS = {model.__name__: model for model in (hand_written, salabim, ciw, prodsys, numba_heap, max_plus, dtwb)}
PACKAGES = {"hand_written": "simpy", "numba_heap": "numba", "max_plus": "numba"}


def main(asked, folder, jobs):
    model, record = asked.removesuffix("+record"), asked.endswith("+record")
    name, _, engine = model.partition(":")
    line = read_line(folder, int(jobs))
    began = time.perf_counter()
    run = partial(MODELS[name], engine=engine)(line, record) if engine else MODELS[name](line, record)
    ready = time.perf_counter()
    found = run()
    wall = time.perf_counter() - ready
    return found | {
        "model": asked,
        "jobs": int(jobs),
        "operations": found["finished"] * line["machines"],
        "seconds": round(wall, 5),
        "ready": round(ready - began, 3),  # s, to import and compile
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "versions": {(package := PACKAGES.get(name, name)): version(package), "python": sys.version.split()[0]},
    }


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not the answer
    json.dump(main(*sys.argv[1:]), out)
    out.write("\n")
    out.close()
