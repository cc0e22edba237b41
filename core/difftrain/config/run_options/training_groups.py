"""Options of the training and of its optimizer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from difftrain.config.options import Options

SEED_LIMIT = 2**63
"""Seeds must be smaller: torch's generators take signed 64-bit numbers."""


class TrainingOptions(Options):
    group: ClassVar[str] = "Training"

    max_train_steps: int | None = Field(None, ge=0)
    """Number of optimizer steps; 0 is the same as leaving it out. Give this or num_train_epochs."""
    num_train_epochs: int | None = Field(None, ge=0, le=1_000_000)
    """Number of passes over the data; 0 is the same as leaving it out. Give this or max_train_steps."""
    train_batch_size: int = Field(1, ge=1)
    """Samples per forward pass on one device."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Forward passes per optimizer step."""
    gradient_checkpointing: bool | Literal["auto"] = True
    """Recompute activations in the backward pass to save memory; auto recomputes only what does not fit on the GPU."""
    gradient_checkpointing_interval: int | None = Field(None, ge=0)
    """With gradient_checkpointing true: recompute only every so many blocks, 2 is every other; 0 and 1 are all."""
    mixed_precision: Literal["bf16", "no"] = "bf16"
    """Number format of the forward pass; no is float32."""
    seed: int = Field(42, ge=0, lt=SEED_LIMIT)
    """Runs with equal seeds are equal: order, noise, dropouts, initial weights of the adapter."""
    timestep_sampler: str | None = None
    """Distribution of the noise levels; default: the family's, sigmoid for most."""
    loss_type: str = "mse"
    """How the prediction is compared with its target."""
    on_nan: Literal["stop", "skip"] = "stop"
    """If a loss or gradient is not finite: save the state before it and stop, or skip the update and continue."""
    on_nan_limit: int = Field(10, ge=1)
    """With on_nan skip: stop after this many skipped updates in a row."""

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _float32_is_no(cls, value: object) -> object:
        if value in ("fp32", "float32"):
            raise ValueError("must be no for float32")
        return value

    @field_validator("max_train_steps", "num_train_epochs", "gradient_checkpointing_interval")
    @classmethod
    def _zero_is_not_set(cls, value: int | None) -> int | None:
        return value or None

    @model_validator(mode="after")
    def _auto_has_no_interval(self) -> TrainingOptions:
        if self.gradient_checkpointing == "auto" and self.recomputes_some:
            raise ValueError(
                f"gradient_checkpointing = auto and gradient_checkpointing_interval = "
                f"{self.gradient_checkpointing_interval} are both set, and auto chooses the blocks itself; leave the "
                "interval out, or set gradient_checkpointing to true"
            )
        return self

    @property
    def recomputes_some(self) -> bool:
        """Whether the interval leaves out some blocks."""
        return (self.gradient_checkpointing_interval or 1) > 1

    @model_validator(mode="after")
    def _one_length(self) -> TrainingOptions:
        if self.max_train_steps and self.num_train_epochs:
            both = f"max_train_steps = {self.max_train_steps} and num_train_epochs = {self.num_train_epochs}"
            raise ValueError(f"{both} are both set; leave one of them out, or set it to 0")
        return self


class OptimizerOptions(Options):
    group: ClassVar[str] = "Optimizer"

    optimizer: str = "adamw_bf16"
    """How gradients become updates."""
    optimizer_config: dict[str, Any] = {}
    """Options of the optimizer: {"weight_decay": 0.01}, or the text weight_decay=0.01,eps=1e-8."""
    learning_rate: float = Field(1e-4, gt=0)
    """Highest learning rate of the schedule."""
    lr_scheduler: str = "constant"
    """How the learning rate changes over the run."""
    lr_warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from zero."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients with a larger norm are scaled down to it; 0 is off."""
    optimizer_beta1: float | None = Field(None, ge=0, lt=1)
    """First of the optimizer's betas, if it has betas and optimizer_config does not set them."""
    optimizer_beta2: float | None = Field(None, ge=0, lt=1)
    """Second of the optimizer's betas."""
    adam_beta1: float | None = Field(None, ge=0, lt=1)
    """Same as optimizer_beta1, but only for optimizers like Adam: those with betas, eps and weight_decay."""
    adam_beta2: float | None = Field(None, ge=0, lt=1)
    """Same as optimizer_beta2, but only for optimizers like Adam."""
    adam_weight_decay: float | None = Field(None, ge=0)
    """weight_decay of optimizer_config, but only for optimizers like Adam."""
    adam_epsilon: float | None = Field(None, gt=0)
    """eps of optimizer_config, but only for optimizers like Adam."""

    @field_validator("optimizer_config", mode="before")
    @classmethod
    def _pairs_as_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.split("=", 1) for pair in value.split(",") if pair.strip()]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError("must be an object, or a text such as weight_decay=0.01,eps=1e-8")
        return {name.strip().removeprefix("--"): text.strip() for name, text in pairs}
