"""Random scheduling problems with everything in them, small enough to be searched through."""

from dataclasses import replace

from hypothesis import strategies as st

from dtwb.scheduling.problem import (
    CLOSINGS,
    OBJECTIVES,
    Objective,
    Problem,
    ProblemBuffer,
    ProblemJob,
    ProblemMachine,
    ProblemMaterial,
    ProblemMode,
    ProblemOperation,
    ProblemResource,
)

CLASSIC = ("setups", "batches", "buffers", "calendar", "materials", "travel", "started")
FEATURES = (*CLASSIC, "closing", "resources", "produces", "max_wait", "tariff")


@st.composite
def problems(draw, jobs=4, operations=3, machines=3, rich=FEATURES):
    """Small problems; each has some of the features in `rich` (True: all, False: none).

    What is there is enough for any one job: skills, windows, materials (they arrive in the end). With `buffers` parts
    may block each other for good, and with `max_wait` there may be no solution at all.
    """
    rich = {True: FEATURES, False: ()}.get(rich, rich) if isinstance(rich, bool) else rich
    pick = draw(st.randoms(use_true_random=False))
    n = draw(st.integers(1, machines))
    has = {name: name in rich and draw(st.booleans()) for name in FEATURES}
    shop = [_machine(pick, m, has, bool(rich)) for m in range(n)]
    work = [
        ProblemJob(
            f"j{j}",
            tuple(_operation(pick, k, shop, has) for k in range(draw(st.integers(1, operations)))),
            pick.randint(0, 4) if rich else 0,
            pick.randint(2, 15),
            None,
            pick.choice([1.0, 2.5]),
        )
        for j in range(draw(st.integers(1, jobs)))
    ]
    if has["started"]:
        steps = work[0].operations
        first = replace(steps[0], modes=(ProblemMode(steps[0].modes[0].machine, pick.randint(0, 3)),), materials=())
        first = replace(first, max_wait=None)
        work[0] = replace(
            work[0], operations=(first, *steps[1:]), release=0, place=first.modes[0].machine, started=True
        )
    return Problem(
        tuple(work),
        tuple(shop),
        tuple(ProblemBuffer(f"b{i}", pick.randint(1, 2)) for i in range(2)) if has["buffers"] else (),
        _materials(pick, work, has),
        tuple(tuple(pick.randint(0, 2) for _ in range(n)) for _ in range(n + 1)) if has["travel"] else (),
        tick=3600.0 if has["tariff"] else 1.0,
        resources=(
            ProblemResource("anna", 1, ("weld",)),
            ProblemResource("ben", 1, ("weld", "lift")),
            ProblemResource("crane", 2, ("lift",)),
        )
        if has["resources"]
        else (),
        tariff=((0, 2.0), (pick.randint(1, 6), 0.5), (pick.randint(7, 12), 1.0)) if has["tariff"] else (),
    )


def _machine(pick, m, has, rich):
    gap, length = pick.randint(0, 3), pick.randint(2, 6)
    windows = tuple((i * (gap + length), i * (gap + length) + length) for i in range(60))
    pairs = tuple((a, b, pick.randint(0, 4)) for a in "xy" for b in "xy" if a != b)
    return ProblemMachine(
        f"m{m}",
        windows if has["calendar"] and pick.random() < 0.5 else None,
        pick.randint(2, 3) if has["batches"] and pick.random() < 0.6 else 1,
        pick.choice([None, 0, 1]) if has["buffers"] else None,
        pick.choice([None, "x", "y"]) if has["setups"] else None,
        pairs if has["setups"] and pick.random() < 0.7 else (),
        pick.randint(0, 3) if rich else 0,
        pick.choice([0.0, 1.0, 2.0]) if has["tariff"] else 0.0,
    )


def _operation(pick, k, shop, has):
    where = pick.sample(range(len(shop)), pick.randint(1, min(2, len(shop))))
    closing = pick.choice(CLOSINGS) if has["closing"] else "overrun"
    modes = []
    for m in where:
        duration = pick.randint(1, 5)
        if closing == "fit" and shop[m].windows:
            duration = min(duration, max(b - a for a, b in shop[m].windows))
        modes.append(ProblemMode(m, duration))
    uses = ((0, float(pick.randint(1, 3))),) if has["materials"] and pick.random() < 0.5 else ()
    makes = ()
    if has["produces"]:  # half of them make cores, others use them
        made = pick.choice(["makes", "uses", "neither"])
        uses += ((1, float(pick.randint(1, 2))),) if made == "uses" else ()
        makes = ((1, float(pick.randint(1, 3))),) if made == "makes" else ()
    needs = ()
    if has["resources"] and pick.random() < 0.6:
        needs = tuple(
            pick.sample([("weld", 1), ("lift", pick.randint(1, 2)), ("crane", 1), ("anna", 1)], pick.randint(1, 2))
        )
    max_wait = pick.randint(2 * has["travel"], 6) if has["max_wait"] and k and pick.random() < 0.5 else None
    return ProblemOperation(f"o{k}", tuple(modes), pick.choice("xy"), uses, makes, max_wait, closing, needs)


def _materials(pick, work, has):
    steps = [(job, k, step) for job in work for k, step in enumerate(job.operations)]
    wanted = sum(quantity for _, _, step in steps for m, quantity in step.materials if m == 1)
    clay = ProblemMaterial("clay", 6.0 * has["materials"], ((pick.randint(1, 8), 40.0),) * has["materials"])
    cores = ProblemMaterial("core", float(pick.randint(0, 2)), ((pick.randint(5, 15), wanted),) if wanted else ())
    return (clay, cores) if has["produces"] else (clay,) if has["materials"] else ()


def objectives(names=OBJECTIVES[:-1]):
    "One term, or a weighted sum of two; without `stability`, which needs a former plan."
    one = st.sampled_from(names).map(lambda name: Objective.of({name: 1.0}))
    two = st.tuples(st.lists(st.sampled_from(names), min_size=2, max_size=2, unique=True), st.sampled_from([0.1, 2.0]))
    return st.one_of(one, two.map(lambda drawn: Objective.of({drawn[0][0]: 1.0, drawn[0][1]: drawn[1]})))
