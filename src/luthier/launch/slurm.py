"""A run, or all runs of a sweep, as a Slurm job: its script, submitting it, and what Slurm says of it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import UserError
from luthier.launch import torchrun
from luthier.run_folder import RunFolder, write_text

SCRIPT = "slurm.sh"
JOBS = "jobs.txt"

# Seconds before its time limit at which a job is told to give way: time for a step and a checkpoint of most models.
_NOTICE_S = 120
# What the script sets, and where its value comes from instead.
_OWN = {
    "nodes": "--nodes",
    "ntasks-per-node": "--processes",
    "ntasks": "--nodes and --processes",
    "output": "the run folder",
    "error": "the run folder",
    "chdir": "the folder that you are in",
    "open-mode": "the script",
    "requeue": "the script",
    "no-requeue": "the script",
    "array": "--sweep",
}
# Programs keep what they compile and download below the home folder, which is small or slow on many clusters. Where a
# variable is set already it stays as it is.
_CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "HF_DATASETS_CACHE": "datasets",
    "HF_MODULES_CACHE": "modules",
    "HF_HUB_CACHE": "hub",
    "WANDB_DIR": "wandb",
    "WANDB_CACHE_DIR": "wandb-cache",
    "WANDB_DATA_DIR": "wandb-data",
}
# States in which a job may still write into its run folder.
_ALIVE = (
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "SUSPENDED",
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "RESIZING",
)
_NEWEST = 5  # jobs of a run that are asked about
_PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class Job:
    """What Slurm says of a job.

    Attributes:
        number: Its id, ``17`` or ``17_3`` for one of an array.
        state: ``PENDING``, ``RUNNING``, ``COMPLETED``, ``FAILED`` ..., or ``UNKNOWN`` when Slurm has forgotten it.
        reason: Why it waits or failed, if Slurm says.
    """

    number: str
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
        if not equals or not value or not re.fullmatch(r"[a-z][a-z-]*", name) or not value.isprintable():
            raise UserError(
                f"{text!r} is no option of sbatch", "option --slurm", "write name=value: partition=gpu"
            )
        if name in _OWN:
            raise UserError(
                f"{name} is not for --slurm to say: it comes from {_OWN[name]}",
                "option --slurm",
                f"leave {name} out",
            )
        if name == "signal" and not re.fullmatch(r"B:USR1@\d+", value):
            raise UserError(
                f"the script waits for USR1, but signal={value} sends something else",
                "option --slurm",
                "signal=B:USR1@300 for a notice 300 seconds before the time limit",
            )
        found[name] = value
    return found


def script(
    place: RunFolder,
    arguments: Sequence[str],
    *,
    nodes: int,
    processes: int,
    options: Mapping[str, str],
    name: str,
    array: Sequence[tuple[RunFolder, Sequence[str]]] = (),
) -> str:
    """The job script: it meets on its first machine, runs, and asks for another turn when its time is nearly over.

    Args:
        place: The run's folder, or the sweep's; script, logs and caches go into it.
        arguments: Of ``luthier``, for a single run.
        nodes: Machines.
        processes: Processes on each.
        options: Further options of ``sbatch``.
        name: The job's.
        array: For a sweep: folder and arguments of each of its runs, which become one array job.
    """
    top = place.path.resolve()
    log = place.launch.resolve() / ("%A_%a.log" if array else "%j.log")
    directives = {
        "job-name": name,
        "nodes": str(nodes),
        "ntasks-per-node": "1",
        **({} if "cpus-per-gpu" in options else {"cpus-per-task": str(processes)}),
        "signal": f"B:USR1@{_NOTICE_S}",
        **({"array": f"0-{len(array) - 1}"} if array else {}),
        **options,
        "output": _escaped(log),
        "open-mode": "append",
    }
    notice = int(directives["signal"].partition("@")[2])
    command = shlex.join(torchrun.line([], nodes=nodes, processes=processes, endpoint="FIRST:PORT"))
    command = command.replace("FIRST:PORT", '"$first:$port"')
    lines = ["#!/bin/bash", *(f"#SBATCH --{key}={_directive(value)}" for key, value in directives.items())]
    lines += ["#SBATCH --requeue", "", f"cd {shlex.quote(str(Path.cwd()))} || exit 2"]
    lines += _caches(top)
    if array:
        lines += ["case $SLURM_ARRAY_TASK_ID in"]
        for index, (run, each) in enumerate(array):
            folder = shlex.quote(str(run.path.resolve()))
            lines += [f"  {index}) export LUTHIER_RUN={folder}; arguments=({shlex.join(each)}) ;;"]
        lines += ["esac", "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"]
    else:
        lines += [f"export LUTHIER_RUN={shlex.quote(str(top))}", f"arguments=({shlex.join(arguments)})"]
        lines += ["job=$SLURM_JOB_ID"]
    lines += [
        "cores=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}",
        "export SRUN_CPUS_PER_TASK=$cores  # srun takes one core for a task unless it is told again",
        f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-$((cores > {processes} ? cores / {processes} : 1))}}",
        f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={max(10, notice - 10)}",
    ]
    if nodes > 1:
        lines += [
            'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "port=$((20000 + SLURM_JOB_ID % 12000))",
        ]
    lines += [
        "",
        'standing() { ls "$LUTHIER_RUN/data" "$LUTHIER_RUN/checkpoints"; cat "$LUTHIER_RUN/stages.json"; }',
        "before=$(standing 2>&1)",
        'rm -f "$LUTHIER_RUN/stopped.json"',
        "# Near the time limit, or to give way to another job: the processes save a checkpoint after the step under way.",
        "notice=0 again=1",
        "trap 'notice=1 again=1; scancel --signal=TERM \"$job.0\"' USR1",
        "trap again=1 TERM  # what Slurm sends to all of a job is for the processes; here their end is waited for",
        f'srun {command} "${{arguments[@]}}" &',
        "running=$!",
        'while [ $again = 1 ]; do again=0; wait "$running"; code=$?; done  # a trapped signal ends wait early',
        "trap '' USR1",
        'said() { grep -qsE "\\"kind\\": \\"($1)\\"" "$LUTHIER_RUN/stopped.json"; }',
        "# Interrupted, not refused; and not by `scancel`, after which Slurm no longer calls the job running.",
        "if [ $code != 0 ] && { said interrupted || { [ $notice = 1 ] && ! said 'refused|mistake'; }; } &&",
        '   [ "$(squeue --noheader --format=%T --jobs="$job")" = RUNNING ]; then',
        '  if [ "$(standing 2>&1)" = "$before" ]; then',
        '    echo "not queued again: this turn has finished nothing, so the next one would not either; give it more time" >&2',
        "  else",
        '    echo "interrupted: queued again, to go on from the last checkpoint" >&2',
        '    scontrol requeue "$job"',
        '    exit "$code"',
        "  fi",
        "fi",
    ]
    if array:
        table = torchrun.line(["report", str(top)], nodes=1, processes=1)
        lines += [f"{shlex.join(table)}  # table and page of what the sweep has by now"]
    lines += ['exit "$code"']
    return "\n".join(lines) + "\n"


def _escaped(path: Path) -> str:
    """A file name pattern of sbatch: what stands before the file itself is taken as it is."""
    return str(path.parent).replace("%", "%%") + "/" + path.name


def _directive(value: str) -> str:
    """A value as sbatch reads it from a script: in quotes, if it holds what would end it."""
    return (
        '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        if re.search(r"[\s\"'#\\]", value)
        else value
    )


def _caches(top: Path) -> list[str]:
    lines = []
    for name, folder in _CACHES.items():
        # Models that were downloaded before are found where they are: compute nodes often have no network.
        if name == "HF_HUB_CACHE" and (Path.home() / ".cache/huggingface/hub").is_dir():
            continue
        lines += [f"export {name}=${{{name}:-{shlex.quote(str(top / 'cache' / folder))}}}"]
    return lines


def submit(place: RunFolder, text: str) -> int:
    """Keeps the script in the folder and submits it; the job's number.

    Raises:
        UserError: There is no Slurm here, it refuses the job (its own words are passed on), or one is under way.
    """
    if alive := [job for job in jobs(place) if job.state in _ALIVE]:
        raise UserError(
            f"job {alive[0].number} of {place.path} is {alive[0].state}, and two would write to the same files",
            str(place.launch / JOBS),
            f"wait for it, or end it first: scancel {alive[0].number.partition('_')[0]}",
        )
    path = place.launch / SCRIPT
    write_text(path, text)
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch on this machine",
            "option --slurm",
            f"run this on the login node of a Slurm cluster; the script is in {path}",
        )
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"sbatch refuses the job: {done.stderr.strip() or 'without a word'}",
            str(path),
            "see `sinfo` for partitions and limits",
        )
    number = int(done.stdout.split()[-1].partition(";")[0])  # what a site's own filters say stands before it
    with open(place.launch / JOBS, "a", encoding="utf-8") as file:
        file.write(f"{number}\n")
    return number


def jobs(place: RunFolder) -> list[Job]:
    """What Slurm says of the jobs of a run or sweep, the newest last; none where there is no Slurm or no job."""
    path = place.launch / JOBS
    if not path.is_file() or shutil.which("squeue") is None:
        return []
    found = []
    for number in path.read_text(encoding="utf-8").split()[-_NEWEST:]:
        asked = _ask(
            "squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={number}"
        )
        asked = asked or _ask(
            "sacct", "--noheader", "-X", "-P", "--format=JobID,State,Reason", f"--jobs={number}"
        )
        # sacct says "CANCELLED by 1000"
        found += [Job(one, state.partition(" ")[0], reason) for one, state, reason in asked] or [
            Job(number, "UNKNOWN", "Slurm keeps no record of it")
        ]
    return found


def _ask(*command: str) -> list[tuple[str, str, str]]:
    if shutil.which(command[0]) is None:
        return []
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{command[0]} has not answered within {_PATIENCE_S} s", " ".join(command), "try again later"
        ) from error
    rows = [line.split("|") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [
        (row[0].strip(), row[1], "" if row[2] in ("None", "") else row[2]) for row in rows if len(row) == 3
    ]


def log(place: RunFolder, job: Job) -> Path:
    """The file that a job writes to."""
    return place.launch / f"{job.number}.log"
