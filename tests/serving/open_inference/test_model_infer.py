"""ModelInfer gives what vae.v1 gives: every operation, output, datatype and parameter."""

from __future__ import annotations

import numpy as np
import pytest

from latentd import codec, images
from latentd.latents import NoiseRange, standard_normal
from latentd.pb import vae_pb2 as pb
from tests.support.open_inference import infer_request, outputs_of
from tests.support.spatial_bundle import blocks
from tests.support.text_bundle import LENGTH, TEXTS
from tests.support.toy_bundle import LATENT_SIZE

X = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
Z = np.linspace(-0.5, 1.5, 2 * LATENT_SIZE, dtype=np.float32).reshape(2, LATENT_SIZE)
FLOATS = pb.DATA_TYPE_FLOAT16


def column(numbers) -> np.ndarray:
    return np.array(numbers)[:, None]


def test_encode_gives_mean_and_log_var(oip, vae):
    found = oip.infer("toy:encode", {"x": ("UINT8", X)})
    expected = vae.Encode(pb.EncodeRequest(x=codec.to_rows(X)))
    assert list(found) == ["mean", "log_var"]
    np.testing.assert_array_equal(found["mean"], codec.from_tensor(expected.mean))
    np.testing.assert_array_equal(found["log_var"], codec.from_tensor(expected.log_var))


def test_encode_draws_z_when_it_is_requested(oip, vae):
    found = oip.infer("toy:encode", {"x": ("UINT8", X)}, "z", "mean", seed=5, offset=7)
    request = pb.EncodeRequest(x=codec.to_rows(X), draw=True, seed=5, offset=7)
    assert list(found) == ["z", "mean"], "the order of the request"
    np.testing.assert_array_equal(found["z"], codec.from_tensor(vae.Encode(request).z))


def test_name_alone_decodes(oip, vae):
    expected = codec.from_tensor(vae.Decode(pb.DecodeRequest(z=codec.to_tensor(Z))).x.tensor)
    for name in ("toy", "toy:decode", "", ":decode"):
        found = oip.infer(name, {"z": ("FP32", Z)})
        assert list(found) == ["x"]
        np.testing.assert_array_equal(found["x"], expected)


def test_decode_gives_params_in_16_bits(oip, vae):
    found = oip.infer("toy:decode", {"z": ("FP32", Z)}, "params", float_dtype="FP16")["params"]
    request = pb.DecodeRequest(
        z=codec.to_tensor(Z), output=pb.DECODE_OUTPUT_PARAMS, float_dtype=FLOATS
    )
    np.testing.assert_array_equal(found, codec.from_tensor(vae.Decode(request).params))
    assert found.dtype == np.float16


def test_latents_of_16_bits_are_read(oip):
    wide = Z.astype(np.float16)
    narrow = oip.infer("toy", {"z": ("FP16", wide)})["x"]
    np.testing.assert_array_equal(narrow, oip.infer("toy", {"z": ("FP32", wide)})["x"])
    bits = (Z.view("<u4") >> 16).astype("<u2")  # truncated
    of_bits = (bits.astype("<u4") << 16).view("<f4")
    found = oip.infer("toy", {"z": ("BF16", bits)})["x"]
    np.testing.assert_array_equal(found, oip.infer("toy", {"z": ("FP32", of_bits)})["x"])


def test_reconstruct_gives_scores_unless_outputs_are_named(oip, vae):
    expected = vae.Reconstruct(pb.ReconstructRequest(x=codec.to_rows(X), include_scores=True))
    found = oip.infer("toy:reconstruct", {"x": ("UINT8", X)})
    assert list(found) == ["x", "reconstruction_error", "kl", "elbo"]
    np.testing.assert_array_equal(found["x"], X)
    for name in ("reconstruction_error", "kl", "elbo"):
        np.testing.assert_array_equal(found[name], column(getattr(expected, name)))
    assert list(oip.infer("toy:reconstruct", {"x": ("UINT8", X)}, "x")) == ["x"]


def test_reconstruct_tells_outliers_and_why(oip, vae):
    asked = {"x": ("UINT8", X)}
    middle = float(np.median(oip.infer("toy:reconstruct", asked)["reconstruction_error"]))
    found = oip.infer("toy:reconstruct", asked, "is_outlier", "contributions", threshold=middle)
    request = pb.ReconstructRequest(
        x=codec.to_rows(X), include_scores=True, include_contributions=True, threshold=middle
    )
    expected = vae.Reconstruct(request)
    assert {*expected.is_outlier} == {True, False}
    np.testing.assert_array_equal(found["is_outlier"], column(expected.is_outlier))
    terms = codec.from_tensor(expected.contributions)
    np.testing.assert_array_equal(found["contributions"], terms)


