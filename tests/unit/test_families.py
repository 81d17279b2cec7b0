"""Any Transformer converts: families of models by their own libraries' classes, each found by one
call of `convert`, against the original in all that a user does with it."""

from functools import cache

import pytest
from families import FAMILIES, REFUSED
from family_checks import COLUMNS, TRACES, Subject, reload_all, save_all
from small import others_later

from d2dmoe.errors import UserError

TESTED = (  # of each form one or two; tools/families.py makes the table of all
    "ViT (timm)",
    "Swin (timm)",
    "ViT (torchvision)",
    "ViT",
    "DINOv2, SwiGLU",
    "PVT",
    "BERT",
    "DistilBERT",
    "ALBERT",
    "DeBERTa-v2",
    "ModernBERT",
    "XLNet",
    "GPT-2",
    "GPT-NeoX",
    "OPT",
    "BLOOM",
    "Llama",
    "Gemma 3",
    "Phi-3",
    "Nemotron",
    "T5",
    "Flan-T5",
    "Whisper",
    "nn.TransformerEncoder",
    "a GPT in 40 lines",
)
FIRST = ("ViT (timm)", "DINOv2, SwiGLU", "GPT-2", "Llama", "a GPT in 40 lines")
TRACED = ("DINOv2, SwiGLU", "ModernBERT", "GPT-2", "BLOOM", "Gemma 3", "T5")  # a second or two each


@cache
def subject(name: str) -> Subject:
    return Subject(FAMILIES[name])


@pytest.mark.parametrize("column", [column for column in COLUMNS if column not in TRACES])
@pytest.mark.parametrize("name", others_later(TESTED, FIRST))
def test_a_family(name, column):
    COLUMNS[column](subject(name))


@pytest.mark.workflow
@pytest.mark.parametrize("column", TRACES)
@pytest.mark.parametrize("name", TRACED)
def test_a_traced_family(name, column):
    TRACES[column](subject(name))


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("families")
    save_all(map(subject, TESTED), folder)
    return reload_all(folder)


@pytest.mark.workflow
@pytest.mark.parametrize("name", TESTED)
def test_a_new_process_loads_the_same_model(name, reloaded):
    assert reloaded[name] == "0.0"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused(name):
    family, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason):
        family.convert(family.build())
