"""NeMo's trainer, strategy, optimiser, data and logger for this configuration, as `nemo_run` configs.

Every function returns a `run.Config`, whose fields can be changed like those of NeMo's own recipes before it is built.
What depends on the machine, and numbers of steps or sequences that its caller does not know yet, are nodes of `later`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from bielik_nemo.config import Config
from bielik_nemo.engine import cpu

cpu.enable()

import nemo_run as run  # noqa: E402
from lightning.pytorch.loggers import TensorBoardLogger  # noqa: E402
from megatron.core.distributed import DistributedDataParallelConfig  # noqa: E402
from megatron.core.optimizer import OptimizerConfig  # noqa: E402
from nemo import lightning as nl  # noqa: E402
from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer  # noqa: E402
from nemo.collections.llm.gpt.data.pre_training import PreTrainingDataModule  # noqa: E402

from bielik_nemo.engine import best, later, schedules  # noqa: E402
from bielik_nemo.engine.conversation_data import SampleData  # noqa: E402
from bielik_nemo.engine.datasets import HeldOut  # noqa: E402
from bielik_nemo.engine.guard import Guard  # noqa: E402
from bielik_nemo.engine.progress import HeldOutSet, TrainingProgress  # noqa: E402
from bielik_nemo.engine.resume import FILENAME, Checkpoints, Resume  # noqa: E402
from bielik_nemo.engine.text_dataset import TextDataset  # noqa: E402


def held_out(config: Config, directory: Path) -> run.Config[HeldOut]:
    """The held-out tokens of this configuration."""
    return run.Config(
        HeldOut,
        directory=str(directory),
        seq_length=config.data.seq_length,
        tokens=config.data.held_out_tokens,
        batch_size=config.data.micro_batch_size,
    )


def trainer(
    config: Config,
    metrics: Path,
    validation: run.Config[HeldOutSet],
    flops_per_token: float | run.Config = 0.0,
    filled: float | run.Config = 1.0,
) -> run.Config[nl.Trainer]:
    """`nl.Trainer` over `MegatronStrategy`, on GPUs where there are any; callbacks watch, measure and report.

    Args:
        config: of the run.
        metrics: path of `metrics.jsonl`, in the stage's directory.
        validation: what is measured beside training.
        flops_per_token: of one training step, from which MFU is known where the GPU's peak is; 0: it is not.
        filled: share of a batch's positions that hold text, in the mean.
    """
    precision, asynchronous = config.trainer.precision, config.trainer.async_checkpoints
    peak = run.Config(later.peak, config.world_size, config.cluster.gpu_peak_tflops, flops_per_token)
    strategy = run.Config(
        nl.MegatronStrategy,
        tensor_model_parallel_size=config.parallel.tp,
        pipeline_model_parallel_size=config.parallel.pp,
        context_parallel_size=config.parallel.cp,
        sequence_parallel=config.parallel.sequence_parallel,
        pipeline_dtype=torch.bfloat16 if precision.startswith("bf16") else torch.float32,
        # torch's AdamW, used on CPU, keeps a scalar step per parameter that the distributed optimiser cannot save.
        ddp=run.Config(
            DistributedDataParallelConfig,
            use_distributed_optimizer=run.Config(later.gpu),
            # Without a norm nobody else would see it; with one the guard can say more.
            check_for_nan_in_grad=config.optim.clip_grad == 0,
        ),
        gradient_as_bucket_view=True,
        ckpt_async_save=run.Config(later.gpu) if asynchronous is None else asynchronous,
        replace_progress_bar=False,
    )
    return run.Config(
        nl.Trainer,
        accelerator=run.Config(later.accelerator),
        num_nodes=config.cluster.nodes,
        devices=config.world_size // config.cluster.nodes,
        strategy=strategy,
        plugins=run.Config(nl.MegatronMixedPrecision, precision=precision),
        max_steps=config.trainer.max_steps,
        # NeMo would validate on tokens drawn at random; TrainingProgress measures the run's own held-out tokens.
        limit_val_batches=0,
        limit_test_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=config.trainer.log_every,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[
            run.Config(
                Guard,
                directory=str(metrics.parent),
                global_batch_size=config.data.global_batch_size,
                max_spike=config.trainer.max_loss_spike,
            ),
            run.Config(
                TrainingProgress,
                path=str(metrics),
                tokens_per_step=run.Config(later.tokens, config.data.global_batch_size, config.data.seq_length, filled),
                log_every=config.trainer.log_every,
                validate_every=config.trainer.validate_every,
                held_out=validation,
                peak=peak,
                best=str(metrics.parent / best.DIRECTORY) if config.trainer.keep_best else "",
            ),
        ],
    )


def optimizer(config: Config) -> run.Config[nl.MegatronOptimizerModule]:
    """AdamW and its schedule; every batch has the same number of tokens, so that one factor adapts all rates."""
    optim, lr, min_lr = config.optim, config.optim.lr, config.optim.min_lr
    if optim.reference_tokens is not None:
        tokens = config.data.global_batch_size * config.data.seq_length
        lr, min_lr = (schedules.adaptive(rate, tokens, optim.reference_tokens) for rate in (lr, min_lr))
    return run.Config(
        nl.MegatronOptimizerModule,
        config=run.Config(
            OptimizerConfig,
            optimizer="adam",
            lr=lr,
            weight_decay=optim.weight_decay,
            adam_beta1=optim.beta1,
            adam_beta2=optim.beta2,
            clip_grad=optim.clip_grad,
            bf16=config.trainer.precision.startswith("bf16"),
            use_distributed_optimizer=run.Config(later.gpu),
        ),
        lr_scheduler=schedules.schedule(optim, config.trainer.max_steps, min_lr),
    )


def data(
    config: Config, train: list[str] | run.Config, held_out: Path, tokenizer: Path, cache: Path
) -> run.Config[PreTrainingDataModule]:
    """Megatron indexed datasets, blended by `mixture.paths`, through NeMo's resumable data module."""
    # NeMo asks for all three; from the last two nothing is drawn (see `trainer`), and any small dataset will do.
    unused = run.Config(later.any_dataset, str(held_out))
    return run.Config(
        PreTrainingDataModule,
        paths={"train": train, "validation": unused, "test": unused},
        **_drawing(config, tokenizer),
        reset_attention_mask=config.data.separate_documents,
        eod_mask_loss=config.data.separate_documents,
        index_mapping_dir=str(cache),
        output_log=False,
        dataset_cls=TextDataset,
    )


