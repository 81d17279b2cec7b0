"""A Llama's wall-clock time: its prefill, and one step of decoding on a static cache.

Both as servers run them: the whole model is compiled, and on CUDA it runs from a CUDA graph.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
from transformers.models.llama.modeling_llama import LlamaMLP

from d2dmoe.config.benchmarks import LlamaBenchmark
from d2dmoe.ffn import FFN
from d2dmoe.surgery import replace


def llama(
    cfg: LlamaBenchmark, batch: int, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[int], nn.Module], Callable[[nn.Module], Callable[[], object]]]:
    """How to build a model of so many hidden neurons, and how to call it."""
    tokens = torch.randint(cfg.vocab_size, (batch, cfg.context + 1), device=device)

    def build(d_ff: int) -> nn.Module:
        options = LlamaConfig(
            num_hidden_layers=cfg.layers,
            hidden_size=cfg.d_model,
            num_attention_heads=cfg.heads,
            num_key_value_heads=cfg.key_value_heads,
            intermediate_size=d_ff,
            vocab_size=cfg.vocab_size,
            max_position_embeddings=cfg.context + 1,
            tie_word_embeddings=True,
        )
        with device:
            model: Any = LlamaForCausalLM(options)
        model.to(dtype).eval()

        def to_ffn(mlp: LlamaMLP, _: int) -> FFN:
            return FFN(mlp.up_proj, mlp.down_proj, "silu", mlp.gate_proj)

        return replace(model, LlamaMLP, to_ffn)

    def bind(model: nn.Module) -> Callable[[], object]:
        if cfg.phase == "prefill":
            return lambda: model(input_ids=tokens[:, :-1], use_cache=False, logits_to_keep=1)
        return static_step(model, tokens)

    return build, bind


def static_step(model: Any, tokens: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The function that gives the logits [batch, 1, vocabulary] after the last of the tokens
    [batch, tokens]; all others are in a static cache, and each call finds it as the first did."""
    context = tokens.shape[1] - 1
    cache: Any = StaticCache(config=model.config, max_cache_len=context + 1)
    with torch.inference_mode():
        model(input_ids=tokens[:, :-1], past_key_values=cache, logits_to_keep=1)
    position = torch.full((tokens.shape[0], 1), context, device=tokens.device)
    last = tokens[:, -1:].contiguous()
    lengths = [layer.cumulative_length for layer in cache.layers]

    def step() -> torch.Tensor:
        torch._foreach_sub_(lengths, lengths)  # one kernel
        torch._foreach_add_(lengths, context)
        return model(input_ids=last, position_ids=position, past_key_values=cache).logits

    return step


def compile_whole(model: nn.Module) -> nn.Module:
    """Compile a model, in place, as one graph."""
    model.compile(fullgraph=True, dynamic=False)
    return model
