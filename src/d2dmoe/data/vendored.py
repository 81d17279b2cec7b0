"""Data kept in the repository: found by name, and verified, so that no damage looks like a result.

A set is a folder of resources/ with train.parquet, test.parquet, and a SHA256SUMS as sha256sum
writes it.
"""

from pathlib import Path

from d2dmoe.config.sources import find_vendored
from d2dmoe.errors import DataError
from d2dmoe.io.files import sha256


def vendored_file(name: str, file: str, root: Path) -> Path:
    """The path of `file` of the vendored set `name`, its checksum verified.

    Raises:
        DataError: the file or SHA256SUMS is missing, or the checksum is another.
    """
    folder = find_vendored(name, root)
    path = folder / file
    remedy = f"Restore it with `git checkout -- resources/{name}`."
    expected = _checksums(folder / "SHA256SUMS", remedy).get(file)
    if expected is None:
        raise DataError(f"{folder / 'SHA256SUMS'} has no line for {file}. {remedy}")
    if not path.is_file():
        raise DataError(f"{path} is missing (SHA-256 {expected}). {remedy}")
    found = sha256(path)
    if found != expected:
        raise DataError(
            f"{path} is damaged: expected SHA-256 {expected}, found {found} "
            f"({path.stat().st_size} bytes). {remedy}"
        )
    return path


def _checksums(path: Path, remedy: str) -> dict[str, str]:
    if not path.is_file():
        raise DataError(f"{path} is missing. {remedy}")
    lines = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
    return {name.lstrip("*"): digest for digest, name in lines}
