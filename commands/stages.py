"""The stages with progress bars and messages on stderr. The commands and the Python interface run them alike."""

from pathlib import Path
from typing import TYPE_CHECKING

from commands.console import bar, echo, echo_failures, echo_note, echo_plan, echo_warnings, progress
from data_cache.datasets import check_root, class_names
from data_cache.messages import count
from data_cache.splits import make_split
from experiments.config import EvaluateConfig
from pipeline.config import PrecomputeConfig
from trainer.config import CONFIG, TrainConfig

if TYPE_CHECKING:
    from experiments.evaluation import EvaluationReport
    from pipeline.plan import Plan
    from pipeline.precompute import Summary


def run_precompute(config: PrecomputeConfig) -> "tuple[Plan, Summary]":
    """Make or finish a cache. Raises as `pipeline.plan.plan` and `pipeline.precompute.execute` do."""
    _check_unseen(config)
    check_root(config.dataset, config.root)  # torch is imported after this
    from pipeline.plan import plan
    from pipeline.precompute import execute
    from pipeline.teacher.weights import RANDOM

    if config.clip_weights == RANDOM:
        echo_warnings(["random CLIP weights: masks, and students trained on them, are meaningless"])
    if config.model_source and config.model_source.is_random:
        echo_warnings(["random weights of --masks-from: its masks are meaningless"])
    work = plan(config, echo)
    echo_plan(work)
    if work.work:
        with progress("encoding", work.work, "images", "finished shards are kept, rerun to resume") as advance:
            summary = execute(work, advance, echo)
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary.stages.items())
        stages = f"; summed over threads: {stages}" if stages else ""
        encoded = summary.encoded + summary.masked
        rate = encoded / summary.seconds
        echo(f"{count(encoded, 'image')} in {summary.seconds:.1f} s ({rate:.2f} images/s{stages})")
    else:
        summary = execute(work, log=echo)
    echo_warnings(summary.survey.warnings(work.texts.classes))
    echo_failures(dict(summary.failures))
    return work, summary


def run_train(config: TrainConfig, out: Path, resume: bool, strict: bool, online: bool) -> dict[str, float]:
    """Train, or resume, and return the last update. `config` names a cache. Raises as `trainer.loop.train` does."""
    from data_cache.reader import Cache

    warnings = Cache(Path(config.cache or "")).texts().warnings
    from experiments.figures import training_picture
    from experiments.stages import live_for, updates
    from trainer.loop import train

    echo_warnings(warnings)
    echo(
        f"run {out}: {config.arch} with {config.encoder}, {count(config.iterations, 'update')} of "
        f"{count(config.batch_size, 'image')}, warm-up {count(config.warmup_updates, 'update')}; all settings are "
        f"saved in {CONFIG}"
    )
    changed = (f"{name}={value}" for name, (value, _) in config.changed.items())
    echo(f"settings other than the defaults: {' '.join(changed)}")
    with progress("training", config.iterations, "images", "the newest checkpoint, if any, is kept") as advance:
        teacher = live_for(config) if online else None
        return train(config, out, resume, strict, updates(advance, config), teacher, echo, training_picture)


def run_evaluate(config: EvaluateConfig) -> "EvaluationReport":
    """Evaluate a student. Raises as `experiments.evaluation.evaluate_checkpoint` does."""
    _check_unseen(config)
    check_root(config.dataset, config.root)
    from experiments.evaluation import evaluate_checkpoint

    report = evaluate_checkpoint(config, bar("nothing was written"), echo_note, echo_warnings)
    echo_warnings(report.evaluation.warnings)
    echo_failures(report.evaluation.failures)
    return report


def _check_unseen(config: PrecomputeConfig | EvaluateConfig) -> None:
    """Raise UsageError for a misspelled --unseen before PyTorch is imported, which takes seconds."""
    if config.unseen:
        make_split(config.dataset, class_names(config.dataset, config.root), config.unseen)
