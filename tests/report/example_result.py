"""A result of `edgeprune evaluate` with every key of its schema, made by hand: the numbers are of no model.

`test_report.py` holds its keys against those of a result that is computed.
"""

from typing import Any

Json = dict[str, Any]
NUM_EXAMPLES, NUM_TESTED = 200, 64


def figure(value: float | None, width: float = 0.02, num_examples: int = NUM_EXAMPLES) -> Json:
    ends = (None, None) if value is None else (round(value - width, 6), round(value + width, 6))
    return {"value": value, "low": ends[0], "high": ends[1], "num_examples": num_examples}


def spread(mean: float, deviation: float | None = 0.1, num_seeds: int = 5) -> Json:
    ends = {"minimum": round(mean - 0.2, 6), "maximum": round(mean + 0.2, 6)}
    return {"mean": mean, "deviation": deviation, **ends, "num_seeds": num_seeds}


def measures(kl: float, difference: float, accuracy: float, **options: Any) -> Json:
    return {
        "kl": figure(kl, **options),
        "logit_difference": figure(difference, 0.15, **options),
        "accuracy": figure(accuracy, **options),
        "answer_rank": figure(1 + 10 * kl, **options),
        "squared_error": figure(None, num_examples=0),
    }


def plain(kl: float | None, difference: float | None, accuracy: float | None) -> Json:
    """Figures without intervals, as the tests have them."""
    return {"kl": kl, "logit_difference": difference, "accuracy": accuracy, "answer_rank": None, "squared_error": None}


def random(kl: float, difference: float, accuracy: float) -> Json:
    return {"kl": spread(kl), "logit_difference": spread(difference), "accuracy": spread(accuracy)}


# -------------------------------------------------------------------- tests
def control(about: str, seeds: list[int], num_open: int, moved: list[float], each: list[Json], figures: Json) -> Json:
    return {
        "open": about,
        "seeds": seeds,
        "num_open": [num_open] * len(moved),
        "num_swaps": [0] * len(moved),
        "moved": moved,
        "figures": figures,
        "faithfulness": plain(0.25, None, 0.5),
        "each": each,
    }


def controls(edges: int, kl: float) -> Json:
    own, other, few = plain(kl, 3 - kl, 0.9), plain(2.9, 0.2, None), [plain(3.0, 0.5, 0.5), plain(3.25, None, 0.5)]
    return {
        "measures": list(own),
        "num_examples": NUM_TESTED,
        "num_edges": edges,
        "nodes": ["embed", "a1.h0"],
        "full": plain(0.0, 3.0, 0.97),
        "empty": plain(4.0, -3.0, 0.03),
        "controls": {
            "circuit": control("the circuit's edges alone", [], edges, [0.0], [own], own),
            "complement": control("all edges but the circuit's", [], 800 - edges, [1.0], [other], other),
            "random_degrees": control("as many of each node", [0, 1], edges, [0.5, 0.25], few, plain(3.125, None, 0.5)),
        },
    }


def knock_out(kind: str, nodes: list[str], circuit: float | None, model: float | None, score: float | None) -> Json:
    name = "name_mover" if kind == "role" else ""
    return {
        "kind": kind, "name": name, "nodes": nodes, "size": len(nodes),
        "circuit": circuit, "model": model, "score": score,
    }  # fmt: skip


def completeness() -> Json:
    many = [f"a1.h{head}" for head in range(12)]
    sets = [
        knock_out("random", ["a0.h0", "m1"], 1.5, 2.0, 0.5),
        knock_out("single", ["a1.h0"], 2.5, 2.75, 0.25),
        knock_out("role", ["a1.h1"], None, None, None),
        knock_out("greedy", many, 0.1, 3.1, 3.0),
    ]
    options = {"num_random": 20, "num_edge_sets": 0, "max_singles": 20, "restarts": 2, "steps": 4, "candidates": 5}
    return {
        "measure": "logit_difference",
        "ablation": "interchange",
        "num_examples": NUM_TESTED,
        "num_runs": 8,
        "options": {**options, "seed": 0},
        "nodes": ["a0.h0", *many, "m1"],
        "roles_without_nodes": ["duplicate_token"],
        "summary": {
            one["kind"]: {"num": 1, "mean": one["score"], "max": one["score"], "worst": one if one["score"] else None}
            for one in sets
        },
        "max": 3.0,
        "worst": sets[-1],
        "knock_outs": sets,
    }


