"""``difftrain push``: uploads the results of a run to the hub. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from difftrain.cli.invocation import Invocation
from difftrain.errors import ConfigError

if TYPE_CHECKING:
    from difftrain.config.run_options import RunConfig
    from difftrain.publishing.hub_uploads import Upload


def push(invocation: Invocation) -> int:
    """Upload what the run's output folder has: adapter or model, and its card; else the newest checkpoint.

    With ``push_checkpoints_to_hub`` all checkpoints go too.

    Raises:
        DifftrainError: For anything that the user can fix; an upload that failed may be repeated.
    """
    plan = invocation.model_plan()
    config = plan.config
    if config.hub_model_id is None:
        raise ConfigError("hub_model_id is missing: the repository to upload to, such as --hub_model_id me/my-edits")
    from difftrain.output.console import make_reporter
    from difftrain.publishing.hub_account import make_repository, repository_of
    from difftrain.publishing.hub_uploads import send

    uploads = list(_uploads(config))
    if not uploads:
        raise ConfigError(
            f"output_dir {config.output_dir} has neither an adapter nor a checkpoint to upload\n"
            "hint: name the run with the flags and the run file that trained it"
        )
    reporter = make_reporter()
    repository = repository_of(config, "difftrain push", f"copy the files from {config.output_dir} by hand")
    make_repository(repository)
    with reporter.phase("upload", len(uploads)) as phase:
        for upload in uploads:
            phase.begin(upload.what)
            send(repository, upload)
            phase.advance(item=upload.what)
    reporter.say(f"uploaded {', '.join(upload.what for upload in uploads)}: {repository.page}")
    return 0


def _uploads(config: RunConfig) -> Iterator[Upload]:
    from difftrain.output.output_dir import list_checkpoints
    from difftrain.publishing.hub_uploads import Upload
    from difftrain.publishing.uploaded_files import checkpoint_files, final_files

    final = final_files(config.output_dir, images=config.model_card_images)
    checkpoints = list_checkpoints(config.output_dir)
    if final:
        yield Upload(what="the model" if config.model_type != "lora" else "the adapter", files=final)
    for checkpoint in checkpoints if config.push_checkpoints_to_hub else [] if final else checkpoints[-1:]:
        yield Upload(what=checkpoint.name, files=checkpoint_files(checkpoint))
