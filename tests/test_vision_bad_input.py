"""Vision against bad input: read right, or refused in one line that names what is wrong; nothing in a file is run."""

import json
import os
import pickle
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dtwb.core.errors import DtwbError, ImageError, ModelError
from dtwb.vision.images import read_images
from dtwb.vision.photos import read_image

cv2 = pytest.importorskip("cv2")
DEMO = Path(__file__).resolve().parent.parent / "models/tile_demo"
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 255, (40, 50), dtype=np.uint8)


def refused(function, kind=DtwbError, holds=""):
    with pytest.raises(kind) as e:
        function()
    assert "\n" not in str(e.value) and holds in str(e.value), str(e.value)


def png_head(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x80\x04cos\nsystem\n.",
        png_head(60_000, 60_000),
        png_head(2**31 - 1, 1),
        png_head(0, 9),
        png_head(40, 40),
    ],
    ids=["empty", "text", "pickle", "bomb", "thin", "none", "truncated"],
)
def test_what_is_no_image(tmp_path, data):
    (tmp_path / "x.png").write_bytes(data)
    refused(lambda: read_image(tmp_path / "x.png"), ImageError, "x.png")


def test_what_is_no_file(tmp_path):
    (tmp_path / "dir.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for path in (tmp_path / "dir.png", tmp_path / "loop.png", tmp_path / "none.png", "a\0b.png", "x" * 5000 + ".png"):
        refused(lambda path=path: read_image(path), ImageError)


def test_unusual_images_are_read_right(tmp_path):
    from PIL import Image

    rgb = np.dstack([GREY, GREY[::-1], 255 - GREY])
    wide = GREY.astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / "deep.png")
    cv2.imwrite(str(tmp_path / "deep_rgb.png"), (rgb[..., ::-1].astype(np.uint16) * 257))
    Image.fromarray(rgb).quantize(256).save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([rgb, np.full_like(GREY, 255)])).save(tmp_path / "alpha.png")
    Image.fromarray(GREY > 99).save(tmp_path / "bits.png")
    Image.fromarray(GREY[:1, :1]).save(tmp_path / "one.png")
    assert (read_image(tmp_path / "deep.png") == GREY).all() and (read_image(tmp_path / "deep_rgb.png") == rgb).all()
    assert (read_image(tmp_path / "alpha.png") == rgb).all()
    assert read_image(tmp_path / "palette.png").shape == (40, 50, 3)
    assert (read_image(tmp_path / "bits.png") == (GREY > 99) * 255).all() and read_image(
        tmp_path / "one.png"
    ).shape == (1, 1)
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "print.jpg")
    refused(lambda: read_image(tmp_path / "print.jpg"), ImageError, "CMYK")


HEAD = "path,label,mask,group,split\n"
LABELS, SPLITS = ["good"] * 6 + ["crack"] * 6, ["train"] * 4 + ["test"] * 2
ROWS = [f"{i}.png,{LABELS[i]},{'m.png' if i > 5 else ''},g{i // 2},{SPLITS[i % 6]}" for i in range(12)]
TABLE = HEAD + "\n".join(ROWS)