def minimality() -> Json:
    names = ("a0.h0->a1.h0.q", "a0.h1->a1.h0.k", "m0->logits", "a1.h0->logits")
    effects = (-0.004, 0.0, 0.031, 1.2)
    return {
        "measure": "kl",
        "better": "low",
        "figure": 0.2,
        "num_edges": 12,
        "num_dangling": 1,
        "num_examples": NUM_TESTED,
        "chosen": "the 4 with the lowest scores",
        "num_closed": 4,
        "num_idle": 1,
        "tolerance": 0.01,
        "rounding": 1e-06,
        "num_redundant": 2,
        "share_redundant": 0.5,
        "edges": [
            {
                "edge": name,
                "effect": effect,
                "standard_error": 0.002,
                "figure": 0.2 + effect,
                "redundant": effect <= 0.01,
                "idle": effect == 0,
            }
            for name, effect in zip(names, effects, strict=True)
        ],
        "histogram": {"bounds": [-0.1, 0.3, 0.7, 1.1, 1.5], "counts": [3, 0, 0, 1]},
        "significance": {
            **outcome("minimality", "every edge matters more than a random one", 0.0, 0.0004, 4, True, "not minimal"),
            "correction": "benjamini_hochberg",
            "num_edges": 4,
            "num_references": 40,
            "num_significant": 1,
            "least_p_value": 1 / 41,
            "not_significant": [
                {"edge": name, "effect": effect, "p_value": p_value, "adjusted": p_value}
                for name, effect, p_value in zip(names, effects, (1.0, 1.0, 0.25), strict=False)
            ],
            "superfluous": [*names[:2]],
        },
    }


def output(change: float) -> Json:
    return {
        space: {"relative_change": change + place / 8, "norm_ratio": 0.75, "cosine": None}
        for place, space in enumerate(("stream", "logits", "logits_centred"))
    }


def suffix() -> Json:
    return {
        "ablation": "interchange",
        "num_examples": NUM_TESTED,
        "heads_only": False,
        "nodes": ["a0.h0", "m1"],
        "other_nodes": ["a0.h1", "m0", "a1.h0", "a1.h1"],
        "seeds": [0, 1],
        "overlap": 0.25,
        "log10_num_sets": 1.5,
        "circuit": output(0.5),
        "others": output(0.625),
        "random": output(0.25),
        "each_random": [output(0.125), output(0.375)],
        "verdict": {space: {"ratio": 2.0, "p_value": 1 / 3} for space in output(0.0)},
    }


def outcome(
    name: str, null: str, statistic: float, p_value: float | None, n: int, rejected: bool | None, reading: str
) -> Json:
    """A test of a hypothesis."""
    return {
        "name": name,
        "null": null,
        "statistic": statistic,
        "statistic_is": f"what {name} counts",
        "p_value": p_value,
        "n": n,
        "if_rejected": "the circuit is worse",
        "if_not": "no sign of a difference",
        "level": 0.05,
        "settings": {"quantile": 0.9},
        "details": {"least_p_value": 0.001},
        "rejected": rejected,
        "reading": reading,
    }


