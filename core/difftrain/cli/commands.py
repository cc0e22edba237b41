"""The commands: what each is for, and which of the command line's own flags it takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from difftrain.cli.adapter_commands.edit_flags import EDIT_FLAGS
from difftrain.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command as its help describes it."""

    about: str
    """A few sentences."""
    flags: Collection[str]
    """Those of :data:`difftrain.cli.flags.OWN_FLAGS` that only some commands take."""
    examples: Mapping[str, str]
    """What to type, and what it does."""


DESCRIBED: Mapping[str, Command] = {
    "train": Command(
        about="Trains. Checks everything first, encodes what the caches lack, and resumes from the newest checkpoint.",
        flags=("fast",),
        examples={
            "difftrain": "train the run of config/config.json",
            "difftrain --config my-run.json --lora_rank 32": "another run file; flags override it",
        },
    ),
    "check": Command(
        about="Checks config, model, images and pairs, and says what a run would do. Loads no weights. Exit status 0 "
        "means ready to train, 2 that something is to be mended.",
        flags=("fast", "json", "html", "pixels"),
        examples={
            "difftrain check": "what would stop the run, and what is worth a look",
            "difftrain check --html pair-doctor": "also a page that shows every pair",
        },
    ),
    "plan": Command(
        about="Predicts memory, seconds and hours of a run for a table of cards. Needs no GPU, no weights and no "
        "images; if the images are there, it also describes epochs, buckets and caches. Writes nothing.",
        flags=("json", "card"),
        examples={"difftrain plan --card 4090": "the table, and the lines for the run file of that card"},
    ),
    "cache": Command(
        about="Encodes all images and captions that a run reads, without training. What is cached already is kept.",
        flags=("fast", "verify", "prune"),
        examples={
            "difftrain cache": "fill the caches",
            "difftrain cache --verify": "read every entry first, and make damaged ones again",
        },
    ),
    "export": Command(
        about="Writes the adapter of a run, a checkpoint or any program's file for another program, with alpha folded "
        "in, so that strength 1 is the trained strength everywhere. The written file is read back and compared before "
        "it gets its name: through the stock pipeline for diffusers, else by mapping its names back onto the model. "
        "diffusers: names of diffusers' modules, also for nunchaku and InvokeAI; comfyui: original names, LoKr and "
        "LoHa as they are; bfl: original names; kohya: names of sd-scripts, also for InvokeAI. A model that was "
        "trained as a whole is written by merge, or by as_lora as a LoRA that comes close.",
        flags=("format", "output", "dtype", "as_lora", "merge", "no_verify"),
        examples={
            "difftrain export output --format kohya --output my-edit.safetensors": "the newest adapter of a run",
            "difftrain export their-lora.safetensors --output d.safetensors --dtype bf16": "any file, for diffusers",
            "difftrain export output --as_lora 32 --output small.safetensors": "LoKr as the nearest LoRA",
            "difftrain export output --merge --output my-model": "a model folder that needs no adapter",
        },
    ),
    "identify": Command(
        about="Says what a file or folder is: family, flavour, kind of adapter, rank, alpha, whose names, number "
        "formats and what trained it, from names, shapes and header. Reads no weights. Of something unknown it says "
        "what it saw.",
        flags=("json",),
        examples={
            "difftrain identify their-lora.safetensors": "whose LoRA it is, and for which model",
            "difftrain identify models/a-folder --json": "a model's folder, for programs",
        },
    ),
    "edit": Command(
        about="Edits images with a trained adapter, as validation draws them: a grid over strengths, seeds and "
        "checkpoints. Takes model and precision from the adapter's run. Writes the results, a sheet of all, and how "
        "close they come to the targets if there are any.",
        flags=(*EDIT_FLAGS, "output"),
        examples={
            'difftrain edit --adapter output --image in.png --prompt "..."': "one result",
            "difftrain edit ... --strength 0,0.5,1 --seeds 3": "a grid; strength 0 is the model without the adapter",
            "difftrain edit ... --image before --targets after": "a whole folder, and how close it comes",
            "difftrain edit ... --checkpoints all --compare base": "which checkpoint is the best",
        },
    ),
    "push": Command(
        about="Uploads what a run trained, adapter or whole model, and its model card from the output folder to the "
        "Hugging Face hub, or its newest checkpoint if it has not finished. Takes the run's own flags and run file, "
        "and hub_model_id.",
        flags=(),
        examples={
            "difftrain push --hub_model_id me/my-edits": "upload the run of config/config.json",
            "difftrain push --push_checkpoints_to_hub": "also the adapter of every checkpoint",
        },
    ),
    "plugins": Command(
        about="Lists the plugins, what each provides, and why one failed.",
        flags=("json",),
        examples={"difftrain plugins --json": "the same for programs"},
    ),
}


def check_flags(command: str, given: Mapping[str, Any]) -> None:
    """Check that a command takes the flags that it was given.

    Raises:
        ConfigError: If one belongs to other commands.
    """
    for flag in dict.fromkeys(flag for described in DESCRIBED.values() for flag in described.flags):
        if given.get(flag) and flag not in DESCRIBED[command].flags:
            takers = [f"`{typed(name)}`" for name, described in DESCRIBED.items() if flag in described.flags]
            *others, last = takers
            raise ConfigError(f"--{flag} works only with {', '.join(others) + ' and ' if others else ''}{last}")


def typed(command: str) -> str:
    """Return how a command is typed; training has no word of its own."""
    return "difftrain" if command == "train" else f"difftrain {command}"
