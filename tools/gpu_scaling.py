"""How trainings scale over the GPUs of a host: ViT-B/16 at 224 pixels, copied on each (DDP), and a
model of Gemma-2B's shape with random weights, in parts on all of them (FSDP2), at length 1,024.

    python tools/gpu_scaling.py                       # 1, 2, 4, … GPUs, both models
    python tools/gpu_scaling.py --models gemma --gpus 2 4 --batch 12   # samples on each
    python tools/gpu_scaling.py --tiny --gpus 1 2     # any machine: does it run?

It trains by the pipeline's own loop, on made-up samples that lie on the GPU. Printed are samples
and tokens a second, the efficiency (what a GPU does beside others to what the fewest do), the
largest memory of a GPU, and the share of its peak in bfloat16 that the model's own FLOPs make.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor

from d2dmoe.config.model import GemmaConfig, ViTConfig
from d2dmoe.config.resources import ResourcesConfig
from d2dmoe.config.training import TaskTrainingConfig
from d2dmoe.data.batches import TrainingBatches
from d2dmoe.data.share import Share
from d2dmoe.inputs import logits_of
from d2dmoe.models.build import create_model
from d2dmoe.processes import joined, leads, place, told
from d2dmoe.training import cross_entropy_loss, fit

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOPs/s in bfloat16, dense
WARM, TIMED = 10, 30  # steps
VIT = {"patch_size": 16, "layers": 12, "d_model": 768, "heads": 12, "d_ff": 3072}
GEMMA = {"layers": 18, "d_model": 2048, "heads": 8, "key_value_heads": 1, "head_dim": 256}
GEMMA |= {"d_ff": 16384, "positions": 1024}
TINY = {"layers": 2, "d_model": 32, "heads": 2, "d_ff": 64}


class MadeUp:
    """As many samples as a few batches, of which each is the same and lies on the device."""

    lengths, about, decodes = None, {}, False

    def __init__(self, count: int, make: Any):
        self.count, self.make, self.made = count, make, None

    def __len__(self) -> int:
        return self.count

    def read_changed(self, indices: Tensor, share: Share, *_: Any) -> tuple[Tensor]:
        return (share.of(indices),)

    def training_batch(self, raw: tuple[Tensor], *_: Any) -> Any:
        self.made = self.made or self.make(len(raw[0]))
        return self.made


def vit(device: torch.device, tiny: bool) -> tuple:
    """Model, samples on a GPU, tokens of one, what makes a batch, and whether it lies in parts."""
    size, batch = (32, 4) if tiny else (224, 256)
    cfg = ViTConfig(architecture="vit", **(VIT | (TINY if tiny else {})))
    about = {"image_size": size, "classes": [str(i) for i in range(1000)]}

    def make(count: int) -> tuple:
        images = torch.randn(count, 3, size, size, device=device)
        return {"x": images}, torch.randint(1000, (count,), device=device)

    _, model = create_model(cfg, about)
    return model, batch, (size // 16) ** 2 + 1, make, False


def gemma(device: torch.device, tiny: bool) -> tuple:
    """The same."""
    length, batch, words = (16, 2, 100) if tiny else (1024, 4, 256_000)
    small = TINY | {"key_value_heads": 1, "head_dim": 16}
    cfg = GemmaConfig(architecture="gemma", **(GEMMA | (small if tiny else {})))
    about = {"vocab_size": words, "length": length, "end_of_text_id": 1}

    def make(count: int) -> tuple:
        tokens = torch.randint(words, (count, length + 1), device=device)
        return {"input_ids": tokens[:, :-1]}, tokens[:, 1:]

    _, model = create_model(cfg, about)
    return model, batch, length, make, True


def flops(model: torch.nn.Module, tokens: int, layers: int, width: int) -> float:
    """Of a sample in training: 6 for each weight that multiplies a token, and attention's."""
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    return 6.0 * weights * tokens + 12.0 * layers * width * tokens**2


def measure(name: str, tiny: bool, recompute: bool, batch: int | None) -> dict[str, Any]:
    """What this process finds, together with the others."""
    cuda = torch.cuda.is_available() and not tiny
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
    with device:  # drawn there: billions of weights take a minute on a CPU
        model, usual, tokens, make, parts = {"vit": vit, "gemma": gemma}[name](device, tiny)
    batch = batch or usual
    cost = flops(model, tokens, *((12, 768) if name == "vit" else (18, 2048)))
    model.to(device).train()
    steps, together = (2, 4) if tiny else (WARM, WARM + TIMED), batch * place().size
    cfg = TaskTrainingConfig(epochs=steps[1], lr=1e-4, batch_size=together)
    clock: list[float] = []

    def losses(inputs_targets: Any, _progress: float) -> dict[str, Tensor]:
        if len(clock) == steps[0] and cuda:
            torch.cuda.synchronize()
        clock.append(time.monotonic())
        inputs, targets = inputs_targets
        return {"loss": cross_entropy_loss(logits_of(model, inputs), targets)}

    how = ResourcesConfig(shard=parts and place().size > 1, recompute=recompute)
    batches = TrainingBatches(MadeUp(together, make), cfg, 0, device, Share(*place()))
    fit(model, losses, batches, cfg, name=name, how=how)
    if cuda:
        torch.cuda.synchronize()
    seconds = (time.monotonic() - clock[steps[0]]) / (steps[1] - steps[0])
    memory = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    card = torch.cuda.get_device_name() if cuda else "cpu"
    peak = next((p for kind, p in PEAK.items() if kind in card), float("nan"))
    return {
        "model": name,
        "gpus": place().size,
        "samples_per_s": together / seconds,
        "tokens_per_s": together * tokens / seconds,
        "memory_gib": max(told(memory)),
        "mfu": batch * cost / seconds / peak,
        "card": card,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["vit", "gemma"])
    parser.add_argument("--gpus", nargs="+", type=int)
    parser.add_argument("--tiny", action="store_true", help="small models, on the CPU")
    parser.add_argument("--recompute", action="store_true", help="keep no activations of blocks")
    parser.add_argument("--batch", type=int, help="samples on each GPU")
    asked = parser.parse_args()
    if "LOCAL_RANK" in os.environ:  # one of those that are started below
        with joined("gloo" if asked.tiny else "cpu:gloo,cuda:nccl"):
            found = measure(asked.models[0], asked.tiny, asked.recompute, asked.batch)
            if leads():
                print(json.dumps(found), flush=True)
        return
    here = torch.cuda.device_count() or 2
    rows: dict[str, list[dict]] = {}
    print("model  GPUs  samples/s  tokens/s  efficiency  GiB/GPU  MFU  card")
    for name in asked.models:
        for gpus in asked.gpus or [n for n in (1, 2, 4, 8) if n <= here]:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc-per-node={gpus}", __file__, "--models", name]
            command += ["--tiny"] * asked.tiny + ["--recompute"] * asked.recompute
            command += [f"--batch={asked.batch}"] * bool(asked.batch)
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                print(f"{name:5}  {gpus:4}  failed")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            first = rows.setdefault(name, [row])[0]
            share = row["samples_per_s"] / gpus / (first["samples_per_s"] / first["gpus"])
            print(
                f"{name:5}  {gpus:4}  {row['samples_per_s']:9.1f}  {row['tokens_per_s']:8.0f}  "
                f"{share:10.3f}  {row['memory_gib']:7.1f}  {row['mfu']:.3f}  {row['card']}"
            )


if __name__ == "__main__":
    main()
