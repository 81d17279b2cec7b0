"""A model of one's own in a plain loop: sparse, converted, routed, and fine-tuned once more.

python examples/plain_torch.py
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from d2dmoe import RouterLoss, SparsityPenalty, add_routers, convert, set_operating_point


class Classifier(nn.Module):
    """Does a text have more of the lower or of the upper half of the tokens?"""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 128, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 2)

    def forward(self, tokens: Tensor) -> Tensor:  # [batch, tokens] -> [batch, 2]
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(20, (32, 9))
    return tokens, ((tokens >= 10).sum(1) >= 5).long()


torch.manual_seed(0)
model = Classifier()

with SparsityPenalty(model, example=batch()[0]) as penalty:  # its FFNs have ReLU from here on
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        tokens, targets = batch()
        loss = cross_entropy(model(tokens), targets) + 0.005 * penalty()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    print(f"sparse: loss {loss.item():.3f}, penalty {penalty().item():.1f} of 128")

add_routers(convert(model, expert_size=8), "regression", width=32)
routers = [p for name, p in model.named_parameters() if ".router." in name]
with RouterLoss(model) as router_loss:
    optimizer = torch.optim.AdamW(routers, lr=5e-3)
    for _ in range(40):
        model(batch()[0])
        optimizer.zero_grad(), router_loss().backward(), optimizer.step()

set_operating_point(model, "dynamic_k", 0.3)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
for _ in range(20):  # gradients flow through the experts that run
    tokens, targets = batch()
    loss = cross_entropy(model(tokens), targets)
    optimizer.zero_grad(), loss.backward(), optimizer.step()
print(f"routed: loss {loss.item():.3f}")
