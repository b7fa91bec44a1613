"""What was found, as the ten figures of summary.json and as a page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.hostile.faults import LIMIT_S

KEYS = (
    "good_sent",
    "good_failed",
    "cancel_storm_failed",
    "greed_failed",
    "hang_noticed_s",
    "hang_neighbours_failed",
    "gzip_peak_mb",
    "shm_left_mb",
    "key_seen_by_other_user",
    "tamper_caught",
)
MEANING = {
    "good_sent": "good requests among 10,000 from 64 clients, of which 10% were bad",
    "good_failed": "of these, not answered, or otherwise than by an idle server (1e-5)",
    "cancel_storm_failed": "failures of 8 well-behaved clients beside 10,000 requests with deadlines of 1 to 30 ms",
    "greed_failed": "failures of 8 well-behaved clients beside 10,000 calls over gRPC whose answers nobody takes",
    "hang_noticed_s": "the longest time until the log named a model whose process was stopped (SIGSTOP), in seconds",
    "hang_neighbours_failed": "failures of the tasks that need no stopped process, over all stopped models",
    "gzip_peak_mb": "growth of the server's memory under gzip bombs of 600 MB, all processes together",
    "shm_left_mb": "growth of its /dev/shm after all load and a rest",
    "key_seen_by_other_user": "whether another user saw the admin key anywhere from start to stop",
    "tamper_caught": "whether a changed file of each kind was refused before the start",
}


def summary(details: dict) -> dict:
    """The ten figures; None for what was not measured."""
    mixed, storm, greed = details.get("mixed"), details.get("storm"), details.get("greed")
    memory, rest = details.get("memory"), details.get("rest")
    hangs = [one for name, one in details.get("faults", {}).items() if name.startswith("SIGSTOP") and is_model(name)]
    spied, tampered = details.get("spy"), details.get("tamper")
    return dict(
        zip(
            KEYS,
            (
                mixed and mixed["good"]["sent"],
                mixed and mixed["good"]["failed"] + mixed["good"]["wrong"],
                storm and storm["good"]["failed"] + storm["good"]["wrong"],
                greed and greed["good"]["failed"] + greed["good"]["wrong"],
                # A hang that the log never named counts as long as was waited for it.
                max(LIMIT_S if one["noticed_s"] is None else one["noticed_s"] for one in hangs) if hangs else None,
                sum(one["neighbours_failed"] for one in hangs) if hangs else None,
                memory and memory["gzip"]["growth_mb"],
                rest and round(max(0.0, rest["after_rest"]["shm_mb"] - rest["before"]["shm_mb"]), 1),
                bool(spied["seen"].get("key")) if spied else None,
                all(one["caught"] for one in tampered.values()) if tampered else None,
            ),
            strict=True,
        )
    )


def is_model(name: str) -> bool:
    """Whether a fault is that of a model's process."""
    return name.split()[1] not in ("triton", "front", "guard")