def hypothesis() -> Json:
    tests = [
        outcome(
            "equivalence", "as good on half of the examples", 0.25, 0.0047, NUM_TESTED, True, "rejected at 5 %: worse"
        ),
        outcome("independence", "no dependence", 0.0, None, 0, None, "not tested"),
    ]
    options = {"num_random": 40, "random": "paths", "epsilon": 0.1, "quantile": 0.9, "permutations": 1000}
    return {
        "score": "logit_difference",
        "faithfulness": "kl",
        "ablation": "interchange",
        "num_examples": NUM_TESTED,
        "num_edges": 40,
        "options": {**options, "level": 0.05, "seed": 0},
        "random_edges": 41.5,
        "tests": {one["name"]: one for one in tests},
    }


def curve(ranking: str) -> Json:
    shares = ((0.001, 3.0, 0.0), (0.01, 1.2, 0.6), (0.1, 0.3, 0.9), (1.0, 0.0, 1.0))
    areas = {
        "cpr": 0.94, "cmd": 0.06, "average": 0.63, "cpr_pruned_size": 0.95, "cmd_pruned_size": 0.05,
        "accuracy_area": 0.75,
    }  # fmt: skip
    return {
        **areas,
        "intervals": {name: figure(value, num_examples=NUM_TESTED) for name, value in areas.items()},
        "smallest_share": 0.0,
        "measure": "logit_difference",
        "full": 3.0,
        "empty": -3.0,
        "split": "test",
        "ablation": "interchange",
        "num_examples": NUM_TESTED,
        "rule": "top_n",
        "ranking": ranking,
        "num_edges": 800,
        "num_edges_mib": 900,
        "edges": "one embedding; MIB counts otherwise",
        "missing": [],
        "unused": [],
        "resampling": {"method": "percentile bootstrap over examples", "draws": 1000, "level": 0.95, "seed": 0},
        "points": [
            {
                "requested": share, "num_asked": int(800 * share), "num_kept": int(700 * share), "kept": share * 0.875,
                "circuit": None, "value": value, "faithfulness": faithfulness, "accuracy": 0.5 + faithfulness / 2,
            }
            for share, value, faithfulness in shares
        ],
    }  # fmt: skip


def mib() -> Json:
    published = {"cpr": 0.94, "cmd": 0.06, "accuracy_area": 0.75}
    return {**published, "signed": curve("signed"), "absolute": curve("absolute")}


def run() -> Json:
    """The two circuits of Edge Pruning."""
    step = {"share": 0.875, "expected": 0.05, "log10_p_value": -12.0}
    return {
        "method": "edge_pruning",
        "seed": 0,
        "objective": "kl",
        "circuits": [1, 0],
        "edges": [16, 40],
        "nested": {"share": 0.875, "expected": 0.05, "every_two": 0.8125, "steps": [step]},
        "mib": {**curve("signed"), "rule": "circuits", "ranking": None, "unused": []},
    }


def functional() -> Json:
    def figure(value: float) -> Json:
        return {"value": value, "low": value - 0.02, "high": value + 0.02, "num_examples": NUM_TESTED}

    part = {"circuit": figure(0.9375), "complement": figure(0.5625)}
    part |= {"below_full": figure(0.03125), "above_chance": figure(0.0625)}
    edges = {"share": 0.05, **part}
    about = {"measure": "accuracy_answers", "ablation": "interchange", "chance": 0.5}
    return {**about, "full": figure(0.96875), "edges": edges, "weights": None}


