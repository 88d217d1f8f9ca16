"""Times anomalib's TorchInferencer on a photo, from an array to its verdict; runs in anomalib's venv.

    python peer_speed.py FOLDER SIZE THREADS ROUNDS LEAST

FOLDER/good holds photos to fit on. The backbone is resnet18 with random numbers, since nothing is downloaded.
Prints one line: ROWS and JSON.
"""

import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ["TRUST_REMOTE_CODE"] = "1"  # anomalib's inferencer opens a pickle

import torch

if torch.version.cuda is None:  # torchvision's wheel asks for operators that its library would bring
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

warnings.filterwarnings("ignore")


def main(folder: Path, size: int, threads: int, rounds: int, least: float) -> None:
    import cv2
    from anomalib.data import Folder
    from anomalib.deploy import ExportType, TorchInferencer
    from anomalib.engine import Engine
    from anomalib.models import Padim, Patchcore

    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    photo = cv2.cvtColor(cv2.imread(str(min((folder / "good").iterdir()))), cv2.COLOR_BGR2RGB)
    rows = []
    for name, kind, more in (("padim", Padim, {}), ("patchcore", Patchcore, {"coreset_sampling_ratio": 0.01})):
        out = tempfile.mkdtemp(dir=folder)
        resize = kind.configure_pre_processor(image_size=(size, size))
        model = kind(
            backbone="resnet18", pre_trained=False, pre_processor=resize, evaluator=False, visualizer=False, **more
        )
        data = Folder(
            name="speed", root=folder, normal_dir="good", train_batch_size=8, eval_batch_size=8, num_workers=0,
            val_split_mode="from_train", test_split_mode="none",
        )  # fmt: skip
        engine = Engine(
            max_epochs=1, accelerator="cpu", devices=1, default_root_dir=out, logger=False, enable_progress_bar=False
        )
        engine.fit(model, data)
        inferencer = TorchInferencer(path=engine.export(model, ExportType.TORCH, export_root=out), device="cpu")
        inferencer.predict(image=photo)
        values = []
        for _ in range(rounds):
            spent: list[float] = []
            while sum(spent) < least or len(spent) < 3:
                started = time.perf_counter()
                inferencer.predict(image=photo)
                spent.append(time.perf_counter() - started)
            values.append(statistics.median(spent))
        row = {"backbone": "resnet18", "pipeline": f"anomalib {name}", "batch": 1, "threads": threads}
        rows.append(row | {"ms": 1000 * statistics.median(values), "version": version("anomalib")})
    print("ROWS" + json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
