"""A training as a Slurm job: its script, submitting it, and what Slurm says of it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import UserError
from luthier.run_folder import RunFolder, write_text

SCRIPT = "slurm.sh"
JOBS = "slurm-jobs.txt"

# Seconds before the time limit at which Slurm is asked to say so: enough for a step and a checkpoint of most models.
NOTICE_S = 120


@dataclass(frozen=True, slots=True)
class Job:
    """What Slurm says of a job.

    Attributes:
        number: Its id.
        state: ``PENDING``, ``RUNNING``, ``COMPLETED``, ``FAILED`` ...
        reason: Why it waits or failed, if Slurm says.
    """

    number: int
    state: str
    reason: str


def options(given: Sequence[str]) -> dict[str, str]:
    """``partition=gpu time=2:00:00`` as options of ``sbatch``.

    Raises:
        UserError: Something that is no ``name=value``, or an option that Luthier sets itself.
    """
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[a-z][a-z-]*", name):
            raise UserError(
                f"{text!r} is no option of sbatch", "option --slurm", "write name=value: partition=gpu"
            )
        if name in ("nodes", "ntasks-per-node", "output", "open-mode", "requeue", "signal", "array"):
            raise UserError(
                f"{name} is set by luthier", "option --slurm", "leave it out; see --nodes and --processes"
            )
        found[name] = value
    return found


def script(
    run: RunFolder,
    arguments: Sequence[str],
    *,
    nodes: int,
    processes: int,
    options: Mapping[str, str],
    name: str,
    array: Sequence[Sequence[str]] = (),
) -> str:
    """The job script: it meets on its first machine, trains, and asks to be queued again when its time is nearly over.

    Args:
        run: Caches and logs go into its folder.
        arguments: Of ``luthier``.
        nodes: Machines.
        processes: Processes on each.
        options: Further options of ``sbatch``.
        name: The job's.
        array: For a sweep: the arguments of each of its runs, which become one array job.
    """
    place = run.path.resolve()
    log = place / "slurm" / ("%A_%a.log" if array else "%j.log")
    directives = {
        "job-name": name,
        "nodes": str(nodes),
        "ntasks-per-node": "1",
        "output": str(log),
        "open-mode": "append",
        "signal": f"B:USR1@{NOTICE_S}",
        **({"array": f"0-{len(array) - 1}"} if array else {}),
        **options,
    }
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{key}={value}" for key, value in directives.items()),
        "#SBATCH --requeue",
        "",
    ]
    caches = {
        "HF_DATASETS_CACHE": "datasets",
        "TRITON_CACHE_DIR": "triton",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "WANDB_DIR": "wandb",
    }
    lines += ["set -u", f"cd {shlex.quote(str(Path.cwd()))}"]
    lines += [f"export {key}={shlex.quote(str(place / 'cache' / folder))}" for key, folder in caches.items()]
    lines += [f"mkdir -p {shlex.quote(str(place / 'cache'))}/{{{','.join(caches.values())}}}"]
    if array:
        lines += ["case $SLURM_ARRAY_TASK_ID in"]
        lines += [f"  {i}) arguments=({shlex.join(each)}) ;;" for i, each in enumerate(array)]
        lines += ["esac"]
    else:
        lines += [f"arguments=({shlex.join(arguments)})"]
    lines += [
        'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "port=$((20000 + SLURM_JOB_ID % 20000))",
        f"srun {shlex.quote(sys.executable)} -m torch.distributed.run --nnodes={nodes} --nproc-per-node={processes} \\",
        '  --rdzv-backend=c10d --rdzv-endpoint="$first:$port" --rdzv-id="$SLURM_JOB_ID" -m luthier "${arguments[@]}" &',
        "training=$!",
        "again=0",
        "# Near the time limit, or before it gives way to another job: save a checkpoint, then wait for a new turn.",
        "give_way() {",
        "  again=1",
        '  scancel --signal=TERM "$SLURM_JOB_ID" 2>/dev/null || kill -TERM "$training"',
        "}",
        "trap give_way USR1 TERM",
        "code=0",
        'while kill -0 "$training" 2>/dev/null; do wait "$training"; code=$?; done',
        'if [ "$again" = 1 ] && [ "$code" != 0 ]; then',
        '  scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}"'
        if not array
        else '  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def submit(run: RunFolder, text: str) -> int:
    """Keeps the script in the run folder and submits it; the job's number.

    Raises:
        UserError: There is no Slurm here, or it refuses the job; its own words are passed on.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch on this machine",
            "option --slurm",
            "run this on the login node of a Slurm cluster",
        )
    path = run.path / SCRIPT
    write_text(path, text)
    (run.path / "slurm").mkdir(exist_ok=True)
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"sbatch refuses the job: {done.stderr.strip()}",
            str(path),
            "see `sinfo` for partitions and limits",
        )
    number = int(done.stdout.strip().partition(";")[0])
    with open(run.path / JOBS, "a", encoding="utf-8") as file:
        file.write(f"{number}\n")
    return number


def jobs(run: RunFolder) -> list[Job]:
    """What Slurm says of this run's jobs, the newest last; nothing where there is no Slurm or no job."""
    path = run.path / JOBS
    if not path.is_file() or shutil.which("squeue") is None:
        return []
    found = []
    for number in dict.fromkeys(path.read_text(encoding="utf-8").split()):
        state, reason = _ask("squeue", "--noheader", "--format=%T|%r", f"--jobs={number}")
        if not state:
            state, reason = _ask("scontrol", "--oneliner", "show", "job", number)
        found.append(Job(int(number), state or "GONE", reason))
    return found


def _ask(*command: str) -> tuple[str, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stdout.strip().partition("\n")[0]
    if done.returncode or not text:
        return "", ""
    if command[0] == "squeue":
        state, _, reason = text.partition("|")
    else:
        state, reason = (_field(text, name) for name in ("JobState", "Reason"))
    return state, "" if reason == "None" else reason


def _field(text: str, name: str) -> str:
    match = re.search(rf"\b{name}=(\S+)", text)
    return match[1] if match else ""
