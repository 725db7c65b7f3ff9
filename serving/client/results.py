"""Results of the client's methods, one frozen dataclass for each RPC. `responses` makes them.

`values_outside_range` counts, for each row, the values outside the model's range. The model was
never trained there: its result for such a row mostly means that the row is unusual.

Arrays have the model's dtype. They are read-only views of the response; copy one to write to it.
What is float32 here is float16 if the call had float_dtype="float16". With "bfloat16" it is
float32, which holds the rounded numbers. z_shape is the shape of a latent at the size of the rows.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from PIL import Image

from latentd import images, tables, texts
from latentd.bundle import LatentFormat, RowFormat, Threshold, Tile
from latentd.codec import Array
from latentd.columns import Column
from latentd.errors import InvalidArgument
from latentd.model_description import ModelDescription
from latentd.outliers import excess
from latentd.shapes import Axis, Shape

_NOTEBOOK_PIXELS: Final = 1 << 22
"""Of the picture that a notebook shows; `grid` has no limit."""


@dataclass(frozen=True)
class ModelVersion:
    """The model and version that served a call."""

    model: str
    version: int
    digest: str  # "sha256:<hex>" of the bundle's manifest

    def __str__(self) -> str:
        return f"{self.model} version {self.version} ({self.digest[:15]})"


@dataclass(frozen=True)
class Limits:
    """The server rejects requests beyond these."""

    max_rows: int  # in one request or response
    max_message_bytes: int
    max_draws: int  # for each row in score


@dataclass(frozen=True)
class GraphProfile:
    """The measured cost of running one graph."""

    graph: str  # encoder | decoder
    max_batch_rows: int
    seconds: dict[int, float]  # batch size in rows -> fastest of several runs
    x_shape: tuple[int, ...]  # of the rows that were measured


@dataclass(frozen=True)
class ModelInfo(ModelDescription):
    """A model: its data, where it runs and what it costs.

    at(sizes) has the shapes of its rows and latents at these sizes, `default` at the default sizes.
    `unavailable` tells beforehand what it cannot do.
    """

    served_by: ModelVersion
    x: RowFormat  # rows of data
    z: LatentFormat
    axes: Mapping[str, Axis]  # lengths that a call chooses, by name; {}: none
    x_bounded: bool  # values outside x's range are rejected
    posterior: str  # gaussian | point
    prior: str  # standard-normal; "": none
    likelihood: str  # the name of p(x | z); "": none
    parameters: tuple[str, ...]  # the name of each parameter of p(x | z)
    unavailable: Mapping[str, str]  # sample, draw, score, contributions, params, images, ... -> why
    limits: Limits
    provider: str
    versions: list[int]  # all served versions, ascending
    profiles: list[GraphProfile]
    preprocessing: str
    created: str  # UTC, ISO 8601
    training_scores: dict[str, Any]  # as in a bundle's manifest; {}: not in the bundle
    tiles: Mapping[str, Tile]  # of encoder and decoder; {}: rows cannot be run in tiles
    threshold: Threshold | None = None  # from which score on rows are outliers; None: not chosen
    contributions: Shape | None = None  # of one row; None: the bundle cannot give them

    def to_rows(self, table: Any) -> Array:
        """A table as rows for the methods that take x: float32, rows x columns.

        table: a DataFrame, a structured array, or a mapping from names to columns. Values are in
        the data's own units, and levels as in the training data. Other columns are ignored.
        Raises InvalidArgument for a column or a value that is missing, or is of another kind.
        """
        columns = self._columns()
        names = getattr(table, "columns", None)
        if names is None:
            dtype = getattr(table, "dtype", None)
            names = getattr(dtype, "names", None) or getattr(table, "keys", tuple)()
        if lacking := tables.missing(columns, names):
            raise InvalidArgument("table", f"has no column {lacking[0]!r}", "See x.columns")
        values = {column.name: table[column.name] for column in columns}
        try:
            rows, faults = tables.to_rows(columns, values, len(values[columns[0].name]))
        except ValueError as error:
            raise InvalidArgument("table", str(error)) from None
        for row, reason in faults.items():
            raise InvalidArgument("table", f"row {row} {reason}")
        return rows

    def to_table(self, rows: Any) -> Array:
        """Rows of x as a structured array with a field for each column: float32, or text."""
        return tables.to_structured(self._columns(), rows)

    def to_frame(self, rows: Any) -> Any:
        """Rows of x as a pandas DataFrame. It needs pandas."""
        import pandas as pd

        return pd.DataFrame(tables.to_values(self._columns(), rows))

    def excess(self, contributions: Array) -> Array:
        """What each column adds to its row's reconstruction_error beyond the column's median among
        the training rows: float32, rows x columns, in nats. The largest ones tell which columns of
        a row are unusual, whatever their units.

        contributions: as `score` and `reconstruct` return them. Raises InvalidArgument if the
        model has no columns, or its bundle no medians.
        """
        self._columns()
        found = excess(contributions, self.training_scores)
        if found is None:
            raise InvalidArgument(
                "contributions",
                "the bundle has no medians to compare them with, as it is of an earlier release",
                "Export it again",
            )
        return found

    def _columns(self) -> tuple[Column, ...]:
        if not self.x.columns:
            raise InvalidArgument(
                "table", f"rows of this model have no columns; they are {self.default.x.plural}"
            )
        return self.x.columns


@dataclass(frozen=True)
class ListedModel:
    """A version that the server found. state: "ready", "failed" (see `reason`) or "loading"."""

    version: ModelVersion
    state: str
    reason: str
    newest: bool
    default: bool
    loading_since: str = ""  # UTC, ISO 8601


@dataclass(frozen=True, repr=False)
class LatentMap:
    """Training rows in latent space. Element j of each array is of the same row; z_shape is the
    shape of one latent at the default sizes."""

    mean: Array  # float32, rows x z_shape; of large spatial latents rows x channels
    components: Array  # float32, 2 x z_shape: the principal components of the means
    center: Array  # float32, z_shape: the mean of the means
    position: Array  # float32, rows x 2: along the components
    explained_variance: tuple[float, float]  # the share of each component
    unit_kl: Array | None  # float32, z_shape, nats; None: the posterior is a point
    active: Array  # bool, z_shape: the variance of the mean exceeds 0.01
    classes: list[str]  # the names of labels; []: the data has none
    label: Array | None  # uint32, rows: index of classes
    reconstruction_error: Array | None  # float32, rows, nats; None: the model has no scores
    kl: Array | None  # float32, rows, nats
    sprites: bytes  # of images: one WebP file; see thumbnails
    sprite_shape: tuple[int, int]  # height and width of each
    x: Array | None  # of vectors: rows x x_shape
    texts: list[str]  # of a model of text
    served_by: ModelVersion

    def __len__(self) -> int:
        return len(self.position)

    def __repr__(self) -> str:
        """The number of rows, and what is known of them."""
        given = ("classes", "reconstruction_error", "sprites", "x", "texts")
        values = {name: getattr(self, name) for name in given}
        known = [name for name, value in values.items() if value is not None and len(value)]
        return f"LatentMap({len(self)} rows with {', '.join(known)}, {self.served_by})"

    def at(self, position: Any) -> Array:
        """The latents at positions (..., 2) of the map: float32 (..., *z_shape)."""
        flat = np.asarray(position, np.float32) @ self.components.reshape(2, -1)
        latents: Array = self.center + flat.reshape(*flat.shape[:-1], *self.center.shape)
        return latents

    @functools.cached_property
    def thumbnails(self) -> Array:
        """The images, at most 32 pixels a side: uint8, rows x height x width x 3. Raises TypeError
        if the rows are not images."""
        if not self.sprites:
            raise TypeError("the rows of this map are not images; see x and texts")
        sheet = np.asarray(Image.open(io.BytesIO(self.sprites)).convert("RGB"))
        height, width = self.sprite_shape
        lines = sheet.reshape(-1, height, sheet.shape[1] // width, width, 3)
        return lines.swapaxes(1, 2).reshape(-1, height, width, 3)[: len(self)]


@dataclass(frozen=True, repr=False)
class Rows:
    """Rows of data in a response. A notebook shows them as one image."""

    tensor: Array | None  # None if the call requested image files or params
    files: list[bytes]  # one for each row; only with format="png", "jpeg" or "webp"

    @functools.cached_property
    def x(self) -> Array:
        """The rows in the model's dtype, rows x x_shape; decoded from the files, if any.

        Files of a grey model have no channel axis: x is then rows x height x width. WebP has no
        grey: x is then RGB. Raises
        AttributeError if the call requested params instead of x.
        """
        if self.tensor is not None:
            return self.tensor
        if not self.files:
            raise AttributeError(
                f"this {type(self).__name__} has params and no x: call without params=True to get x"
            )
        return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in self.files])

    @functools.cached_property
    def texts(self) -> list[str]:
        """The rows of a model of text. U+FFFD stands for bytes that are not UTF-8. Raises TypeError
        if the rows cannot be texts."""
        if self.x.dtype != np.uint8 or self.x.ndim != 2:
            raise TypeError(f"rows of {self._description()} are not texts")
        return texts.to_texts(self.x)

    def __len__(self) -> int:
        if self.tensor is None and not self.files:
            params = getattr(self, "params", None)
            return 0 if params is None else len(params)
        return len(self.files) if self.tensor is None else len(self.tensor)

    def grid(self, columns: int = 0) -> Image.Image:
        """All rows in one image, `columns` wide (0: square). Raises TypeError if the rows are not
        8-bit images."""
        if not self._are_images():
            raise TypeError(f"rows of {self._description()} are not 8-bit images")
        return Image.open(io.BytesIO(images.make_grid(self.x, columns)))

    def __repr__(self) -> str:
        """Shapes, dtypes, and the values that reproduce the call, without the arrays."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = [f"{len(self)} rows of {self._description()}"]
        for name, value in values.items():
            if isinstance(value, np.ndarray) and name != "tensor":
                shown.append(f"{name}: {value.dtype} {value.shape}")
            elif isinstance(value, int) or (name == "tiled" and value):
                shown.append(f"{name}={value}")
        return f"{type(self).__name__}({', '.join(shown)}, {values['served_by']})"

    def _repr_png_(self) -> bytes | None:
        """The image that IPython shows, of as many rows as fit into it; None: IPython shows the
        text."""
        if not self._are_images() or not len(self):
            return None
        height, width = self.x.shape[1:3]
        return images.make_grid(self.x[: max(1, _NOTEBOOK_PIXELS // (height * width))])

    def _are_images(self) -> bool:
        if self.tensor is None:
            return bool(self.files)
        shape = self.tensor.shape[1:]
        return self.tensor.dtype == np.uint8 and (len(shape) == 2 or shape[2:] in ((1,), (3,)))

    def _description(self) -> str:
        if self.tensor is None:
            return "image files" if self.files else "params"
        return f"{self.tensor.dtype} {'x'.join(map(str, self.tensor.shape[1:]))}"


@dataclass(frozen=True)
class Encoding:
    """The latent distribution of each row."""

    mean: Array  # float32, rows x z_shape
    log_var: Array | None  # float32, rows x z_shape; None: the model encodes to a point
    z: Array | None  # float32, rows x z_shape; only with draw=True
    seed: int  # of the draw; 0 without a draw
    values_outside_range: Array | None  # uint32, rows; None: none
    served_by: ModelVersion
    tiled: str = ""  # exact | approximate: in tiles; "": whole rows


@dataclass(frozen=True, repr=False)
class Decoding(Rows):
    """Data for each latent: x, or params with params=True."""

    params: Array | None  # float32, rows x parameters x x_shape
    served_by: ModelVersion
    tiled: str = ""  # exact | approximate: in tiles; "": whole rows


@dataclass(frozen=True, repr=False)
class Samples(Rows):
    """New data. served_by, seed and offset reproduce it."""

    z: Array | None  # float32, rows x z_shape; only with include_z=True
    seed: int
    offset: int  # index of the first row
    served_by: ModelVersion
    tiled: str = ""  # exact | approximate: in tiles; "": whole rows


@dataclass(frozen=True, repr=False)
class Reconstruction(Rows):
    """The reconstruction of each row; the scores, in nats, only with include_scores=True."""

    reconstruction_error: Array | None  # float32, rows
    kl: Array | None  # float32, rows
    elbo: Array | None  # float32, rows
    seed: int  # of the draw; 0 without a draw
    values_outside_range: Array | None  # uint32, rows; None: none
    served_by: ModelVersion
    tiled: str = ""  # exact | approximate: in tiles; "": whole rows
    threshold: float | None = None  # nats; None: neither the call nor the bundle has one
    is_outlier: Array | None = None  # bool, rows: reconstruction_error exceeds the threshold
    contributions: Array | None = None  # float32, rows x contributions_shape


@dataclass(frozen=True)
class StreamedReconstruction:
    """The reconstructions of one chunk. All fields except `errors` omit the rows in `errors`."""

    offset: int  # index of the chunk's first row
    errors: dict[int, str]  # index in the chunk -> why the row was rejected
    x: Array  # rows x x_shape in the model's dtype; empty with include_x=False
    reconstruction_error: (
        Array  # float32, rows; nats, as the next two; empty without include_scores=True
    )
    kl: Array
    elbo: Array
    mean: Array | None  # float32, rows x z_shape; only with include_latents=True
    log_var: Array | None
    seed: int  # of the draws; 0 without draws
    values_outside_range: Array | None  # uint32, rows; None: none
    served_by: ModelVersion
    threshold: float | None = None  # nats; None: neither the call nor the bundle has one
    is_outlier: Array | None = None  # bool, rows: reconstruction_error exceeds the threshold
    contributions: Array | None = None  # float32, rows x contributions_shape


@dataclass(frozen=True, repr=False)
class Interpolation(Rows):
    """The path from one end to the other, both included; each row is a step."""

    z: Array | None  # float32, steps x z_shape; only with include_z=True
    values_outside_range: Array | None  # uint32, rows; None: none
    served_by: ModelVersion
    tiled: str = ""  # exact | approximate: in tiles; "": whole rows


@dataclass(frozen=True)
class Scores:
    """How likely each row is under the model, in nats."""

    elbo: Array  # float32, rows
    log_likelihood: Array  # float32, rows: the importance-weighted bound
    kl: Array  # float32, rows
    seed: int
    draws: int  # for each row
    values_outside_range: Array | None  # uint32, rows; None: none
    served_by: ModelVersion
    threshold: float | None = None  # nats; None: neither the call nor the bundle has one
    is_outlier: Array | None = None  # bool, rows: reconstruction_error exceeds the threshold
    contributions: Array | None = None  # float32, rows x contributions_shape
    reconstruction_error: Array | None = None  # float32, rows: with a threshold or contributions
