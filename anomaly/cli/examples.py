"""Examples of each verb, as its `--help` shows them: verb -> commands."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "phantom": ("anomaly phantom films", "anomaly phantom films --patients 40 --seed 1"),
    "preprocess": (
        "anomaly preprocess",
        "anomaly preprocess chests --recipe plain --size 224 --variants raw",
        "anomaly preprocess films.csv --where region=hand,wrist --out cache/hands.h5",
    ),
    "inspect": ("anomaly inspect", "anomaly inspect cache/hands.h5 --sheet sheet.png --films 40"),
    "train": (
        "anomaly train cae",
        "anomaly train feature_mixture --cache cache/chests.h5 --name chests",
        "anomaly train cae --preset fast --set epochs=20 --set batch_size=8 --seed 1",
        "anomaly train runs/cae-1 --more-epochs 20",
        "anomaly train runs/cae-1 --more-films cache/may.h5 --name with-may",
    ),
    "tune": ("anomaly tune cae --trials 30 --jobs 2", "anomaly tune vae --objective auc --set epochs=20"),
    "ensemble": (
        "anomaly ensemble runs/cae-1 runs/vae-1",
        "anomaly ensemble runs/cae-1:mse runs/vae-1:kld --name both",
    ),
    "bench": (
        "anomaly bench --table",
        "anomaly bench XR_HAND --preset paper --dry-run",
        "anomaly bench --cache cache/hands.h5 --models cae,vae --seeds 0,1,2 --table --format markdown",
    ),
    "score": (
        "anomaly score runs/cae-1",
        "anomaly score runs/cae-1 today/ film.dcm",
        "anomaly score runs/cae-1 today/ --false-alarms .02 --calibration north",
        "anomaly score runs/cae-1 --split val --by-column region",
    ),
    "heatmap": (
        "anomaly heatmap runs/cae-1 --limit 20",
        "anomaly heatmap runs/cae-1 today/ --space film --formats png",
        "anomaly heatmap runs/cae-1 today/ --formats dicom",
    ),
    "calibrate": (
        "anomaly calibrate runs/cae-1 local-normals --name north",
        "anomaly calibrate runs/cae-1 local-normals --name north --refit --replace",
    ),
    "export": (
        "anomaly export runs/cae-1 --check",
        "anomaly export runs/cae-1 --out north --calibration north --layout hf",
    ),
    "serve": (
        "anomaly serve runs/cae-1",
        "anomaly serve runs/cae-1 --dicom 11112 --aet ANOMALY --send-to PACS@127.0.0.1:4242",
        "anomaly serve runs/cae-1 --host 0.0.0.0 --token-file token --tls-cert cert.pem --tls-key key.pem",
    ),
    "watch": (
        "anomaly watch runs/cae-1 incoming --out results",
        "anomaly watch runs/cae-1 incoming --out results --once --formats png,dicom",
    ),
    "auto": ("anomaly auto films --minutes 20", "anomaly auto cache/hands.h5 --choose-by planted"),
    "report": ("anomaly report", "anomaly report runs/bench-1"),
    "runs": ("anomaly runs --sort auc", "anomaly runs runs/bench-1/cells", "anomaly runs --json"),
    "compare": ("anomaly compare runs/cae-1 runs/vae-1", "anomaly compare runs/cae-1:mse runs/vae-1:kld --shared"),
    "rm": ("anomaly rm runs/cae-1 runs/cae-2", "anomaly rm runs/bench-1 --yes"),
    "models": ("anomaly models", "anomaly models cae"),
    "doctor": ("anomaly doctor", "anomaly doctor --measure"),
    "demo": ("anomaly demo", "anomaly demo --folder runs/small --patients 40"),
}


def epilog(verb: str) -> str | None:
    """Return the examples of a verb as the end of its help, each on a line of its own; None where it has none."""
    examples = EXAMPLES.get(verb)
    return "\b\nExamples:\n" + "\n".join(f"  {text}" for text in examples) if examples else None
