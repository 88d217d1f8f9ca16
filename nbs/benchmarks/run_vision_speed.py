"""Times `predict()` beside timm's eager pipeline and anomalib's inferencer, from a photo in memory to a verdict.

    python nbs/benchmarks/run_vision_speed.py all                  # five backbones, about four minutes on two cores
    python nbs/benchmarks/run_vision_speed.py swin_tiny_patch4_window7_224 --rounds 5
    python nbs/benchmarks/run_vision_speed.py anomalib --peers ../oneclass/.venv-peers

Each result is written as `data/benchmarks/vision_speed_NAME.json`, where `vision_speed.ipynb` finds it. A backbone's
pipelines run in one process and take turns, so that what else the machine does meets all of them. The network of a
backbone learns for some seconds to tell an obvious defect: labels are those of a network that is sure.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "data/benchmarks"
BACKBONES = (
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "efficientvit_b0",
    "resnet18",
    "convnext_atto",
)
EAGER = "timm eager"


def seconds_of(call: Callable, least: float, *arguments: Any) -> float:  # a call, the median over at least `least` s
    spent: list[float] = []
    while sum(spent) < least or len(spent) < 3:
        started = time.perf_counter()
        call(*arguments)
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def sgemm_limit(least: float = 0.5) -> float:  # GFLOP/s of a product of large matrices in torch
    import torch

    a = torch.randn(1536, 1536)
    return 2 * 1536**3 / seconds_of(torch.mm, least, a, a) / 1e9


def photos(n: int, size: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:  # RGB, and which are defective
    "Generated tiles, half of them with a dark disk: a defect that is learnt in seconds, so that labels have a margin."
    import cv2

    from dtwb.vision.synthetic import generate_images

    images, rng = generate_images(n, seed=seed, size=(size, size)), np.random.default_rng(seed)
    defect, rgb = rng.random(len(images)) < 0.5, []
    for k in range(len(images)):
        image = images.image(k).copy()
        if defect[k]:
            at = [int(v) for v in rng.uniform(0.3, 0.7, 2) * size]
            cv2.circle(image, at, int(rng.uniform(0.12, 0.2) * size), 20, -1)
        rgb.append(np.repeat(image[..., None], 3, axis=2))
    return rgb, defect


def settle(model: Any, x: np.ndarray) -> None:
    "Scales and statistics of batch norms as a trained network has them: timm starts whole branches at zero."
    import torch

    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.weight.data.uniform_(0.8, 1.2)
            layer.bias.data.normal_(0, 0.1)
            layer.momentum = None  # the mean over what is seen
    model.train()
    with torch.no_grad():
        for k in range(0, min(len(x), 48), 16):
            model(torch.from_numpy(x[k : k + 16]))
    model.eval()


def fit_head(model: Any, x: np.ndarray, defect: np.ndarray) -> None:
    "The last layer of good and defect, from what varies most in the features of untrained layers."
    import torch
    from sklearn.linear_model import LogisticRegression

    seen: list[np.ndarray] = []
    hook = model.decide.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].numpy()))
    with torch.inference_mode():
        for k in range(0, len(x), 16):
            model(torch.from_numpy(x[k : k + 16]))
    hook.remove()
    features = np.concatenate(seen)
    mean = features.mean(0)
    _, spread, axes = np.linalg.svd(features - mean, full_matrices=False)
    axes, spread = axes[:8], spread[:8] / len(features) ** 0.5 + 1e-9  # the rest is too weak to be seen in 8 bits
    fitted = LogisticRegression(max_iter=300).fit((features - mean) @ axes.T / spread, defect)
    weight = (fitted.coef_[0] / spread) @ axes / 2  # half for defect, half against good
    bias = fitted.intercept_[0] / 2 - weight @ mean
    with torch.no_grad():
        model.decide.weight.copy_(torch.tensor(np.stack([-weight, weight])))
        model.decide.bias.copy_(torch.tensor(np.array([-bias, bias])))


def learn(model: Any, x: np.ndarray, defect: np.ndarray, seconds: float) -> None:
    "All layers, a little: a network that is sure of an obvious defect, as a trained one is."
    import torch

    optimiser, rng = torch.optim.AdamW(model.parameters(), lr=3e-4), np.random.default_rng(0)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.1
    model.train()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        rows = rng.integers(len(x), size=16)
        loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(x[rows]))[0], torch.tensor(defect[rows]).long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()


def eager_pipeline(network: Any, size: int) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    "Photos to probabilities, as one writes it with torch, timm and torchvision."
    import torch
    from PIL import Image
    from torchvision import transforms

    steps = transforms.Compose(
        [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3)]
    )

    def run(images):
        with torch.inference_mode():
            out = network(torch.stack([steps(Image.fromarray(image)) for image in images]))
            return (out[0] if isinstance(out, tuple) else out).double().softmax(1).numpy()  # no ties near 1

    return run


def time_backbone(
    name: str,
    *,
    size: int = 224,
    photo: int = 256,  # px a side of what is looked at
    n: int = 200,  # photos whose labels are compared
    rounds: int = 7,
    least: float = 0.4,  # s a round and pipeline
    batches: Sequence[int] = (1, 16),
    map: str = "cam",
    threads: int = 2,
    seconds: float = 20.0,  # of learning, beforehand
) -> list[dict]:
    "One row a pipeline and batch size."
    import torch
    from sklearn.metrics import roc_auc_score
    from torch.utils.flop_counter import FlopCounterMode

    from dtwb.vision.backends import set_threads
    from dtwb.vision.bundle import Meta
    from dtwb.vision.export import export_bundle
    from dtwb.vision.inspector import Inspector
    from dtwb.vision.models import create_model, timm  # it mends torchvision's import
    from dtwb.vision.preprocess import Preprocess, preprocess

    set_threads(threads)
    torch.manual_seed(0)
    train, bad = photos(max(n // 2, 16), photo, 1)
    check, defect = photos(n, photo, 2)
    config = Preprocess(size, size, 3, standardise=False, mean=(0.5,), std=(0.25,))
    meta = Meta(("good", "defect"), config, name, map)
    model = create_model(name, 2, channels=3, size=(size, size), map=map).eval()
    inputs = np.stack([preprocess(config, image)[0] for image in train])
    settle(model, inputs)
    fit_head(model, inputs, bad)
    learn(model, inputs, bad, seconds)
    plain = timm.create_model(name, num_classes=2).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        plain(torch.zeros(1, 3, size, size))
    work = counter.get_total_flops() / 1e9
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        ours: dict[str, Inspector] = {}
        refused: dict[str, str] = {}
        for precision in ("fp32", "int8"):
            bundle = f"{folder}/{precision}"
            try:
                written = export_bundle(model, replace(meta, precision=precision), bundle, check, defect=defect)
                ours[f"dtwb onnx {precision}"] = Inspector.load(bundle)
                rows.append({"pipeline": f"dtwb onnx {precision}", "parity": written.parity["model.onnx"]})
            except Exception as e:
                refused[precision] = str(e)
        eager, same = eager_pipeline(plain, size), eager_pipeline(model, size)
        expected = np.concatenate([same(check[k : k + 16]) for k in range(0, len(check), 16)])[:, 1]
        found = {k: np.array([1 - d.probabilities["good"] for d in i.predict_batch(check)]) for k, i in ours.items()}
        pipelines: dict[str, Callable] = {EAGER: eager} | {k: i.predict_batch for k, i in ours.items()}
        spent: dict[tuple[str, int], list[float]] = {}
        gemm, alone = [], {k: [] for k in ours}
        for _ in range(rounds):
            gemm.append(sgemm_limit(least / 2))
            for batch in batches:
                images = check[:batch]
                for key, run in pipelines.items():
                    spent.setdefault((key, batch), []).append(seconds_of(run, least, images) / batch)
            one = preprocess(config, check[0])[0][None]
            for key, inspector in ours.items():
                alone[key].append(seconds_of(inspector.raw, least, one))
        limit = max(gemm)
        parity = {row["pipeline"]: row["parity"] for row in rows}
        rows = []
        for (key, batch), values in spent.items():
            ratios = [e / v for e, v in zip(spent[EAGER, batch], values)]
            row: dict[str, Any] = {
                "backbone": name, "pipeline": key, "batch": batch, "threads": threads, "map": map,
                "ms": 1000 * statistics.median(values), "ratio": statistics.median(ratios),
                "gflop": work, "share": work / statistics.median(values) / limit, "sgemm": limit,
            }  # fmt: skip
            if key in ours:
                row |= {
                    "labels_equal": float(((found[key] >= 0.5) == (expected >= 0.5)).mean()),
                    "auroc": float(roc_auc_score(defect, found[key])),
                    "auroc_eager": float(roc_auc_score(defect, expected)),
                    "parity": parity[key],
                }  # fmt: skip
                if batch == 1:
                    row["around"] = 1 - 1000 * statistics.median(alone[key]) / row["ms"]
            rows.append(row)
        for precision, why in refused.items():
            rows.append({"backbone": name, "pipeline": f"dtwb onnx {precision}", "refused": why})
    return rows


def time_anomalib(
    *,
    size: int = 224,
    photo: int = 256,
    n: int = 24,
    rounds: int = 7,
    least: float = 0.4,
    threads: int = 2,
    peers: Path = ROOT / ".venv-peers",
) -> list[dict]:
    "anomalib's TorchInferencer on resnet18, in its own venv."
    import cv2

    python = peers.absolute() / "anomalib/bin/python"
    if not python.exists():
        return [{"pipeline": "anomalib", "refused": f"there is no {python}: make peers"}]
    with tempfile.TemporaryDirectory() as folder:
        images, defect = photos(4 * n, photo, 3)
        (Path(folder) / "good").mkdir()
        for k in np.flatnonzero(~defect)[:n]:
            cv2.imwrite(f"{folder}/good/{k:03d}.png", images[k])
        arguments = [folder, size, threads, rounds, least]
        command = [str(python), str(Path(__file__).with_name("peer_speed.py")), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ROWS")]
    if not lines:
        return [{"pipeline": "anomalib", "refused": (done.stderr.strip().splitlines() or ["no answer"])[-1][:300]}]
    return json.loads(lines[-1][4:])


def about() -> dict:
    from importlib.metadata import version

    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "machine": f"{cpu[0] if cpu else platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "date": datetime.now().isoformat(timespec="minutes"),
        "load": os.getloadavg()[0],
        "versions": {n: version(n) for n in ("torch", "torchvision", "timm", "onnxruntime", "opencv-python-headless")}
        | {"python": platform.python_version()},
    }


def read_rows(folder: Path) -> tuple[list[dict], dict]:  # of all names, and the machine
    parts = [json.loads(path.read_text()) for path in sorted(folder.glob("vision_speed_*.json"))]
    return [row for part in parts for row in part["rows"]], parts[-1]["about"] if parts else {}


def write_rows(path: Path, rows: list[dict], machine: dict) -> None:
    "Where, when, with what, and a run to a line."
    head = {"what": "predict() beside timm eager and anomalib"} | machine
    lines = ",\n".join(json.dumps({k: _short(v) for k, v in row.items()}) for row in rows)
    aside = path.with_suffix(".json.tmp")
    aside.write_text(json.dumps(head, indent=1).removesuffix("\n}") + f',\n "runs": [\n{lines}\n]}}\n')
    aside.replace(path)


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help=f"all, or of: {', '.join(BACKBONES)}, anomalib")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least", type=float, default=0.4, help="seconds a round and pipeline")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20, help="of learning, beforehand")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers", help="where the venv anomalib is")
    parser.add_argument("--here", action="store_true", help="in this process (what a run does for each name)")
    given = parser.parse_args()
    names = [*BACKBONES, "anomalib"] if given.names == ["all"] else given.names
    if not given.here:
        failed: list[str] = []
        for name in names:
            arguments = [
                f"--{k}={getattr(given, k)}" for k in ("rounds", "least", "threads", "size", "photos", "peers")
            ]
            environment = os.environ | {
                "OMP_NUM_THREADS": str(given.threads), "DTWB_COMPUTE__THREADS": str(given.threads),
                "PYTHONPATH": str(ROOT),
            }  # fmt: skip
            if subprocess.run([sys.executable, __file__, name, "--here", *arguments], env=environment).returncode:
                failed.append(name)  # the others shall be measured all the same
        sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
    how = {"rounds": given.rounds, "least": given.least, "threads": given.threads, "size": given.size}
    if names[0] == "anomalib":
        rows = time_anomalib(**how, peers=given.peers)
    else:
        rows = time_backbone(names[0], n=given.photos, seconds=given.seconds, **how)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"vision_speed_{names[0]}.json"
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps({"about": about(), "rows": rows}, indent=1) + "\n")
    aside.replace(path)
    for row in rows:
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k != "parity"}, flush=True)


if __name__ == "__main__":
    main()
