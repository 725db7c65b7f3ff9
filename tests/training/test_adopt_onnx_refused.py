"""ONNX graphs and cards that cannot be adopted are refused with what to do."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from latentd import bundle
from tests.support.adoption import FREE, KL, photographs, published, refuse, run
from tests.support.foreign_graphs import byte_pair, kl_pair


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (
            {},
            r"the card must: range \(or mean and std\), sizes.h, sizes.w, scale, shift, prior, "
            "license, source. `latentd adopt --card-template`",
        ),
        (KL | {"posterior": "point"}, "card says posterior = 'point'; the graphs say 'gaussian'"),
        (KL | {"layout": "NHWC"}, "card says layout = 'NHWC'; the graphs say 'NCHW'"),
        (KL | {"scale": [1.0, 2.0]}, "scale has 2 numbers; expected one, or one for each of 4"),
        (KL | {"tensors": {"mean": "nothing"}}, "no tensor named 'nothing'; its outputs are"),
        (
            KL | {"sizes": {n: {"min": 16, "max": 64, "default": 30} for n in "hw"}},
            "makes 7 positions of h 30, which does not divide it",
        ),
        (
            KL | {"sizes": {n: s | {"multiple_of": 6} for n, s in FREE.items()}},
            "sizes.h.multiple_of is 6; expected a multiple of 4",
        ),
        (KL | {"sizes": {"h": FREE["h"] | {"max": 255}, "w": 64}}, "sizes.h.max is 255; expected"),
    ],
)
def test_card_that_does_not_fit_is_refused(tmp_path, card, words):
    refuse(words, kl_pair(tmp_path / "owner"), card, tmp_path)


def test_encoder_that_draws_is_refused(tmp_path):
    card = KL | {"posterior": "point"}
    words = "draws random numbers .* RandomNormalLike. .* name the tensors before the draw"
    refuse(words, kl_pair(tmp_path / "owner", draws=True), card, tmp_path)


def test_fixed_batch_is_refused(tmp_path):
    refuse("takes exactly 1 rows at once", kl_pair(tmp_path / "owner", batch=1), KL, tmp_path)


def test_outputs_that_are_not_clear_are_asked_for(tmp_path):
    pair = kl_pair(tmp_path / "owner", names=("one", "other"))
    refuse(r"outputs 'one', 'other'. Name the latent's under \[tensors\]", pair, KL, tmp_path)
    card = KL | {"tensors": {"mean": "one", "log_var": "other"}}
    assert published(pair, card, tmp_path / "models").exists()


def test_graphs_of_two_models_are_refused(tmp_path):
    encoder, _ = kl_pair(tmp_path / "owner")
    _, decoder = byte_pair(tmp_path / "other")
    card = KL | {"z_layout": "NHWC", "posterior": "gaussian"}
    refuse("Are these two graphs of one model", (encoder, decoder), card, tmp_path)


def externalized(path: Path, location: str) -> None:
    """Move a graph's weights to another file; the graph names that by `location`."""
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def test_external_data_in_the_folder_is_embedded(tmp_path):
    encoder, decoder = kl_pair(tmp_path / "owner")
    externalized(encoder, "weights.bin")
    folder = published((encoder, decoder), KL, tmp_path / "models")
    (encoder.parent / "weights.bin").unlink()
    assert "vae_encoder/weights.bin" in bundle.load(folder).manifest.origin["files"]
    assert len(run(folder / "encoder.onnx", photographs(32, 32))) == 2


@pytest.mark.parametrize("way", ["parent", "absolute", "link"])
def test_external_data_outside_the_folder_is_refused(tmp_path, way):
    encoder, decoder = kl_pair(tmp_path / "owner")
    outside = tmp_path / "owner" / "weights.bin"
    location = {"parent": "../weights.bin", "absolute": str(outside), "link": "link.bin"}[way]
    externalized(encoder, location)
    (encoder.parent / "weights.bin").rename(outside)
    (encoder.parent / "link.bin").symlink_to(outside)
    refuse("keeps weights in .*, which is outside its folder", (encoder, decoder), KL, tmp_path)


@pytest.mark.parametrize("location", ["circle", "weights\0.bin"])
def test_external_data_that_no_file_can_be_is_refused(tmp_path, location):
    encoder, decoder = kl_pair(tmp_path / "owner")
    externalized(encoder, location)
    (encoder.parent / "circle").symlink_to("circle")
    refuse("keeps weights in .*, which no file can be", (encoder, decoder), KL, tmp_path)


def test_other_files_are_refused(tmp_path):
    encoder, decoder = kl_pair(tmp_path / "owner")
    encoder.write_bytes(b"\x80\x04no graph")
    refuse("is not an ONNX file", (encoder, decoder), KL, tmp_path)
    refuse("cannot be read: No such file", (tmp_path / "none.onnx", decoder), KL, tmp_path)
