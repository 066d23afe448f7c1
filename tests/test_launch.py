"""Trainings in several processes: the job as a file, who works on it, and how all of them end."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

pytest.importorskip("trl", reason="training needs the extra `train`")

import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import (
    _validate_launch_command,
    launch_command_parser,
)
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from decide_in_process import TRAINING, VALIDATION
from safetensors.torch import load_file

from corea import stages
from corea.decisions import trainer as decision_trainer
from corea.decisions.settings import DecisionSettings
from corea.decisions.trainer import train_decisions
from corea.rlcc.settings import GRPOSettings
from corea.rlcc.trainer import train_grpo
from corea.tasks.questions import Question
from corea.training import launch, loop
from corea.training.launch import Job
from corea.training.settings import SFTSettings, TrainingError
from corea.training.sft import train_sft

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ROOT / "profiles"
CONFIGURATIONS = sorted((PROFILES / "accelerate").glob("*.yaml"))
CPU2 = str(PROFILES / "accelerate" / "cpu2.yaml")
ADAPTED = SFTSettings(
    steps=4, batch=16, micro_batch=8, checkpoint_every=2, lora_rank=4, lora_dropout=0.0
)
QUESTIONS = [Question("chains", str(i), f"{i}+1", str(i + 1), "choice", i / 2) for i in range(3)]


# --- jobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job",
    [
        Job(train_sft, "base", ADAPTED, [{"prompt": "a\n", "completion": "é"}]),
        Job(train_grpo, "org/model", GRPOSettings("brier"), QUESTIONS[:2], QUESTIONS[2:]),
        Job(train_decisions, "base", DecisionSettings(mask_decision=True), TRAINING, VALIDATION),
    ],
    ids=lambda job: job.trains.__name__,
)
def test_a_job_is_read_as_it_was_written(tmp_path, job):
    job.write(tmp_path / "run")
    read = Job.read(tmp_path / "run")
    assert read == job
    for row in read.validation or ():
        hash(row)


JOB_FILE = (
    '{"trains": "%s", "base": "b", "rows": [], "validation": null,'
    ' "settings": ["corea.training.settings.SFTSettings", %s]}'
)


@pytest.mark.parametrize(
    "content",
    [
        *(None, "{", "[]", "{}"),
        JOB_FILE % ("corea.training.sft.train_dpo", "{}"),
        JOB_FILE % ("os.system", "{}"),
        JOB_FILE % ("corea.training.sft.train_sft", '{"colour": 1}'),
    ],
)
def test_what_is_no_job_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "job.json").write_text(content)
    with pytest.raises(TrainingError, match=r"job\.json is no job \(\w+: .*; expected what"):
        Job.read(tmp_path)


def test_a_wrong_setting_of_a_job_is_named(tmp_path):
    Job(train_sft, "base", ADAPTED, []).write(tmp_path)
    content = json.loads((tmp_path / "job.json").read_text())
    content["settings"][1]["lora_rank"] = -1
    (tmp_path / "job.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lora_rank is -1; expected"):
        Job.read(tmp_path)


# --- configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "", "- a", "num_processes: 2", "a: [", "\0"])
def test_what_is_no_configuration_is_named(tmp_path, content):
    path = tmp_path / "some.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TrainingError, match=r"some\.yaml: no accelerate configuration"):
        launch.configuration(path)
    with pytest.raises(TrainingError, match=r"some\.yaml: no accelerate configuration"):
        launch.start(Job(train_sft, "base", ADAPTED, []), tmp_path / "run", path)
    assert not (tmp_path / "run").exists()


def environment(path):
    """What `accelerate launch` would tell the processes it starts with a configuration."""
    parser = launch_command_parser()
    rank = ["--machine_rank", "1", "--main_process_ip", "node1", "--main_process_port", "29500"]
    several = load_config_from_file(str(path)).num_machines > 1
    args = parser.parse_args(
        [
            "--config_file",
            str(path),
            *(rank if several else []),
            "-m",
            "corea.training.launch",
            "folder",
        ]
    )
    args, defaults, _ = _validate_launch_command(args)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        command, found = prepare_deepspeed_cmd_env(args)
        assert command is None  # torchrun on each machine, not DeepSpeed's launcher
    elif args.use_fsdp or args.multi_gpu:
        found = prepare_multi_gpu_env(args)
    else:
        _, found = prepare_simple_launcher_cmd_env(args)
    return {
        name: value
        for name, value in found.items()
        if name.startswith(("ACCELERATE", "FSDP")) and value != os.environ.get(name)
    }


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_accelerate_reads_the_committed_configurations(path, monkeypatch):
    read = load_config_from_file(str(path))
    assert launch.configuration(path)["num_processes"] == read.num_processes
    kinds = {"cpu2": "MULTI_GPU", "one": "NO", "fsdp": "FSDP"}
    assert read.distributed_type == kinds.get(path.stem, "DEEPSPEED")
    for name, value in environment(path).items():
        monkeypatch.setenv(name, value)
    shards = {"zero3": "ZeRO-3", "zero3_two_machines": "ZeRO-3", "fsdp": "FSDP"}
    assert loop.sharded_by() == shards.get(path.stem, "")
    for precision in ("float32", "bfloat16"):
        loop.check_processes(replace(ADAPTED, precision=precision))
        loop.check_processes(GRPOSettings(rollouts="trl", precision=precision))
    if path.stem in shards:
        with pytest.raises(TrainingError, match="all weights in every process"):
            loop.check_processes(GRPOSettings())
    else:
        loop.check_processes(GRPOSettings())


# --- processes that train -------------------------------------------------------------------------


def test_two_processes_train_what_one_does(decider, tmp_path, capsys, monkeypatch):
    """A stage of a notebook, by `accelerate launch`: the same step, and one entry in the store."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made, printed = {}, {}
    for accelerate in ("", CPU2):
        made[accelerate] = stages.supervised(
            decider, TRAINING, ADAPTED, accelerate=accelerate, root=tmp_path
        )
        printed[accelerate] = capsys.readouterr()
    one, two = made.values()
    assert one.name != two.name
    asked = json.loads((two / "request.json").read_text())["spec"]
    assert asked.pop("accelerate") == launch.configuration(CPU2)
    assert asked == json.loads((one / "request.json").read_text())["spec"]
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    losses = [pd.read_csv(folder / "dynamics.csv") for folder in (one, two)]
    pd.testing.assert_frame_equal(*losses, rtol=1e-3)
    before, alone, together = (
        load_file(folder / "model.safetensors")
        for folder in (decider, one / "model", two / "model")
    )
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(before[name], weight) for name, weight in together.items())
    assert {stream.err for stream in printed.values()} == {""}
    said = [stream.out.splitlines() for stream in printed.values()]
    assert [line.split(":")[:2] for line in said[0]] == [line.split(":")[:2] for line in said[1]]
    assert all(line.startswith("progress: step ") for line in said[1])
    again = stages.supervised(decider, TRAINING, ADAPTED, accelerate=CPU2, root=tmp_path)
    assert again == two
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted(
        path.name for path in (one, two)
    )


