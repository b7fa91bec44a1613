"""What deploy-head prints of a comparison."""

import pytest

from onetrunk.cli.deploy_report import show
from onetrunk.deploy.comparison import Comparison


@pytest.mark.parametrize(
    ("rows", "measure", "said"),
    [
        (1, "share", ("f1, 1 text ", "agree on 100.0% of 1 text;")),
        (1200, "correlation", ("f1, 1,200 texts ", "correlate by 1.000 over 1,200 texts;")),
    ],
)
def test_texts_are_counted(capsys, rows, measure, said):
    same = {"live_score": 0.5, "candidate_score": 0.5, "disagreements": ()}
    times = {"live_p50_ms": 1.0, "candidate_p50_ms": 1.0, "live_p99_ms": 2.0, "candidate_p99_ms": 2.0}
    compared = Comparison(
        task="mood",
        live_version=1,
        candidate_version=2,
        rows=rows,
        labelled=rows,
        agreement=1.0,
        agreement_is=measure,
        mean_difference=0.0,
        metric="f1",
        **same,
        **times,
    )
    show(compared, dry_run=False)
    printed = capsys.readouterr().out
    assert all(one in printed for one in said)
