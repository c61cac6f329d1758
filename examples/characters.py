"""A character model trained twice from the same seed: by torch.nn, and with its layer accelerated.

    python examples/characters.py [--cell GRU] [--steps 40]

The text is the language reference that CPython ships.  Losses agree to rounding at first; then
rounding grows as it does in any training.
"""

import argparse
import time

import numpy as np
import torch

from fastbptt.bridges.torch import accelerate
from fastbptt.diagnosis.sources import language_reference


class Model(torch.nn.Module):
    """Characters (T,B) -> logits of the next (T,B,classes)."""

    def __init__(self, cell: str, classes: int, hidden: int) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(classes, 32)
        self.layer = getattr(torch.nn, cell)(32, hidden)
        self.read = torch.nn.Linear(hidden, classes)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """One pass."""
        return self.read(self.layer(self.embed(codes))[0])


def train(args: argparse.Namespace, codes: torch.Tensor, fast: bool) -> tuple[list[float], float]:
    """The loss of each step, and the seconds a step takes (the median)."""
    torch.manual_seed(args.seed)
    generator = np.random.default_rng(args.seed)
    model = Model(args.cell, int(codes.max()) + 1, args.hidden)
    if fast:
        accelerate(model)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses, seconds = [], []
    for _ in range(args.steps):
        starts = generator.integers(0, len(codes) - args.length - 1, args.batch)
        batch = torch.stack([codes[s : s + args.length + 1] for s in starts], dim=1)
        began = time.perf_counter()
        optimiser.zero_grad()
        logits = model(batch[:-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[1:].flatten())
        loss.backward()
        optimiser.step()
        seconds.append(time.perf_counter() - began)
        losses.append(loss.item())
    return losses, float(np.median(seconds))


def main(argv: list[str] | None = None) -> tuple[list[float], list[float]]:
    """Print both trainings side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", choices=["RNN", "GRU", "LSTM"], default="GRU")
    for name, value in (("hidden", 128), ("batch", 8), ("length", 128), ("steps", 40), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value, help="%(default)s")
    args = parser.parse_args(argv)
    text = language_reference()[:200_000]
    codes = torch.from_numpy(np.unique(list(text), return_inverse=True)[1])
    (theirs, slow), (ours, fast) = (train(args, codes, fast) for fast in (False, True))
    print(f"{'step':>5} {'torch.nn':>12} {'fastbptt':>12} {'difference':>12}")
    shown = sorted({*range(min(5, args.steps)), *range(0, args.steps, 10), args.steps - 1})
    for i in shown:
        print(f"{i:5} {theirs[i]:12.7f} {ours[i]:12.7f} {ours[i] - theirs[i]:12.1e}")
    print(f"{slow * 1e3:.1f} ms a step by torch.nn, {fast * 1e3:.1f} ms with fastbptt: ", end="")
    print(f"{slow / fast:.2f} x, with {torch.get_num_threads()} threads")
    return theirs, ours


if __name__ == "__main__":
    main()
