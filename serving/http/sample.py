"""GET /sample/NAME.png and its like: rows of Sample as a file that a browser shows.

The URL and the version's digest decide every byte of a link with a seed, so its ETag is made of
them: who has the file already gets 304, and nothing is computed.
"""

from __future__ import annotations

import asyncio
import csv
import functools
import hashlib
import io
import secrets
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from latentd import codec, images, tables, texts
from latentd.bundle import Manifest
from latentd.errors import InvalidArgument
from latentd.http.calls import Calls
from latentd.http.queries import Query
from latentd.http.responses import CountedResponse
from latentd.models.repository import Repository
from latentd.pb import vae_pb2 as pb

PATH: Final = "/vae.v1.VaeService/Sample"
REVALIDATE: Final = "no-cache"  # keep it, but ask again: the newest version may be another one


class Format(NamedTuple):
    """A kind of file.

    render: makes it of rows, in a number of columns (0: as square as they can be)
    """

    media_type: str
    render: Callable[[codec.Array, Manifest, int], bytes]


class Samples:
    """The endpoint."""

    def __init__(self, calls: Calls, repository: Repository) -> None:
        self._calls, self._repository = calls, repository

    async def __call__(self, request: Request) -> Response:
        suffix = request.path_params["suffix"]
        form = FORMATS.get(suffix)
        if form is None:
            known = ", ".join(f".{name}" for name in FORMATS)
            raise InvalidArgument("path", f"unknown kind of file .{suffix[:20]}", f"Use {known}")
        call = self._calls.call(PATH, request)
        query = Query(request)
        columns = query.integer("columns", 0)
        sample = _read(request.path_params["name"], query)
        seeded = sample.HasField("seed")
        model = self._repository.peek(sample.model, sample.version)
        _require(model.manifest, suffix)
        sample.version = model.served_by.version
        headers = {
            "cache-control": REVALIDATE,
            "etag": _etag(model.digest, suffix, columns, sample),
        }
        if seeded and headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if not seeded:
            sample.seed = secrets.randbits(63)  # as vae.v1 chooses seeds
            query_of_link = {**request.query_params, "seed": sample.seed, "version": sample.version}
            link = f"/sample/{quote(model.served_by.model)}.{suffix}?{urlencode(query_of_link)}"
            headers = {"content-location": link}
        response = await call.run(lambda body: sample.SerializeToString())
        found = pb.SampleResponse.FromString(response.message)
        rows = codec.from_tensor(found.x.tensor)
        body = await asyncio.to_thread(form.render, rows, model.manifest, columns)
        headers |= {**response.headers, "latentd-seed": str(found.seed)}
        return CountedResponse(self._calls.responses, body, headers, form.media_type)


def _read(name: str, query: Query) -> pb.SampleRequest:
    """The call that a URL asks for. Raises InvalidArgument."""
    sample = pb.SampleRequest(
        model=name,
        version=query.integer("version", 0),
        count=query.integer("count", 1),
        offset=query.integer("offset", 0, most=2**63 - 1),
        temperature=query.number("temperature"),
        draw_x=query.boolean("draw_x"),
    )
    if query.given("seed"):
        sample.seed = query.integer("seed", 0, most=2**64 - 1)
    for axis in query.rest():  # each is the length of a free axis
        sample.sizes[axis] = query.integer(axis, 0)
    return sample


def _etag(digest: str, suffix: str, columns: int, sample: pb.SampleRequest) -> str:
    anywhere = pb.SampleRequest()
    anywhere.CopyFrom(sample)
    anywhere.model, anywhere.version = "", 0  # the digest says which
    of_request = anywhere.SerializeToString(deterministic=True).hex()
    content = f"{digest} {suffix} {columns} {of_request}"
    return f'"{hashlib.sha256(content.encode()).hexdigest()[:32]}"'


def _require(manifest: Manifest, suffix: str) -> None:
    """Raises InvalidArgument if the model's rows cannot be files of this kind."""
    x = manifest.default.x
    fits: Mapping[str, bool] = {
        **dict.fromkeys(("png", "jpg", "webp"), x.is_8bit_image),
        "txt": x.is_text,
        "csv": bool(x.columns),
    }
    if not fits[suffix]:
        possible = ", ".join(f".{name}" for name, good in fits.items() if good)
        raise InvalidArgument(
            "path",
            f"this model's rows are {x.dtype} {x.plural}, which .{suffix} cannot hold",
            f"Use {possible}" if possible else "Call Sample over gRPC",
        )


def _picture(form: str, rows: codec.Array, manifest: Manifest, columns: int) -> bytes:
    if len(rows) == 1:
        return images.encode_files(rows, form)[0]
    return images.make_grid(rows, columns, form)


def _txt(rows: codec.Array, manifest: Manifest, columns: int) -> bytes:
    return "".join(f"{texts.one_line(text)}\n" for text in texts.to_texts(rows)).encode()


def _csv(rows: codec.Array, manifest: Manifest, columns: int) -> bytes:
    file = io.StringIO()
    values = tables.to_values(manifest.x.columns, rows)
    csv.writer(file, lineterminator="\n").writerows([list(values), *tables.to_csv(values)])
    return file.getvalue().encode()


FORMATS: Final = {
    "png": Format("image/png", functools.partial(_picture, "PNG")),
    "jpg": Format("image/jpeg", functools.partial(_picture, "JPEG")),
    "webp": Format("image/webp", functools.partial(_picture, "WEBP")),
    "txt": Format("text/plain; charset=utf-8", _txt),
    "csv": Format("text/csv; charset=utf-8", _csv),
}
