"""A method, a selection rule, a figure, an architecture and an activation of a user's own.

A configuration that lists this module under `extensions` has them; nothing in src/ knows of them.
Records name their code, so that this module imports neither torch nor the project's options.
"""

from d2dmoe.activations import ACTIVATIONS, Activation
from d2dmoe.figures import FIGURES, Figure
from d2dmoe.methods import EVALUATIONS, METHODS, Evaluation, Knob, Method
from d2dmoe.models import ARCHITECTURES, Architecture
from d2dmoe.selection_rules import RULES, Rule

RULES["above_mean"] = Rule(
    "above_mean",
    select="toy_rule:above_mean",
    symbol="m",
    whole=False,
    adaptive=True,
    fused=False,
    description="Multiples m of a token's mean score",
)

METHODS["toy"] = Method(
    "toy",
    role="baseline",
    plan="toy_method",
    options="toy_method:ToyVariant",
    knob=Knob("share", "toy: share of an FFN's hidden neurons that is removed"),
    rival="small neurons removed",
)

EVALUATIONS["evaluate_toy"] = Evaluation(
    "evaluate_toy", "toy_evaluation:evaluate_toy", knobs=("share",)
)

FIGURES["figure_toy"] = Figure(
    "figure_toy",
    draw="d2dmoe.figures.tradeoff:draw",
    request="d2dmoe.plan.figures:tradeoff",
    title="Experts above the mean",
    key="toy",
    description="Experts above the mean beside neurons removed",
)

ARCHITECTURES["gated_vit"] = Architecture(
    "gated_vit", module="toy_vit", options="toy_options:GatedViTConfig", data="images"
)

ACTIVATIONS["relu6"] = Activation(
    "relu6",
    torch="toy_activation:relu6",
    triton="toy_activation:relu6_of_block",
    threshold=0.0,
    exact=True,
)
