"""Compiler options of programs that run once."""

import jax

from detzoo.run import parallel


def test_options_to_run_once_respect_the_users_flags_and_accelerators(monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
    assert parallel.options_to_run_once() == {'xla_backend_optimization_level': 1}
    assert jax.jit(lambda x: x + 1, compiler_options=parallel.options_to_run_once())(1) == 2  # XLA knows the option
    monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=0')
    assert parallel.options_to_run_once() == {}
    monkeypatch.setenv('XLA_FLAGS', '')
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    assert parallel.options_to_run_once() == {}
