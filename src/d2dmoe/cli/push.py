"""`d2dmoe push`: a converted model's folder to the Hugging Face hub."""

from typing import Annotated

import typer

from d2dmoe.cli import options as of

PANEL = "Share"


def run(
    folder: of.Folder,
    repository: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Of the hub: user/model.", show_default=False),
    ],
    public: Annotated[
        bool,
        typer.Option(
            "--public",
            help="Let everybody see it, if it is new. The licence of the model that it was made of "
            "binds it.",
        ),
    ] = False,
    message: Annotated[
        str, typer.Option(help="What the hub's history says.")
    ] = "A model converted by d2dmoe",
    as_json: of.AsJson = False,
) -> None:
    """Upload a converted model as it is in its folder: weights, operating point, tokenizer, card.

    The hub must know you: `hf auth login`, or a token in HF_TOKEN. Read the folder's README.md,
    which becomes the model's page, before you publish.

    Examples:

    - `d2dmoe push sparse my-name/sparse-minilm`
    - `d2dmoe push sparse my-name/sparse-minilm --message "Calibrated to 0.6 of the FLOPs"`
    """
    from huggingface_hub import HfApi

    from d2dmoe.cli.models import check_converted
    from d2dmoe.cli.output import report, say
    from d2dmoe.errors import UserError

    check_converted(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    say(f"uploading {size / 1e6:.1f} MB")
    api = HfApi()
    try:
        name = api.create_repo(repository, private=not public, exist_ok=True).repo_id
        commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:  # the client raises a dozen unrelated types
        cause = (str(error).strip().splitlines() or ["no message"])[0]
        raise UserError(
            f"{repository}: the hub did not take it ({type(error).__name__}: {cause}). Check the "
            "name (user/model), the network, and that `hf auth whoami` knows you."
        ) from error
    result = {"folder": folder, "repository": name, "bytes": size, "commit": commit.oid}
    report(result, f"https://huggingface.co/{name}", as_json)
