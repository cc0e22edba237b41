"""Results beyond a step in a run's folder, and which sheet is the newest."""

from difftrain.output.output_dir import newest_sheet, set_newer_aside


def drawn(output_dir, step):
    sheet = output_dir / "validation" / f"step-{step:06d}" / "sheet.png"
    sheet.parent.mkdir(parents=True)
    sheet.write_bytes(b"a sheet")
    return sheet


def test_the_newest_sheet_is_that_of_the_greatest_step(tmp_path):
    sheets = [drawn(tmp_path, step) for step in (0, 999_999, 1_000_000)]
    assert newest_sheet(tmp_path) == sheets[-1]


def test_a_validation_that_was_stopped_before_its_sheet_is_passed_over(tmp_path):
    sheet = drawn(tmp_path, 4)
    drawn(tmp_path, 8).unlink()
    assert newest_sheet(tmp_path) == sheet


def test_a_run_that_drew_nothing_has_no_sheet(tmp_path):
    assert newest_sheet(tmp_path) is None


def test_images_that_a_kill_left_beyond_the_newest_checkpoint_are_set_aside_and_the_adapter_stays(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"of step 4")
    kept, stale = drawn(tmp_path, 4), drawn(tmp_path, 6)
    assert set_newer_aside(tmp_path, 4) == tmp_path / "previous-1"
    assert newest_sheet(tmp_path) == kept
    assert (tmp_path / "previous-1" / stale.relative_to(tmp_path)).is_file()
    assert (tmp_path / "pytorch_lora_weights.safetensors").is_file()


def test_nothing_beyond_the_step_moves_nothing(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    drawn(tmp_path, 4)
    assert set_newer_aside(tmp_path, 4) is None
    assert not (tmp_path / "previous-1").exists()
