"""The folder of a run's results: found unusable before anything else is done."""


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
