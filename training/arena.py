"""The memory that ONNX Runtime keeps for the next run: here it is given back after each run.

Attention over a large image takes gigabytes, of which the arena keeps several times as many.
"""

from __future__ import annotations

import onnxruntime as ort


def emptied() -> ort.RunOptions:
    """For one run on the CPU, or for all runs of a session."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options
