"""The report: definitions first, then the targets, then each case; as Markdown for people and as JSON for programs."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from benchmarks.case import Form
from benchmarks.figures import Figure, Verdict, figure, ratio, verdict
from benchmarks.footprint import ROWS
from benchmarks.peers import PEERS
from benchmarks.run import CaseResult, LineResult
from benchmarks.workload import MIB, Measurement

__all__ = ["json_of", "markdown"]

DEFINITIONS: Final = """\
* **msg/s**: messages done, by the seconds from the start of the timed part to the last of them. The median of the
  rounds, and the range. A message is **done** when the peer says so; what it has synced by then is in the column
  *syncs*, and **most peers sync less than ours**.
* **x**: the ratio to the line of the case marked 1.00, taken within each round, in which both ran within seconds of
  each other. Differences below some 25 % mean little on a machine that does other things too.
* **in flight**: so many coroutines (servers: connections), each of which delivers one message after another.
* **latency**: from handing a message over to its being done. With N in flight, that includes the wait for the others.
* **lag**: how much later than asked for the loop wakes a coroutine that sleeps for 1 ms, again and again.
* **CPU**: of the peer's process and its ended children, user and system, per message. Of a mail server: of all its
  processes, and *clients' CPU* is that of those who send the mail.
* **memory**: growth of the resident set at its peak, over what it was after the warm-up.
* **steady state**: the same process has delivered the first messages (200, or 0.3 s) into the same, fresh maildir
  before the clock starts. The timed part ends after a number of messages or some time, whichever is first.
* Every message differs. After each measurement number and content of all files in new/ are compared with what was
  delivered, and tmp/ must be empty; otherwise the measurement has **failed**.
