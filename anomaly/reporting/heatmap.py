"""Anomaly maps made visible: smoothed inside the mask, on one scale for the whole run, over the film, and as files.

A map is (H, W) float32, at least 0, larger is more abnormal, in the unit of its model (squared error, say). It is never
scaled per film: that paints the largest error of a healthy film as red as a fracture. `map_scale` finds one scale on
validation normals, and the same value has the same color in every picture of a run.
"""

from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.heatmap_scale import Bools, Floats, checked_map
from anomaly.runs import write_atomic

Picture = NDArray[np.uint8]
ColorMap = Literal["plasma", "viridis", "cividis", "inferno"]

REACH = 2.0  # the colors run from 0 to this many times the scale: normal films stay in the lower half
CLEAR = 0.5  # times the scale: the film alone shows below
DENSE = 0.75  # the heat's largest share of the color: bone still shows through

FONT = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"
_SHORTEST = 384  # smaller films are enlarged by a whole factor, or no title would fit
_MOST_LINES = 6  # of a line of the title: of one that takes more, a name of many words, both ends are shown
_INK, _PAPER = (235, 235, 235), (16, 16, 16)


def to_film_space(map: NDArray[Any], matrix: NDArray[Any], shape: tuple[int, int]) -> Floats:
    """The map laid back on the original film, linear between its pixels and 0 where the map does not reach.

    map  (S, S), in the cache's pixels.    matrix  (2, 3), film (x, y) -> cache (x, y), pixel centers at whole numbers.
    shape  (H, W) of the film.    Returns (H, W) in the map's unit.
    """
    import cv2

    return np.asarray(
        cv2.warpAffine(
            np.ascontiguousarray(map, np.float32),
            np.asarray(matrix, np.float64),
            (shape[1], shape[0]),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,  # the matrix leads from the result to its source already
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0,
        ),
        np.float32,
    )


# -------------------------------------------------------------------------------------------------------- the picture


def blend(film: NDArray[Any], map: NDArray[Any], mask: Bools, scale: float, *, colors: ColorMap = "plasma") -> Picture:
    """The film in grey with the map's heat over it, pixel for pixel.

    film  (H, W) float in [0, 1].    map  (H, W) finite, at least 0.    mask  (H, W) bool: no heat outside.
    scale  from `map_scale`.    colors  even steps of the map look even, to color-blind eyes and in print too.
    Returns (H, W, 3) uint8, RGB.

    The color runs from 0 to REACH x scale and stays there beyond. The heat is clear up to CLEAR x scale, and densest
    from REACH x scale: a pixel's color depends on its film and map value alone, so it means the same in every picture
    of a run.
    """
    if not scale > 0:
        raise ValueError(f"scale {scale}: must be above 0, as `map_scale` gives it")
    if film.shape != mask.shape:
        raise ValueError(f"film {film.shape} and mask {mask.shape} must have one shape")
    level = checked_map(map, mask) / np.float32(scale)  # (H, W)
    alpha = (np.clip((level - CLEAR) / (REACH - CLEAR), 0, 1) * DENSE * mask)[..., None]  # (H, W, 1)
    heat = palette(colors)[(np.minimum(level / REACH, 1) * 255).astype(np.uint8)]  # (H, W, 3)
    grey = np.clip(film, 0, 1).astype(np.float32)[..., None] * 255
    return np.asarray(np.rint(grey + (heat - grey) * alpha), np.uint8)