def folder(path, table):
    for i in range(12):
        cv2.imwrite(str(path / f"{i}.png"), RNG.integers(0, 255, (40, 50), dtype=np.uint8))
    cv2.imwrite(str(path / "m.png"), np.eye(40, 50, dtype=np.uint8) * 255)
    cv2.imwrite(str(path / "small.png"), np.eye(20, dtype=np.uint8) * 255)
    (path / "t.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    return path


@pytest.mark.parametrize(
    "table, holds",
    [
        ("", "no images found"),
        (HEAD, "no rows"),
        (bytes(range(256)) * 4, "no images found"),
        (TABLE.replace("0.png", "../0.png", 1), "leaves the folder"),
        (TABLE.replace("0.png", "/etc/passwd", 1), "leaves the folder"),
        (TABLE.replace("m.png", ".", 1), "leaves the folder"),
        (TABLE.replace("0.png", "zz.png", 1), 'no file "zz.png"'),
        (TABLE.replace("good", "", 1), "label is empty"),
        (TABLE.replace("0.png", '"0.png', 1), "cannot be read"),
        (TABLE + "\n1.png,good,,,,,,x", "cannot be read"),
        (TABLE.replace("split\n", "split,fold\n").replace("train", "train,-3").replace("test", "test,1"), "fold"),
        (TABLE.replace("split\n", "split,fold\n").replace("train", "train,.5").replace("test", "test,1"), "fold"),
    ],
)
def test_tables_that_are_refused(tmp_path, table, holds):
    refused(lambda: read_images(folder(tmp_path, table)), ImageError, holds)


@pytest.mark.parametrize(
    "table", [TABLE, "\ufeff" + TABLE, TABLE.replace("\n", "\r\n"), TABLE.replace(",good", ", good ")]
)
def test_tables_as_programs_write_them(tmp_path, table):
    images = read_images(folder(tmp_path, table))
    assert len(images) == 12 and images.classes == ["good", "crack"]
    assert "<script" not in read_images(folder(tmp_path, TABLE.replace("crack", "<script>")))._repr_html_()


def test_a_mask_of_another_size_names_both(tmp_path):
    images = read_images(folder(tmp_path, TABLE.replace("m.png", "small.png", 1)))
    refused(lambda: [images.mask(i) for i in range(12)], ImageError, "20 x 20")


def test_folds_that_cannot_be(tmp_path):
    from dtwb.vision.images import folds

    images = read_images(folder(tmp_path, TABLE))
    for k in (0, 1, -1, 100):
        refused(lambda k=k: folds(images, k), ImageError)
    refused(lambda: read_images(tmp_path, fold=9), ImageError, "no fold 9")
    for where in ("", "foo", "tiles?n=-1", "tiles?n=x", "tiles?size=1", "tiles?bogus=1", "tiles?n"):
        refused(lambda where=where: read_images(f"synthetic:{where}"), ImageError)


class Evil:
    def __reduce__(self):
        return os.system, ("touch was_run",)


def changed(path, name="meta.json", data=None, **meta):
    from dtwb.vision.bundle import hash_file

    shutil.copytree(DEMO, path)
    what = json.loads((path / "meta.json").read_text()) | meta
    if data is not None:
        (path / name).write_bytes(data)
        what["files"][name] = hash_file(path / name)
    (path / "meta.json").write_text(json.dumps(what))
    return path


def test_bundles_that_are_refused(tmp_path, monkeypatch):
    from dtwb.vision.inspector import Inspector

    monkeypatch.chdir(tmp_path)
    code = pickle.dumps(Evil())
    cases = [
        ("onnx", {"format": "dtwb-inspector/3"}, "newer dtwb (format 3); upgrade"),
        ("onnx", {"format": "x"}, "format"),
        ("onnx", {"classes": ["good", "a", "b", "c", "d", "e", "f"]}, "not what meta.json says"),
        ("onnx", {"name": "model.onnx", "data": code}, "ONNX"),
        ("onnx", {"name": "model.onnx", "data": b""}, "model.onnx"),
        ("torch", {"name": "weights.safetensors", "data": code}, "safetensors"),
        ("torch", {"model": "os.system"}, "no model"),
        ("torch", {"model": "resnet_small"}, "do not fit"),
        ("torch", {"kind": "x-ray"}, "no kind"),
    ]
    for i, (backend, change, holds) in enumerate(cases):
        path = changed(tmp_path / f"b{i}", **change)
        refused(lambda path=path, backend=backend: Inspector.load(path, backend), ModelError, holds)
    linked = changed(tmp_path / "linked")
    (linked / "model.onnx").unlink()
    (linked / "model.onnx").symlink_to(DEMO / "model.onnx")
    refused(lambda: Inspector.load(linked), ModelError, "link")
    assert not (tmp_path / "was_run").exists()


def test_weights_that_are_code_are_not_run(tmp_path, monkeypatch):
    import torch

    from dtwb.vision.weights import read_state

    monkeypatch.chdir(tmp_path)
    for name in ("a.pt", "a.ckpt", "a.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        refused(lambda name=name: read_state(tmp_path / name), ModelError, name)
    torch.save({"a": Evil()}, tmp_path / "b.pt")
    refused(lambda: read_state(tmp_path / "b.pt"), ModelError, "code")
    assert not (tmp_path / "was_run").exists()


def test_what_an_inspector_is_asked(tmp_path):
    from dtwb.vision.calibration import calibrate
    from dtwb.vision.ensemble import Ensemble, load_ensemble, open_inspector, save_ensemble
    from dtwb.vision.inspector import Inspector, evaluate

    one = Inspector.load(DEMO)
    two = Ensemble.of(one, one, parallel=True)
    for inspector in (one, two):
        for threshold in (-1, 2, float("nan"), float("inf"), "recall_", "x", [0.5]):
            refused(lambda t=threshold, i=inspector: i.predict(GREY, t), ModelError, "threshold")
        for image in (
            None,
            "x.png",
            GREY / 255,
            GREY > 9,
            GREY[:0],
            np.zeros((9, 9, 4), np.uint8),
            GREY.astype(np.int32),
        ):
            refused(lambda image=image, i=inspector: i.predict(image), ImageError)
        for image in (GREY[:1, :1], np.zeros((1, 3000), np.uint8), np.asfortranarray(GREY), GREY[::-1, ::-1]):
            assert inspector.predict(image).attention_map.shape == image.shape
        assert inspector.predict_batch([]) == []
        for size in (0, -1, 2.5):
            refused(lambda i=inspector, size=size: i.predict_batch([GREY], batch_size=size), ModelError, "batch")

    images = read_images("synthetic:tiles?n=10&size=64")
    goods, bads = images.table.label == "good", images.table.label != "good"
    renamed = replace(images, table=images.table.assign(label=["dent", *images.table.label[1:]]))
    refused(lambda: evaluate(one, renamed), ImageError, "dent")
    refused(lambda: evaluate(one, images.take([])), ImageError, "no images")
    for rows in (np.flatnonzero(goods), np.flatnonzero(bads), [0]):
        assert np.isnan(evaluate(one, images.take(rows), rounds=2).figures["auroc"].value)
        assert calibrate(one, images.take(rows)).calibration["notes"]
    refused(lambda: calibrate(one, images.take([])), ImageError, "no images")

    save_ensemble(two, tmp_path / "both")
    listing = tmp_path / "both" / "ensemble.json"
    for text in (
        b"[" * 100_000,
        b"\xff\xfe\0",
        b'{"format": "dtwb-ensemble/1", "members": [{"path": "member_1", "meta": NaN}]}',
    ):
        listing.write_bytes(text)
        refused(lambda: load_ensemble(tmp_path / "both"), ModelError)
    for path in ("a\0b", "a" * 5000, tmp_path / "nowhere", DEMO / "meta.json"):
        refused(lambda path=path: open_inspector(path), ModelError)
    refused(lambda: save_ensemble(two, DEMO), ModelError, "not an ensemble")


def test_training_refuses_before_it_begins():
    from dtwb.vision.training import fit, train

    images = read_images("synthetic:tiles?n=40&size=32")
    t = images.table

    def only(keep):
        return images.take(np.flatnonzero(keep))

    for keep in (t.label == "good", t.label != "good", t.split != "val", t.split == "none"):
        refused(lambda keep=keep: fit(only(keep), size=(32, 32)), ImageError)
    for keep in ((t.split != "val") | (t.label == "good"), (t.split != "val") | (t.label != "good")):
        refused(lambda keep=keep: fit(only(keep), size=(32, 32)), ImageError, "threshold")
    renamed = replace(images, table=t.assign(label=t.label.where(t.split != "test", "dent")))
    refused(lambda: train(renamed, "nowhere/b", size=(32, 32)), ImageError, "dent")
    for bad in (
        {"model": "nope"}, {"size": (7, 7)}, {"epochs": 0}, {"batch_size": 0}, {"rate": float("nan")}, {"policy": "x"},
        {"loss": "x"}, {"precision": "fp7"}, {"map": "x"}, {"start": "nowhere"}, {"bogus": 1}, {"strategy": "x"},
    ):  # fmt: skip
        refused(lambda bad=bad: fit(images, **({"size": (32, 32), "progress": False} | bad)), DtwbError)
    refused(lambda: train(images, Path(__file__), size=(32, 32)), ModelError, "not a bundle")
