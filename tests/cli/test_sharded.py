"""Two processes with half of each weight do what one process does, bit for bit or as nearly as DDP."""

import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.torch_version import TorchVersion
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig

from edgeprune.checkpoint_files import load_checkpoint
from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.errors import EdgepruneError
from edgeprune.models.before_norm import EdgesBeforeNorm
from edgeprune.models.loading import fingerprint, load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.models.sharded_loading import WeightFiles
from edgeprune.models.sharding import CPU_SINCE, PRESENT_COPIES, Sharding, shard
from lit_modules import PruningModule
from lit_modules.memory import plan_fit
from lit_modules.ranks import OfAllRanksError, all_ranks_agree
from tests.cli import kills
from tests.cli.kills import QUICKSTART, RUN, STEPS, fit, printed, status_of, write_config
from tests.cli.test_resume_ddp import STOP, TOLERANCE, fit_on_two, gates, rows

SHAPE: dict[str, Any] = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
LLAMA = LlamaConfig(
    **SHAPE, num_hidden_layers=8, hidden_size=36, num_attention_heads=6, num_key_value_heads=3, intermediate_size=48,
    tie_word_embeddings=True,
)  # fmt: skip
GPT2 = GPT2Config(**SHAPE, n_layer=8, n_embd=36, n_head=6, n_positions=16)
NEW_TORCH = pytest.mark.skipif(torch.__version__ < CPU_SINCE, reason=f"FSDP2 on CPUs needs torch {CPU_SINCE}")
SHARDED = ["--trainer.strategy", "sharded", "--trainer.accelerator", "cpu", "--data.batch_size", "16"]


# -------------------------------------------------------------------- two processes at once
def on_two(target: Any, *arguments: Any) -> list[int]:
    """Exit statuses of `target(rank, port, *arguments)` in two processes."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    pair = [kills._processes.Process(target=target, args=(rank, port, *arguments)) for rank in (0, 1)]
    for process in pair:
        process.start()
    return [status_of(process) for process in pair]


def as_host(rank: int, port: int, folder: Path, arguments: list[str]) -> None:
    """`edgeprune` with `arguments` on one of two machines, as a cluster starts it."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(rank)}
    torch.set_num_threads(1)
    hosts = [*SHARDED, "--trainer.num_nodes", "2", "--trainer.devices", "1"]
    kills._run(str(folder), [*arguments, "--config", "run.yaml", *hosts])


def held(found: Iterable[Tensor], *, shards: bool = True) -> int:
    """Bytes of weights that this process holds now, those that are whole and, if asked for, shards."""
    weights: dict[int, Any] = {id(weight): weight for weight in found if not weight.is_meta}
    local = [weight.to_local() if hasattr(weight, "to_local") else weight for weight in weights.values()]
    whole = [not hasattr(weight, "to_local") for weight in weights.values()]
    return sum(own.nbytes for own, is_whole in zip(local, whole, strict=True) if is_whole or shards)


def in_shards(rank: int, port: int, folder: Path, out: Path) -> None:
    """Load a model whole and in shards, run both on this process's own rows, and note what both give."""
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    loading, running = [0], [0]
    fill, gather = WeightFiles.fill, Sharding.gather
    models = list[MaskedModel]()

    def watched_fill(files: WeightFiles, part: Any) -> None:
        fill(files, part)
        places = [place for places in files._places.values() for place in places]
        loading.append(held((module.get_parameter(leaf) for module, leaf in places), shards=False))

    def watched_gather(sharding: Sharding, part: int) -> None:
        gather(sharding, part)
        if len(models) == 2:
            running.append(held(models[1].hf.parameters()))

    WeightFiles.fill, Sharding.gather = watched_fill, watched_gather  # type: ignore[method-assign]
    models.append(load_model(str(folder)))
    models.append(load_model(str(folder), mesh=init_device_mesh("cpu", (2,))))
    sizes = [sum(weight.nbytes for weight in block.module.parameters()) for block in models[0].blocks]
    sharding = cast("Sharding", models[1].sharding)
    torch.save(
        {
            "tensors": [runs_of(model, rank) for model in models],
            "fingerprints": [fingerprint(model) for model in models],
            "whole": held(models[0].hf.parameters()),
            "layer": max(sizes),
            "planned": sharding.num_bytes,
            "loading": max(loading),
            "running": max(running),
            "refusal": refusal_of(rank),
        },
        out / f"{rank}.pt",
    )


