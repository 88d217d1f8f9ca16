"""Exported inspectors: the same answer from each backend, and files that are not what they say."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest

from dtwb.core.errors import ModelError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    import torch

    from dtwb.vision.bundle import Meta
    from dtwb.vision.export import export_bundle
    from dtwb.vision.models import create_model
    from dtwb.vision.preprocess import Preprocess
    from dtwb.vision.synthetic import generate_images

    torch.manual_seed(0)
    images = generate_images(12, seed=5)
    check = [images.image(i) for i in range(len(images))]
    meta = Meta(("good", "crack", "fray"), Preprocess(64, 64), "resnet_small", "segmentation", map_threshold=0.2)
    path = tmp_path_factory.mktemp("export") / "bundle"
    export_bundle(create_model("resnet_small", 3, size=(64, 64)), meta, path, check)
    return path, check


def test_each_backend_gives_the_same_detection(bundle):
    """fp32: probabilities within 1e-5, maps within 1e-4, boxes and types equal."""
    from dtwb.vision.inspector import Inspector

    path, check = bundle
    for threshold in (0.0, 0.5, 1.0):
        by_onnx, by_torch = (
            Inspector.load(path, backend).predict_batch(check, threshold) for backend in ("onnx", "torch")
        )
        for a, b in zip(by_onnx, by_torch):
            assert (a.defect_type, a.bbox, len(a.boxes)) == (b.defect_type, b.bbox, len(b.boxes))
            assert a.confidence == pytest.approx(b.confidence, abs=1e-5)
            np.testing.assert_allclose(a.attention_map, b.attention_map, atol=1e-4)


def again(path, to, name, data):
    """A copy of a bundle with another file, whose hash is as it should be: made by somebody, not by accident."""
    from dtwb.vision.bundle import META, hash_file

    shutil.copytree(path, to)
    (to / name).write_bytes(data)
    meta = json.loads((to / META).read_text())
    meta["files"][name] = hash_file(to / name)
    (to / META).write_text(json.dumps(meta))
    return to


class Run:
    def __reduce__(self):
        return open, ("/tmp/dtwb-pickle-ran", "w")


def test_hostile_weights_are_refused_and_run_nothing(bundle, tmp_path):
    from dtwb.vision.inspector import Inspector

    path, _ = bundle
    whole, rng = (path / "weights.safetensors").read_bytes(), np.random.default_rng(0)
    spoilt = {"pickle": pickle.dumps(Run()), "empty": b"", "cut": whole[:-100], "huge": b"\xff" * 8 + whole[8:]}
    for k in range(5):
        bent = bytearray(whole)
        bent[int(rng.integers(8, 400))] ^= 0x5A
        spoilt[f"bent {k}"] = bytes(bent)
    for name, data in spoilt.items():
        with pytest.raises(ModelError) as caught:
            Inspector.load(again(path, tmp_path / name, "weights.safetensors", data), "torch")
        assert "\n" not in str(caught.value) and "weights.safetensors" in str(caught.value)


def test_a_graph_that_is_no_inspector_is_refused(bundle, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    from dtwb.vision.inspector import Inspector

    path, _ = bundle
    ends = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [None, 1, 64, 64])]
    outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("logits", "map")]
    nodes = [helper.make_node("Flatten", ["image"], ["logits"]), helper.make_node("Identity", ["image"], ["map"])]
    model = helper.make_model(helper.make_graph(nodes, "g", ends, outs), opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(ModelError, match="not what meta"):
        Inspector.load(again(path, tmp_path / "other", "model.onnx", model.SerializeToString()))
    whole = onnx.load(path / "model.onnx")
    whole.graph.node[3].op_type = "Backdoor"
    with pytest.raises(ModelError, match="cannot load it"):
        Inspector.load(again(path, tmp_path / "unknown", "model.onnx", whole.SerializeToString()))
    with pytest.raises(ModelError, match="not an ONNX file"):
        Inspector.load(again(path, tmp_path / "text", "model.onnx", b"hello"))


def test_export_from_the_command_line(bundle, tmp_path):
    from typer.testing import CliRunner

    from dtwb.cli import app
    from dtwb.vision.inspector import Inspector

    path, check = bundle
    arguments = [
        "export",
        str(path),
        "--images",
        "synthetic:tiles?n=24&seed=3&size=64",
        "--out",
        str(tmp_path / "small"),
    ]
    done = CliRunner().invoke(app, [*arguments, "--precision", "int8", "--json"])
    assert done.exit_code == 0, done.output + str(done.exception)
    said = json.loads(done.stdout)
    assert said["parity"]["model.onnx"]["labels_equal"] >= 0.99 and said["precision"] == "int8"
    small = Inspector.load(tmp_path / "small")
    assert small.predict(check[0]).attention_map.shape == check[0].shape[:2]
    assert replace(small.meta, precision="fp32").classes == ("good", "crack", "fray")


def test_the_explain_graph_decides_the_same_and_shows_attention(bundle, tmp_path):
    from dtwb.vision.bundle import Meta
    from dtwb.vision.export import export_bundle
    from dtwb.vision.inspector import Inspector
    from dtwb.vision.models import create_model
    from dtwb.vision.preprocess import Preprocess

    check = bundle[1][:3]
    meta = Meta(("good", "crack"), Preprocess(64, 64), "test_vit", "cam")
    model = create_model("test_vit", 2, size=(64, 64), map="cam")
    written = export_bundle(model, meta, tmp_path / "vit", check, explain=True)
    assert set(written.files) == {"model.onnx", "explain.onnx", "weights.safetensors"}
    fast, attentive = Inspector.load(tmp_path / "vit"), Inspector.load(tmp_path / "vit", explain=True)
    for a, b in zip(fast.predict_batch(check), attentive.predict_batch(check)):
        assert a.confidence == pytest.approx(b.confidence, abs=1e-5)
        assert np.abs(a.attention_map - b.attention_map).max() > 0.01
    with pytest.raises(ModelError, match=r"the bundle has no explain\.onnx"):
        Inspector.load(bundle[0], explain=True)
