"""The files that users already have: they load, or say in one message what is not supported yet."""

from __future__ import annotations

import json
from pathlib import Path

import json5
from config_runs import PLUGINS, USERS_FILES

from difftrain.planning.run_plan import plan_run


def plan_users_files(datasets: str, **flags):
    datasets = str(USERS_FILES / f"{datasets}.jsonc")
    return plan_run(USERS_FILES / "config.jsonc", {"data_backend_config": datasets, **flags}, plugins=PLUGINS)


def test_the_pair_file_gives_a_target_set_with_its_references():
    data = plan_users_files("pairs").data
    assert [dataset.id for dataset in data.target_sets] == ["my-edited-images"]
    assert data.target_sets[0].references == ("my-reference-images",)


def test_the_run_file_chooses_by_name():
    plan = plan_users_files("pairs")
    chosen = (plan.flavour.name, plan.quantizer.name, plan.optimizer.name, plan.adapter.lora_rank)
    assert chosen == ("kontext", "int8-quanto", "optimi-lion", 16)


def test_the_generator_file_gives_the_parameters_and_captions_as_written():
    blur, jpeg = (dataset.generators[0] for dataset in plan_users_files("generated_pairs").data.target_sets)
    assert (blur.generator.blur_radius, blur.generator.noise_level) == (3.0, 0.02)
    assert (jpeg.generator.quality_range, jpeg.generator.compression_rounds) == ((10, 30), 2)
    assert jpeg.captions[0] == "remove compression artifacts"


def test_the_text_embeds_entry_says_where_text_is_cached():
    assert plan_users_files("generated_pairs").data.text_folder == Path("cache/text/kontext")


def test_the_split_file_gives_the_panels_of_a_hugging_face_set():
    data = plan_users_files("validation_split", eval_dataset_id="edited-images").data
    left, right = data.by_id("subjects200k-left"), data.by_id("subjects200k-right")
    assert left.references == ("subjects200k-right",)
    assert right.is_reference
    assert [one.source.settings.composite.select_index for one in (left, right)] == [0, 1]
    assert [one.source.dataset_name for one in (left, right)] == ["Yuanshi/Subjects200K"] * 2


def test_the_held_out_pair_set_of_the_split_file_is_taken_out_of_training(tmp_path):
    text = (USERS_FILES / "validation_split.jsonc").read_text()
    entries = [entry for entry in json5.loads(text) if entry["type"] == "local"]
    trained = {"id": "mine", "instance_data_dir": "mine", "resolution": 512}
    (tmp_path / "split.json").write_text(json.dumps([*entries, trained]))
    flags = {"data_backend_config": str(tmp_path / "split.json"), "eval_dataset_id": "edited-images"}
    data = plan_run(USERS_FILES / "config.jsonc", flags, plugins=PLUGINS).data
    assert {dataset.id: dataset.held_out for dataset in data.target_sets} == {"edited-images": True, "mine": False}
    assert data.by_id("edited-images").references == ("reference-images",)


def test_every_value_written_as_a_string_gives_the_same_run(tmp_path):
    values = json5.loads((USERS_FILES / "config.jsonc").read_text())
    values |= {"max_grad_norm": 0.5, "disable_benchmark": True, "use_ema": False, "num_train_epochs": 0}
    values["data_backend_config"] = str(USERS_FILES / "pairs.jsonc")
    plans = []
    for name, form in (("typed", lambda value: value), ("texts", lambda value: text_of(value))):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({f"--{key}": form(value) for key, value in values.items()}))
        plans.append(plan_run(file, {}, plugins=PLUGINS))
    assert plans[0].config.model_dump() == plans[1].config.model_dump()
    assert plans[0].notes == plans[1].notes


def text_of(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
