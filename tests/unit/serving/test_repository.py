"""What is said about repositories that cannot be served, before Triton is started."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from onetrunk.protocol.errors import UserError
from onetrunk.serving.repository import read_repository


def test_a_whole_repository_tells_its_tasks_and_models(repository: Path) -> None:
    found = read_repository(repository)
    assert set(found.tasks) == {"match", "mood", "topic"}
    assert found.tasks["topic"].labels == ("art", "law", "sport")
    heads = {"head_match", "head_mood", "head_topic"}
    assert found.models == {"multitask", "multitask_tokens", "tokenizer", "trunk_00_01"} | heads


def cut_off(repository: Path) -> None:
    (repository / ".staging").mkdir()
    (repository / ".staging" / "commit.json").touch()


def replace(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(repository: Path) -> None:
        text = (repository / file).read_text()
        assert old in text
        (repository / file).write_text(text.replace(old, new))

    return change


def empty(repository: Path) -> None:
    shutil.rmtree(repository)
    repository.mkdir()


def remove(path: str) -> Callable[[Path], None]:
    def change(repository: Path) -> None:
        target = repository / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "is not a folder"),
        (empty, "holds no models: run build-repo first"),
        (cut_off, "run build-repo again"),
        (remove("multitask"), "lacks the ensemble multitask (multitask/config.pbtxt)"),
        (remove("multitask_tokens/config.pbtxt"), "lacks the ensemble multitask_tokens"),
        (remove("head_topic"), "lacks head_topic, a part of multitask (head_topic/config.pbtxt)"),
        (remove("head_mood/1"), "multitask pins version 1 of head_mood, which is missing"),
        (remove("head_mood/1/model.onnx"), "multitask pins version 1 of head_mood, which is missing"),
        (replace("head_mood/config.pbtxt", "data_type", "datatype"), "head_mood/config.pbtxt is not a Triton config"),
        (replace("multitask/config.pbtxt", "platform", "{"), "multitask/config.pbtxt is not a Triton config"),
        (replace("multitask_tokens/config.pbtxt", "onetrunk", "other"), "has no readable parameter `onetrunk`"),
        (replace("multitask_tokens/config.pbtxt", r"{\"schema", r"{schema"), "has no readable parameter `onetrunk`"),
        (replace("multitask_tokens/config.pbtxt", "tasks", "heads"), "has no readable parameter `onetrunk`"),
    ],
)
def test_damage_is_named(repository: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(repository)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_repository(repository)
    assert str(repository) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_staging_folder_without_a_commit_is_harmless(repository: Path) -> None:
    (repository / ".staging" / "head_mood").mkdir(parents=True)
    read_repository(repository)
