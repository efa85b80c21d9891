"""A neighbour of the agent: sends the digits' test images over shared memory and counts what comes back.

    gearshift run bundles/digits --native gearshift.sock           # in one terminal
    python examples/native_client.py                               # in another

Several requests are kept under way, so that preparing the next image and answering the last one overlap. What the agent
decides meanwhile (``gearshift hold s25 --for 10s --reason example``) shows in the subnets that answer.
"""

from __future__ import annotations

import argparse
from collections import Counter

import click
import numpy as np

from agent.client import Client, Pending
from subnets.bundle import Bundle
from subnets.data import load
from subnets.errors import Superseded

UNDER_WAY = 4


def main() -> None:
    """Asks and prints who answered, and how well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", default="bundles/digits", help="says how images are preprocessed")
    parser.add_argument("--path", help="of the agent's native socket; found by itself where the agent runs")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--deadline-ms", type=float)
    options = parser.parse_args()
    test = load("digits").test
    images, labels = test.read(np.arange(options.images)), test.labels[: options.images]
    preprocess = Bundle.open(options.bundle).input.preprocess
    right: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    with Client(options.path) as agent:
        click.echo(f"{agent.model}: {', '.join(agent.subnets)}")
        buffers = [agent.buffer() for _ in range(UNDER_WAY)]
        pending: list[tuple[Pending, int]] = []

        def settle() -> None:
            waiting, label = pending.pop(0)
            try:
                answer = waiting.result()
            except Superseded:
                return
            answered[answer.subnet] += 1
            right[answer.subnet] += int(answer.logits.argmax()) == label

        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            if len(pending) == UNDER_WAY:
                settle()
            buffer = buffers[number % UNDER_WAY]  # its answer has come: it may be filled again
            buffer[:] = preprocess(image[None])
            pending.append((agent.submit(buffer, deadline_ms=options.deadline_ms), int(label)))
        while pending:
            settle()
    for subnet, count in answered.items():
        click.echo(f"{subnet}: {count} answers, {100 * right[subnet] / count:.1f} % right")


if __name__ == "__main__":
    main()
