"""Solves one instance with one solver, in whichever interpreter has that solver, and prints one line of JSON.

    python peer_solve.py SOLVER INSTANCE.json SECONDS SEED WORKERS

The instance is `{"objective", "machines", "jobs": [{"operations", "due", "weight"}, ...]}`, an operation the list
of its alternatives `[machine, duration]`. The clock runs from there, in memory and after all imports, to the
solution: models are built within it. SOLVER is `plain_cpsat`, `pyjobshop`, `job_shop_lib`, `job_shop_lib:RULE` or
`dtwb:METHOD`; nothing of dtwb is imported for a peer.
"""

import json
import os
import resource
import sys
import time
from importlib.metadata import version
from itertools import accumulate


class Watch:
    "The run's clock, and when it got better."

    def __init__(self):
        self.began = time.perf_counter()
        self.cpu = cpu_seconds()
        self.trace = []  # [s, objective, bound]
        self.built = 0.0  # s, until the problem was in the solver's own terms

    def now(self):
        return time.perf_counter() - self.began

    def better(self, objective, bound):
        if not self.trace or objective < self.trace[-1][1]:
            self.trace.append([round(self.now(), 4), objective, bound])


def cpu_seconds():
    "Of all threads, and of the processes that have ended."
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def watched(cp_model, watch, seed, workers):
    "CP-SAT's solver with a clock; workers and seed are the run's, all else is left to who uses it."

    class Callback(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self):
            watch.better(self.objective_value, self.best_objective_bound)

    class Solver(cp_model.CpSolver):
        def solve(self, model, solution_callback=None):
            self.parameters.num_workers, self.parameters.random_seed = workers, seed
            return super().solve(model, Callback())

        Solve = solve

    return Solver


def result(solver, code, starts, machines):
    "What CP-SAT ended with."
    status = {"OPTIMAL": "optimal", "FEASIBLE": "feasible"}.get(solver.status_name(code), "none")
    if status == "none":
        return {"status": status}
    return {
        "status": status,
        "objective": solver.objective_value,
        "bound": solver.best_objective_bound,
        "starts": starts(),
        "machines": machines(),
    }


def plain_cpsat(variant):
    "The model of the OR-Tools manual: intervals, no-overlap, a literal for each alternative; default parameters."
    from ortools.sat.python import cp_model

    def search(instance, seconds, seed, workers, watch):
        model, on = cp_model.CpModel(), [[] for _ in range(instance["machines"])]
        operations = [modes for job in instance["jobs"] for modes in job["operations"]]
        longest = sum(max(duration for _, duration in modes) for modes in operations)
        starts, chosen, ends = [], [], []
        for job in instance["jobs"]:
            before = None
            for modes in job["operations"]:
                start, end = model.new_int_var(0, longest, ""), model.new_int_var(0, longest, "")
                here = [model.new_bool_var("") for _ in modes] if len(modes) > 1 else [model.new_constant(1)]
                for (machine, duration), literal in zip(modes, here):
                    if len(modes) > 1:
                        on[machine].append(model.new_optional_interval_var(start, duration, end, literal, ""))
                    else:
                        on[machine].append(model.new_interval_var(start, duration, end, ""))
                model.add_exactly_one(here)
                if before is not None:
                    model.add(start >= before)
                before = end
                starts.append(start)
                chosen.append(here)
            ends.append(before)
        for intervals in on:
            model.add_no_overlap(intervals)
        if instance["objective"] == "makespan":
            makespan = model.new_int_var(0, longest, "")
            model.add_max_equality(makespan, ends)
            model.minimize(makespan)
        else:
            late = [model.new_int_var(0, longest, "") for _ in ends]
            for job, end, tardiness in zip(instance["jobs"], ends, late):
                model.add(tardiness >= end - job["due"])
            model.minimize(sum(job["weight"] * tardiness for job, tardiness in zip(instance["jobs"], late)))
        solver = watched(cp_model, watch, seed, workers)()
        solver.parameters.max_time_in_seconds = seconds
        code = solver.solve(model)

        def machines():
            picked = [[solver.boolean_value(literal) for literal in here].index(True) for here in chosen]
            return [modes[i][0] for modes, i in zip(operations, picked)]

        return result(solver, code, lambda: [solver.value(start) for start in starts], machines)

    return search


def pyjobshop(variant):
    import pyjobshop
    from ortools.sat.python import cp_model

    # the package's __init__ hides the module behind the class of the same name
    module = sys.modules["pyjobshop.solvers.ortools.CPModel"]

    def search(instance, seconds, seed, workers, watch):
        module.CpSolver = watched(cp_model, watch, seed, workers)
        model, tardiness = pyjobshop.Model(), instance["objective"] != "makespan"
        machines = [model.add_machine() for _ in range(instance["machines"])]
        places = []  # of each mode
        for job in instance["jobs"]:
            due = {"due_date": job["due"], "weight": job["weight"]} if tardiness else {}
            one, before = model.add_job(**due), None
            for modes in job["operations"]:
                task = model.add_task(one)
                for machine, duration in modes:
                    model.add_mode(task, machines[machine], duration)
                    places.append(machine)
                if before is not None:
                    model.add_end_before_start(before, task)
                before = task
        model.set_objective(**({"weight_total_tardiness": 1} if tardiness else {"weight_makespan": 1}))
        watch.built = watch.now()
        found = model.solve(time_limit=seconds, display=False, num_workers=workers)
        if not found.best.tasks:
            return {"status": "none"}
        return {
            "status": found.status.value.lower(),
            "objective": found.objective,
            "bound": found.lower_bound,
            "starts": [task.start for task in found.best.tasks],
            "machines": [places[task.mode] for task in found.best.tasks],
        }

    return search