def runs_of(model: MaskedModel, rank: int) -> list[Tensor]:
    """States, logits and gradients of fractional and of open gates, on rows of a rank."""
    random = torch.Generator().manual_seed(rank)
    ids, other = torch.randint(0, 61, (2, 3, 5 + rank), generator=random)
    with torch.inference_mode():  # as Lightning validates; training goes on after it
        model.record(other)
    states, found = model.record(other), list[Tensor]()
    for start in (torch.rand(model.graph.shape, generator=random), torch.ones(model.graph.shape)):
        gate = start.requires_grad_()
        logits = model(ids, gate, states)
        logits.square().mean().backward()
        found += [logits.detach(), cast("Tensor", gate.grad)]
    stream = torch.randn(3, 5 + rank, model.width, generator=random).requires_grad_()
    model.logits(model.run(ids, first=2, stream=stream)).square().mean().backward()
    return [states.heads, *found, cast("Tensor", stream.grad)]


def refusal_of(rank: int) -> str:
    """What a rank raises where the second finds a mistake."""
    try:
        with all_ranks_agree(cast("Any", SimpleNamespace(world_size=2))):
            if rank == 1:
                raise EdgepruneError("the disk is full; empty it")
    except OfAllRanksError as error:
        return str(error)
    return ""


# -------------------------------------------------------------------- models
@NEW_TORCH
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_shards_read_from_files_give_the_bits_of_the_whole_model_in_half_the_room(config: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config)
    (hf.base_model if config is GPT2 else hf).save_pretrained(tmp_path)
    assert on_two(in_shards, tmp_path, tmp_path) == [0, 0]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        whole, shards = found["tensors"]
        assert all(torch.equal(a, b) for a, b in zip(whole, shards, strict=True))
        assert all(tensor.abs().max() > 0 for tensor in whole)
        assert found["fingerprints"][0] == found["fingerprints"][1]
        assert 0 < found["loading"] <= found["layer"]  # whole at once, while it is read
        assert found["whole"] / 2 < found["running"] < 0.6 * found["whole"]
        assert found["running"] <= found["planned"] <= found["running"] + PRESENT_COPIES * found["layer"]
        assert found["refusal"] == "the disk is full; empty it"


def test_files_with_other_names_are_refused(tmp_path: Path) -> None:
    experts = MixtralConfig(**SHAPE, num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=8)
    AutoModelForCausalLM.from_config(experts).save_pretrained(tmp_path)
    mesh = cast("Any", SimpleNamespace(device_type="cpu"))
    with pytest.raises(EdgepruneError, match=r"cannot be read in shards: .*experts.* load it whole, with trainer.stra"):
        load_model(str(tmp_path), mesh=mesh)
    with pytest.raises(EdgepruneError, match=r"a GGUF file .* cannot be read in shards"):
        load_model(str(tmp_path), mesh=mesh, gguf_file="model.gguf")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(EdgepruneError, match=r"it needs model\.safetensors"):
        load_model(str(tmp_path), mesh=mesh)


# -------------------------------------------------------------------- runs
@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on one process, and a sharded one on two, which a signal to one of them stopped."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    write_config(one, [])
    assert fit(one) == 0, printed(one)
    write_config(two, [("step", STOP, "SIGTERM")])
    assert fit_on_two(two, *SHARDED) == 143, printed(two)
    return one, two


def checkpoint_of_stop(folder: Path) -> Path:
    (path,) = (folder / RUN / "checkpoints").glob(f"*step={STOP}.ckpt")
    return path


