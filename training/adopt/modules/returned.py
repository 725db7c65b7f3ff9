"""What encode(x) and decode(z) of an owner's module may return, in the forms that are in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor
from torch.distributions import Independent, Normal

from latentd.training.errors import TrainingError

_MEANS: Final = ("mean", "mu", "embedding")
_LOG_VARS: Final = ("logvar", "log_var", "log_covariance")
_WIDTHS: Final = ("sigma", "std", "stddev", "scale")
"""Names of standard deviations, which are no log-variances."""
_POINTS: Final = ("latents", "latent")
_DECODED: Final = ("sample", "reconstruction")


def latent(returned: Any) -> tuple[Tensor, ...]:
    """mean and log_var, or one tensor: a point, or both in one. Raises TrainingError."""
    inner = _member(returned, ("latent_dist",))
    returned = returned if inner is None else inner
    if isinstance(returned, Independent):
        returned = returned.base_dist
    if isinstance(returned, Normal):
        return returned.loc, 2 * returned.scale.log()
    if isinstance(returned, Tensor):
        return (returned,)
    mean, log_var = _member(returned, _MEANS), _member(returned, _LOG_VARS)
    if isinstance(mean, Tensor) and isinstance(log_var, Tensor):
        return mean, log_var
    _refuse_widths(returned)
    if _are_tensors(returned) and len(returned) <= 2:
        return tuple(returned)
    point = _member(returned, _POINTS)
    if isinstance(point, Tensor):
        return (point,)
    raise TrainingError(
        f"encode(x) returns {_described(returned)}; expected a tensor, a pair (mean, log_var), or "
        f"an object with latent_dist, with latents, or with a mean ({', '.join(_MEANS)}) and a "
        f"log-variance ({', '.join(_LOG_VARS)}). Adopt an object whose encode returns one of them."
    )


def _refuse_widths(returned: Any) -> None:
    """Raise TrainingError if it names a standard deviation."""
    for name in _WIDTHS:
        if isinstance(_member(returned, (name,)), Tensor):
            raise TrainingError(
                f"encode(x) returns a {type(returned).__name__} with {name}; expected the "
                f"log-variance. Return (mean, log_var), where log_var is 2 * {name}.log(), or "
                f"torch.distributions.Normal(mean, {name})."
            )


def decoded(returned: Any) -> tuple[Tensor, ...]:
    """x, or the mean and the width of p(x | z). Raises TrainingError."""
    if isinstance(returned, Tensor):
        return (returned,)
    if _are_tensors(returned) and len(returned) <= 2:
        return tuple(returned)
    x = _member(returned, _DECODED)
    if isinstance(x, Tensor):
        return (x,)
    raise TrainingError(
        f"decode(z) returns {_described(returned)}; expected a tensor, a pair (mean, width) of a "
        f"likelihood, or an object with {' or '.join(_DECODED)}. Adopt an object whose decode "
        "returns one of them."
    )


def _member(value: Any, names: tuple[str, ...]) -> Any:
    """The first of these attributes or keys; None: it has none."""
    if isinstance(value, Tensor):  # whose mean is a method
        return None
    for name in names:
        if isinstance(value, Mapping) and name in value:
            return value[name]
        if hasattr(value, name):
            return getattr(value, name)
    return None


def _are_tensors(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and bool(value)
        and all(isinstance(one, Tensor) for one in value)
    )


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(type(one).__name__ for one in value)}"
    return f"a {type(value).__name__}"
