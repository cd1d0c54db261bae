"""Adam as in torch: factors of a step, state as arrays, and the update."""

# mypy: allow-untyped-defs
from __future__ import annotations

import math

import torch
from torch import Tensor

from ldvae.backends.cpu.arrays import AdamFactors, array
from ldvae.backends.cpu.math import EXACT_MATH, compiled, f32


class AdamState:
    """The state of a torch.optim.Adam as arrays, in the memory of its tensors; missing entries are created."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.group = optimizer.param_groups[0]
        parameters = self.group["params"]
        for parameter in parameters:
            if not optimizer.state[parameter]:
                zeros = [torch.zeros_like(parameter, memory_format=torch.preserve_format) for _ in range(2)]
                optimizer.state[parameter] = {"step": torch.zeros(()), "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
        self.state = optimizer.state
        steps = torch.stack([self.state[parameter]["step"] for parameter in parameters])
        for parameter, n_steps in zip(parameters, steps, strict=True):
            self.state[parameter]["step"] = n_steps  # a view: all advance together
        self.steps = array(steps)

    def of(self, parameter: Tensor | None, name: str) -> Tensor | None:
        """A parameter's moment of this name; None for no parameter."""
        return None if parameter is None else self.state[parameter][name]

    def advance(self) -> AdamFactors:
        """Advance to the next step; returns its factors."""
        self.steps += 1
        n_steps = float(self.steps[0])
        beta1, beta2 = self.group["betas"]
        return AdamFactors(
            rate=f32(self.group["lr"] / (1 - beta1**n_steps)),
            root=f32(1 / math.sqrt(1 - beta2**n_steps)),
            beta1=f32(beta1),
            beta2=f32(beta2),
            eps=f32(self.group["eps"]),
            weight_decay=f32(self.group["weight_decay"]),
        )


@compiled(EXACT_MATH)
def adam_step(parameter, first, second, gradient, adam):
    """One step of Adam on flat arrays."""
    for k in range(parameter.size):
        grad = gradient[k] + adam.weight_decay * parameter[k]
        m = first[k] + (grad - first[k]) * (f32(1) - adam.beta1)
        v = second[k] * adam.beta2 + grad * grad * (f32(1) - adam.beta2)
        first[k] = m
        second[k] = v
        parameter[k] -= adam.rate * m / (math.sqrt(v) * adam.root + adam.eps)
