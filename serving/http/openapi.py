"""What is on the port, for programs as OpenAPI 3.1 and for people as one page, of one table."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import latentd

_INTEGER: Final = {"type": "integer", "minimum": 0}
_NUMBER: Final = {"type": "number"}
_BOOLEAN: Final = {"type": "boolean"}
_TEXT: Final = {"type": "string"}
_BYTES: Final = {"type": "string", "format": "binary"}


@dataclass(frozen=True)
class Route:
    """One path and what it takes.

    query: the parameters by name: their schema and what they mean
    """

    path: str
    verb: str
    summary: str
    query: Mapping[str, tuple[Mapping[str, Any], str]] = field(default_factory=dict)
    takes: str = ""  # media type of the request's body
    gives: tuple[str, ...] = ("application/json",)


def _choice(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


_SCALING: Final[Mapping[str, tuple[Mapping[str, Any], str]]] = {
    "scaling_factor": (_NUMBER, "latents are (z' - shift_factor) * scaling_factor"),
    "shift_factor": (_NUMBER, "only with scaling_factor; else 0"),
    "do_scaling": (_BOOLEAN, "the model's own constants, without scaling_factor"),
    "version": (_INTEGER, "of the model; else the newest"),
}
_SHAPE: Final = {"type": "array", "items": _INTEGER}
_DTYPE: Final = _choice("float32", "float16", "bfloat16")

ROUTES: Final = (
    Route("/v2/health/live", "get", "Whether the process lives. Needs no token."),
    Route("/v2/health/ready", "get", "Whether it accepts work. Needs no token."),
    Route(
        "/sample/{name}.{suffix}",
        "get",
        "New rows as a file: .png, .jpg, .webp; .txt of texts; .csv of tables.",
        {
            "seed": (_INTEGER, "decides the rows; without it the server chooses one"),
            "count": (_INTEGER, "rows: several pictures are a grid; else 1"),
            "offset": (_INTEGER, "index of the first row of the seed; else 0"),
            "temperature": (_NUMBER, "0 to 10; else 1"),
            "columns": (_INTEGER, "of the grid; else a square"),
            "draw_x": (_BOOLEAN, "draw texts and table rows from p(x given z)"),
            "version": (_INTEGER, "of the model; else the newest"),
            "h": (_INTEGER, "and w: lengths of the model's free axes, by their names"),
        },
        gives=("image/png", "image/jpeg", "image/webp", "text/plain", "text/csv"),
    ),
    Route(
        "/vae/{name}/decode",
        "post",
        "diffusers' remote_decode: latents as raw numbers to an image file or a tensor.",
        {
            "shape": (_SHAPE, "each length of the body's tensor: shape=1&shape=4&..."),
            "dtype": (_DTYPE, "of the body's tensor; else float32"),
            **_SCALING,
            "output_type": (_choice("pil", "pt", "mp4"), "pil: an image file; pt: a tensor"),
            "image_format": (_choice("jpg", "png"), "of the image file; else jpg"),
            "partial_postprocess": (_BOOLEAN, "with pt: uint8, NHWC"),
            "height": (_INTEGER, "of packed latents, in pixels"),
            "width": (_INTEGER, "of packed latents, in pixels"),
        },
        "tensor/binary",
        ("image/jpeg", "image/png", "tensor/binary"),
    ),
    Route(
        "/vae/{name}/encode",
        "post",
        "diffusers' remote_encode: an image file or a tensor to latents as raw numbers.",
        {
            "shape": (_SHAPE, "each length of the body's tensor; without it, an image file"),
            "dtype": (_choice("float32", "float16", "bfloat16", "uint8"), "of the body's tensor"),
            **_SCALING,
            "sample_mode": (_choice("argmax", "sample"), "the mean, or a draw; else argmax"),
            "seed": (_INTEGER, "of the draw"),
        },
        "application/octet-stream",
        ("tensor/binary",),
    ),
    Route("/v2", "get", "Open Inference Protocol: the server."),
    Route("/v2/models/{name}", "get", "Inputs and outputs of NAME:OPERATION."),
    Route("/v2/models/{name}/config", "get", "The same, as Triton's tools want it."),
    Route("/v2/models/{name}/ready", "get", "200 if it is served, else 404."),
    Route("/v2/models/{name}/stats", "get", "Counts and times of its requests."),
    Route("/v2/models/stats", "get", "The same of all models."),
    Route(
        "/v2/models/{name}/infer",
        "post",
        "One request: JSON, or JSON and binary tensors.",
        takes="application/json",
        gives=("application/json", "application/octet-stream"),
    ),
    Route(
        "/v2/repository/index", "post", "Every version of every model.", takes="application/json"
    ),
    Route(
        "/vae.v1.VaeService/{method}",
        "post",
        "Any unary method of vae.v1, as the Connect protocol defines it: JSON or protobuf.",
        takes="application/json",
        gives=("application/json", "application/proto"),
    ),
    Route("/explore/{name}", "get", "The explorer: a latent space to walk.", gives=("text/html",)),
    Route("/openapi.json", "get", "This list for programs."),
    Route("/docs", "get", "This page.", gives=("text/html",)),
)
_ERRORS: Final = {
    "400": "The request is wrong; the error names the field.",
    "401": "A token is missing or unknown.",
    "403": "The token lacks the scope.",
    "404": "No such model, version or path.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "429": "The server is overloaded; see Retry-After.",
    "500": "The server failed; its log has the request's id.",
    "501": "The server does not support it.",
    "503": "The server starts or stops.",
    "504": "The deadline in the header grpc-timeout has passed.",
}


def document() -> bytes:
    """The OpenAPI document, JSON."""
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.verb] = _operation(route)
    error = {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]}
    content = {
        "openapi": "3.1.0",
        "info": {"title": "latentd", "version": latentd.__version__},
        "paths": paths,
        "components": {
            "schemas": {"Error": error},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }
    return json.dumps(content).encode()


def _operation(route: Route) -> dict[str, Any]:
    names = [part.partition("}")[0] for part in route.path.split("{")[1:]]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names
    ]
    parameters += [
        {"name": name, "in": "query", "description": what, "schema": schema}
        for name, (schema, what) in route.query.items()
    ]
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "OK", "content": {kind: {} for kind in route.gives}},
            **{code: {"description": what, "content": error} for code, what in _ERRORS.items()},
        },
    }
    if route.takes:
        operation["requestBody"] = {"content": {route.takes: {"schema": _BYTES}}}
    return operation


def page() -> bytes:
    """The same as HTML, which loads nothing."""
    rows = []
    for route in ROUTES:
        query = "".join(
            f"<dt><code>{html.escape(name)}</code><dd>{html.escape(what)}"
            for name, (_, what) in route.query.items()
        )
        rows.append(
            f"<h2><code>{route.verb.upper()} {html.escape(route.path)}</code></h2>"
            f"<p>{html.escape(route.summary)}<dl>{query}</dl>"
        )
    errors = "".join(f"<dt>{code}<dd>{html.escape(what)}" for code, what in _ERRORS.items())
    return _PAGE.format(routes="".join(rows), errors=errors).encode()


_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>latentd</title>
<meta name="viewport" content="width=device-width">
<h1>latentd</h1>
<p>What this port answers. <a href="openapi.json">openapi.json</a> is the same for programs.
{routes}
<h2>Errors</h2><p>JSON: <code>{{"error": "..."}}</code>.<dl>{errors}</dl>
"""
POLICY: Final = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The page's Content-Security-Policy: it loads nothing, not even a style."""
