"""The circuits of one run among those that are evaluated: areas over their sizes, and how far they are nested."""

from collections.abc import Iterator, Sequence
from typing import Any

from edgeprune.circuit import Circuit
from edgeprune.circuit_attention import all_open
from edgeprune.comparison.nested import circuits_of_runs, nestedness
from edgeprune.evaluation.mib import measured_curve
from edgeprune.metrics.examples import ExampleValues
from edgeprune.statistics.uncertainty import Resampling

SETTINGS = ("method", "seed", "objective")  # of a header
MEASURES = ("logit_difference", "probability_difference", "accuracy", "squared_error", "kl")  # the first one that is


def sections_of_runs(
    circuits: Sequence[Circuit], values: ExampleValues, about: tuple[str, str], resampling: Resampling
) -> Iterator[dict[str, Any]]:
    """For each run with circuits of several sizes, what these are worth together; not where they close attention edges.

    Args:
        circuits: The circuits.
        values: Of the full model, of the empty circuit, and of each circuit, `[2 + circuits, measure, example]`.
        about: Split and ablation.
        resampling: How intervals are made.

    Yields:
        `method`, `seed`, `objective` (from the headers); `circuits` (places, from the smallest) and their `edges`;
        `nested` as `nestedness`; `mib` as `MibCurve.to_dict`, whose numbers of circuits are places in this list; None
        where no measure has a value.
    """
    defined = dict(zip(values.measures, values.defined().amin(0).tolist(), strict=True))
    measure = next((name for name in MEASURES if defined.get(name)), None)
    for places in circuits_of_runs(circuits):
        run = [circuits[place] for place in places]
        if any(not all_open(circuit.graph, circuit.attend) for circuit in run):
            continue  # an area over the share of edges would not be of their sizes
        taken = values.circuits([0, 1, *(2 + place for place in places)])
        curve = None if measure is None else measured_curve(taken, run, measure, about, resampling).to_dict()
        yield {
            **{name: run[0].header.get(name) for name in SETTINGS},
            "circuits": places,
            "edges": [circuit.num_edges for circuit in run],
            "nested": nestedness(run),
            "mib": curve,
        }