def job_shop_lib(variant):
    from job_shop_lib import JobShopInstance, Operation
    from job_shop_lib.constraint_programming import ORToolsSolver
    from job_shop_lib.dispatching.rules import DispatchingRuleSolver
    from job_shop_lib.exceptions import NoSolutionFoundError
    from ortools.sat.python import cp_model

    plain = cp_model.CpSolver

    def search(instance, seconds, seed, workers, watch):
        if instance["objective"] != "makespan" or any(
            len(m) > 1 for job in instance["jobs"] for m in job["operations"]
        ):
            raise ValueError("job_shop_lib does the makespan of job shops only")
        jobs = [[Operation(*modes[0]) for modes in job["operations"]] for job in instance["jobs"]]
        shop = JobShopInstance(jobs)
        watch.built = watch.now()
        cp_model.CpSolver = plain
        cp_model.CpSolver = watched(cp_model, watch, seed, workers)
        solver = DispatchingRuleSolver(variant) if variant else ORToolsSolver(max_time_in_seconds=seconds)
        try:
            plan = solver.solve(shop)
        except NoSolutionFoundError:
            return {"status": "none"}
        first = [0, *accumulate(len(job) for job in jobs)]
        starts = [0] * first[-1]
        for row in plan.schedule:
            for scheduled in row:
                starts[first[scheduled.operation.job_id] + scheduled.operation.position_in_job] = scheduled.start_time
        return {
            "status": "feasible" if variant else plan.metadata["status"],
            "objective": plan.makespan(),
            "bound": None if variant else solver.solver.best_objective_bound,
            "starts": starts,
            "machines": [modes[0][0] for job in instance["jobs"] for modes in job["operations"]],
        }

    return search


def dtwb(method):
    from numba.core import event

    from dtwb.scheduling.problem import Problem, ProblemJob, ProblemMachine, ProblemMode, ProblemOperation
    from dtwb.scheduling.solve import solve

    def search(instance, seconds, seed, workers, watch):
        with event.install_recorder("numba:compile") as events:
            problem = Problem(
                tuple(
                    ProblemJob(
                        f"j{j}",
                        tuple(
                            ProblemOperation(f"o{k}", tuple(ProblemMode(*mode) for mode in modes))
                            for k, modes in enumerate(job["operations"])
                        ),
                        due=job["due"],
                        weight=job["weight"],
                    )
                    for j, job in enumerate(instance["jobs"])
                ),
                tuple(ProblemMachine(f"m{m}") for m in range(instance["machines"])),
            )
            watch.built = watch.now()

            def better(*found):
                objective, bound = (found[0].objective, found[0].bound) if len(found) == 1 else found[1:3]
                watch.better(objective, bound)

            options = {"time_limit": seconds, "seed": seed, "workers": workers, "callback": better}
            solution = solve(problem, instance["objective"], method, **options)
        return {
            "status": solution.status,
            "objective": solution.objective,
            "bound": solution.bound,
            "starts": solution.starts,
            "machines": solution.machines,
            "how": solution.how,
            "compiled": sum(e.is_start for _, e in events.buffer),
        }

    return search


SOLVERS = {solver.__name__: solver for solver in (plain_cpsat, pyjobshop, job_shop_lib, dtwb)}
PACKAGES = {"plain_cpsat": "ortools", "pyjobshop": "pyjobshop", "job_shop_lib": "job_shop_lib", "dtwb": "dtwb"}


def main(solver, path, seconds, seed, workers):
    name, _, variant = solver.partition(":")
    with open(path, encoding="utf-8") as file:
        instance = json.load(file)
    began = time.perf_counter()
    search, imported = SOLVERS[name](variant), time.perf_counter() - began
    asked = instance, float(seconds), int(seed), int(workers)
    watch = Watch()
    found = search(*asked, watch)
    wall, cpu = watch.now(), cpu_seconds() - watch.cpu
    if found["status"] != "none":
        watch.better(found["objective"], found["bound"])  # whoever has no callback
    found |= {"wall": round(wall, 4), "cpu": round(cpu, 2), "built": round(watch.built, 4), "trace": watch.trace}
    found["imported"] = round(imported, 4)
    if wall < 1:
        again = Watch()
        search(*asked, again)
        found["again"] = round(again.now(), 4)
    found["versions"] = {package: version(package) for package in (PACKAGES[name], "ortools")}
    return found


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not the answer
    json.dump(main(*sys.argv[1:]), out)
    out.write("\n")
    out.close()
