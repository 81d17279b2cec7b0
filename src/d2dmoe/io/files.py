"""Files that are either whole or not there: written aside, then renamed."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from d2dmoe.errors import UserError
from d2dmoe.processes import leads


def sha256(path: Path) -> str:
    """The file's SHA-256 as hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour of `path`, flush it to disk, then rename it to `path`.

    Whatever goes wrong before the rename, an earlier `path` stays as it was and no debris remains.
    Of several processes that share a job, the first writes.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    if leads():
        write_own(path, write)


def write_own(path: Path, write: Callable[[Path], object]) -> None:
    """The same of a file that is this process's own."""
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(_explain(path, error)) from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong in writing below a path is said with the remedy.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(_explain(path, error)) from error


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that ends with the context."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def copy_into(folder: Path, files: Mapping[str, str]) -> None:
    """Copy files, by the names that they get in a folder."""
    for source, name in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)


def _explain(path: Path, error: Exception) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    remedy = "free some space" if full else "check the folder's permissions and the disk"
    cause = "the disk is full" if full else str(error)
    kept = "The earlier version is intact. " if path.exists() else ""
    return (
        f"cannot save {path}: {cause}. {kept}To go on: {remedy}, then run the same command again."
    )
