"""A reported sweep, which the tests of reports share."""

import shutil

import pytest
from drawn_sweep import RESAMPLES, Page, make_store

from detzoo.report.page import write_report
from detzoo.sweeps.store import Store


@pytest.fixture(scope='session')
def store(tmp_path_factory):
    """A reported store; to be copied before it is changed."""
    made = make_store(tmp_path_factory.mktemp('sweep'))
    write_report(made.folder, RESAMPLES)
    return made


@pytest.fixture(scope='session')
def page(store):
    return Page((store.folder / 'report.html').read_text(encoding='utf-8'))


@pytest.fixture(scope='session')
def markdown(store):
    return (store.folder / 'report.md').read_text(encoding='utf-8')


@pytest.fixture
def copy(store, tmp_path):
    """A store of one's own."""
    return Store(shutil.copytree(store.folder, tmp_path / 'copy'))
