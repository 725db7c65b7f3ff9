"""Serve VAE bundles over gRPC on ONNX Runtime. Nothing here ever imports torch."""

__version__ = "0.1.0"
