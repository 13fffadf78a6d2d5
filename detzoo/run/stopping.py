"""Requests to stop a run: SIGTERM, as before a preemption, and SIGINT, as by Ctrl-C.

    signal -> the thread of `StopRequest.listen` -> StopRequest.number
      -> asked for after each step and each batch of an evaluation; what can be lost is saved
      -> Stopped -> the exit code of the command, which goes on when it is started again

Python calls its handlers in the main thread, between two instructions: not while XLA compiles. The system writes the number of
a signal into a socket at once, and a thread reads it there.
"""

import contextlib
import os
import signal
import socket
import threading

# 42 tells XPK and others to start the command again; 130 is what shells give for Ctrl-C.
EXIT_CODES = {signal.SIGTERM: 42, signal.SIGINT: 130}
GRACE = 30.0  # seconds from SIGTERM to SIGKILL: those of Kubernetes
SPARE = 5.0  # seconds of them in which the process ends


class Stopped(Exception):  # noqa: N818, it is no error
    """A run has stopped because it was asked to, and goes on when it is started again."""

    def __init__(self, number: int, where: str):
        """Describes where a run stopped.

        Args:
            number: the signal that asked for it.
            where: what the message says after the name of the signal.
        """
        super().__init__(f'stopped by {signal.Signals(number).name} {where}')
        self.exit_code = EXIT_CODES[number]


class StopRequest:
    """Whether a run is asked to stop.

    number: the signal that asked for it, the first one; 0 for none.
    grace: seconds from SIGTERM to SIGKILL.
    running: whether the run will look at `number` soon. While it is False there is nothing to save, and a signal ends the
        process at once.
    """

    def __init__(self) -> None:
        self.number, self.grace, self.running = 0, GRACE, False
        self._accepted, self._interrupts = False, 0

    def listen(self) -> None:
        """Takes SIGTERM and SIGINT from now on, until the process ends; call it in the main thread."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
        for number in EXIT_CODES:
            signal.signal(number, _ignore)  # a handler of Python's, without which nothing is written into the socket
        threading.Thread(target=self._read, args=[reader], daemon=True).start()

    def ask(self, number: int) -> None:
        """Asks the run to stop, as a signal does.

        The run ends at once with a second SIGINT, and where it does not accept a SIGTERM within the grace.
        """
        self._interrupts += number == signal.SIGINT
        if self._interrupts == 2:
            _leave(number, 'at once')
        elif self.number == 0:
            self.number = number
            if not self.running:
                _leave(number, 'where nothing had to be saved')
            elif number == signal.SIGTERM:
                timer = threading.Timer(max(0.0, self.grace - SPARE), self._end_unless_accepted)
                timer.daemon = True
                timer.start()
            else:
                _say('SIGINT: stops once the state is saved; a second one ends the process at once')

    def accept(self) -> None:
        """Says that the run saves its state and ends, which may take as long as the system lets it."""
        self._accepted = True

    def _read(self, reader: socket.socket) -> None:
        while True:
            for number in reader.recv(16):
                if number in EXIT_CODES:  # the socket gets those of all handlers
                    self.ask(signal.Signals(number))

    def _end_unless_accepted(self) -> None:
        if not self._accepted:
            _leave(self.number, f'in a step, compilation or evaluation that took all of the {self.grace:g} s of grace')


def _ignore(*_: object) -> None:
    """Does nothing in the main thread: another one has read the signal."""


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f'\n{text}\n'.encode())  # not through Python's buffers, of which the main thread may hold the lock


def _leave(number: int, where: str) -> None:
    """Ends the process at once, wherever its other threads are: files are complete at every moment."""
    _say(f'{Stopped(number, where)}. The same command goes on from the newest checkpoint')
    os._exit(EXIT_CODES[number])
