"Images too large for a careless program."

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

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
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    seen = json.loads(done.stdout)
    assert seen["boxes"] == sorted([x, y, 40, 40] for x, y in places)
    assert seen["map"] == [5000, 5000] and max(seen["picture"]) == 2000
    assert seen["kilobytes"] < 2e6  # half of what is promised: the network is a toy
