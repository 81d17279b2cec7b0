"""Sparsity enforcement and routers with the Trainer of transformers.

python examples/with_trainer.py
"""

import tempfile

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from d2dmoe import RouterLoss, SparsityPenalty, add_routers, convert


class SparseTrainer(Trainer):
    """L = L_task + α · L_s."""

    loss_is_scaled_for_ga = False  # both are means over a batch

    def __init__(self, *args, penalty: SparsityPenalty, alpha: float, **options):
        super().__init__(*args, **options)
        self.penalty, self.alpha = penalty, alpha

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        task, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = task + self.alpha * self.penalty() if model.training else task
        return (loss, outputs) if return_outputs else loss


class RouterTrainer(Trainer):
    """The routers' loss alone."""

    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (router_loss(), outputs) if return_outputs else router_loss()


torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 32}
model = BertForSequenceClassification(BertConfig(**sizes, num_hidden_layers=2))
texts = torch.randint(2, 32, (256, 8))
data = Dataset.from_dict({"input_ids": texts.tolist(), "label": (texts[:, 0] > 16).int().tolist()})
folder = tempfile.mkdtemp()
options = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_steps": 16}
sparse = TrainingArguments(folder, num_train_epochs=1, learning_rate=2e-3, **options)
routing = TrainingArguments(folder, num_train_epochs=1, learning_rate=5e-3, **options)

with SparsityPenalty(model) as penalty:
    SparseTrainer(model, sparse, train_dataset=data, penalty=penalty, alpha=0.005).train()

add_routers(convert(model, expert_size=8).requires_grad_(False), "regression", width=32)
with RouterLoss(model) as router_loss:
    RouterTrainer(model, routing, train_dataset=data).train()
