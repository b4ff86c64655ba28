"""Checkpoints of a run: asynchronous, whole or not at all (Orbax), checked when they are read.

A run is a chain of activities (the dense model, the method, the baseline). Each keeps checkpoints
of its own, so that a run that is started again walks through the chain and enters every activity
where it stopped: at its end, in its middle or not yet.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairbilevel import _trees, devices
from fairbilevel.records._files import RecordError
from fairbilevel.records._stored import (
    CheckpointError,
    abstract,
    bare,
    digest_arrays,
    digest_json,
    held,
    like_stored,
    not_of_orbax,
    plainly,
    quiet_stragglers,
)

CHECKPOINT_SCHEMA = 2
_STATE, _ABOUT = "state", "about"


class Interrupted(Exception):
    """The run was asked to stop, and did so after writing a checkpoint.

    Attributes:
        signal: name of the signal that asked, for example ``"SIGTERM"``.
    """

    def __init__(self, signal: str):
        self.signal = signal
        super().__init__(f"stopped by {signal}; a checkpoint was written")


@dataclass
class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they go; made when the first is written.
        every: seconds between two of an activity; its last is always written.
        keep: newest ones kept of each activity, besides its best by the score given to ``save``.
        say: is told what a user should know, such as a damaged checkpoint.

    Raises:
        ValueError: an option outside its range.
    """

    folder: Path
    every: float = 30.0
    keep: int = 2
    say: Callable[[str], None] = lambda sentence: None
    _prefix: str = ""
    _shared: _Shared = field(default_factory=lambda: _Shared())

    def __post_init__(self) -> None:
        self.folder = Path(self.folder).absolute()
        if not 0 <= self.every < np.inf:
            raise ValueError(f"every must be a finite number of seconds, got {self.every}")
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}")

    def below(self, name: str) -> Checkpoints:
        """The same run's, for a part of it whose activities have the names of another part's."""
        return dataclasses.replace(self, _prefix=f"{self._prefix}{name}-")

    def activity(self, name: str, expected: Mapping[str, Any]) -> Activity:
        """The checkpoints of one activity.

        Args:
            name: of the activity, a folder's name.
            expected: what must be the same to go on from them; plain JSON.
        """
        activity = Activity(self, self._prefix + name, expected)
        self._shared.activities.append(activity)
        return activity

    def request_stop(self, signal: str) -> None:
        """Have the run write a checkpoint at the next opportunity, then raise ``Interrupted``."""
        self._shared.stop = signal

    @property
    def stop(self) -> str | None:
        """The signal that asked to stop, if one did."""
        return self._shared.stop

    @property
    def empty(self) -> bool:
        """Whether no checkpoint was ever begun here."""
        return not self.folder.is_dir() or not any(self.folder.iterdir())

    def close(self) -> None:
        """Wait for what is being written.

        Raises:
            CheckpointError: it could not be.
        """
        while self._shared.activities:
            self._shared.activities.pop().close()

    def discard(self) -> None:
        """Remove them all: the run is complete."""
        self.close()
        if jax.process_index() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class _Shared:
    """What all parts of a run's checkpoints have in common."""

    activities: list[Activity] = field(default_factory=list)
    stop: str | None = None


