"""PNG and JPEG, by Pillow; 16-bit color by OpenCV, because Pillow squeezes it to 8 bits."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.readers.header import Header
from preprocessing.readers.levels import ORIENTATION, over_black, upright

if TYPE_CHECKING:
    from PIL import Image


_PNG_END = b"IEND\xae\x42\x60\x82"


def open_png(data: bytes) -> Header:
    """Read the header; a file without its end is refused."""
    if _PNG_END not in data:  # Pillow does not ask for more once it has the pixels
        raise InputError("truncated file")
    image = open_with_pillow(data, "PNG")
    deep = data[24] == 16
    color = data[25] != 0

    def decode() -> NDArray[Any]:
        image.load()
        # Pillow squeezes 16-bit colour to 8 bits; OpenCV keeps it, but overlooks damage: Pillow decodes too.
        planes = decode_with_opencv(data, alpha=data[25] in (4, 6)) if deep and color else decode_with_pillow(image)
        return upright(planes, _exif_orientation(image))

    return Header(image.height, image.width, 16 if deep else 8, decode)


def open_jpeg(data: bytes) -> Header:
    """Read the header."""
    image = open_with_pillow(data, "JPEG")
    return Header(image.height, image.width, 8, lambda: upright(decode_with_pillow(image), _exif_orientation(image)))


def open_with_pillow(data: bytes, kind: str) -> Image.Image:
    """Open with Pillow, which reads no more than the header here."""
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=(kind,))


def decode_with_pillow(image: Image.Image) -> NDArray[Any]:
    """Decode with Pillow: (H, W) or (H, W, 3), alpha composited over black."""
    image.load()
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("CMYK", "YCbCr", "RGBX", "LAB"):
        image = image.convert("RGB")
    planes = np.asarray(image)
    planes = planes.astype(planes.dtype.newbyteorder("="))
    if image.mode in ("LA", "RGBA"):
        return over_black(planes[..., 0] if image.mode == "LA" else planes[..., :3], planes[..., -1])
    if image.mode in ("La", "RGBa"):  # composited already
        return planes[..., 0] if image.mode == "La" else planes[..., :3]
    return planes


def decode_with_opencv(data: bytes, *, alpha: bool) -> NDArray[Any]:
    """Decode 16-bit colour with OpenCV: (H, W) or (H, W, 3), a fourth plane composited over black if it is `alpha`."""
    import cv2

    planes = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if planes is None:
        raise InputError("damaged or unusual file, it does not decode")
    if planes.ndim == 2:
        return planes
    color = planes[..., 2::-1]  # OpenCV keeps blue first
    return over_black(color, planes[..., 3]) if alpha and planes.shape[2] == 4 else color


def _exif_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data beside sound pixels: the film is taken as stored
        return 1
