"""Student and teacher in one Megatron model: Model Optimizer's distillation, with our loss.

NeMo's `DistillationGPTModel` runs the frozen teacher beside the student on every pipeline stage and carries both hidden
streams between stages; Model Optimizer captures both logits. Replaced here is only the criterion: `losses.mixture`
(padded columns never count, T^2, literal weights, one global token denominator) instead of NeMo's, and the reduction
that fits it; see `criterion`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import modelopt.torch.distill as mtd
from megatron.core import parallel_state
from megatron.core.utils import get_batch_on_this_cp_rank
from nemo.collections import llm
from nemo.collections.llm.gpt.model.base import HAVE_TE, gpt_data_step
from nemo.collections.llm.modelopt.distill.model import DistillationGPTModel
from nemo.collections.llm.modelopt.distill.utils import DistillationConfig, adjust_distillation_model_for_mcore
from nv_one_logger.api.one_logger_provider import OneLoggerProvider
from torch import Tensor

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import checkpoint, convert, datasets
from bielik_nemo.engine import model as models
from bielik_nemo.engine.criterion import HUNDREDTHS, Criterion, SumsReduction
from bielik_nemo.engine.hidden_states import HiddenStates
from bielik_nemo.errors import ConfigError, GateError

LOGITS = ("output_layer", "output_layer")


@dataclass
class TeacherGate:
    """What a teacher must show on held-out text before the first step.

    A teacher whose weights were lost, cut or permuted on the way still trains a student, silently, into nonsense.
    """

    held_out: datasets.HeldOut
    max_loss: float  # nats per token
    expected_loss: float | None  # what the source model measured on the same text; None: not known
    tolerance: float  # relative, against expected_loss

    def __call__(self, teacher: Any) -> float:
        """Measure a built teacher's loss; the same on every rank.

        Raises:
            GateError: the loss is not finite, above `max_loss`, or not the source model's.
        """
        loss = self.held_out.loss(teacher)
        if not loss <= self.max_loss:
            raise GateError(
                f"teacher: held-out loss {loss:.3f} nats per token at step 0, allowed are at most "
                f"distill.gate_max_loss={self.max_loss}; its weights or its tokenizer are not what they should be"
            )
        if self.expected_loss is not None and abs(loss - self.expected_loss) > self.tolerance * self.expected_loss:
            raise GateError(
                f"teacher: held-out loss {loss:.4f} nats per token at step 0, the source model measured "
                f"{self.expected_loss:.4f}; distill.gate_tolerance={self.tolerance} (relative) is exceeded"
            )
        return loss


class DistillationModel(DistillationGPTModel):
    """The student as a NeMo model, with a frozen teacher that is never saved.

    Args:
        student: architecture after pruning.
        teacher: architecture of the source model.
        teacher_checkpoint: Megatron checkpoint of the teacher, of any layout.
        gate: checks the loaded teacher.
        criterion: the loss, and what is logged beside it.
        hidden_weight: of the distance between hidden states in the loss, 0: without.
        hidden_layers: pairs of layers of student and teacher where it is measured; see `hidden_states`.
        dtype: of the parameters of both.
        seq_length: tokens per sample.
        recompute: which of the student's activations are computed again in the backward pass.
        student_hf: Hugging Face directory that the student starts from; empty: it is restored from a checkpoint.
        student_megatron: the same, a Megatron checkpoint: where hidden states are compared, for the trainer would look
            for their projections in it.
    """

    def __init__(
        self,
        student: Architecture,
        teacher: Architecture,
        teacher_checkpoint: str,
        gate: TeacherGate,
        criterion: Criterion,
        dtype: str,
        seq_length: int,
        recompute: str = "none",
        hidden_weight: float = 0.0,
        hidden_layers: Sequence[Sequence[int]] = (),
        student_hf: str = "",
        student_megatron: str = "",
        optim: Any = None,
        tokenizer: Any = None,
    ):
        super().__init__(
            models.gpt_config(student, dtype=dtype, seq_length=seq_length, recompute=recompute),
            models.gpt_config(teacher, dtype=dtype, seq_length=seq_length),
            teacher_checkpoint,
            optim=optim,
            tokenizer=tokenizer,
        )
        self.student, self.teacher, self.student_hf = student, teacher, student_hf
        self.gate, self.criterion = gate, criterion
        self.hidden_weight, self.hidden_layers = hidden_weight, hidden_layers
        self.student_megatron = student_megatron

    def configure_model(self) -> None:
        """Build student and teacher in the trainer's layout and join them.

        Raises:
            CheckpointError: the teacher, or the student's Hugging Face directory, cannot be loaded.
            GateError: the teacher is not what it should be.
        """
        if hasattr(self, "module"):
            return
        sizes = (f"{kind}_parallel_size" for kind in ("tensor_model", "pipeline_model", "context"))
        for name in (*sizes, "sequence_parallel", "pipeline_dtype"):
            setattr(self._teacher_config, name, getattr(self.config, name))
        for config, a in ((self.config, self.student), (self._teacher_config, self.teacher)):
            config.vocab_size = a.padded_vocab_size(config.tensor_model_parallel_size)
        teacher = models.build(self._teacher_config, self.teacher)
        checkpoint.load(teacher, Path(self._teacher_ckpt_path))
        self.gate(teacher)
        student = models.build(self.config, self.student)
        if self.student_hf:
            convert.load_hf(student, Path(self.student_hf), self.student)
        if self.student_megatron:
            checkpoint.load(student, Path(self.student_megatron))
        last = parallel_state.is_pipeline_last_stage()
        joined = mtd.convert(
            student,
            mode=[
                (
                    "kd_loss",
                    {
                        "teacher_model": teacher,
                        "criterion": {LOGITS: self.criterion} if last else {},
                        "loss_balancer": None,
                    },
                )
            ],
        )
        adjust_distillation_model_for_mcore(joined, DistillationConfig())
        # Where student and teacher part in what a pipeline stage receives: NeMo learns it in the first training step,
        # and the student is measured before.
        joined.set_student_input_tensor_shape([(self.config.hidden_size,)])
        models.use_padding_free_loss(joined, self.student, skip_in_training=True)
        if self.hidden_weight:
            joined.hidden_states = HiddenStates(joined, teacher, self.hidden_layers, self.hidden_weight)
        self.module = joined

    @property
    def training_loss_reduction(self) -> SumsReduction:
        """The reduction that NeMo calls after each micro-batch."""
        if not self._training_loss_reduction:
            parts = HUNDREDTHS if self.criterion.normalization == "weights" else 1
            self._training_loss_reduction = SumsReduction(self._measure, self.criterion.names, parts)
        return self._training_loss_reduction

    def trained_tokens(self) -> float:
        """What the newest batch counts, over all ranks; a collective of the pipeline."""
        return self.training_loss_reduction.totals()["count"]

    def _measure(self, batch: dict[str, Tensor], _: Tensor) -> Tensor:
        losses = self.core_module.compute_kd_loss(skip_balancer=True, labels=batch["labels"], mask=batch["loss_mask"])
        (sums,) = losses.values()
        return sums

    def step_metrics(self) -> dict[str, float]:
        """What the last step measured; a collective of all ranks."""
        if not self.hidden_weight:
            return self.training_loss_reduction.means()
        means = self.training_loss_reduction.means(hidden_state=self.core_module.hidden_states.total())
        return means | {"loss": means["loss"] + self.hidden_weight * means["hidden_state"]}

    def data_step(self, dataloader_iter: Iterator) -> dict[str, Tensor]:
        """NeMo's batch, with the mask on every pipeline stage where hidden states are compared."""
        if not self.hidden_weight:
            return super().data_step(dataloader_iter)
        batch, *_ = next(dataloader_iter)
        found = gpt_data_step(iter([batch]))
        return found | get_batch_on_this_cp_rank({"loss_mask": batch["loss_mask"].cuda(non_blocking=True)})

    def forward_step(self, batch: dict[str, Tensor]) -> Tensor:
        """One micro-batch."""
        if self.hidden_weight:
            self.core_module.hidden_states.expect(batch["loss_mask"])
        return super().forward_step(batch)


def train(model: DistillationModel, data: Any, trainer: Any, log: Any, resume: Any, optim: Any) -> Any:
    """NeMo's `llm.train`, returning the trained student alone.

    Returns:
        This rank's student without wrappers; its sharded state dict leaves the teacher out.

    Raises:
        ConfigError: a sequence is to be split, and there is no Transformer Engine to do it.
    """
    if (trainer.strategy.context_parallel_size > 1 or trainer.strategy.sequence_parallel) and not HAVE_TE:
        raise ConfigError(
            "parallel.cp, parallel.sequence_parallel: Transformer Engine is needed, which is not installed"
        )
    # NeMo's telemetry has no exporter here, and leaves its complaints in the working directory.
    OneLoggerProvider.instance().force_disable_logging()
    asynchronous = trainer.strategy.async_save
    with checkpoint.results_queue_that_ends_with_us() if asynchronous else checkpoint.in_process_results_queue():
        llm.train(model=model, data=data, trainer=trainer, log=log, resume=resume, optim=optim)
    return model.core_module
