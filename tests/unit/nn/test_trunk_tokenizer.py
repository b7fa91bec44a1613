"""A trunk's tokenizer: what transformers makes of the same folder, or a refusal."""

import json
import shutil

import pytest

from onetrunk.nn.trunk import load_trunk
from onetrunk.nn.trunk_tokenizer import generated_texts
from onetrunk.protocol.errors import OneTrunkError, UserError
from tests.conftest import VOCAB

SETTINGS = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": None, "model_max_length": 64}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ONETRUNK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tiny_trunk_folder, tmp_path):
    return shutil.copytree(tiny_trunk_folder, tmp_path / "trunk")


def with_settings(folder, **settings):
    (folder / "tokenizer_config.json").write_text(json.dumps({**SETTINGS, **settings}), encoding="utf-8")


def by_transformers(folder, text):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


def vocabulary_only(folder, pieces=VOCAB):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")


def test_settings_that_agree_are_accepted(folder):
    with_settings(folder)
    trunk = load_trunk(folder)
    assert trunk.notes == ()
    for text in ("A very GOOD film!", "Pâté, 東京"):
        assert trunk.tokenizer().encode(text).ids == by_transformers(folder, text)


@pytest.mark.parametrize("settings", [{"do_lower_case": False}, {"strip_accents": False}])
def test_settings_that_contradict_the_tokenizer_are_refused(folder, settings):
    with_settings(folder, **settings)
    text = "Réd"
    assert load_trunk_without_settings(folder).tokenizer().encode(text).ids != by_transformers(folder, text)
    with pytest.raises(UserError) as raised:
        load_trunk(folder)
    message = str(raised.value)
    assert "\n" not in message
    assert all(part in message for part in ("tokenizer.json", "tokenizer_config.json", "disagree", str(folder)))


def test_a_vocabulary_is_converted_into_the_cache_that_is_given(folder, cache, tmp_path):
    vocabulary_only(folder)
    trunk = load_trunk(folder, cache=tmp_path / "given")
    assert trunk.tokenizer_file.is_relative_to(tmp_path / "given")
    assert not cache.exists()


def load_trunk_without_settings(folder):
    kept = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").unlink()
    trunk = load_trunk(folder)
    (folder / "tokenizer_config.json").write_text(kept, encoding="utf-8")
    return trunk


def test_code_that_settings_ask_for_is_not_run(folder):
    with_settings(folder, tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", "mine.Mine"]})
    (folder / "mine.py").write_text("raise SystemExit('it was run')", encoding="utf-8")
    assert load_trunk(folder).notes == ()


def test_settings_that_transformers_cannot_read_are_not_followed_and_that_is_said(folder):
    (folder / "tokenizer_config.json").write_text("{", encoding="utf-8")
    (note,) = load_trunk(folder).notes
    assert "\n" not in note
    assert "tokenizer_config.json is not followed" in note


def test_the_texts_are_many_and_the_same_each_time():
    texts = generated_texts()
    assert texts == generated_texts()
    assert len(texts) == len(set(texts)) == 200
    joined = "".join(texts)
    assert all(part in joined for part in ("É", "東", "👍", "e\u0301", "don't", "\t", "\u3000", "JUMPS"))


@pytest.mark.parametrize("lower", [None, True, False])
def test_a_vocabulary_without_tokenizer_is_converted_once_into_the_cache(folder, cache, lower):
    vocabulary_only(folder)
    if lower is not None:
        with_settings(folder, do_lower_case=lower)
    before = {file.name for file in folder.iterdir()}
    trunk = load_trunk(folder)
    assert {file.name for file in folder.iterdir()} == before, "the user's folder stays as it is"
    assert trunk.tokenizer_file.is_relative_to(cache)
    assert [note for note in trunk.notes if "vocab.txt" in note and str(trunk.tokenizer_file) in note]
    for text in ("A very GOOD film!", "no, unbelievable"):
        assert trunk.tokenizer().encode(text).ids == by_transformers(folder, text)
    made = trunk.tokenizer_file.stat().st_mtime_ns
    again = load_trunk(folder)
    assert (again.identity, again.tokenizer_file.stat().st_mtime_ns) == (trunk.identity, made)
    # One that was cut off is made anew.
    whole = trunk.tokenizer_file.read_bytes()
    trunk.tokenizer_file.write_bytes(whole[: len(whole) // 2])
    load_trunk(folder)
    assert trunk.tokenizer_file.read_bytes() == whole


def test_the_identity_follows_the_vocabulary_and_its_settings(folder):
    vocabulary_only(folder)
    identities = [load_trunk(folder).identity]
    with_settings(folder)
    identities.append(load_trunk(folder).identity)
    with_settings(folder, do_lower_case=False)
    identities.append(load_trunk(folder).identity)
    vocabulary_only_again = [*VOCAB[:5], *reversed(VOCAB[5:])]
    (folder / "vocab.txt").write_text("\n".join(vocabulary_only_again) + "\n", encoding="utf-8")
    identities.append(load_trunk(folder).identity)
    assert len(set(identities)) == 4


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: vocabulary_only(folder, [*VOCAB, "zzz"]), "zzz"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(folder, make, found):
    make(folder)
    with pytest.raises(UserError, match=found) as raised:
        load_trunk(folder)
    assert "\n" not in str(raised.value)


def test_a_cache_that_cannot_be_written_is_one_line(folder, cache):
    cache.write_text("a file, no folder", encoding="utf-8")
    vocabulary_only(folder)
    with pytest.raises(OneTrunkError, match="cannot be written") as raised:
        load_trunk(folder)
    assert str(cache) in str(raised.value)
    assert "\n" not in str(raised.value)
