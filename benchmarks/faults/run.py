"""Luthier's ``audit`` beside the peers, on planted faults and on healthy set-ups, judged by what each really says.

    python benchmarks/faults/run.py                       # all that is not done yet; writes results.json beside this file
    python benchmarks/faults/run.py --only luthier        # one tool anew
    python benchmarks/faults/run.py --only trl/no_eos     # one pair anew; or all tools: --only /no_eos

Every tool has an environment of its own below build/environments, made from PyPI; Luthier runs in the environment that
runs this script. What each tool printed is kept in build/faults, compressed. Three quarters of an hour on
two cores and 8 GB at first. After a change of a set-up, run it anew with --only.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import environments  # noqa: E402 # lies beside the benchmarks

BUILD = HERE.parents[1] / "build" / "faults"
PACKAGES = {
    **environments.TRAINERS,
    "torch-audit": ("torch-audit==0.3.0", *environments.LIBRARIES),
    "training-doctor": ("training-doctor==0.1.0", *environments.LIBRARIES),
    "preflight-ml": ("preflight-ml==0.1.1", *environments.LIBRARIES),
    "luthier": environments.LUTHIER,
}
# What a tool is given; a fault that shows in none of it is not applicable rather than missed.
SEES = {
    "torch-audit": ({"rows", "model", "optimizer"}, "sees batches, model and optimizer only"),
    "training-doctor": ({"metrics"}, "sees logged numbers only"),
    "preflight-ml": ({"rows", "eval rows", "model"}, "sees batches and model only"),
}
# Warnings that claim nothing about the training they are given with.
NEUTRAL = (
    r"deprecat|FutureWarning|will be removed",  # about a library's own code
    r"pin_memory|no accelerator|CUDA|use_cpu",  # about this machine
    r"LOAD REPORT",  # that a classification head is new, which it is
    r"`template` was not specified",  # how LLaMA-Factory found the template
    r"recommend enable mixed precision",  # advice on speed
    r"requires torchvision",  # left out of that environment, see below
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--only", default="", help="TOOL, TOOL/CASE or /CASE: run these anew and nothing else"
    )
    parser.add_argument("--judge", action="store_true", help="run nothing; judge what was said before")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # importing a trainer from source takes ten seconds each time
    os.environ |= {"DO_NOT_TRACK": "1", "COLUMNS": "200"}  # wide enough for the tables that linters print
    sys.path.insert(0, str(HERE))
    import base

    base.make(BUILD / "base")
    import cases

    only_tool, _, only_case = options.only.partition("/")
    for tool in PACKAGES:
        (BUILD / "said" / tool).mkdir(parents=True, exist_ok=True)
        wanted = [
            case.name
            for case in cases.CASES.values()
            if only_case in ("", case.name)
            and tool not in case.na
            and (options.only or not (BUILD / "said" / tool / f"{case.name}.json").is_file())
        ]
        if wanted and not options.judge and only_tool in ("", tool):
            run(tool, environments.environment(tool, PACKAGES[tool]), wanted)
    results = judge(cases)
    (HERE / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(results["figures"], indent=1))


def run(tool: str, python: Path, names: list[str]) -> None:
    """Gives cases to a tool, in its environment."""
    folder, start = BUILD / "said" / tool, time.monotonic()
    print(f"{tool}: {len(names)} set-ups", flush=True)
    for name in names:
        (folder / f"{name}.json").unlink(missing_ok=True)
    module = f"tools.{tool.replace('-', '_')}"
    subprocess.run([python, "-m", module, folder, *names], cwd=HERE, check=True)
    for name in names:
        log = folder / f"{name}.log"
        if not (folder / f"{name}.json").is_file():  # it was killed, by its time limit for one
            text = {"findings": [], "crash": "killed", "seconds": 0.0}
            (folder / f"{name}.json").write_text(json.dumps(text))
        with gzip.open(f"{log}.gz", "wb") as file:
            file.write(log.read_bytes())
        log.unlink()
    print(f"{tool}: {time.monotonic() - start:.0f} s", flush=True)


def judge(cases: Any) -> dict[str, Any]:
    """The content of ``results.json`` from all that was said."""
    verdicts: dict[str, dict[str, dict[str, str]]] = {}
    figures: dict[str, float] = {"faults": len(cases.FAULTS), "healthy_set_ups": len(cases.HEALTHY)}
    for tool in PACKAGES:
        said = {path.stem: json.loads(path.read_text()) for path in (BUILD / "said" / tool).glob("*.json")}
        usual = {found["text"] for name in cases.HEALTHY if name in said for found in said[name]["findings"]}
        seconds = sum(said[name]["seconds"] for name in said)
        for case in cases.CASES.values():
            if tool in case.na:
                verdict = {"verdict": "n/a", "evidence": case.na[tool]}
            elif case.name not in said:
                verdict = {"verdict": "not run", "evidence": ""}
            elif case.name in cases.HEALTHY:
                verdict = of_healthy(said[case.name])
            else:
                verdict = of_fault(tool, case, said[case.name], usual)
            verdicts.setdefault(case.name, {})[tool] = verdict
        given = [verdicts[name][tool]["verdict"] for name in cases.FAULTS]
        calm = [verdicts[name][tool]["verdict"] for name in cases.HEALTHY]
        figures |= {
            f"{tool}/faults_given": sum(verdict not in ("n/a", "not run") for verdict in given),
            f"{tool}/faults_reported": sum(verdict in ("stops", "warns") for verdict in given),
            f"{tool}/faults_stopped": given.count("stops"),
            f"{tool}/faults_silent": given.count("silent") + given.count("mentions"),
            f"{tool}/healthy_given": sum(verdict not in ("n/a", "not run") for verdict in calm),
            f"{tool}/healthy_alarms": calm.count("cries wolf"),
            f"{tool}/seconds": round(seconds),
        }
    return {
        "figures": figures,
        "command": "python benchmarks/faults/run.py",
        "versions": environments.versions(PACKAGES),
        "date": datetime.date.today().isoformat(),
        "notes": (
            f"{os.cpu_count()} cores, {platform.machine()}, one thread. Verdicts are made from each tool's own output by the words that a "
            "message about the fault must have (`about` in cases.py); the message is beside each verdict. stops: an error that concerns "
            "the fault, or a failing exit code for a linter; warns: a warning that does; mentions: a note of lower severity that does, not "
            "counted as reported; silent: none; cries wolf: a warning or error on a healthy set-up; n/a: cannot be expressed, cannot "
            "occur, or shows in nothing that the tool is given."
        ),
        "cases": {
            case.name: {
                "text": case.text,
                "healthy": case.name in cases.HEALTHY,
                "catalogue": list(case.catalogue),
                "about": case.about,
            }
            for case in cases.CASES.values()
        },
        "verdicts": verdicts,
    }


def of_fault(tool: str, case: Any, said: dict[str, Any], usual: set[str]) -> dict[str, str]:
    """Whether what was said concerns the fault, and how strongly; ``usual`` is said of healthy set-ups too."""
    findings, ended = said["findings"], said["crash"]
    for found in findings:
        if found["severity"] == "ended":
            ended = found["text"]
    if tool in environments.TRAINERS:
        findings = [*findings, {"severity": "error", "text": ended}]
    for severity, verdict in (("error", "stops"), ("warning", "warns"), ("note", "mentions")):
        for found in findings:
            match = re.search(case.about, found["text"], re.I)
            if found["severity"] == severity and match and found["text"] not in usual:
                return {"verdict": verdict, "evidence": line(found["text"], match.start())}
    if ended:
        if tool in environments.TRAINERS:
            return {"verdict": "fails otherwise", "evidence": line(ended)}
        return {"verdict": "n/a", "evidence": f"the Trainer itself fails: {line(ended)}"}
    sees, reason = SEES.get(tool, (case.shows, ""))
    if not sees & case.shows:
        return {"verdict": "n/a", "evidence": reason}
    return {"verdict": "silent", "evidence": ""}


def of_healthy(said: dict[str, Any]) -> dict[str, str]:
    """Whether something was said against a healthy set-up."""
    crash = [{"severity": "ended", "text": said["crash"]}] if said["crash"] else []
    alarms = [
        found["text"]
        for found in said["findings"] + crash
        if found["severity"] != "note"
        and not any(re.search(pattern, found["text"], re.I) for pattern in NEUTRAL)
    ]
    if alarms:
        more = f" (and {len(alarms) - 1} more)" if len(alarms) > 1 else ""
        return {"verdict": "cries wolf", "evidence": line(alarms[0]) + more}
    return {"verdict": "calm", "evidence": ""}


def line(text: str, position: int = 0) -> str:
    """A message on one line, around a position."""
    start = max(0, position - 140)
    # Where the environments lie on the machine that measured is nobody's concern.
    cut = " ".join(re.sub(r"/\S*/build/(faults|environments)/", "", text[start : start + 280]).split())
    return ("…" if start else "") + cut + ("…" if len(text) > start + 280 else "")


if __name__ == "__main__":
    main()
