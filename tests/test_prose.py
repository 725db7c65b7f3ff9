"""What people read stays plain, short and true: messages, README files, and the names in them."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentd.settings import Settings
from latentd.training.config import Config

ROOT = Path(__file__).parents[1]
SOURCES = ("serving", "training", "tests", "deploy", "protos")
TEXT = {".cpp", ".env", ".h", ".json", ".md", ".proto", ".py", ".sh", ".toml", ".yaml"}

TICS = re.compile(
    r"\b(whoever|nobody|somebody|anew|let go of|told of|in one breath|at the most|mend(s|ed|ing)?"
    r"|(?<!do )as well\b(?! as)|cannot be had|(is|are) due)\b|(?<!there )\bis no (?!longer|more)",
    re.IGNORECASE,
)
OLD_WORDS = re.compile(r"\b(d[o]or|l[e]dger|sh[e]lf|v[i]tals|h[a]nds|l[a]nes?)\b", re.IGNORECASE)

SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def files(*suffixes: str) -> list[Path]:
    """The project's own text files: not what protoc, uv or a build writes."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in SOURCES:
        found += (ROOT / folder).rglob("*")
    skipped = {"pb", "__pycache__"}
    return [p for p in found if p.is_file() and p.suffix in suffixes and not skipped & set(p.parts)]


def readmes() -> list[Path]:
    return [path for path in files(".md") if path.name != "CHANGELOG.md"]


def prose(path: Path) -> str:
    """The text without code blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Each string of several words in a module that is not a docstring, with its line."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and " " in node.value and id(node) not in docstrings:
            yield node.lineno, node.value


def test_messages_have_no_tics():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {tic[0]}"
        for path in files(".py")
        if path.relative_to(ROOT).parts[0] in ("serving", "training")
        for line, text in messages(path)
        if (tic := TICS.search(text))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", readmes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_readmes_have_no_tics(path):
    assert not [tic[0] for tic in TICS.finditer(prose(path))]


def test_readme_and_glossary_are_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    glossary = (ROOT / "serving/README.md").read_text().partition("## Glossary")[2]
    assert 10 < len(glossary.splitlines()) <= 30


@pytest.mark.parametrize("path", readmes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in LINK.findall(path.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in slugs, target


def test_flags_and_metrics_in_readmes_exist():
    code = "".join(path.read_text() for path in files(".py"))
    known = set(re.findall(r'"(--[a-z][a-z0-9-]+)"', code))
    for field in (*dataclasses.fields(Settings), *dataclasses.fields(Config)):
        known.add("--" + field.name.replace("_", "-"))
    metrics = set(re.findall(r'"([a-z]+(?:_[a-z]+)+)"', (ROOT / "serving/metrics.py").read_text()))
    metrics.add("engine_busy_ratio")  # made by prometheus-adapter: adapter-rules.yaml
    for path in readmes():
        for span in SPAN.findall(path.read_text()):
            if flag := re.match(r"--[a-z][a-z0-9-]+", span):
                assert flag[0] in known, f"{path.relative_to(ROOT)}: {flag[0]}"
            if metric := re.fullmatch(r"latentd_([a-z_]+)", span):
                assert metric[1] in metrics, f"{path.relative_to(ROOT)}: {span}"


def test_readme_names_every_thread():
    table = "".join(
        (ROOT / name).read_text() for name in ("serving/README.md", "serving/jobs/README.md")
    )
    started = re.compile(
        r"threading\.Thread\(.{0,200}?name=f?\"(?:\{name\})?([^\"]+)\"|"
        r"thread_name_prefix=\"([^\"]+)\"",
        re.DOTALL,
    )
    names = [
        a or b
        for path in files(".py")
        if "serving" in path.relative_to(ROOT).parts[:1]
        for a, b in started.findall(path.read_text())
    ]
    assert len(names) > 8
    assert not [name for name in names if name not in table]


def test_tests_in_the_list_of_faults_exist():
    for span in SPAN.findall((ROOT / "tests/FAULTS.md").read_text()):
        if re.search(r"/$|test_\w+\.py$", span) and not span.startswith("/"):
            assert (ROOT / "tests" / span).exists(), span


def test_old_words_are_gone():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files(*TEXT, "")
        if path.name not in ("CHANGELOG.md", "LICENSE")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if OLD_WORDS.search(line)
    ]
    assert not found, "\n".join(found)