# -------------------------------------------------------------------- reading
def reading() -> Json:
    pattern = [[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.02, 0.9, 0.08]]
    flat = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.4, 0.3, 0.3]]
    prompt = {
        "index": 3, "tokens": ["When", "·Mary", "·to"], "roles": {"IO": [1, 2], "END": [2, 3]}, "scored": [2],
        "circuit": [pattern, flat], "full": [flat, pattern],
    }  # fmt: skip
    rows = [
        ("a1.h0", "head", True, 2.0, 0.0, 0.5, 3.0),
        ("m1", "mlp", False, 0.0, -1.0, 0.25, -0.5),
        ("attention biases", "bias", True, 0.125, 0.0, 0.0, 0.125),
    ]
    names = ("writer", "kind", "kept", "own", "ablated", "deviation", "full")

    def by_part(*values: float) -> Json:
        return dict(zip(("IO", "END", "rest", "all positions"), values, strict=True))

    edges = [
        {
            "edge": "a0.h0->a1.h0.q",
            "first_order": by_part(0.0, 0.5, -0.1, 0.4),
            "exact": by_part(0.0, 0.75, -0.25, 0.375),
            "standard_error": by_part(0.0, 0.1, 0.1, 0.1),
        },
        {
            "edge": "m0->logits",
            "first_order": by_part(0.0, 0.25, 0.0, 0.25),
            "exact": None,
            "standard_error": None,
        },
    ]
    shares = {"circuit": [[0.8, 0.2], [0.5, None]], "full": [[0.6, 0.4], [0.5, None]]}
    return {
        "num_examples": 10,
        "num_heads": 5,
        "chosen": "whose edges have the largest effects",
        "notes": ["something: is not there"],
        "attention": {"heads": ["a1.h0", "a0.h0"], "prompts": [prompt]},
        "by_role": {
            "queries": ["scored position", "IO"],
            "keys": ["IO", "rest"],
            "heads": {"a1.h0": shares, "a0.h0": shares},
        },
        "direct": {
            "direction": "logit_difference", "num_examples": 10, "logits": 1.125, "full_logits": 2.625,
            "own": 2.125, "ablated": -1.0, "rows": [dict(zip(names, row, strict=True)) for row in rows],
        },
        "effects": {
            "measure": "logit_difference", "better": "high", "figure": 1.125, "num_examples": 10, "num_edges": 40,
            "num_exact": 1, "parts": ["IO", "END", "rest"],
            "total": {"IO": 0.0, "END": 0.75, "rest": -0.1}, "edges": edges,
        },
    }  # fmt: skip


# -------------------------------------------------------------------- known circuits, pairs
def match() -> Json:
    counts = {"num_counted": 800, "num_true": 20, "num_found": 25, "num_both": 15}
    rates = {"tpr": 0.75, "fpr": 0.0125, "precision": 0.6, "recall": 0.75, "f1": 2 / 3}
    return {**counts, **rates, "auc": 0.93, "pessimistic_auc": 0.91, "average_precision": 0.7}


def shared(jaccard: float) -> Json:
    counts = {"both": 20, "only_found": 4, "only_reference": 6}
    return {"precision": 0.75, "recall": 0.5, "jaccard": jaccard, "f1": 0.6, **counts}


def known() -> Json:
    role = {"found": True, "complete": False, "nodes_found": ["a1.h0"], "nodes_missed": ["a1.h2"], "recall": 0.5}
    roc = {"fpr": [0.0, 0.0125, 0.2, 1.0], "tpr": [0.0, 0.75, 0.9, 1.0]}
    return {
        "example circuit": {
            "roles": {"name_mover": role, "induction": {**role, "nodes_missed": [], "complete": True, "recall": 1.0}},
            "num_roles": 2,
            "roles_found": 2,
            "roles_complete": 1,
            "summary": "2 of 2 component types",
            "node_recall": 2 / 3,
            "edges": shared(0.5),
            "edges_not_dangling": shared(0.625),
            "name": "example circuit",
            "published": True,
            "conventions": {
                "own": {"edges": match(), "nodes": match() | {"fpr": None}},
                "acdc": {"edges": match(), "nodes": match()},
            },
            "chance": {"expected": 1.5, "log10_p_value": -4.0, "p_value": 1e-4},
            "roc": {"edges": roc, "nodes": {"fpr": [], "tpr": []}},
            "mib_auroc": {"signed": 0.875, "absolute": None},
        }
    }


