"""Files that carry the SHA-256 of their own content: those that are read on their own, or before a manifest is there.

JSON, as a changed digit is still JSON and still a record: run.json, bundle.json, bench.json, study.json, auto.json.

Tensors, as safetensors has no checksums: checkpoint.safetensors, which is rewritten every few seconds, so that its hash
must come and go with it; published weights as they are kept. Their hash stands among the metadata, and is of the whole
file with zeros in its place, so that every bit is under it:

    first 8 bytes            length of the header, little-endian (safetensors)
    header                   JSON: names, dtypes and places of the tensors; __metadata__: state (JSON text), sha256
    the rest                 the tensors
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from preprocessing import InputError

if TYPE_CHECKING:
    from torch import Tensor

KEY = "sha256"
_FIELD, _NOTHING = b'"sha256":"', b"0" * 64
_BLOCK = 2**20  # bytes that are read at a time


def sealed(content: Mapping[str, Any]) -> str:
    """Return a record, all that JSON holds, as indented JSON with its hash under "sha256"; NaN is refused."""
    # As it will be read: numbers that are keys, and tuples, are others there.
    as_read = json.loads(json.dumps(content, allow_nan=False))
    return json.dumps(as_read | {KEY: _digest(as_read)}, indent=2) + "\n"


def unsealed(text: str | bytes) -> Any:
    """Return what a JSON text says, without its hash; one of an older version has none, and is not compared.

    Raises ValueError of one line where the text is no JSON, or not what was written.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict) or KEY not in content:
        return content
    recorded = content.pop(KEY)
    if recorded != _digest(content):
        raise ValueError("its own SHA-256 is another")
    return content


def sealed_tensors(tensors: Mapping[str, "Tensor"], state: Mapping[str, Any]) -> bytes:
    """Return a safetensors file of tensors, contiguous on the processor, and of a state that JSON holds."""
    from safetensors.torch import save

    content = save(dict(tensors), metadata={"state": json.dumps(state), KEY: _NOTHING.decode()})
    end = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(content).hexdigest().encode()
    # Within texts a quotation mark is written \", so that the field is found nowhere else.
    return content[:end].replace(_FIELD + _NOTHING, _FIELD + digest) + memoryview(content)[end:]


def state_of_tensors(path: Path, remedy: str) -> dict[str, Any]:
    """Return the state in a file that `sealed_tensors` made, once all of the file is compared with its hash.

    Its tensors may be read from the file then. Raises InputError with the remedy where it differs or has no hash.
    """
    with path.open("rb") as file:
        try:
            header = _header(file)
            metadata = json.loads(header[8:])["__metadata__"]
            state, recorded = dict(json.loads(metadata["state"])), str(metadata[KEY])
        except (KeyError, MemoryError, RecursionError, TypeError, ValueError):
            raise InputError(f"{path} is damaged or of an older version (no SHA-256 in its header); {remedy}") from None
        digest = hashlib.sha256(header.replace(_FIELD + recorded.encode(), _FIELD + _NOTHING))
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != recorded:
        raise InputError(f"{path} is damaged (it has another SHA-256 than it was written with); {remedy}")
    return state


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _header(file: IO[bytes]) -> bytes:
    """Read the length and the header; ValueError where the file is shorter than it says."""
    length = file.read(8)
    size = int.from_bytes(length, "little")
    if not 0 < size <= os.fstat(file.fileno()).st_size - 8:
        raise ValueError(size)
    return length + file.read(size)
