"""Student and teacher in one Megatron model: Model Optimizer's distillation, with our loss.

NeMo's `DistillationGPTModel` runs the frozen teacher beside the student on every pipeline stage and carries both hidden
streams between stages; Model Optimizer captures both logits. Replaced here is only the criterion: `losses.forward_kl`
(padded columns never count, T^2, one global token denominator) instead of NeMo's, and the reduction that fits it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import modelopt.torch.distill as mtd
import torch
from megatron.core import parallel_state
from nemo.collections import llm
from nemo.collections.llm.modelopt.distill.model import DistillationGPTModel
from nemo.collections.llm.modelopt.distill.utils import DistillationConfig, adjust_distillation_model_for_mcore
from nemo.lightning.megatron_parallel import MaskedTokenLossReduction
from nv_one_logger.api.one_logger_provider import OneLoggerProvider
from torch import Tensor

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import checkpoint, convert, datasets
from bielik_nemo.engine import model as models
from bielik_nemo.errors import GateError
from bielik_nemo.losses import forward_kl

LOGITS = ("output_layer", "output_layer")


class ForwardKL(torch.nn.modules.loss._Loss):
    """Model Optimizer's criterion interface over `losses.forward_kl`."""

    def __init__(self, temperature: float, vocab_size: int):
        super().__init__()
        self.temperature = temperature
        self.vocab_size = vocab_size

    def forward(self, student: Any, teacher: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`(sum, count)` of captured logits `([s, b, v/tp], bias)`; mask is Megatron's `[b, s]`."""
        return forward_kl(
            student[0],
            teacher[0],
            mask.transpose(0, 1),
            temperature=self.temperature,
            vocab_size=self.vocab_size,
            tp_group=models.tp_group(),
        )


class KDLossReduction(MaskedTokenLossReduction):
    """Hands Megatron a sum and a token count, so that it divides once by the global count."""

    def __init__(self, distillation_model: Any):
        super().__init__()
        self.distillation_model = distillation_model

    def forward(self, batch: dict[str, Tensor], forward_out: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss sum in nats, number of counted tokens, and both for the log."""
        losses = self.distillation_model.compute_kd_loss(skip_balancer=True, mask=batch["loss_mask"])
        ((total, count),) = losses.values()
        report = torch.stack([total.detach(), count])
        return total, count.to(torch.int), {"loss_sum_and_ub_size": report}


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
        temperature: of the distillation loss.
        dtype: of the parameters of both.
        seq_length: tokens per sample.
        recompute: which of the student's activations are computed again in the backward pass.
        student_hf: Hugging Face directory that the student starts from; empty: it is restored from a checkpoint.
    """

    def __init__(
        self,
        student: Architecture,
        teacher: Architecture,
        teacher_checkpoint: str,
        gate: TeacherGate,
        temperature: float,
        dtype: str,
        seq_length: int,
        recompute: str = "none",
        student_hf: str = "",
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
        self.gate, self.temperature = gate, temperature

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
        last = parallel_state.is_pipeline_last_stage()
        joined = mtd.convert(
            student,
            mode=[
                (
                    "kd_loss",
                    {
                        "teacher_model": teacher,
                        "criterion": {LOGITS: ForwardKL(self.temperature, self.student.vocab_size)} if last else {},
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
        self.module = joined

    @property
    def training_loss_reduction(self) -> KDLossReduction:
        """The reduction that NeMo calls after each micro-batch."""
        if not self._training_loss_reduction:
            self._training_loss_reduction = KDLossReduction(self.core_module)
        return self._training_loss_reduction


def train(model: DistillationModel, data: Any, trainer: Any, log: Any, resume: Any, optim: Any) -> Any:
    """NeMo's `llm.train`, returning the trained student alone.

    Returns:
        This rank's student without wrappers; its sharded state dict leaves the teacher out.
    """
    # NeMo's telemetry has no exporter here, and leaves its complaints in the working directory.
    OneLoggerProvider.instance().force_disable_logging()
    synchronous = not trainer.strategy.async_save
    with checkpoint.in_process_results_queue() if synchronous else contextlib.nullcontext():
        llm.train(model=model, data=data, trainer=trainer, log=log, resume=resume, optim=optim)
    return model.core_module
