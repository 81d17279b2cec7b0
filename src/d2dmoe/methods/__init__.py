"""The methods that are compared: one record each, and how their operating points are measured."""

from collections.abc import Collection
from dataclasses import dataclass

from d2dmoe.lookup import look_up, table_of
from d2dmoe.selection_rules import RULES, Rule


@dataclass(frozen=True)
class Evaluation:
    """How all operating points of a model are measured, by a rule of the evaluation's name.

    measure: (model's path, knob, options, run) -> `evaluation.Measured`, of one split.
    choose: of the same -> what `measure` gets as the option `chosen`, once for all splits.
    """

    name: str
    measure: str
    knobs: Collection[str]  # what its operating points differ in; names its tables
    layers: bool = False  # whether it has rows of layers
    rule: str = ""  # the selection rule of its models, where its knobs are none
    reads: tuple[str, ...] = ()  # splits that it reads beside the one that is measured
    choose: str | None = None


@dataclass(frozen=True)
class Knob:
    """What a method's operating points differ in, where no selection rule is: the values stand in
    the configuration under `select`."""

    name: str
    description: str
    whole: bool = False  # values are counts; else shares in [0, 1]


CONVERSION_KNOBS = table_of(
    [
        Knob("budget", "Shares of the dense FLOPs; τ is chosen for each on validation samples"),
        Knob("layer_budget", "The same, with a τ for each layer"),
        Knob("true_norms", "τ on the experts' true norms: the bound of any router"),
    ]
)
"""What a conversion's operating points may differ in, where no rule's values do."""


@dataclass(frozen=True)
class Method:
    """A way to make a model cheaper, or a model that the others are compared with.

    Its module `plan` has
        chains(task, variant) -> the stages of each of its trainings, with their options;
        knob(task, variant) -> what its operating points differ in;
        check(task, name, variant) -> None; raises ValueError where the variant is impossible.
    """

    name: str
    role: str  # ours, extension (of ours), baseline (of the paper), neighbour, control, reference
    plan: str = ""  # empty: no variant has the method
    options: str | None = None  # the model of a variant's options
    section: str | None = None  # the model of the task's section that is called like the method
    knob: Knob | None = None
    experts: bool = False  # whether its models have experts
    training_free: bool = False  # whether its models have all training from the one they begin with
    rival: str = ""  # of a baseline: its name, and what it is made for


DENSE = Evaluation("evaluate_dense", "d2dmoe.stages.evaluate:evaluate_dense", knobs=("dense",))
ROUTED = Evaluation("evaluate", "d2dmoe.stages.evaluate:evaluate", knobs=RULES, layers=True)
EXITS = Evaluation(
    "evaluate_exits", "d2dmoe.methods.early_exits.evaluation:evaluate_exits", knobs=("confidence",)
)
HALTING = Evaluation(
    "evaluate_halting",
    "d2dmoe.methods.avit.evaluation:evaluate_halting",
    knobs=("depth",),
    layers=True,
)

DENSITY = Evaluation(
    "evaluate_density",
    "d2dmoe.methods.thresholds.evaluation:evaluate_density",
    knobs=("density",),
    layers=True,
)

CALIBRATED = Evaluation(
    "evaluate_budgets",
    "d2dmoe.stages.calibrate:evaluate_budgets",
    knobs=("budget", "layer_budget"),
    layers=True,
    rule="dynamic_k",
    reads=("validation",),
    choose="d2dmoe.stages.calibrate:choose",
)

TRUE_NORMS = Evaluation(
    "evaluate_true_norms",
    "d2dmoe.stages.evaluate:evaluate_true_norms",
    knobs=("true_norms",),
    layers=True,
    rule="dynamic_k",
)

FACTORS = Evaluation(
    "evaluate_factors",
    "d2dmoe.methods.factorllm.evaluation:evaluate_factors",
    knobs=("factors",),
    layers=True,
    rule="top_k",
)

ACTIVE = Evaluation(
    "evaluate_active",
    "d2dmoe.methods.seer.evaluation:evaluate_active",
    knobs=("active",),
    layers=True,
    rule="top_k",
)

GROUPED = Evaluation(
    "evaluate_grouped",
    "d2dmoe.methods.sam.evaluation:evaluate_grouped",
    knobs=("grouped",),
    layers=True,
    rule="top_k",
)

EVALUATIONS = table_of(
    [DENSE, ROUTED, EXITS, HALTING, DENSITY, CALIBRATED, TRUE_NORMS, FACTORS, ACTIVE, GROUPED]
)

CONFIDENCE = Knob("confidence", "ZTW, Dyn-Adapter: least probability of the class to exit")
TARGET_DENSITY = Knob("density", "CATS, CHESS, TEAL: target share of channels, or inputs, that run")


def _thresholds(name: str, options: str) -> Method:
    """A method that skips what is below thresholds."""
    return Method(
        name,
        role="neighbour",
        plan="d2dmoe.methods.thresholds.plan",
        options=f"d2dmoe.methods.thresholds.options:{options}",
        knob=TARGET_DENSITY,
        training_free=True,
    )


