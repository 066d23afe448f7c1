"""Real models and datasets, offline: a tiny chat model in a folder, and files as they are released."""

from dataclasses import replace

import pandas as pd
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("trl", reason="training needs the extra `train`")

from chapters import execute  # noqa: E402

from corea.engines.loading import load_model  # noqa: E402
from corea.runs import FORMATS, read_model, read_settings, run_records  # noqa: E402
from corea.tasks.suites import PAPERS  # noqa: E402
from corea.workflow.stand_ins import CHAT_TEMPLATE, made_up, tiny_model  # noqa: E402

QUICK = {"n_resamples": 5, "batch_size": 64, "n_samples": 2, "max_completion_tokens": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder with the datasets in the form of their original files, as long as their parts need."""
    return made_up(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def hub_model(tmp_path_factory):
    """Folder of a chat model with one token a byte, as a hub would give it."""
    return tiny_model(tmp_path_factory.mktemp("hub") / "Tiny-Instruct", steps=30)


@pytest.fixture(scope="module")
def work(tmp_path_factory, data):
    """Folder for runs; the store is below it, and the datasets are found."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COREA_DATA", str(data))
        yield folder


def run(work, notebook, name, **parameters):
    """Execute a notebook's code; its folder and what it shows."""
    folder = work / name
    folder.mkdir()
    shown = execute(notebook, {**parameters, "profile": "gpu", "output_dir": str(folder)})
    return folder, "".join(shown)


@pytest.fixture(scope="module")
def base(work, hub_model):
    return run(work, "base_model", "base", model=str(hub_model), engine="transformers", **QUICK)


def test_a_base_model_is_asked_all_datasets_of_the_papers(base, hub_model):
    folder, shown = base
    model = read_model(folder)
    assert (model.suite, model.architecture, model.informed) == ("papers", "qwen2", None)
    weights = load_model(hub_model, device="cpu")[0].num_parameters()
    assert model.parameters == weights
    records = run_records([folder])
    assert set(records["dataset"]) == set(PAPERS.datasets)
    assert (records["prompt_tokens"] > 100).all()
    kept = pd.read_parquet(folder / "samples.parquet")
    assert set(kept["dataset"]) == set(PAPERS.datasets) - {"gpqa"}  # its text is not published
    assert "What is the last digit of" in shown
    assert "put your final answer within" in shown


def test_a_model_is_reinforced_and_asked_again(work, base):
    folder, _ = run(
        work,
        "train",
        "l1",
        base=str(base[0]),
        group_size=2,
        steps=2,
        batch=4,
        checkpoint_every=1,
        n_train=4,
        n_validation=2,
        more={"micro_batch": 2, "lora_rank": 4, "gradient_checkpointing": True},
        **QUICK,
    )
    model = read_model(folder)
    assert model.suite == "papers"
    trained, tokenizer = load_model(model.checkpoint, device="cpu")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    before, _ = load_model(read_model(base[0]).checkpoint, device="cpu")
    changed = {
        name.split(".")[-2]
        for (name, old), (_, new) in zip(
            before.named_parameters(), trained.named_parameters(), strict=True
        )
        if not torch.equal(old, new)
    }
    assert changed == {"q_proj", "v_proj"}  # what peft adapts; the rest is the base model's
    assert len(pd.read_csv(folder / "dynamics.csv")) == 2
    assert set(run_records([folder])["dataset"]) == set(PAPERS.datasets)


@pytest.fixture(scope="module")
def decision_base(work, hub_model):
    return run(
        work, "decision_base", "decision_base", model=str(hub_model), engine="transformers", **QUICK
    )


def test_decisions_are_asked_in_every_format(decision_base):
    folder, shown = decision_base
    for name, words in FORMATS.items():
        records = run_records([folder], reasoning=name)
        assert set(records["dataset"]) == set(PAPERS.decision_datasets)
        assert words in shown


def test_a_model_is_warmed_up_asked_by_letters_and_in_other_orders(work, hub_model):
    folder, shown = run(
        work,
        "decision_base",
        "decision_letters",
        model=str(hub_model),
        engine="transformers",
        labels="letters",
        longest=60,
        test_decisions="options",
        rotations=2,
        warm_up_steps=2,
        n_warm_up=8,
        warm_up_tokens=8,
        n_held_out=2,
        batch=2,
        more={"lora_rank": 2},
        **QUICK,
    )
    model = read_model(folder)
    assert (model.labels, model.longest) == ("letters", 60)
    assert model.checkpoint != str(hub_model)
    load_model(model.checkpoint, device="cpu")
    for name in FORMATS:
        records = run_records([folder], reasoning=name)
        assert records["answer"].notna().all()
        assert set(records["gold"]) <= set("ABCDE")
    assert "before and after a warm-up of 2 steps" in shown
    assert "mean of the orders" in shown
    assert "characters are left out" in shown
    assert "completions did not close their reasoning" in shown
    assert "probability among the options" in shown
    trained, _ = run(
        work,
        "decision_train",
        "letters_sft",
        base=str(folder),
        task="messages",
        method="sft",
        steps=1,
        batch=4,
        n_train=4,
        n_validation=2,
        **QUICK,
    )
    assert replace(read_model(trained), **{name: getattr(model, name) for name in (
        "system", "method", "seed", "selected_step", "checkpoint"
    )}) == model  # fmt: skip
    assert run_records([trained])["answer"].notna().all()
    assert set(run_records([trained])["answer"]) <= {"A", "B"}


@pytest.mark.parametrize("task", ["choices", "messages"])
@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_decisions_are_trained_on_each_task(work, decision_base, task, method):
    folder, _ = run(
        work,
        "decision_train",
        f"{method}_{task}",
        base=str(decision_base[0]),
        task=task,
        method=method,
        steps=1,
        batch=4,
        group_size=2,
        checkpoint_every=1,
        calibration_weight=0.01,
        n_train=4,
        n_validation=2,
        **QUICK,
    )
    records = run_records([folder])
    assert set(records["dataset"]) == set(PAPERS.tasks[task])
    assert set(records["reasoning"]) == {"none" if method == "sft" else "sampled"}
    if method == "grpo":
        settings = read_settings(folder)
        assert (settings["start"], settings["calibration_weight"]) == ("Base", 0.01)


def test_a_probe_and_a_router_are_trained(work, base):
    folder, _ = run(
        work,
        "confidence_models",
        "judges",
        model=str(base[0]),
        base=str(base[0]),
        n_train=8,
        n_answers=2,
        hidden_sizes=[4, 4],
        probe_epochs=1,
        router_steps=1,
        router_batch=4,
        **QUICK,
    )
    records = run_records([folder])
    assert records["probe"].notna().all()
    assert (records["router_prompt_tokens"] > 100).all()
