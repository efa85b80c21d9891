"""The rescue: the next engine answers the request on which one has failed.

Knows nothing of queues or policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agent.guard import Guard
from agent.pool import Active, EnginePool
from agent.resident import EngineKey, Resident, Retired, engine_key
from backends.base import Batch
from subnets.errors import EngineError, InputError


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

    def answer(
        self, batch: Batch, failed: Active, error: Exception, *, pinned: bool, floor: float = 0.0
    ) -> tuple[Active, Batch]:
        """The next engine's answer to a batch on which one has failed: none if it is ``pinned``, and none less accurate
        than ``floor``.

        The failed ones are quarantined once another has answered: that shows the fault was theirs. Where none answers
        the batch, those that also fail a blank one are quarantined; if none does, the batch is at fault.

        Raises:
            InputError: several engines fail on this batch and none on a blank one.
            EngineError: no engine answers.
        """
        failures = {failed.resident.key: (failed.resident, error)}
        broken = self._drop_if_broken(failed.resident)
        for row in [] if pinned else self._guard.alternatives(failed.point):
            key = engine_key(row)
            if row.accuracy < floor or key in failures or self._guard.quarantined_s(key):
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
            try:
                logits = resident.infer(batch)
            except InputError:
                raise
            except Exception as another:
                failures[key] = resident, another
                broken = self._drop_if_broken(resident) or broken
                continue
            for bad, (_, why) in failures.items():
                if not isinstance(why, Retired):
                    self._guard.quarantine(bad, why)
                    self._pool.drop(bad)
            self.rescued += 1
            self._apply()
            reason = f"{failed.point} failed ({error}); this one answered instead"
            return Active(resident=resident, row=row, point=row.point, reason=reason, bound="fallback"), logits
        return self._give_up(failed, failures)

    def _drop_if_broken(self, resident: Resident) -> bool:
        """Takes an engine that fails a blank batch too out of memory: another may need the room."""
        if resident.probe() is None:
            return False
        self._pool.drop(resident.key)
        return True

    def _give_up(
        self, failed: Active, failures: Mapping[EngineKey, tuple[Resident, Exception]]
    ) -> tuple[Active, Batch]:
        bad = {key: why for key, (resident, why) in failures.items() if resident.probe() is not None}
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
        if not bad and len(failures) > 1:
            raise InputError(f"{len(failures)} engines fail on this batch and on no other: check its values ({causes})")
        raise EngineError(f"no engine could answer, {failed.point} and {len(failures) - 1} others failed: {causes}")
