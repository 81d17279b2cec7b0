"""Seeds derived from other numbers."""

import numpy as np


def step_seed(*parts: int) -> int:
    """A seed that mixes its parts, so that neighbouring steps or layers draw unrelated numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
