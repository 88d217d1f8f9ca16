"""The headline: one recipe on every fold of a data set, all test predictions pooled, intervals over parts.

    python nbs/benchmarks/run_vision_fold5.py ../shared/data/magnetic_tile --seconds 420

The bundles and predictions go to `data/cv/NAME`; a run that was killed goes on. The figures are written to
`nbs/benchmarks/vision_fold5.json`, which `vision_accuracy.ipynb` reads.
"""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parents[2]


def by_type(table: pd.DataFrame) -> dict[str, dict]:  # of `CrossValidation.predictions`
    "A defect type against the good photos, and its places."
    good, out = table[table.truth == 0].p_defect, {}
    for label, rows in table[table.truth > 0].groupby("label"):
        truth = np.r_[np.zeros(len(good)), np.ones(len(rows))]
        figures = {"n": len(rows), "parts": int(rows.group.nunique())}
        figures["auroc"] = round(float(roc_auc_score(truth, np.r_[good, rows.p_defect])), 4)
        figures["found"] = round(float((rows.decided > 0).mean()), 4)
        figures["named"] = round(float((rows.decided == rows.truth).mean()), 4)
        if "pixel_ap" in rows and (marked := rows.dropna(subset=["pixel_ap"])).size:
            figures["pixel_ap"] = round(float(marked.pixel_ap.mean()), 4)
            figures["box_share"] = round(float((marked.box_iou >= 0.3).mean()), 4)
            figures["box_hits"] = round(float(marked.found.sum() / marked.regions.sum()), 4)
        out[str(label)] = figures
    return out


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a folder of photos, or a `synthetic:` path")
    parser.add_argument("--seconds", type=float, default=420, help="of training, a fold")
    parser.add_argument("--folds", type=int, default=5, help="where the data has none of its own")
    parser.add_argument("--out", type=Path, help="folder of the folds' bundles")
    parser.add_argument("--json", type=Path, default=ROOT / "nbs/benchmarks/vision_fold5.json")
    parser.add_argument("--recipe", type=json.loads, default={}, help="changes of the recipe, as JSON")
    args = parser.parse_args()

    from dtwb.vision.bundle import read_bundle
    from dtwb.vision.folds import cross_validate
    from dtwb.vision.images import read_images

    name = Path(args.data.split("?")[0].replace(":", "_")).name
    out = args.out or ROOT / "data/cv" / name
    load, started = os.getloadavg(), time.time()
    result = cross_validate(read_images(args.data), out, args.folds, time_limit=args.seconds, **args.recipe)
    bundles = [read_bundle(out / f"fold{i}") for i in range(len(result.folds))]
    report = {
        "what": f"{name}, grouped {len(result.folds)}-fold, each photo judged by a model that has not seen its part",
        "machine": cpu(),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime(started)),
        "versions": {p: version(p) for p in ("dtwb", "torch", "timm", "lightning")},
        "recipe": bundles[0].training.get("recipe", {}) | {"time_limit": args.seconds},
        "input": [bundles[0].preprocess.height, bundles[0].preprocess.width],
        "steps": [b.training.get("steps") for b in bundles],
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "load": [round(v, 1) for v in (*load, *os.getloadavg())],
        **result.to_json(),
        "n": len(result.predictions),
        "seconds": result.folds.seconds.tolist(),
        "by_type": by_type(result.predictions),
    }
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: report[k] for k in ("figures", "by_type", "seconds")}, indent=1))


if __name__ == "__main__":
    main()
