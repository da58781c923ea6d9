"""Let Ctrl-C end the command at any time."""

import _thread
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

AGAIN = 0.05  # seconds


class Interrupts:
    """While this is open, no Ctrl-C is lost.

    Python drops a `KeyboardInterrupt` that is raised in a destructor or a callback of the import system and prints its
    traceback. Here such an interrupt is raised again a moment later. `came` is true after the first Ctrl-C, because a
    library that is interrupted during its import may raise another exception instead.
    """

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> "Interrupts":
        ours = threading.current_thread() is threading.main_thread()
        self._active = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._active:
            self._hook = sys.unraisablehook
            signal.signal(signal.SIGINT, self._interrupt)
            sys.unraisablehook = self._dropped
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._active:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.unraisablehook = self._hook

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt

    def _dropped(self, dropped: Any) -> None:  # `sys.UnraisableHookArgs`, a name that only type checkers know
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            again = threading.Timer(AGAIN, _interrupt_again)
            again.daemon = True
            again.start()
        else:
            self._hook(dropped)


def _interrupt_again() -> None:
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, signal.SIGINT)  # this ends a system call too
    else:
        _thread.interrupt_main()