def test_draws_are_those_of_the_seed(oip, vae):
    request = infer_request("toy:reconstruct", {"x": ("UINT8", X)}, ["x"], draw=True, seed=3)
    response = oip.ModelInfer(request)
    same = vae.Reconstruct(pb.ReconstructRequest(x=codec.to_rows(X), draw=True, seed=3))
    np.testing.assert_array_equal(outputs_of(response)["x"], codec.from_rows(same.x))
    assert response.parameters["seed"].int64_param == 3
    del request.parameters["seed"]
    chosen = oip.ModelInfer(request)
    request.parameters["seed"].int64_param = chosen.parameters["seed"].int64_param
    assert oip.ModelInfer(request).raw_output_contents == chosen.raw_output_contents


def test_seed_of_64_bits_is_sent_as_digits(oip, vae):
    seed = 2**64 - 1
    response = oip.ModelInfer(
        infer_request("toy:encode", {"x": ("UINT8", X)}, ["z"], seed=str(seed))
    )
    expected = vae.Encode(pb.EncodeRequest(x=codec.to_rows(X), draw=True, seed=seed))
    np.testing.assert_array_equal(outputs_of(response)["z"], codec.from_tensor(expected.z))
    assert response.parameters["seed"].string_param == str(seed)


def test_score_gives_bounds(oip, vae):
    found = oip.infer("toy:score", {"x": ("UINT8", X)}, draws=8, seed=1)
    expected = vae.Score(pb.ScoreRequest(x=codec.to_rows(X), draws=8, seed=1))
    assert list(found) == ["elbo", "log_likelihood", "kl"]
    for name, values in found.items():
        np.testing.assert_array_equal(values, column(getattr(expected, name)))


def test_threshold_of_the_bundle_is_reported(oip):
    request = infer_request("strict:score", {"x": ("UINT8", X)}, ["is_outlier"])
    response = oip.ModelInfer(request)
    assert float(response.parameters["threshold"].string_param) == 3.5
    assert outputs_of(response)["is_outlier"].all()


def test_values_outside_the_range_are_counted_and_zero_if_there_is_none(oip):
    found = oip.infer("toy:encode", {"x": ("UINT8", X)}, "values_outside_range")
    np.testing.assert_array_equal(found["values_outside_range"], np.zeros((3, 1), np.uint32))


def seeds(*rows: tuple[int, int]) -> dict[str, tuple[str, np.ndarray]]:
    seed, index = np.array(rows, np.uint64).T
    return {"seed": ("UINT64", column(seed)), "index": ("UINT64", column(index))}


def test_sample_is_sample_of_vae_v1(oip, vae):
    request = pb.SampleRequest(count=4, seed=7, offset=2, temperature=0.5, include_z=True)
    expected = vae.Sample(request)
    asked = seeds(*((7, 2 + row) for row in range(4)))
    found = oip.infer("toy:sample", asked, "x", "z", temperature=0.5)
    np.testing.assert_array_equal(found["x"], codec.from_rows(expected.x))
    np.testing.assert_array_equal(found["z"], codec.from_tensor(expected.z))


def test_row_depends_on_its_seed_and_index_only(oip, server):
    last = 2**64 - 1
    rows = [(7, 0), (7, 1), (last, 5), (0, last), (7, 1), (last, last), (last, 0)]
    batches = server.metric("latentd_batch_rows_count", graph="decoder")
    together = oip.infer("toy:sample", seeds(*rows), "z")["z"]
    assert server.metric("latentd_batch_rows_count", graph="decoder") == batches + 1
    for row, (seed, index) in enumerate(rows):
        alone = oip.infer("toy:sample", seeds((seed, index)), "z")["z"]
        np.testing.assert_array_equal(together[row], alone[0])
        expected = standard_normal([NoiseRange(seed, index, 1)], (LATENT_SIZE,))
        np.testing.assert_array_equal(alone, expected)


def test_signed_integers_are_seeds_too(oip):
    signed = {name: ("INT64", values) for name, (_, values) in seeds((1, 2), (3, 4)).items()}
    np.testing.assert_array_equal(
        oip.infer("toy:sample", signed)["x"], oip.infer("toy:sample", seeds((1, 2), (3, 4)))["x"]
    )


