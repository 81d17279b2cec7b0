"""Any Transformer converts: families of models by their own libraries' classes, each found by one
call of `convert`, against the original in all that a user does with it."""

from functools import cache

import pytest
from families import FAMILIES, REFUSED
from family_checks import COLUMNS, Subject, reload_all, save_all

from d2dmoe.errors import UserError


@cache
def subject(name: str) -> Subject:
    return Subject(FAMILIES[name])


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name, column):
    COLUMNS[column](subject(name))


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("families")
    save_all(map(subject, FAMILIES), folder)
    return reload_all(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_process_loads_the_same_model(name, reloaded):
    assert reloaded[name] == "0.0"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused(name):
    family, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason):
        family.convert(family.build())
