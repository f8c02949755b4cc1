"""One piece of work by one tool, in this process: what `peers.py` starts in each tool's own environment.

    python benchmarks/peers_work.py TOOL WORK FOLDER RESULT

FOLDER is one that `peers.py` made: `model/` (a Hugging Face GPT-2), `pairs.json` (token ids), `circuits.json` (names of
the edges of two circuits), `tests.json` (the edges that ACDC is to test, and its taus). RESULT gets CPU seconds of the
work alone, the peak memory of the process, versions, and what was found, under our names of edges. Nothing of edgeprune
is needed but by its own work. Other tools get the tokens as they are: where they want text, their tokenization is
replaced by one that takes ids.
"""

import argparse
import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Found = dict[str, Any]
IG_STEPS = 5


class Task:
    """The pairs and edges of a folder."""

    def __init__(self, folder: Path) -> None:
        content = json.loads((folder / "pairs.json").read_text())
        self.model = folder / "model"
        self.clean, self.corrupted = torch.tensor(content["clean"]), torch.tensor(content["corrupted"])
        self.right, self.wrong = torch.tensor(content["right"]), torch.tensor(content["wrong"])
        self.layers: int = json.loads((self.model / "config.json").read_text())["n_layer"]

    def circuits(self) -> list[list[str]]:
        """Edges of the two circuits."""
        return json.loads((self.model.parent / "circuits.json").read_text())

    def tests(self, work: str) -> tuple[list[str], float]:
        """Edges into the receivers that ACDC is to test, in its order; tau, where it is known."""
        content = json.loads((self.model.parent / "tests.json").read_text())
        return content[work], content["tau"].get(work, float("inf"))

    def difference(self, logits: Tensor) -> Tensor:
        """Wrong minus right logit of `[pair, vocabulary]`."""
        rows = torch.arange(len(logits))
        return logits[rows, self.wrong] - logits[rows, self.right]


def imported(name: str) -> Any:
    """A module that only the other environment may have."""
    return import_module(name)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, and what came of it."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def evaluated(task: Task, run: Callable[[list[str]], list[float]]) -> Found:
    """A circuit, and a further one after it."""
    (first, values), (further, others) = (timed(partial(run, edges)) for edges in task.circuits())
    return {"seconds": first, "further_seconds": further, "values": [values, others]}


