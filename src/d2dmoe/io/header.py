"""The digest in a safetensors file's header: of the whole file, zeros in the digest's own place."""

import hashlib
import json
import os
from pathlib import Path

DIGEST = "sha256"  # its key in the header's metadata
UNKNOWN = "0" * 64  # stands in its place while it is computed


def check_digest(path: Path) -> str:
    """The digest of a file whose bytes are those that were written.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has another digest than its header says, or none.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        size = int.from_bytes(start, "little")
        if size > os.fstat(file.fileno()).st_size:
            raise ValueError("the header is longer than the file")
        header = file.read(size)
        told = _told(header)
        digest = hashlib.sha256(start + header.replace(told.encode(), UNKNOWN.encode()))
        hashlib.file_digest(file, lambda: digest)
    if told != digest.hexdigest():
        raise ValueError(f"its SHA-256 is {digest.hexdigest()}, and was {told}")
    return told


def _told(header: bytes) -> str:
    try:
        told = json.loads(header)["__metadata__"][DIGEST]
    except (LookupError, TypeError) as error:
        raise ValueError("its header has no SHA-256") from error
    if not isinstance(told, str) or len(told) != len(UNKNOWN):
        raise ValueError("its header has no SHA-256")
    return told
