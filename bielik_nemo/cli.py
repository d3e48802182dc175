"""The command line: `bielik-nemo <command> [options] [overrides]`; the commands are the stages, and more (`COMMANDS`).

Only what a command needs is imported, so that help and composing answer at once. What the user can mend is one line
on standard error and exit status 2; a run that was asked to stop and goes on later is 75, sysexits' temporary failure;
an interrupt is 130; anything else is a bug of ours and shows its traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from bielik_nemo import __version__, ui
from bielik_nemo.artifacts import disk_full
from bielik_nemo.config import STAGES, Config, compose
from bielik_nemo.errors import ConfigError, Stopped, UserError
from bielik_nemo.keys import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bielik_nemo.prune import search

COMMANDS = {
    "import_hf": "Hugging Face checkpoint -> Megatron checkpoint",
    "tokenizers": "characters and words for a token, by language, of the model's tokenizer and others",
    "swap_tokenizer": "another tokenizer for the model, with embeddings made of the old ones (FOCUS)",
    "data": "text -> tokenised training and held-out sets",
    "data preview": "the beginning of sft.sources and dpo.sources, with what is trained marked by colour",
    "adapt": "train the embeddings and the outermost layers on the text, while the others are frozen",
    "pretrain": "train the source further on the text, before it is scored, cut and teaches",
    "score": "importance of every layer, channel and head (Minitron)",
    "search": "shapes within the budgets of prune.search, the best of them by short distillation",
    "prune": "remove the least important ones",
    "teacher": "run the source once and keep what distillation needs of its predictions",
    "distill": "train the pruned model on the source's logits",
    "distill_long": "go on distilling at a longer context",
    "chat": "conversations -> tokens, and which of them are trained",
    "sft": "train on the answers of conversations",
    "preferences": "chosen and rejected answers -> tokens",
    "reference": "log-probabilities of all answers, once, so that no reference model is needed beside dpo",
    "dpo": "preference optimisation: DPO-Positive or plain DPO",
    "tasks": "tasks with verifiable answers -> tokens",
    "grpo": "reinforcement learning from verifiable rewards: GRPO or Dr. GRPO",
    "merge": "a weighted mean of models of one shape",
    "export": "Megatron checkpoint -> Hugging Face checkpoint, with a check that the logits agree",
    "evaluate": "held-out loss and samples of source, pruned and distilled model",
    "benchmark": "speed of generation and memory of the source and the export, beside what memory allows",
    "quantize": "the export as GGUF, FP8 or NVFP4, each with its loss in the runtime that it is made for",
    "release": "the export and its formats with model cards, ready to be published",
    "pipeline": "all stages of pipeline.stages in order, then the report; what is done is skipped",
    "submit": "the same as pipeline launch=slurm: a job for each stage that is not done, queued at once",
    "check": "what would fail, and an estimate of memory and GPU-hours; runs nothing",
    "status": "how far the jobs of a run are, and why one failed or never runs",
    "logs": "what the job of a stage has printed (logs distill; default: the one that failed, runs, or was last)",
    "cancel": "end the jobs of a run that run or wait (cancel distill: that one, and what waits for it)",
    "report": "write report.html and report.json of a run, print its table",
}
OPTIONS = """\
options:
  --cfg job          print the composed configuration and stop
  -m, --multirun     run once for every combination of comma-separated values (a=1,2 b=3,4), each in a folder of its
                     own below run.dir, named by what is swept, unless run.dir or run.name is swept
  --config-dir DIR   a folder of your own with Hydra groups (DIR/experiment/mine.yaml), searched after ours
  -h, --help         this text
  --version          the version
"""
EXAMPLES = """\
examples:
  bielik-nemo pipeline experiment=tiny
  bielik-nemo check experiment=bielik_minitron_7b parallel.tp=4 optim.lr=1e-4
  bielik-nemo submit experiment=bielik_minitron_7b cluster=helios_gh200 cluster.account=mine launch.dry_run=true
  bielik-nemo status run.dir=runs/bielik_minitron_7b
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    ui.spare_warnings()
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 75
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except Exception as error:
        if not disk_full(error):
            raise
        where = getattr(error, "filename", None)
        print("error: no space left on device" + (f": {where}" if where else ""), file=sys.stderr)
        return 2


