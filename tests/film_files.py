"""Small films of every format, drawn and written for the tests of the readers."""

import gzip
import io
import struct
import zlib
from functools import cache
from typing import Any

import cv2
import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from PIL import Image
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from preprocessing import InputError
from preprocessing.readers import Film, read_film

quickly = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
sides = array_shapes(min_dims=2, max_dims=2, min_side=16, max_side=40)


def pictures(dtype: type, *, planes: int = 0) -> st.SearchStrategy[np.ndarray]:
    """Random levels drawn by numpy from a seed: cheaper than one draw a pixel, and still of any shape."""

    def draw(shape: tuple[int, ...], seed: int) -> np.ndarray:
        full = shape + (planes,) * bool(planes)
        return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, full, dtype=dtype, endpoint=True)

    return st.builds(draw, sides, st.integers(0, 2**32))


def picture(dtype: type = np.uint8, *, planes: int = 0, shape: tuple[int, int] = (24, 20)) -> np.ndarray:
    full = shape + (planes,) * bool(planes)
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, full, dtype=dtype, endpoint=True)


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 else array)[1].tobytes()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def pillow(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def dicom(
    pixels: np.ndarray | bytes | None,
    *,
    shape: tuple[int, int] | None = None,
    bits: int = 12,
    kind: str = "MONOCHROME2",
    syntax: UID = ExplicitVRLittleEndian,
    **elements: Any,
) -> bytes:
    array = pixels if isinstance(pixels, np.ndarray) else np.zeros(shape or (24, 20), np.uint16)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality = "DX"
    if pixels is not None:
        dataset.Rows, dataset.Columns = shape or array.shape[:2]
        dataset.SamplesPerPixel = 3 if array.ndim == 3 else 1
        if array.ndim == 3:
            dataset.PlanarConfiguration = 0
        dataset.PhotometricInterpretation = kind
        dataset.BitsAllocated = 8 * array.dtype.itemsize
        dataset.BitsStored, dataset.HighBit = bits, bits - 1
        dataset.PixelRepresentation = int(array.dtype.kind == "i")
        dataset.PixelData = pixels.tobytes() if isinstance(pixels, np.ndarray) else pixels
        dataset["PixelData"].VR = "OB" if bits <= 8 or syntax.is_encapsulated else "OW"
    for name, value in elements.items():
        setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def nifti(array: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    return nibabel.Nifti1Image(array, np.diag([-1, -1, 1, 1]) if affine is None else affine).to_bytes()


def ramp(bits: int) -> np.ndarray:
    levels = np.arange(2**bits, dtype=np.uint16 if bits > 8 else np.uint8)
    return levels.reshape(-1, min(64, 2 ** (bits // 2)))


def luminance(planes: np.ndarray) -> np.ndarray:
    return planes.astype(float) @ np.array([0.299, 0.587, 0.114])


def check_film(film: Film, expected: np.ndarray, depth: int) -> None:
    assert film.depth == depth
    assert film.pixels.dtype == (np.uint8 if depth == 8 else np.uint16)
    assert film.pixels.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(film.pixels, expected)


def jpeg2000(array: np.ndarray) -> bytes:
    stream = pillow(Image.fromarray(array), "JPEG2000", irreversible=False, no_jp2=True)
    return encapsulate([stream])


def bad_floats(value: float) -> bytes:
    values = np.zeros((20, 20), np.float32)
    values[3, 4] = value
    return nifti(values)


def refused(name: str, data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        read_film(name, data)
    message = str(caught.value)
    assert message.startswith(f"{name}: ") and "\n" not in message
    return message


@cache
def every_format() -> dict[str, bytes]:
    """A sound film in every format and coding, by the name that its file could have."""
    levels = picture(np.uint16, shape=(40, 30))
    small = (levels >> 8).astype(np.uint8)
    bits, colors = small > 127, np.stack([small] * 3, axis=2)
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 12], (np.arange(4096, dtype=np.uint16) ^ 1).tobytes()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    header = {
        "VOILUTSequence": [table],
        "PixelPaddingValue": 3,
        "PixelSpacing": [0.1, 0.2],
        "ShutterShape": ["RECTANGULAR", "CIRCULAR", "POLYGONAL"],
        "CenterOfCircularShutter": [20, 15],
        "RadiusOfCircularShutter": 14,
        "VerticesOfThePolygonalShutter": [1, 1, 1, 30, 40, 30],
    }
    lossless = imagecodecs.jpeg8_encode(levels, lossless=True, bitspersample=16)
    return {
        "grey.png": png(levels),
        "colour.png": png(np.stack([levels] * 3, axis=2)),
        "palette.png": pillow(Image.fromarray(colors).quantize(16), "PNG"),
        "film.jpg": pillow(Image.fromarray(small), "JPEG"),
        "colour.jpg": pillow(Image.fromarray(colors), "JPEG"),
        "progressive.jpg": pillow(Image.fromarray(small), "JPEG", progressive=True),
        "lossless.jpg": lossless,
        "film.jls": imagecodecs.jpegls_encode(levels),
        "film.jp2": imagecodecs.jpeg2k_encode(levels, level=0, codecformat="JP2"),
        "film.bmp": pillow(Image.fromarray(small), "BMP"),
        "plain.tif": tiff(levels),
        "big.tif": tiff(levels, bigtiff=True, byteorder=">"),
        "packed.tif": tiff(levels, compression="zlib", predictor=True),
        "tiled.tif": tiff(levels, compression="lzw", tile=(16, 16)),
        "planes.tif": tiff(colors.transpose(2, 0, 1).copy(), planarconfig="separate", photometric="rgb"),
        "fax.tif": pillow(Image.fromarray(bits), "TIFF", compression="group4"),
        "jpeg.tif": tiff(colors, compression="jpeg", photometric="rgb"),
        "lzw.tif": pillow(Image.fromarray(levels), "TIFF", compression="tiff_lzw"),
        "film.dcm": dicom(levels, bits=16),
        "header.dcm": dicom(levels >> 4, **header),
        "implicit.dcm": dicom(levels, bits=16, syntax=ImplicitVRLittleEndian)[132:],
        "j2k.dcm": dicom(jpeg2000(levels), shape=levels.shape, bits=16, syntax=JPEG2000Lossless),
        "lossless.dcm": dicom(encapsulate([lossless]), shape=levels.shape, bits=16, syntax=JPEGLosslessSV1),
        "rle.dcm": dicom(run_length(levels), shape=levels.shape, bits=16, syntax=RLELossless),
        "deflated.dcm": dicom(levels, bits=16, syntax=DeflatedExplicitVRLittleEndian),
        "packed.dcm.gz": gzip.compress(dicom(levels, bits=16)),
        "film.nii": nifti(levels.T),
        "film.nii.gz": gzip.compress(nifti(levels.T)),
    }


def run_length(levels: np.ndarray) -> bytes:
    """Code 16-bit levels by run lengths, one frame."""
    encode = get_encoder(RLELossless).encode
    height, width = levels.shape
    options = {"rows": height, "columns": width, "samples_per_pixel": 1, "number_of_frames": 1, "bits_allocated": 16}
    options |= {"bits_stored": 16, "pixel_representation": 0, "photometric_interpretation": "MONOCHROME2"}
    return encapsulate([encode(levels, **options)])


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def with_elements(data: bytes, **elements: tuple[object, str]) -> bytes:
    """Add elements of given value representations."""
    dataset = dcmread(io.BytesIO(data))
    for name, (value, representation) in elements.items():
        dataset.add_new(name, representation, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def table(
    entries: np.ndarray | bytes,
    *,
    bits: int,
    first: tuple[int, str] = (0, "US"),
    kind: str = "US",
    count: int | None = None,
) -> Dataset:
    """A lookup table; `entries` are given as they are to be stored."""
    item = Dataset()
    number = len(entries) if count is None else count
    item.add_new("LUTDescriptor", first[1], [number % 65536, first[0], bits])
    stored = entries if isinstance(entries, bytes) or kind == "US" else entries.astype("<u2").tobytes()
    item.add_new("LUTData", kind, stored if isinstance(stored, bytes) else [int(entry) for entry in stored])
    item.ModalityLUTType = "US"
    return item


def rewritten(data: bytes, syntax: UID) -> bytes:
    """Write an uncompressed file in another syntax."""
    dataset = dcmread(io.BytesIO(data))
    if not syntax.is_little_endian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    dcmwrite(stream, dataset, implicit_vr=implicit, little_endian=little, force_encoding=True)
    return stream.getvalue()


def coded(values: np.ndarray, bits: int, codec: str) -> tuple[bytes, UID]:
    """Code levels losslessly with a stated precision."""
    if codec == "JPEG 2000":
        options = {"level": 0, "codecformat": "J2K", "bitspersample": bits}
        return imagecodecs.jpeg2k_encode(values, **options), JPEG2000Lossless
    if codec == "HTJ2K":
        return imagecodecs.htj2k_encode(values), HTJ2KLossless
    if codec == "JPEG-LS":
        return imagecodecs.jpegls_encode(values), JPEGLSLossless
    return imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=bits), JPEGLosslessSV1
