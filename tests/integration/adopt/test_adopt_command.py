"""adopt-models as a user runs it: models of several families and forms, texts of several formats, and the report."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from onetrunk.adopt import adoption
from onetrunk.adopt.records import AdoptedModel
from onetrunk.adopt.serving_cost import measure_serving
from onetrunk.cli.adopt_models import adopt_models
from onetrunk.nn.bundle import load_bundle
from onetrunk.tasks.examples import normalized
from tests.conftest import write_tiny_heads
from tests.fixtures.classifiers import TAGS, tuned_classifier
from tests.fixtures.tasks import mood_rows, write_rows

FAST = ["--device", "cpu", "--max-length", "32", "--epochs", "1", "--variants", "0"]


def run(*arguments):
    return CliRunner().invoke(adopt_models, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    rows = mood_rows(120, 1)
    (folder / "texts.txt").write_text("".join(f"{row['sentence']}\n" for row in rows))
    pairs = [{"text": row["sentence"], "text_pair": "the <b>film</b> & music"} for row in rows]
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "dev.jsonl", mood_rows(40, 2))
    return folder


@pytest.fixture(scope="module")
def adopted(texts, tiny_trunk_folder, mood_classifier, new_classifier, tmp_path_factory):
    """Two models, of two families and forms, in one run."""
    pair = new_classifier("Roberta", "SequenceClassification", ("no", "yes"))
    output = tmp_path_factory.mktemp("adopted") / "out"
    arguments = [
        f"mood={mood_classifier}",
        f"match={pair}",
        *("--texts", f"mood={texts / 'texts.txt'}", "--texts", f"match={texts / 'pairs.jsonl'}"),
        *("--dev", f"mood={texts / 'dev.jsonl'}", "--agreement", "0.5", "--divergence", "9", "--floor", "0.5"),
        *("--trunk", tiny_trunk_folder, "--output", output, "--cache", output.parent / "cache", *FAST),
    ]
    return arguments, output, run(*arguments, "--json")


def test_a_bundle_and_a_record_for_each_model(adopted, tiny_trunk):
    _, output, result = adopted
    assert result.exit_code == 0, result.output
    records = {one["name"]: one for one in json.loads(result.stdout)["models"]}
    assert (records["mood"]["start"], records["match"]["start"]) == ("teacher", "trunk")
    assert (records["mood"]["form"], records["match"]["form"]) == ("single", "pair")
    assert records["mood"]["labelled_rows"] == 40
    assert records["mood"]["teacher_score"] is not None
    assert records["match"]["teacher_score"] is None
    assert records["mood"]["agreement"] > 0.7
    for name, record in records.items():
        bundle = load_bundle(output / "heads" / name, trunk=tiny_trunk)
        assert bundle.spec.data["teacher_sha256"] == record["sha256"]
        assert bundle.spec.labels == tuple(record["labels"])
        assert record["sha256"] in (output / "heads" / name / "README.md").read_text()


def test_both_ways_to_serve_are_timed(adopted):
    _, _, result = adopted
    cost = json.loads(result.stdout)["costs"]
    assert set(cost["whole"]) == set(cost["heads"]) == {"mood", "match"}
    assert all(part["ms"]["median"] > 0 for part in (*cost["whole"].values(), *cost["heads"].values()))
    assert cost["segments"]


def test_heads_on_several_taps_are_timed_from_tap_to_tap(adopted, tiny_trunk, tmp_path):
    _, _, result = adopted
    record = AdoptedModel.model_validate(json.loads(result.stdout)["models"][0])
    heads = write_tiny_heads(tmp_path / "heads", tiny_trunk)
    specs = [load_bundle(folder).spec for folder in sorted(heads.iterdir())]
    models = [record.model_copy(update={"name": one.task, "tap": one.tap}) for one in specs if one.kind != "embedding"]
    assert len({one.tap for one in models}) > 1
    cost = measure_serving(models, tiny_trunk, heads, rounds=1)
    assert not cost.left_out
    assert set(cost.heads) == {one.name for one in models}
    assert len(cost.segments) == len({one.tap for one in models})


def test_labelled_rows_may_have_other_columns_and_faults(texts, mood_classifier, tiny_trunk_folder, tmp_path):
    rows = mood_rows(40, 2)
    dev = tmp_path / "dev.CSV"
    dev.write_text("message,mood\n" + "".join(f"{row['sentence']},{row['label']}\n" for row in rows) + "a film,?\n")
    arguments = [
        *(f"mood={mood_classifier}", "--texts", texts / "texts.txt", "--dev", dev, "--text-field", "message"),
        *("--label-field", "mood", "--trunk", tiny_trunk_folder, "--output", tmp_path / "out", "--no-costs"),
        *("--cache", tmp_path / "cache", *FAST, "--json"),
    ]
    refused = run(*arguments)
    assert refused.exit_code == 2, refused.output
    assert "1 of 41 rows cannot be used" in refused.stderr
    assert not (tmp_path / "cache").exists()  # it is told before the model is run
    record = json.loads(run(*arguments, "--skip-bad-rows").stdout)["models"][0]
    assert record["labelled_rows"] == 40
    assert record["floor"] == "99% of the model's own score on the labelled texts"


def test_labels_of_numbers_widen_the_range(texts, tiny_trunk_folder, tmp_path):
    model = tuned_classifier(tmp_path / "m", tiny_trunk_folder, ("stars",), problem_type="regression")
    dev = tmp_path / "dev.jsonl"
    write_rows(dev, [{"text": row["sentence"], "label": place % 30} for place, row in enumerate(mood_rows(40, 2))])
    result = run(
        *(f"one={model}", "--texts", texts / "texts.txt", "--dev", dev, "--trunk", tiny_trunk_folder, "--no-costs"),
        *("--output", tmp_path / "out", "--cache", tmp_path / "cache", *FAST),
    )
    assert result.exit_code in (0, 1), result.output
    low, high = load_bundle(tmp_path / "out" / "heads" / "one").spec.range
    assert low <= 0
    assert high >= 29
    assert "from its answers and the labels" in result.stderr


def test_the_page_is_one_file_and_texts_are_escaped(adopted):
    _, output, _ = adopted
    page = (output / "report.html").read_text()
    assert "<b>film" not in page
    assert "&lt;b&gt;film" in page
    # Nothing is fetched: what an image shows is in it.
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "<script" not in page
    for count in ("8", "21", "64"):
        assert f">{count}</td>" in page
    assert "measured" in page
    assert "computed" in page


def test_what_is_finished_is_found(adopted, monkeypatch):
    arguments, _, _ = adopted
    monkeypatch.setattr(adoption._Adoption, "begin", None)
    again = run(*arguments, "--no-costs")
    assert again.exit_code == 0, again.output
    assert "adopted models" in again.stdout


@pytest.mark.parametrize("kind", ["multilabel", "regression", "tagging"])
def test_other_kinds(kind, texts, tiny_trunk_folder, new_classifier, tmp_path):
    if kind == "tagging":
        model = new_classifier("DistilBert", "TokenClassification", TAGS)
    elif kind == "multilabel":
        model = tuned_classifier(
            tmp_path / "m", tiny_trunk_folder, ("a", "b", "c"), problem_type="multi_label_classification"
        )
    else:
        model = tuned_classifier(tmp_path / "m", tiny_trunk_folder, ("stars",), problem_type="regression")
    output = tmp_path / "out"
    result = run(
        *(f"one={model}", "--texts", texts / "texts.txt", "--agreement", "0.01", "--divergence", "99"),
        *(
            "--trunk",
            tiny_trunk_folder,
            "--output",
            output,
            "--cache",
            tmp_path / "cache",
            "--no-costs",
            *FAST,
            "--json",
        ),
    )
    # A random tagger may differ in some word of every text, which is below any floor.
    assert result.exit_code in (0, 1), result.output
    (record,) = json.loads(result.stdout)["models"]
    assert record["kind"] == kind
    assert (record["divergence"] is None) == (kind == "regression")
    assert record["agreement_measure"] == ("correlation" if kind == "regression" else "share")
    assert load_bundle(output / "heads" / "one").spec.kind == kind


def test_a_missed_floor_ends_with_1_and_keeps_the_bundle(texts, tiny_trunk_folder, new_classifier, tmp_path):
    model = new_classifier("DistilBert", "SequenceClassification", ("no", "yes"))
    result = run(
        *(f"one={model}", "--texts", texts / "texts.txt", "--agreement", "1", "--divergence", "1e-9"),
        *("--trunk", tiny_trunk_folder, "--output", tmp_path / "out", "--cache", tmp_path / "cache", "--no-costs"),
        *("--device", "cpu", "--max-length", "32", "--epochs", "1"),
    )
    assert result.exit_code == 1, result.output
    assert "one: the floor was missed; more texts help most" in result.stderr
    assert load_bundle(tmp_path / "out" / "heads" / "one")
    record = json.loads((tmp_path / "out" / "records" / "one.json").read_text())
    assert not record["reached"]
    assert [(one["tap"], one["layers"]) for one in record["attempts"]] == [(2, 1), (1, 2), (1, 3)]


def test_a_file_of_soft_labels_takes_the_place_of_a_model(texts, mood_classifier, tiny_trunk_folder, tmp_path):
    rows = [
        {
            "text": row["sentence"],
            "probabilities": {name: 0.9 if row["label"] == name else 0.1 for name in ("bad", "good")},
        }
        for row in mood_rows(120, 1)
    ]
    write_rows(tmp_path / "said.jsonl", rows)
    result = run(
        *(f"mood={mood_classifier}", tmp_path / "said.jsonl", "--texts", texts / "texts.txt"),
        *("--dev", f"said={texts / 'dev.jsonl'}", "--agreement", "0.5", "--divergence", "9"),
        *("--trunk", tiny_trunk_folder, "--output", tmp_path / "out", "--cache", tmp_path / "cache", *FAST, "--json"),
        *("--variants", "1"),
    )
    assert result.exit_code in (0, 1), result.output
    found = json.loads(result.stdout)
    record = found["models"][1]
    assert (record["name"], record["family"], record["labels"]) == ("said", "soft labels", ["bad", "good"])
    assert record["agreement"] > 0.5
    # About a tenth of the texts is compared. Each of the others is learned from, by a model's head with a changed copy.
    distinct = len({normalized(row["sentence"]) for row in mood_rows(120, 1)})
    assert [one["copies"] for one in found["models"]] == [1, 0]
    assert record["train_texts"] + record["dev_texts"] == distinct
    assert "and 1 changed copy of each" in (tmp_path / "out" / "report.html").read_text()
    # The labelled texts are other ones, about which the file says nothing.
    assert (record["teacher_score"], record["labelled_rows"]) == (None, 40)
    assert record["head_score"] is not None
    assert load_bundle(tmp_path / "out" / "heads" / "said").spec.data["teacher_sha256"] == record["sha256"]
    assert set(found["costs"]["heads"]) == {"mood"}
    assert "no model that could be served" in found["costs"]["left_out"]["said"]
    assert "no model that could be served" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["said={texts}.jsonl", "--texts", "said={texts}"], "--texts said=...: {texts}.jsonl is a file of soft labels"),
        (["said={texts}.jsonl", "--kind", "regression"], "{texts}.jsonl: give the range of its numbers, as in --range"),
        (["said={texts}.jsonl"], "{texts}.jsonl: no column of labels"),
        (["said={texts}.none"], "{texts}.none: no such folder; give a folder of a model"),
        (["said={texts}.csv"], "{texts}.csv: no such file of soft labels"),
        (["said={texts}.soft.jsonl", "--texts", "none.txt"], "--texts: no model reads them; a file of soft labels"),
    ],
)
def test_mistakes_with_a_file_of_soft_labels(arguments, message, texts):
    place = texts / "texts.txt"
    write_rows(place.with_name("texts.txt.jsonl"), [{"text": "without a label"}])
    soft = [{"text": one, "probabilities": {"x": 0.5, "y": 0.5}} for one in ("a film", "a book")]
    write_rows(place.with_name("texts.txt.soft.jsonl"), soft)
    result = run(*(one.format(texts=place) for one in arguments))
    assert result.exit_code == 2, result.output
    assert message.format(texts=place) in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a={model}", "--texts", "b={texts}"], "--texts b={texts}: no model is named b; there are: a"),
        (["a={model}", "b={model}", "--texts", "a={texts}"], "--texts: none for b: give --texts b=FILE"),
        (["a={model}", "a={model}", "--texts", "{texts}"], "two models are named a: name them as NAME=MODEL"),
        (["A={model}", "--texts", "{texts}"], "'A': a task's name has lowercase letters"),
        (["a={model}", "--texts", "{texts}", "--texts", "{texts}"], "are both for all models: give NAME= before one"),
        (["a={model}", "--texts", "{texts}", "--form", "triple"], "--form triple: allowed are single, pair"),
        (["a={model}", "--texts", "{texts}", "--range", "5"], "--range 5: give the lowest and the highest number"),
        (["a={model}", "--texts", "nothing.txt"], "nothing.txt: no such file of texts"),
        (["a={model}", "--texts", "{texts}", "--dev", "nothing.csv"], "nothing.csv: no such file of labelled texts"),
        (["a={model}", "--texts", "{texts}", "--dev", "{texts}"], "not a known data format: if it is a table"),
        (["nowhere", "--texts", "{texts}"], "nowhere: no such folder; give a folder of a model, or a hub id"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, texts, mood_classifier):
    values = {"model": mood_classifier, "texts": texts / "texts.txt"}
    result = run(*(one.format(**values) for one in arguments))
    assert result.exit_code == 2, result.output
    assert message.format(texts=str(values["texts"])[:58]) in result.stderr or message.split("{")[0] in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
