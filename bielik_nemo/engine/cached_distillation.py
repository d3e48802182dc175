"""Distillation from a teacher that has already spoken: the student alone, trained on what `teacher_cache` kept.

A NeMo GPT model whose loss is that of `criterion` on what the cache holds (forward KL is `losses.sampled_kl` or, of the
teacher's most likely ids, `losses.sparse_kl`), and a data module that hands this with each text. Everything else is
that of `distillation`: the same `train`, the same order of samples, one global token denominator.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import MethodType
from typing import Any

from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.utils import get_batch_on_this_cp_rank
from nemo.collections import llm
from nemo.collections.llm.gpt.data.pre_training import PreTrainingDataModule
from nemo.collections.llm.gpt.model.base import gpt_data_step
from nemo.utils.model_utils import unwrap_model
from torch import Tensor
from torch.utils.data import Dataset

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import convert
from bielik_nemo.engine import model as models
from bielik_nemo.engine.criterion import Criterion, SumsReduction
from bielik_nemo.engine.teacher_cache import TeacherCache
from bielik_nemo.losses import Sampled, TopK

IDS, VALUES = "teacher_ids", "teacher_values"


class CachedDataset(Dataset):
    """The samples of a dataset, each with the ids and values that `TeacherCache.read` returns for its number."""

    def __init__(self, dataset: Any, cache: TeacherCache):
        self.dataset, self.cache = dataset, cache

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.dataset[index]
        ids, values = self.cache.read(index, sample["tokens"])
        return {**sample, IDS: ids, VALUES: values}


class CachedDataModule(PreTrainingDataModule):
    """NeMo's data module whose training samples come with the teacher's.

    Args:
        teacher_cache: directory of the cache.
        settings: of `PreTrainingDataModule`.
    """

    def __init__(self, teacher_cache: str, **settings: Any):
        super().__init__(**settings)
        self.teacher_cache = teacher_cache

    def build(self, *args: Any, **kwargs: Any) -> None:
        """Build the datasets.

        Raises:
            CheckpointError: the cache is missing, unfinished or damaged.
        """
        super().build(*args, **kwargs)
        self._train_ds = CachedDataset(self._train_ds, TeacherCache(self.teacher_cache))


class CachedDistillationModel(llm.GPTModel):
    """The student as a NeMo model, and no teacher.

    Args:
        student: architecture after pruning.
        criterion: the loss, and what is logged beside it.
        dtype: of its parameters.
        seq_length: tokens per sample.
        kind: of the teacher's cache.
        recompute: which activations are computed again in the backward pass.
        student_hf: Hugging Face directory that the student starts from; empty: it is restored from a checkpoint.
    """

    def __init__(
        self,
        student: Architecture,
        criterion: Criterion,
        dtype: str,
        seq_length: int,
        kind: str = "sampled",
        recompute: str = "none",
        student_hf: str = "",
        optim: Any = None,
        tokenizer: Any = None,
    ):
        config = models.gpt_config(student, dtype=dtype, seq_length=seq_length, recompute=recompute)
        super().__init__(config, optim=optim, tokenizer=tokenizer)
        self.student, self.criterion, self.student_hf = student, criterion, student_hf
        self.teacher = {"sampled": Sampled, "top_k": TopK}[kind]

    def configure_model(self) -> None:
        """Build the student in the trainer's layout.

        Raises:
            CheckpointError: its Hugging Face directory cannot be loaded.
        """
        if hasattr(self, "module"):
            return
        self.config.vocab_size = self.student.padded_vocab_size(self.config.tensor_model_parallel_size)
        self.module = models.build(self.config, self.student)
        if self.student_hf:
            convert.load_hf(self.module, Path(self.student_hf), self.student)
        _learn_from_cache(self.module, self.criterion, self.teacher)

    @property
    def core_module(self) -> GPTModel:
        """This rank's student without wrappers."""
        return unwrap_model(self.module)

    @property
    def training_loss_reduction(self) -> SumsReduction:
        """The reduction that NeMo calls after each micro-batch."""
        if not self._training_loss_reduction:
            self._training_loss_reduction = SumsReduction(lambda _, sums: sums, self.criterion.names)
        return self._training_loss_reduction

    def step_metrics(self) -> dict[str, float]:
        """What the last step measured; a collective of the pipeline."""
        return self.training_loss_reduction.means()

    def data_step(self, dataloader_iter: Iterator) -> dict[str, Tensor]:
        """NeMo's batch, on the last pipeline stage with what the teacher said."""
        batch, *_ = next(dataloader_iter)
        found = gpt_data_step(iter([batch]))
        if not parallel_state.is_pipeline_last_stage():
            return found | {IDS: None, VALUES: None}
        said = {key: batch[key].cuda(non_blocking=True) for key in (IDS, VALUES)}
        return found | get_batch_on_this_cp_rank(said)

    def forward_step(self, batch: dict[str, Tensor]) -> Tensor:
        """One micro-batch; the last pipeline stage returns the sums of `Criterion.measure`."""
        return self(
            batch["tokens"],
            batch["position_ids"],
            batch.get("attention_mask"),
            labels=(batch[IDS], batch[VALUES], batch["labels"], batch["loss_mask"]),
        )


def _learn_from_cache(model: GPTModel, criterion: Criterion, teacher: type[Sampled | TopK]) -> None:
    """Let the loss in training be the criterion's, where the logits are: a wrapper copies them to fp32 on the way out.

    While training, what Megatron calls labels is the teacher's ids `[b, s, n]`, its surprisal `[b, s]` or
    log-probabilities `[b, s, n]`, labels and mask.
    """
    measure = model.compute_language_model_loss

    def compute_language_model_loss(self: GPTModel, labels: Any, logits: Tensor) -> Tensor:
        if not self.training:
            return measure(labels, logits)
        ids, values, words, mask = labels
        said = teacher(ids.transpose(0, 1), values.transpose(0, 1))
        return criterion.measure(logits, said, words, mask)

    model.compute_language_model_loss = MethodType(compute_language_model_loss, model)
