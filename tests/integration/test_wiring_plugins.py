"""Plugin files and switches change the assembled run."""

import json

import pytest
from long_runs import changed

from conftest import EditPairs, read_metrics, run_in

WATCHING = '''
import json

from pydantic import PrivateAttr

from difftrain import Observer, hookimpl


@hookimpl
def difftrain_check_config(config):
    return ["this run is not wanted"] if config.max_train_steps == 13 else []


class Watching(Observer):
    """Records what it is told."""

    name = "watching"
    watch_as: str = "watched"
    """Name of the file, without its extension."""

    _notes: list = PrivateAttr(default_factory=list)

    def note(self, event, **facts):
        self._notes.append({"event": event, **facts})

    def run_start(self, run):
        there = run.output_dir.is_dir()
        self.note("start", total=run.total_steps, first=run.first_step, seed=run.config.seed, there=there)

    def step_end(self, result):
        self.note("step", step=result.step)

    def checkpoint_saved(self, step, path):
        self.note("saved", step=step, there=path.is_dir())

    def validation_end(self, result):
        files = {name: path.is_file() for name, path in result.files.items()}
        self.note("validated", step=result.step, metrics=result.metrics, files=files, on=list(result.measured_on))

    def run_end(self, step, status):
        self.note("end", step=step, status=status)
        with open(f"{self.watch_as}.jsonl", "w") as file:
            file.writelines(json.dumps(note) + "\\n" for note in self._notes)


@hookimpl
def difftrain_observers():
    return (Watching,)
'''


@pytest.fixture
def train(tmp_path):
    pairs = EditPairs(tmp_path)
    (tmp_path / "watching.py").write_text(WATCHING)
    arguments = (*pairs.kontext, "--data_backend_config", pairs(count=2), "--plugins", "./watching.py")
    return lambda **options: run_in(tmp_path, *changed(arguments, **options))


VALIDATING = {
    "validation_steps": 2, "validation_num_inference_steps": 1, "validation_resolution": 64, "num_eval_images": 1,
}  # fmt: skip


def told(folder, name="watched"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_observers_are_told_of_everything_in_its_order(train, tmp_path):
    ended = train(max_train_steps=2, seed=7, **VALIDATING)
    assert ended.status == 0, ended.err
    notes = told(tmp_path)
    validated = notes.pop(4)
    assert notes == [
        {"event": "start", "total": 2, "first": 0, "seed": 7, "there": True},
        {"event": "step", "step": 1},
        {"event": "step", "step": 2},
        {"event": "saved", "step": 2, "there": True},
        {"event": "end", "step": 2, "status": "finished"},
    ]
    (line,) = [line for line in read_metrics(tmp_path / "output") if "fixed_loss" in line]
    assert validated["metrics"] == {name: line[name] for name in ("fixed_loss", "psnr", "psnr_reference")}
    assert set(validated["files"]) == {"sheet", *line["psnr_by_image"]}
    assert all(validated["files"].values())
    assert validated["on"] == ["fixed_loss", "psnr"]


def test_an_observers_fields_are_run_options(train, tmp_path):
    ended = train(max_train_steps=1, watch_as="elsewhere")
    assert ended.status == 0, ended.err
    assert "no effect" not in ended.err
    assert told(tmp_path, "elsewhere")[-1] == {"event": "end", "step": 1, "status": "finished"}


def test_wrong_options_of_an_observer_are_reported_with_the_nearest_name(train):
    ended = train(max_train_steps=1, watch_az="elsewhere")
    assert ended.status == 2
    assert "did you mean --watch_as?" in ended.err


def test_the_metrics_file_has_what_it_had(train, tmp_path):
    assert train(max_train_steps=2, **VALIDATING).status == 0
    *steps, validated = read_metrics(tmp_path / "output")
    assert [line["step"] for line in steps] == [1, 2]
    assert set(validated) == {
        "step", "fixed_loss", "fixed_loss_on", "psnr", "psnr_reference", "psnr_by_image", "psnr_on",
    }  # fmt: skip


REFUSING = '''
from pydantic import model_validator

from difftrain import Observer, hookimpl


class Refusing(Observer):
    """Cannot be built."""

    name = "refusing"
    tracker_project: str = "none"
    """Destination."""

    @model_validator(mode="after")
    def _check(self):
        if self.tracker_project == "bad":
            raise ValueError("a project may not be called bad")
        if self.tracker_project == "worse":
            raise RuntimeError("no server")
        return self


@hookimpl
def difftrain_observers():
    return (Refusing,)
'''


@pytest.mark.parametrize(
    ("project", "told"),
    [
        ("bad", "error: observer 'refusing': a project may not be called bad"),
        ("worse", "error: observer 'refusing' of file refusing.py cannot be built: RuntimeError: no server"),
    ],
)
def test_an_observer_that_cannot_be_built_is_an_error_that_names_it(train, tmp_path, project, told):
    (tmp_path / "refusing.py").write_text(REFUSING)
    ended = train(max_train_steps=1, plugins="./refusing.py", tracker_project=project)
    assert ended.status == 2
    assert told in ended.err
    assert not (tmp_path / "output").exists()


def test_a_plugin_is_asked_whether_the_config_is_right_before_anything_is_read(train, tmp_path):
    ended = train(max_train_steps=13)
    assert ended.status == 2
    assert ended.err.startswith("error: this run is not wanted")
    assert not (tmp_path / "watched.jsonl").exists()


def test_a_plugin_that_is_turned_off_gives_nothing(train):
    ended = train(max_train_steps=1, disable_plugin="flux_kontext")
    assert ended.status == 2
    assert "unknown flavour 'kontext'" in ended.err
    assert "plugin 'flux_kontext' is turned off" in ended.err
