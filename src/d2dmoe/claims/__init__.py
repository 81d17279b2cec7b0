"""The paper's claims (C), and those of neighbouring methods' papers (N): one record each. Tables
decide."""

from dataclasses import dataclass

from d2dmoe.lookup import table_of


@dataclass(frozen=True)
class Claim:
    """What a paper says, and what decides it: test(evidence) -> findings."""

    name: str
    paper_says: str
    test: str | None = None  # None: no suite of variants tests it
    figures: tuple[str, ...] = ()  # keys of the figures whose variants it compares
    untested: str = "this pipeline has no experiment for it yet"  # why, where nothing tests it


CLAIMS = table_of(
    [
        Claim(
            "C1",
            "up to 60 % lower inference cost with no significant loss (>= 99 % of dense quality)",
            test="d2dmoe.claims.savings:inference_cost",
            figures=("tradeoff",),
        ),
        Claim(
            "C2",
            "better than MoEfication, ZTW and A-ViT across budgets",
            test="d2dmoe.claims.comparisons:baselines",
            figures=("tradeoff",),
        ),
        Claim(
            "C3",
            "a sparser base model gives a better conversion, at any budget",
            test="d2dmoe.claims.comparisons:sparser_bases",
            figures=("sparsity_levels", "base_sparsity"),
        ),
        Claim(
            "C4",
            "active neurons vary much between tokens, and dynamic-k beats static top-k",
            test="d2dmoe.claims.tokens:dynamic_selection",
            figures=("selection_rules",),
        ),
        Claim(
            "C5",
            "regressing output norms beats MoEfication's classification router",
            test="d2dmoe.claims.comparisons:router_targets",
            figures=("routers",),
        ),
        Claim(
            "C6",
            "converting attention projections saves more on top",
            test="d2dmoe.claims.savings:attention_projections",
            figures=("tradeoff", "phases"),
        ),
        Claim(
            "C7",
            "compute goes to the object in an image, and differs by layer",
            test="d2dmoe.claims.tokens:where_compute_goes",
            figures=("load_maps",),
        ),
        Claim(
            "C8",
            "smaller experts are better per FLOP; ReLU and GELU bases both work",
            test="d2dmoe.claims.comparisons:expert_sizes",
            figures=("expert_sizes",),
        ),
        Claim(
            "C9",
            "a layer's wall-clock time falls linearly with its executed experts",
            untested="snakemake benchmarks tests it",
        ),
        Claim(
            "C10",
            "it combines with pruning, quantisation and distillation",
            test="d2dmoe.claims.savings:compressed_models",
            figures=("pruned", "quantized", "distilled"),
        ),
        Claim(
            "C11",
            "Gemma-2B keeps most of its BoolQ score down to 70 % of the compute",
        ),
        Claim(
            "N1",
            "CHESS keeps more quality than CATS at equal density",
            test="d2dmoe.claims.neighbours:channel_thresholds",
            figures=("neighbours",),
        ),
        Claim(
            "N2",
            "TEAL, which skips inputs, is better than CATS, which skips outputs, at equal sparsity",
            test="d2dmoe.claims.neighbours:input_thresholds",
            figures=("neighbours",),
        ),
        Claim(
            "N3",
            "TEAL skips 40-50 % of the whole model with minimal degradation, without training",
            test="d2dmoe.claims.neighbours:whole_model_sparsity",
            figures=("neighbours",),
        ),
        Claim(
            "N4",
            "CATS keeps about 99 % at 50 % of the FFNs' channels, without fine-tuning",
            test="d2dmoe.claims.neighbours:half_of_the_channels",
            figures=("neighbours",),
        ),
        Claim(
            "N5",
            "CMoE activates 75 % of the neurons without loss, without training",
            test="d2dmoe.claims.neighbours:most_of_the_neurons",
            figures=("neighbours",),
        ),
        Claim(
            "N6",
            "CMoE makes experts without the training that conversions took before (MoEfication)",
            test="d2dmoe.claims.neighbours:experts_without_training",
            figures=("neighbours",),
        ),
        Claim(
            "N7",
            "FactorLLM keeps up to 85 % of the performance, and is over 30 % faster",
            test="d2dmoe.claims.neighbours:few_experts",
            figures=("neighbours",),
        ),
        Claim(
            "N8",
            "SEER-MoE removes a quarter of the experts with a minimal loss of accuracy",
            test="d2dmoe.claims.neighbours:fewer_experts",
            figures=("neighbours",),
        ),
        Claim(
            "N9",
            "Dyn-Adapter halves the FLOPs at the same accuracy or a higher one",
            test="d2dmoe.claims.neighbours:adapters_and_exits",
            figures=("neighbours",),
        ),
        Claim(
            "N10",
            "D2DMoE outperforms existing approaches: of these, those that train nothing",
            test="d2dmoe.claims.neighbours:existing_approaches",
            figures=("neighbours",),
        ),
        Claim(
            "N11",
            "AdapMoE's gating executes a quarter fewer experts than top-k at no loss of accuracy",
            test="d2dmoe.claims.neighbours:fewer_than_top_k",
            figures=("neighbours",),
        ),
        Claim(
            "N12",
            "SAM gains by several experts of one device, without communication between devices",
            test="d2dmoe.claims.neighbours:experts_of_one_group",
            figures=("neighbours",),
        ),
        Claim(
            "N13",
            "LD-Pruner takes 34.9 % less time for inference at no loss of quality",
            test="d2dmoe.claims.neighbours:removed_operators",
            figures=("neighbours",),
        ),
    ]
)
