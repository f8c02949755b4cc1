"""Gates on weights in a Trainer: whose turn a step is, samples of accumulated batches, and what memory allows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from datamodules import PairDataModule
from datamodules.tasks.base import AbstractTask, PromptPair, TokenPair
from datamodules.tasks.compiled import CompiledTask
from edgeprune import memory
from edgeprune.errors import EdgepruneError
from edgeprune.methods import DiscoGPWeights
from edgeprune.models.weight_mask import WeightMask
from lit_modules import WeightPruningModule
from lit_modules.memory import plan_fit

PROGRAM = "trained_induction"


@dataclass
class WithWrongAnswers(AbstractTask):
    """The program's pairs, with the output after the right one as the wrong one."""

    def splits(self, tokenizer: Any) -> Mapping[str, Sequence[PromptPair] | Sequence[TokenPair]]:
        del tokenizer
        return {
            split: [
                TokenPair(
                    pair.clean, pair.corrupted, pair.positions, pair.targets, tuple((t + 1) % 8 for t in pair.targets)
                )
                for pair in pairs[:16]
            ]
            for split, pairs in CompiledTask(PROGRAM).splits(None).items()
        }


class Recorder(pl.Callback):
    """Names that each step logs, and the gates after it."""

    def __init__(self) -> None:
        self.logged: list[set[str]] = []
        self.gates: list[Tensor] = []
        self._names: set[str] = set()

    def note(self, values: Mapping[str, Any], **_: Any) -> None:
        """In the place of what logs."""
        self._names |= {"nll_answers", "train/complement", "train/penalty"} & set(values)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.logged.append(self._names)
        self._names = set()
        self.gates.append(torch.cat([part.detach().flatten().clone() for part in pl_module.gates.logits]))


def parts(
    model: dict[str, Any], data: dict[str, Any], recipe: dict[str, Any] | None = None, **trainer: Any
) -> tuple[WeightPruningModule, PairDataModule, pl.Trainer]:
    module = WeightPruningModule(f"compiled:{PROGRAM}", DiscoGPWeights(**(recipe or {"learning_rate": 0.5})), **model)
    module.configure_model()
    options: dict[str, Any] = {"check_val_every_n_epoch": None, "val_check_interval": 10, "logger": False} | trainer
    options |= {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    made = pl.Trainer(accelerator="cpu", use_distributed_sampler=False, log_every_n_steps=1, **options)
    return module, PairDataModule(WithWrongAnswers(), cache=False, **data), made


def train(folder: Any, model: dict[str, Any], steps: int = 4, **data: Any) -> tuple[Recorder, WeightPruningModule]:
    recorder = Recorder()
    trainer: dict[str, Any] = {"max_steps": steps, "callbacks": [recorder], "default_root_dir": folder}
    trainer["accumulate_grad_batches"] = data.pop("accumulate", 1)
    module, pairs, made = parts(model, {"batch_size": 4, **data}, **trainer)
    module._log = recorder.note  # pyright: ignore[reportPrivateUsage]
    made.fit(module, pairs)
    return recorder, module


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*")
class TestTraining:
    def test_the_complement_has_every_second_step_to_itself(self, tmp_path: Any) -> None:
        recorder, _ = train(tmp_path, {})
        own, complement = {"nll_answers", "train/penalty"}, {"train/complement"}
        assert recorder.logged == [own, complement, own, complement]

    def test_or_a_part_in_all_of_them(self, tmp_path: Any) -> None:
        recorder, _ = train(tmp_path, {"complement_step": "joint"}, 2)
        assert recorder.logged == [{"nll_answers", "train/penalty", "train/complement"}] * 2

    def test_or_none(self, tmp_path: Any) -> None:
        recorder, module = train(tmp_path, {"complement_weight": 0.0}, 3)
        assert recorder.logged == [{"nll_answers", "train/penalty"}] * 3
        mask = WeightMask.load(tmp_path / "weight_mask.safetensors")
        assert mask.digest == module.mask().digest
        assert mask.header["task"]["task"] == "WithWrongAnswers"

    def test_the_complement_step_moves_gates_without_the_penalty(self, tmp_path: Any) -> None:
        """Adam's first step moves every gate that has a gradient; the penalty's reaches all, the complement's not."""
        quiet, _ = train(tmp_path / "a", {"complement_weight": 1.0}, 2)
        first, second = quiet.gates
        assert (first != second).float().mean() > 0.9  # the momentum of the first step goes on
        assert not torch.equal(first, second)

    def test_batches_of_a_step_accumulate(self, tmp_path: Any) -> None:
        recorder, _ = train(tmp_path, {"complement_weight": 0.0}, 2, batch_size=2, accumulate=2)
        assert len(recorder.gates) == 4
        assert not torch.equal(recorder.gates[1], recorder.gates[3])
        assert torch.equal(recorder.gates[1], recorder.gates[2]), "between, gates stay"


# ------------------------------------------------------------------ memory
def test_gates_on_weights_are_planned_and_refused_where_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resident", lambda: 0)
    monkeypatch.setattr(memory, "spare_memory", lambda: 10**12)
    module, data, trainer = parts({}, {"batch_size": 8, "eval_batch_size": 1})
    plan = plan_fit(module, data, trainer)
    number = module.gates.num_gates
    assert plan.terms["optimizer"] == 2 * 4 * number
    assert plan.terms["noise"] == 4 * number
    assert plan.terms["activations"] > 0
    monkeypatch.setattr(memory, "spare_memory", lambda: plan.total - 1)
    with pytest.raises(EdgepruneError, match=r"set data\.batch_size to 7 or less .* gate fewer weights"):
        plan_fit(module, data, trainer)
    module, data, trainer = parts({}, {"batch_size": "auto", "target_batch_size": 8, "eval_batch_size": 1})
    plan_fit(module, data, trainer)
    assert (data.batch_size, trainer.accumulate_grad_batches) == (4, 2)


def test_groups_of_a_batch_need_the_activations_of_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "spare_memory", lambda: 10**12)
    plans = [
        plan_fit(*parts({}, {"batch_size": 8, "eval_batch_size": 1}, {"masks_per_batch": masks})) for masks in (1, 4)
    ]
    assert plans[0].terms["activations"] == 4 * plans[1].terms["activations"]


def test_float16_is_refused() -> None:
    with pytest.raises(EdgepruneError, match="choose bfloat16 or float32"):
        WeightPruningModule("compiled:induction", DiscoGPWeights(), dtype="float16")
