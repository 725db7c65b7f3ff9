from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]
    DATA_TYPE_FLOAT16: _ClassVar[DataType]
    DATA_TYPE_BFLOAT16: _ClassVar[DataType]

class Fit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIT_UNSPECIFIED: _ClassVar[Fit]
    FIT_REFUSE: _ClassVar[Fit]
    FIT_RESIZE: _ClassVar[Fit]
    FIT_CROP: _ClassVar[Fit]

class Format(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FORMAT_UNSPECIFIED: _ClassVar[Format]
    FORMAT_RAW: _ClassVar[Format]
    FORMAT_PNG: _ClassVar[Format]
    FORMAT_TEXT: _ClassVar[Format]
    FORMAT_JPEG: _ClassVar[Format]
    FORMAT_WEBP: _ClassVar[Format]

class Tiling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TILING_UNSPECIFIED: _ClassVar[Tiling]
    TILING_WHEN_NEEDED: _ClassVar[Tiling]
    TILING_ALWAYS: _ClassVar[Tiling]

class Tiled(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TILED_UNSPECIFIED: _ClassVar[Tiled]
    TILED_EXACT: _ClassVar[Tiled]
    TILED_APPROXIMATE: _ClassVar[Tiled]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]

class DecodeOutput(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DECODE_OUTPUT_UNSPECIFIED: _ClassVar[DecodeOutput]
    DECODE_OUTPUT_X: _ClassVar[DecodeOutput]
    DECODE_OUTPUT_PARAMS: _ClassVar[DecodeOutput]

class InterpolationPath(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTERPOLATION_PATH_UNSPECIFIED: _ClassVar[InterpolationPath]
    INTERPOLATION_PATH_SLERP: _ClassVar[InterpolationPath]
    INTERPOLATION_PATH_LERP: _ClassVar[InterpolationPath]
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_UINT8: DataType
DATA_TYPE_FLOAT32: DataType
DATA_TYPE_FLOAT16: DataType
DATA_TYPE_BFLOAT16: DataType
FIT_UNSPECIFIED: Fit
FIT_REFUSE: Fit
FIT_RESIZE: Fit
FIT_CROP: Fit
FORMAT_UNSPECIFIED: Format
FORMAT_RAW: Format
FORMAT_PNG: Format
FORMAT_TEXT: Format
FORMAT_JPEG: Format
FORMAT_WEBP: Format
TILING_UNSPECIFIED: Tiling
TILING_WHEN_NEEDED: Tiling
TILING_ALWAYS: Tiling
TILED_UNSPECIFIED: Tiled
TILED_EXACT: Tiled
TILED_APPROXIMATE: Tiled
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_FAILED: ModelState
MODEL_STATE_LOADING: ModelState
DECODE_OUTPUT_UNSPECIFIED: DecodeOutput
DECODE_OUTPUT_X: DecodeOutput
DECODE_OUTPUT_PARAMS: DecodeOutput
INTERPOLATION_PATH_UNSPECIFIED: InterpolationPath
INTERPOLATION_PATH_SLERP: InterpolationPath
INTERPOLATION_PATH_LERP: InterpolationPath

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Images(_message.Message):
    __slots__ = ("files", "fit")
    FILES_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedScalarFieldContainer[bytes]
    fit: Fit
    def __init__(self, files: _Optional[_Iterable[bytes]] = ..., fit: _Optional[_Union[Fit, str]] = ...) -> None: ...

class Texts(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class Rows(_message.Message):
    __slots__ = ("tensor", "images", "text")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    tensor: Tensor
    images: Images
    text: Texts
    def __init__(self, tensor: _Optional[_Union[Tensor, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., text: _Optional[_Union[Texts, _Mapping]] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("model", "version", "digest")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    digest: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("served_by", "kind", "x_shape", "x_dtype", "x_min", "x_max", "x_bounded", "z_shape", "z_scale", "z_shift", "axes", "posterior", "prior", "likelihood", "parameters", "unavailable", "limits", "provider", "versions", "profiles", "preprocessing", "created", "training_scores", "tiles", "sample_rate", "threshold", "contributions_shape", "columns")
    class UnavailableEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    X_SHAPE_FIELD_NUMBER: _ClassVar[int]
    X_DTYPE_FIELD_NUMBER: _ClassVar[int]
    X_MIN_FIELD_NUMBER: _ClassVar[int]
    X_MAX_FIELD_NUMBER: _ClassVar[int]
    X_BOUNDED_FIELD_NUMBER: _ClassVar[int]
    Z_SHAPE_FIELD_NUMBER: _ClassVar[int]
    Z_SCALE_FIELD_NUMBER: _ClassVar[int]
    Z_SHIFT_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    POSTERIOR_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PROFILES_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    TRAINING_SCORES_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_SHAPE_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    served_by: ModelVersion
    kind: str
    x_shape: _containers.RepeatedCompositeFieldContainer[Dim]
    x_dtype: DataType
    x_min: float
    x_max: float
    x_bounded: bool
    z_shape: _containers.RepeatedCompositeFieldContainer[Dim]
    z_scale: _containers.RepeatedScalarFieldContainer[float]
    z_shift: _containers.RepeatedScalarFieldContainer[float]
    axes: _containers.RepeatedCompositeFieldContainer[Axis]
    posterior: str
    prior: str
    likelihood: str
    parameters: _containers.RepeatedScalarFieldContainer[str]
    unavailable: _containers.ScalarMap[str, str]
    limits: Limits
    provider: str
    versions: _containers.RepeatedScalarFieldContainer[int]
    profiles: _containers.RepeatedCompositeFieldContainer[GraphProfile]
    preprocessing: str
    created: str
    training_scores: TrainingScores
    tiles: _containers.RepeatedCompositeFieldContainer[Tile]
    sample_rate: int
    threshold: Threshold
    contributions_shape: _containers.RepeatedCompositeFieldContainer[Dim]
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    def __init__(self, served_by: _Optional[_Union[ModelVersion, _Mapping]] = ..., kind: _Optional[str] = ..., x_shape: _Optional[_Iterable[_Union[Dim, _Mapping]]] = ..., x_dtype: _Optional[_Union[DataType, str]] = ..., x_min: _Optional[float] = ..., x_max: _Optional[float] = ..., x_bounded: _Optional[bool] = ..., z_shape: _Optional[_Iterable[_Union[Dim, _Mapping]]] = ..., z_scale: _Optional[_Iterable[float]] = ..., z_shift: _Optional[_Iterable[float]] = ..., axes: _Optional[_Iterable[_Union[Axis, _Mapping]]] = ..., posterior: _Optional[str] = ..., prior: _Optional[str] = ..., likelihood: _Optional[str] = ..., parameters: _Optional[_Iterable[str]] = ..., unavailable: _Optional[_Mapping[str, str]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., provider: _Optional[str] = ..., versions: _Optional[_Iterable[int]] = ..., profiles: _Optional[_Iterable[_Union[GraphProfile, _Mapping]]] = ..., preprocessing: _Optional[str] = ..., created: _Optional[str] = ..., training_scores: _Optional[_Union[TrainingScores, _Mapping]] = ..., tiles: _Optional[_Iterable[_Union[Tile, _Mapping]]] = ..., sample_rate: _Optional[int] = ..., threshold: _Optional[_Union[Threshold, _Mapping]] = ..., contributions_shape: _Optional[_Iterable[_Union[Dim, _Mapping]]] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ...) -> None: ...

class Threshold(_message.Message):
    __slots__ = ("reconstruction_error", "percentile", "validation_rows", "validation_outliers")
    RECONSTRUCTION_ERROR_FIELD_NUMBER: _ClassVar[int]
    PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_ROWS_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_OUTLIERS_FIELD_NUMBER: _ClassVar[int]
    reconstruction_error: float
    percentile: float
    validation_rows: int
    validation_outliers: int
    def __init__(self, reconstruction_error: _Optional[float] = ..., percentile: _Optional[float] = ..., validation_rows: _Optional[int] = ..., validation_outliers: _Optional[int] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("name", "levels", "mean", "std", "fill_value", "is_integer")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    FILL_VALUE_FIELD_NUMBER: _ClassVar[int]
    IS_INTEGER_FIELD_NUMBER: _ClassVar[int]
    name: str
    levels: _containers.RepeatedScalarFieldContainer[str]
    mean: float
    std: float
    fill_value: float
    is_integer: bool
    def __init__(self, name: _Optional[str] = ..., levels: _Optional[_Iterable[str]] = ..., mean: _Optional[float] = ..., std: _Optional[float] = ..., fill_value: _Optional[float] = ..., is_integer: _Optional[bool] = ...) -> None: ...

class Tile(_message.Message):
    __slots__ = ("graph", "size", "overlap", "exact", "max_abs_difference", "decibels")
    class SizeEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class OverlapEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    MAX_ABS_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    DECIBELS_FIELD_NUMBER: _ClassVar[int]
    graph: str
    size: _containers.ScalarMap[str, int]
    overlap: _containers.ScalarMap[str, int]
    exact: bool
    max_abs_difference: float
    decibels: float
    def __init__(self, graph: _Optional[str] = ..., size: _Optional[_Mapping[str, int]] = ..., overlap: _Optional[_Mapping[str, int]] = ..., exact: _Optional[bool] = ..., max_abs_difference: _Optional[float] = ..., decibels: _Optional[float] = ...) -> None: ...

class Dim(_message.Message):
    __slots__ = ("length", "axis", "divisor")
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    AXIS_FIELD_NUMBER: _ClassVar[int]
    DIVISOR_FIELD_NUMBER: _ClassVar[int]
    length: int
    axis: str
    divisor: int
    def __init__(self, length: _Optional[int] = ..., axis: _Optional[str] = ..., divisor: _Optional[int] = ...) -> None: ...

class Axis(_message.Message):
    __slots__ = ("name", "multiple_of", "min", "max", "default")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MULTIPLE_OF_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    multiple_of: int
    min: int
    max: int
    default: int
    def __init__(self, name: _Optional[str] = ..., multiple_of: _Optional[int] = ..., min: _Optional[int] = ..., max: _Optional[int] = ..., default: _Optional[int] = ...) -> None: ...

class TrainingScores(_message.Message):
    __slots__ = ("rows", "levels", "reconstruction_error", "kl", "elbo", "median_contributions")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCTION_ERROR_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    ELBO_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    levels: _containers.RepeatedScalarFieldContainer[float]
    reconstruction_error: _containers.RepeatedScalarFieldContainer[float]
    kl: _containers.RepeatedScalarFieldContainer[float]
    elbo: _containers.RepeatedScalarFieldContainer[float]
    median_contributions: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, rows: _Optional[int] = ..., levels: _Optional[_Iterable[float]] = ..., reconstruction_error: _Optional[_Iterable[float]] = ..., kl: _Optional[_Iterable[float]] = ..., elbo: _Optional[_Iterable[float]] = ..., median_contributions: _Optional[_Iterable[float]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_rows", "max_message_bytes", "max_draws")
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAWS_FIELD_NUMBER: _ClassVar[int]
    max_rows: int
    max_message_bytes: int
    max_draws: int
    def __init__(self, max_rows: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_draws: _Optional[int] = ...) -> None: ...

class GraphProfile(_message.Message):
    __slots__ = ("graph", "max_batch_rows", "timings", "x_shape")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    X_SHAPE_FIELD_NUMBER: _ClassVar[int]
    graph: str
    max_batch_rows: int
    timings: _containers.RepeatedCompositeFieldContainer[BatchTiming]
    x_shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, graph: _Optional[str] = ..., max_batch_rows: _Optional[int] = ..., timings: _Optional[_Iterable[_Union[BatchTiming, _Mapping]]] = ..., x_shape: _Optional[_Iterable[int]] = ...) -> None: ...

class BatchTiming(_message.Message):
    __slots__ = ("rows", "seconds")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    seconds: float
    def __init__(self, rows: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ListedModel]
    def __init__(self, models: _Optional[_Iterable[_Union[ListedModel, _Mapping]]] = ...) -> None: ...

class ListedModel(_message.Message):
    __slots__ = ("version", "state", "reason", "newest", "default", "loading_since")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    LOADING_SINCE_FIELD_NUMBER: _ClassVar[int]
    version: ModelVersion
    state: ModelState
    reason: str
    newest: bool
    default: bool
    loading_since: str
    def __init__(self, version: _Optional[_Union[ModelVersion, _Mapping]] = ..., state: _Optional[_Union[ModelState, str]] = ..., reason: _Optional[str] = ..., newest: _Optional[bool] = ..., default: _Optional[bool] = ..., loading_since: _Optional[str] = ...) -> None: ...

class GetMapRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class GetMapResponse(_message.Message):
    __slots__ = ("served_by", "mean", "components", "center", "position", "explained_variance", "unit_kl", "active", "classes", "label", "reconstruction_error", "kl", "sprites", "sprite_height", "sprite_width", "x")
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    CENTER_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPLAINED_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    UNIT_KL_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCTION_ERROR_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    SPRITES_FIELD_NUMBER: _ClassVar[int]
    SPRITE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    SPRITE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    served_by: ModelVersion
    mean: Tensor
    components: Tensor
    center: Tensor
    position: Tensor
    explained_variance: _containers.RepeatedScalarFieldContainer[float]
    unit_kl: Tensor
    active: _containers.RepeatedScalarFieldContainer[bool]
    classes: _containers.RepeatedScalarFieldContainer[str]
    label: _containers.RepeatedScalarFieldContainer[int]
    reconstruction_error: _containers.RepeatedScalarFieldContainer[float]
    kl: _containers.RepeatedScalarFieldContainer[float]
    sprites: bytes
    sprite_height: int
    sprite_width: int
    x: Rows
    def __init__(self, served_by: _Optional[_Union[ModelVersion, _Mapping]] = ..., mean: _Optional[_Union[Tensor, _Mapping]] = ..., components: _Optional[_Union[Tensor, _Mapping]] = ..., center: _Optional[_Union[Tensor, _Mapping]] = ..., position: _Optional[_Union[Tensor, _Mapping]] = ..., explained_variance: _Optional[_Iterable[float]] = ..., unit_kl: _Optional[_Union[Tensor, _Mapping]] = ..., active: _Optional[_Iterable[bool]] = ..., classes: _Optional[_Iterable[str]] = ..., label: _Optional[_Iterable[int]] = ..., reconstruction_error: _Optional[_Iterable[float]] = ..., kl: _Optional[_Iterable[float]] = ..., sprites: _Optional[bytes] = ..., sprite_height: _Optional[int] = ..., sprite_width: _Optional[int] = ..., x: _Optional[_Union[Rows, _Mapping]] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("model", "version", "x", "draw", "seed", "offset", "float_dtype", "tiling")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    DRAW_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FLOAT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    TILING_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    x: Rows
    draw: bool
    seed: int
    offset: int
    float_dtype: DataType
    tiling: Tiling
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., x: _Optional[_Union[Rows, _Mapping]] = ..., draw: _Optional[bool] = ..., seed: _Optional[int] = ..., offset: _Optional[int] = ..., float_dtype: _Optional[_Union[DataType, str]] = ..., tiling: _Optional[_Union[Tiling, str]] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("served_by", "mean", "log_var", "z", "seed", "values_outside_range", "tiled")
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    LOG_VAR_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    VALUES_OUTSIDE_RANGE_FIELD_NUMBER: _ClassVar[int]
    TILED_FIELD_NUMBER: _ClassVar[int]
    served_by: ModelVersion
    mean: Tensor
    log_var: Tensor
    z: Tensor
    seed: int
    values_outside_range: _containers.RepeatedScalarFieldContainer[int]
    tiled: Tiled
    def __init__(self, served_by: _Optional[_Union[ModelVersion, _Mapping]] = ..., mean: _Optional[_Union[Tensor, _Mapping]] = ..., log_var: _Optional[_Union[Tensor, _Mapping]] = ..., z: _Optional[_Union[Tensor, _Mapping]] = ..., seed: _Optional[int] = ..., values_outside_range: _Optional[_Iterable[int]] = ..., tiled: _Optional[_Union[Tiled, str]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("model", "version", "z", "output", "format", "float_dtype", "tiling", "draw_x", "seed", "offset")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    FLOAT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    TILING_FIELD_NUMBER: _ClassVar[int]
    DRAW_X_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    z: Tensor
    output: DecodeOutput
    format: Format
    float_dtype: DataType
    tiling: Tiling
    draw_x: bool
    seed: int
    offset: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., z: _Optional[_Union[Tensor, _Mapping]] = ..., output: _Optional[_Union[DecodeOutput, str]] = ..., format: _Optional[_Union[Format, str]] = ..., float_dtype: _Optional[_Union[DataType, str]] = ..., tiling: _Optional[_Union[Tiling, str]] = ..., draw_x: _Optional[bool] = ..., seed: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("served_by", "x", "params", "tiled", "seed")
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    TILED_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    served_by: ModelVersion
    x: Rows
    params: Tensor
    tiled: Tiled
    seed: int
    def __init__(self, served_by: _Optional[_Union[ModelVersion, _Mapping]] = ..., x: _Optional[_Union[Rows, _Mapping]] = ..., params: _Optional[_Union[Tensor, _Mapping]] = ..., tiled: _Optional[_Union[Tiled, str]] = ..., seed: _Optional[int] = ...) -> None: ...

class SampleRequest(_message.Message):
    __slots__ = ("model", "version", "count", "seed", "offset", "temperature", "format", "include_z", "sizes", "float_dtype", "tiling", "draw_x")
    class SizesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_Z_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    FLOAT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    TILING_FIELD_NUMBER: _ClassVar[int]
    DRAW_X_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    count: int
    seed: int
    offset: int
    temperature: float
    format: Format
    include_z: bool
    sizes: _containers.ScalarMap[str, int]
    float_dtype: DataType
    tiling: Tiling
    draw_x: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., count: _Optional[int] = ..., seed: _Optional[int] = ..., offset: _Optional[int] = ..., temperature: _Optional[float] = ..., format: _Optional[_Union[Format, str]] = ..., include_z: _Optional[bool] = ..., sizes: _Optional[_Mapping[str, int]] = ..., float_dtype: _Optional[_Union[DataType, str]] = ..., tiling: _Optional[_Union[Tiling, str]] = ..., draw_x: _Optional[bool] = ...) -> None: ...

class SampleResponse(_message.Message):
    __slots__ = ("served_by", "x", "z", "seed", "offset", "tiled")
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TILED_FIELD_NUMBER: _ClassVar[int]
    served_by: ModelVersion
    x: Rows
    z: Tensor
    seed: int
    offset: int
    tiled: Tiled
    def __init__(self, served_by: _Optional[_Union[ModelVersion, _Mapping]] = ..., x: _Optional[_Union[Rows, _Mapping]] = ..., z: _Optional[_Union[Tensor, _Mapping]] = ..., seed: _Optional[int] = ..., offset: _Optional[int] = ..., tiled: _Optional[_Union[Tiled, str]] = ...) -> None: ...

class StreamSamplesRequest(_message.Message):
    __slots__ = ("model", "version", "count", "seed", "offset", "temperature", "format", "include_z", "chunk_rows", "sizes", "float_dtype", "tiling", "draw_x")
    class SizesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_Z_FIELD_NUMBER: _ClassVar[int]
    CHUNK_ROWS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    FLOAT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    TILING_FIELD_NUMBER: _ClassVar[int]
    DRAW_X_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    count: int
    seed: int
    offset: int
    temperature: float
    format: Format
    include_z: bool
    chunk_rows: int
    sizes: _containers.ScalarMap[str, int]
    float_dtype: DataType
    tiling: Tiling
    draw_x: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., count: _Optional[int] = ..., seed: _Optional[int] = ..., offset: _Optional[int] = ..., temperature: _Optional[float] = ..., format: _Optional[_Union[Format, str]] = ..., include_z: _Optional[bool] = ..., chunk_rows: _Optional[int] = ..., sizes: _Optional[_Mapping[str, int]] = ..., float_dtype: _Optional[_Union[DataType, str]] = ..., tiling: _Optional[_Union[Tiling, str]] = ..., draw_x: _Optional[bool] = ...) -> None: ...

class StreamSamplesResponse(_message.Message):
    __slots__ = ("served_by", "x", "z", "seed", "offset", "tiled")
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TILED_FIELD_NUMBER: _ClassVar[int]
    served_by: ModelVersion
    x: Rows
    z: Tensor
    seed: int
    offset: int
    tiled: Tiled
    def __init__(self, served_by: _Optional[_Union[ModelVersion, _Mapping]] = ..., x: _Optional[_Union[Rows, _Mapping]] = ..., z: _Optional[_Union[Tensor, _Mapping]] = ..., seed: _Optional[int] = ..., offset: _Optional[int] = ..., tiled: _Optional[_Union[Tiled, str]] = ...) -> None: ...

class ReconstructRequest(_message.Message):
    __slots__ = ("model", "version", "x", "draw", "seed", "offset", "format", "include_scores", "float_dtype", "tiling", "draw_x", "threshold", "include_contributions")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    DRAW_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SCORES_FIELD_NUMBER: _ClassVar[int]
    FLOAT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    TILING_FIELD_NUMBER: _ClassVar[int]
    DRAW_X_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    x: Rows
    draw: bool
    seed: int
    offset: int
    format: Format
    include_scores: bool
    float_dtype: DataType
    tiling: Tiling
    draw_x: bool
    threshold: float
    include_contributions: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., x: _Optional[_Union[Rows, _Mapping]] = ..., draw: _Optional[bool] = ..., seed: _Optional[int] = ..., offset: _Optional[int] = ..., format: _Optional[_Union[Format, str]] = ..., include_scores: _Optional[bool] = ..., float_dtype: _Optional[_Union[DataType, str]] = ..., tiling: _Optional[_Union[Tiling, str]] = ..., draw_x: _Optional[bool] = ..., threshold: _Optional[float] = ..., include_contributions: _Optional[bool] = ...) -> None: ...

class ReconstructResponse(_message.Message):
    __slots__ = ("served_by", "x", "seed", "reconstruction_error", "kl", "elbo", "values_outside_range", "tiled", "threshold", "is_outlier", "contributions")
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCTION_ERROR_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    ELBO_FIELD_NUMBER: _ClassVar[int]
    VALUES_OUTSIDE_RANGE_FIELD_NUMBER: _ClassVar[int]
    TILED_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    IS_OUTLIER_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    served_by: ModelVersion
    x: Rows
    seed: int
    reconstruction_error: _containers.RepeatedScalarFieldContainer[float]
    kl: _containers.RepeatedScalarFieldContainer[float]
    elbo: _containers.RepeatedScalarFieldContainer[float]
    values_outside_range: _containers.RepeatedScalarFieldContainer[int]
    tiled: Tiled
    threshold: float
    is_outlier: _containers.RepeatedScalarFieldContainer[bool]
    contributions: Tensor
    def __init__(self, served_by: _Optional[_Union[ModelVersion, _Mapping]] = ..., x: _Optional[_Union[Rows, _Mapping]] = ..., seed: _Optional[int] = ..., reconstruction_error: _Optional[_Iterable[float]] = ..., kl: _Optional[_Iterable[float]] = ..., elbo: _Optional[_Iterable[float]] = ..., values_outside_range: _Optional[_Iterable[int]] = ..., tiled: _Optional[_Union[Tiled, str]] = ..., threshold: _Optional[float] = ..., is_outlier: _Optional[_Iterable[bool]] = ..., contributions: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class StreamReconstructRequest(_message.Message):
    __slots__ = ("x", "offset", "model", "version", "draw", "seed", "format", "include_scores", "include_latents", "include_x", "float_dtype", "draw_x", "threshold", "include_contributions")
    X_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DRAW_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SCORES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_LATENTS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_X_FIELD_NUMBER: _ClassVar[int]
    FLOAT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    DRAW_X_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    x: Rows
    offset: int
    model: str
    version: int
    draw: bool
    seed: int
    format: Format
    include_scores: bool
    include_latents: bool
    include_x: bool
    float_dtype: DataType
    draw_x: bool
    threshold: float
    include_contributions: bool
    def __init__(self, x: _Optional[_Union[Rows, _Mapping]] = ..., offset: _Optional[int] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., draw: _Optional[bool] = ..., seed: _Optional[int] = ..., format: _Optional[_Union[Format, str]] = ..., include_scores: _Optional[bool] = ..., include_latents: _Optional[bool] = ..., include_x: _Optional[bool] = ..., float_dtype: _Optional[_Union[DataType, str]] = ..., draw_x: _Optional[bool] = ..., threshold: _Optional[float] = ..., include_contributions: _Optional[bool] = ...) -> None: ...

class StreamReconstructResponse(_message.Message):
    __slots__ = ("served_by", "offset", "x", "reconstruction_error", "kl", "elbo", "mean", "log_var", "seed", "errors", "values_outside_range", "threshold", "is_outlier", "contributions")
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCTION_ERROR_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    ELBO_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    LOG_VAR_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    VALUES_OUTSIDE_RANGE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    IS_OUTLIER_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    served_by: ModelVersion
    offset: int
    x: Rows
    reconstruction_error: _containers.RepeatedScalarFieldContainer[float]
    kl: _containers.RepeatedScalarFieldContainer[float]
    elbo: _containers.RepeatedScalarFieldContainer[float]
    mean: Tensor
    log_var: Tensor
    seed: int
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    values_outside_range: _containers.RepeatedScalarFieldContainer[int]
    threshold: float
    is_outlier: _containers.RepeatedScalarFieldContainer[bool]
    contributions: Tensor
    def __init__(self, served_by: _Optional[_Union[ModelVersion, _Mapping]] = ..., offset: _Optional[int] = ..., x: _Optional[_Union[Rows, _Mapping]] = ..., reconstruction_error: _Optional[_Iterable[float]] = ..., kl: _Optional[_Iterable[float]] = ..., elbo: _Optional[_Iterable[float]] = ..., mean: _Optional[_Union[Tensor, _Mapping]] = ..., log_var: _Optional[_Union[Tensor, _Mapping]] = ..., seed: _Optional[int] = ..., errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ..., values_outside_range: _Optional[_Iterable[int]] = ..., threshold: _Optional[float] = ..., is_outlier: _Optional[_Iterable[bool]] = ..., contributions: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class RowError(_message.Message):
    __slots__ = ("row", "description")
    ROW_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    row: int
    description: str
    def __init__(self, row: _Optional[int] = ..., description: _Optional[str] = ...) -> None: ...

class SampledPoint(_message.Message):
    __slots__ = ("seed", "index")
    SEED_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    seed: int
    index: int
    def __init__(self, seed: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class LatentAnchor(_message.Message):
    __slots__ = ("x", "z", "sample")
    X_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    x: Rows
    z: Tensor
    sample: SampledPoint
    def __init__(self, x: _Optional[_Union[Rows, _Mapping]] = ..., z: _Optional[_Union[Tensor, _Mapping]] = ..., sample: _Optional[_Union[SampledPoint, _Mapping]] = ...) -> None: ...

class InterpolateRequest(_message.Message):
    __slots__ = ("model", "version", "start", "end", "steps", "path", "format", "include_z", "sizes", "float_dtype", "tiling")
    class SizesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_Z_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    FLOAT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    TILING_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    start: LatentAnchor
    end: LatentAnchor
    steps: int
    path: InterpolationPath
    format: Format
    include_z: bool
    sizes: _containers.ScalarMap[str, int]
    float_dtype: DataType
    tiling: Tiling
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., start: _Optional[_Union[LatentAnchor, _Mapping]] = ..., end: _Optional[_Union[LatentAnchor, _Mapping]] = ..., steps: _Optional[int] = ..., path: _Optional[_Union[InterpolationPath, str]] = ..., format: _Optional[_Union[Format, str]] = ..., include_z: _Optional[bool] = ..., sizes: _Optional[_Mapping[str, int]] = ..., float_dtype: _Optional[_Union[DataType, str]] = ..., tiling: _Optional[_Union[Tiling, str]] = ...) -> None: ...

class InterpolateResponse(_message.Message):
    __slots__ = ("served_by", "x", "z", "values_outside_range", "tiled")
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    VALUES_OUTSIDE_RANGE_FIELD_NUMBER: _ClassVar[int]
    TILED_FIELD_NUMBER: _ClassVar[int]
    served_by: ModelVersion
    x: Rows
    z: Tensor
    values_outside_range: _containers.RepeatedScalarFieldContainer[int]
    tiled: Tiled
    def __init__(self, served_by: _Optional[_Union[ModelVersion, _Mapping]] = ..., x: _Optional[_Union[Rows, _Mapping]] = ..., z: _Optional[_Union[Tensor, _Mapping]] = ..., values_outside_range: _Optional[_Iterable[int]] = ..., tiled: _Optional[_Union[Tiled, str]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("model", "version", "x", "draws", "seed", "offset", "threshold", "include_contributions")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    x: Rows
    draws: int
    seed: int
    offset: int
    threshold: float
    include_contributions: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., x: _Optional[_Union[Rows, _Mapping]] = ..., draws: _Optional[int] = ..., seed: _Optional[int] = ..., offset: _Optional[int] = ..., threshold: _Optional[float] = ..., include_contributions: _Optional[bool] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("served_by", "elbo", "log_likelihood", "kl", "seed", "draws", "values_outside_range", "reconstruction_error", "threshold", "is_outlier", "contributions")
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    ELBO_FIELD_NUMBER: _ClassVar[int]
    LOG_LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    VALUES_OUTSIDE_RANGE_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCTION_ERROR_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    IS_OUTLIER_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    served_by: ModelVersion
    elbo: _containers.RepeatedScalarFieldContainer[float]
    log_likelihood: _containers.RepeatedScalarFieldContainer[float]
    kl: _containers.RepeatedScalarFieldContainer[float]
    seed: int
    draws: int
    values_outside_range: _containers.RepeatedScalarFieldContainer[int]
    reconstruction_error: _containers.RepeatedScalarFieldContainer[float]
    threshold: float
    is_outlier: _containers.RepeatedScalarFieldContainer[bool]
    contributions: Tensor
    def __init__(self, served_by: _Optional[_Union[ModelVersion, _Mapping]] = ..., elbo: _Optional[_Iterable[float]] = ..., log_likelihood: _Optional[_Iterable[float]] = ..., kl: _Optional[_Iterable[float]] = ..., seed: _Optional[int] = ..., draws: _Optional[int] = ..., values_outside_range: _Optional[_Iterable[int]] = ..., reconstruction_error: _Optional[_Iterable[float]] = ..., threshold: _Optional[float] = ..., is_outlier: _Optional[_Iterable[bool]] = ..., contributions: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
