"""The rules that select a token's experts: one record each says all that is known of it."""

from dataclasses import dataclass

from d2dmoe.lookup import table_of


@dataclass(frozen=True)
class Rule:
    """A rule and the meaning of its values, the operating points."""

    name: str
    select: str  # (scores [..., num_experts], value) -> boolean mask of the same shape
    symbol: str  # of a value
    whole: bool  # values count experts; else they are shares in [0, 1]
    adaptive: bool  # tokens run different numbers of experts
    fused: bool  # the GPU kernels select by it themselves
    description: str  # of a list of values
    usual: tuple[float, ...] = ()  # values where a task gives none; counts depend on the experts
    all_at: float | None = None  # the value that runs every expert, whatever the scores
    sensitive: bool = False  # its function takes a layer's sensitivity too


RULES = table_of(
    [
        Rule(
            "dynamic_k",
            select="d2dmoe.selection:dynamic_k",
            symbol="τ",
            whole=False,
            adaptive=True,
            fused=True,
            description="Thresholds tau in [0, 1]",
            usual=(0.0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0),
            all_at=0.0,
        ),
        Rule(
            "top_k",
            select="d2dmoe.selection:top_k",
            symbol="k",
            whole=True,
            adaptive=False,
            fused=False,
            description="Experts a token",
        ),
        Rule(
            "coverage",
            select="d2dmoe.selection:coverage",
            symbol="p",
            whole=False,
            adaptive=True,
            fused=False,
            description="Shares p of the predicted norms",
            usual=(0.3, 0.6, 0.8, 0.95, 1.0),
        ),
        Rule(
            "sensitivity",  # AdapMoE's (arXiv 2408.10284)
            select="d2dmoe.selection:by_sensitivity",
            symbol="T",
            whole=False,
            adaptive=True,
            fused=False,
            description="Tolerances T, relative to the most sensitive layer",
            usual=(0.0, 0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
            all_at=0.0,
            sensitive=True,
        ),
    ]
)
