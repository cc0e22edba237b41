"""The measurements in the closing words of a run."""

from difftrain.validation.run_summary import describe_losses, describe_psnr


def line(mean, *names, reference=21.94):
    return {"psnr": mean, "psnr_reference": reference, "psnr_by_image": dict.fromkeys(names or ("a", "b"), mean)}


def test_psnr_of_held_out_images_says_reference_first_and_last():
    told = describe_psnr({0: line(21.0), 300: line(23.11)}, held_out=True, seeds=3)
    assert told == (
        "PSNR to the target, mean of 2 held-out images x 3 seeds: "
        "reference 21.9 dB, at step 0 21.0 dB, at step 300 23.1 dB"
    )


def test_the_best_validation_is_reported_when_it_is_not_the_last():
    told = describe_psnr({0: line(21.0), 50: line(24.0), 75: line(22.0), 100: line(23.0)}, held_out=True, seeds=1)
    assert told.endswith("at step 0 21.0 dB, at step 50 24.0 dB, at step 100 23.0 dB")


def test_one_training_image_without_reference():
    measured = {5: {"psnr": 20.0, "psnr_by_image": {"a": 20.0}}}
    assert describe_psnr(measured, held_out=False, seeds=1) == "PSNR to the target, 1 training image: at step 5 20.0 dB"


def test_nothing_measured_says_nothing():
    assert describe_psnr({}, held_out=True, seeds=1) is None


def test_loss_says_whether_its_samples_are_held_out():
    assert describe_losses({0: 0.5}, count=4, held_out=True) == (
        "loss on the same 4 held-out samples and noise: 0.5000 at step 0"
    )
    assert describe_losses({0: 0.5}, count=4, held_out=False).startswith("loss on the same 4 samples and noise: ")
