"""An unusable output folder is found before anything else is done."""


def test_output_dir_that_is_a_file_is_one_error_before_the_data_is_scanned(command, edit_pairs):
    (edit_pairs.folder / "results").write_text("not a folder")
    for program in ((), ("check",)):
        ended = command(
            *program, *edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--max_train_steps", 1,
            "--output_dir", "results/mine",
        )  # fmt: skip
        assert ended.status == 2
        assert (
            ended.err.splitlines()[-1]
            == f"error: output_dir results/mine: {edit_pairs.folder / 'results'} is a file, not a folder"
        )
        assert "scan" not in ended.err


def test_check_makes_no_output_folder(command, edit_pairs):
    ended = command("check", *edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--max_train_steps", 1)
    assert ended.status == 0, ended.err
    assert not edit_pairs.output.exists()


def test_images_of_a_run_that_never_saved_are_set_aside_too(command, edit_pairs):
    old = edit_pairs.output / "validation" / "step-000004" / "sheet.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"an old image")
    ended = command(*edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--max_train_steps", 1)
    assert ended.status == 0, ended.err
    assert (edit_pairs.output / "previous-1/validation/step-000004/sheet.png").read_bytes() == b"an old image"
    assert "images:" not in ended.err


def test_checkpoint_to_resume_that_is_not_there_is_reported_before_the_data_is_scanned(command, edit_pairs):
    for program in ((), ("check",)):
        ended = command(
            *program, *edit_pairs.kontext, "--data_backend_config", edit_pairs(), "--max_train_steps", 1,
            "--resume_from_checkpoint", "nowhere",
        )  # fmt: skip
        assert ended.status == 2
        assert "resume_from_checkpoint: nowhere is not a checkpoint" in ended.err
        assert "scan" not in ended.err


def test_several_references_are_all_drawn_and_no_note_says_otherwise(command, edit_pairs):
    flags = [*edit_pairs.kontext]
    flags[flags.index("--validation_steps") + 1] = "1"
    ended = command(
        *flags, "--data_backend_config", edit_pairs(reference_sets=2), "--max_train_steps", 1,
        "--conditioning_multidataset_sampling", "combined", "--num_eval_images", 1, "--validation_resolution", 64,
        "--validation_num_inference_steps", 1,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert "the stock pipeline takes" not in ended.err
    assert len(list((edit_pairs.folder / "output/validation/step-000001").glob("*.png"))) > 1
