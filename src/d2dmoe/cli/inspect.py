"""`d2dmoe inspect`: what of a model can be converted."""

from d2dmoe.cli import options as of

PANEL = "Look"


def run(
    model: of.Model,
    data: of.OptionalData = None,
    text_column: of.TextColumn = of.TEXT,
    samples: of.Samples = of.FEW,
    max_length: of.MaxLength = of.LENGTH,
    batch_size: of.BatchSize = of.BATCH,
    seed: of.Seed = of.SEED,
    device: of.Device = of.AUTO,
    yes: of.Yes = False,
    as_json: of.AsJson = False,
) -> None:
    """Find the feed-forward blocks and projections of a model, and their share of its cost.

    Nothing is changed or written. What cannot be converted is listed with the reason. With --data
    it also says which share of the neurons fires: the fewer, the more there is to save.

    Examples:

    - `d2dmoe inspect openai-community/gpt2`
    - `d2dmoe inspect my-model/ --data my.csv --text-column review`
    - `d2dmoe inspect timm:vit_small_patch16_224 --data photos/ --json`
    """
    import d2dmoe
    from d2dmoe.cli.models import open_model
    from d2dmoe.cli.opened import Loading
    from d2dmoe.cli.output import Shown, report
    from d2dmoe.cli.samples import Data
    from d2dmoe.cli.tasks import Source

    opened = open_model(model, Loading(device, max_length, yes))
    batches = None
    if data is not None:
        rows = Data(data, text_column, samples=samples, seed=seed)
        source = Source(opened, opened.model, rows, batch_size)
        batches = Shown([inputs for _, inputs in source.encoded("train")], "inspecting")
    found = d2dmoe.inspect(opened.model, batches)
    about = found.to_dict()
    report(about | {"class": about["model"], "model": model}, f"{model}\n\n{found}", as_json)