def samples(config: Config, dataset: run.Config[Dataset], directory: Path, tokenizer: Path) -> run.Config[SampleData]:
    """A dataset of ready samples, which is made of a directory, through the same data module."""
    return run.Config(SampleData, dataset=dataset, directory=str(directory), **_drawing(config, tokenizer))


def _drawing(config: Config, tokenizer: Path) -> dict[str, Any]:
    """How samples are drawn, of whatever dataset."""
    return {
        "tokenizer": run.Config(AutoTokenizer, pretrained_model_name=str(tokenizer), use_fast=True),
        "seq_length": config.data.seq_length,
        "micro_batch_size": config.data.micro_batch_size,
        "global_batch_size": config.data.global_batch_size,
        "num_workers": run.Config(later.loaders),
        "pin_memory": run.Config(later.gpu),
        "seed": config.run.seed,
        "split": None,
    }


def logger(config: Config, directory: Path) -> run.Config[nl.NeMoLogger]:
    """TensorBoard, and checkpoints from which a killed run goes on."""
    return run.Config(
        nl.NeMoLogger,
        explicit_log_dir=str(directory / "nemo"),
        use_datetime_version=False,
        log_global_rank_0_only=True,
        update_logger_directory=False,
        tensorboard=run.Config(TensorBoardLogger, save_dir=str(directory / "nemo"), name="tensorboard"),
        ckpt=run.Config(
            Checkpoints,
            keep=config.trainer.keep_last,
            dirpath=str(directory / "checkpoints"),
            filename=FILENAME,
            every_n_train_steps=config.trainer.checkpoint_every,
            save_optim_on_train_end=True,
            # A context is a pickle of the Python objects; the frozen config.yaml says the same as plain text.
            always_save_context=False,
            save_context_on_train_end=False,
        ),
    )


def resume(weights: Path | run.Config | None) -> run.Config[Resume]:
    """Go on from this run's newest finished checkpoint, or start from given weights; None: the model's own."""
    given = str(weights) if isinstance(weights, Path) else weights
    restore = None if given is None else run.Config(restored, path=given)
    return run.Config(Resume, resume_if_exists=True, restore_config=restore)


def restored(path: str) -> nl.RestoreConfig | None:
    """What NeMo wants to know of weights to start from; None: the model finds its own, where there is no path."""
    return nl.RestoreConfig(path=path, load_artifacts=False) if path else None
