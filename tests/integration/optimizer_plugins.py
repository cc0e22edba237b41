"""Third-party optimizers as a plugin file: their own groups, weights to evaluate, and learning rates."""

from contextlib import contextmanager
from typing import ClassVar

import torch

from difftrain import OptimizerFactory, hookimpl


class LoraPlus(OptimizerFactory):
    """B learns 16 times as fast as A. Source: Hayou et al., LoRA+, arXiv:2402.12354, section 4."""

    name: ClassVar[str] = "lora-plus"
    ratio: float = 16.0

    def build(self, parameters, learning_rate):
        a = [parameter for name, parameter in parameters if ".lora_A." in name]
        b = [parameter for name, parameter in parameters if ".lora_B." in name]
        return torch.optim.AdamW([{"params": a}, {"params": b, "lr": self.ratio * learning_rate}], lr=learning_rate)


class ScheduleFreeSgd(torch.optim.Optimizer):
    """Trains at a point between its last step and the mean of all steps, and evaluates at the mean.

    Source: Defazio et al., The Road Less Scheduled, arXiv:2405.15682, equations 1 to 3. As in its authors' library the
    mean is not kept but worked out, there and back, so that the weights come back rounded.
    """

    def __init__(self, parameters, lr, beta):
        super().__init__(parameters, {"lr": lr, "beta": beta, "steps": 0, "training": True})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["training"], "steps are taken at the training weights"
            group["steps"] += 1
            for parameter in group["params"]:
                last = self.state[parameter].setdefault("last", parameter.detach().clone())
                mean = parameter.lerp(last, 1 - 1 / group["beta"])
                last.sub_(parameter.grad, alpha=group["lr"])
                mean.lerp_(last, 1 / group["steps"])
                parameter.copy_(last.lerp(mean, group["beta"]))

    @torch.no_grad()
    def turn(self, *, training):
        for group in self.param_groups:
            group["training"] = training
            weight = 1 - group["beta"] if training else 1 - 1 / group["beta"]
            for parameter in group["params"]:
                if "last" in self.state[parameter]:
                    parameter.lerp_(self.state[parameter]["last"], weight)


class ScheduleFree(OptimizerFactory):
    """The factory of :class:`ScheduleFreeSgd`."""

    name: ClassVar[str] = "schedule-free"
    beta: float = 0.9

    def build(self, parameters, learning_rate):
        return ScheduleFreeSgd([parameter for _, parameter in parameters], learning_rate, self.beta)

    @contextmanager
    def evaluating(self, optimizer):
        optimizer.turn(training=False)
        try:
            yield
        finally:
            optimizer.turn(training=True)


class GrowingSgd(torch.optim.SGD):
    """Finds its own step size, like Prodigy: ``d`` grows while gradients point the same way."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        for group in self.param_groups:
            group["d"] = 1e-3

    def step(self, closure=None):
        for group in self.param_groups:
            asked = group["lr"]
            group["lr"] = asked * group["d"]
            super().step(closure)
            group["lr"] = asked
            agreement = 0.0
            for parameter in group["params"]:
                before = self.state[parameter].get("before")
                agreement += 0.0 if before is None else float((parameter.grad * before).sum())
                self.state[parameter]["before"] = parameter.grad.clone()
            group["d"] *= 1.5 if agreement >= 0 else 1.25


class Growing(OptimizerFactory):
    """The factory of :class:`GrowingSgd`."""

    name: ClassVar[str] = "growing"

    def build(self, parameters, learning_rate):
        return GrowingSgd([parameter for _, parameter in parameters], learning_rate)

    def rate(self, optimizer):
        return optimizer.param_groups[0]["d"] * optimizer.param_groups[0]["lr"]


@hookimpl
def difftrain_optimizers():
    return (LoraPlus, ScheduleFree, Growing)
