"""The processes of a run, as far as one process can test them; tests/training/test_processes.py starts several."""

import jax
import pytest

from detzoo.errors import ConfigError
from detzoo.run.hosts import joined


def test_joined_says_what_is_missing_where_jax_finds_no_cluster(monkeypatch):
    def initialize(*arguments, **options):
        raise ValueError('coordinator_address should be defined.')  # as JAX does

    monkeypatch.setattr(jax.distributed, 'initialize', initialize)
    before = jax.config.jax_enable_preemption_service
    with pytest.raises(ConfigError, match='JAX finds no cluster here .coordinator_address should'), joined():
        pass
    jax.config.update('jax_enable_preemption_service', before)
