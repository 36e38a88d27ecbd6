"""strategy=auto copies what fits on a device and splits what does not."""

import pytest

from helpers import SHORT


@pytest.mark.soak
def test_what_does_not_fit_on_a_device_is_split(command):
    # The bundled model in fp32, trained in full, takes 59 MB and what a row needs.
    small = ("method=full", "hardware=rtx4090", "hardware.vram_gb=0.06", "data.max_length=64")
    ran = command(*SHORT, *small, "trainer.devices=2", "trainer.max_steps=2")
    assert ran.code == 0, ran.err + ran.out
    assert "strategy=auto: fsdp, the model does not fit on a device" in ran.out
    assert ran.record["metrics"]["after"]["eval/loss"] < ran.record["metrics"]["before"]["eval/loss"]
