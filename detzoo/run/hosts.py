"""The processes of one run: how they find each other, and how they end when one of them is gone.

    joined -> jax.distributed.initialize in each process -> the block, in which jax.devices() are those of all processes
      a process is killed, or its machine is lost -> the others end at once, with one message and the exit code LOST
      a process ends with an error -> its own message and exit code; the others end with LOST

Each process keeps a connection to the first one, which tells all others when one breaks. What only JAX notices, a process that
hangs, ends the run too, after HEARTBEAT seconds.
"""

import atexit
import collections
import contextlib
import ctypes
import itertools
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import jax
from jax._src import distributed  # JAX has no public way to say what it does where a process is gone

from detzoo.errors import ConfigError

LOST = 242  # exit code; XPK starts a workload again after 42 and after 127 to 255
START_TIMEOUT = 300  # seconds
HEARTBEAT = 100  # seconds without a sign of life after which JAX takes a process for lost
SILENCE = 60  # seconds without an answer after which the system takes a connection for broken
END_TIMEOUT = 3600  # seconds that the processes wait for each other at their end
GRACE = 5  # seconds in which a process may end with an error of its own, or learn which other one is gone
_KILLED = 'is gone: it was killed, or its machine or network failed'
_KEY = 'detzoo/hosts'  # of the first process's port and token, in JAX's store
_LINE = 200  # bytes of a line at most


class Place(NamedTuple):
    """Which of the processes of a run this one is.

    coordinator_address: 'HOST:PORT' of the first process, the same for all; the port has to be free.
    num_processes: number of processes.
    process_id: number of this process, from 0.
    """

    coordinator_address: str
    num_processes: int
    process_id: int


@contextlib.contextmanager
def joined(place: Place | None = None, *, start_timeout: int = START_TIMEOUT) -> Iterator[None]:
    """Makes this process one of a run; call it before anything else of JAX, once in a process.

    The process ends with the exit code LOST when not all come in time, and when another one is gone while the block runs.

    Args:
        place: which process this one is; by default what JAX learns from the cluster (SLURM, Open MPI, GKE, TPU).
        start_timeout: seconds that the processes wait for each other.

    Raises:
        ConfigError: the place is none, or JAX finds no cluster.
        OSError: the first process cannot open its port.
    """
    others = _Others()
    _initialize(place, others, start_timeout)
    try:
        others.connect()
        yield
    except Exception as error:
        others.end_with(error)
        raise
    except BaseException:  # SystemExit, as of a run that was asked to stop
        others.end()
        raise
    others.end()


def _initialize(place: Place | None, others: '_Others', start_timeout: int) -> None:
    """Starts JAX's distributed runtime, without its reactions to SIGTERM, and to a missing process by a stack trace and abort."""
    if place is not None:
        _check(place)
    jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM for itself
    make_client = distributed._jax.get_distributed_runtime_client

    def make_own_client(*arguments: object, **options: object) -> object:
        return make_client(
            *arguments, **options, shutdown_timeout=END_TIMEOUT, missed_heartbeat_callback=others.missing
        )

    try:
        with mock.patch.object(distributed._jax, 'get_distributed_runtime_client', make_own_client):
            jax.distributed.initialize(
                *(place or ()),
                initialization_timeout=start_timeout,
                heartbeat_timeout_seconds=HEARTBEAT,
                shutdown_timeout_seconds=END_TIMEOUT,
            )
    except ValueError as error:
        raise ConfigError(
            f'JAX finds no cluster here ({error}): say where the first process is, how many there are, and which one this is'
        ) from error
    except RuntimeError:
        state = distributed.global_state
        if state.client is not None:
            _leave(
                f'not all {state.num_processes} processes came within {start_timeout} s. This is process {state.process_id}; '
                f'the first one is expected at {state.coordinator_address}'
            )
        raise  # JAX was in use before


def _check(place: Place) -> None:
    """Checks a place, and the port of the first process: JAX crashes where it cannot open it."""
    host, _, port = place.coordinator_address.rpartition(':')
    if not host or not port.isdecimal():
        raise ConfigError(f'the address of the first process is {place.coordinator_address!r}: write HOST:PORT')
    if not 0 <= place.process_id < place.num_processes:
        raise ConfigError(
            f'there is no process {place.process_id} of {place.num_processes}: their numbers are 0 to {place.num_processes - 1}'
        )
    if place.process_id == 0:
        try:
            _listen(int(port)).close()
        except (OSError, OverflowError) as error:
            raise OSError(f'port {port} cannot be opened here ({error}): take another one') from error


