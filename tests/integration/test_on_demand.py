"""Images that are encoded when a batch first needs them: the same training, with other files at other times."""

import json

import pytest
import torch
from wiring import EDITS, DataTrials

from conftest import EditPairs, run_in

REFERENCES = {
    "id": "references",
    "instance_data_dir": "references",
    "conditioning_type": "reference_strict",
    "source_dataset_id": "edits",
}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train two epochs of four pairs, one image encoded at once, so that latents are equal to the last bit."""
    folder = tmp_path_factory.mktemp("on-demand")
    pairs = EditPairs(folder)
    pairs(count=4)
    flags = dict(zip(pairs.kontext[::2], pairs.kontext[1::2], strict=True))
    flags |= {"--num_train_epochs": 2, "--vae_batch_size": 1}
    return DataTrials(folder, tuple(part for pair in flags.items() for part in pair))


def trained(train, name, *, run=None, edits=None, references=None):
    """Train in a cache folder of its own."""
    entries = ({**EDITS, "conditioning_data": "references", **(edits or {})}, {**REFERENCES, **(references or {})})
    return train.with_datasets(*entries, cache_dir=f"cache-{name}", **(run or {}))


def stored(train, name):
    """Return how many latents of each set are on disk."""
    folder = train.folder / f"cache-{name}" / "vae"
    return {each: len(list((folder / each).rglob("*.safetensors"))) for each in ("edits", "references")}


@pytest.fixture(scope="module")
def filled(train):
    run = trained(train, "filled")
    assert "encode images 8:" in run.ended.err
    return run


@pytest.mark.parametrize(
    ("name", "case", "count"),
    [
        ("all", {"run": {"vae_cache_ondemand": "true"}}, 8),
        ("edits", {"edits": {"vae_cache_ondemand": True}}, 4),
        ("not-edits", {"run": {"vae_cache_ondemand": "true"}, "edits": {"vae_cache_ondemand": False}}, 4),
    ],
)
def test_latents_on_demand_train_the_same_and_are_kept(train, filled, name, case, count):
    run = trained(train, name, **case)
    assert f"{count} images are encoded when a batch first needs them" in run.ended.err
    assert ("encode images 4:" in run.ended.err) == (count == 4)
    assert stored(train, name) == {"edits": 4, "references": 4}
    assert torch.equal(run.weights[-1], filled.weights[-1])
    again = trained(train, name, run={**case.get("run", {}), "output_dir": "again-" + name}, edits=case.get("edits"))
    assert "caches: complete, nothing to encode" in again.ended.err


def test_latents_that_are_not_stored_train_the_same_and_need_no_disk(train, filled):
    run = trained(train, "none", run={"vae_cache_disable": "true"})
    assert "8 images are encoded when a batch first needs them" in run.ended.err
    assert stored(train, "none") == {"edits": 0, "references": 0}
    assert torch.equal(run.weights[-1], filled.weights[-1])


def test_a_set_may_store_none_while_the_others_do(train, filled):
    run = trained(train, "some", references={"vae_cache_disable": True})
    assert "4 images are encoded when a batch first needs them" in run.ended.err
    assert stored(train, "some") == {"edits": 4, "references": 0}
    assert torch.equal(run.weights[-1], filled.weights[-1])


def test_check_says_what_will_be_encoded_when_and_what_is_written(train):
    def told(*flags):
        entries = [{**EDITS, "conditioning_data": "references"}, REFERENCES]
        (train.folder / "checked.json").write_text(json.dumps(entries))
        arguments = (*train.arguments, "--data_backend_config", "checked.json", "--cache_dir", "cache-checked")
        ended = run_in(train.folder, "check", *arguments, "--json", *flags)
        assert ended.status == 0, ended.err
        found = json.loads(ended.out)
        latents = sum(need["files"] for need in found["disk"] if need["what"].startswith("latents"))
        return found["to_encode"]["images"], found["to_encode_on_demand"], latents

    assert told() == (8, 0, 8)
    assert told("--vae_cache_ondemand") == (0, 8, 8)
    assert told("--vae_cache_disable") == (0, 8, 0)


def test_an_image_that_cannot_be_decoded_is_found_before_the_first_step_all_the_same(train):
    broken = train.folder / "broken"
    EditPairs(broken)(count=2)
    damaged = next((broken / "edits").glob("*.png"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF  # within the pixels: no header shows it
    damaged.write_bytes(content)
    entries = [{**EDITS, "conditioning_data": "references"}, REFERENCES]
    (broken / "datasets.json").write_text(json.dumps(entries))
    arguments = (*train.arguments, "--data_backend_config", "datasets.json", "--vae_cache_ondemand")
    ended = run_in(broken, *arguments)
    assert ended.status == 2
    assert "1 of 2 images cannot be decoded: " in ended.err
    assert damaged.name in ended.err
