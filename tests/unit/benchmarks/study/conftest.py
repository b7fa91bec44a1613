"""A small study as a search leaves it: two tasks on a trunk of three layers, figures that can be checked by hand."""

import pytest

from benchmarks.study.measured_cost import BucketShare, MeasuredCost
from onetrunk.distill.costs import BucketCosts, CostTable, Quartiles
from onetrunk.distill.plan_file import Floors, PlanCost, PlanFile, PlannedHead, Retention, write_plan
from onetrunk.distill.trials import Trials, as_trial, save_trials
from onetrunk.tasks import Recipe
from onetrunk.training.runs import Distillation, RunRecord, RunSpec, RunStore

TRUNK = "bert-3x32@0123456789ab"


def exactly(value):
    return Quartiles(median=value, low=value, high=value)


class StudyWriter:
    """Writes run records and studies into a folder."""

    def __init__(self, folder):
        self.folder, self.runs = folder, folder / "runs"
        self.store = RunStore(self.runs)

    def run(self, task, role, tap, layers, score, cpu_seconds, *, seed=0, teacher=None, stopped=False, **how):
        name = f"{task}-{role}-{tap}-{layers}-{seed}-{sorted(how.items())}"
        spec = RunSpec(
            task=task,
            role=role,
            recipe=Recipe(tap=tap, layers=layers, epochs=2, seed=seed),
            distillation=Distillation(teacher=teacher, **how) if teacher else None,
        )
        record = RunRecord(
            key=spec.key(name),
            spec=spec,
            state="stopped" if stopped else "finished",
            metric="accuracy",
            scores={"accuracy": score},
            best_epoch=2,
            losses=(0.7, 0.5),
            epoch_scores=({"accuracy": score - 0.1}, {"accuracy": score}),
            seconds=2 * cpu_seconds,
            cpu_seconds=cpu_seconds,
            parameters=1000,
            texts=50,
            data={"train_rows": 50},
            trunk=TRUNK,
            device="cpu",
            machine="a processor (2 cores), Python 3.11, torch 2.13",
            created="2025-01-02",
        )
        self.store.save(record)
        return record

    def study(self, name, task, trials, trunk_cpu_seconds=0.0, notes=()):
        save_trials(
            self.runs,
            Trials(
                study=name,
                task=task,
                metric="accuracy",
                trunk_cpu_seconds=trunk_cpu_seconds,
                trials=tuple(as_trial(record, stage, what) for record, stage, what in trials),
                notes=tuple(notes),
            ),
        )

    def task(self, task, full, teacher, students, seeds):
        """A searched task: probes on three taps, a teacher on tap 1, one on tap 0 that was stopped, its students.

        Search: 3 x 1 (probes) + 10 + 5 (teachers) + 4 a student, in CPU seconds.
        """
        baselines = [self.run(task, "full", 0, 3, score, 20.0, seed=seed) for seed, score in enumerate(full)]
        self.study("baseline", task, [(run, "baseline", f"seed {seed}") for seed, run in enumerate(baselines)])
        probes = [self.run(task, "fork", tap, 1, 0.40 + 0.05 * tap, 1.0) for tap in range(3)]
        best = self.run(task, "teacher", 1, 2, teacher, 10.0)
        loser = self.run(task, "teacher", 0, 3, teacher - 0.2, 5.0, stopped=True)
        learners = [
            self.run(task, "student", 1, layers, score, 4.0, teacher=best.key)
            for layers, score in enumerate(students, start=1)
        ]
        trials = [
            *((run, "probe", "") for run in probes),
            (best, "teacher", ""),
            (loser, "teacher", ""),
            *((run, "student", "") for run in learners),
        ]
        self.study("search", task, trials, trunk_cpu_seconds=2.0, notes=["the teacher on tap 0 was behind: stopped"])
        chosen = learners[-1]
        others = [
            self.run(task, "student", 1, len(students), score, 4.0, seed=seed, teacher=best.key)
            for seed, score in enumerate(seeds, start=1)
        ]
        # A seed of a head that an earlier plan had chosen: it must not count.
        stale = self.run(task, "student", 1, len(students), 0.01, 4.0, seed=9, teacher=best.key, temperature=8.0)
        self.study("seeds", task, [(run, "student", "") for run in (chosen, *others, stale)])
        return best, chosen

    def plan(self, chosen):
        heads = {
            run.spec.task: PlannedHead(
                tap=run.spec.recipe.tap, layers=run.spec.recipe.layers, score=run.score, full=full, run=run.key
            )
            for run, full in chosen
        }
        cost = PlanCost(
            machine="a processor",
            threads=1,
            trunk_ms=11.0,
            heads_ms=10.0,
            overhead_ms=0.75,
            total_ms=21.75,
            single_model_ms=40.0,
            share=0.27,
            folded_share=0.3,
        )
        kept = Retention(average=1.0, worst=0.98, worst_task="blue", meets_floor=True)
        plan = PlanFile(trunk=TRUNK, floors=Floors(task=0.97, average=0.996), kept=kept, cost=cost, tasks=heads)
        write_plan(self.folder / "plan.toml", plan)

    def costs(self):
        bucket = BucketCosts(
            tokens=32,
            batch_size=1,
            trunk_ms=tuple(exactly(value) for value in (1.25, 11.25, 21.25, 31.25)),
            layer_ms=exactly(9.0),
            folded_ms=exactly(0.75),
            step_ms=exactly(0.25),
            single_ms=exactly(40.0),
            folded_single_ms=exactly(31.0),
        )
        table = CostTable(
            trunk=TRUNK, machine="a processor", versions={"onnxruntime": "1"}, threads=1, repeats=3, buckets=(bucket,)
        )
        table.write(self.folder / "costs.json")

    def share(self, heads, shares=(0.2, 0.3)):
        rows = tuple(
            BucketShare(
                tokens=32 * number,
                batch_size=1,
                plan_ms=exactly(1.0),
                singles_ms=exactly(1.0),
                folded_singles_ms=exactly(1.0),
                share=exactly(share),
                folded_share=exactly(2 * share),
            )
            for number, share in enumerate(shares, start=1)
        )
        report = MeasuredCost(
            trunk=TRUNK,
            machine="a processor",
            versions={"onnxruntime": "1"},
            threads=1,
            repeats=3,
            heads=heads,
            rows=rows,
        )
        report.write(self.folder / "share.json")