METHODS = table_of(
    [
        Method("dense", role="reference"),
        Method("pruned", role="reference"),
        Method("distilled", role="reference"),
        Method(
            "quantized",
            role="reference",
            plan="d2dmoe.methods.quantized.plan",
            options="d2dmoe.methods.quantized.options:QuantizedVariant",
            training_free=True,
        ),
        Method(
            "d2dmoe",
            role="ours",
            plan="d2dmoe.methods.conversion.plan",
            options="d2dmoe.methods.conversion.options:D2DMoEVariant",
            experts=True,
        ),
        Method(
            "extended",
            role="extension",
            plan="d2dmoe.methods.conversion.plan",
            options="d2dmoe.methods.conversion.options:ExtendedVariant",
            experts=True,
        ),
        Method(
            "moefication",
            role="baseline",
            plan="d2dmoe.methods.conversion.plan",
            options="d2dmoe.methods.conversion.options:MoEficationVariant",
            experts=True,
            rival="MoEfication",
        ),
        Method(
            "ztw",
            role="baseline",
            plan="d2dmoe.methods.ztw.plan",
            options="d2dmoe.methods.ztw.options:ZTWVariant",
            section="d2dmoe.methods.ztw.options:ZTWConfig",
            knob=CONFIDENCE,
            rival="ZTW (for classifiers)",
        ),
        Method(
            "narrow",
            role="control",
            plan="d2dmoe.methods.narrow.plan",
            options="d2dmoe.methods.narrow.options:NarrowVariant",
        ),
        Method(
            "avit",
            role="baseline",
            plan="d2dmoe.methods.avit.plan",
            options="d2dmoe.methods.avit.options:AViTVariant",
            section="d2dmoe.methods.avit.options:AViTTrainingConfig",
            rival="A-ViT (for images)",
        ),
        _thresholds("cats", "CATSVariant"),
        _thresholds("chess", "CHESSVariant"),
        _thresholds("teal", "TEALVariant"),
        Method(
            "cmoe",
            role="neighbour",
            plan="d2dmoe.methods.cmoe.plan",
            options="d2dmoe.methods.cmoe.options:CMoEVariant",
            section="d2dmoe.methods.cmoe.options:CMoESection",
            experts=True,
            training_free=True,
        ),
        Method(
            "cmoe_tuned",
            role="neighbour",
            plan="d2dmoe.methods.cmoe.plan",
            options="d2dmoe.methods.cmoe.options:TunedCMoEVariant",
            experts=True,
        ),
        Method(
            "factorllm",
            role="neighbour",
            plan="d2dmoe.methods.factorllm.plan",
            options="d2dmoe.methods.factorllm.options:FactorLLMVariant",
            section="d2dmoe.methods.factorllm.options:FactorLLMSection",
            experts=True,
        ),
        Method(
            "dyn_adapter",
            role="neighbour",
            plan="d2dmoe.methods.dyn_adapter.plan",
            options="d2dmoe.methods.dyn_adapter.options:DynAdapterVariant",
            section="d2dmoe.methods.dyn_adapter.options:DynAdapterConfig",
            knob=CONFIDENCE,
        ),
        Method(
            "seer",
            role="neighbour",
            plan="d2dmoe.methods.seer.plan",
            options="d2dmoe.methods.seer.options:SEERVariant",
            section="d2dmoe.methods.seer.options:SEERSection",
            knob=Knob("active", "SEER-MoE: shares of the experts left that a token runs"),
            experts=True,
        ),
        Method(
            "sam",
            role="neighbour",
            plan="d2dmoe.methods.sam.plan",
            options="d2dmoe.methods.sam.options:SAMVariant",
            section="d2dmoe.methods.sam.options:SAMSection",
            knob=Knob("grouped", "SAM: shares of its group's experts that a token runs"),
            experts=True,
        ),
        Method(
            "ldpruner",
            role="neighbour",
            plan="d2dmoe.methods.ldpruner.plan",
            options="d2dmoe.methods.ldpruner.options:LDPrunerVariant",
            section="d2dmoe.methods.ldpruner.options:LDPrunerSection",
        ),
        Method(
            "adapmoe",
            role="neighbour",
            plan="d2dmoe.methods.adapmoe.plan",
            options="d2dmoe.methods.adapmoe.options:AdapMoEVariant",
            experts=True,
            training_free=True,
        ),
    ]
)


def rule_of(knob: str) -> Rule | None:
    """The selection rule of the models whose operating points differ in a knob; None: they have no
    experts."""
    return RULES.get(knob) or RULES.get(evaluation_of(knob).rule)


def evaluation_of(knob: str) -> Evaluation:
    """The evaluation whose operating points differ in a knob.

    Raises:
        UnknownName: no evaluation knows the knob.
    """
    known = {name: how for how in EVALUATIONS.values() for name in how.knobs}
    return look_up(known, knob, "knob")
