"""The memory arena of ONNX Runtime, which keeps memory for the next run.

Attention over a large image takes gigabytes, of which the arena keeps several times as
many.
"""

from __future__ import annotations

import onnxruntime as ort


def shrink_after_run() -> ort.RunOptions:
    """Options for a run on the CPU: the arena gives its free memory back when the run ends."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options
