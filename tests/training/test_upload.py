"""What a Trainer uploads: points of these weights alone, and a card that lists them. Nothing is sent."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from offramp.model.card import save_points
from offramp.training.fit import default_arguments
from offramp.training.trainer import ExitTrainer
from offramp.types.operating_point import POINTS_FILE, OperatingPoint
from support.models import save_folder, tiny_model, token_rows

POINT = OperatingPoint({"name": "entropy"}, (-math.inf, 0.5, math.inf))


def test_the_trainer_uploads_points_of_these_weights_and_a_card_that_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[dict[str, str]] = []

    class Hub:
        def create_repo(self, *_: Any, **__: Any) -> Any:
            return type("Repository", (), {"repo_id": "me/model"})

        def upload_folder(self, folder_path: str, **_: Any) -> None:
            files = [path for path in Path(folder_path).iterdir() if path.suffix in (".json", ".md")]
            uploads.append({path.name: path.read_text() for path in files})

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    monkeypatch.setattr("transformers.modelcard.hf_api", Hub, raising=False)
    folder = tmp_path / "model"
    save_points({"old": POINT}, save_folder(folder, tiny_model()))
    arguments = default_arguments(folder, max_steps=1, eval_strategy="no", save_strategy="no", push_to_hub=True)
    rows = [{**token_rows(1)[0], "labels": 1}] * 8
    trainer = ExitTrainer(tiny_model(seed=5), arguments, train_dataset=rows)
    trainer.train()
    trainer.push_to_hub()
    trainer.model.operating_points["new"] = POINT
    trainer.push_to_hub()

    before, after = uploads
    assert POINTS_FILE not in before
    assert "None yet" in before["README.md"]
    assert list(json.loads(after[POINTS_FILE])["points"]) == ["new"]
    assert "| new | entropy |" in after["README.md"]
    assert "library_name: offramp" in after["README.md"]
    assert "Training hyperparameters" in after["README.md"]