"""

#: Columns beyond the rate: title, format, and where it is in a measurement. Shown where a case has any.
COLUMNS: Final[tuple[tuple[str, str, Callable[[Measurement], float | None]], ...]] = (
    ("latency p50 ms", ".2f", lambda found: found.latency_ms.get("p50")),
    ("p99 ms", ".2f", lambda found: found.latency_ms.get("p99")),
    ("max ms", ".1f", lambda found: found.latency_ms.get("max")),
    ("lag p50 ms", ".2f", lambda found: found.lag_ms.get("p50")),
    ("lag p99 ms", ".2f", lambda found: found.lag_ms.get("p99")),
    ("lag max ms", ".1f", lambda found: found.lag_ms.get("max")),
    ("CPU us", ".0f", lambda found: None if found.cpu_s is None else found.cpu_s / max(found.messages, 1) * 1e6),
    (
        "clients' CPU us",
        ".0f",
        lambda found: None if found.load_cpu_s is None else found.load_cpu_s / max(found.messages, 1) * 1e6,
    ),
    ("memory MiB", ".1f", lambda found: None if found.memory is None else found.memory / MIB),
)


def markdown(results: list[CaseResult], conditions: dict[str, Any], form: Form, footprint: dict[str, float]) -> str:
    """Return the report."""
    parts = ["# Benchmarks\n", "## What the numbers are\n\n" + DEFINITIONS, _conditions(conditions, form)]
    targets = _verdicts(results)
    if targets:
        parts.append(_targets(targets))
    parts += ["## Cases\n", *(_case(result, form) for result in results)]
    if footprint:
        rows = [f"| {row.text} | {footprint[row.name]:.1f} |" for row in ROWS]
        parts.append("### footprint: what it costs without a delivery\n\n| | |\n|---|--:|\n" + "\n".join(rows) + "\n")
    notes = [note for result in results for note in _notes(result)]
    if notes:
        parts.append("## Skipped or failed\n\n" + "\n".join(f"* {note}" for note in dict.fromkeys(notes)) + "\n")
    return "\n".join(parts)


def _verdicts(results: list[CaseResult]) -> list[Verdict]:
    return [verdict(result, target) for result in results for target in result.case.targets]


def json_of(
    results: list[CaseResult], conditions: dict[str, Any], form: Form, footprint: dict[str, float]
) -> dict[str, Any]:
    """Return every measurement, and what it was made on, for a file."""
    cases = [
        {
            "name": result.case.name,
            "title": result.case.title,
            "file_system": result.case.filesystem,
            "baseline": result.case.baseline,
            "skipped": result.skipped,
            "seconds": round(result.seconds, 1),
            "lines": [_line_json(label, line) for label, line in result.lines.items()],
        }
        for result in results
    ]
    targets = [
        {
            "target": found.target.text,
            "bound": found.target.bound,
            "measure": found.target.measure,
            "seen": found.seen and asdict(found.seen),
            "met": found.met,
            "why": found.why,
        }
        for found in _verdicts(results)
    ]
    return {
        "conditions": conditions,
        "form": asdict(form),
        "targets": targets,
        "footprint": footprint,
        "cases": cases,
    }


def _line_json(label: str, line: LineResult) -> dict[str, Any]:
    return {
        "label": label,
        "peer": line.entry.peer,
        "syncs": PEERS[line.entry.peer].syncs_for(line.entry.workload),
        "python": line.entry.python,
        "workload": asdict(line.entry.workload),
        "skipped": line.skipped,
        "failures": line.failures,
        "rounds": [found and found.to_json() for found in line.rounds],
    }


def _conditions(found: dict[str, Any], form: Form) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        f"{found['kernel']}, {found['cpu']}, {found['memory_gib']} GiB; {found['python']};",
        f"{versions}; commit {found['commit']}; {found['date']}; load average {found['load_average']}.",
        f"The {'full' if form.full else 'quick'} form: at most {form.seconds:g} s a measurement.",
        "",
        *(
            f"* **{name}**: {place['what']}. A flush takes {place['flush_ms']:.2f} ms (median of 100)."
            for name, place in found["file_systems"].items()
        ),
    ]
    return "## Conditions\n\n" + "\n".join(lines) + "\n"


def _targets(found: list[Verdict]) -> str:
    rows = ["| target | asked | seen: median (range) | |", "|---|--:|--:|---|"]
    for each in found:
        target = each.target
        sign = ">=" if target.measure in ("rate", "per_second", "mb_s") else "<="
        form = ".2f" if target.against or target.measure == "lag_p99" else ".0f"
        unit = "x" if target.against else ""
        seen = each.seen.text(form) if each.seen else each.why
        outcome = {True: "met", False: "**not met**", None: "not measured"}[each.met]
        rows.append(f"| {target.text} | {sign} {target.bound:g}{unit} | {seen} | {outcome} |")
    return "## Targets\n\n" + "\n".join(rows) + "\n"


def _case(result: CaseResult, form: Form) -> str:
    rounds = form.rounds_of(result.case)
    where = result.case.filesystem if result.place is None or result.place.made else "the directory"
    heading = f"### {result.case.name}: {result.case.title}; {where}; {rounds} rounds\n\n"
    if result.skipped is not None:
        return heading + f"**Skipped**: {result.skipped}\n"
    streams = all(line.entry.workload.stream for line in result.lines.values())
    shown = [
        column
        for column in COLUMNS
        if any(figure(result, label, column[2]) for label in result.lines) and (streams or column[0] != "memory MiB")
    ]
    rate = "MB/s" if streams else "msg/s"
    titles = ["", "syncs", f"{rate}: median (range)", "x", *(title for title, _, _ in shown)]
    rows = [" | ".join(titles), "|".join(["---", "---", *["--:"] * (len(titles) - 2)])]
    for label, line in result.lines.items():
        if line.skipped is None:
            rows.append(" | ".join(_row(result, label, line, streams, shown)))
    return heading + "\n".join(f"| {row} |" for row in rows) + "\n"


def _row(result: CaseResult, label: str, line: LineResult, streams: bool, shown: list[Any]) -> list[str]:
    def value(found: Measurement) -> float:
        return found.mb_s if streams else found.rate

    peer = PEERS[line.entry.peer]
    speed = figure(result, label, value)
    compared = ratio(result, label, result.case.baseline, value)
    variant = f", {line.entry.variant}" if line.entry.variant else ""
    failed = f" **failed {len(line.failures)} times**" if line.failures else ""
    return [
        f"{peer.title}{variant}{failed}",
        peer.syncs_for(line.entry.workload),
        speed.text(",.0f") if speed and peer.works else "",
        f"{compared.median:.2f}" if compared and peer.works else "",
        *(
            _median(figure(result, label, get), form) if peer.works or title.startswith("lag") else ""
            for title, form, get in shown
        ),
    ]


def _median(found: Figure | None, form: str) -> str:
    return f"{found.median:{form}}" if found else ""


def _notes(result: CaseResult) -> list[str]:
    if result.skipped is not None:
        return [f"case {result.case.name} **skipped**: {result.skipped}"]
    skipped = [f"{line.entry.label} **skipped**: {line.skipped}" for line in result.lines.values() if line.skipped]
    failed = [
        f"{result.case.name}: {line.entry.label} **failed**: {failure}"
        for line in result.lines.values()
        for failure in line.failures
    ]
    return skipped + failed
