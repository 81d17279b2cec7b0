"""A share of the damaged input; `uv run python tests/fuzz` makes all of it."""

from pathlib import Path

import checkpoints
import configurations
import pytest
import results
from mutations import seeds
from outcomes import outcomes

SHARE = {configurations: 40, checkpoints: 30, results: 25}


LATER = {checkpoints: pytest.mark.workflow, results: pytest.mark.workflow}


@pytest.mark.parametrize(
    "module",
    [pytest.param(module, marks=LATER.get(module, ()), id=module.__name__) for module in SHARE],
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_input_is_taken_or_refused_in_one_message_in_time(module, tmp_path: Path):
    found = outcomes(module.case, seeds(SHARE[module], 2), tmp_path)
    assert not found.faults, "\n".join(f"case {number}: {fault}" for number, fault in found.faults)
    assert found.counts["refused"] > SHARE[module] / 4 and found.counts["taken"]
