"""The processes of a run, as far as one process can test them; tests/training/test_processes.py starts several."""

import socket

import jax
import pytest

from detzoo.errors import ConfigError
from detzoo.run.hosts import Place, joined


def test_joined_says_what_is_missing_where_jax_finds_no_cluster(monkeypatch):
    def initialize(*arguments, **options):
        raise ValueError('coordinator_address should be defined.')  # as JAX does

    monkeypatch.setattr(jax.distributed, 'initialize', initialize)
    before = jax.config.jax_enable_preemption_service
    with pytest.raises(ConfigError, match='JAX finds no cluster here .coordinator_address should'), joined():
        pass
    jax.config.update('jax_enable_preemption_service', before)


def test_joined_names_a_port_that_is_taken():
    with socket.create_server(('', 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f'port {port} cannot be opened here .*in use.*: take another one'):
            with joined(Place(f'localhost:{port}', 2, 0)):
                pass