@pytest.fixture
def writer(tmp_path):
    return StudyWriter(tmp_path / "study")


@pytest.fixture
def whole_study(writer):
    """A study with everything in it."""
    blue_teacher, blue = writer.task("blue", full=[0.80, 0.82, 0.84], teacher=0.81, students=[0.70, 0.80], seeds=[0.82])
    _, red = writer.task("red", full=[0.60], teacher=0.62, students=[0.61], seeds=[])
    grid = [writer.run("blue", "teacher", tap, 3 - tap, score, 15.0) for tap, score in [(2, 0.7), (0, 0.83)]]
    writer.study("grid", "blue", [(run, "teacher", "") for run in (*grid, blue_teacher)])
    variants = {"basis": {}, "start: random": {"start": "random"}, "temperature: 4": {"temperature": 4.0}}
    for task, scores in (("blue", (0.80, 0.75, 0.78)), ("red", (0.60, 0.59, 0.61))):
        runs = [
            (writer.run(task, "student", 1, 2, score, 4.0, teacher="t" * 16, **how), "ablation", what)
            for (what, how), score in zip(variants.items(), scores, strict=True)
        ]
        writer.study("ablation", task, runs)
    writer.plan([(blue, 0.82), (red, 0.6)])
    writer.costs()
    writer.share(((1, 1, "cls"), (1, 2, "cls")))
    return writer
