"""The verb doctor."""

from dataclasses import asdict
from itertools import groupby

import typer

from anomaly.cli.declare import command
from anomaly.console import hand_over, say, warn
from anomaly.pipeline.options import DoctorOptions


@command(DoctorOptions)
def doctor(options: DoctorOptions) -> None:
    """Say what this machine has and what it lacks: versions, extras, GPU, memory, disk; to paste into a bug report."""
    from anomaly.pipeline.doctor import examine, measure_machine
    from anomaly.runs import to_json

    if options.measure:
        measure_machine()
    facts = examine()
    broken = any(fact.needed for fact in facts)
    if options.json:
        hand_over(to_json([asdict(fact) for fact in facts]))
        raise typer.Exit(int(broken))
    width = max(len(fact.name) for fact in facts)
    for section, lines in groupby(facts, key=lambda fact: fact.section):
        say(f"{section}:")
        for fact in lines:
            say(f"  {fact.name:<{width}}  {fact.value}")
    for fact in facts:
        if fact.advice:
            warn(f"{fact.name}: {fact.advice}")
    if broken:
        raise typer.Exit(1)
    say("next: anomaly demo")
