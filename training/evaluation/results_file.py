"""evaluation.json: the results, and the digest of the evaluated weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from latentd.training import run_log
from latentd.training.model import Model


def weights_digest(model: Model) -> str:
    """The sha256 of the names and bytes of a model's weights."""
    seen = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        seen.update(name.encode())
        seen.update(weight.cpu().contiguous().numpy().tobytes())
    return seen.hexdigest()


def write(folder: Path, result: dict[str, Any]) -> Path:
    """Write evaluation.json into the run's folder, where export finds it."""
    path = folder / run_log.EVALUATION
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    return path


def saved_evaluation(checkpoint: Path, weights: str) -> dict[str, Any]:
    """The results from evaluation.json in the checkpoint's folder. Returns {} unless they belong to
    these weights, evaluated on their own data."""
    try:
        result = json.loads((checkpoint.parent / run_log.EVALUATION).read_text())
    except (OSError, ValueError):
        return {}
    ours = isinstance(result, dict) and result.get("weights") == weights
    return result if ours and result.get("own_data") else {}
