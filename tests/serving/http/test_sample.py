"""GET /sample: files that a link decides, byte by byte."""

from __future__ import annotations

import csv
import io
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

from latentd import images
from latentd.client import Client
from tests.support.table_bundle import COLUMNS, publish_table
from tests.support.text_bundle import publish_text
from tests.support.web import request


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def test_one_picture_is_the_row_of_sample(server):
    answer = request(server, "/sample/toy.png?seed=7&temperature=0.5&offset=3")
    with Client(server.target) as client:
        row = client.sample(1, seed=7, temperature=0.5, offset=3).x[0]
    assert answer.status == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["latentd-seed"] == "7"
    np.testing.assert_array_equal(pixels(answer.body), row)


def test_several_pictures_are_a_grid(server):
    with Client(server.target) as client:
        rows = client.sample(6, seed=7).x
    answer = request(server, "/sample/toy.png?seed=7&count=6&columns=2")
    assert answer.body == images.make_grid(rows, 2)
    assert answer.body != request(server, "/sample/toy.png?seed=7&count=6").body


@pytest.mark.parametrize(
    ("suffix", "kind", "media_type"),
    [("jpg", "JPEG", "image/jpeg"), ("webp", "WEBP", "image/webp")],
)
@pytest.mark.parametrize("count", [1, 6])
def test_pictures_in_other_formats(server, suffix, kind, media_type, count):
    answer = request(server, f"/sample/toy.{suffix}?seed=7&count={count}")
    same = request(server, f"/sample/toy.png?seed=7&count={count}")
    assert answer.headers["content-type"] == media_type
    assert Image.open(io.BytesIO(answer.body)).format == kind
    assert Image.open(io.BytesIO(answer.body)).size == Image.open(io.BytesIO(same.body)).size
    assert answer.headers["etag"] != same.headers["etag"]


def test_without_a_seed_the_answer_names_a_link_to_the_same_bytes(server):
    one = request(server, "/sample/toy.png?count=4")
    assert one.headers["cache-control"] == "no-store"
    assert one.body != request(server, "/sample/toy.png?count=4").body
    again = request(server, one.headers["content-location"])
    assert (again.status, again.body) == (200, one.body)
    assert again.headers["latentd-seed"] == one.headers["latentd-seed"]


def test_who_has_the_file_gets_304_and_nothing_is_computed(server):
    path = "/sample/toy.png?seed=7&count=2"
    first = request(server, path)
    calls = server.calls("Sample")
    again = request(server, path, If_None_Match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert server.calls("Sample") == calls


@pytest.mark.parametrize("other", ["seed=8", "count=3", "columns=1", "temperature=0.5", "offset=1"])
def test_another_link_has_another_etag(server, other):
    query = {"seed": "7", "count": "2"} | dict([other.split("=")])
    changed = request(server, f"/sample/toy.png?{urlencode(query)}")
    assert changed.status == 200
    assert (
        changed.headers["etag"] != request(server, "/sample/toy.png?seed=7&count=2").headers["etag"]
    )


def test_a_new_version_changes_the_etag(start_server, tmp_path, publish_toy):
    publish_toy(tmp_path)
    server = start_server(tmp_path, http_port=0)
    first = request(server, "/sample/toy.png?seed=7")
    publish_toy(tmp_path, levels=100)
    server.scan()
    second = request(server, "/sample/toy.png?seed=7", If_None_Match=first.headers["etag"])
    assert second.status == 200
    assert second.body != first.body
    old = request(server, "/sample/toy.png?seed=7&version=1", If_None_Match=first.headers["etag"])
    assert old.status == 304


def test_a_table_is_csv(start_server, tmp_path):
    folder = publish_table(tmp_path)
    server = start_server(tmp_path, http_port=0)
    answer = request(server, f"/sample/{folder.parent.name}.csv?seed=7&count=3&draw_x=true")
    assert answer.status == 200
    header, *rows = csv.reader(answer.body.decode().splitlines())
    assert header == [column.name for column in COLUMNS]
    assert [len(row) for row in rows] == [len(COLUMNS)] * 3


def test_texts_are_lines(start_server, tmp_path):
    publish_text(tmp_path)
    server = start_server(tmp_path, http_port=0)
    answer = request(server, "/sample/text.txt?seed=7&count=5")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert len(answer.body.decode().splitlines()) == 5


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/sample/toy.png?seed=x", 400, "seed: 'x' is not an integer from 0 to"),
        ("/sample/toy.png?seed=18446744073709551616", 400, "seed: "),
        ("/sample/toy.png?seed=1&seed=2", 400, "seed: given 2 times"),
        ("/sample/toy.png?count=0", 400, "count: 0 rows requested"),
        ("/sample/toy.png?count=4294967295", 400, "count: "),
        ("/sample/toy.png?temperature=nan", 400, "temperature: "),
        ("/sample/toy.png?temperature=11", 400, "temperature: "),
        ("/sample/toy.png?cuont=3", 400, "the model has no free axis 'cuont'"),
        ("/sample/toy.txt", 400, "this model's rows are uint8 images, which .txt cannot hold"),
        ("/sample/toy.gif", 400, "unknown kind of file .gif. Use .png, .jpg"),
        ("/sample/other.png", 404, "Model 'other' is not served; served models: toy."),
        ("/sample/toy.png?version=9", 404, "toy version 9 is not served"),
        ("/sample/toy.webp?count=4096&columns=1", 400, "WEBP takes 16383 a side"),
        ("/sample/toy.png?draw_x=maybe", 400, "draw_x: 'maybe' is neither true nor false"),
    ],
)
def test_errors_say_what_is_wrong(server, path, status, words):
    answer = request(server, path)
    assert answer.status == status
    assert words in answer.error
