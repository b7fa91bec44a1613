"""The benchmark of a GPU, on the CPU: all ways run, and one that fails loses no other."""

import pytest

from benchmarks import gpu
from onetrunk.progress import silent

PLAN = gpu.Plan("cpu", tokens=(16,), batch_sizes=(1, 2), rounds=1)


def test_all_rows_are_measured_beside_torch(tiny_trunk, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "load_trunk", lambda: tiny_trunk)
    found = gpu.run(PLAN, ["default"], silent, tmp_path)
    rows = {(one["precision"], one["way"], one["batch_size"]) for one in found["rows"]}
    assert rows == {(p, w, b) for p in ("fp32", "fp16") for w in ("copied", "bound") for b in (1, 2)}
    assert found["notes"] == []
    assert found["differences"]["default fp32"] < 1e-4
    assert (tmp_path / "summary.json").exists()
    page = gpu.page(found)
    assert page.startswith("# On a CPU")
    assert page.count("| default |") == len(rows)


def test_a_row_that_fails_is_noted(tiny_trunk, tmp_path, monkeypatch):
    whole = gpu.Models.models

    def models(self, inputs, count):
        if count == gpu.TASKS and gpu.ATTENTION_MASK in inputs and len(inputs[gpu.ATTENTION_MASK]) == 2:
            raise RuntimeError("out of memory")
        return whole(self, inputs, count)

    monkeypatch.setattr(gpu, "WAYS", ("copied",))
    monkeypatch.setattr(gpu, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(gpu.Models, "models", models)
    notes = []
    rows = list(gpu.measure(tiny_trunk, "tiny", tmp_path, PLAN, ends=1e12, notes=notes, tell=silent))
    assert [one["batch_size"] for one in rows] == [1]
    assert notes == ["tiny, fp32, copied: 2 x 16 tokens: out of memory"]


@pytest.mark.parametrize(("options", "told"), [(["--dry", "--output", "x"], "--output"), ([], "no CUDA")])
def test_what_makes_no_sense_is_refused(options, told, monkeypatch):
    from click.testing import CliRunner

    result = CliRunner().invoke(gpu.main, options)
    assert result.exit_code == 2
    assert told in result.stderr
