"""Sparsity enforcement and routers with accelerate, on one device or many, in any precision.

accelerate launch examples/with_accelerate.py
"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from d2dmoe import RouterLoss, SparsityPenalty, add_routers, convert

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=32))
text = torch.arange(3200) % 29 + 2
loader = DataLoader([{"input_ids": x, "labels": x} for x in text.view(-1, 16)], batch_size=16)

# 1. Sparse. The penalty comes before the optimizer and before the model is wrapped.
penalty = SparsityPenalty(model).attach()
accelerator = Accelerator(gradient_accumulation_steps=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
wrapped, optimizer, batches = accelerator.prepare(model, optimizer, loader)
for _ in range(4):
    for batch in batches:
        with accelerator.accumulate(wrapped):
            task = wrapped(**batch).loss
            accelerator.backward(task + 0.005 * penalty())
            accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
            optimizer.step(), optimizer.zero_grad()
accelerator.print(f"sparse: loss {task.item():.3f}, penalty {penalty().item():.1f} of 128")
penalty.close()

# 2. Experts and routers; only the routers are trained.
model = convert(accelerator.unwrap_model(wrapped), expert_size=8).requires_grad_(False)
add_routers(model, "regression", width=32)
router_loss = RouterLoss(model).attach()
routers = [p for p in model.parameters() if p.requires_grad]
accelerator.free_memory()
wrapped, optimizer = accelerator.prepare(model.eval(), torch.optim.AdamW(routers, lr=5e-3))
for _ in range(3):
    for batch in batches:
        wrapped(**batch)
        loss = router_loss()
        accelerator.backward(loss)
        optimizer.step(), optimizer.zero_grad()
accelerator.print(f"routers: loss {loss.item():.4f}")
router_loss.close()
