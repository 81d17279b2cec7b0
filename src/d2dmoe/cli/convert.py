"""`d2dmoe convert`: a dense model in, a folder with experts and trained routers out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from d2dmoe.cli import options as of

PANEL = "Convert"


def _option(text: str, **more):
    return typer.Option(help=text, rich_help_panel=of.TRAINING, **more)


NewFolder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Where the new model goes.", show_default=False)
]
ExpertSize = Annotated[
    int | None,
    _option(
        "Neurons of an expert. Small ones save more FLOPs, large ones more time.",
        min=1,
        show_default="by the size of the blocks",
    ),
]
Attention = Annotated[
    list[str] | None,
    _option(
        "A projection of the attention that becomes experts too: q, k, v or o. Once for each.",
        show_default="none",
    ),
]
AttentionSteps = Annotated[
    int, _option("Training steps in which small MLPs learn to imitate such projections.", min=1)
]
SparsifySteps = Annotated[
    int,
    _option(
        "Training steps after which fewer neurons fire, with ReLU. They change the weights; "
        "with 0 the new model is the old one as long as every expert is on.",
        min=0,
    ),
]
Alpha = Annotated[
    float, _option("Weight of the penalty on neurons that fire, while sparsifying.", min=0)
]
LearningRate = Annotated[float, _option("Of the steps that sparsify, as for fine-tuning.", min=0)]
RouterSteps = Annotated[
    int,
    _option(
        "Training steps of the routers, which learn how large each expert's output will be. "
        "The rest of the model stays as it is.",
        min=1,
    ),
]
RouterLearningRate = Annotated[float, _option("Of the routers.", min=0)]
RouterWidth = Annotated[
    int, _option("Hidden neurons of a router: more predict better, and cost more.", min=1)
]


def run(
    model: of.Model,
    folder: NewFolder,
    data: of.Data,
    text_column: of.TextColumn = of.TEXT,
    label_column: of.LabelColumn = None,
    samples: of.Samples = None,
    max_length: of.MaxLength = of.LENGTH,
    batch_size: of.BatchSize = of.BATCH,
    seed: of.Seed = of.SEED,
    expert_size: ExpertSize = None,
    attention: Attention = None,
    attention_steps: AttentionSteps = 500,
    sparsify_steps: SparsifySteps = 0,
    alpha: Alpha = 1e-3,
    learning_rate: LearningRate = 5e-5,
    router_steps: RouterSteps = 500,
    router_learning_rate: RouterLearningRate = 1e-3,
    router_width: RouterWidth = 128,
    device: of.Device = of.AUTO,
    yes: of.Yes = False,
    force: of.Force = False,
    as_json: of.AsJson = False,
) -> None:
    """Split a model's feed-forward blocks into experts, and train a router for each block.

    The new folder is of the form that the model's library has, with tokenizer or image processor;
    after `import d2dmoe` its from_pretrained loads it. Every expert is on at first: `d2dmoe
    calibrate` chooses how many run. Routers learn from the model itself and need no labels.

    Examples:

    - `d2dmoe convert openai-community/gpt2 sparse-gpt2 --data my.txt`
    - `d2dmoe convert my-bert/ sparse-bert --data my.csv --label-column topic --sparsify-steps 300`
    - `d2dmoe convert timm:vit_small_patch16_224 sparse-vit --data photos/ --samples 5000`
    """
    from d2dmoe.api.convert import check_roles
    from d2dmoe.cli.folders import check_free, whole
    from d2dmoe.cli.models import save
    from d2dmoe.cli.opened import Loading
    from d2dmoe.cli.output import report
    from d2dmoe.cli.recipe import Recipe
    from d2dmoe.cli.samples import Data
    from d2dmoe.cli.tasks import source_of

    recipe = Recipe(
        expert_size,
        tuple(attention or ()),
        attention_steps,
        sparsify_steps,
        alpha,
        learning_rate,
        router_steps,
        router_learning_rate,
        router_width,
        seed,
    )
    check_roles(recipe.attention)
    check_free(folder, force)
    rows = Data(data, text_column, label_column, samples, seed)
    rows.split("train")  # so that faults of the data are said before a model is fetched
    source = source_of(model, rows, batch_size, Loading(device, max_length, yes))
    history = recipe.carry_out(source)
    with whole(folder) as new:
        save(source.opened, new)
    result = {"model": model, "folder": folder, "layers": _layers(source.opened.model)}
    report(result | {"history": history}, _text(result), as_json)


def _layers(model: Any) -> list[dict[str, Any]]:
    """The experts of each layer."""
    from d2dmoe.moe import MoE
    from d2dmoe.surgery import find

    return [
        {"layer": name, "experts": moe.num_experts, "neurons": moe.expert_size}
        | {"router_width": moe.router.width if moe.router else None}
        for name, moe in find(model, MoE).items()
    ]


def _text(result: dict[str, Any]) -> str:
    from d2dmoe.cli.output import table

    columns = ("layer", "experts", "neurons", "router_width")
    rows = [[str(layer[column]) for column in columns] for layer in result["layers"]]
    headers = ("layer", "experts", "neurons of one", "router's neurons")
    return (
        f"{table(headers, rows)}\n\nsaved in {result['folder']}, with every expert on. To choose "
        f"how many run: d2dmoe calibrate {result['folder']} --data … --flops-ratio 0.7"
    )
