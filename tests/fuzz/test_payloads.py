"""Arbitrary tensors and images are decoded or rejected."""

from __future__ import annotations

import zlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from latentd import codec, images
from latentd.bundle import DataSpec
from latentd.errors import InvalidArgument
from latentd.pb import vae_pb2 as pb
from latentd.pixels import FITS
from tests.support.fuzz_inputs import files, image, mutated, tensors
from tests.support.fuzz_loop import once, run_repeatedly

TOY = DataSpec("image", (4, 4), "uint8", (0.0, 255.0))


def test_tensor_is_decoded_and_encoded_again_or_rejected(request):
    @once
    @given(tensors)
    def property_(tensor: pb.Tensor) -> None:
        try:
            array = codec.from_tensor(tensor)
        except InvalidArgument as error:
            field = error.field
        else:
            if tensor.dtype == pb.DATA_TYPE_BFLOAT16:  # it was widened to float32
                array = (array.view(np.uint32) >> 16).astype(np.uint16)
            field = "tensor." if codec.to_tensor(array) == tensor else "another tensor"
        assert field.startswith("tensor.")

    run_repeatedly(property_, request)


def test_image_is_decoded_or_rejected(request):
    # With a valid checksum, changes reach the decoder.
    def with_checksums(file: bytes) -> bytes:
        at, out = 8, file[:8]
        while len(file) - at >= 12:
            length = min(int.from_bytes(file[at : at + 4], "big"), len(file) - at - 12)
            chunk = file[at + 4 : at + 8 + length]
            out += file[at : at + 4] + chunk + zlib.crc32(chunk).to_bytes(4, "big")
            at += 12 + length
        return out

    @once
    @given(st.one_of(files, mutated(image(4, 4, "L")).map(with_checksums)), st.sampled_from(FITS))
    def property_(file: bytes, fit: str) -> None:
        try:
            array = images.decode_files([file], TOY, "x", fit)
        except InvalidArgument as error:
            field = error.field
        else:
            field = "x[0]"
            assert (array.shape, array.dtype) == ((1, 4, 4), np.uint8)
        assert field == "x[0]"

    run_repeatedly(property_, request)
