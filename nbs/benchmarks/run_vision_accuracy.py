"""Trains ours and anomalib's models on the same photos and judges all by the same code, one after the other.

    python nbs/benchmarks/run_vision_accuracy.py memory_bank padim --data ../shared/data/magnetic_tile --seconds 600

Each result is written as `data/benchmarks/vision_accuracy_MODEL.json`, and all that lie there, after each, as
`nbs/benchmarks/vision_accuracy.json`, which `vision_accuracy.ipynb` shows. Only the given split is used: train to learn
from (one-class models see its good photos only), test to be judged on. With `--total` no model begins that could not
have `--seconds` any more; what failed is told and left out.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "data/benchmarks"
PEERS = ("draem", "ganomaly", "patchcore", "padim", "fastflow", "reverse_distillation")
FIGURES = ("auroc", "ap", "pixel_ap_types", "pixel_auroc", "aupro", "pointing")  # that need no threshold
TYPED = ("macro_f1", "box_hits")  # that do: ours only


OURS: dict[str, dict] = {  # options of `fit_one_class` or of `fit`, by the name of the run
    "headline": {},  # as `dtwb train` does it
    "headline from scratch": {"start": None},
    "swin_demo": {"model": "swin_demo", "size": (224, 224)},
    "memory_bank": {"model": "memory_bank"},
    "memory_bank tile_demo": {"model": "memory_bank", "start": "models/tile_demo", "size": (224, 224)},
    "student_teacher": {"model": "student_teacher"},
    "painted": {"model": "painted", "epochs": 200, "epoch_size": 512},
}


def spread_knots(maps: list[np.ndarray], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    "Of pooled maps: values, and 0..1 by how few pixels exceed them, six decades evenly: bins fine enough for the few."
    pool = np.concatenate([np.asarray(m, np.float32).ravel() for m in maps])
    pool = np.sort(np.random.default_rng(seed).choice(pool, min(len(pool), 3_000_000), replace=False))
    decades = np.linspace(0, 6, 2000)
    at = np.clip(np.round((1 - 10.0**-decades) * (len(pool) - 1)).astype(int), 0, len(pool) - 1)
    values, first = np.unique(pool[at], return_index=True)
    return values, decades[first] / 6


def judge(images: Any, scores: np.ndarray, maps: list[np.ndarray] | None, rounds: int = 500) -> dict[str, Any]:
    "The figures of scores (n,) and maps (H, W) of an `ImageSet`'s photos, on whatever scale: only their order counts."
    from dtwb.vision.tally import Tally

    order = np.argsort(np.argsort(scores)) / max(len(scores) - 1, 1)
    for value in np.unique(scores):  # equal scores stay equal
        order[scores == value] = order[scores == value].mean()
    tally, knots = Tally(("good", "defect")), spread_knots(maps) if maps else None
    for i, row in enumerate(images.table.itertuples()):
        map = np.interp(maps[i], *knots).astype(np.float32) if maps and knots else None
        p = float(order[i])
        tally.add(row.label, row.group, (1 - p, p), int(p > 0.5), map, images.mask(i), path=str(row.path))
    figures = tally.measure(rounds)
    by_type = {
        label: round(float(tally.table.loc[tally.table.label == label, "pixel_ap"].mean()), 4)
        for label in sorted(set(images.table.label) - {"good"})
        if "pixel_ap" in tally.table
    }
    return {k: figures[k].to_json() for k in FIGURES if k in figures} | {"pixel_ap_by_type": by_type}


def spent() -> float:  # s of computing, of this process and its children
    return sum(
        u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def run_ours(name: str, images: Any, seconds: float, rounds: int = 500, **changes) -> dict:
    "Fit one of ours on train and val, and judge it on test."
    from dataclasses import replace

    from dtwb.vision.bundle import Meta
    from dtwb.vision.calibration import calibrate
    from dtwb.vision.inspector import Inspector, evaluate
    from dtwb.vision.one_class_training import ONE_CLASS, fit_one_class
    from dtwb.vision.training import fit

    options, started = {**OURS[name], **changes}, time.perf_counter()
    one_class = options.get("model") in ONE_CLASS
    fitted: Any = (fit_one_class if one_class else fit)(images, time_limit=seconds, progress=False, **options)
    took = time.perf_counter() - started
    meta = Meta(
        tuple(fitted.classes), fitted.config, fitted.backbone, str(fitted.model.map),
        threshold=fitted.threshold, kind=fitted.kind, options=fitted.options,
    )  # fmt: skip
    inspector, test = Inspector(meta, _run_torch(fitted.model), "torch"), images.select(split="test")
    started = time.perf_counter()
    found = [inspector.predict(test.image(i)) for i in range(len(test))]
    each = 1000 * (time.perf_counter() - started) / len(test)
    scores = np.array([1 - d.probabilities["good"] for d in found])
    row = judge(test, scores, [d.attention_map for d in found], rounds)
    if not one_class:
        inspector = replace(inspector, meta=calibrate(inspector, images.select(split="val")))
        own = evaluate(inspector, test, rounds=rounds).figures
        row |= {k: own[k].to_json() for k in TYPED if k in own}
    about = {"model": name, "who": "ours", "learns from": "good photos" if one_class else "labels and masks"}
    size = sum(p.numel() for p in fitted.model.parameters())
    versions = {package: version(package) for package in ("torch", "timm", "numpy")}
    about |= {"fit_s": round(took, 1), "predict_ms": round(each, 1), "parameters": size, "versions": versions}
    return about | row


def _run_torch(model: Any) -> Any:
    import torch

    @torch.inference_mode()
    def run(x):
        logits, map = model(torch.from_numpy(x))
        return logits.numpy(), map.numpy()

    return run


def write_folder(images: Any, folder: Path) -> None:
    "The good photos of train and val, and those of test by their number, as PNG."
    parts = {f"{split}/good": images.select(split=split, label="good") for split in ("train", "val")}
    for part, chosen in (*parts.items(), ("test", images.select(split="test"))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for i in range(len(chosen)):
            picture = chosen.image(i)
            cv2.imwrite(str(folder / part / f"{i:05d}.png"), picture if picture.ndim == 2 else picture[..., ::-1])


def run_peer(name: str, images: Any, seconds: float, rounds: int = 500, venvs: Path = ROOT / ".venv-peers") -> dict:
    "Fit one of anomalib's in its own venv, and judge it on test."
    python = venvs.resolve() / "anomalib/bin/python"
    test = images.select(split="test")
    with tempfile.TemporaryDirectory() as aside:
        write_folder(images, Path(aside))
        script = Path(__file__).with_name("peer_anomalib.py")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [str(python), str(script), name, aside, str(seconds)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        if done.returncode:
            return {"model": name, "who": "anomalib", "error": (done.stderr.strip().splitlines() or ["?"])[-1][:300]}
        found, about = np.load(f"{aside}/{name}.npz"), json.loads(Path(f"{aside}/{name}.json").read_text())
        order = np.argsort(found["names"])
        scores, maps = found["scores"][order], None
        if "maps" in found:
            small = found["maps"]
            sizes = [test.image(i).shape[1::-1] for i in range(len(test))]
            maps = [cv2.resize(small[k], size, interpolation=cv2.INTER_LINEAR) for k, size in zip(order, sizes)]
    assert len(scores) == len(test)
    return {"model": name, "who": "anomalib", "learns from": "good photos"} | judge(test, scores, maps, rounds) | about


def run(name: str, data: str, seconds: float, rounds: int = 500, venvs: Path = ROOT / ".venv-peers", **changes) -> dict:
    "One model; `data` is what `read_images` takes."
    from dtwb.vision.images import read_images

    images, load, before, started = read_images(data), os.getloadavg()[0], spent(), time.perf_counter()
    if name in PEERS:
        row = run_peer(name, images, seconds, rounds, venvs)
    else:
        row = run_ours(name, images, seconds, rounds, **changes)
    about = {"data": Path(data).name, "limit_s": seconds, "at": datetime.now().isoformat(" ", "minutes")}
    about |= {"load before": round(load, 1), "load after": round(os.getloadavg()[0], 1)}
    return row | about | {"cores": round((spent() - before) / max(time.perf_counter() - started, 1e-9), 2)}


def write_all() -> None:
    "All results that lie there, to one file."
    from run_twin import write_rows

    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("vision_accuracy_*.json"))]
    write_rows("vision_accuracy", "accuracy on one grouped split: ours and anomalib's", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help=f"of {', '.join((*OURS, *PEERS))}")
    parser.add_argument("--data", default=str(ROOT.parent / "shared/data/magnetic_tile"))
    parser.add_argument("--seconds", type=float, default=600, help="of training, each")
    parser.add_argument("--total", type=float, default=float("inf"), help="of all together")
    parser.add_argument("--venvs", type=Path, default=ROOT / ".venv-peers", help="where anomalib's venv lies")
    given = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for name in given.models:
        left = given.total - (time.monotonic() - started)
        if left < given.seconds:
            print(f"{name}: no time left", flush=True)
            continue
        row = run(name, given.data, given.seconds, venvs=given.venvs)
        print(json.dumps(row), flush=True)
        if "error" not in row:
            path = RESULTS / f"vision_accuracy_{name.replace(' ', '_')}.json"
            path.write_text(json.dumps(row) + "\n")
            write_all()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
