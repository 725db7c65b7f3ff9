"""latentd: train a variational autoencoder, export it, serve it.

The folder serving/ is this package, the folder training/ is latentd.training. Nothing outside
latentd.training ever imports torch.
"""

import os

# No telemetry leaves the machine unless the user sets these variables otherwise. ONNX Runtime sends
# it from every process that imports it, Ray from every cluster that it starts. Each reads its
# variable then, so this comes before every other import of this package.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

__version__ = "0.1.0"
