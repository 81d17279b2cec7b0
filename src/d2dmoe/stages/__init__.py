"""The stages that make models of models: one record each, from the dense model on.

A stage gets its parent's model and its own options, and gives a model of which `spec` tells the
parts. What it reads, where its result lies and which edit repeats it follows from its record.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from d2dmoe.lookup import table_of
from d2dmoe.router_kinds import ROUTER_KINDS


@dataclass(frozen=True)
class Stage:
    """A step of a lineage. Its functions:

    make: (parent, options, run) -> the model, its spec, and the history, a row per epoch; `parent`
        is the path of the parent's model, None for the dense model.
    rebuild: (model, spec, **part) -> the model, in place, with the modules that this stage left, of
        which `part` are the values in its spec; None: they stay as they were.
    """

    name: str
    make: str
    options: str  # the model of its options
    rebuild: str | None = None
    trains: bool = True  # false: it has no history and no learning rate, and, unless it
    calibrates: bool = False  # by training samples, no data
    parts: bool = False  # whether new modules alone are trained, on a model that stays
    tuned: bool = False  # whether its learning rate is the variant's: its longest training
    dense: bool = True  # whether FFNs are dense and weights floats afterwards
    method: str = ""  # in the tables, of a compressed model that is a variant of its own
    hint: Mapping[str, str] = field(default_factory=dict)  # options in its folder's name: prefixes
    named: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options that name a record: the table of these records."""


STAGES = table_of(
    [
        Stage(
            "dense",
            make="d2dmoe.stages.dense:train_dense",
            options="d2dmoe.config.stages:DenseConfig",
            hint={"epochs": "e", "lr": "lr"},
        ),
        Stage(
            "finetune",
            make="d2dmoe.stages.dense:finetune",
            options="d2dmoe.config.training:TaskTrainingConfig",
            tuned=True,
            hint={"epochs": "e", "lr": "lr"},
        ),
        Stage(
            "prune",
            make="d2dmoe.stages.prune:prune",
            options="d2dmoe.config.compression:PruneConfig",
            rebuild="d2dmoe.compression.prune:rebuild",
            method="pruned",
            hint={"heads": "heads", "neurons": "neurons"},
        ),
        Stage(
            "distill",
            make="d2dmoe.stages.distill:distill",
            options="d2dmoe.config.compression:DistillConfig",
            method="distilled",
            hint={"imitation": "imitation"},
        ),
        Stage(
            "projections",
            make="d2dmoe.stages.projections:convert_projections",
            options="d2dmoe.config.stages:ProjectionsConfig",
            rebuild="d2dmoe.stages.projections:rebuild",
            parts=True,
            hint={"maps": ""},
        ),
        Stage(
            "sparsify",
            make="d2dmoe.stages.sparsify:sparsify",
            options="d2dmoe.config.stages:SparsifyConfig",
            rebuild="d2dmoe.stages.sparsify:rebuild",
            tuned=True,
            hint={"alpha": "a"},
        ),
        Stage(
            "clustering",
            make="d2dmoe.stages.clustering:cluster",
            options="d2dmoe.config.stages:ClusteringConfig",
            rebuild="d2dmoe.conversion:rebuild_experts",
            trains=False,
            dense=False,
            hint={"method": "", "expert_size": "e"},
        ),
        Stage(
            "router",
            make="d2dmoe.stages.router:train_routers",
            options="d2dmoe.config.stages:RouterConfig",
            rebuild="d2dmoe.conversion:rebuild_routers",
            dense=False,
            parts=True,
            hint={"kind": "", "width": "w"},
            named={"kind": ROUTER_KINDS},
        ),
        Stage(
            "tune",
            make="d2dmoe.stages.tune:tune",
            options="d2dmoe.config.stages:TuneConfig",
            dense=False,
            hint={"epochs": "e", "tau": "t"},
        ),
        Stage(
            "ztw",
            make="d2dmoe.methods.ztw.training:train_ztw",
            options="d2dmoe.methods.ztw.options:ZTWConfig",
            rebuild="d2dmoe.methods.ztw.exits:add_exits",
            tuned=True,
            dense=False,
            parts=True,
            hint={"epochs": "e", "lr": "lr"},
        ),
        Stage(
            "avit",
            make="d2dmoe.methods.avit.training:train_avit",
            options="d2dmoe.methods.avit.options:AViTConfig",
            rebuild="d2dmoe.methods.avit.halting:rebuild",
            tuned=True,
            dense=False,
            hint={"depth": "d"},
        ),
        Stage(
            "thresholds",
            make="d2dmoe.methods.thresholds.hidden:calibrate_hidden",
            options="d2dmoe.methods.thresholds.options:ThresholdsConfig",
            rebuild="d2dmoe.methods.thresholds.layers:rebuild_hidden",
            trains=False,
            calibrates=True,
            dense=False,
            hint={"score": ""},
        ),
        Stage(
            "input_thresholds",
            make="d2dmoe.methods.thresholds.inputs:calibrate_inputs",
            options="d2dmoe.methods.thresholds.options:InputThresholdsConfig",
            rebuild="d2dmoe.methods.thresholds.layers:rebuild_inputs",
            trains=False,
            calibrates=True,
            dense=False,
            hint={"step": "s"},
        ),
        Stage(
            "cmoe",
            make="d2dmoe.methods.cmoe.training:carve",
            options="d2dmoe.methods.cmoe.options:CMoEConfig",
            rebuild="d2dmoe.methods.cmoe.router:rebuild",
            dense=False,
            hint={"shared": "s", "epochs": "e"},
        ),
        Stage(
            "factorllm",
            make="d2dmoe.methods.factorllm.training:train_factorllm",
            options="d2dmoe.methods.factorllm.options:FactorLLMConfig",
            rebuild="d2dmoe.methods.factorllm.layer:rebuild",
            tuned=True,
            dense=False,
            hint={"experts": "n", "active": "k"},
        ),
        Stage(
            "seer",
            make="d2dmoe.methods.seer.training:prune_experts",
            options="d2dmoe.methods.seer.options:SEERConfig",
            rebuild="d2dmoe.methods.seer.pruning:rebuild",
            dense=False,
            hint={"scope": "", "removed": "r"},
        ),
        Stage(
            "quantize",
            make="d2dmoe.stages.quantize:quantize",
            options="d2dmoe.config.compression:QuantizeConfig",
            rebuild="d2dmoe.compression.quantize:rebuild",
            trains=False,
            dense=False,
            hint={"weights": ""},
        ),
    ]
)
