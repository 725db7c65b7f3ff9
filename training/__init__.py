"""Train a variational autoencoder, look at it, export it as a bundle. See `python -m training`."""

import os

# As in serving: without it ONNX Runtime, which checks exports, sends telemetry once it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
