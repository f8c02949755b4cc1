"""A result of `edgeprune evaluate` with every key of its schema, made by hand: the numbers are of no model."""

from typing import Any

Json = dict[str, Any]
NUM_EXAMPLES = 200


def figure(value: float | None, width: float = 0.02, num_examples: int = NUM_EXAMPLES) -> Json:
    ends = (None, None) if value is None else (round(value - width, 6), round(value + width, 6))
    return {"value": value, "low": ends[0], "high": ends[1], "num_examples": num_examples}


def spread(mean: float, sd: float | None = 0.1, seeds: int = 5) -> Json:
    return {"mean": mean, "sd": sd, "min": round(mean - 0.2, 6), "max": round(mean + 0.2, 6), "seeds": seeds}


def measures(kl: float, difference: float, accuracy: float, **options: Any) -> Json:
    return {
        "kl": figure(kl, **options),
        "logit_difference": figure(difference, 0.15, **options),
        "accuracy": figure(accuracy, **options),
        "answer_rank": figure(1 + 10 * kl, **options),
        "squared_error": figure(None, num_examples=0),
    }


def random(kl: float, difference: float, accuracy: float) -> Json:
    return {"kl": spread(kl), "logit_difference": spread(difference), "accuracy": spread(accuracy)}


def known() -> Json:
    rates = {"tpr": 0.75, "fpr": 0.0125, "precision": 0.6, "recall": 0.75, "f1": 2 / 3}
    areas = {"auc": 0.93, "pessimistic_auc": 0.91, "average_precision": 0.7}
    role = {"found": True, "complete": False, "nodes_found": ["a1.h0"], "nodes_missed": ["a1.h2"], "recall": 0.5}
    return {
        "example circuit": {
            "roles": {"name_mover": role, "induction": {**role, "nodes_missed": [], "complete": True, "recall": 1.0}},
            "summary": "2 of 2 component types",
            "conventions": {"own": {"edges": {**rates, **areas}, "nodes": rates}, "acdc": {"edges": rates}},
            "roc": {"edges": {"fpr": [0.0, 0.0125, 0.2, 1.0], "tpr": [0.0, 0.75, 0.9, 1.0]}},
        }
    }


def completeness() -> Json:
    points = [
        {"kind": "random", "nodes": ["a0.h0", "m1"], "circuit": 1.5, "model": 2.0, "score": 0.5},
        {"kind": "single", "nodes": ["a1.h0"], "circuit": 2.5, "model": 2.75, "score": 0.25},
        {
            "kind": "adversarial",
            "nodes": [f"a1.h{head}" for head in range(12)],
            "circuit": 0.1,
            "model": 3.1,
            "score": 3.0,
        },
    ]
    return {"measure": "logit_difference", "num_examples": 64, "points": points, "mean": 1.25, "max": 3.0}


def minimality() -> Json:
    names = ("a0.h0->a1.h0.q", "a0.h1->a1.h0.k", "m0->logits", "a1.h0->logits")
    effects = (-0.004, 0.0, 0.031, 1.2)
    return {
        "measure": "kl",
        "num_examples": 64,
        "num_edges": 12,
        "num_tested": 4,
        "num_redundant": 2,
        "tolerance": 0.01,
        "edges": [
            {"edge": name, "effect": effect, "standard_error": 0.002}
            for name, effect in zip(reversed(names), reversed(effects), strict=True)
        ],
        "histogram": {"bins": [-0.1, 0.3, 0.7, 1.1, 1.5], "counts": [3, 0, 0, 1]},
    }


def mib() -> Json:
    points = [
        {"requested": share, "kept": share * 0.9, "value": value, "faithfulness": faithfulness}
        for share, value, faithfulness in ((0.0, 3.0, 0.0), (0.01, 1.2, 0.6), (0.1, 0.3, 0.9), (1.0, 0.0, 1.0))
    ]
    areas = {"cpr": 0.94, "cmd": 0.06, "average": 0.63, "cpr_pruned_size": 0.95, "cmd_pruned_size": 0.05}
    return {
        "signed": {"points": points, **areas, "measure": "kl"},
        "absolute": {"points": points, **areas, "measure": "kl"},
    }


def suffix() -> Json:
    return {
        "measure": "kl",
        "vectors": 3,
        "seeds": [0, 1],
        "kl": figure(0.4),
        "by position": {"first": 0.25, "last": {"value": 0.5, "low": 0.4, "high": 0.6, "num_examples": 64}},
    }


def hypothesis() -> Json:
    return {
        "equivalence": {
            "null": "the circuit does as well as the model on half of the examples",
            "statistic": 120,
            "p_value": 0.0047,
            "n": 200,
            "reading": "The circuit differs from the model more often than chance allows.",
        },
        "independence": {"null": "no dependence", "statistic": 0.0, "p_value": None, "n": 0, "reading": "Not defined."},
    }


