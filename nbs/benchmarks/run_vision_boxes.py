"""Measures boxes and tiling, each measurement in a fresh process of its own.

    python nbs/benchmarks/run_vision_boxes.py all
    python nbs/benchmarks/run_vision_boxes.py nms --n 10000 --repeats 9

A suite's results are written as `data/benchmarks/vision_boxes_SUITE.json`, where `vision_boxes.ipynb` finds them.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "data/benchmarks"
PEERS = {"sahi:numba": "sahi", "sahi:numpy": "sahi"}  # model -> venv; the others are run by our own Python
MODELS = ("dtwb", "opencv", "numpy", *PEERS)
SCENES = ("clusters", "crowded", "spread", "mixed")


# Non-maximum suppression


def scene(name: str, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    "Boxes (n, 4) as x, y, width, height, and scores (n,), no two alike."
    luck = np.random.default_rng(seed)
    if name == "clusters":  # what a detector says of a hundred things, each a hundred times
        things = np.hstack([luck.uniform(0, 900, (100, 2)), luck.uniform(30, 100, (100, 2))])
        boxes = things[luck.integers(100, size=n)] + luck.normal(0, 4, (n, 4))
        return np.maximum(boxes, 1), (luck.permutation(n) + 1) / n
    side, low, high = {"crowded": (300, 20, 200), "spread": (1000, 10, 80), "mixed": (1000, 1, 900)}[name]
    size = luck.uniform(low, high, (n, 2))
    return np.hstack([luck.uniform(0, side - size), size]), (luck.permutation(n) + 1) / n


def plain_nms(boxes: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    "As textbooks have it: the best one against all the rest, in numpy."
    x, y, w, h = boxes.T
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        i, order = order[0], order[1:]
        kept.append(i)
        wide = np.minimum(x[i] + w[i], x[order] + w[order]) - np.maximum(x[i], x[order])
        high = np.minimum(y[i] + h[i], y[order] + h[order]) - np.maximum(y[i], y[order])
        both = np.maximum(wide, 0) * np.maximum(high, 0)
        order = order[both / (w[i] * h[i] + w[order] * h[order] - both) <= iou]
    return np.array(kept)


def suppressor(model: str) -> Callable[[np.ndarray, np.ndarray, float], Any]:
    if model == "dtwb":
        from dtwb.vision.boxes import nms

        return nms
    if model == "opencv":
        import cv2

        cv2.setNumThreads(1)
        return lambda boxes, scores, iou: cv2.dnn.NMSBoxes(boxes, scores.astype(np.float32), 0.0, iou)
    if model == "numpy":
        return plain_nms
    from sahi.postprocess.backends import set_postprocess_backend  # pyright: ignore
    from sahi.postprocess.combine import nms  # pyright: ignore

    set_postprocess_backend(model.partition(":")[2])
    return lambda boxes, scores, iou: nms(_corners(boxes, scores), "IOU", iou)


def _corners(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return np.column_stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:], scores, np.zeros(len(boxes))])


def measure_nms(model: str, name: str, n: int, iou: float, repeats: int) -> dict:
    "Milliseconds of one call, the first one left out, and which boxes stay."
    suppress, (boxes, scores) = suppressor(model), scene(name, n)
    kept, times = np.asarray(suppress(boxes, scores, iou)), []
    for _ in range(repeats):
        began = time.perf_counter()
        suppress(boxes, scores, iou)
        times.append(1000 * (time.perf_counter() - began))
    digest = hashlib.sha256(kept.astype(np.int64).tobytes()).hexdigest()[:12]
    figures = {"ms": statistics.median(times), "best_ms": min(times)}
    package = {"dtwb": "numba", "opencv": "opencv-python-headless"}.get(model, model.partition(":")[0])
    about = {"versions": {package: metadata.version(package)}}
    return {"kept": len(kept), "hash": digest} | {k: round(v, 3) for k, v in figures.items()} | about


# Large images


def _demo() -> Any:
    from dtwb.vision.inspector import Inspector

    return Inspector.load(ROOT / "models/tile_demo")


def add_pit(luck: np.random.Generator, image: np.ndarray, patch: int) -> tuple[int, int, int, int]:
    "Paint a pit as large as it would be in an image of `patch` px; where: x, y, width, height."
    from dtwb.vision.metrics import box_of
    from dtwb.vision.synthetic import paint_defect

    y, x = (int(luck.integers(0, n - patch)) for n in image.shape)
    cut = np.s_[y : y + patch, x : x + patch]
    image[cut], mask = paint_defect(luck, image[cut], "blowhole", 0.9)
    left, top, width, height = box_of(mask) or (0, 0, patch, patch)
    return x + left, y + top, width, height


def surface(luck: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    from dtwb.vision.synthetic import generate_tile

    return generate_tile(luck, None, size)[0]


def is_hit(boxes: Iterable, place: tuple | list) -> bool:
    from dtwb.vision.metrics import box_iou

    return any(box_iou(tuple(box), tuple(place)) > 0 for box in boxes)


def paint(path: str, side: int, seed: int) -> dict:
    "Write a large image, four times as sharp as the demo knows them; in a process whose memory is not counted."
    import cv2

    luck, count = np.random.default_rng(seed), -(-side // 4000)
    piece = cv2.resize(surface(luck, (1200, 1200))[100:1100, 100:1100], (4000, 4000))  # no ends of a tile in it
    row = np.hstack([piece[:, :: 1 - 2 * (k % 2)] for k in range(count)])
    image = np.vstack([row[:: 1 - 2 * (k % 2)] for k in range(count)])[:side, :side].copy()
    places = [add_pit(luck, image, 512) for _ in range(20)]
    if path.endswith(".npy"):
        np.save(path, image)
    else:
        cv2.imwrite(path, image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return {"places": places}


def measure_large(kind: str, side: int, per_image: bool, seed: int = 0) -> dict:
    "A square image from a file, tile by tile: time and the highest memory of the process."
    from dtwb.vision.tiles import open_large
    from dtwb.vision.tiling import TiledInspector

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

    inspector = _demo()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"large.{kind}")
        command = [sys.executable, __file__, "paint", str(path), str(side), str(seed)]
        places = _answer(command)["places"]
        size, before, began = path.stat().st_size, peak(), time.perf_counter()
        image = open_large(path)
        read, after = time.perf_counter() - began, peak()
        tiled, began, cpu = (
            TiledInspector(inspector, scale=0.25, per_image=per_image),
            time.perf_counter(),
            time.process_time(),
        )
        found = tiled.predict(image)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "megapixels": round(image.size / 1e6, 1),
        "file_mb": size >> 20,
        "tiles": len(tiled.tiling(image)),
        "read_s": round(read, 2),
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu, 2),
        "start_mb": before,
        "read_mb": after,
        "peak_mb": peak(),
        "map": list(found.attention_map.shape),
        "said": found.defect_type,
        "boxes": len(found.boxes),
        "pits": len(places),
        "pits_hit": sum(is_hit(found.boxes, place) for place in places),
    }


def sheets(n: int, seed: int) -> tuple[Any, list]:
    "An `ImageSet` of sheets of 480 x 640 px, every second one with small pits, and the places of these."
    import pandas as pd

    from dtwb.vision.images import ImageSet

    luck, pictures, places = np.random.default_rng(seed), {}, []
    for k in range(n):
        pictures[f"{k}.png"] = surface(luck, (480, 640))
        places.append(add_pit(luck, pictures[f"{k}.png"], 128) if k % 2 else None)
    table = pd.DataFrame({"path": list(pictures), "label": ["blowhole" if place else "good" for place in places]})
    return ImageSet(table.assign(group=table.path, split="test"), pictures=pictures), places


def measure_pits(n: int, seed: int = 0) -> dict:
    "Small defects: sheets shrunk to the model's input, and tile by tile with three thresholds."
    from sklearn.metrics import roc_auc_score

    from dtwb.vision.tiling import TiledInspector, threshold_of_tiles

    inspector, (images, places) = _demo(), sheets(n, seed)
    tiled, truth = TiledInspector(inspector), np.array([place is not None for place in places])
    fitted = tiled.calibrated(sheets(n, seed + 1000)[0])
    said = {"shrunk": [], "tiled": [], "calibrated": []}
    hits = []
    for k, place in enumerate(places):
        found = {"shrunk": inspector.predict(images.image(k)), "tiled": tiled.predict(images.image(k))}
        for name, d in (found | {"calibrated": fitted.predict(images.image(k))}).items():
            said[name].append(1 - d.probabilities["good"])
        if place:
            hits.append(is_hit(found["tiled"].boxes, place))
    said = {name: np.array(p) for name, p in said.items()} | {"per_image": np.array(said["tiled"])}
    areas, at = 480 * 640 / 128**2, inspector.meta.threshold
    thresholds = {"calibrated": fitted.meta.threshold, "per_image": threshold_of_tiles(at, areas)}
    figures = {}
    for name, p in said.items():
        figures[f"{name}_auroc"] = roc_auc_score(truth, p)
        figures[f"{name}_recall"] = (p[truth] >= thresholds.get(name, at)).mean()
        figures[f"{name}_false_alarms"] = (p[~truth] >= thresholds.get(name, at)).mean()
    return {k: round(float(v), 4) for k, v in figures.items()} | {"boxes_on_the_pit": round(float(np.mean(hits)), 4)}


def measure_overhead(side: int, repeats: int, seed: int = 0) -> dict:
    "Tiles a second through `TiledInspector`, and of the same tiles cut before: what tiling itself costs."
    from dtwb.vision.tiling import TiledInspector

    inspector = _demo()
    image = surface(np.random.default_rng(seed), (side, side))
    tiled = TiledInspector(inspector)
    plan = tiled.tiling(image)
    cut = [plan.cut(image, k) for k in range(len(plan))]
    whole, bare = [], []
    for _ in range(repeats):
        began = time.process_time()
        tiled.predict(image)
        whole.append(time.process_time() - began)
        began = time.process_time()
        inspector.predict_batch(cut, batch_size=tiled.batch_size)
        bare.append(time.process_time() - began)
    ms = {"tiled_ms": statistics.median(whole), "bare_ms": statistics.median(bare)}
    ratio = statistics.median(a / b for a, b in zip(whole, bare))
    return {k: round(1000 * v / len(plan), 3) for k, v in ms.items()} | {"tiles": len(plan), "ratio": round(ratio, 3)}


# How


MEASURES = {"nms": measure_nms, "large": measure_large, "pits": measure_pits, "overhead": measure_overhead}


def interpreter(model: str) -> Path:
    "The Python that has what `model` needs."
    return ROOT / f".venv-peers/{PEERS[model]}/bin/python" if model in PEERS else Path(sys.executable)


def _answer(command: list) -> dict:
    from run_twin import answer

    row = answer(command)
    if "error" in row:
        raise RuntimeError(row["error"])
    return row


def measure(suite: str, say: Callable[[str], Any] = print, **asked: Any) -> dict:
    "One measurement in a fresh process."
    from run_twin import answer

    python = interpreter(asked.get("model", ""))
    row = answer([python, Path(__file__), "measure", suite, json.dumps(asked)])
    row |= {"suite": suite} | asked
    say(f"{suite} {asked}: {row.get('error') or {k: row[k] for k in list(row)[:4]}}")
    return row


def run_nms(
    n: int = 10_000,
    repeats: int = 7,
    models: Iterable[str] = MODELS,
    scenes: Iterable[str] = SCENES,
    say: Callable[[str], Any] = print,
) -> list[dict]:
    "All on the same boxes; a peer that is not installed is left out."
    there = [model for model in models if interpreter(model).exists()]
    asked = {"n": n, "iou": 0.5, "repeats": repeats}
    return [measure("nms", say, model=model, name=name, **asked) for name in scenes for model in there]


def run_large(side: int = 20_000, say: Callable[[str], Any] = print) -> list[dict]:
    cases = (("npy", False), ("png", False), ("png", True))
    return [measure("large", say, kind=kind, side=side, per_image=per_image) for kind, per_image in cases]


def run_pits(n: int = 60, seeds: Iterable[int] = (0, 1), say: Callable[[str], Any] = print) -> list[dict]:
    return [measure("pits", say, n=n, seed=seed) for seed in seeds]


def run_overhead(side: int = 1000, repeats: int = 5, say: Callable[[str], Any] = print) -> list[dict]:
    return [measure("overhead", say, side=side, repeats=repeats)]


SUITES: dict[str, Callable[..., list[dict]]] = {
    "nms": run_nms,
    "large": run_large,
    "pits": run_pits,
    "overhead": run_overhead,
}


def save(suite: str, rows: list[dict], folder: Path = RESULTS) -> None:
    "All rows of a suite; what was there is replaced."
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"vision_boxes_{suite}.json.tmp"
    aside.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    aside.replace(folder / f"vision_boxes_{suite}.json")


def read_rows(folder: Path, suite: str) -> list[dict]:
    path = folder / f"vision_boxes_{suite}.json"
    return json.loads(path.read_text()) if path.exists() else []


def main() -> None:
    if sys.argv[1:2] in (["measure"], ["paint"]):
        out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        if sys.argv[1] == "paint":
            found = paint(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        else:
            found = MEASURES[sys.argv[2]](**json.loads(sys.argv[3]))
        out.write(json.dumps(found))
        out.close()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=["all", *SUITES])
    parser.add_argument("--n", type=int, help="boxes, or sheets")
    parser.add_argument("--side", type=int, help="px")
    parser.add_argument("--repeats", type=int)
    asked = parser.parse_args()
    given = {name: value for name in ("n", "side", "repeats") if (value := getattr(asked, name)) is not None}
    for suite in SUITES if asked.suite == "all" else [asked.suite]:
        takes = SUITES[suite].__code__.co_varnames[: SUITES[suite].__code__.co_argcount]
        save(suite, SUITES[suite](**{name: value for name, value in given.items() if name in takes}))


if __name__ == "__main__":
    main()
