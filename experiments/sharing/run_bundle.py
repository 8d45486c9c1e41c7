"""A run to be published: a checkpoint, settings, log and evaluation, without folders of this machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_cache.archive import without_paths
from data_cache.callbacks import ProgressBar
from data_cache.errors import UserError
from data_cache.limits import read_json
from data_cache.system.files import is_file
from experiments.report import read_result
from experiments.sharing.config import PushConfig
from experiments.sharing.manifest import EVALUATION, Content, Manifest
from experiments.sharing.model_card import model_card
from experiments.sharing.terms import Terms
from trainer.card import ADVICE, CARD, HASHES, MODEL, RESUME, read_card, sealed
from trainer.checkpoint_folders import latest, run_in
from trainer.config import CONFIG, LOG, without_folders
from trainer.run import parse_line


class RunBundle:
    """The newest (or the named) checkpoint of a run, its settings, its log, and its evaluation if one is saved."""

    def __init__(self, config: PushConfig) -> None:
        self._run, self._resume = run_in(config.source), config.resume_state
        self._folder = latest(config.source)
        self._card = read_card(self._folder)
        if "failed" in self._card:
            raise UserError(f"{self._folder}: is the state left by a loss that was not finite; pass the run")
        if self._resume and RESUME not in self._card[HASHES]:
            raise UserError(f"{self._folder}: has no optimizer state; omit --resume-state")
        self._result = saved_result(self._run, config.result, self._card)

    def files(self, folder: Path, progress_bar: ProgressBar) -> dict[str, Content]:
        """The files by name, without paths of this machine in them. Their settings are those of the checkpoint."""
        settings = without_folders(self._card["config"])
        tensors = [MODEL, *([RESUME] if self._resume else [])]
        card = {**self._card, "config": settings, "recorded": without_paths(self._card["recorded"])}
        card[HASHES] = {name: self._card[HASHES][name] for name in tensors}
        files: dict[str, Content] = {CONFIG: _json(settings), f"{self._folder.name}/{CARD}": _json(sealed(card))}
        files |= {f"{self._folder.name}/{name}": self._folder / name for name in tensors}
        if is_file(self._run / LOG):
            lines = ((line, parse_line(line)) for line in (self._run / LOG).read_bytes().splitlines(keepends=True))
            files[LOG] = b"".join(line for line, parsed in lines if parsed and parsed["step"] <= card["step"])
        if self._result:
            files[EVALUATION] = _json(self._result)
        return files

    def check(self, manifest: Manifest) -> None:
        """Raise UserError if tensors do not have the hashes in the checkpoint's card."""
        for name, digest in self._card[HASHES].items():
            actual = manifest.files.get(f"{self._folder.name}/{name}")
            if actual and actual[1] != digest:
                raise UserError(f"{self._folder / name}: was modified, or belongs to another checkpoint; {ADVICE}")

    def page(self, name: str, url: str, terms: Terms) -> str:
        """The content of README.md."""
        return model_card(self._card, self._result, name, url, terms)


def saved_result(run: Path, file: Path | None, card: Mapping[str, Any]) -> dict[str, Any] | None:
    """The evaluation in a file, or in the run's folder, if any, in the format of `evaluate --json`.

    Of several in the folder, the one that `reproduce` wrote for the training dataset, else the first by name.

    Raises UserError if `file` is given and is not the output of `evaluate --json` or `reproduce`.
    """
    trained = card["dataset"]["name"]
    for candidate in [file] if file else sorted(run.glob("*.json"), key=lambda path: (path.stem != trained, path)):
        try:
            measured = read_result(candidate)
        except UserError:
            if file:
                raise
            continue
        content = read_json(candidate)
        known = trained if set(measured.per_class) == set(card["classes"]) else "another dataset"
        rows = [{"gamma": gamma, **metrics} for gamma, metrics in measured.sweep.items()]
        return {
            "dataset": str(content.get("dataset") or (candidate.stem if "paper" in content else known)),
            "split": content.get("split"),
            **measured.sweep[measured.gamma],
            "gamma": measured.gamma,
            "per_class": dict(measured.per_class),
            "sweep": rows,
        }
    return None


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
