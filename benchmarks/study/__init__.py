"""The study: every claim about accuracy, with its controls, by the same code, on the same data, for as many epochs.

* :mod:`plan`: what there is to run: studies, their arms, epochs and seeds, as data.
* :mod:`runs`: runs one arm with one seed, and records it as JSON.
* :mod:`results`: writes ``docs/results.md`` and its pictures from what is recorded.

::

    python -m benchmarks.study list
    python -m benchmarks.study run four --cifar10 cifar-10-batches-py          every arm, seed 0, as planned for a CPU
    python -m benchmarks.study run four/joint --cifar10 ... --seed 1           one arm, another seed
    python -m benchmarks.study report

A run that was stopped goes on from its last checkpoint; an arm that is recorded is not run again.
"""

import sys
from pathlib import Path

# As the other benchmarks: this folder's modules by their own names, and the repository's packages.
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
