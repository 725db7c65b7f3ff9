"""Sessions of ONNX Runtime on the CPU, as on a server without a GPU."""

from __future__ import annotations

from typing import Final

import onnxruntime as ort

WARNINGS: Final = 2  # levels of the log: this one and what is worse
ERRORS: Final = 3
SILENT: Final = 4


def cpu_session(graph: bytes, threads: int, log_level: int = WARNINGS) -> ort.InferenceSession:
    """A session for a graph. threads: CPU threads of one operation. The runtime's exceptions, which
    have no common class, pass."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = log_level
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def shrink_after_run() -> ort.RunOptions:
    """Options for a run: the memory arena gives its free memory back when the run ends.

    Attention over a large image takes gigabytes, of which the arena keeps several times as many for
    the next run.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options
