"""Checks before a run that it may upload to the hub: a token, a connection, a repository.

Light: huggingface_hub is imported when used, and it does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from difftrain.config.run_options import RunConfig
from difftrain.errors import MachineError, printable


@dataclass(frozen=True, kw_only=True)
class HubRepository:
    """A repository that this user may upload to, as far as the hub tells."""

    id: str
    """``OWNER/NAME``."""
    private: bool
    """Whether it is made private, if it does not exist."""

    @property
    def page(self) -> str:
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{self.id}"


def find_repository(config: RunConfig) -> HubRepository | None:
    """Return where a run uploads to, after asking the hub who the user is; None if it uploads nothing.

    Reads no data and changes nothing on the hub.

    Raises:
        MachineError: If uploads are bound to fail: offline, no token, a token that may only read, another's repository.
    """
    if not config.pushes:
        return None
    return repository_of(config, config.pushes[0], f"set {' and '.join(config.pushes)} to false")


def repository_of(config: RunConfig, asked_by: str, instead: str) -> HubRepository:
    """Return where to upload to.

    Args:
        asked_by: The option or command that uploads, for messages.
        instead: How to do without, for messages.

    Raises:
        MachineError: As :func:`find_repository`.
    """
    from huggingface_hub import HfApi, constants, get_token

    assert config.hub_model_id is not None, "checked with the options"
    if constants.is_offline_mode():
        raise MachineError(
            f"{asked_by}: HF_HUB_OFFLINE is set, so nothing can be uploaded\n"
            f"hint: unset HF_HUB_OFFLINE, or {instead}; `difftrain push` uploads a finished run later"
        )
    if get_token() is None:
        raise MachineError(
            f"{asked_by}: there is no access token for the hub\n"
            f"hint: log in with `hf auth login` or set HF_TOKEN to a token that may write, or {instead}"
        )
    with refusals(f"{asked_by}: cannot log in to the hub at {constants.ENDPOINT}", f"or {instead}"):
        user = HfApi().whoami()
    return HubRepository(
        id=_full_id(config.hub_model_id, user, asked_by, instead),
        private=config.model_card_private,
    )


def make_repository(repository: HubRepository) -> None:
    """Make the repository unless it exists.

    Raises:
        MachineError: If the hub refuses.
    """
    from huggingface_hub import HfApi

    with refusals(
        f"hub_model_id {repository.id!r}: the hub does not make this repository",
        "or name a repository of your own, or of an organisation that you may write to",
    ):
        HfApi().create_repo(repository.id, private=repository.private or None, exist_ok=True)


@contextmanager
def refusals(what: str, hint: str) -> Iterator[None]:
    """Turn every refusal of the hub, and a failing connection, into one message: ``what: reason``, and the hint.

    Raises:
        MachineError: In place of them.
    """
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # that of whichever httpx it uses

    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # the last two: bad answers, and those of hf_xet
        answer = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
        reason = printable(answer.splitlines()[0])
        raise MachineError(f"{what}: {reason}\nhint: check network and token (`hf auth whoami`), {hint}") from error


def _full_id(name: str, user: Mapping[str, Any], asked_by: str, instead: str) -> str:
    """Return ``OWNER/NAME``.

    Raises:
        MachineError: If the token may only read, or the owner is neither the user nor one of the user's organisations.
    """
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise MachineError(
            f"{asked_by}: the access token of {user['name']!r} may only read\n"
            "hint: make one that may write at https://huggingface.co/settings/tokens, and log in with it "
            f"(`hf auth login`), or {instead}"
        )
    owner, slash, _ = name.partition("/")
    if not slash:
        return f"{user['name']}/{name}"
    owners = [user["name"], *(group["name"] for group in user.get("orgs", ()))]
    # a fine-grained token may reach repositories of others, and need not list them
    if role != "fineGrained" and owner.casefold() not in map(str.casefold, owners):
        raise MachineError(
            f"hub_model_id {name!r}: {user['name']!r} may not write to repositories of {owner!r}\n"
            f"hint: log in as {owner!r}, or name one of {', '.join(owners)}"
        )
    return name
