"""What damaged input may lead to: it is taken, or refused in one message, in time."""

import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from d2dmoe.errors import LONGEST, UserError

LIMIT_S = 10.0  # of one case
Make = Callable[[random.Random, Path], Callable[[], object] | None]


class Overtime(BaseException):
    """A case took longer than `LIMIT_S`."""


@dataclass
class Outcomes:
    """Counts of what cases led to, and the faults among them: each case and what went wrong."""

    counts: Counter = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    slowest_s: float = 0.0
    longest: int = 0  # characters of a message

    @property
    def text(self) -> str:
        """In a line."""
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(self.counts.items()))
        return (
            f"{self.counts.total()} cases: {counts}; {len(self.faults)} faults; "
            f"slowest {self.slowest_s:.2f} s, longest message {self.longest} characters"
        )


def outcomes(make: Make, generators: Iterable[random.Random], folder: Path) -> Outcomes:
    """Run a case for each generator; files lie in `folder`."""
    found = Outcomes()
    for number, rng in enumerate(generators):
        run = make(rng, folder)
        if run is None:
            found.counts["no input"] += 1
            continue
        start = time.perf_counter()
        kind, fault = _outcome(run, found)
        found.slowest_s = max(found.slowest_s, time.perf_counter() - start)
        found.counts[kind] += 1
        if fault:
            found.faults.append((number, fault))
    return found


def _outcome(run: Callable[[], object], found: Outcomes) -> tuple[str, str]:
    try:
        with _limited():
            run()
    except UserError as error:
        message = str(error)
        found.longest = max(found.longest, len(message))
        whole = message.strip() and len(message) <= LONGEST + 100 and "Traceback" not in message
        return "refused", "" if whole else f"a message of {len(message)} characters: {message}"
    except Overtime:
        return "too slow", traceback.format_exc()
    except Exception:
        return "raw", traceback.format_exc()
    return "taken", ""


@contextmanager
def _limited() -> Iterator[None]:
    def stop(_number, _frame):
        raise Overtime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
