"""Trainings of MNC and of SDS that are cut and go on: the same bits as if never cut, and an evaluation with masks."""

import pytest
from linear import assert_same, saved
from tiny import TINY_MNC, TINY_SDS

from detzoo.config import complete
from detzoo.inference.dataset import Tally, evaluate_workdir
from detzoo.training import loop

GIVEN = dict(train_proposals='ground_truth', validation_proposals='ground_truth', proposal_mask_size=8, max_proposals=8)
RUNS = {'mnc': (TINY_MNC, {}), 'sds': (TINY_SDS, GIVEN)}


@pytest.mark.full
@pytest.mark.parametrize('name', RUNS)
def test_training_that_was_cut_ends_with_the_same_bits(name, tiny_config, mask_dir, tmp_path):
    config = tiny_config(training__steps=4, training__checkpoint_every=2, training__evaluate_every=2)
    content, (model, data) = config.to_dict(), RUNS[name]
    content['model'] = model
    content['data'] |= dict(data_dir=str(mask_dir), mask_size=8) | data
    config = complete(type(config)(content))
    metrics = loop.train_and_evaluate(config, tmp_path / 'whole')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tally, 'metrics', lambda *args: 1 / 0)  # the first evaluation, behind the checkpoint of step 2
        with pytest.raises(ZeroDivisionError):
            loop.train_and_evaluate(config, tmp_path / 'cut')
    assert saved(tmp_path / 'cut')[0] == 2
    assert loop.train_and_evaluate(config, tmp_path / 'cut') == metrics
    assert_same(saved(tmp_path / 'cut'), saved(tmp_path / 'whole'))
    found, _, results = evaluate_workdir(tmp_path / 'cut')
    assert found['masks'] == metrics['masks'] and all('segmentation' in row for row in results)
    assert results
