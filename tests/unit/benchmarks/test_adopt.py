"""The summary of adopted classifiers: what is averaged with what, and what is told as not run."""

from benchmarks.adopt.__main__ import published, read_records, report, summary, tried_rows
from benchmarks.adopt.teachers import PLANS
from onetrunk.adopt.records import AdoptedModel, Attempt, Difference


def model(name, agreement, teacher, head, measure="share"):
    return AdoptedModel(
        key="k",
        name=name,
        source="/somewhere/private/model",
        sha256="0" * 64,
        family="bert",
        kind="classification",
        form="single",
        labels=("a", "b"),
        texts="/somewhere/private/texts.jsonl",
        train_texts=90,
        dev_texts=10,
        start="teacher",
        tap=2,
        layers=4,
        agreement=agreement,
        agreement_measure=measure,
        divergence=0.01,
        metric="accuracy",
        labelled_rows=5,
        teacher_score=teacher,
        head_score=head,
        reached=True,
        attempts=(),
        differences=(Difference(text="secret", teacher="a", head="b", distance=0.5),),
        teacher_bytes=1,
        head_bytes=1,
        seconds=1.0,
        notes=(),
    )


ADOPTED = [model("cola", 0.96, 0.5, 0.4), model("sst2", 0.98, 0.9, 0.9), model("stsb", 0.5, 0.8, 0.8, "correlation")]


def test_shares_are_averaged_without_correlations():
    found = summary(ADOPTED, None)
    assert found["agreement_average"] == 0.97
    assert found["correlations"] == {"stsb": 0.5}
    assert found["metric_kept_average"] == round(2.1 / 2.2, 4)
    assert found["metric_kept_min"] == 0.8
    assert set(found["models"]) | set(found["not_run"]) == {plan.name for plan in PLANS}


def test_the_page_names_what_was_not_run():
    page = report(ADOPTED, None, summary(ADOPTED, None))
    assert "Not run: mrpc, qqp, rte" in page
    assert "| sst2 |" in page


def test_every_head_that_was_tried_is_told():
    tries = [
        Attempt(tap=3, layers=1, agreement=0.9, divergence=0.1, score=None, seconds=1, run="a"),
        Attempt(tap=2, layers=3, agreement=0.951, divergence=0.1, score=None, seconds=1, run="b"),
    ]
    first, number = ADOPTED[0].model_copy(update={"attempts": tuple(tries)}), ADOPTED[2]
    columns, rows = tried_rows([first, number.model_copy(update={"attempts": tuple(tries[:1])})])
    assert columns == ["model", "tap 3, 1 layer", "tap 2, 3 layers"]
    assert rows == [["cola", "90.0%", "95.1%"], ["stsb", "0.900", ""]]


def test_nothing_private_is_published():
    text = published(ADOPTED[0])
    assert "private" not in text
    assert "secret" not in text


def test_models_that_were_not_run_this_time_keep_their_records(tmp_path):
    (tmp_path / "records").mkdir()
    for one in reversed(ADOPTED):
        (tmp_path / "records" / f"{one.name}.json").write_text(published(one))
    assert [one.name for one in read_records(tmp_path)] == ["cola", "stsb", "sst2"]
