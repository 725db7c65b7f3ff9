"""Documents against the models of generated Kubernetes clients, such as the package `kserve`.

Their files are read and not imported, for kserve needs an older protobuf than latentd.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SIMPLE = {"str": str, "int": int, "bool": bool, "float": (int, float), "ResourceQuantity": str}


@dataclass(frozen=True)
class Model:
    """A kind of object: its fields' types by their names in YAML, and which must be there."""

    types: dict[str, str]
    required: set[str]


class Models:
    """The models in folders of generated clients."""

    def __init__(self, *folders: Path) -> None:
        files = [path for folder in folders for path in folder.rglob("models/*.py")]
        self._files = {path.stem.replace("_", ""): path for path in files}
        self.model = cache(self._read)

    def _read(self, kind: str) -> Model:
        text = self._files[kind.lower()].read_text()
        (found,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
        tables = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in found.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Dict)
        }
        types, names = tables["openapi_types"], tables["attribute_map"]
        required = set(re.findall(r"Invalid value for `(\w+)`, must not be `None`", text))
        return Model({names[key]: types[key] for key in types}, {names[key] for key in required})

    def errors(self, value: Any, kind: str, where: str) -> Iterator[str]:
        """What does not fit, each with its place."""
        if inner := re.fullmatch(r"list\[(.+)\]", kind):
            if not isinstance(value, list):
                yield f"{where} must be a list"
                return
            for number, each in enumerate(value):
                yield from self.errors(each, inner[1], f"{where}[{number}]")
        elif inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
            if not isinstance(value, dict):
                yield f"{where} must be a map"
                return
            for key, each in value.items():
                yield from self.errors(each, inner[1], f"{where}.{key}")
        elif kind in SIMPLE:
            if not isinstance(value, SIMPLE[kind]) or (isinstance(value, bool) and kind != "bool"):
                yield f"{where} must be of type {kind}"
        elif kind != "object":
            model = self.model(kind)
            if not isinstance(value, dict):
                yield f"{where} must be a {kind}"
                return
            for key in value.keys() - model.types.keys():
                yield f"{where} has no field {key}"
            for key in model.required - value.keys():
                yield f"{where} lacks {key}"
            for key in value.keys() & model.types.keys():
                yield from self.errors(value[key], model.types[key], f"{where}.{key}")