# each process writes down at its end how it was spread
SPREAD = """
import atexit, os, sys
from pathlib import Path
def write():
    if state := sys.modules.get("accelerate.state"):
        kind = str(state.AcceleratorState._shared_state.get("distributed_type"))
        Path(os.environ["SPREAD"], str(os.getpid())).write_text(kind)
atexit.register(write)
"""


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_deepspeed_trains_what_two_plain_processes_do(decider, tmp_path, monkeypatch, name):
    """On the CPU, which DeepSpeed can use too: the committed configurations, for two processes."""
    pytest.importorskip("deepspeed", reason="ZeRO needs the extra `gpu`")
    sharded = {**launch.configuration(PROFILES / "accelerate" / f"{name}.yaml"), "num_processes": 2}
    (tmp_path / "sharded.yaml").write_text(yaml.safe_dump(sharded))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SPREAD)
    own = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    for variable, value in {**own, "PYTHONPATH": str(tmp_path / "site")}.items():
        monkeypatch.setenv(variable, value)
    settings = DecisionSettings(
        steps=2, batch=16, micro_batch=4, group_size=4, checkpoint_every=1, rollouts="trl"
    )

    def train(**own):
        if name == "zero3":  # which decisions refuse
            return stages.supervised(decider, TRAINING, ADAPTED, **own)
        return stages.decisions_reinforced(decider, TRAINING[:16], VALIDATION, settings, **own)

    dynamics, spread = [], []
    for accelerate in (CPU2, str(tmp_path / "sharded.yaml")):
        told = tmp_path / f"told-{len(dynamics)}"
        told.mkdir()
        monkeypatch.setenv("SPREAD", str(told))
        folder = train(accelerate=accelerate, root=tmp_path)
        dynamics.append(
            pd.read_csv(folder / "dynamics.csv").drop(columns="seconds", errors="ignore")
        )
        spread.append({path.read_text() for path in told.iterdir()} - {"None"})
        stages_tokenizer(folder / "model")  # whole weights
    assert spread == [{"DistributedType.MULTI_CPU"}, {"DistributedType.DEEPSPEED"}]
    pd.testing.assert_frame_equal(*dynamics, rtol=1e-3, atol=1e-6)


