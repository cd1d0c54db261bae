"""Arguments of scvi-tools' Trainer, training plan and data splitter, as options of `ldvae.train.fit`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ldvae.arguments import check
from ldvae.config import FitConfig
from ldvae.errors import InputError
from ldvae.train import EpochReport

logger = logging.getLogger(__name__)

# Arguments of scvi-tools' Trainer and data splitter that change no number: accepted, and said to do nothing.
NO_EFFECT = frozenset(
    [
        "benchmark",
        "default_root_dir",
        "drop_dataset_tail",
        "enable_checkpointing",
        "enable_model_summary",
        "learning_rate_monitor",
        "log_every_n_steps",
        "log_save_dir",
        "logger",
        "num_sanity_val_steps",
        "num_workers",
        "persistent_workers",
        "pin_memory",
        "progress_bar_refresh_rate",
        "simple_progress_bar",
        "compile",
        "compile_kwargs",
        "on_step",
        "on_epoch",
        "early_stopping_mode",
    ]
)
TRAINER_KEYS = frozenset(
    [
        "check_val_every_n_epoch",
        "early_stopping_monitor",
        "early_stopping_patience",
        "early_stopping_min_delta",
        "early_stopping_warmup_epochs",
        "gradient_clip_val",
    ]
)
ARGUMENTS_OF_TRAIN = frozenset(["max_epochs", "batch_size", "drop_last", "early_stopping"])
PLAN_KEYS = frozenset(field.name for field in fields(FitConfig)) - TRAINER_KEYS - ARGUMENTS_OF_TRAIN

# Lightning's callbacks that show or log, by the names of their classes: they change no number.
SHOWING = frozenset(
    [
        *("LearningRateMonitor", "ModelSummary", "RichModelSummary", "ProgressBar", "TQDMProgressBar"),
        *("RichProgressBar", "Timer", "DeviceStatsMonitor"),
    ]
)


def training_options(plan: Mapping[str, Any], trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of scvi-tools' plan and trainer as fields of `FitConfig`; others are refused."""
    plan, trainer = check(plan), check(trainer)
    if plan.pop("reduce_lr_on_plateau", False):
        plan["schedule"] = "plateau"
    options: dict[str, Any] = {}
    for given, known, name in ((plan, PLAN_KEYS, "plan_kwargs"), (trainer, TRAINER_KEYS, "train()")):
        rest = {key: value for key, value in given.items() if key not in known}
        unknown = sorted(set(rest) - NO_EFFECT)
        if unknown:
            told = f"{name} got an unexpected keyword argument {unknown[0]!r}"
            if given is trainer and unknown[0] in PLAN_KEYS:
                raise TypeError(f"{told}; it belongs to the plan: plan_kwargs={{{unknown[0]!r}: …}}.")
            if given is plan and unknown[0] in TRAINER_KEYS | ARGUMENTS_OF_TRAIN:
                raise TypeError(f"{told}; it is an argument of train() itself.")
            raise TypeError(f"{told}; it takes {', '.join(sorted(known))}.")
        warn_no_effect(rest)
        options |= {key: value for key, value in given.items() if key in known}
    if options.get("check_val_every_n_epoch", 1) is None:
        del options["check_val_every_n_epoch"]
    return options


def honoured_callbacks(callbacks: Any) -> tuple[dict[str, Any], list[Callable[[EpochReport], None]]]:
    """What `train` can do for callbacks: options of early stopping, and functions to call after every epoch."""
    given = [] if callbacks is None else list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
    stopping: dict[str, Any] = {}
    functions: list[Callable[[EpochReport], None]] = []
    for callback in given:
        name = type(callback).__name__
        if name == "EarlyStopping":
            if getattr(callback, "mode", "min") != "min":
                raise InputError("EarlyStopping has mode 'max'; all metrics of the training are better when lower.")
            stopping = {
                f"early_stopping_{option}": getattr(callback, option)
                for option in ("monitor", "patience", "min_delta")
                if hasattr(callback, option)
            }
            # Lightning keeps the sign of an improvement in it.
            stopping["early_stopping_min_delta"] = abs(stopping.get("early_stopping_min_delta", 0.0))
        elif name in SHOWING:
            logger.warning("%s: accepted as in scvi-tools, without effect in ldvae.", name)
        elif callable(callback) and not hasattr(callback, "on_train_epoch_end"):
            functions.append(callback)
        else:
            raise InputError(
                f"callbacks holds {name}, which needs Lightning's trainer; ldvae has none. It takes EarlyStopping, and "
                "functions that are called after every epoch with an ldvae.train.EpochReport."
            )
    return stopping, functions


def warn_no_effect(arguments: Mapping[str, Any], where: str = "") -> None:
    """Say which arguments of scvi-tools change nothing here; `where` is what they were given to, for the message."""
    if unknown := sorted(set(arguments) - NO_EFFECT):
        raise TypeError(f"{where} got an unexpected keyword argument {unknown[0]!r}".lstrip())
    if arguments:
        logger.warning("%s: accepted as in scvi-tools, without effect in ldvae.", ", ".join(sorted(arguments)))
