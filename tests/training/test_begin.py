"""What precedes the first step of a run."""

import jax

from detzoo.data.catalog import open_split
from detzoo.training import begin


def test_training_images_reads_the_records_on_the_first_process_alone_unless_all_need_them(tiny_config, monkeypatch):
    config, read = tiny_config(), begin.read_annotations
    data, validation = (open_split(config.data, split) for split in ('train', 'validation'))
    seen = []
    monkeypatch.setattr(begin, 'read_annotations', lambda dataset: (seen.append(dataset.split), read(dataset))[1])
    for process, empty_images, expected in ((0, True, ['train', 'validation']), (1, True, []), (1, False, ['train'])):
        monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
        seen.clear()
        config.data.empty_images = empty_images
        kept = begin.training_images(config, data, validation, None)
        assert seen == expected and len(kept.records) == (20 if empty_images else 19)
