"""Folders that are either whole or not there: written aside, then renamed."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from d2dmoe.errors import UserError


def check_free(folder: Path, force: bool) -> None:
    """Refuse, before any work, a folder that is taken or cannot be made.

    Raises:
        UserError: it holds something, and not a model that `force` allows to be replaced; or its
            place cannot be written.
    """
    try:
        _check_taken(folder, force)
        place = next(parent for parent in folder.absolute().parents if parent.exists())
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=place):
            pass  # the only sure way to know: permissions do not say all of every file system
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made ({error.strerror}). Choose another place or name."
        ) from error


def _check_taken(folder: Path, force: bool) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is a file or a link. Choose another name for the folder.")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} holds something that is no model. Choose another folder.")
        if not force:
            raise UserError(
                f"{folder} is there already. Choose another folder, or replace it with --force."
            )


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` when the block ends well.

    Whatever goes wrong, an earlier `folder` stays as it was and no debris remains.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new, old = aside / "new", aside / "old"
        new.mkdir()
        yield new
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