def form(value: Any) -> Any:
    """Names, types and shapes of what a checkpoint holds."""
    if isinstance(value, dict):
        return {key: form(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [form(item) for item in value]
    return (type(value), value.shape, value.dtype) if isinstance(value, Tensor) else type(value)


@NEW_TORCH
def test_two_processes_with_shards_have_the_gates_circuits_and_figures_of_one(runs: tuple[Path, Path]) -> None:
    one, two = runs
    last = two / RUN / "checkpoints" / "last.ckpt"
    assert (gates(last) - gates(checkpoint_of_stop(one))).abs().max() < TOLERANCE
    for name in ("sparsity-0.5000", "sparsity-0.8000"):
        a, b = (Circuit.load(folder / RUN / "circuits" / f"{name}.safetensors") for folder in runs)
        assert torch.equal(a.keep, b.keep)
        assert b.header["metrics"] == pytest.approx(a.header["metrics"], abs=1e-4, nan_ok=True)
        assert a.header["model_fingerprint"] == b.header["model_fingerprint"]
    for name in ("kl", "val/kl", "val/accuracy", "snapshot/kl"):
        figures = {step: value for step, value in rows(one, name).items() if step < STOP}
        assert {s: v for s, v in rows(two, name).items() if s < STOP} == pytest.approx(figures, abs=1e-3), name
    ours, theirs = (load_checkpoint(path) for path in (last, checkpoint_of_stop(one)))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "edgeprune"):
        assert form(ours[part]) == form(theirs[part])
    assert set(ours) == set(theirs)
    log = printed(two)
    assert log.count("stopped by SIGTERM") == 1
    assert "Traceback" not in log


@NEW_TORCH
def test_one_process_goes_on_where_shards_stopped(runs: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = runs
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    assert fit(tmp_path, "--ckpt_path", "last") == 0, printed(tmp_path)
    found = [gates(folder / RUN / "checkpoints" / "last.ckpt") for folder in (one, tmp_path)]
    assert (found[0] - found[1]).abs().max() < TOLERANCE


@NEW_TORCH
def test_shards_on_two_machines_go_on_where_one_process_stopped_and_evaluate_it(runs: tuple[Path, Path]) -> None:
    one, two = runs
    path = str(checkpoint_of_stop(one))
    assert on_two(as_host, two, ["fit", "--ckpt_path", path]) == [0, 0], printed(two)
    last = two / RUN.with_name("version_1") / "checkpoints" / "last.ckpt"
    assert load_checkpoint(last)["global_step"] == STEPS
    assert (gates(last) - gates(one / RUN / "checkpoints" / "last.ckpt")).abs().max() < TOLERANCE
    assert on_two(as_host, two, ["test", "--ckpt_path", path]) == [0, 0], printed(two)
    assert fit(one, "--ckpt_path", path, command="test") == 0, printed(one)
    tables = [
        [line.split("│")[1:3] for line in printed(folder).splitlines() if "│" in line and "test/" in line]
        for folder in runs
    ]
    assert len(tables[0]) > 5
    for (name, figure), (other, theirs) in zip(*tables, strict=True):
        assert name == other
        assert float(theirs) == pytest.approx(float(figure), abs=1e-4, nan_ok=True)


# -------------------------------------------------------------------- what cannot work
def test_strategies_that_would_shard_gates_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    strategy = '{"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}'
    options = ["--trainer.strategy", strategy, "--trainer.devices", "1", "--trainer.accelerator", "cpu"]
    assert main(["fit", "--config", str(QUICKSTART), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "set it to sharded, or to ddp" in line
    assert not list(tmp_path.iterdir())


def test_what_shards_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = cast("Any", SimpleNamespace(build=id))
    module = PruningModule("compiled:reverse", recipe, cache_disk_gb=1.0)
    module._device_mesh = cast("Any", {"data_parallel": object()})
    with pytest.raises(EdgepruneError, match=r"keeps no reference runs, got cache_disk_gb 1\.0"):
        module.configure_model()
    module = PruningModule("compiled:reverse", recipe, cache_gb=0.0, objective="squared_error")
    module.configure_model()
    module.masked.sharding = object()
    with pytest.raises(EdgepruneError, match="need a model that is whole in every process"):
        EdgesBeforeNorm(module.masked)
    data = SimpleNamespace(open_sizes=("batch_size",))
    with pytest.raises(EdgepruneError, match=r"batch_size auto .* give a number"):
        plan_fit(module, data, cast("Any", None))
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.7.1+cpu"))
    with pytest.raises(EdgepruneError, match=r"needs torch 2\.8, this is 2\.7\.1\+cpu"):
        shard(module.masked, cast("Any", SimpleNamespace(device_type="cpu")))
