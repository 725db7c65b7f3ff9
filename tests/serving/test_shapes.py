"""Shapes with free axes: which lengths they have, and which lengths an axis takes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentd.shapes import Axis, Dim, Shape, SizeError, check_sizes

H = Axis("h", multiple_of=8, min=16, max=512, default=64)
W = Axis("w", multiple_of=1, min=3, max=9, default=4)


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    """Axes that the manifest's rules allow."""
    multiple = draw(st.integers(1, 64))
    low, default, high = sorted(draw(st.lists(st.integers(1, 1000), min_size=3, max_size=3)))
    return Axis("h", multiple, low * multiple, high * multiple, default * multiple)


@settings(deadline=None)
@given(axes(), st.integers(0, 1 << 32))
def test_nearest_length_is_valid_and_nearest(axis: Axis, length: int) -> None:
    nearest = axis.nearest(length)
    axis.check(nearest)
    valid = range(axis.min, axis.max + 1, axis.multiple_of)
    assert abs(length - nearest) == min(abs(length - one) for one in valid)


@settings(deadline=None)
@given(axes(), st.integers(0, 1 << 20))
def test_axis_takes_its_multiples_within_its_bounds(axis: Axis, length: int) -> None:
    if length in range(axis.min, axis.max + 1, axis.multiple_of):
        axis.check(length)
        assert axis.nearest(length) == length
    else:
        with pytest.raises(SizeError):
            axis.check(length)


@pytest.mark.parametrize(
    ("length", "nearest"),
    [(0, 16), (15, 16), (17, 16), (20, 24), (19, 16), (500, 504), (511, 512), (1 << 40, 512)],
)
def test_refused_length_names_bounds_and_nearest(length: int, nearest: int) -> None:
    with pytest.raises(SizeError) as error:
        H.check(length)
    assert str(error.value) == (
        f"h is {length}; expected a multiple of 8 from 16 to 512. "
        f"The nearest valid length is {nearest}."
    )
    assert error.value.axis == "h"


def test_axis_of_every_length_names_no_multiple() -> None:
    with pytest.raises(SizeError, match=r"^w is 2; expected from 3 to 9\. The nearest .* is 3\.$"):
        W.check(2)


@pytest.mark.parametrize(
    ("values", "lengths"),
    [
        ([16], (16,)),
        ([4, 4], (4, 4)),
        (["h", "w", 3], (64, 24, 3)),
        ([4, "h/8", "w/8"], (4, 8, 3)),
        (["long_name_1", 2], (5, 2)),
    ],
)
def test_shape_is_read_and_written(values: list[int | str], lengths: tuple[int, ...]) -> None:
    shape = Shape.parse(values)
    sizes = {"h": 64, "w": 24, "long_name_1": 5}
    named = {dim.axis: sizes[dim.axis] for dim in shape.dims if dim.axis}
    assert shape.json == values
    assert shape.at(sizes) == lengths
    assert shape.fixed == (not named)
    assert shape.sizes_of(lengths) == named


@pytest.mark.parametrize("value", ["H", "h/", "h/0", "h/08", "h//8", "8", "h*8", " h", "h/1e3"])
def test_length_that_is_no_length_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=re.escape(value)):
        Dim.parse(value)


@settings(deadline=None)
@given(axes(), axes(), st.integers(1, 64), st.data())
def test_sizes_of_a_shape_are_those_it_was_made_with(
    h: Axis, w: Axis, channels: int, data: st.DataObject
) -> None:
    z = Shape.parse([channels, f"h/{h.multiple_of}", f"w/{w.multiple_of}"])
    x = Shape.parse(["h", "w", 3])
    sizes = {
        name: data.draw(st.sampled_from(range(axis.min, axis.max + 1, axis.multiple_of)))
        for name, axis in (("h", h), ("w", w))
    }
    assert x.sizes_of(x.at(sizes)) == z.sizes_of(z.at(sizes)) == sizes


@pytest.mark.parametrize(
    ("values", "lengths"),
    [
        (["h", "w", 3], (64, 64)),
        (["h", "w", 3], (64, 64, 3, 1)),
        (["h", "w", 3], (64, 64, 4)),
        (["h", "h"], (64, 32)),
        ([16], ()),
    ],
)
def test_lengths_that_a_shape_never_has_are_refused(
    values: list[int | str], lengths: tuple[int, ...]
) -> None:
    shape = Shape.parse(values)
    with pytest.raises(SizeError) as error:
        shape.sizes_of(lengths)
    assert str(error.value) == f"expected shape {shape}, got {list(lengths)}."
    assert error.value.axis == ""


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"h": 64}, "w is missing; expected from 3 to 9."),
        ({"h": 64, "w": 4, "d": 1}, "the model has no free axis 'd'; it has h, w."),
        ({"h": 65, "w": 4}, "h is 65; expected a multiple of 8 from 16 to 512. The nearest valid"),
        (
            {"h": 68, "w": 10},
            "h is 68; expected a multiple of 8 from 16 to 512. w is 10; expected from 3 to 9. "
            "The nearest valid lengths are h 72 and w 9.",
        ),
    ],
)
def test_sizes_name_each_axis_and_no_other(sizes: dict[str, int], said: str) -> None:
    check_sizes({"h": 64, "w": 4}, {"h": H, "w": W})
    with pytest.raises(SizeError) as error:
        check_sizes(sizes, {"h": H, "w": W})
    assert str(error.value).startswith(said)


def test_model_without_free_axes_takes_no_size() -> None:
    check_sizes({}, {})
    with pytest.raises(SizeError, match="no free axis 'h'; all of its lengths are fixed"):
        check_sizes({"h": 64}, {})
