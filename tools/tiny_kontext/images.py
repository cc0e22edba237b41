"""Draws a batch of training pairs on the device: crops or scenes, then the edit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from recipes import SCENE, TURNS, Recipes
from scenes import draw_background, draw_shapes
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DeviceRecipes:
    """`Recipes` as tensors on the device; rows are picked by index."""

    turn: Tensor
    matrix: Tensor
    bias: Tensor
    gamma: Tensor
    photo: Tensor
    backgrounds: Tensor
    shapes: Tensor
    overlay: Tensor

    @classmethod
    def upload(cls, recipes: Recipes, device: torch.device) -> DeviceRecipes:
        names = cls.__dataclass_fields__
        return cls(**{name: torch.from_numpy(getattr(recipes, name)).to(device) for name in names})

    def pick(self, index: Tensor) -> DeviceRecipes:
        return DeviceRecipes(**{name: getattr(self, name)[index] for name in self.__dataclass_fields__})


def random_windows(pool: Tensor, which: Tensor, height: int, width: int, *, vary: bool) -> Tensor:
    """Return random windows of random crops of the given photographs, [B, 3, H, W] float32 in [0, 1].

    Args:
        pool: [photographs, crops, edge, edge, 3], uint8.
        which: [B], photograph of each; negative is any.
        vary: Mirror half of them, swap colour channels of a third and change brightness.
    """
    count, device = which.shape[0], pool.device
    which = torch.where(which < 0, torch.randint(pool.shape[0], (count,), device=device), which)
    crop = torch.randint(pool.shape[1], (count,), device=device)
    top = torch.randint(pool.shape[2] - height + 1, (count, 1), device=device) + torch.arange(height, device=device)
    left = torch.randint(pool.shape[3] - width + 1, (count, 1), device=device) + torch.arange(width, device=device)
    if vary:
        left = torch.where(torch.rand(count, 1, device=device) < 0.5, left.flip(1), left)
    pixels = pool[which[:, None, None], crop[:, None, None], top[:, :, None], left[:, None, :]]
    image = pixels.permute(0, 3, 1, 2).float() / 255
    if vary:
        order = torch.rand(count, 3, device=device).argsort(1)
        order = torch.where(torch.rand(count, 1, device=device) < 0.33, order, torch.arange(3, device=device))
        image = torch.take_along_dim(image, order[:, :, None, None], dim=1)
        gamma = torch.exp(0.25 * torch.randn(count, 1, 1, 1, device=device))
        image = image.clamp(1e-4, 1) ** gamma
    return image


def turned(image: Tensor, turn: Tensor) -> Tensor:
    """Apply each image's turn (`TURNS`); quarter turns only if the image is square."""
    code = turn[:, None, None, None]
    across, down = image.flip(3), image.flip(2)
    result = torch.where(code == TURNS.index("mirror"), across, image)
    result = torch.where(code == TURNS.index("flip"), down, result)
    result = torch.where(code == TURNS.index("half"), across.flip(2), result)
    if image.shape[2] == image.shape[3]:
        result = torch.where(code == TURNS.index("left"), image.transpose(2, 3).flip(2), result)
        result = torch.where(code == TURNS.index("right"), image.transpose(2, 3).flip(3), result)
    return result


def pairs(recipes: DeviceRecipes, photographs: Tensor) -> tuple[Tensor, Tensor]:
    """Return references and targets, [B, 3, H, W] each, in [0, 1].

    Args:
        recipes: One row per pair.
        photographs: [B, 3, H, W]; ignored if the recipe is a scene.
    """
    height, width = photographs.shape[-2:]
    is_scene = (recipes.photo == SCENE)[:, None, None, None]
    grounds = [
        torch.where(is_scene, draw_background(recipes.backgrounds[:, side], height, width), photographs)
        for side in range(2)
    ]
    reference = draw_shapes(grounds[0], recipes.shapes[:, 0])
    early, late = recipes.shapes[:, 1].clone(), recipes.shapes[:, 1, :1].clone()
    early[:, :, 0] *= 1 - recipes.overlay[:, None]
    late[:, :, 0] *= recipes.overlay[:, None]
    target = turned(draw_shapes(grounds[1], early), recipes.turn)
    target = target.clamp(1e-4, 1) ** recipes.gamma[:, None, None, None]
    target = torch.einsum("bij,bjhw->bihw", recipes.matrix, target) + recipes.bias[:, :, None, None]
    return reference.clamp(0, 1), draw_shapes(target.clamp(0, 1), late)
