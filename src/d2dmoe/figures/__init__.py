"""The paper's figures, and our own: one record each says what it is drawn of, and by what.

One module per subject, so that an edit redraws only its own figures.
"""

from dataclasses import dataclass

from d2dmoe.lookup import table_of


@dataclass(frozen=True)
class Figure:
    """A figure, as PNG and PDF, with a caption `report/NAME.rst`. Its functions:

    draw: (inputs by name, arguments by name) -> a matplotlib Figure.
    request: (plan, suite, task, figure) -> `plan.figures.Request`: what it is drawn of.
    check: (task, place, options) -> None; raises ValueError where the options are impossible.
    """

    name: str  # of its files
    draw: str
    request: str
    title: str = ""
    key: str = ""  # in a task's `figures`; empty: of no task
    description: str = ""  # of the key
    options: str | None = None  # the model of the key's value; None: a list of variants
    check: str | None = None
    compares: bool = True  # whether its legend names variants
    main_only: bool = False  # whether suites beside the main one have none
    overall: bool = False  # whether one is drawn of all tasks together, or of none


def _tradeoff(name: str, key: str, title: str, description: str, **others) -> Figure:
    """Cost against quality, a curve for each variant."""
    return Figure(
        name,
        draw="d2dmoe.figures.tradeoff:draw",
        request="d2dmoe.plan.figures:tradeoff",
        title=title,
        key=key,
        description=description,
        **others,
    )


FIGURES = table_of(
    [
        _tradeoff(
            "figure_4",
            "tradeoff",
            "Cost against quality",
            "Figure 4: cost against quality",
            overall=True,
        ),
        _tradeoff(
            "figure_2a",
            "base_sparsity",
            "Sparsity of the base model",
            "Figure 2a: bases of different sparsity",
        ),
        _tradeoff("figure_2c", "selection_rules", "Selection rules", "Figure 2c: selection rules"),
        _tradeoff(
            "figure_9a", "phases", "Each phase added in turn", "Figure 9a: each phase added in turn"
        ),
        _tradeoff("figure_9b", "sparsity_levels", "Sparsity level", "Figure 9b: alphas"),
        _tradeoff("figure_9c", "activations", "ReLU and GELU bases", "Figure 9c: ReLU or GELU"),
        _tradeoff("figure_9d", "expert_sizes", "Size of the experts", "Figure 9d: expert sizes"),
        _tradeoff(
            "figure_6",
            "pruned",
            "Conversion of a pruned model",
            "Figure 6: conversions of pruned models",
        ),
        _tradeoff(
            "figure_7",
            "quantized",
            "Conversion with quantised weights",
            "Figure 7: conversions with quantised weights",
        ),
        _tradeoff(
            "figure_12",
            "distilled",
            "Conversion of a distilled model",
            "Figure 12: conversions of distilled models",
        ),
        _tradeoff(
            "ablation_routers",
            "routers",
            "Regression and classification routers",
            "Ablation: what routers predict; regression first, then classification",
            check="d2dmoe.plan.figures:check_routers",
        ),
        _tradeoff(
            "ablation_clusterings",
            "clusterings",
            "Clustering into experts",
            "Ablation: how neurons are grouped into experts",
        ),
        _tradeoff(
            "ablation_router_widths",
            "router_widths",
            "Width of the routers",
            "Ablation: hidden widths of the routers",
        ),
        _tradeoff(
            "ablation_extended",
            "extended",
            "Our changes, one at a time",
            "What our changes bring, beside a dense model as narrow and the bound of any router",
        ),
        Figure(
            "neighbours_cost",
            draw="d2dmoe.figures.tradeoff:draw",
            request="d2dmoe.plan.figures:apart",
            title="Neighbouring methods",
            key="neighbours",
            description="Methods that are close to D2DMoE, on the same base and axes",
        ),
        Figure(
            "neighbours_parameters",
            draw="d2dmoe.figures.parameters:draw",
            request="d2dmoe.plan.figures:tradeoff",
            title="Parameters that are left",
            key="parameters",
            description="Methods that remove parameters, and what quality they keep at best",
        ),
        Figure(
            "figure_8a",
            draw="d2dmoe.figures.layers:draw",
            request="d2dmoe.plan.figures:layers",
            key="layers",
            description="Figure 8a: base models compared",
            options="d2dmoe.config.figure_options:LayersConfig",
            check="d2dmoe.plan.figures:check_layers",
        ),
        Figure(
            "figure_16",
            draw="d2dmoe.figures.layers:draw",
            request="d2dmoe.plan.figures:layers",
            key="layer_thresholds",
            description="Figure 16: thresholds",
            options="d2dmoe.config.figure_options:LayersConfig",
            check="d2dmoe.plan.figures:check_layers",
        ),
        Figure(
            "figure_2b",
            draw="d2dmoe.figures.activity:draw",
            request="d2dmoe.plan.figures:activity",
            key="active_neurons",
            description="Figure 2b: histograms",
            check="d2dmoe.plan.figures:check_sparsified",
        ),
        Figure(
            "figure_8b",
            draw="d2dmoe.figures.load_maps:draw",
            request="d2dmoe.plan.figures:load_maps",
            key="load_maps",
            description="Figure 8b: load maps of images",
            options="d2dmoe.config.figure_options:LoadMapsConfig",
            check="d2dmoe.plan.figures:check_load_maps",
            compares=False,
            main_only=True,
        ),
        Figure(
            "saved_share",
            draw="d2dmoe.figures.saved_share:draw",
            request="d2dmoe.plan.figures:saved_share",
            overall=True,
        ),
        Figure(
            "differences",
            draw="d2dmoe.figures.differences:draw",
            request="d2dmoe.plan.figures:differences",
            title="Quality at equal cost, paired by sample and seed",
            overall=True,
        ),
        Figure(
            "figure_3",
            draw="d2dmoe.figures.projections:draw",
            request="d2dmoe.plan.figures:nothing",
            overall=True,
        ),
        Figure(
            "figure_10",
            draw="d2dmoe.figures.cost_formula:draw",
            request="d2dmoe.plan.figures:nothing",
            overall=True,
        ),
    ]
)

WALL_CLOCK = Figure(  # of the benchmarks, which have rules of their own
    "wall_clock", draw="d2dmoe.figures.wall_clock:draw", request="d2dmoe.plan.figures:nothing"
)


def by_key() -> dict[str, Figure]:
    """The figures of tasks by their keys in the configuration."""
    return {figure.key: figure for figure in FIGURES.values() if figure.key}