class _Others:
    """The other processes of a run, and the connections that break when one of them is gone.

    All are connected to the first one. A process sends 'TOKEN ID' when it connects, and 'error' or 'end' before its end. The
    first one sends 'lost ID' or 'error ID' when any process is gone, and 'end' before its own end.
    """

    def __init__(self) -> None:
        self._terminate = ctypes.CFUNCTYPE(None)(self.missing)
        self._connections: list[socket.socket] = []
        self._ending, self._leaving = threading.Event(), threading.Lock()

    def connect(self) -> None:
        """Connects this process to the first one, or the first one to all that call, and watches the connections."""
        # JAX 0.10 calls `missing` with a status that it cannot make an object of Python's. So C++ ends the process by
        # std::terminate, of which the handler is set here. Where C++'s library is another one, JAX aborts the process.
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL('libstdc++.so.6')['_ZSt13set_terminatePFvvE'](self._terminate)
        state = distributed.global_state
        self._process_id, self._num_processes = state.process_id, state.num_processes
        if self._process_id == 0:
            server, token = _listen(), secrets.token_hex()
            state.client.key_value_set(_KEY, f'{server.getsockname()[1]} {token}')
            _start(self._welcome, server, token)
            return
        port, token = state.client.blocking_key_value_get(_KEY, 1000 * START_TIMEOUT).split()
        host = state.coordinator_address.rpartition(':')[0].strip('[]')
        try:
            first = socket.create_connection((host, int(port)), timeout=SILENCE)
        except OSError as error:
            _say(
                f'WARNING: port {port} of {host} cannot be reached ({error}): that another process of the run is gone will only be '
                f'noticed after {HEARTBEAT} s'
            )
            return
        self._keep(first)
        self._send(f'{token} {self._process_id}')
        _start(self._hear_first, first)

    def end(self) -> None:
        """Waits until all processes are at their end."""
        jax.distributed.shutdown()
        self._ending.set()
        self._send('end')

    def end_with(self, error: Exception) -> None:
        """Tells the others that this process ends with an error, unless it comes of another one that is gone."""
        if _is_of_jax(error):
            time.sleep(GRACE)  # in which news of another process ends this one
            if 'Gloo' in str(error):  # which connects CPUs, and waits for 30 s
                self._leave(f'another process of the run does not answer any more ({str(error)[:200]})')
        self._ending.set()
        self._send('error 0' if self._process_id == 0 else 'error')
        atexit.register(_exit_with_error)  # JAX would wait for the others

    def missing(self, *_: object) -> None:
        """Ends the process when JAX misses another one, and does not return; if one is gone, the connections say which."""
        time.sleep(GRACE)
        self._leave('another process of the run does not answer any more')
        threading.Event().wait()

    def _welcome(self, server: socket.socket, token: str) -> None:
        """Waits for the other processes, in the first one."""
        while True:
            connection, _ = server.accept()
            connection.settimeout(SILENCE)
            _start(self._hear, connection, token)

    def _hear(self, connection: socket.socket, token: str) -> None:
        """Listens to another process, in the first one."""
        lines = _lines(connection)
        sent, _, process_id = next(lines, '').partition(' ')
        if sent != token:  # no process of this run
            connection.close()
            return
        self._keep(connection)
        last = collections.deque(['lost', *lines], 1).pop()
        if last != 'end':
            self._send(f'{last} {process_id}')
            time.sleep(0.2)  # so that it is read before this process is missed
            self._gone(last, process_id)

    def _hear_first(self, connection: socket.socket) -> None:
        """Listens to the first process, in another one."""
        for line in itertools.chain(_lines(connection), ['lost 0']):
            if line == 'end':
                return
            self._gone(*line.split())

    def _gone(self, how: str, process_id: str) -> None:
        """Ends this process since another one is gone."""
        if how == 'error' and self._ending.wait(GRACE):  # this one has an error of its own
            return
        what = 'ended with an error, see its output' if how == 'error' else _KILLED
        self._leave(f'process {process_id} of {self._num_processes} {what}')

    def _leave(self, reason: str) -> None:
        """Ends this process, unless it is at its end already."""
        self._leaving.acquire()  # for good: one message is enough
        if not self._ending.is_set():
            _leave(reason)

    def _keep(self, connection: socket.socket) -> None:
        """Keeps a connection, of which the system tests from now on whether there is an other end."""
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        quarter = SILENCE // 4
        times = dict(TCP_KEEPIDLE=quarter, TCP_KEEPINTVL=quarter, TCP_KEEPCNT=3, TCP_USER_TIMEOUT=1000 * SILENCE)
        for name, value in times.items():
            if hasattr(socket, name):  # Linux has them all
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._connections.append(connection)

    def _send(self, line: str) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # it broke, which another thread notices
                connection.sendall(f'{line}\n'.encode())


def _listen(port: int = 0) -> socket.socket:
    """Opens a port for the other processes: one that is free by default."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(('', port))


def _lines(connection: socket.socket) -> Iterator[str]:
    """Yields the lines from a connection until it ends or breaks."""
    with contextlib.suppress(OSError), connection.makefile('rb') as file:
        while line := file.readline(_LINE):
            yield line.decode('ascii', 'replace').strip()


def _start(function: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


def _is_of_jax(error: BaseException | None) -> bool:
    """Tells whether JAX raised an error, or what it followed from."""
    while error is not None and not isinstance(error, jax.errors.JaxRuntimeError):
        error = error.__cause__ or error.__context__
    return error is not None


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f'\n{text}\n'.encode())  # not through Python's buffers, of which the main thread may hold the lock


def _leave(reason: str) -> None:
    """Ends the process at once, whatever its other threads wait for: files are complete at every moment."""
    _say(f'error: {reason}. Start all processes again: the run goes on from its newest checkpoint')
    os._exit(LOST)


def _exit_with_error() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(1)