class Activity:
    """The checkpoints of one activity; see ``Checkpoints.activity``."""

    def __init__(self, owner: Checkpoints, name: str, expected: Mapping[str, Any]):
        self.name, self.expected = name, dict(expected)
        self._owner, self._folder = owner, owner.folder / name
        self._opened: Any = None
        self._quiet = quiet_stragglers()
        self._saved_at = time.monotonic()

    @property
    def _manager(self) -> Any:
        if self._opened is None:
            import orbax.checkpoint as ocp
            from orbax.checkpoint import checkpoint_managers as managers

            for name in ("absl", "asyncio"):
                logging.getLogger(name).addFilter(not_of_orbax)
            best = managers.BestN(get_metric_fn=lambda metrics: metrics["score"], n=1)
            policy = managers.AnyPreservationPolicy([managers.LatestN(self._owner.keep), best])
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policy, cleanup_tmp_directories=True
            )
            with plainly(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._opened = ocp.CheckpointManager(self._folder, options=options)
            self._quiet.__enter__()
        return self._opened

    def resume(self, like: Callable[[dict[str, Any]], Any]) -> tuple[Any, dict[str, Any]] | None:
        """The newest whole checkpoint, ``None`` where there is none.

        A damaged one is said, removed and passed over for the one before it.

        Args:
            like: from what was saved beside the state to a pytree of its structure, whose leaves
                have the shapes, types and shardings to read it with.

        Returns:
            The state and what was saved beside it.

        Raises:
            CheckpointError: it belongs to a run on other data, with other settings or of another
                schema.
        """
        if not _agreed(self._folder.is_dir(), None)[0]:
            return None
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            found, objection, damage = None, None, None
            with quiet_stragglers() as quiet:
                try:
                    about = self._read_about(step)
                    objection = self._objection(about)
                    if objection is None:
                        found = self._read_state(step, like(about), about), about
                except Exception as error:  # whatever damage makes Orbax raise
                    quiet.wait()
                    damage = error
            if not devices.all_say(damage is None):  # one process may see what others do not
                damage = damage or RecordError("another process cannot read it")
                self._pass_over(step, damage, last=step == steps[-1])
            elif objection is not None:
                raise CheckpointError(f"the checkpoints in {self._owner.folder} {objection}")
            else:
                return found
        return None

    def _pass_over(self, step: int, error: Exception, *, last: bool) -> None:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        self._owner.say(
            f"checkpoint {step} of {self.name} is damaged ({reason}): it is left out, "
            + ("there is none before it" if last else "the one before it is used")
        )
        self._manager.delete(step)

    def _read_about(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        stored = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        about = stored[_ABOUT]
        if digest_json(about["body"]) != about["digest"]:
            raise RecordError("its description does not match its checksum")
        return dict(about["body"])

    def _objection(self, about: dict[str, Any]) -> str | None:
        """Why a checkpoint cannot be gone on from, if it cannot."""
        if about["schema_version"] != CHECKPOINT_SCHEMA:
            return (
                f"have schema {about['schema_version']}, this version of fairbilevel goes on from "
                f"schema {CHECKPOINT_SCHEMA}: start the run anew, or go on with the version that "
                "wrote them"
            )
        changed = differences(about["expected"], self.expected)
        return f"belong to another run: {changed}" if changed else None

    def _read_state(self, step: int, like: Any, about: dict[str, Any]) -> Any:
        import orbax.checkpoint as ocp

        leaves, structure = jax.tree.flatten(like)
        names = list(_trees.flatten_named(like))
        if names != about["names"]:
            raise RecordError("its state has other parts than the run")
        wanted = {str(i): abstract(bare(leaf)) for i, leaf in enumerate(leaves) if np.size(leaf)}
        stored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
        )[_STATE]
        for i, value in stored.items():
            if np.shape(value) != wanted[i].shape or value.dtype != wanted[i].dtype:
                raise RecordError(f"its {names[int(i)]} has another shape or type than the run's")
        if about["arrays"] is not None and digest_arrays(stored) != about["arrays"]:
            raise RecordError("its arrays do not match their checksum")
        for i, value in stored.items():
            leaves[int(i)] = like_stored(leaves[int(i)], value)
        return jax.tree.unflatten(structure, leaves)

    def save(
        self,
        step: int,
        state: Callable[[], Any],
        about: Callable[[], dict[str, Any]],
        *,
        last: bool = False,
        score: float | None = None,
    ) -> None:
        """Write a checkpoint if one is due, if it is the activity's last or if a stop was asked.

        What is written is copied first: the caller may donate the state at once.

        Args:
            step: number of the checkpoint within the activity, growing.
            state: makes the pytree of arrays and random keys, where it is wanted.
            about: makes what goes beside it, plain JSON.
            last: whether the activity ends with it.
            score: how good the state is, larger is better.

        Raises:
            CheckpointError: it cannot be written.
            Interrupted: a stop was asked; the checkpoint is complete.
        """
        owner = self._owner
        due = last or time.monotonic() - self._saved_at >= owner.every
        due, stop = _agreed(due, owner.stop)
        if due or stop is not None:
            self._write(step, state(), about(), score)
        if stop is not None:
            self._wait()
            raise Interrupted(stop)

    def _write(self, step: int, state: Any, about: dict[str, Any], score: float | None) -> None:
        import orbax.checkpoint as ocp

        named = _trees.flatten_named(state)
        leaves = {
            str(i): held(bare(leaf)) for i, leaf in enumerate(named.values()) if np.size(leaf)
        }
        whole = all(isinstance(leaf, np.ndarray) for leaf in leaves.values())
        body = {
            **about,
            "schema_version": CHECKPOINT_SCHEMA,
            "expected": self.expected,
            "names": list(named),
            # Arrays spread over processes are left to the file format's own checksums.
            "arrays": digest_arrays(leaves) if whole else None,
        }
        # What comes back from JSON, so that the checksum is of what is read.
        body = json.loads(json.dumps(body, allow_nan=False))
        with plainly(self._folder):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(leaves),
                    about=ocp.args.JsonSave({"body": body, "digest": digest_json(body)}),
                ),
                metrics={"score": -1e30 if score is None or not np.isfinite(score) else score},
                force=True,
            )
        self._saved_at = time.monotonic()

    def _wait(self) -> None:
        if self._opened is not None:
            with plainly(self._folder):
                self._opened.wait_until_finished()

    def close(self) -> None:
        """Wait for what is being written, and let go of the folder."""
        if self._opened is None:
            return
        opened, self._opened = self._opened, None
        try:
            with plainly(self._folder):
                opened.close()
        except CheckpointError:
            self._quiet.wait()
            raise
        finally:
            self._quiet.__exit__()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, as ``"steps was 100 and is 200; ..."``; empty where nothing does."""
    before, now = json.loads(json.dumps(dict(before))), json.loads(json.dumps(dict(now)))
    names = dict.fromkeys([*before, *now])
    return "; ".join(
        f"{name} was {_told(before.get(name))} and is {_told(now.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    )


def _told(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _agreed(due: bool, stop: str | None) -> tuple[bool, str | None]:
    """The same answer in all processes: the first one's clock, anyone's signal."""
    if jax.process_count() == 1:
        return due, stop
    from jax.experimental import multihost_utils

    told = multihost_utils.process_allgather(np.asarray([due, stop is not None]))
    asked = bool(told[:, 1].any())
    return bool(told[0, 0]), (stop or "a signal to another process") if asked else None
