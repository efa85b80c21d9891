"""The norms of all channels before and after the sparsity phase of ``pretrain``: kept as JSON, drawn as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subnets.groups import Traced
    from subnets.training import Progress, Recipe

Norms = dict[str, list[float]]  # group -> norm of each channel
_BINS = 48


class NormRecord:
    """Looks at a network's channel norms when the sparsity phase begins, and when it is over.

    What was seen at the beginning lies in a file, so that a resumed run still has it.

    Args:
        network: in training.
        traced: its channel groups.
        recipe: says when the phase begins.
        path: ``.json``; the picture goes beside it.
    """

    def __init__(self, network: Any, traced: Traced, recipe: Recipe, path: Path) -> None:
        self._network, self._traced, self._recipe, self._path = network, traced, recipe, path

    def on_step(self, progress: Progress) -> None:
        """Writes the norms down after the last step before the phase."""
        before, after = (progress.step - 1) / progress.steps, progress.step / progress.steps
        if before < self._recipe.sparsity_from <= after:
            self._write({"before": self._norms()})

    def finish(self) -> str:
        """Writes norms and picture; one sentence on what came of it."""
        import msgspec

        from subnets.bundle import write_atomically

        before: Norms = msgspec.json.decode(self._path.read_bytes())["before"]
        after = self._norms()
        self._write({"before": before, "after": after})
        picture = self._path.with_suffix(".svg")
        write_atomically(picture, histogram(before, after).encode())
        every = [norm for norms in after.values() for norm in norms]
        return f"{sum(norm == 0 for norm in every)} of {len(every)} channels are at zero; their norms: {picture}"

    def _norms(self) -> Norms:
        from subnets.sparsity import channel_norms

        return {name: norms.tolist() for name, norms in channel_norms(self._network, self._traced).items()}

    def _write(self, content: dict[str, Norms]) -> None:
        import msgspec

        from subnets.bundle import write_atomically

        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, msgspec.json.encode(content) + b"\n")


def histogram(before: Norms, after: Norms) -> str:
    """How many channels have which norm, before and after the phase, as an SVG file's text."""
    import numpy as np

    from calibration.svg import Axis, Chart

    values = {
        label: np.concatenate([np.asarray(each) for each in norms.values()])
        for label, norms in (("before the sparsity phase", before), ("after it", after))
    }
    edges = np.linspace(0, max(float(each.max()) for each in values.values()) or 1.0, _BINS + 1)
    counts = {label: np.histogram(each, edges)[0] for label, each in values.items()}
    most = max(int(each.max()) for each in counts.values())
    chart = Chart(
        Axis(0.0, float(edges[-1]), "L2 norm of a channel over all it owns"),
        Axis(0.0, 1.05 * most, "channels"),
        title=f"Norms of {len(values['after it'])} channels",
    )
    for label, each in counts.items():
        chart.steps(edges[:-1].tolist(), each.tolist(), label)
    return chart.svg(standalone=True)
