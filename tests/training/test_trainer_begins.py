"""A trainer that was only made has changed nothing."""

import torch

from esim_fast.training import Recipe
from tests.training.training_tasks import new_model, new_trainer


def test_it_writes_nothing_and_seeds_nothing_before_it_runs(tmp_path):
    model, directory = new_model(), tmp_path / "m"
    before = torch.get_rng_state()
    trainer = new_trainer(Recipe(epochs=1), directory, model)
    assert torch.equal(torch.get_rng_state(), before)
    assert not directory.exists()
    trainer.run()
    files = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    model = new_model(seed=7)
    before = torch.get_rng_state()
    assert new_trainer(Recipe(epochs=2), directory, model, resume=True).resumed
    assert torch.equal(torch.get_rng_state(), before)
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == files
