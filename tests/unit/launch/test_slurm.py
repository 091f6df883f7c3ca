"""The job script, run by bash with stand-ins for Slurm's commands; tests/slurm has the real ones."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.launch import slurm, torchrun
from luthier.run_folder import RunFolder, write_text

ODD = 'it\'s 100% "odd" $HOME; *'


def script(place: RunFolder, **changes: object) -> str:
    settings: dict[str, object] = {
        "nodes": 1,
        "processes": 2,
        "options": {"partition": "gpu"},
        "name": "tiny",
        **changes,
    }
    return slurm.script(place, ["run", "my recipe.yaml", "train.betas=[0.9, 0.95]"], **settings)  # type: ignore[arg-type]


def directives(text: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.MULTILINE))


def test_directives(tmp_path: Path) -> None:
    text = script(
        RunFolder(tmp_path / "run"),
        nodes=3,
        options={"time": "2:00:00", "cpus-per-task": "8", "signal": "B:USR1@300"},
    )
    assert directives(text) == {
        "job-name": "tiny", "nodes": "3", "ntasks-per-node": "1", "cpus-per-task": "8", "signal": "B:USR1@300",
        "time": "2:00:00", "output": f"{tmp_path}/run/launch/%j.log", "open-mode": "append",
    }  # fmt: skip
    assert "\n#SBATCH --requeue\n" in text and "SHUTDOWN_TIMEOUT=290" in text
    assert "cpus-per-task" not in directives(script(RunFolder(tmp_path), options={"cpus-per-gpu": "8"}))


def test_the_log_of_an_odd_folder(tmp_path: Path) -> None:
    output = directives(script(RunFolder(tmp_path / ODD)))["output"]
    assert output == f'"{tmp_path}/it\'s 100%% \\"odd\\" $HOME; */launch/%j.log"'


@pytest.mark.parametrize(
    ("given", "what"),
    [("partition", "no option"), ("partition=", "no option"), ("train.epochs=2", "no option"), ("time=1\n#x", "no option"),
     ("nodes=2", "nodes is not for --slurm to say: it comes from --nodes"), ("array=0-3", "it comes from --sweep"),
     ("output=x.log", "the run folder"), ("signal=USR2@60", "waits for USR1")],
)  # fmt: skip
def test_options_that_cannot_be(given: str, what: str) -> None:
    with pytest.raises(UserError, match=re.escape(what)):
        slurm.options(["time=1:00:00", given])


def test_options() -> None:
    given = ["partition=gpu", "time=1:00:00", "gres=gpu:2", "comment=a=b"]
    assert slurm.options(given) == {"partition": "gpu", "time": "1:00:00", "gres": "gpu:2", "comment": "a=b"}


def program(folder: Path, name: str, text: str) -> None:
    write_text(folder / name, f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, list[str]]]:
    """Runs a script as the batch step of job 17, with what ``srun`` does given; exit code, log, what was called."""
    programs, calls = tmp_path / "programs", tmp_path / "calls"
    program(
        programs, "scontrol", f'[ "$1" = show ] && printf "node7\\nnode8\\n" || echo scontrol "$@" >> {calls}'
    )
    program(programs, "scancel", f'echo scancel "$@" >> {calls}; kill -TERM $(cat {tmp_path}/step)')
    monkeypatch.setattr(slurm, "_CACHES", {})

    def run(text: str, srun: str, *, state: str = "RUNNING", task: str = "") -> tuple[int, str, list[str]]:
        calls.write_text("")
        program(programs, "squeue", f"echo {state}")
        program(programs, "srun", f"echo $$ > {tmp_path}/step\n{srun}")
        environment = {
            **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "6",
            "SLURM_JOB_NODELIST": "node[7-8]", "STOPPED": "", "SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_JOB_ID": "16",
        }  # fmt: skip
        environment.pop("OMP_NUM_THREADS", None)
        done = subprocess.run(
            ["bash", "-c", text], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines()

    return run


def stops(kind: str, code: int = 1) -> str:
    """What a step does that ends with a word."""
    return f"""echo '{{"kind": "{kind}"}}' > "$LUTHIER_RUN/stopped.json"; exit {code}"""


SAVES = 'mkdir -p "$LUTHIER_RUN/checkpoints/step-4"'


@pytest.fixture
def place(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / ODD)
    found.create()
    return found


def test_the_step_gets_line_folder_and_threads(
    job: Callable[..., tuple[int, str, list[str]]], place: RunFolder
) -> None:
    code, said, calls = job(
        script(place), 'printf "<%s>" "$@" "$LUTHIER_RUN" $OMP_NUM_THREADS $SRUN_CPUS_PER_TASK'
    )
    line = torchrun.line(["run", "my recipe.yaml", "train.betas=[0.9, 0.95]"], nodes=1, processes=2)
    assert said == "".join(f"<{part}>" for part in [*line, place.path, 3, 6]) and (code, calls) == (0, [])


def test_several_machines_meet_on_the_first(
    job: Callable[..., tuple[int, str, list[str]]], place: RunFolder
) -> None:
    said = job(script(place, nodes=2), 'echo "$@"')[1]
    assert "--nnodes=2" in said and "--rdzv-endpoint=node7:20017 " in said and "--standalone" not in said


@pytest.mark.parametrize(
    ("step", "state", "again"),
    [(f"{SAVES}; {stops('interrupted')}", "RUNNING", True),  # Slurm itself has told the step to end
     (f"{SAVES}; {stops('interrupted')}", "CANCELLED", False),
     (f"{SAVES}; {stops('interrupted')}", "COMPLETING", False),
     (stops("interrupted"), "RUNNING", False),  # nothing was done in this turn
     (f"{SAVES}; {stops('refused')}", "RUNNING", False),
     (f"{SAVES}; {stops('mistake', 2)}", "RUNNING", False),
     (f"{SAVES}; {stops('defect', 3)}", "RUNNING", False),
     (f"{SAVES}; kill -9 $$", "RUNNING", False),
     (f"{SAVES}; exit 0", "RUNNING", False)],
)  # fmt: skip
def test_only_what_was_interrupted_and_has_moved_is_queued_again(
    job: Callable[..., tuple[int, str, list[str]]], place: RunFolder, step: str, state: str, again: bool
) -> None:
    code, said, calls = job(script(place), step, state=state)
    assert calls == (["scontrol requeue 17"] if again else []), said
    assert (code == 0) == ("exit 0" in step)


def told(end: str) -> str:
    """A step whose job is told to give way, and which then ends in a way of its own."""
    return f"""trap '{end}' TERM; kill -USR1 $PPID; for _ in $(seq 300); do sleep 0.1; done; exit 99"""


@pytest.mark.parametrize(
    ("end", "again"),
    [(f'{SAVES}; echo "{{\\"kind\\": \\"interrupted\\"}}" > "$LUTHIER_RUN/stopped.json"; exit 1', True),
     (f"{SAVES}; exit 143", True),  # ended while it prepared or evaluated: nothing could be said
     ("exit 143", False),
     (f'{SAVES}; echo "{{\\"kind\\": \\"refused\\"}}" > "$LUTHIER_RUN/stopped.json"; exit 1', False),
     (f"{SAVES}; exit 0", False)],
)  # fmt: skip
def test_a_notice_reaches_the_step_whose_end_is_waited_for(
    job: Callable[..., tuple[int, str, list[str]]], place: RunFolder, end: str, again: bool
) -> None:
    code, said, calls = job(script(place), told(end))
    assert calls == ["scancel --signal=TERM 17.0", *(["scontrol requeue 17"] if again else [])], said
    assert code == int(re.findall(r"exit (\d+)", end)[0])
    assert ("not queued again" in said) == (end == "exit 143")


def test_an_earlier_stop_is_forgotten(
    job: Callable[..., tuple[int, str, list[str]]], place: RunFolder
) -> None:
    place.note_stopped("interrupted", 1, "", "", "")
    assert job(script(place), f"{SAVES}; kill -9 $$")[2] == []


def test_an_array_has_a_case_for_each_run(
    job: Callable[..., tuple[int, str, list[str]]], place: RunFolder
) -> None:
    runs = [
        (RunFolder(place.path / f"lr={rate}"), ["run", "my recipe.yaml", f"train.learning_rate={rate}"])
        for rate in (1, 2)
    ]
    for run, _ in runs:
        run.create()
    text = script(place, array=runs)
    assert directives(text)["array"] == "0-1" and directives(text)["output"].endswith('/launch/%A_%a.log"')
    text = re.sub(r"^.*luthier report.*$", "echo table", text, flags=re.MULTILINE)
    shows = f'echo "${{@: -1}} $LUTHIER_RUN"; {SAVES}; '
    code, said, calls = job(text, shows + stops("refused"), task="1")
    assert said.splitlines() == [f"train.learning_rate=2 {place.path}/lr=2", "table"] and (code, calls) == (
        1,
        [],
    )
    code, said, calls = job(text, shows.replace("step-4", "step-8") + stops("interrupted"), task="1")
    assert "table" not in said and calls == ["scontrol requeue 16_1"] and code == 1


def test_the_end_of_the_step_is_waited_for_whatever_the_script_hears(
    job: Callable[..., tuple[int, str, list[str]]], place: RunFolder
) -> None:
    step = (
        f"kill -TERM $PPID; sleep 1; kill -TERM $PPID; sleep 1; echo saved; {SAVES}; {stops('interrupted')}"
    )
    code, said, calls = job(script(place), step)
    assert said.startswith("saved") and calls == ["scontrol requeue 17"] and code == 1


def test_caches_stay_where_they_are_told_to(
    job: Callable[..., tuple[int, str, list[str]]],
    place: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # the caches again
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_DIR", "/scratch/me")
    for name in ("TRITON_CACHE_DIR", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    show = 'printf "%s\\n" "$TRITON_CACHE_DIR" "$WANDB_DIR" "$HF_HUB_CACHE"'
    assert job(script(place), show)[1].splitlines() == [
        f"{place.path}/cache/triton", "/scratch/me", f"{place.path}/cache/hub",
    ]  # fmt: skip
    (tmp_path / ".cache/huggingface/hub").mkdir(parents=True)  # models that are there already are used
    assert job(script(place), show)[1].splitlines()[2:] == [""]


def test_without_slurm_the_script_is_kept(place: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="there is no sbatch on this machine"):
        slurm.submit(place, "text")
    assert (place.launch / "slurm.sh").read_text() == "text" and slurm.jobs(place) == []


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a program in the place of one of Slurm's."""
    monkeypatch.setenv("PATH", f"{tmp_path}/programs:{os.environ['PATH']}")

    def put(name: str, text: str) -> None:
        program(tmp_path / "programs", name, text)

    return put


