"""`luthier launch --slurm` on a real Slurm of one node, which is set up here and torn down again; needs root and apt.

Two processes train under it; a run that is told to give way, queued again and then cancelled ends with the bits of one
that was left alone; a sweep runs as an array job, with one run that is refused.
"""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.fixtures.tiny_run import write_recipe  # noqa: E402

PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
PATIENCE_S = 240
NUM_STEPS = 400

CONFIGURATION = """
ClusterName=luthier
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={top}/munge/socket
CredType=cred/munge
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/spool
SlurmctldPidFile={top}/slurmctld.pid
SlurmdPidFile={top}/slurmd.pid
SlurmctldLogFile={top}/slurmctld.log
SlurmdLogFile={top}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def skip(why: str) -> None:
    """Ends well, without a test."""
    print(f"skipped: {why}")
    sys.exit(0)


def install() -> None:
    if shutil.which("apt-get") is None:
        skip("no apt here to install Slurm with")
    if os.geteuid() != 0:
        skip(f"Slurm's daemons need root, and this is {getpass.getuser()}")
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if all(shutil.which(program) for program in PROGRAMS):
        return
    apt = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *command], env=apt, capture_output=True, text=True, check=False)
        if done.returncode:
            skip(f"apt-get {command[0]} fails: {done.stderr.strip()[-300:]}")


class Cluster:
    """munged, slurmctld and slurmd on loopback, with all of their files in one folder."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Cluster":
        return self

    def up(self) -> None:
        """Returns when jobs can be submitted."""
        self.top.chmod(0o755)
        for name in ("state", "spool", "munge"):
            (self.top / name).mkdir(mode=0o755)
        key = self.top / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for path in (self.top / "munge", key):
            shutil.chown(path, "munge", "munge")
        configuration = self.top / "slurm.conf"
        text = CONFIGURATION.format(
            top=self.top, host=socket.gethostname().partition(".")[0], ports=free_ports(2)
        )
        configuration.write_text(text)
        os.environ["SLURM_CONF"] = str(configuration)
        munge = {
            "socket": "socket",
            "key-file": "key",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        options = [f"--{name}={self.top}/munge/{file}" for name, file in munge.items()]
        self.start("runuser", "-u", "munge", "--", "munged", "--foreground", *options)
        wait("munged", lambda: (self.top / "munge" / "socket").exists(), 20)
        self.start("slurmctld", "-D", "-c")
        self.start("slurmd", "-D")
        wait("a node that is idle", lambda: said("sinfo", "--noheader", "--format=%T") == "idle", 60)

    def start(self, *command: str) -> None:
        """A daemon, whose words go into a file."""
        with open(self.top / f"{command[0]}.out", "ab") as out:
            self.daemons.append(subprocess.Popen(command, stdout=out, stderr=out))

    def __exit__(self, *error: object) -> None:
        if self.daemons[2:]:
            for job in said("squeue", "--noheader", "--format=%A").split():
                said("scancel", job)
            try:
                wait("an empty queue", lambda: not said("squeue", "--noheader"), 60)
            except AssertionError as late:
                print(late)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        if error[0] is not None:
            for file in (*sorted(self.top.glob("*.log")), *sorted(self.top.glob("*.out"))):
                print(f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def said(*command: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def wait(what: str, ready: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    began = time.monotonic()
    while not ready():
        assert time.monotonic() - began < patience_s, f"no {what} after {patience_s:.0f} s"
        time.sleep(0.2)


def luthier(*arguments: object, code: int = 0) -> str:
    """The command line, in a process of its own; what it prints."""
    command = [sys.executable, "-m", "luthier", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{command} ends with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def launch(*arguments: object) -> str:
    """Submits; the job's number."""
    out = luthier("launch", *arguments)
    assert "#SBATCH --requeue" in out, out
    return out.partition("submitted as job ")[2].partition(";")[0]


def state(job: str) -> str:
    return said("squeue", "--noheader", "--array", "--states=all", "--format=%T", f"--jobs={job}").replace(
        "\n", " "
    )


def steps(run: Path) -> int:
    history = run / "history.jsonl"
    return len(history.read_bytes().splitlines()) if history.is_file() else 0


def course(run: Path) -> list[dict[str, object]]:
    """The history without what the clock and the machine decide."""
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    changing = ("seconds", "tokens_per_s", "memory_gib", "peak_memory_gib", "findings")
    for row in rows:
        for part in (row, row.get("eval", {})):
            for name in changing:
                part.pop(name, None)
    return rows


def log(run: Path, job: str) -> str:
    return (run / "launch" / f"{job}.log").read_text(errors="replace")


def finish(run: Path, job: str) -> None:
    wait(f"end of job {job}", lambda: state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"))
    assert state(job) == "COMPLETED", f"job {job} is {state(job)}:\n{log(run, job)[-5000:]}"


def two_processes(recipe: Path, top: Path, options: Sequence[str]) -> Path:
    run = top / "left alone"
    job = launch(recipe, "--run", run, "--processes", 2, "--slurm", *options)
    assert f"{job} " in luthier("status", run)
    assert f"job {job} of" in luthier("launch", recipe, "--run", run, "--slurm", *options, code=2)
    finish(run, job)
    assert json.loads((run / "environment.json").read_text())["num_processes"] == 2
    assert (run / "report.html").is_file() and (run / "scores.json").is_file()
    assert "COMPLETED" in luthier("status", run)
    return run


def given_way(recipe: Path, top: Path, options: Sequence[str], alone: Path) -> None:
    run = top / "given way"
    job = launch(recipe, "--run", run, "--processes", 2, "--slurm", *options)
    wait("40 steps", lambda: steps(run) > 40)
    assert state(job) == "RUNNING" and f"of {NUM_STEPS}" in luthier("status", run)
    said("scancel", "--signal=USR1", "--batch", job)
    wait("second turn in the queue", lambda: state(job) == "PENDING")
    reached = steps(run) - 1
    assert 40 <= reached < NUM_STEPS and "queued again, to go on" in log(run, job), log(run, job)[-5000:]
    assert "PENDING" in luthier("status", run)
    said(
        "scontrol", "update", f"JobId={job}", "StartTime=now"
    )  # Slurm keeps a requeued job back for two minutes
    wait("40 steps of the second turn", lambda: steps(run) > reached + 40)
    assert f"resuming from {run}/checkpoints/step-{reached}" in (run / "run.log").read_text()
    print(f"  given way after step {reached}, going on")
    said("scancel", job)
    wait("end of the cancelled job", lambda: state(job) == "CANCELLED")
    assert steps(run) - 1 < NUM_STEPS and log(run, job).count("queued again, to go on") == 1
    job = launch(recipe, "--run", run, "--processes", 2, "--slurm", *options)
    finish(run, job)
    assert course(run) == course(alone)
    weights = [(each / "adapter" / "adapter_model.safetensors").read_bytes() for each in (run, alone)]
    assert weights[0] == weights[1]


def sweep(recipe: Path, top: Path, options: Sequence[str]) -> None:
    folder = top / "sweep"
    axis = "train.learning_rate=1e-3,1e-2,1e30"
    job = launch(recipe, "train.max_steps=20", "--run", folder, "--slurm", *options, "--sweep", axis)
    wait("end of the array", lambda: set(state(job).split()) <= {"COMPLETED", "FAILED"} and state(job))
    table = json.loads((folder / "table.json").read_text())
    found = {run["folder"]: run for setting in table["settings"] for run in setting["runs"]}
    states = {name: run["state"] for name, run in found.items()}
    logs = "\n".join(file.read_text(errors="replace")[-2000:] for file in (folder / "launch").glob("*.log"))
    wanted = {
        "learning_rate=1e-3": "finished",
        "learning_rate=1e-2": "finished",
        "learning_rate=1e30": "failed",
    }
    assert states == wanted, f"{states}\n{logs}"
    assert found["learning_rate=1e30"]["reason"], found
    assert len({(folder / name / "data/train.arrow").stat().st_ino for name in found}) == 1, "prepared once"
    assert table["settings"][1]["against_first"], table
    assert (folder / "report.html").is_file() and "COMPLETED" in luthier("status", folder)


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that all is taken down
    install()
    began = time.monotonic()
    top = Path(tempfile.mkdtemp(prefix="luthier-slurm-"))
    try:
        work = top / "100% of 'odd' names"
        work.mkdir()
        os.chdir(work)
        recipe = write_recipe(work, train={"max_steps": NUM_STEPS, "eval_every_steps": 100})
        options = ("partition=main", "time=10")

        def tell(what: str) -> None:
            print(f"{time.monotonic() - began:5.0f} s  {what}", flush=True)

        with Cluster(top) as cluster:
            cluster.up()
            tell("Slurm is up: " + said("sinfo", "--version"))
            alone = two_processes(recipe, work, options)
            tell("two processes trained, evaluated and reported")
            given_way(recipe, work, options, alone)
            tell(
                "given way, queued again, cancelled, launched again: the bits of the run that was left alone"
            )
            sweep(recipe, work, options)
            tell("a sweep as an array, prepared once, one of three runs refused, one table")
        tell("torn down")
    finally:
        shutil.rmtree(top, ignore_errors=True)


if __name__ == "__main__":
    main()