def circuit(name: str, method: str, edges: int, kl: float, **parts: Any) -> Json:
    found = measures(kl, 3 - kl, 0.95 - kl / 10)
    return {
        "name": name,
        "path": f"runs/{name}.safetensors",
        "method": method,
        "edges": edges,
        "all_edges": 800,
        "sparsity": 1 - edges / 800,
        "dangling": 3,
        "nodes": 9,
        "layers": {
            "0": {"kept": edges // 4, "existing": 200},
            "1": {"kept": edges - edges // 4 - 1, "existing": 580},
            "logits": {"kept": 1, "existing": 20},
        },
        "kinds": {"embed->q": {"kept": edges // 2, "existing": 100}, "head->mlp": {"kept": 0, "existing": 0}},
        "ablations": {
            "interchange": {
                "measures": found,
                "normalised": {
                    "kl": figure(1 - kl / 4),
                    "logit_difference": figure(1 - kl / 3),
                    "accuracy": figure(None),
                },
                "random": random(3.5, 0.4, 0.55),
            },
            "mean": {
                "measures": measures(2 * kl, 3 - 2 * kl, 0.9 - kl / 10, num_examples=150),
                "normalised": {"kl": figure(1 - kl / 2), "logit_difference": figure(1.04), "accuracy": figure(0.5)},
                "random": random(4.5, 0.3, 0.52),
            },
        },
        "controls": {
            "same_degrees": {
                "description": "As many edges from each writer and to each reader as the circuit has.",
                "seeds": 5,
                "measures": random(3.1, 0.5, 0.56),
            },
            "complement": {
                "description": "Every edge but the circuit's.",
                "seeds": 1,
                "measures": {"kl": spread(2.9, None, 1), "logit_difference": spread(0.2, None, 1)},
            },
        },
        "labels": {
            "template": {
                "ABBA": {"num_examples": 80, "measures": measures(kl - 0.1, 3.1, 0.9, num_examples=80)},
                "BABA": {"num_examples": 120, "measures": measures(kl + 0.1, 2.9, 0.8, num_examples=120)},
            }
        },
        **parts,
    }


def pair(a: int, b: int, jaccard: float) -> Json:
    return {
        "a": a,
        "b": b,
        "jaccard": jaccard,
        "both": 20,
        "expected": 2.5,
        "log10_p_value": -1234.5,
        "nodes": {"jaccard": 0.8},
        "differences": {"kl": {"value": -0.3, "low": -0.4, "high": -0.2, "p_value": 0.0001, "num_examples": 200}},
    }


def measure(heading: str, unit: str, better: str, definition: str) -> Json:
    return {"heading": heading, "unit": unit, "better": better, "definition": definition, "source": "a paper"}


def example() -> Json:
    """The result, anew at every call."""
    deep = {
        "completeness": completeness(),
        "minimality": minimality(),
        "suffix": suffix(),
        "hypothesis": hypothesis(),
        "mib": mib(),
        "known": known(),
    }
    ends = {"full": measures(0.0, 3.0, 0.97), "empty": measures(4.0, -3.0, 0.03)}
    return {
        "schema": "edgeprune-evaluation/1",
        "about": {
            "model": "gpt2",
            "model_fingerprint": "0123abcd",
            "task": {"name": "ioi", "names": 100},
            "split": "test",
            "num_examples": NUM_EXAMPLES,
            "ablation": "interchange",
            "ablations": ["interchange", "mean"],
            "bootstrap": {"draws": 1000, "level": 0.95, "seed": 0},
            "versions": {"edgeprune": "0.1.0", "torch": "2.13.0"},
            "command": "edgeprune evaluate runs/*.safetensors --config ioi.yaml --report out.html",
            "limits": {"completeness": "the first 64 pairs"},
        },
        "measures": {
            "kl": measure("KL", "nats", "low", "KL(full || circuit)"),
            "logit_difference": measure("logit diff.", "logits", "high", "right answer - distractor"),
            "accuracy": measure("accuracy", "", "high", "right answer above the distractor"),
            "answer_rank": measure("rank", "places", "low", "place of the right answer"),
            "squared_error": measure("sq. error", "outputs squared", "low", "squared difference"),
            "logit_difference_percent": measure("logit diff. %", "%", "100", "ratio of means"),
        },
        "ends": {"interchange": ends, "mean": ends},
        "circuits": [
            circuit("pruned_95", "edge_pruning", 40, 0.2, **deep),
            circuit("pruned_98", "edge_pruning", 16, 0.5, mib=mib(), known=known()),
            circuit("eap", "eap", 40, 0.9),
        ],
        "pairs": [pair(0, 1, 0.4), pair(0, 2, 0.25), pair(1, 2, 0.125)],
    }
