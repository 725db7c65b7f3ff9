"""Bundles to measure with: an MLP and a small convolutional net of MNIST's size, random weights.

The cost of a graph does not depend on its weights, so nothing is trained here.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from latentd import bundle
from latentd.bundle import DataSpec, LatentFormat, Manifest, RowFormat
from latentd.shapes import Axis, Shape
from tests.support.likelihoods import LIKELIHOODS, likelihood_graph, log_likelihood
from tests.support.onnx_graphs import npz

SHAPE = (28, 28)
LATENT = 20
FLOAT = TensorProto.FLOAT


class Graph:
    """Collects nodes and weights; each method returns the name of its output."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def node(self, kind: str, *inputs: str, to: str = "", **attributes: object) -> str:
        name = to or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, values: object, dtype: str = "float32") -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(from_array(np.asarray(values, dtype), name))
        return name

    def dense(self, x: str, inputs: int, outputs: int, to: str = "") -> str:
        weight = self._random.normal(size=(inputs, outputs)) / np.sqrt(inputs)
        return self.node("Gemm", x, self.constant(weight), self.constant(np.zeros(outputs)), to=to)

    def conv(self, x: str, inputs: int, outputs: int, stride: int = 1) -> str:
        weight = self._random.normal(size=(outputs, inputs, 3, 3)) / np.sqrt(9 * inputs)
        return self.node(
            *("Conv", x, self.constant(weight), self.constant(np.zeros(outputs))),
            pads=[1, 1, 1, 1],
            strides=[stride, stride],
        )

    def conv_transpose(self, x: str, inputs: int, outputs: int) -> str:
        """4x4 with stride 2: doubles height and width."""
        weight = self._random.normal(size=(inputs, outputs, 4, 4)) / np.sqrt(4 * inputs)
        return self.node(
            *("ConvTranspose", x, self.constant(weight), self.constant(np.zeros(outputs))),
            pads=[1, 1, 1, 1],
            strides=[2, 2],
        )

    def reshape(self, x: str, *shape: int, to: str = "") -> str:
        return self.node("Reshape", x, self.constant([-1, *shape], "int64"), to=to)

    def double(self, x: str) -> str:
        scales = self.constant([1, 1, 2, 2])
        return self.node("Resize", x, "", scales, mode="nearest")

    @property
    def parameters(self) -> int:
        """Numbers in its float constants."""
        weights = (w for w in self._weights if w.data_type == FLOAT)
        return sum(math.prod(w.dims) for w in weights)

    def unit(self, x: str) -> str:
        """Bytes to 0..1."""
        return self.node("Div", self.node("Cast", x, to_=FLOAT), self.constant(255))

    def finish(self, x: tuple, *outputs: tuple) -> bytes:
        for node in self._nodes:  # `to` names the output, so Cast's own `to` came as `to_`
            for attribute in node.attribute:
                attribute.name = attribute.name.removesuffix("_")
        graph = helper.make_graph(
            self._nodes,
            "bench",
            [_value(*x)],
            [_value(*output) for output in outputs],
            self._weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model)
        return model.SerializeToString()


def _value(name: str, kind: int, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])


def mlp() -> tuple[bytes, bytes]:
    """784-400-20 and back."""
    g = Graph(0)
    hidden = g.node("Relu", g.dense(g.reshape(g.unit("x"), 784), 784, 400))
    g.dense(hidden, 400, LATENT, to="mean")
    g.dense(hidden, 400, LATENT, to="log_var")
    encoder = _encoder(g)
    g = Graph(1)
    return encoder, _decoder(g, g.dense(g.node("Relu", g.dense("z", LATENT, 400)), 400, 784))


def conv() -> tuple[bytes, bytes]:
    """Two halvings with 32 and 64 channels, and back by nearest-neighbour upsampling."""
    g = Graph(0)
    x = g.reshape(g.unit("x"), 1, *SHAPE)
    x = g.node("Relu", g.conv(x, 1, 32, stride=2))
    x = g.node("Relu", g.conv(x, 32, 64, stride=2))
    x = g.reshape(x, 64 * 49)
    g.dense(x, 64 * 49, LATENT, to="mean")
    g.dense(x, 64 * 49, LATENT, to="log_var")
    encoder = _encoder(g)
    g = Graph(1)
    z = g.reshape(g.node("Relu", g.dense("z", LATENT, 64 * 49)), 64, 7, 7)
    z = g.node("Relu", g.conv(g.double(z), 64, 32))
    return encoder, _decoder(g, g.conv(g.double(z), 32, 1))


def _encoder(g: Graph) -> bytes:
    return g.finish(
        ("x", TensorProto.UINT8, *SHAPE), ("mean", FLOAT, LATENT), ("log_var", FLOAT, LATENT)
    )