# ---------------------------------------------------------------- edgeprune
def edgeprune(task: Task, work: str) -> Found:
    """Ours."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from edgeprune.ablations.runs import ReferenceRuns
    from edgeprune.batch import PairBatch
    from edgeprune.console import no_progress
    from edgeprune.evaluation.evaluator import Evaluator
    from edgeprune.methods.acdc import ACDC
    from edgeprune.methods.acdc_state import ThresholdRun
    from edgeprune.methods.eap import EAP
    from edgeprune.methods.eap_ig import EAPIG
    from edgeprune.methods.problem import Problem
    from edgeprune.models.loading import load_model

    model = load_model(str(task.model))
    graph = model.graph
    one = torch.ones(len(task.clean), 1, dtype=torch.long)
    batch = PairBatch(
        clean=task.clean, corrupted=task.corrupted, attention_mask=torch.ones_like(task.clean),
        positions=one * (task.clean.shape[1] - 1), position_mask=one.bool(), targets=task.right[:, None],
        distractors=task.wrong[:, None], index=torch.arange(len(task.clean)),
    )  # fmt: skip
    if work in ("eap", "eap_ig"):
        problem = Problem(model, [batch], ReferenceRuns(model, "interchange"), "logit_difference")

        def scored(method: EAP | EAPIG) -> Any:
            return method.discover(problem, no_progress).scores

        seconds, scores = timed(partial(scored, EAP() if work == "eap" else EAPIG("inputs", IG_STEPS)))
        cells = graph.exists.nonzero().tolist()
        names = [graph.edge_name(*cell) for cell in cells]
        found = {"seconds": seconds, "scores": dict(zip(names, scores[graph.exists].tolist(), strict=True))}
        if work == "eap_ig":  # from m gradients at 0 ... m-1 steps to those at 1 ... m
            clean, ends = scored(EAP()), scored(EAPIG("clean_corrupted"))
            moved = (scores + 2 / IG_STEPS * (clean - ends))[graph.exists]
            found["scores_from_1"] = dict(zip(names, moved.tolist(), strict=True))
        return found
    if work == "evaluate":
        evaluator = Evaluator(model, ReferenceRuns(model, "interchange"), [batch], measures=("logit_difference",))

        def run(edges: list[str]) -> list[float]:
            keep = torch.zeros(graph.shape).bool()
            for edge in edges:
                keep[graph.index(edge)] = True
            return (-evaluator([keep]).values[0, 0]).tolist()  # theirs is a loss

        return evaluated(task, run)
    edges, tau = task.tests(work)
    problem = Problem(model, [batch], ReferenceRuns(model, "interchange"), "kl")
    method = ACDC((tau,))
    state = ThresholdRun(tau, graph.exists.clone(), torch.zeros(graph.shape, dtype=torch.float64))
    receivers = list(dict.fromkeys(graph.index(edge)[:-1] for edge in edges))

    def test() -> None:
        losses = method._losses(problem)
        for receiver in receivers:
            method._receiver(state, receiver, losses)

    seconds, _ = timed(test)
    assert state.counts.tested == len(edges)
    effects = [state.effects[graph.index(edge)].item() for edge in edges]
    removed = [edge for edge in edges if not state.keep[graph.index(edge)]]
    return {"seconds": seconds, "effects": effects, "removed": removed}


# ---------------------------------------------------------------- tools on TransformerLens
def hooked(task: Task, **flags: bool) -> Any:
    """The model as TransformerLens has it: nothing folded, nothing centred."""
    lens, names = imported("transformer_lens"), imported("transformers")
    convert = imported("transformer_lens.pretrained.weight_conversions").convert_gpt2_weights
    stock = names.AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32).eval()
    its = stock.config
    config = lens.HookedTransformerConfig(
        n_layers=its.n_layer, d_model=its.n_embd, n_heads=its.n_head, d_head=its.n_embd // its.n_head,
        d_mlp=4 * its.n_embd, d_vocab=its.vocab_size, n_ctx=its.n_positions, act_fn="gelu_new",
        normalization_type="LN", eps=its.layer_norm_epsilon, default_prepend_bos=False, device="cpu",
    )  # fmt: skip
    model = lens.HookedTransformer(config)
    model.load_state_dict(convert(stock, config), strict=False)  # buffers of masks are its own
    for flag, value in flags.items():
        getattr(model, f"set_{flag}")(value)
    logits, expected = model(task.clean[:2]), stock(task.clean[:2]).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    return model.eval()


def split(task: Task) -> Any:
    """With outputs and inputs of every head apart, as EAP-IG and ACDC want it."""
    return hooked(task, use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True)


def plain_name(edge: str) -> str:
    """`input->a0.h1<q>` as `embed->a0.h1.q`."""
    return edge.replace("input->", "embed->").replace("<", ".").rstrip(">")


def as_they_are(ids: list[list[int]], **_: Any) -> Tensor:
    """Instead of a tokenization of text."""
    return torch.tensor(ids)


def all_seen(_: object, ids: Tensor, *__: object) -> Tensor:
    """No padding."""
    return torch.ones_like(ids)


def nothing(*_: object, **__: object) -> None:
    """Instead of a drawing."""


def eap_ig(task: Task, work: str, package: str = "eap", utilities: str = "utils") -> Found:
    """EAP-IG, and CircuitKIT, whose backend has its interface."""
    attribute, evaluate, graphs, tokens = (
        imported(f"{package}.{name}") for name in ("attribute", "evaluate", "graph", utilities)
    )
    model = split(task)
    model.tokenizer = SimpleNamespace(padding_side="right", pad_token_id=0)
    model.to_tokens = as_they_are
    model.to_str_tokens = str  # for messages
    tokens.get_attention_mask = all_seen
    graph = graphs.Graph.from_model(model)
    loader = [(task.clean.tolist(), task.corrupted.tolist(), None)]

    def metric(logits: Tensor, *_: Any) -> Tensor:
        return task.difference(logits[:, -1])

    def summed(logits: Tensor, *_: Any) -> Tensor:
        return metric(logits).sum()

    if work in ("eap", "eap_ig"):
        method, steps = ("EAP", None) if work == "eap" else ("EAP-IG-inputs", IG_STEPS)
        seconds, _ = timed(
            lambda: attribute.attribute(model, graph, loader, summed, method, ig_steps=steps, quiet=True)
        )
        return {"seconds": seconds, "scores": {plain_name(name): float(e.score) for name, e in graph.edges.items()}}

    def run(edges: list[str]) -> list[float]:
        kept = set(edges)
        for name, edge in graph.edges.items():
            edge.in_graph = plain_name(name) in kept
        for node in graph.nodes.values():
            if node.name != "logits":
                node.in_graph = True  # its pruning takes out those without edges
        return evaluate.evaluate_graph(model, graph, loader, metric, quiet=True).tolist()

    return evaluated(task, run)


def module_name(name: str) -> str:
    """`A1.0.K`, `MLP 0`, `Resid Start` as `a1.h0.k`, `m0`, `embed`."""
    if found := re.fullmatch(r"A(\d+)\.(\d+)(?:\.([QKV]))?", name):
        layer, head, letter = found.groups()
        return f"a{layer}.h{head}" + (f".{letter.lower()}" if letter else "")
    return {"Resid Start": "embed", "Resid End": "logits"}.get(name) or f"m{name.split()[1]}"


def auto_circuit(task: Task, work: str) -> Found:
    """auto-circuit; its EAP is the gradient of its masks, its integrated gradients move all masks at once."""
    data, types = imported("auto_circuit.data"), imported("auto_circuit.types")
    graphs = imported("auto_circuit.utils.graph_utils")
    model = graphs.patchable_model(
        split(task), factorized=True, slice_output="last_seq", separate_qkv=True, device=torch.device("cpu")
    )
    pairs = data.PromptDataset(task.clean, task.corrupted, list(task.right[:, None]), list(task.wrong[:, None]))
    loader = data.PromptDataLoader(pairs, seq_len=None, diverge_idx=0, batch_size=len(task.clean), shuffle=False)
    edges = {"->".join(map(module_name, (e.src.name, e.dest.name))): e for e in model.edges}
    if work in ("eap", "eap_ig"):
        gradient = imported("auto_circuit.prune_algos.mask_gradient").mask_gradient_prune_scores
        where = {"mask_val": 0.0} if work == "eap" else {"integrated_grad_samples": IG_STEPS}
        seconds, scores = timed(partial(gradient, model, loader, None, "logit", "avg_diff", **where))
        values = {name: float(edge.prune_score(scores)) for name, edge in edges.items()}
        return {"seconds": seconds, "scores": values}
    if work == "evaluate":
        run_circuits = imported("auto_circuit.prune").run_circuits

        def run(kept: list[str]) -> list[float]:
            scores = model.new_prune_scores()
            for name in kept:
                scores[edges[name].dest.module_name][edges[name].patch_idx] = 1.0
            (batches,) = run_circuits(model, loader, [len(kept)], scores, types.PatchType.TREE_PATCH).values()
            (logits,) = batches.values()
            return task.difference(logits).tolist()

        return evaluated(task, run)
    names, tau = task.tests(work)
    model.edges = [edges[name] for name in names]
    acdc = imported("auto_circuit.prune_algos.ACDC").acdc_prune_scores
    seconds, scores = timed(partial(acdc, model, loader, None, tao_exps=[0], tao_bases=[tau]))
    return {"seconds": seconds, "removed": [name for name in names if edges[name].prune_score(scores) < torch.inf]}


def acdc(task: Task, work: str) -> Found:
    """The published ACDC: one step of its experiment for each receiver, everything else in place."""
    experiments, edges = imported("acdc.TLACDCExperiment"), imported("acdc.TLACDCEdge")
    experiments.show = nothing  # draws the graph after every step
    model = split(task)
    names, tau = task.tests(work)
    with torch.no_grad():
        full = model(task.clean)[:, -1].log_softmax(-1)

        def divergence(logits: Tensor) -> Tensor:
            return torch.nn.functional.kl_div(
                logits[:, -1].log_softmax(-1), full, log_target=True, reduction="batchmean"
            )

        def run() -> None:
            experiment = experiments.TLACDCExperiment(model, task.clean, task.corrupted, tau, divergence)
            for layer, head in dict.fromkeys(re.findall(r"->a(\d+)\.h(\d+)\.q", " ".join(names))):
                index = edges.TorchIndex([None, None, int(head)])
                experiment.current_node = experiment.corr.graph[f"blocks.{layer}.hook_q_input"][index]
                experiment.step()

        seconds, _ = timed(run)
    return {"seconds": seconds}


TOOLS: Mapping[str, tuple[Callable[[Task, str], Found], Iterable[str]]] = {
    "edgeprune": (edgeprune, ("torch", "transformers")),
    "EAP-IG": (eap_ig, ("torch", "transformer-lens")),
    "CircuitKIT": (
        partial(eap_ig, package="circuitkit.backends.eap", utilities="eap_utils"),
        ("circuitkit", "torch", "transformer-lens"),
    ),
    "auto-circuit": (auto_circuit, ("auto-circuit", "torch", "transformer-lens")),
    "ACDC": (acdc, ("torch", "transformer-lens")),
}


def main() -> None:
    """Work, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("work", choices=("eap", "eap_ig", "evaluate", "acdc_last", "acdc_middle"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    work, packages = TOOLS[options.tool]
    if options.tool == "CircuitKIT":
        imported("circuitkit")  # before TransformerLens, which it changes
    found = work(Task(options.folder), options.work)
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB
    found["versions"] = {package: metadata.version(package) for package in packages}
    options.result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
