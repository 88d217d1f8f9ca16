"""Measures batches of photos on one core and on two, each in a fresh process that may use no other.

    python nbs/benchmarks/run_vision_batch.py --n 600 --repeats 5

The results are written as `data/benchmarks/vision_batch.json`, where `vision_batch.ipynb` finds them.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "data/benchmarks"
WRITES = {"table": ("parquet",), "table and pictures": ("parquet", "pictures")}


def paint(folder: Path, n: int) -> None:
    "Generated photos as JPEG, of the sizes of the real ones."
    import cv2

    from dtwb.vision.synthetic import generate_images

    images = generate_images(n, seed=1, shots=1, size=(300, 240))
    for i in range(n):
        cv2.imwrite(str(folder / f"{i:05}.jpg"), images.image(i))


def measure(cores: list[int], bundle: str, folder: str, writes: str) -> dict:
    "Images a second from files to results, the start of the process left out."
    os.sched_setaffinity(0, cores)
    from dtwb.vision.batch import BatchProcessor
    from dtwb.vision.ensemble import open_inspector

    processor, photos = BatchProcessor(open_inspector(bundle)), sorted(Path(folder).glob("*.jpg"))
    processor.run(photos[:16])
    with tempfile.TemporaryDirectory() as out:
        cpu = time.process_time()
        report = processor.run(photos, out, formats=WRITES[writes])
        cpu = time.process_time() - cpu
    if report.failed:
        raise RuntimeError(report.failed[0]["error"])
    figures = {"images": report.new, "per_second": round(report.new / report.seconds, 1)}
    return figures | {"cpu_ms": round(1000 * cpu / report.new, 2), "busy": round(cpu / report.seconds, 2)}


def run_all(
    n: int = 600,  # photos
    repeats: int = 5,
    bundle: str = "",  # the demo inspector by default
    writes: Sequence[str] = tuple(WRITES),
    say: Callable[[str], Any] = print,
) -> list[dict]:
    "One core and two by turns, so that both meet the same other load."
    from run_twin import answer

    rows, cores = [], sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder:
        paint(Path(folder), n)
        for repeat in range(repeats):
            for written in writes:
                for used in ([cores[0]], cores):
                    asked = [used, bundle or str(ROOT / "models/tile_demo"), folder, written]
                    row = answer([sys.executable, Path(__file__), "measure", json.dumps(asked)])
                    rows.append({"writes": written, "cores": len(used), "repeat": repeat} | row)
                    rows[-1]["load"] = round(os.getloadavg()[0], 2)
                    say(str(rows[-1]))
    return rows


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        out.write(json.dumps(measure(*json.loads(sys.argv[2]))))
        out.close()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=600, help="photos")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bundle", default="", help="another inspector's folder")
    rows = run_all(**vars(parser.parse_args()))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "vision_batch.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
