"""evaluation.json: what was found, and of which weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from latentd.training.model import Model

FILE: Final = "evaluation.json"


def weights_digest(model: Model) -> str:
    """sha256 over the names and the bytes of a model's weights."""
    seen = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        seen.update(name.encode())
        seen.update(weight.cpu().contiguous().numpy().tobytes())
    return seen.hexdigest()


def write(folder: Path, result: dict[str, Any]) -> Path:
    """evaluation.json, in the run's folder, where export finds it."""
    path = folder / FILE
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    return path


def saved_evaluation(checkpoint: Path, weights: str) -> dict[str, Any]:
    """The results in the evaluation.json of the checkpoint's folder, if they are of these weights
    on their own data; else {}."""
    try:
        result = json.loads((checkpoint.parent / FILE).read_text())
    except (OSError, ValueError):
        return {}
    ours = isinstance(result, dict) and result.get("weights") == weights
    return result if ours and result.get("own_data") else {}
