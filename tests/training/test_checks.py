"""What training refuses before it computes or writes anything."""

import ml_collections
import pytest
from tiny import TINY_FASTER_RCNN, TINY_YOLO_V1, TINY_YOLO_V2

from detzoo.config import complete
from detzoo.data.catalog import open_dataset
from detzoo.errors import ConfigError, DataError
from detzoo.training.checks import check
from detzoo.training.loop import train_and_evaluate


@pytest.mark.parametrize('section', ['training', 'evaluation'])
def test_train_and_evaluate_refuses_batches_that_devices_cannot_share(tmp_path, tiny_config, linear, section):
    with pytest.raises(ConfigError, match=rf'{section}.batch_size is 12, not a multiple of 8 .*set it to (8|16)'):
        train_and_evaluate(tiny_config(**{f'{section}__batch_size': 12}), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'tiny, canvases, message',
    [
        (
            TINY_YOLO_V1,
            dict(data__canvases=((64, 64), (96, 64))),
            r'fit one alone: .* begins with 64 x 64; remove 96 x 64',
        ),
        (TINY_YOLO_V1, dict(evaluation__canvases=((64, 96),)), 'remove 64 x 96, from evaluation.canvases too'),
        (TINY_YOLO_V2, dict(data__canvases=((64, 64), (64, 68))), 'does not fit a canvas of 64 x 68: '),
        (TINY_YOLO_V2, dict(data__canvases=((68, 64),)), 'does not fit a canvas of 68 x 64: '),
    ],
    ids=str,
)
def test_check_refuses_canvases_that_the_network_does_not_fit(tiny_config, tiny, canvases, message):
    config = tiny_config(**canvases)
    config.model = complete(ml_collections.ConfigDict(dict(model=tiny))).model
    with pytest.raises(ConfigError, match=message):
        check(config, open_dataset('toy', 'train', config.data.data_dir))


@pytest.mark.parametrize('key', ['train_proposals', 'validation_proposals'])
def test_check_names_proposals_that_are_missing_or_too_many(tiny_config, toy, key):
    with pytest.raises(DataError, match=f'retinanet takes no proposals: leave out data.{key}'):
        check(tiny_config(**{f'data__{key}': 'ground_truth'}), toy())
    config = tiny_config(data__train_proposals='a', data__validation_proposals='b')
    config.model = complete(ml_collections.ConfigDict(dict(model=TINY_FASTER_RCNN | dict(rpn=None)))).model
    config.data[key] = None
    with pytest.raises(DataError, match=rf'has no RPN .*: give data.{key}'):
        check(config, toy())
