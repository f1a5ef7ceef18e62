"""Images out of a request's body: limited in bytes while it is read, in pixels before it is decoded."""

from __future__ import annotations

import base64
import binascii
import io
import json
import warnings
from dataclasses import dataclass

import numpy as np
from fastapi import Request
from PIL import Image, UnidentifiedImageError
from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from vitedge.data.image import UnreadableImage, decode
from vitedge.data.preprocess import Preprocess

MAX_IMAGES = 256


class Refused(Exception):
    """A request that can't be served, as the three parts of an error and an HTTP status."""

    def __init__(
        self, status: int, what: str, why: str = "", todo: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(what)
        self.status, self.what, self.why, self.todo, self.headers = status, what, why, todo, headers or {}


@dataclass
class Asked:
    """What a request asks for: encoded images, or pixels that are prepared already, uint8 [N, H, W, 3]."""

    encoded: list[bytes]
    prepared: np.ndarray | None = None
    artifact: str | None = None
    top: int = 5
    attention: bool = False


async def read_body(request: Request, max_bytes: int) -> Asked:
    """The request's images. Raises Refused with 400, 413 or 415."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    query = request.query_params
    asked = Asked([], artifact=query.get("artifact"), top=_top(query.get("top", 5)))
    asked.attention = _yes(query.get("attention", "false"))
    if kind == "multipart/form-data":
        await _form(request, asked)
    elif kind == "application/json":
        _json(await request.body(), asked)
    elif kind in ("application/x-npy", "application/octet-stream"):
        asked.prepared = _array(await request.body())
    elif kind.startswith("image/"):
        asked.encoded = [await request.body()]
    else:
        raise Refused(
            415,
            f"A body of type '{kind or 'none'}' can't be read.",
            "",
            "Send multipart/form-data with files, application/json with base64, image/*, or application/x-npy.",
        )
    count = len(asked.encoded) if asked.prepared is None else len(asked.prepared)
    if not count:
        raise Refused(422, "The request has no image.", "", "Send at least one.")
    if count > MAX_IMAGES:
        raise Refused(
            413, f"The request has {count} images.", f"At most {MAX_IMAGES} are taken.", "Send them in parts."
        )
    return asked


def _top(value: object) -> int:
    try:
        top = int(str(value))
    except ValueError:
        top = 0
    if not 1 <= top <= 10_000:
        raise Refused(422, f"'top' is {str(value)[:40]!r}.", "", "Give a number from 1 to 10000.")
    return top


def _yes(value: object) -> bool:
    if (text := str(value).lower()) not in ("true", "false", "1", "0"):
        raise Refused(422, f"'attention' is {text[:40]!r}.", "", "Give true or false.")
    return text in ("true", "1")


async def _form(request: Request, asked: Asked) -> None:
    try:
        form = await request.form(max_files=MAX_IMAGES, max_fields=16)
    except (MultiPartException, MultipartParseError, AssertionError, KeyError, ValueError) as error:
        raise Refused(400, "The form can't be read.", str(error), "Send it as multipart/form-data.") from error
    except Exception as error:
        detail = getattr(error, "detail", None)
        if detail is None:
            raise
        raise Refused(400, "The form can't be read.", str(detail), "Send it as multipart/form-data.") from error
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            asked.encoded.append(await value.read())
        elif name == "artifact" and value:
            asked.artifact = value
        elif name == "top" and value:
            asked.top = _top(value)
        elif name == "attention" and value:
            asked.attention = _yes(value)
    await form.close()


def _json(body: bytes, asked: Asked) -> None:
    form = 'Send {"images": ["BASE64", ...], "top": 5, "artifact": "NAME"}.'
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The body is not JSON.", str(error)[:200], form) from error
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise Refused(422, "The body has no list 'images' of base64 strings.", "", form)
    try:
        for image in images:
            # As a browser's FileReader writes it, with "data:image/png;base64," in front, or bare.
            text = image.partition(",")[2] if image.startswith("data:") else image
            asked.encoded.append(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise Refused(422, "An image is not base64.", str(error), form) from error
    if document.get("artifact") is not None:
        asked.artifact = str(document["artifact"])
    if "top" in document:
        asked.top = _top(document["top"])
    if "attention" in document:
        asked.attention = _yes(document["attention"])


def _array(body: bytes) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(body), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise Refused(422, "The body is not a .npy file.", str(error)[:200], "Write it with numpy.save.") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise Refused(
            422, "The array is not uint8 [N, H, W, C].", "", "Send images after resize and crop, 0..255, RGB."
        )
    return array if array.ndim == 4 else array[None]


def prepare(data: bytes, preprocess: Preprocess, max_pixels: int) -> np.ndarray:
    """Encoded bytes to uint8 [H, W, channels], as `vitedge predict` prepares them. Raises Refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
        if width * height > max_pixels:
            raise Image.DecompressionBombError(f"It has {width} x {height} pixels.")
        return preprocess.apply(decode(io.BytesIO(data), "the image", **preprocess.reading))
    except Image.DecompressionBombError as error:
        todo = f"At most {max_pixels:,} are taken: send a smaller one."
        raise Refused(413, "An image has too many pixels.", str(error), todo) from error
    except UnreadableImage as error:
        raise Refused(422, "An image can't be read.", error.reason, "Send JPEG, PNG or WebP.") from error
    except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, struct.error and more
        why = "It has no known format." if isinstance(error, UnidentifiedImageError) else str(error)[:200]
        raise Refused(422, "An image can't be read.", why, "Send JPEG, PNG or WebP.") from error
