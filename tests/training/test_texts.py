"""text:FILE: lines of UTF-8 become rows of bytes, and what is left out is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentd.texts import to_rows, to_texts
from latentd.training import data
from latentd.training.config import Config
from latentd.training.errors import TrainingError
from latentd.training.readers.text import TextOptions, read_texts


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "lines.txt"
    path.write_bytes(content)
    return path


def read(tmp_path: Path, content: bytes, **settings: object) -> tuple[list[str], tuple[str, ...]]:
    found = read_texts(written(tmp_path, content), TextOptions(**settings))  # type: ignore[arg-type]
    assert found.text
    return to_texts(found.x), found.notes


def test_lines_are_rows_that_end_in_zeros(tmp_path: Path) -> None:
    found = read_texts(written(tmp_path, "ab\nçé\n\n".encode()), TextOptions())
    assert found.x.tolist() == [[97, 98, 0, 0, 0], [195, 167, 195, 169, 0]]
    assert to_texts(found.x) == ["ab", "çé"]


@pytest.mark.parametrize("content", [b"a\nb", b"a\nb\n", b"\xef\xbb\xbfa\r\nb\r\n"])
def test_a_byte_order_mark_and_the_ends_of_lines_are_no_text(
    tmp_path: Path, content: bytes
) -> None:
    assert read(tmp_path, content)[0] == ["a", "b"]


def test_characters_that_only_look_like_ends_of_lines_stay(tmp_path: Path) -> None:
    text = "a\x0bb\x85c\u2028d"
    assert read(tmp_path, text.encode())[0] == [text]


def test_empty_and_repeated_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    texts, notes = read(tmp_path, b"a\n\nb\n \t\na\na\nc\n")
    assert texts == ["a", "b", "c"]
    assert ": 7 lines." in notes[0]
    assert ": 2 empty lines left out." in notes[1]
    assert ": 2 lines left out that repeat an earlier one. --keep-repeated keeps" in notes[2]


def test_repeated_lines_can_be_kept(tmp_path: Path) -> None:
    texts, notes = read(tmp_path, b"a\nb\na\n", keep_repeated=True)
    assert texts == ["a", "b", "a"]
    assert ": 1 line repeat an earlier one and are kept." in notes[1]


def test_longer_texts_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"1 text of 2 are longer than 63 bytes \(the longest "):
        read(tmp_path, b"a" * 63 + b"\n" + b"b" * 70)
    with pytest.raises(TrainingError, match=r"Use --text-length 71, or --long-texts cut or skip"):
        read(tmp_path, b"a" * 63 + b"\n" + b"b" * 70)


def test_longer_texts_are_skipped_or_cut_between_characters(tmp_path: Path) -> None:
    content = "abc\nabéé\n".encode()
    assert read(tmp_path, content, text_length=5, long_texts="skip")[0] == ["abc"]
    texts, notes = read(tmp_path, content, text_length=6, long_texts="cut")
    assert texts == ["abc", "abé"]
    assert "1 text cut that are longer than 5 bytes (the longest has 6)." in notes[1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\nb\xff\n", "line 2 has other bytes than UTF-8, from byte 1 on"),
        (b"a\nb\x00c\n", "line 2 holds a NUL character"),
        (b"\n \n", "no text that can be a row"),
        (b"", "no text that can be a row"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(TrainingError, match=reason):
        read(tmp_path, content)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(TrainingError, match=r"nowhere\.txt does not exist; text:FILE names"):
        read_texts(Path("nowhere.txt"), TextOptions())


def test_made_up_bytes_become_replacement_characters() -> None:
    assert to_texts(to_rows([b"a\xffb", "é".encode()[:1]], 8)) == ["a\ufffdb", "\ufffd"]


def test_a_data_set_of_texts_has_their_form(tmp_path: Path) -> None:
    path = written(tmp_path, b"".join(b"%d\n" % number for number in range(100)))
    dataset = data.load(Config(data=f"text:{path}", text_length=8))
    assert (dataset.spec.kind, dataset.spec.shape, dataset.spec.dtype) == (
        *("text", (8,), "uint8"),
    )
    parts = (dataset.train, dataset.validation, dataset.test)
    assert {text for part in parts for text in to_texts(part.x)} == set(map(str, range(100)))


def test_a_path_of_text_without_its_scheme_is_recognized() -> None:
    with pytest.raises(TrainingError, match=r"Do you mean text:names\.txt\?"):
        data.load(Config(data="names.txt"))