def write(details: dict, output: Path) -> None:
    """Write details.json, summary.json, and the page beside the folder."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "details.json").write_text(json.dumps(details, indent=1) + "\n", encoding="utf-8")
    (output / "summary.json").write_text(json.dumps(summary(details), indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(page(details, output.name), encoding="utf-8")


def page(details: dict, folder: str) -> str:
    """The page."""
    lines = [
        "# A server under attack",
        "",
        f"`python -m benchmarks.hostile --output docs/results/{folder}`",
        "",
        f"{details['machine']}; {details['date']}. The shipped repository behind `serve-repo` with its defaults, asked "
        "over loopback. Nothing was tried twice.",
        "",
        *table(("figure", "", "what it is"), [(k, show(v), MEANING[k]) for k, v in summary(details).items()]),
    ]
    for name, section in SECTIONS.items():
        if details.get(name):
            lines += ["", *section(details[name])]
    lines += ["", f"Everything that was counted, with messages: [details.json]({folder}/details.json)."]
    return "\n".join(lines) + "\n"


def mixed_section(found: dict) -> list[str]:
    """Good and bad requests together."""
    good = found["good"]
    rows = []
    for kind, outcomes in found["bad"].items():
        said = ", ".join(f"{name} {count}" for name, count in outcomes.items() if name != "longest_s")
        rows.append((kind, said, f"{outcomes['longest_s']:.1f}"))
    return [
        "## Good and bad requests together",
        "",
        f"Greatest difference from an idle server's answer {good['largest_difference']:.1e}; p50 {good['p50_ms']} ms, "
        f"p99 {good['p99_ms']} ms; {found['seconds']} s. Triton was{'' if found['triton_restarted'] else ' not'} "
        "restarted.",
        "",
        *table(("bad request", "what became of it", "longest, s"), rows),
    ]


def storm_section(found: dict) -> list[str]:
    """The storm of cancelled requests."""
    outcomes = ", ".join(f"{name} {count:,}" for name, count in sorted(found["attack"].items()))
    return ["## A storm of cancelled requests", "", f"The storm: {outcomes}, in {found['seconds']} s. {beside(found)}"]


def greed_section(found: dict) -> list[str]:
    """Calls whose answers nobody takes."""
    attack = found["attack"]
    return [
        "## Answers that nobody takes",
        "",
        f"{found['clients']} clients opened {attack['calls']:,} calls over gRPC in {found['seconds']} s, and took no "
        f"byte of an answer; {attack.get('connections_ended', 0)} of their connections were ended. {beside(found)}",
    ]


def beside(found: dict) -> str:
    """What well-behaved clients saw beside an attack."""
    good = found["good"]
    return (
        f"Beside it, {good['sent']:,} requests of well-behaved clients: {good['failed']} failed, {good['wrong']} "
        f"answered wrongly, p99 {good['p99_ms']} ms. Triton was{'' if found['triton_restarted'] else ' not'} restarted."
    )


def memory_section(found: dict) -> list[str]:
    """Requests that want memory."""
    names = {
        "gzip": "32 requests of 600 kB that are 600 MB large",
        "huge_text": "two texts of 800 MB",
        "long_texts": "64 requests as large as allowed",
    }
    rows = [
        (
            names[name],
            ", ".join(f"{outcome} {count}" for outcome, count in one["outcomes"].items()),
            *(f"{one[key]:,.0f}" for key in ("before_mb", "peak_mb", "shm_growth_mb")),
        )
        for name, one in found.items()
        if name in names
    ]
    good = found["good"]
    head = ("request", "outcomes", "memory before, MB", "most, MB", "growth of /dev/shm, MB")
    beside = f"A well-behaved client beside it: {good['sent']} sent, {good['failed'] + good['wrong']} failed."
    return ["## Requests that want memory", "", *table(head, rows), "", beside]


def rest_section(found: dict) -> list[str]:
    """Memory before, after, and after a rest."""
    rows = [(name.replace("_", " "), one["rss_mb"], one["shm_mb"]) for name, one in found.items() if name != "minutes"]
    head = ("moment", "memory of all processes, MB", "/dev/shm, MB")
    return ["## Memory over time", "", f"The rest took {found['minutes']:g} minutes.", "", *table(head, rows)]


def faults_section(found: dict) -> list[str]:
    """Processes that were killed or stopped."""
    rows = [
        (name, show(one["noticed_s"]), f"{one['outage_s']:.1f}", len(one["outages_s"]), one["neighbours_failed"])
        for name, one in found.items()
        if "outage_s" in one
    ]
    head = ("fault", "in the log after, s", "longest outage, s", "tasks that need it", "failures of the others")
    return [
        "## A process dies or hangs",
        "",
        "One client for each task asks all the time and gives up on an answer after 3 s. The outage lasts from the "
        "signal to the first answer after the last failure.",
        "",
        *table(head, rows),
    ]


def starts_section(found: dict) -> list[str]:
    """Starts with too little of something."""
    rows = [
        (
            name,
            f"ready; a full batch: {one['full_batch']}" if one["ready"] else f"exit {one['exit_status']}",
            f"{one['seconds']:.1f}",
            f"{one['said']}{' (with a traceback)' if one['traceback'] else ''}",
        )
        for name, one in found.items()
    ]
    return ["## Starts with too little", "", *table(("too little", "outcome", "s", "said"), rows)]


def lines_section(title: str) -> object:
    """A section that lists what was found, a line each."""

    def section(found: dict) -> list[str]:
        return [f"## {title}", "", *table(("", ""), [(name, show(value)) for name, value in found.items()])]

    return section


def tamper_section(found: dict) -> list[str]:
    """Files that were changed."""
    rows = [(name, show(one["caught"]), f"{one['seconds']:.1f}", one["said"]) for name, one in found.items()]
    return ["## Changed files", "", *table(("one bit of", "refused", "s", "said"), rows)]


SECTIONS = {
    "mixed": mixed_section,
    "storm": storm_section,
    "greed": greed_section,
    "memory": memory_section,
    "rest": rest_section,
    "faults": faults_section,
    "launcher": lines_section("kill -9 of serve-repo itself"),
    "starts": starts_section,
    "disk": lines_section("The disk fills up, and Triton dies"),
    "spy": lines_section("Another user of the machine"),
    "tamper": tamper_section,
}


def show(value: object) -> str:
    """A value as a cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | dict):
        return json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """A Markdown table."""
    head = list(head)
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in cells)]
