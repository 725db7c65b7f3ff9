"""Write the descriptions of the chart's values where people and tools read them.

    python deploy/helm/write_values.py        (make chart)

The comments in values.yaml are the only source. They go into the table of README.md and into
values.schema.json, which also gets the settings of `latentd serve`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from latentd.settings import Settings

CHART = Path(__file__).parent / "latentd"
OWN = set(re.findall(r'"(LATENTD_\w+)"', (CHART / "templates/_helpers.tpl").read_text()))
"""Settings that the templates make: another value would contradict a port or a mount."""

_LINE = re.compile(r"( *)(?:# (?P<comment>.+)|(?P<key>[A-Za-z0-9]+):.*)?$")


def descriptions(text: str) -> dict[str, str]:
    """The comment above each value, by the value's path: {"image.tag": "Tag. Empty: ..."}."""
    found: dict[str, str] = {}
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match and match["comment"]:
            comment.append(match["comment"])
            continue
        if match and match["key"]:
            path[len(match[1]) // 2 :] = [match["key"]]
            if comment:
                found[".".join(path)] = " ".join(comment)
        comment = []
    return found


def schema(described: dict[str, str], written: dict[str, Any]) -> dict[str, Any]:
    """The schema with these descriptions, and with the settings of `latentd serve`."""
    found = copy.deepcopy(written)
    for path, description in described.items():
        node = found
        for name in path.split("."):
            node = node["properties"][name]
        # Before what the type says: a person reads it first.
        rest = {key: node[key] for key in list(node) if key != "description"}
        node.clear()
        node.update({"description": description, **rest})
    found["definitions"]["settings"]["properties"] = dict(_settings())
    return found


def _settings() -> Iterator[tuple[str, dict[str, Any]]]:
    types = get_type_hints(Settings)
    names = {int: "integer", float: "number", bool: "boolean", str: "string"}
    for field in dataclasses.fields(Settings):
        name = f"LATENTD_{field.name.upper()}"
        if name in OWN:
            continue
        setting: dict[str, Any] = {"description": field.metadata["help"]}
        setting["type"] = names[types[field.name]]
        if field.metadata["choices"]:
            setting["enum"] = list(field.metadata["choices"])
        if setting["type"] in ("integer", "number"):
            setting["minimum"] = field.metadata["min"]
        yield name, setting


def table(described: dict[str, str], values: dict[str, Any]) -> str:
    """The rows of README.md: path, default, description."""
    rows = ["| value | default | |", "|---|---|---|"]
    for path, description in described.items():
        default: Any = values
        for name in path.split("."):
            default = default[name]
        text = json.dumps(default)
        shown = f"`{text}`" if len(text) < 80 else "[values.yaml](values.yaml)"
        rows.append(f"| `{path}` | {shown} | {description} |")
    return "\n".join(rows)


def written() -> dict[Path, str]:
    """What each file should hold."""
    source = (CHART / "values.yaml").read_text()
    described = descriptions(source)
    file = CHART / "values.schema.json"
    text = json.dumps(schema(described, json.loads(file.read_text())), indent=2) + "\n"
    readme = CHART / "README.md"
    before, start, rest = readme.read_text().partition("<!-- values -->\n")
    _, end, after = rest.partition("<!-- /values -->")
    rows = table(described, yaml.safe_load(source))
    return {file: text, readme: before + start + rows + "\n" + end + after}


if __name__ == "__main__":
    for path, content in written().items():
        path.write_text(content)