def _main(argv: list[str]) -> int:
    options = _parser().parse_intermixed_args(argv)
    command = options.command
    if command == "data" and options.overrides[:1] == ["preview"]:
        command = f"{command} {options.overrides.pop(0)}"
    if command is not None and command not in COMMANDS:
        raise ConfigError(f"{command!r} is not a command; allowed: {', '.join(COMMANDS)}{nearest(command, COMMANDS)}")
    if options.version:
        print(f"bielik-nemo {__version__}")
    elif options.help or command is None:
        print(_help(command), end="")
        return 0 if options.help else 2
    elif options.cfg:
        _print_configs(options)
    else:
        stage = ""
        if command in ("logs", "cancel") and options.overrides[:1] and "=" not in options.overrides[0]:
            stage = options.overrides.pop(0)
            if stage not in STAGES:
                raise ConfigError(f"{command} {stage}: allowed: {', '.join(STAGES)}{nearest(stage, STAGES)}")
        # Every job is composed before the first one runs: a mistake in the last must not cost the others.
        for config in list(_configs(options)):
            status = _run(command, config, stage)
            if status:
                return status
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see bielik-nemo --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("command", nargs="?")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--cfg", choices=["job"])
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--config-dir")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    return parser


def _help(command: str | None) -> str:
    if command:
        return (
            f"bielik-nemo {command} [options] [overrides]\n\n  {COMMANDS[command]}\n\n{OPTIONS}\n"
            "overrides: key=value or group=option, such as experiment=tiny optim.lr=1e-4; --cfg job shows all keys\n"
        )
    listed = "".join(f"  {name:<12}  {text}\n" for name, text in COMMANDS.items())
    return (
        "bielik-nemo <command> [options] [overrides]\n\n"
        "Prune, distil and export a large language model with NeMo, Megatron-Core and Model Optimizer.\n\n"
        f"commands:\n{listed}\n{OPTIONS}\n{EXAMPLES}"
    )


def _jobs(options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    if not options.multirun:
        return [("", options.overrides)]
    from bielik_nemo.composition import expand_sweep

    return expand_sweep(options.overrides, options.config_dir)


def _print_configs(options: argparse.Namespace) -> None:
    from bielik_nemo.composition import compose_dict, to_yaml

    jobs = _jobs(options)
    for name, overrides in jobs:
        text = to_yaml(compose_dict("", overrides, options.config_dir))
        print(f"---\n# {name}\n{text}" if len(jobs) > 1 else text, end="")


def _configs(options: argparse.Namespace) -> Iterator[Config]:
    for name, overrides in _jobs(options):
        config = compose("", overrides, options.config_dir)
        config.run.dir = os.path.join(config.run.dir, name) if name else config.run.dir
        yield config


def _run(command: str, config: Config, stage: str) -> int:
    if command == "check":
        return _check(config)
    if command == "report":
        return _report(config)
    if command == "data preview":
        return _preview(config)
    if command in ("status", "logs", "cancel"):
        return _jobs_of(config, command, stage)
    stages = [command] if command in STAGES else None
    if command == "submit":
        config.launch.executor = config.launch.executor or "slurm"
    if config.launch.executor:
        from bielik_nemo import submit

        submit.run(config, stages)
    else:
        from bielik_nemo import pipeline

        pipeline.run(config, stages)
    return 0


def _check(config: Config) -> int:
    from bielik_nemo import check, preflight
    from bielik_nemo.check import layout, table

    costs, built, differing = preflight.costs(config), None, []
    found = check.findings(config, costs)
    if costs:
        models = {"source": costs.source, "target": costs.target}
        built = layout.build(models, config.parallel.tp, config.parallel.pp)
        differing = list(layout.differences(built, models, config.parallel.tp, config.parallel.pp))
    lines = [*(f"error: {line}" for line in differing), *(f"{each.level}: {each.message}" for each in found)]
    errors = len(differing) + sum(finding.level == "error" for finding in found)
    print(*lines, sep="\n", end="\n" if lines else "")
    if not errors and (shapes := preflight.candidates(config)):
        _show_candidates(config, shapes)
    if costs:
        stages = [name for name in config.pipeline.stages]
        print(*table.lines(costs, check.needs(costs, stages, built.libraries), built), sep="\n")
    print(f"{errors} errors, {len(lines) - errors} warnings")
    return 2 if errors else 0


def _show_candidates(config: Config, found: search.Result) -> None:
    from rich.console import Console

    from bielik_nemo import report
    from bielik_nemo.prune.search import record

    settings = config.prune.search
    Console().print(report.candidates(record(found, settings, settings.top_k)))
    if settings.objective == "importance":
        print("ranked by parameters here; by importance as soon as it is measured")


def _report(config: Config) -> int:
    from rich.console import Console

    from bielik_nemo import report

    page = report.write(config.run.dir)
    Console().print(report.table(report.collect(config.run.dir)))
    print(page)
    return 0


def _jobs_of(config: Config, command: str, stage: str) -> int:
    from pathlib import Path

    from bielik_nemo.launch import cancel, logs, status

    run_dir = Path(config.run.dir).absolute()
    if command == "cancel":
        cancel.cancel(run_dir, stage)
        return 0
    for line in status.lines(run_dir) if command == "status" else logs.lines(run_dir, stage):
        print(line)
    return 0


def _preview(config: Config) -> int:
    from rich.console import Console

    from bielik_nemo.data.preview import preview

    preview(config, Console())
    return 0
