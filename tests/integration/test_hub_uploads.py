"""Uploads to the hub, against a stub of it on this machine: checked first, in the background, and never a lost run."""

import shlex
import signal
import time

import pytest
from forked_runs import ForkedRun
from long_runs import PATIENCE, changed, steps_of, wait_until

from hub_stub import running_hub

ADAPTER = "pytorch_lora_weights.safetensors"
ASKING = {"push_to_hub": "true", "hub_model_id": "me/mine"}
BOTH = pytest.mark.parametrize("words", [(), ("check",)], ids=["run", "check"])


@pytest.fixture
def hub():
    with running_hub() as stub:
        yield stub


@pytest.fixture
def arguments(edit_pairs):
    datasets = edit_pairs(count=2)
    return changed(
        (*edit_pairs.kontext, "--data_backend_config", str(datasets), "--max_train_steps", "4"),
        checkpoint_step_interval=2,
        **ASKING,
    )


@pytest.fixture
def ended(tmp_path, hub):
    """Run a command with the stub as its hub; return status and standard error."""

    def run(*words, **environment):
        process = ForkedRun(tmp_path, words, **{**hub.environment(), **environment})
        _, said = process.communicate(timeout=PATIENCE)
        return process.returncode, said

    return run


def test_the_adapter_its_card_and_every_checkpoint_are_uploaded(ended, hub, arguments, edit_pairs):
    options = {
        "validation_steps": 4, "num_eval_images": 1, "validation_num_inference_steps": 1, "validation_resolution": 64,
        "push_checkpoints_to_hub": "true", "checkpoints_total_limit": 1, "model_card_private": "true",
    }  # fmt: skip
    status, said = ended(*changed(arguments, **options))
    assert status == 0, said
    (made,) = hub.made
    assert made["name"] == "mine"
    assert made.get("visibility") == "private" or made.get("private") is True
    assert hub.commits == [
        ("checkpoint-2, by difftrain", [f"checkpoint-2/{ADAPTER}"]),
        ("checkpoint-4, by difftrain", [f"checkpoint-4/{ADAPTER}"]),
        ("the adapter, by difftrain", ["README.md", "model-card/1.png", ADAPTER]),
    ]
    assert hub.files[ADAPTER] == (edit_pairs.output / ADAPTER).read_bytes()
    assert hub.files[f"checkpoint-4/{ADAPTER}"] == (edit_pairs.output / "checkpoint-4" / ADAPTER).read_bytes()
    assert hub.files["README.md"] == (edit_pairs.output / "README.md").read_bytes()
    assert f"upload to {hub.address}/me/mine" in said
    assert "not uploaded" not in said
    assert not list(edit_pairs.output.glob(".upload-*"))


def test_without_an_option_nothing_is_asked_of_the_hub(ended, hub, arguments):
    assert ended(*changed(arguments, push_to_hub="false"))[0] == 0
    assert hub.asked == []


@BOTH
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, so nothing can be uploaded\nhint: unset HF_HUB_OFFLINE"),
        ({"HF_TOKEN": ""}, "there is no access token for the hub\nhint: log in with `hf auth login`"),
        ({"HF_TOKEN": "hf_wrong"}, "cannot log in to the hub at http"),
        (
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "cannot log in to the hub at http://127.0.0.1:9: [Errno 111]",
        ),
    ],
    ids=["offline", "no token", "wrong token", "unreachable"],
)
def test_uploads_that_are_bound_to_fail_end_the_run_before_data_is_read(
    ended, arguments, edit_pairs, tmp_path, words, environment, said
):
    next((edit_pairs.folder / "references").glob("*.png")).unlink()  # an error of the data would come later
    status, text = ended(*words, *arguments, **{"HF_HOME": str(tmp_path / "no-token"), **environment})
    assert (status, "Traceback" in text, "conditioning" in text) == (2, False, False), text
    assert f"push_to_hub: {said}" in text
    assert "or set push_to_hub to false" in text


@pytest.mark.parametrize(
    ("role", "name", "said"),
    [
        ("read", "me/mine", "the access token of 'me' may only read"),
        (
            "write",
            "others/mine",
            "'me' may not write to repositories of 'others'\nhint: log in as 'others', or name one",
        ),
    ],
)
def test_a_token_that_may_not_write_is_found_before_the_run(ended, hub, arguments, role, name, said):
    hub.role = role
    status, text = ended("check", *changed(arguments, hub_model_id=name))
    assert status == 2
    assert said in text
    assert hub.made == []