def overlay(
    film: NDArray[Any],
    map: NDArray[Any],
    mask: Bools,
    scale: float,
    *,
    title: str = "",
    unit: str = "squared error",
    threshold: float | None = None,
    colors: ColorMap = "plasma",
) -> Picture:
    """The film with its heat, a title above and the color bar with numbers beside: a picture that explains itself.

    film, map, mask, scale, colors  as in `blend`.    title  lines, each broken at spaces to fit.
    unit  of the map.    threshold  map value to mark on the bar; without one the scale is marked, the limit of normals.
    Returns (H', W', 3) uint8, RGB. Films under 384 pixels are enlarged by a whole factor, pixels as squares.
    """
    from PIL import Image, ImageDraw

    heat = blend(film, map, mask, scale, colors=colors)
    zoom = enlargement(film.shape)
    heat = heat.repeat(zoom, axis=0).repeat(zoom, axis=1)
    height, width = heat.shape[:2]
    size = max(13, min(height, width) // 36)  # of the letters, pixels; everything else is measured in it
    font = _font(size)
    side = min(max(size * 7, int(font.getlength(unit)) + size * 2), size * 12)
    room = width + side - size
    lines = [part for line in title.split("\n") for part in _broken(line, room, font.getlength)] if title else []
    top, tall = size // 2 + len(lines) * size * 4 // 3, max(height, size * 14)
    page = np.full((top + tall, width + side, 3), _PAPER, np.uint8)
    page[top : top + height, :width] = heat
    left, high, low = width + size, top + size * 2, top + tall - size  # of the bar
    page[high:low, left : left + size] = np.rot90(color_bar(low - high, size, colors=colors))

    image = Image.fromarray(page)
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        draw.text((size // 2, size // 3 + row * size * 4 // 3), line, _INK, font=font)
    draw.text((left, top), _shortened(unit, side - size * 3 // 2, font.getlength), _INK, font=font)
    mark = scale if threshold is None else threshold
    for value, text in ((0.0, "0"), (mark, f"{mark:.2g}"), (REACH * scale, f"≥ {REACH * scale:.2g}")):
        y = low - (low - high) * min(value / (REACH * scale), 1.0)
        first, thick = (left, max(2, size // 6)) if value == mark else (left + size, 1)
        draw.line([(first, y), (left + size * 3 // 2, y)], _INK, thick)
        draw.text((left + size * 7 // 4, y), text, _INK, font=font, anchor="lm")
    return np.asarray(image)


def enlargement(shape: tuple[int, int]) -> int:
    """By which whole factor `overlay` enlarges a film of this (H, W): small ones, so that a title fits."""
    return -(-_SHORTEST // max(shape))


def color_bar(length: int, thickness: int, *, colors: ColorMap = "plasma") -> Picture:
    """The colors of `blend` over a mid grey, 0 at the left to REACH times the scale: (thickness, length, 3) uint8."""
    steps = np.linspace(0, REACH, length, dtype=np.float32)[None].repeat(thickness, axis=0)
    grey = np.full(steps.shape, 0.4, np.float32)
    return blend(grey, steps, np.ones(steps.shape, np.bool_), 1.0, colors=colors)


def titled(picture: Picture, title: str) -> Picture:
    """The picture, (H, W, 3) RGB, under a strip with one line of text."""
    from PIL import Image, ImageDraw

    size = 14
    page = np.concatenate([np.full((2 * size, picture.shape[1], 3), _PAPER, np.uint8), picture])
    image = Image.fromarray(page)
    font = _font(size)
    ImageDraw.Draw(image).text(
        (size // 2, size // 3), _shortened(title, page.shape[1] - size, font.getlength), _INK, font=font
    )
    return np.asarray(image)


def _broken(text: str, room: float, width: Callable[[str], float]) -> list[str]:
    """The text in lines that fit the room, broken at spaces: a warning is shown whole; a longer word is cut."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if width(longer) <= room:
            lines[-1] = longer
        else:
            lines += [_shortened(word, room, width)]
    lines = lines if lines[0] else lines[1:] or lines
    return lines if len(lines) <= _MOST_LINES else [_shortened(text, room, width)]


def _shortened(text: str, room: float, width: Callable[[str], float]) -> str:
    """The text, its middle cut out where it is too long for the room: a path tells most at its two ends."""
    kept = text
    while kept and width(text) > room:
        kept = kept[: len(kept) // 2] + kept[len(kept) // 2 + 1 :]
        text = f"{kept[: len(kept) // 2]}…{kept[len(kept) // 2 :]}"
    return text


@cache
def _font(size: int) -> Any:
    """DejaVu Sans, which comes with the package: no font is surely on a machine, and this one knows more than ASCII."""
    from PIL import ImageFont

    return ImageFont.truetype(FONT, size)


@cache
def palette(colors: ColorMap) -> Floats:
    """The (256, 3) RGB colors of a map, 0 to 255."""
    import cv2

    known = {
        "plasma": cv2.COLORMAP_PLASMA,
        "viridis": cv2.COLORMAP_VIRIDIS,
        "cividis": cv2.COLORMAP_CIVIDIS,
        "inferno": cv2.COLORMAP_INFERNO,
    }
    if colors not in known:
        raise ValueError(f"no colors {colors!r}; there are: {', '.join(known)}")
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    return np.asarray(cv2.applyColorMap(ramp, known[colors])[:, 0, ::-1], np.float32)  # OpenCV gives BGR


def outlined(film: NDArray[Any], mask: Bools, under: Picture | None = None) -> Picture:
    """Return a film with a mask's border in green: (H, W) in [0, 1], (H, W) -> (k H, k W, 3), k = 4 below 256 px.

    under  (H, W, 3) a picture to draw on instead of the film; without it, what lies outside the mask is green too.
    """
    import cv2

    grey = np.rint(np.clip(film, 0, 1) * 255).astype(np.uint8)
    picture = grey[..., None].repeat(3, axis=2) if under is None else under.copy()
    color = (53, 199, 155)
    if under is None:
        picture[~mask] = np.rint(0.65 * picture[~mask] + 0.35 * np.array(color)).astype(np.uint8)
    zoom = 4 if max(film.shape) < 256 else 1  # the line stays thin on a small film
    size = (film.shape[1] * zoom, film.shape[0] * zoom)
    picture = np.ascontiguousarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    borders, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, borders, -1, color, 2)
    return picture


# ---------------------------------------------------------------------------------------------------------- the files


def write_map(path: Path, map: NDArray[Any]) -> None:
    """Write a map's own numbers as float32: TIFF (one channel) or NPY, by the suffix.

    map  (H, W).    The file appears whole or not at all. Other suffixes raise ValueError.
    """
    values = np.ascontiguousarray(map, np.float32)
    if values.ndim != 2:
        raise ValueError(f"map {values.shape} must be (H, W)")
    data = BytesIO()
    if path.suffix == ".npy":
        np.save(data, values, allow_pickle=False)
    elif path.suffix in (".tif", ".tiff"):
        import tifffile

        tifffile.imwrite(data, values, photometric="minisblack", metadata=None)
    else:
        raise ValueError(f"no map format {path.suffix!r}; there are: .npy, .tif, .tiff")
    write_atomic(path, data.getvalue())


def write_png(path: Path, picture: Picture) -> None:
    """Write a picture, (H, W, 3) RGB or (H, W) grey, as PNG; the file appears whole or not at all."""
    write_atomic(path, png(picture))


def png(picture: Picture) -> bytes:
    """A picture, (H, W, 3) RGB or (H, W) grey uint8, as the bytes of a PNG file."""
    import cv2

    if picture.dtype != np.uint8:
        raise ValueError(f"picture {picture.dtype}: must be uint8")
    _, data = cv2.imencode(
        ".png", picture[..., ::-1] if picture.ndim == 3 else picture, [cv2.IMWRITE_PNG_COMPRESSION, 4]
    )
    return bytes(data.tobytes())


def jpeg(picture: Picture, quality: int = 85) -> bytes:
    """A picture, (H, W, 3) RGB or (H, W) grey uint8, as the bytes of a JPEG file; quality 0 to 100."""
    import cv2

    if picture.dtype != np.uint8:
        raise ValueError(f"picture {picture.dtype}: must be uint8")
    rows = picture[..., ::-1] if picture.ndim == 3 else picture
    _, data = cv2.imencode(".jpg", rows, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(data.tobytes())
