"""Trains one model of anomalib on good photos without pretrained weights, and writes what it says of others.

    python peer_anomalib.py MODEL FOLDER SECONDS

FOLDER holds `train/good/*.png`, `val/good/*.png` and `test/*.png`. Written there: `MODEL.npz` with `names`, `scores`
(as the model gives them, not normalised) and, where it draws one, `maps` (n, h, w) of the stretched input; and
`MODEL.json` with seconds and versions. Training stops after SECONDS. MODEL is one of MODELS; nothing of dtwb is
imported. What anomalib takes by default is taken: its resize, batch and rate. Where the default is a pretrained
backbone, a resnet18 of random numbers stands for it; Draem's foreign textures, a download, are left out, so that it
uses noise, as it does without them; the coreset is smaller than the default, which would not end within the budget.
"""

import json
import logging
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

if torch.version.cuda is None:  # torchvision's wheel asks for operators that its library would bring
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

warnings.filterwarnings("ignore")
BARE = {"post_processor": False, "evaluator": False, "visualizer": False}
MODELS = ("draem", "ganomaly", "patchcore", "padim", "fastflow", "reverse_distillation")


def build(name: str, empty: str):
    from anomalib import models

    if name == "draem":
        return models.Draem(dtd_dir=empty, **BARE), 8
    if name == "ganomaly":
        return models.Ganomaly(batch_size=16, **BARE), 16
    if name == "patchcore":
        return models.Patchcore(backbone="resnet18", pre_trained=False, coreset_sampling_ratio=0.001, **BARE), 16
    if name == "padim":
        return models.Padim(backbone="resnet18", pre_trained=False, **BARE), 16
    if name == "fastflow":
        return models.Fastflow(backbone="resnet18", pre_trained=False, **BARE), 16
    if name == "reverse_distillation":
        return models.ReverseDistillation(backbone="resnet18", pre_trained=False, **BARE), 8
    raise SystemExit(f"no model {name}; models are {', '.join(MODELS)}")


def main(name: str, folder: Path, seconds: float) -> None:
    from anomalib.data import Folder, PredictDataset
    from anomalib.engine import Engine

    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as aside:
        (Path(aside) / "dtd").mkdir()
        model, batch = build(name, f"{aside}/dtd")
        data = Folder(
            name="bench",
            root=folder,
            normal_dir="train/good",
            train_batch_size=batch,
            eval_batch_size=batch,
            num_workers=0,
            normal_test_dir="val/good",
            val_split_mode="same_as_test",
        )
        engine = Engine(
            max_epochs=1 if name in ("patchcore", "padim") else 1000,
            max_time={"seconds": seconds},
            check_val_every_n_epoch=1 if name in ("patchcore", "padim") else 10**6,
            accelerator="cpu",
            devices=1,
            default_root_dir=aside,
            logger=False,
            enable_progress_bar=False,
        )
        started = time.perf_counter()
        engine.fit(model, datamodule=data)
        fitted = time.perf_counter()
        steps = engine.trainer.global_step
        model.eval()
        names, scores, maps = [], [], []
        loader = torch.utils.data.DataLoader(
            PredictDataset(folder / "test"), batch_size=batch, collate_fn=PredictDataset(folder / "test").collate_fn
        )
        with torch.inference_mode():
            for item in loader:
                image = model.pre_processor.transform(item.image) if model.pre_processor else item.image
                said = model.model(image)
                names += [Path(p).stem for p in item.image_path]
                scores += said.pred_score.flatten().tolist()
                if getattr(said, "anomaly_map", None) is not None:
                    maps += [m.squeeze().float().numpy() for m in said.anomaly_map]
        ended = time.perf_counter()
    found = {"names": np.array(names), "scores": np.array(scores, np.float64)}
    if maps:
        found["maps"] = np.stack(maps).astype(np.float32)
    np.savez_compressed(folder / f"{name}.npz", **found)
    about = {
        "fit_s": round(fitted - started, 1),
        "predict_ms": round(1000 * (ended - fitted) / max(len(names), 1), 1),
        "steps": int(steps),
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {p: version(p) for p in ("anomalib", "torch", "lightning", "timm")},
    }
    (folder / f"{name}.json").write_text(json.dumps(about))
    print(json.dumps(about))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