def test_what_slurm_refuses_is_said_in_its_words(place: RunFolder, cluster: Callable[..., None]) -> None:
    cluster("sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    with pytest.raises(UserError, match="invalid partition specified: gpu"):
        slurm.submit(place, "text")
    assert not (place.launch / "jobs.txt").exists()


def test_jobs_of_a_run(
    place: RunFolder, cluster: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster("sbatch", "echo 'Welcome to the cluster: 3 projects'; echo '17;cluster'")
    cluster("squeue", "exit 1")
    assert slurm.submit(place, "text") == 17
    assert slurm.jobs(place) == [slurm.Job("17", "UNKNOWN", "Slurm keeps no record of it")]
    cluster("sacct", "echo '17|CANCELLED by 1000|None'")
    assert slurm.jobs(place) == [slurm.Job("17", "CANCELLED", "")]
    cluster("squeue", "echo '17_0|RUNNING|None'; echo '17_1|PENDING|Resources'")
    assert slurm.jobs(place) == [slurm.Job("17_0", "RUNNING", ""), slurm.Job("17_1", "PENDING", "Resources")]
    cluster("squeue", 'for last; do :; done; echo "${last#--jobs=}|RUNNING|None"')
    (place.launch / "jobs.txt").write_text("".join(f"{number}\n" for number in range(1, 9)))
    assert [job.number for job in slurm.jobs(place)] == ["4", "5", "6", "7", "8"]  # the newest of many
    with pytest.raises(UserError, match="is RUNNING, and two would write"):
        slurm.submit(place, "text")
    monkeypatch.setattr(slurm, "_PATIENCE_S", 0.05)
    cluster("squeue", "exec sleep 5")
    with pytest.raises(UserError, match="squeue has not answered"):
        slurm.jobs(place)
