"""Success is only said of what exists."""

import pytest
import torch
from conftest import small_patches
from training.test_state import begin

from dnnlib.errors import UserError
from multiscale.data.patches import PatchDataset
from multiscale.runs.states import states_of


@pytest.mark.parametrize("since", [0, 3])
def test_a_run_that_ends_with_gradients_that_are_not_finite_is_an_error_that_names_what_exists(tmp_path, capsys, since):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    trainer = begin(dataset, tmp_path / "run", kimg=0.016)
    step = trainer.train_step

    def spoilt(real, labels):
        if trainer.step >= since:
            with torch.no_grad():
                next(trainer.G.parameters()).fill_(float("nan"))
        step(real, labels)

    trainer.train_step = spoilt
    with pytest.raises(UserError, match=f"not been finite for {4 - since} step") as caught:
        trainer.run()
    newest = states_of(tmp_path / "run")[-1]
    assert str(newest) in str(caught.value)
    assert "Trained" not in capsys.readouterr().out
