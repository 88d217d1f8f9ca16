"Every model tile by tile, and images too large for a careless program."

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from dtwb.vision.bundle import Meta
from dtwb.vision.inspector import Inspector
from dtwb.vision.models import create_model
from dtwb.vision.one_class_training import fit_one_class
from dtwb.vision.preprocess import Preprocess
from dtwb.vision.synthetic import generate_images
from dtwb.vision.tiling import TiledInspector


def in_memory(model: torch.nn.Module, meta: Meta) -> Inspector:
    @torch.inference_mode()
    def run(inputs):
        logits, map = model.eval()(torch.from_numpy(inputs))
        return logits.numpy(), map.numpy()

    return Inspector(meta, run, "torch")


def make(kind: str) -> Inspector:
    "An inspector whose network has hardly learned: what tiling does with it must be right all the same."
    if kind in ("memory_bank", "student_teacher"):
        images = generate_images(60, 0, good=0.9, size=(64, 64))
        small = {"patches": 100} if kind == "memory_bank" else {}
        fitted = fit_one_class(images, model=kind, size=(64, 64), steps=20, progress=False, **small)
        classes, model, config = tuple(fitted.classes), fitted.model, fitted.config
        return in_memory(model, Meta(classes, config, fitted.backbone, "distance", kind=kind, options=fitted.options))
    name, map = kind.split()
    torch.manual_seed(0)
    meta = Meta(("good", "crack", "pit"), Preprocess(64, 64, resize="stretch"), name, map)
    return in_memory(create_model(name, 3, size=(64, 64), map=map), meta)


@pytest.mark.parametrize(
    "kind", ["memory_bank", "student_teacher", "swin_demo attention", "resnet_small cam", "resnet_small segmentation"]
)
def test_every_model(kind):
    inspector = make(kind)
    tiled = TiledInspector(inspector, batch_size=3)
    image = np.random.default_rng(0).integers(0, 255, (100, 150), np.uint8)
    plan = tiled.tiling(image)
    alone = [inspector.predict(plan.cut(image, k)) for k in range(len(plan))]
    p = np.array([1 - d.probabilities["good"] for d in alone])
    limit = float(np.median(p))
    found = tiled.predict(image, threshold=limit)
    worst = alone[int(p.argmax())]
    assert found.probabilities == pytest.approx(worst.probabilities, abs=1e-4)
    assert found.is_defect and found.defect_type == max(inspector.classes[1:], key=worst.probabilities.__getitem__)
    assert found.attention_map.shape == image.shape and found.image is image
    low, high = (stat([d.attention_map for d in alone]) for stat in (np.min, np.max))
    assert low - 1e-4 <= found.attention_map.min() and found.attention_map.max() <= high + 1e-4
    assert found.boxes and all(
        b.x >= 0 and b.y >= 0 and b.x + b.width <= 150 and b.y + b.height <= 100 for b in found.boxes
    )
    assert not tiled.predict(image, threshold=min(1.0, float(p.max()) + 1e-3)).boxes


LARGE = """
import json, resource, sys
import numpy as np
from dtwb.vision.bundle import Meta
from dtwb.vision.inspector import Inspector
from dtwb.vision.pictures import draw
from dtwb.vision.preprocess import Preprocess
from dtwb.vision.tiles import open_large
from dtwb.vision.tiling import TiledInspector

def see_bright(inputs):
    sure = np.clip(20 * (inputs.max((1, 2, 3)) - 0.5), -9, 9)
    return np.stack([-sure, sure], 1), inputs[:, :1]

meta = Meta(("good", "spot"), Preprocess(256, 256, standardise=False, mean=(0.0,), std=(1.0,)), "none", "segmentation")
image = open_large(sys.argv[1])
found = TiledInspector(Inspector(meta, see_bright), scale=0.25).predict(image)
picture = draw(image, found)
print(json.dumps({
    "kilobytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    "boxes": sorted(map(list, found.boxes)),
    "map": found.attention_map.shape,
    "picture": picture.shape,
}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="getrusage")
def test_an_image_of_400_megapixels_fits_into_4_gigabytes(tmp_path):
    image = np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.uint8, (20_000, 20_000))
    image[:] = 40
    places = [(8, 8), (4000, 12_000), (10_396, 604), (19_956, 19_956)]
    for x, y in places:
        image[y : y + 40, x : x + 40] = 240
    del image
    command = [sys.executable, "-c", LARGE, tmp_path / "large.npy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert not done.returncode, done.stderr
    seen = json.loads(done.stdout)
    assert seen["boxes"] == sorted([x, y, 40, 40] for x, y in places)
    assert seen["map"] == [5000, 5000] and max(seen["picture"]) == 2000
    assert seen["kilobytes"] < 3e6  # with what it maps of the file; the network is a toy