def test_a_repository_that_the_hub_does_not_make_ends_the_run_before_the_first_step(ended, hub, arguments, edit_pairs):
    hub.refused = ("/api/repos/create", "/api/models/ours")
    status, said = ended(*changed(arguments, hub_model_id="ours/mine"))
    assert status == 2, said
    assert "hub_model_id 'ours/mine': the hub does not make this repository: the stub refuses" in said
    assert not (edit_pairs.output / "metrics.jsonl").exists()


def test_a_name_without_an_owner_is_one_of_the_users_own(ended, hub, arguments):
    assert ended(*changed(arguments, hub_model_id="mine"))[0] == 0
    assert any("/api/models/me/mine/commit/" in asked for asked in hub.asked)
    assert b'load_lora_weights("me/mine")' in hub.files["README.md"]


def test_a_refused_upload_loses_no_run_and_the_command_that_is_named_uploads_later(ended, hub, arguments, edit_pairs):
    hub.refused = ("/commit/",)
    status, said = ended(*changed(arguments, push_checkpoints_to_hub="true"))
    assert status == 0, said
    assert steps_of(edit_pairs.output) == [1, 2, 3, 4]
    assert (edit_pairs.output / ADAPTER).is_file()
    assert "warning: checkpoint-2 is not uploaded to me/mine: the stub refuses" in said
    assert "not uploaded: checkpoint-2, checkpoint-4, the adapter; upload later with:" in said
    hub.refused = ()
    words = shlex.split(said.partition("upload later with:")[2].strip().splitlines()[0])
    status, said = ended(*words[words.index("push") :])
    assert status == 0, said
    assert [paths for _, paths in hub.commits] == [
        ["README.md", ADAPTER], [f"checkpoint-2/{ADAPTER}"], [f"checkpoint-4/{ADAPTER}"],
    ]  # fmt: skip


def test_push_uploads_the_newest_checkpoint_of_an_unfinished_run(ended, hub, arguments, edit_pairs):
    assert ended(*changed(arguments, push_to_hub="false"))[0] == 0
    (edit_pairs.output / ADAPTER).unlink()
    status, said = ended("push", *arguments)
    assert status == 0, said
    assert [paths for _, paths in hub.commits] == [[f"checkpoint-4/{ADAPTER}"]]


def test_push_says_what_is_missing(command, arguments):
    assert "has neither an adapter nor a checkpoint to upload" in command("push", *arguments).err
    unnamed = command("push", *changed(arguments, hub_model_id="none", push_to_hub="false"))
    assert (unnamed.status, "hub_model_id is missing" in unnamed.err) == (2, True)


def test_slow_uploads_hold_up_no_step_and_a_signal_ends_the_waiting_for_them(real_command, hub, arguments, edit_pairs):
    hub.seconds = PATIENCE
    options = changed(arguments, push_checkpoints_to_hub="true", checkpoint_step_interval=1)
    process = real_command(*options, **hub.environment())
    wait_until(process, (edit_pairs.output / "README.md").is_file)
    assert steps_of(edit_pairs.output) == [1, 2, 3, 4]
    assert hub.commits == []
    time.sleep(1)  # the closing words
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0, said  # the run itself is complete
    assert "not uploaded: checkpoint-1, checkpoint-2, checkpoint-3, checkpoint-4, the adapter" in said
    assert (edit_pairs.output / ADAPTER).is_file()
    assert not list(edit_pairs.output.glob(".upload-*"))


@pytest.mark.parametrize(
    "name", ["me/mine/more", "me/", "/mine", "me/my edits", "me/-mine", "me/mine.git", "a--b", "x" * 97]
)
def test_a_name_that_the_hub_does_not_take_is_a_mistake_in_the_config(command, arguments, name):
    ended = command(*changed(arguments, hub_model_id=name))
    assert ended.status == 2
    assert "hub_model_id must be OWNER/NAME or NAME, such as me/my-edits" in ended.err


@pytest.mark.parametrize("key", ["push_to_hub", "push_checkpoints_to_hub"])
def test_uploads_need_a_repository(command, arguments, key):
    ended = command(*changed(arguments, **{"push_to_hub": "false", "hub_model_id": "none", key: "true"}))
    assert ended.status == 2
    assert f"{key} = true needs hub_model_id" in ended.err
