"""Plugin files that end or disturb a run at a known step."""

LOSS = '''
from typing import ClassVar

import torch

from difftrain import Loss, hookimpl


class Disturbed(Loss):
    """Mean squared error, except for what happens in some steps."""

    name: ClassVar[str] = "disturbed"
    calls: ClassVar[int] = 0

    def compute(self, prediction, noisy, batch):
        loss = (prediction.float() - noisy.target).square().flatten(1).mean(1)
        if torch.is_grad_enabled():  # not when a save only tests the weights
            type(self).calls += 1
            if type(self).calls in {steps}:
                {action}
        return loss


@hookimpl
def difftrain_losses():
    return (Disturbed,)
'''

OBSERVER = '''
import os
import shutil
import signal

from difftrain import Observer, hookimpl


class Disturbing(Observer):
    """Does something after the given steps."""

    name = "disturbing"

    def step_end(self, result):
        if result.step in {steps}:
            {action}


@hookimpl
def difftrain_observers():
    return (Disturbing,)
'''


def disturb_loss(folder, arguments, steps, action):
    """Return arguments of a run whose loss does something in these steps, of one micro-batch each."""
    (folder / "disturbing.py").write_text(LOSS.format(steps=tuple(steps), action=action))
    return (*arguments, "--plugins", "./disturbing.py", "--loss_type", "disturbed")


def observe(folder, arguments, steps, action):
    """Return arguments of a run with an observer that does something after these steps."""
    (folder / "observing.py").write_text(OBSERVER.format(steps=tuple(steps), action=action))
    return (*arguments, "--plugins", "./observing.py")