def circuit(name: str, method: str, edges: int, kl: float, **parts: Any) -> Json:
    found = measures(kl, 3 - kl, 0.95 - kl / 10)
    return {
        "name": name,
        "path": f"runs/{name}.safetensors",
        "method": method,
        "seed": 0,
        "objective": "kl",
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
        "controls": controls(edges, kl),
        "labels": {
            "template": {
                "ABBA": {"num_examples": 80, "measures": measures(kl - 0.1, 3.1, 0.9, num_examples=80)},
                "BABA": {"num_examples": 120, "measures": measures(kl + 0.1, 2.9, 0.8, num_examples=120)},
            }
        },
        "labels_skipped": {"indirect_object": 97},
        "known": {},
        **parts,
    }


def seeds() -> Json:
    spreads = {"kl": spread(0.55, 0.2, 2), "accuracy": spread(0.9, 0.01, 2)}
    return {
        "method": "edge_pruning",
        "objective": "kl",
        "ablation": "interchange",
        "circuits": [0, 2],
        "seeds": [0, 3],
        "edges": [40, 42],
        "ablations": {"interchange": {"measures": spreads, "normalised": spreads}},
    }


def pair(a: int, b: int, jaccard: float) -> Json:
    how = {"exact": False, "permutations": 10000, "draws": 1000, "level": 0.95, "seed": 0}
    return {
        "a": a,
        "b": b,
        **shared(jaccard),
        "expected": 2.5,
        "log10_p_value": -1234.5,
        "p_value": 0.0,
        "nodes": shared(0.8),
        "weights": {"ruzicka": 0.25, "same_sign": None},
        "ranks": {"spearman_all": 0.75, "kendall_all": None, "spearman_kept": 0.5 if a else None, "kendall_kept": None},
        "kinds": {"embed->q": shared(0.25)},
        "layers": {"0": shared(0.25)},
        "differences": {
            "kl": {
                "measure": "kl", "value": -0.3, "low": -0.4, "high": -0.2,
                "num_examples": NUM_EXAMPLES, "p_value": 0.0001, **how,
            }
        },
    }  # fmt: skip


def measure(heading: str, unit: str, better: str, definition: str) -> Json:
    texts = {"heading": heading, "unit": unit, "better": better, "range": "0 to 1"}
    return {**texts, "definition": definition, "source": "a paper"}


def example() -> Json:
    """The result, anew at every call."""
    deep = {
        "completeness": completeness(),
        "minimality": minimality(),
        "suffix": suffix(),
        "hypothesis": hypothesis(),
        "functional": functional(),
        "mib": mib(),
        "known": known(),
        "reading": reading(),
    }
    ends = {"full": measures(0.0, 3.0, 0.97), "empty": measures(4.0, -3.0, 0.03)}
    return {
        "schema": "edgeprune-evaluation/1",
        "about": {
            "model": "gpt2",
            "model_fingerprint": "0123abcd",
            "graph": {
                "num_layers": 2, "num_heads": 12, "num_kv_heads": 12, "split_embedding": False, "kv_readers": "group",
                "parallel_blocks": False, "has_mlp": True,
            },
            "task": {"task": "IOITask", "names": 100, "seed": None, "sha256": {"train": "a" * 64, "test": "b" * 64}},
            "split": "test",
            "num_examples": NUM_EXAMPLES,
            "ablation": "interchange",
            "ablations": ["interchange", "mean"],
            "resampling": {"method": "percentile bootstrap over examples", "draws": 1000, "level": 0.95, "seed": 0},
            "random_seeds": 5,
            "tests": ["controls", "completeness", "minimality", "suffix", "hypothesis", "functional", "mib"],
            "test_examples": NUM_TESTED,
            "minimality_edges": 4,
            "reading_pairs": 10,
            "versions": {"python": "3.11.7", "edgeprune": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            "command": "edgeprune evaluate runs/*.safetensors --config ioi.yaml --report out.html",
            "seconds": 12.5,
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
            circuit("eap", "eap", 40, 0.9, mib=None),
        ],
        "pairs": [pair(0, 1, 0.4), pair(0, 2, 0.25), pair(1, 2, 0.125)],
        "seeds": [seeds()],
        "runs": [run()],
    }  # fmt: skip
