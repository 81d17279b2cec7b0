"""All attempts at a job and their times: also of those that were killed.

An attempt notes its time every few seconds in a file that outlives it, and that the next attempt
at the same job goes on with. The file holds a digest of its own in its first line.
"""

import hashlib
import json
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from d2dmoe.errors import CheckpointError, UserError
from d2dmoe.io.files import write_atomically

Attempt = dict[str, Any]  # host; began, in UTC; s, its wall time in seconds


@contextmanager
def counted(path: Path, every_s: float = 10.0) -> Iterator[Callable[[], list[Attempt]]]:
    """Note the time of an attempt as long as the context lasts, at least every `every_s` seconds.

    Args:
        path: of the file, which the last attempt's job removes when its result is there.
        every_s: what is lost of a killed attempt at most.

    Yields:
        What gives all attempts so far, this one last.

    Raises:
        CheckpointError: the file is damaged.
    """
    earlier, start, ended = load_attempts(path), time.monotonic(), threading.Event()
    began = datetime.now(UTC).isoformat(timespec="seconds")

    def attempts() -> list[Attempt]:
        seconds = round(time.monotonic() - start, 1)
        return [*earlier, {"host": platform.node(), "began": began, "s": seconds}]

    def note() -> None:
        with suppress(UserError):  # of a full disk the job itself will tell
            save_attempts(path, attempts())

    def note_often() -> None:
        while not ended.wait(every_s):
            note()

    save_attempts(path, attempts())
    thread = threading.Thread(target=note_often, daemon=True)
    thread.start()
    try:
        yield attempts
    finally:
        ended.set()
        thread.join()
        note()


def save_attempts(path: Path, attempts: list[Attempt]) -> None:
    """Write them, atomically.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    text = json.dumps(attempts)
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_atomically(path, lambda p: p.write_text(f"{digest}\n{text}\n", encoding="utf-8"))


def load_attempts(path: Path) -> list[Attempt]:
    """The attempts that a file tells of; none where there is no file.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        digest, text, end = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        digest, text, end = b"", b"", b""
    if end or hashlib.sha256(text).hexdigest().encode() != digest:
        raise CheckpointError(
            f"{path} is damaged. Delete it and run the same command again: the time of earlier "
            "attempts at the job is then not counted."
        )
    return json.loads(text)