def test_stages_pass_their_jobs_to_the_processes(decider, tmp_path, monkeypatch):
    jobs = []

    def start(job, folder, accelerate):
        jobs.append((job, accelerate))
        (folder / "made").touch()

    monkeypatch.setattr(launch, "start", start)
    own = {"accelerate": CPU2, "root": tmp_path}
    stages.reinforced(decider, QUESTIONS[:2], QUESTIONS[2:], GRPOSettings(), **own)
    decisions = DecisionSettings()
    stages.decisions_reinforced(decider, TRAINING, VALIDATION, decisions, **own)
    stages.supervised(decider, TRAINING[:2], ADAPTED, **own)
    table = pd.DataFrame(
        {"dataset": "chains", "question_id": ["0", "1", "2"], "system": "SLM", "correct": True}
    )
    monkeypatch.setattr("corea.engines.evaluation.read_samples", lambda _: table)
    stages.router(decider, QUESTIONS, tmp_path / "answers", ADAPTED, **own)
    trained = [job.trains for job, _ in jobs]
    assert trained == [train_grpo, train_decisions, train_sft, train_sft]
    assert {job.base for job, _ in jobs} == {str(decider)}
    assert {accelerate for _, accelerate in jobs} == {CPU2}
    assert jobs[0][0].rows == QUESTIONS[:2]
    assert jobs[1][0].validation == VALIDATION
    _, tokenizer = stages_tokenizer(decider)
    assert jobs[2][0].rows == decision_trainer.supervised_rows(tokenizer, TRAINING[:2])
    assert jobs[3][0].rows[0] == {"prompt": QUESTIONS[0].router_prompt, "completion": "1.000"}


def stages_tokenizer(folder):
    from corea.engines.loading import load_model

    return load_model(folder, device="cpu")


# --- how they end: with processes that only pretend -----------------------------------------------

PRETENDED = """
import os, subprocess, sys, time
from pathlib import Path
{body}
"""


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Function that puts a script in the place of `accelerate launch`."""

    def put(body):
        script = tmp_path / "pretend.py"
        script.write_text(PRETENDED.format(body=body))
        monkeypatch.setenv("COREA_LAUNCH", shlex.join([sys.executable, str(script)]))
        return tmp_path / "run"

    return put


def start(folder):
    launch.start(Job(train_sft, "base", ADAPTED, []), folder, CPU2)


def test_progress_is_passed_on_and_the_rest_is_not(pretend, capfd):
    folder = pretend(
        "print('progress: step 1 of 2', flush=True)\n"
        "print('weights are loaded')\n"
        "print('careful', file=sys.stderr)\n"
        "Path(sys.argv[-1], 'found').write_text(repr(sys.argv[1:]))"
    )
    start(folder)
    assert capfd.readouterr() == ("progress: step 1 of 2\n", "")
    arguments = (folder / "found").read_text()
    expected = ["--config_file", CPU2, "-m", "corea.training.launch", "--attached", str(folder)]
    assert arguments == repr(expected)
    assert [path.name for path in folder.iterdir()] == ["found"]  # the job is done


def test_an_error_of_the_processes_is_that_of_the_training(pretend, capfd):
    folder = pretend(
        "print('progress: step 1 of 2')\n"
        "for i in range(200): print(f'line {i}')\n"
        "for _ in range(2): print('error: TrainingError: step 2: the loss is nan')\n"
        "print('the traceback of it', file=sys.stderr)\n"
        "sys.exit(3)"
    )
    with pytest.raises(TrainingError) as caught:
        start(folder)
    said = str(caught.value)
    first = "the training ended with status 3: TrainingError: step 2: the loss is nan. The last "
    assert said.startswith(first)
    assert said.endswith("line 199\nthe traceback of it")
    assert "line 100\n" not in said
    assert (folder / "job.json").is_file()
    assert capfd.readouterr() == ("progress: step 1 of 2\n", "")


def test_an_error_without_words_is_one_too(pretend):
    with pytest.raises(TrainingError, match="ended with status -9: it printed no error of its own"):
        start(pretend("os.kill(os.getpid(), 9)"))


def test_a_process_says_what_went_wrong(tmp_path, capsys):
    with pytest.raises(TrainingError):
        launch.main([str(tmp_path)])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("error: TrainingError: ")
    assert "job.json is no job" in line


# as torchrun does: workers in sessions of their own, with the input of whoever started it
WORKERS = """
worker = "from corea.training.launch import _end_with_input as w; import threading, time; " \\
    "threading.Thread(target=w, daemon=True).start(); print('ready', flush=True); time.sleep(60)"
