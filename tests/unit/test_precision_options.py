"""Which quantizers a run file asks for: of the denoiser, and of each text encoder."""

import pytest
from config_runs import error_of, plan, run_values

from difftrain.startup.encoded_form import text_identity
from difftrain.types import ModelLocation
from difftrain_flux import family as flux_family

PLACE = ModelLocation(name="x", identity="x", path=None)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def names(run):
    return [quantizer and quantizer.name for quantizer in run.text_quantizers]


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, []),
        ({"text_encoder_1_precision": "bf16", "text_encoder_3_precision": "no_change"}, []),
        ({"text_encoder_2_precision": "int8-quanto"}, [None, "int8-quanto"]),
        (
            {"text_encoder_1_precision": "fp8-matmul", "text_encoder_2_precision": "int8-quanto"},
            ["fp8-matmul", "int8-quanto"],
        ),
    ],
)
def test_each_text_encoder_has_its_own_quantizer(options, chosen):
    assert names(plan(run_values(**options))) == chosen


def test_a_precision_for_an_encoder_that_the_family_lacks_is_an_error_with_their_number():
    assert error_of(run_values(text_encoder_3_precision="int8-quanto")) == (
        "text_encoder_3_precision 'int8-quanto': model_family 'flux' has 2 text encoders to quantise; "
        "leave this key out"
    )


def test_an_unknown_precision_of_an_encoder_names_its_key_and_the_nearest():
    said = error_of(run_values(text_encoder_2_precision="int8-quant"))
    assert said.startswith(
        "text_encoder_2_precision: unknown quantizer 'int8-quant'; did you mean 'int8-quanto'? known: fp4-bnb, "
    )
    assert "auto" in error_of(run_values(text_encoder_2_precision="auto"))  # only of the denoiser


@pytest.mark.parametrize("name", ["fp8", "float8", "float8_e4m3fn", "int8"])
@pytest.mark.parametrize("key", ["base_model_precision", "text_encoder_1_precision"])
def test_a_name_that_may_mean_several_formats_is_an_error_that_lists_them(key, name):
    said = error_of(run_values(**{key: name}))
    first = "int8" if name == "int8" else "fp8"
    assert said.startswith(f"{key} {name!r} may be {first}-matmul, {first}-torchao or {first}-quanto; name one of them")


@pytest.mark.parametrize("key", ["base_model_precision", "text_encoder_2_precision"])
def test_a_precision_that_cannot_be_built_is_an_error_that_says_why_and_names_others(key):
    assert error_of(run_values(**{key: "fp8-bnb"})) == (
        f"{key} 'fp8-bnb': bitsandbytes stores no weights as 8-bit floats; fp8-matmul, fp8-torchao and fp8-quanto do"
    )


def test_a_precision_changes_the_cache_of_captions_only_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(flux_family, "part_identity", lambda *_: "parts")
    plain = text_identity(plan(), PLACE)
    options = ({"text_encoder_1_precision": "int8-matmul"}, {"text_encoder_2_precision": "int8-matmul"})
    others = [text_identity(plan(run_values(**each)), PLACE) for each in options]
    rotated = text_identity(plan(run_values(**options[0], int8_rotation=True)), PLACE)
    assert plain.endswith("|torch.bfloat16")
    assert others == [f"{plain}|1:int8-matmul", f"{plain}|2:int8-matmul"]
    assert len({plain, *others, rotated}) == 4
    assert text_identity(plan(run_values(base_model_precision="int8-matmul")), PLACE) == plain


def test_an_option_of_a_quantizer_is_used_by_a_text_encoder_and_by_auto():
    for options in ({"text_encoder_1_precision": "int8-matmul"}, {"base_model_precision": "auto"}):
        assert plan(run_values(int8_rotation=True, **options)).notes == ()
    assert "int8_rotation: no effect" in plan(run_values(int8_rotation=True)).notes[0]


def test_auto_has_no_quantizer_before_the_machine_is_known():
    run = plan(run_values(base_model_precision="auto"))
    assert (run.config.base_model_precision, run.quantizer) == ("auto", None)


def test_where_weights_are_quantised_is_a_choice():
    assert plan().config.quantize_via == "accelerator"
    assert plan(run_values(quantize_via="cpu")).config.quantize_via == "cpu"
    assert "quantize_via must be 'accelerator' or 'cpu'" in error_of(run_values(quantize_via="gpu"))
