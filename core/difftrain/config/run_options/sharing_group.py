"""Options of what a run publishes."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import field_validator, model_validator

from difftrain.config.known_keys import means_no_name
from difftrain.config.options import Options

_PART = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?", re.ASCII)
"""What the hub accepts as the name of an owner or of a repository."""


class SharingOptions(Options):
    group: ClassVar[str] = "Sharing"

    push_to_hub: bool = False
    """Upload the adapter of the finished run, and its model card, to the Hugging Face hub."""
    push_checkpoints_to_hub: bool = False
    """Upload the adapter of each checkpoint too, in the background, to the folder checkpoint-N."""
    hub_model_id: str | None = None
    """Repository to upload to: OWNER/NAME, or NAME for one of your own. It is made if it does not exist."""
    model_card_private: bool = False
    """Make that repository private if it does not exist; an existing one stays as it is."""
    model_card_images: bool = True
    """Show images of the last validation on the model card, and upload them with it; their references, targets and
    captions never."""

    @property
    def pushes(self) -> tuple[str, ...]:
        """The options that ask for uploads."""
        return tuple(key for key in ("push_to_hub", "push_checkpoints_to_hub") if getattr(self, key))

    @field_validator("hub_model_id", mode="before")
    @classmethod
    def _no_repository_is_unset(cls, value: object) -> object:
        return None if means_no_name(value) else value

    @field_validator("hub_model_id")
    @classmethod
    def _repository_is_well_formed(cls, value: str | None) -> str | None:
        parts = [] if value is None else value.split("/")
        wrong = [part for part in parts if not _PART.fullmatch(part) or "--" in part or ".." in part]
        if len(parts) > 2 or wrong or (value or "").endswith(".git"):
            raise ValueError(
                "must be OWNER/NAME or NAME, such as me/my-edits: letters, digits, and single '-', '_' or '.' between "
                "them, at most 96 in each part"
            )
        return value

    @model_validator(mode="after")
    def _uploads_have_a_place(self) -> SharingOptions:
        if self.pushes and self.hub_model_id is None:
            raise ValueError(
                f"{self.pushes[0]} = true needs hub_model_id, the repository to upload to; set it to OWNER/NAME, such "
                "as me/my-edits"
            )
        return self