workers = [
    subprocess.Popen([sys.executable, "-c", worker], start_new_session=True, stdout=subprocess.PIPE)
    for _ in range(2)
]
for one in workers: one.stdout.readline()
Path(sys.argv[-1], "pids").write_text(" ".join(str(p) for p in [os.getpid(), *(w.pid for w in workers)]))
print("progress: begun", flush=True)
{more}
time.sleep(60)
"""


def alive(pid):
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def check_ended(folder):
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    assert len(pids) == 3
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_an_interrupt_ends_all_processes(pretend, monkeypatch):
    folder = pretend(WORKERS.format(more="import signal; signal.signal(15, signal.SIG_IGN)"))
    monkeypatch.setattr(launch, "_PATIENCE", 0.5)  # it does not listen to SIGTERM

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(folder)
    check_ended(folder)


def test_a_notebook_that_is_killed_takes_all_processes_with_it(pretend):
    folder = pretend(WORKERS.format(more="sys.stdin.read(); sys.exit(1)"))
    notebook = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys; from dataclasses import make_dataclass; from corea.training.launch import *; "
            "start(Job(main, 'base', make_dataclass('Settings', [])(), []), *sys.argv[1:])",
            *(folder, CPU2),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert notebook.stdout.readline() == "progress: begun\n"
    notebook.send_signal(signal.SIGKILL)
    notebook.wait()
    notebook.stdout.close()
    check_ended(folder)


# --- Slurm ----------------------------------------------------------------------------------------

SBATCH = PROFILES / "slurm" / "train_with_vllm.sbatch"
COMMANDS = {
    "scontrol": "echo node1; echo node2; echo node3",
    "curl": "echo curl $* >> {log}",
    "srun": (
        "echo srun $VLLM_SERVER_DEV_MODE $* >> {log}\n"
        'while [ "${{1#--}}" != "$1" ]; do shift; done\n'  # the command, on the second node
        'if [ "$1" = bash ]; then SLURM_NODEID=1 exec "$@"; fi\n'
        "exec sleep 60"
    ),
    "python": (
        "echo python $* >> {log}\n"
        'if [ "$3" = execute ]; then eval "$COREA_LAUNCH --config_file F"; fi'
    ),
}


@pytest.fixture
def slurm(tmp_path):
    """Function that runs the script where Slurm's commands only note how they were called."""
    log = tmp_path / "log"
    for name, body in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/bash\n" + body.format(log=log) + "\n")
        path.chmod(0o755)

    def run(*arguments):
        result = subprocess.run(
            ["bash", SBATCH, *arguments],
            env={
                **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "SLURM_JOB_NODELIST": "node[1-3]", "PYTHON": "python",
            },
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return result, log.read_text().splitlines() if log.exists() else []

    return run


def test_the_slurm_script_starts_the_server_and_the_training_on_their_nodes(slurm):
    result, log = slurm("paper", "train_l1", "Qwen/Qwen2.5-7B-Instruct")
    assert result.returncode == 0, result.stderr
    (server,) = [line for line in log if "cli.main serve" in line]
    assert server.startswith("srun 1 --nodes=1 --ntasks=1 --nodelist=node3 ")
    assert "serve Qwen/Qwen2.5-7B-Instruct --host 0.0.0.0 --port 8000" in server
    assert "--logprobs-mode processed_logprobs" in server
    assert any("http://node3:8000/health" in line for line in log if line.startswith("curl"))
    assert "python -m corea execute paper train_l1" in log
    (training,) = [line for line in log if "--nodelist=node1,node2" in line]
    assert training.startswith("srun --nodes=2 --ntasks=2 ")
    launched = (  # the server writes its line when it gets to it
        "python -m accelerate.commands.launch --machine_rank 1 --main_process_ip node1 "
        "--main_process_port 29500 --same_network --config_file F"
    )
    assert launched in log


def test_the_slurm_script_asks_for_what_it_needs(slurm):
    result, log = slurm("paper")
    assert result.returncode == 2
    assert "usage: sbatch --nodes=N" in result.stderr
    assert log == []
