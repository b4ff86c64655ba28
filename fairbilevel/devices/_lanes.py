"""Threads whose calls of one program are computed as one, by ``vmap``: small networks side by side
fill a device that each alone would leave idle."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

_own = threading.local()


Together = Callable[[Sequence["Call"], int], Sequence[Any]]


@dataclass(eq=False)
class Call:
    """What a lane asks: calls of one key are computed together.

    Attributes:
        key: the program and everything that decides what is computed.
        together: from calls of one key, at most ``width``, and the width, to their results.
        arguments: of the program.
        costs: has ``compile_seconds``.
        turn: loops that the lane has run before; -1 of a call that is no loop.
        result: once it is there.
        error: what was raised instead.
        done: whether the lane may go on.
    """

    key: Hashable
    together: Together
    arguments: Any
    costs: Any
    turn: int = -1
    result: Any = None
    error: BaseException | None = None
    done: bool = False


@dataclass(eq=False)
class Lanes:
    """A meeting place of threads.

    A lane that calls a program waits until every other lane calls one too, or has left. Of what is
    asked then, one call and those equal to it are answered: one that is no loop, and among loops
    one of the lane that is farthest behind. So lanes meet again at the next loop, where the time
    goes, after one had more to do than others between two of them, or began later.

    Attributes:
        width: calls computed as one at most.
    """

    width: int
    _change: threading.Condition = field(default_factory=threading.Condition)
    _asked: list[Call] = field(default_factory=list)
    _loops: dict[int, int] = field(default_factory=dict)  # run by the threads that are in
    _stopped: bool = False

    @contextlib.contextmanager
    def lane(self) -> Iterator[None]:
        """Makes a lane of the calling thread."""
        me = threading.get_ident()
        with self._change:
            self._loops[me] = min(self._loops.values(), default=0)
        _own.lanes, _own.together = self, True
        try:
            yield
        finally:
            _own.lanes = None
            with self._change:
                del self._loops[me]
                self._answer()

    def ask(self, key: Hashable, together: Together, arguments: Any, costs: Any, loop: bool) -> Any:
        """The result of a program, computed with what other lanes ask.

        Args:
            key: see ``Call``, as the others.
            together: from calls to results.
            arguments: of the program.
            costs: where compiling is booked.
            loop: whether it is one.
        """
        me = threading.get_ident()
        call = Call(key, together, arguments, costs)
        with self._change:
            if loop:
                call.turn = self._loops[me]
                self._loops[me] += 1
            self._asked.append(call)
            self._answer()
            while not (call.done or self._stopped):
                self._change.wait()
        if self._stopped:
            raise SystemExit("the runs side by side were stopped")
        if call.error is not None:
            raise call.error
        return call.result

    def stop(self) -> None:
        """End every lane at its next call: a thread cannot be interrupted."""
        with self._change:
            self._stopped = True
            self._change.notify_all()

    def _answer(self) -> None:
        """Compute a group of what is asked, once all lanes have asked; nothing after a stop."""
        if self._stopped or not self._asked or len(self._asked) < len(self._loops):
            return
        first = min(self._asked, key=lambda call: call.turn)
        group = [call for call in self._asked if call.key == first.key][: self.width]
        _own.together, before = False, getattr(_own, "together", False)
        try:
            results = first.together(group, self.width)
            for call, result in zip(group, results, strict=True):
                call.result = result
        except BaseException as error:
            for call in group:
                call.error = error
        finally:
            _own.together = before
        for call in group:
            call.done = True
        self._asked = [call for call in self._asked if not call.done]
        self._change.notify_all()


def lanes() -> Lanes | None:
    """Those that the calling thread is one of, unless it is ``apart``."""
    return getattr(_own, "lanes", None) if getattr(_own, "together", False) else None


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """The thread's programs run alone inside: for what others wait for."""
    before, _own.together = getattr(_own, "together", False), False
    try:
        yield
    finally:
        _own.together = before


def share_of_time() -> float:
    """The part of the time that passes which is this thread's: lanes share it."""
    own: Lanes | None = getattr(_own, "lanes", None)
    return 1.0 if own is None else 1.0 / max(len(own._loops), 1)
