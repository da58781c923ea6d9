"""Let Ctrl-C and SIGTERM end the command at any time."""

import _thread
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

AGAIN = 0.05  # seconds
RAISED = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}  # the exceptions by which signals end a command


class Interrupts:
    """While this is open, no Ctrl-C and no SIGTERM is lost.

    Python drops an exception that a signal raises in a destructor or a callback of the import system, and prints its
    traceback. Here such a signal is raised again a moment later. `came` is true after the first Ctrl-C, because a
    library that is interrupted during its import may raise another exception instead.
    """

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> "Interrupts":
        ours = threading.current_thread() is threading.main_thread()
        self._active = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._dropped
        if self._active:
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        sys.unraisablehook = self._hook
        if self._active:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt

    def _dropped(self, dropped: Any) -> None:  # `sys.UnraisableHookArgs`, a name that only type checkers know
        number = next((number for kind, number in RAISED.items() if isinstance(dropped.exc_value, kind)), None)
        if number is None:
            return self._hook(dropped)
        again = threading.Timer(AGAIN, _raise_again, [number])
        again.daemon = True
        again.start()


def _raise_again(number: signal.Signals) -> None:
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, number)  # this ends a system call too
    else:
        _thread.interrupt_main(number)
