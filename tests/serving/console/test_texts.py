"""`latentd client` with a model of text: lines in, lines out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from latentd import texts
from latentd.client import Client
from latentd.console.outputs import OutputPath
from tests.support.server import RunningServer, server_starter
from tests.support.text_bundle import LENGTH, TEXTS, X, publish_text

Run = Callable[..., tuple[int, str, str]]
Done = Callable[..., str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("text")
    publish_text(root)
    with server_starter() as start:
        yield start(root)


def lines(path: str) -> list[str]:
    """The lines of a file that splits at \\n only."""
    content = Path(path).read_bytes().decode()
    assert content.endswith("\n")
    return content.removesuffix("\n").split("\n")


def in_lines(given: list[str]) -> list[str]:
    return [re.sub("[\r\n]", "\ufffd", text) for text in given]


def test_the_model_tells_the_most_bytes_of_a_text(done: Done) -> None:
    assert re.search(r"x +at most 7 bytes of UTF-8, as uint8 8\n", done("model"))


def test_samples_are_printed_or_written_as_lines(done: Done, client: Client) -> None:
    expected = client.sample(30, seed=7, draw_x=True).texts
    words = ("--count", "30", "--seed", "7", "--draw-x")
    said = done("sample", *words)
    assert said.count("\n") == 31
    assert said.splitlines()[-1].startswith("30 texts, by text version 1 (sha256:")
    said = done("sample", *words, "--out", "lines.txt")
    assert said.startswith("30 texts in lines.txt, by text version 1 (sha256:")
    assert said.count("\n") == 1
    assert lines("lines.txt") == in_lines(expected)
    done("stream", *words, "--chunk-rows", "7", "--out", "streamed.txt")
    assert lines("streamed.txt") == lines("lines.txt")
    done("sample", *words, "--out", "bytes.npy")
    assert texts.to_texts(np.load("bytes.npy")) == expected


def test_files_of_lines_are_encoded_scored_and_reconstructed(done: Done, client: Client) -> None:
    Path("in.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    done("encode", "in.txt", "--out", "latents.npz")
    with np.load("latents.npz") as arrays:
        np.testing.assert_array_equal(arrays["mean"], client.encode(X).mean)
    expected = client.reconstruct(X).texts
    done("reconstruct", "in.txt", "--out", "back.txt")
    assert lines("back.txt") == in_lines(expected)
    done("decode", "latents.npz", "--out", "decoded.txt")
    assert lines("decoded.txt") == lines("back.txt")
    drawn = client.reconstruct(X, draw_x=True, seed=5)
    for command in ("reconstruct", "in.txt"), ("decode", "latents.npz"):
        done(*command, "--draw-x", "--seed", "5", "--out", f"{command[0]}.txt")
        assert lines(f"{command[0]}.txt") == in_lines(drawn.texts)
    said = done("score", "in.txt", "--seed", "1", "--rows", "1:3")
    assert f"{client.score(X[1:3], seed=1).elbo[0]:.3f}" in said


def test_texts_are_given_on_the_command_line(done: Done, run: Run, client: Client) -> None:
    said = done("reconstruct", "text:bc", "text:zzz zz", "--scores")
    expected = client.reconstruct(X[[2, 5]], include_scores=True)
    assert f"{expected.elbo[1]:.3f}" in said
    said = done("interpolate", "--start", "text:bc", "--end", "text:", "--out", "way.txt")
    assert said.startswith("9 texts in way.txt, by text")
    assert lines("way.txt")[0] == in_lines(client.reconstruct(X[2:3]).texts)[0]
    status, _, err = run("score", "text:bc", "text:much too long")
    assert (status, err) == (
        2,
        "latentd: text:much too long: has 13 bytes in UTF-8; the limit is 7.\n",
    )


@pytest.mark.parametrize("out", ["grid.png", "pictures"])
def test_pictures_of_texts_are_refused(run: Run, out: str) -> None:
    status, _, err = run("sample", "--out", out)
    assert status == 2
    assert "PNG needs 8-bit images; this model's rows are uint8 texts. Use a .txt, .npz" in err
    assert not list(Path().iterdir())


def test_a_line_that_is_too_long_is_named(run: Run) -> None:
    Path("in.txt").write_text("a\nabcdefgh\n")
    status, _, err = run("reconstruct", "in.txt")
    assert (status, "in.txt, row 1: has 8 bytes in UTF-8; the limit is 7" in err) == (2, True)


def test_a_made_up_line_break_does_not_break_a_line(tmp_path: Path, client: Client) -> None:
    rows = texts.to_rows([b"a\nb", b"c\r", b""], LENGTH)
    path = tmp_path / "x.txt"
    with OutputPath(str(path), ("txt",)).rows(3, client.get_model().default.x, 0, {}) as write:
        write(rows)
    assert path.read_bytes().decode() == "a\ufffdb\nc\ufffd\n\n"


def test_lines_of_pictures_are_refused(toy_bundles: Path, run: Run) -> None:
    with server_starter() as start:
        target = start(toy_bundles).target
        status, _, err = run("sample", "--server", target, "--out", "x.txt")
    assert status == 2
    assert "a .txt file needs texts; this model's rows are uint8 images" in err
