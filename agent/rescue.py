"""The rescue: the next engine answers the request on which one has failed.

Knows nothing of queues or policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from agent.guard import Guard
from agent.pool import Active, EnginePool
from agent.resident import EngineKey, Retired, engine_key
from agent.waiting import Request
from backends.base import Batch
from subnets.errors import EngineError, InputError

T = TypeVar("T")
_LARGEST_PIXEL = 1e6  # preprocessed images hold a few units; engines overflow from about 1e30 on


class Abandoned(Exception):
    """What was being asked hung and was given up; whoever gave it up sees to the rest."""


class Watched(Protocol):
    """Runs something of one engine, watched so that it can be abandoned if it hangs."""

    def __call__(self, active: Active, call: Callable[[], T]) -> T:
        """What ``call`` returns or raises; raises :class:`Abandoned`."""


class Rescue:
    """Finds another engine for a failed request.

    Args:
        pool: where engines are.
        guard: which may answer, in which order.
        apply: called once an engine was quarantined, to make another one current.
    """

    def __init__(self, pool: EnginePool, guard: Guard, apply: Callable[[], object]) -> None:
        self._pool, self._guard, self._apply = pool, guard, apply
        self.rescued = 0

    def answer(self, request: Request, failed: Active, error: Exception, watched: Watched) -> tuple[Active, Batch]:
        """The next engine's answer to a request on which one has failed; none where it is pinned to that one.

        The failed ones are quarantined once another has answered: that shows the fault was theirs, unless the batch
        holds values so large that an engine may overflow, and the engine answers a blank one. Where none answers
        the batch, those that also fail a blank one are quarantined; if none does, the batch is at fault.

        Raises:
            InputError: several engines fail on this batch and none on a blank one; one is enough where values are huge.
            EngineError: no engine answers.
            Abandoned: another engine hung as well.
        """
        batch = request.batch
        failures = {failed.resident.key: (failed, error)}
        broken = self._drop_if_broken(failed, watched)
        for row in [] if request.key is not None else self._guard.alternatives(failed.point):
            key = engine_key(row)
            if row.accuracy < request.floor or key in failures or self._guard.quarantined_s(key):
                continue
            resident = self._pool.resident(key)
            if resident is None:
                if not broken:
                    continue  # it may be the batch: not worth loading another engine for
                try:
                    resident = self._pool.request(key).result()
                except Exception as unloadable:
                    if not self._guard.quarantined_s(key):
                        self._guard.quarantine(key, unloadable)
                    continue
            reason = f"{failed.point} failed ({error}); this one answered instead"
            active = Active(resident=resident, row=row, point=row.point, reason=reason, bound="fallback")
            try:
                logits = watched(active, partial(resident.infer, batch))
            except (InputError, Abandoned):
                raise
            except Exception as another:
                failures[key] = active, another
                broken = self._drop_if_broken(active, watched) or broken
                continue
            overflows = _may_overflow(batch)
            for bad, (active_then, why) in failures.items():
                if isinstance(why, Retired):
                    continue
                if overflows and watched(active_then, active_then.resident.probe) is None:
                    self._guard.note(bad, why)  # or one client could shut out every engine that overflows first
                    continue
                self._guard.quarantine(bad, why)
                self._pool.drop(bad)
            self.rescued += 1
            self._apply()
            return active, logits
        return self._give_up(request, failed, failures, watched)

    def _drop_if_broken(self, active: Active, watched: Watched) -> bool:
        """Takes an engine that fails a blank batch too out of memory: another may need the room."""
        if watched(active, active.resident.probe) is None:
            return False
        self._pool.drop(active.resident.key)
        return True

    def _give_up(
        self, request: Request, failed: Active, failures: Mapping[EngineKey, tuple[Active, Exception]], watched: Watched
    ) -> tuple[Active, Batch]:
        bad = {
            key: why for key, (active, why) in failures.items() if watched(active, active.resident.probe) is not None
        }
        for key, (_, why) in failures.items():
            if isinstance(why, Retired):
                continue  # told when it was taken out
            if key in bad:
                self._guard.quarantine(key, why)
                self._pool.drop(key)
            else:
                self._guard.note(key, why)
        self._apply()
        causes = "; ".join(dict.fromkeys(str(why) for _, why in failures.values()))
        if not bad and (len(failures) > 1 or _may_overflow(request.batch)):
            count = f"{len(failures)} engines fail" if len(failures) > 1 else "the engine fails"
            raise InputError(f"{count} on this batch and on no other: check its values ({causes})")
        raise EngineError(f"no engine could answer, {failed.point} and {len(failures) - 1} others failed: {causes}")


def _may_overflow(batch: Batch) -> bool:
    """Whether values are so large that an engine may not be to blame for NaN."""
    return not np.all(np.abs(batch) <= _LARGEST_PIXEL)
