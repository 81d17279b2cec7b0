"""Arguments and options that commands share: one name, one help text and one default for each."""

from pathlib import Path
from typing import Annotated

import typer

DATA, TRAINING, RESULT = "Data", "Training", "Result and device"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name of the Hugging Face hub (NAME or NAME@REVISION), a local folder that "
        "transformers, timm or `d2dmoe convert` wrote, timm:NAME or torchvision:NAME.",
        show_default=False,
    ),
]
Folder = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER", help="A folder that `d2dmoe convert` wrote.", show_default=False
    ),
]
Data = Annotated[
    Path,
    typer.Option(
        help="Texts: a csv, jsonl, json, parquet or txt file, or a folder with train.csv "
        "and, if there are such, validation.csv and test.csv. Images: a folder of images, of a "
        "folder for each class, or of train/, validation/ and test/ with these.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
OptionalData = Annotated[
    Path | None,
    typer.Option(
        help="Texts or images, as for convert: adds which share of the neurons fires on them.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
TextColumn = Annotated[
    str, typer.Option(help="The column that holds the texts.", rich_help_panel=DATA)
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        help="The column of the classes or, for an encoder–decoder, of the texts to be written. "
        "Without it a classifier is held to the decisions that it made before its conversion. "
        "Images have the classes of their folders.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Use at most so many samples of a split: less time, wider intervals.",
        rich_help_panel=DATA,
        show_default="all",
    ),
]
MaxLength = Annotated[
    int,
    typer.Option(
        min=2,
        help="Cut texts off after so many tokens, or after as many as the model takes. Attention "
        "costs the square of it, and 128 tokens hold most paragraphs.",
        rich_help_panel=DATA,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=1,
        help="Samples at a time: 32 fill a CPU's cores; more need more memory.",
        rich_help_panel=DATA,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        help="Of the split of the data and of all that is random. Use the same in all commands, or "
        "test samples are trained on.",
        rich_help_panel=DATA,
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The model as it was before the conversion, to compare with.",
        show_default="the same model with every expert on",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, cuda:1, mps; auto takes a GPU where there is one.",
        rich_help_panel=RESULT,
    ),
]
Yes = Annotated[
    bool,
    typer.Option(
        "--yes", "-y", help="Download more than 1 GB without asking.", rich_help_panel=RESULT
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace a model that is there.", rich_help_panel=RESULT),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object, and nothing else, to stdout.", rich_help_panel=RESULT
    ),
]

TEXT, LENGTH, BATCH, SEED, FEW, AUTO = "text", 128, 32, 0, 512, "auto"