def test_images_go_and_come_as_files(oip):
    files = images.encode_files(X, "PNG")
    for fit in ({}, {"fit": "refuse"}):
        asked = {"x": ("BYTES", files)}
        assert oip.infer("toy:reconstruct", asked, "x", format="png", **fit)["x"] == files
    for name, start in {"jpeg": b"\xff\xd8", "webp": b"RIFF"}.items():
        found = oip.infer("toy:reconstruct", asked, "x", format=name)["x"]
        assert all(file.startswith(start) for file in found)


def test_free_axes_are_parameters(oip, vae):
    found = oip.infer("spatial:sample", seeds((5, 0)), sizes_h=16, sizes_w=24)
    expected = vae.Sample(
        pb.SampleRequest(model="spatial", count=1, seed=5, sizes={"h": 16, "w": 24})
    )
    np.testing.assert_array_equal(found["x"], codec.from_rows(expected.x))
    x = blocks(2, 48, 24)
    assert oip.infer("spatial:reconstruct", {"x": ("UINT8", x)})["x"].shape == x.shape


def test_response_says_that_rows_were_tiled(oip):
    asked = {"x": ("UINT8", blocks(1, 256, 256))}
    request = infer_request("spatial:encode", asked, tiling="always")
    assert oip.ModelInfer(request).parameters["tiled"].string_param == "exact"
    assert "tiled" not in oip.ModelInfer(infer_request("spatial:encode", asked)).parameters


def test_texts_go_and_come_as_bytes(oip, vae):
    sent = [text.encode() for text in TEXTS]
    found = oip.infer("text:encode", {"x": ("BYTES", sent)})
    rows = pb.Rows(text=pb.Texts(texts=TEXTS))
    expected = vae.Encode(pb.EncodeRequest(model="text", x=rows))
    np.testing.assert_array_equal(found["mean"], codec.from_tensor(expected.mean))
    mean = {"z": ("FP32", found["mean"])}
    decoded = oip.infer("text", mean)["x"]
    request = pb.DecodeRequest(model="text", z=expected.mean, format=pb.FORMAT_TEXT)
    assert [text.decode() for text in decoded] == list(vae.Decode(request).x.text.texts)
    assert oip.infer("text", mean, format="raw")["x"].shape == (len(TEXTS), LENGTH)


def test_texts_of_any_seeds_are_drawn_row_by_row(oip):
    rows = [(3, 9), (1, 0), (3, 8)]
    together = oip.infer("text:sample", seeds(*rows), draw_x=True, temperature=2.0)["x"]
    alone = [
        oip.infer("text:sample", seeds(row), draw_x=True, temperature=2.0)["x"][0] for row in rows
    ]
    assert together == alone


def test_point_posterior_gives_a_mean_only(oip):
    assert list(oip.infer("point:encode", {"x": ("UINT8", X)})) == ["mean"]
    assert list(oip.infer("point:reconstruct", {"x": ("UINT8", X)})) == ["x"]


def test_response_names_what_answered(oip):
    for name, answered in {
        "toy": "toy",
        "toy:encode": "toy:encode",
        ":encode": "toy:encode",
    }.items():
        inputs = {"x": ("UINT8", X)} if "encode" in name else {"z": ("FP32", Z)}
        response = oip.ModelInfer(infer_request(name, inputs, version="1"))
        assert (response.model_name, response.model_version) == (answered, "1")
        assert response.id == "a request"
        assert response.parameters["digest"].string_param.startswith("sha256:")


@pytest.mark.parametrize(
    ("model", "name", "datatype", "field", "values"),
    [
        ("toy:encode", "x", "UINT8", "uint_contents", X),
        ("toy:decode", "z", "FP32", "fp32_contents", Z),
        ("text:encode", "x", "BYTES", "bytes_contents", np.array([[b"a"], [b"bc"]])),
    ],
)
def test_typed_contents_are_as_good_as_raw_ones(oip, model, name, datatype, field, values):
    elements = list(values[:, 0]) if datatype == "BYTES" else values
    raw = infer_request(model, {name: (datatype, elements)})
    typed = infer_request(model, {name: (datatype, elements)})
    del typed.raw_input_contents[:]
    getattr(typed.inputs[0].contents, field).extend(values.ravel().tolist())
    answers = [oip.ModelInfer(request).raw_output_contents for request in (raw, typed)]
    assert answers[0] == answers[1]


def test_typed_seeds_are_read(oip):
    request = infer_request("toy:sample", seeds((7, 2**64 - 1)))
    expected = oip.ModelInfer(request).raw_output_contents
    del request.raw_input_contents[:]
    request.inputs[0].contents.uint64_contents.append(7)
    request.inputs[1].contents.uint64_contents.append(2**64 - 1)
    assert oip.ModelInfer(request).raw_output_contents == expected
