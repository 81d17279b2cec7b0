"""Whether all results are as their jobs left them: none stale, foreign or damaged."""

from collections.abc import Iterator
from pathlib import Path

from d2dmoe.errors import ResultError, UserError
from d2dmoe.io.checksums import check, checksum_file, name_of, read_checksums
from d2dmoe.io.files import sha256
from d2dmoe.io.header import check_digest
from d2dmoe.jobs.attempts import load_attempts
from d2dmoe.jobs.progress import logger

SHOWN = 6  # faults in the message, which is cut where it is long
# Folders of what is no result of a job, or copied or drawn of results.
OTHERS = {".state", ".locks", "logs", "published", "reference"}


def verify(results: Path) -> tuple[int, list[str]]:
    """How many files there are, and a message for each that is not as it should be.

    A file is damaged if its bytes are not those that were written, foreign if no job of this place
    made it, and stale if a file that it was made of has become another since. Files whose sources
    are gone, or damaged themselves, are not called stale.
    """
    paths, states = list(_files(results)), sorted((results / ".state").glob("[!.]*"))
    sums: dict[str, str | None] = {}  # None: of a file that is not as it should be
    faults = []
    for path in paths:
        try:
            sums[name_of(path)] = check(path)
        except ResultError as error:
            sums[name_of(path)] = None
            faults.append(str(error))
    for path in paths:
        if sums[name_of(path)] and (source := _changed_source(path, sums)):
            faults.append(str(ResultError(path, "stale", f"{source} has changed since")))
    faults += [fault for state in states if (fault := _fault_of_state(state))]
    return len(paths) + len(states), faults


def report(results: Path) -> str:
    """What there is to say if all is well.

    Raises:
        UserError: it is not; the log has a line for every fault, the message for the first ones.
    """
    count, faults = verify(results)
    if faults:
        for fault in faults:
            logger.info("%s", fault)
        shown, more = faults[:SHOWN], len(faults) - SHOWN
        lines = [f"{len(faults)} of {count} files in {results}/ cannot be relied on:", *shown]
        lines += [f"and {more} more, which the log names"] if more > 0 else []
        raise UserError("\n  ".join(lines))
    return f"all {count} files in {results}/ are as their jobs left them"


def _files(results: Path) -> Iterator[Path]:
    for path in sorted(results.rglob("*")):
        outside = OTHERS.isdisjoint(path.relative_to(results).parts)
        if outside and path.is_file() and not _is_checksum(path):
            yield path


def _is_checksum(path: Path) -> bool:
    return path == checksum_file(path.with_name(path.name[1:]).with_suffix(""))


def _changed_source(path: Path, sums: dict[str, str | None]) -> str | None:
    """The first file that a result was made of and that is another by now."""
    _own, *sources = read_checksums(path).items()
    for name, digest in sources:
        if name not in sums and Path(name).is_file():  # it came with the project
            sums[name] = sha256(Path(name))
        if sums.get(name) not in (None, digest):
            return name
    return None


def _fault_of_state(path: Path) -> str | None:
    try:
        if path.suffix == ".json":
            load_attempts(path)
        else:
            check_digest(path)
    except UserError as error:
        return str(error)
    except (OSError, ValueError) as error:
        return f"{path} is damaged: {error}. Delete it, and the job starts from its beginning."
    return None