def _decoder(g: Graph, logits: str) -> bytes:
    g.reshape(logits, 1, *SHAPE, to="params")
    scaled = g.node("Mul", g.node("Sigmoid", logits), g.constant(255))
    g.reshape(g.node("Cast", g.node("Round", scaled), to_=TensorProto.UINT8), *SHAPE, to="x")
    return g.finish(
        ("z", FLOAT, LATENT), ("x", TensorProto.UINT8, *SHAPE), ("params", FLOAT, 1, *SHAPE)
    )


MODELS = {"mlp": mlp, "conv": conv}


def spatial() -> tuple[bytes, bytes]:
    """Images of any size, three halvings with 16, 32 and 64 channels; a latent of 4 x h/8 x w/8."""
    g = Graph(0)
    x = g.node("Transpose", g.unit("x"), perm=[0, 3, 1, 2])
    for before, after in ((3, 16), (16, 32), (32, 64)):
        x = g.node("Relu", g.conv(x, before, after, stride=2))
    g.node("Identity", g.conv(x, 64, 4), to="mean")
    low, high = g.constant(-10), g.constant(4)
    g.node("Clip", g.conv(x, 64, 4), low, high, to="log_var")
    image, latent = ("h", "w", 3), (4, "h/8", "w/8")
    encoder = g.finish(
        ("x", TensorProto.UINT8, *image), ("mean", FLOAT, *latent), ("log_var", FLOAT, *latent)
    )
    g = Graph(1)
    z = g.node("Relu", g.conv("z", 4, 64))
    for before, after in ((64, 32), (32, 16), (16, 3)):
        # Four channels for each output channel, arranged as 2x2 pixels.
        z = g.node("DepthToSpace", g.conv(z, before, 4 * after), blocksize=2)
        z = g.node("Relu", z) if after > 3 else z
    scaled = g.node("Round", g.node("Mul", g.node("Sigmoid", z), g.constant(255)))
    pixels = g.node("Cast", scaled, to_=TensorProto.UINT8)
    g.node("Transpose", pixels, to="x", perm=[0, 2, 3, 1])
    return encoder, g.finish(("z", FLOAT, *latent), ("x", TensorProto.UINT8, *image))


def publish_spatial(root: Path) -> Path:
    """The bundle of `spatial` under `root`: no likelihood, images of 16 to 1024 pixels a side."""
    encoder, decoder = spatial()
    encode, decode = ort.InferenceSession(encoder), ort.InferenceSession(decoder)
    arrays = {}
    for prefix, size in (("", (64, 64)), ("1.", (96, 160))):
        x = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
        mean, log_var = encode.run(["mean", "log_var"], {"x": x})
        (decoded_x,) = decode.run(["x"], {"z": mean})
        vectors = {"x": x, "mean": mean, "log_var": log_var, "z": mean, "decoded_x": decoded_x}
        arrays |= {prefix + name: array for name, array in vectors.items()}
    golden = npz(**arrays)
    manifest = Manifest(
        model="spatial",
        x=RowFormat("image", Shape.parse(["h", "w", 3]), "uint8", (0.0, 255.0)),
        z=LatentFormat(Shape.parse([4, "h/8", "w/8"])),
        likelihood=None,
        opset=18,
        preprocessing="x / 255 inside the graph",
        parity={},
        axes={name: Axis(name, 8, 16, 1024, 64) for name in ("h", "w")},
    )
    files = {bundle.ENCODER: encoder, bundle.DECODER: decoder, bundle.GOLDEN: golden}
    return bundle.publish(root, manifest, files)


def publish(root: Path, name: str) -> Path:
    """The bundle of one of MODELS under `root`."""
    encoder, decoder = MODELS[name]()
    x = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), np.uint8)
    mean, log_var = ort.InferenceSession(encoder).run(["mean", "log_var"], {"x": x})
    decoded_x, params = ort.InferenceSession(decoder).run(["x", "params"], {"z": mean})
    spec = DataSpec("image", SHAPE, "uint8", (0.0, 255.0))
    likelihood = likelihood_graph("bernoulli", spec)
    golden = npz(
        x=x,
        mean=mean,
        log_var=log_var,
        z=mean,
        decoded_x=decoded_x,
        params=params,
        log_likelihood=log_likelihood(likelihood, x, params),
    )
    manifest = Manifest(
        model=name,
        x=RowFormat.of(spec),
        z=LatentFormat(Shape.parse([LATENT])),
        likelihood=LIKELIHOODS["bernoulli"],
        opset=18,
        preprocessing="x / 255 inside the graph",
        parity={},
    )
    files = {
        bundle.ENCODER: encoder,
        bundle.DECODER: decoder,
        bundle.LIKELIHOOD: likelihood,
        bundle.GOLDEN: golden,
    }
    return bundle.publish(root, manifest, files)
