"""Readers of other people's formats; the shipped tables are tested in test_records.py."""

import copy
import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from corea import adapters
from corea.adapters import FORMATS, harnesses, read, write_every_eval_ever
from corea.records import Records, RecordsError, records_from_columns

DATA = Path(__file__).parent / "data"
CHOICE = next(DATA.glob("lm_eval/dummy/samples_doubling_choice_*.jsonl"))
TEXT = next(DATA.glob("lm_eval/dummy/samples_doubling_2*.jsonl"))
EVAL, JSON = DATA / "inspect" / "letters.eval", DATA / "inspect" / "letters.json"
PROMPTFOO = DATA / "promptfoo" / "results.json"


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def column(records, name, by="question_id"):
    return dict(zip(records.table[by], records.table[name], strict=True))


# --- lm-evaluation-harness ------------------------------------------------------------------


def test_lm_eval_choices_have_the_probability_of_the_option_chosen():
    records = read("lm-eval", CHOICE)
    table = records.table
    logs = [[float(option[0][0]) for option in row["resps"]] for row in rows_of(CHOICE)]
    shares = [np.exp(row) / np.exp(row).sum() for row in logs]
    np.testing.assert_allclose(table["confidence"], [max(row) for row in shares])
    assert table["answer"].tolist() == [str(np.argmax(row)) for row in logs]
    assert table["correct"].tolist() == (table["answer"] == table["gold"]).tolist()
    assert table["correct"].tolist() == [True, False, False, False]
    assert set(table["system"]) == {"dummy"}
    assert set(table["dataset"]) == {"doubling_choice"}
    assert "the metric is acc; the file has acc, acc_norm" in records.notes


def test_lm_eval_of_another_metric_has_no_confidence():
    assert read("lm-eval", CHOICE, metric="acc_norm").table["confidence"].isna().all()


def test_lm_eval_counts_a_question_once():
    with pytest.raises(RecordsError, match="filter: none named, found 'strict-match', 'flex"):
        read("lm-eval", TEXT)
    with pytest.raises(RecordsError, match="filter: named 'none', found"):
        read("lm-eval", TEXT, filter="none")
    strict = read("lm-eval", TEXT, filter="strict-match").table["correct"].tolist()
    records = read("lm-eval", TEXT, filter="flexible-extract", system="m", dataset="d")
    assert strict == [False] * 4
    assert records.table["correct"].tolist() == [False, False, False, True]
    assert records.table[["dataset", "system"]].drop_duplicates().to_numpy().tolist() == [
        ["d", "m"]
    ]
    assert records.table["answer"].tolist() == ["l"] * 4
    assert "confidence: none in the file" in records.notes


def test_lm_eval_of_mutual_information_and_of_no_log_probabilities(tmp_path):
    row = rows_of(CHOICE)[0]
    row["metrics"] = ["acc", "acc_mutual_info"]
    row["resps"] = [[["-2", "False"]], [["-1", "True"]], [["-9", "False"]], [["-0.1", "False"]]]
    silent = {**row, "doc_id": 1, "resps": [[[0.0, False]]] * 4}
    one = {**row, "doc_id": 2, "resps": [[["-1", "True"]]], "metrics": ["acc"]}
    records = read("lm-eval", lines(tmp_path / "m" / "samples_t.jsonl", row, silent, one))
    assert records.table["confidence"].round(6).tolist()[0] == round(1 / (1 + math.exp(-1)), 6)
    assert records.table["confidence"].isna().tolist() == [False, True, True]
    assert "1 row(s) have log-probabilities of exactly 0; taken as missing" in records.notes


def test_lm_eval_of_older_versions(tmp_path):
    row = {
        "doc_id": 3,
        "target": "B",
        "resps": [["B"]],
        "filtered_resps": ["B"],
        "exact_match": 1.0,
    }
    table = read("lm-eval", lines(tmp_path / "m" / "samples_t.jsonl", row)).table
    assert table[["dataset", "question_id", "correct"]].to_numpy().tolist() == [["t", "3", True]]


# --- Inspect --------------------------------------------------------------------------------


def test_inspect_letters_of_scores_are_not_letters_of_answers():
    table = read("inspect", EVAL).table
    assert len(table) == 8
    first = table[table["sample"] == 0].set_index("question_id")
    assert first["answer"].to_dict() == {"one": "A", "two": "C", "three": "C", "zero": "A"}
    assert first["gold"].to_dict() == {"one": "A", "two": "B", "three": "C", "zero": "A"}
    assert first["correct"].to_dict() == {"one": True, "two": False, "three": True, "zero": True}
    assert set(table["sample"]) == {0, 1}
    assert set(table["prompt_tokens"]) == {20 + 7}  # those from the cache too
    assert set(table["completion_tokens"]) == {2}


def test_inspect_confidence_is_out_of_log_probabilities_unless_all_are_0():
    records = read("inspect", EVAL)
    confidence = column(records, "confidence")
    assert confidence["one"] == pytest.approx((math.exp(-0.1) + math.exp(-0.2)) / 2)
    assert confidence["two"] == pytest.approx((math.exp(-1) + math.exp(-0.5)) / 2)
    assert math.isnan(confidence["three"])
    assert math.isnan(confidence["zero"])
    assert "2 row(s) have log-probabilities of exactly 0; taken as missing" in records.notes


def test_inspect_json_is_read_as_the_zip_is():
    zipped, listed = (read("inspect", path).table for path in (EVAL, JSON))
    key = ["question_id", "sample"]
    both = zipped.merge(listed, on=key)
    assert len(both) == 4
    for name in ("correct", "answer", "prompt_tokens"):
        assert (both[f"{name}_x"] == both[f"{name}_y"]).all()


def test_inspect_calls_that_failed():
    wrong, out = read("inspect", JSON), read("inspect", JSON, errors="leave out")
    assert wrong.table.set_index("question_id").loc["broken", "correct"] == np.False_
    assert "1 record(s) of calls that failed count as wrong" in wrong.notes
    assert "broken" not in set(out.table["question_id"])
    assert "1 call(s) failed and made no record" in out.notes
    with pytest.raises(ValueError, match="errors"):
        read("inspect", JSON, errors="no")


def changed(path, change):
    log = json.loads(JSON.read_text())
    log["samples"] = [sample for sample in log["samples"] if sample["scores"]]
    change(log)
    path.write_text(json.dumps(log))
    return path


def give(value, name="choice"):
    def change(log):
        for sample in log["samples"]:
            sample["scores"][name] = {"value": value, "metadata": {"stated": 0.7}}

    return change


@pytest.mark.parametrize(
    ("value", "threshold", "right"),
    [("C", None, True), ("N", None, False), (1, None, True), (0.0, None, False), (True, None, True),
     ("P", 0.5, True), ("P", "0.6", False), (0.25, 0.2, True), (7, 8, False), (9, 8, True),
     (1, 8, False)],
)  # fmt: skip
def test_inspect_scores(tmp_path, value, threshold, right):
    records = read("inspect", changed(tmp_path / "a.json", give(value)), threshold=threshold)
    assert set(records.table["correct"]) == {right}


@pytest.mark.parametrize("value", ["A", "P", 0.5, [1], {"em": 1}, None, "nan", math.nan, 2])
def test_inspect_scores_that_are_refused(tmp_path, value):
    message = "samples.0., field scores.choice.value: found .* expected 0 or 1"
    with pytest.raises(RecordsError, match=message):
        read("inspect", changed(tmp_path / "a.json", give(value)))


def test_inspect_with_several_scorers_and_a_stated_confidence(tmp_path):
    path = changed(tmp_path / "a.json", give("I", "judge"))
    with pytest.raises(RecordsError, match="scorer: none named, found 'choice', 'judge'"):
        read("inspect", path)
    records = read("inspect", path, scorer="judge", confidence="stated")
    assert set(records.table["confidence"]) == {0.7}
    assert not records.table["correct"].any()
    assert "confidence: 'stated' of the metadata" in records.notes


def test_inspect_says_that_a_log_is_not_complete(tmp_path):
    def broken(log):
        log["status"] = "error"
        log["samples"][0]["scores"] = {}

    records = read("inspect", changed(tmp_path / "a.json", broken))
    assert "the log's status is 'error'; expected 'success'" in records.notes
    assert "1 sample(s) have no score and made no record" in records.notes


def zipped(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/") + ".json", content)
    return path


def members():
    log = json.loads(JSON.read_text())
    head = json.dumps({"status": "success", "eval": log["eval"]})
    return {"header": head, "samples__a_epoch_1": json.dumps(log["samples"][1])}


def test_inspect_zip_of_another_compression(tmp_path):
    assert len(read("inspect", zipped(tmp_path / "a.eval", **members())).table) == 1


def test_inspect_zip_has_a_limit_once_decompressed(tmp_path, monkeypatch):
    monkeypatch.setattr(harnesses, "MAX_BYTES", 40_000)
    bomb = {**members(), "samples__b_epoch_1": " " * 10_000_000}
    path = zipped(tmp_path / "a.eval", **bomb)
    assert path.stat().st_size < 40_000
    with pytest.raises(RecordsError, match="more than 40,000 bytes once decompressed"):
        read("inspect", path)
    monkeypatch.setattr(harnesses, "MAX_BYTES", 30_000)  # the real one, by Zstandard
    with pytest.raises(RecordsError, match="more than 30,000 bytes once decompressed"):
        read("inspect", EVAL)


def damaged(tmp_path):
    data = bytearray(EVAL.read_bytes())
    with zipfile.ZipFile(EVAL) as archive:
        place = archive.getinfo("samples/two_epoch_1.json").header_offset
    data[place + 400] ^= 255
    return data


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: EVAL.read_bytes()[:9000], "damaged, or not Inspect's"),
        (lambda _: b"not a zip", "damaged, or not Inspect's"),
        (damaged, "samples/two_epoch_1.json: "),
    ],
)
def test_inspect_zips_that_are_damaged(tmp_path, make, message):
    path = tmp_path / "a.eval"
    path.write_bytes(make(tmp_path))
    with pytest.raises(RecordsError, match=message):
        read("inspect", path)


def test_inspect_zip_without_logs(tmp_path):
    with pytest.raises(RecordsError, match="_journal/start.json"):
        read("inspect", zipped(tmp_path / "a.eval", other="{}"))
    broken = {**members(), "samples__b_epoch_1": "{"}
    with pytest.raises(RecordsError, match="samples/b_epoch_1.json: not JSON"):
        read("inspect", zipped(tmp_path / "a.eval", **broken))


# --- HELM -----------------------------------------------------------------------------------


def statistic(name, mean):
    said = {"count": 0, "sum": 0, "sum_squared": 0}
    if mean is not None:
        said = {"count": 1, "sum": mean, "sum_squared": mean**2, "min": mean, "max": mean,
                "mean": mean, "variance": 0.0, "stddev": 0.0}  # fmt: skip
    return {"name": {"name": name, "split": "test"}, **said}


def instance(i, trial=0, perturbation=None, **means):
    row = {"instance_id": f"id{i}", "train_trial_index": trial}
    row |= {} if perturbation is None else {"perturbation": {"name": perturbation}}
    return {**row, "stats": [statistic(name, mean) for name, mean in means.items()]}


INSTANCES = [
    instance(1, exact_match=1.0, max_prob=0.8, logprob=-0.22, num_prompt_tokens=333.0,
             num_completion_tokens=1.0, training_co2_cost=None),
    instance(1, bias=0.5),  # of another metric
    instance(1, trial=1, exact_match=0.0, max_prob=0.6, logprob=-0.5),
    instance(1, perturbation="typos", exact_match=0.0, max_prob=0.3, logprob=-1.0),
    instance(2, exact_match=0.0, max_prob=1.0, logprob=0.0),
    instance(3, exact_match=0.0, max_prob=1.0),
]  # fmt: skip


def helm_run(folder, instances=INSTANCES, name="mmlu:subject=law,model=openai_gpt2,groups=a"):
    folder.mkdir(exist_ok=True)
    spec = {"name": name, "adapter_spec": {"model": "openai/gpt2"}}
    (folder / "run_spec.json").write_text(json.dumps(spec))
    (folder / "per_instance_stats.json").write_text(json.dumps(instances))
    return folder / "per_instance_stats.json"


def test_helm_records(tmp_path):
    records = read("helm", helm_run(tmp_path / "run"))
    table = records.table
    assert table["question_id"].tolist() == ["id1", "id1", "id2", "id3"]
    assert table["sample"].tolist() == [0, 1, 0, 0]
    assert table["correct"].tolist() == [True, False, False, False]
    assert table["confidence"].isna().tolist() == [False, False, True, True]
    assert table["confidence"].tolist()[:2] == [0.8, 0.6]
    assert table["prompt_tokens"][0] == 333
    assert set(table["dataset"]) == {"mmlu:subject=law,groups=a"}
    assert set(table["system"]) == {"openai/gpt2"}
    assert "1 perturbed instance(s) made no record" in records.notes
    assert "2 row(s) have log-probabilities of exactly 0; taken as missing" in records.notes


def test_helm_runs_of_two_models_are_of_one_dataset(tmp_path):
    names = ("narrative_qa:model=openai_gpt2", "narrative_qa:model=a_b,model_deployment=c")
    paths = [helm_run(tmp_path / str(i), name=name) for i, name in enumerate(names)]
    assert [set(read("helm", path).table["dataset"]) for path in paths] == [{"narrative_qa"}] * 2


def test_helm_problems(tmp_path):
    path = helm_run(tmp_path / "run", [instance(1, exact_match=0.5, f1=0.2)])
    with pytest.raises(RecordsError, match="row 1, field stats.0.mean: found 0.5, expected 0 or 1"):
        read("helm", path)
    assert read("helm", path, metric="f1", threshold=0.2).table["correct"].tolist() == [True]
    with pytest.raises(
        RecordsError, match="'id1': no statistic 'em', expected one of 'exact_match', "
    ):
        read("helm", path, metric="em")
    (tmp_path / "run" / "run_spec.json").unlink()
    with pytest.raises(RecordsError, match="found no run_spec.json beside it"):
        read("helm", path)


# --- RouterBench, RouterArena ---------------------------------------------------------------

WIDE = """,sample_id,prompt,eval_name,a/small,large,a/small|model_response,large|model_response,a/small|total_cost,large|total_cost,oracle_model_to_route_to
0,mmlu.1,"['Q,
1']",mmlu,1.0,True,A,A,0.001,0.01,a/small
1,mmlu.2,Q,mmlu,0.0,,B,,0.002,,no_model_correct
2,gsm8k.1,Q,gsm8k,nan,0.25,,7,,0.03,large
"""


def test_routerbench_records(tmp_path):
    path = tmp_path / "wide.csv"
    path.write_text(WIDE)
    with pytest.raises(
        RecordsError, match="row 3, field large: found '0.25', expected 0 or 1, or a th"
    ):
        read("routerbench", path)
    records = read("routerbench", path, threshold="0.5")
    table = records.table[["dataset", "question_id", "system", "correct", "cost"]]
    assert table.to_numpy().tolist() == [
        ["mmlu", "mmlu.1", "a/small", True, 0.001], ["mmlu", "mmlu.1", "large", True, 0.01],
        ["mmlu", "mmlu.2", "a/small", False, 0.002], ["gsm8k", "gsm8k.1", "large", False, 0.03],
    ]  # fmt: skip
    assert "2 blank cell(s) made no record" in records.notes
    assert "1 score(s) are neither 0 nor 1; from 0.5 on they are right" in records.notes


def test_routerbench_pickles_are_not_read(tmp_path):
    pd.DataFrame({"sample_id": [1]}).to_pickle(tmp_path / "routerbench_0shot.pkl")
    with pytest.raises(RecordsError, match="found a pickle, which can run code; expected CSV"):
        read("routerbench", tmp_path / "routerbench_0shot.pkl")


def arena(i, score, **more):
    return {
        "global_index": i, "question": "?", "llm_selected": "m", "generated_answer": "a",
        "token_usage": {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13},
        "success": True, "provider": "p", "error": None,
        "evaluation_result": {"extracted_answer": "7", "ground_truth": "7", "score": score,
                              "metric": "math_metric", "inference_cost": 0.5},
    } | more  # fmt: skip


def test_routerarena_records(tmp_path):
    failed = {"success": False, "evaluation_result": None, "error": "x"}
    rows = [arena("AIME_1", 1.0), arena("MMLUPro_law_2", 0.0), arena("AIME_3", 0.0, **failed)]
    path = lines(tmp_path / "m.jsonl", *rows, arena("AIME_4", 0, evaluation_result=None))
    records = read("routerarena", path)
    assert column(records, "dataset") == {
        "AIME_1": "AIME", "MMLUPro_law_2": "MMLUPro_law", "AIME_3": "AIME"
    }  # fmt: skip
    assert records.table["correct"].tolist() == [True, False, False]
    assert records.table["prompt_tokens"].tolist() == [9, 9, 9]
    assert "1 row(s) were not judged and made no record" in records.notes
    lines(path, arena("X_1", 0.21))
    with pytest.raises(RecordsError, match="row 1, field evaluation_result.score: found 0.21"):
        read("routerarena", path)


# --- batches --------------------------------------------------------------------------------


def answer(text, logprobs=None, index=0):
    content = logprobs and {"content": [{"token": "t", "logprob": p} for p in logprobs]}
    message = {"role": "assistant", "content": text}
    return {"index": index, "message": message, "logprobs": content, "finish_reason": "stop"}


def request(question, *choices, status=200, error=None):
    usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    body = {
        "id": "c",
        "object": "chat.completion",
        "model": "m",
        "choices": choices,
        "usage": usage,
    }
    response = {
        "status_code": status,
        "request_id": "r",
        "body": body if choices else {"error": {}},
    }
    return {"id": "b", "custom_id": question, "response": response, "error": error}


def batch(tmp_path, *requests, golds="custom_id,gold\nq1,12\nq2,1/2\nq3,7\n", kind="math", **more):
    (tmp_path / "golds.csv").write_text(golds)
    return read("batch", lines(tmp_path / "out.jsonl", *requests), golds=tmp_path / "golds.csv",
                kind=kind, **more)  # fmt: skip


def test_batch_of_mathematics_with_stated_confidences(tmp_path):
    records = batch(
        tmp_path,
        request("q1", answer("so \\boxed{12}. \\confidence{0.9}", [-1.0])),
        request("q2", answer("\\boxed{0.5}")),
        request("q3", status=429),
    )
    table = records.table.set_index("question_id")
    assert table["correct"].to_dict() == {"q1": True, "q2": True, "q3": False}
    assert table.loc["q1", "confidence"] == 0.9
    assert table["confidence"].isna().tolist() == [False, True, True]  # signals are not mixed
    assert table.loc["q2", "answer"] == "0.5"
    assert table["prompt_tokens"].tolist()[:2] == [11, 11]
    assert set(table["dataset"]) == {"golds"}
    assert "confidence: what the answers state" in records.notes
    assert "1 record(s) of calls that failed count as wrong" in records.notes


def test_batch_confidence_out_of_log_probabilities(tmp_path):
    completion = {"index": 0, "text": "7", "logprobs": {"token_logprobs": [-0.5], "tokens": ["7"]}}
    requests = [request("q1", answer("\\boxed{13}", [-0.1, -0.3])), request("q3", completion)]
    records = batch(tmp_path, *requests, dataset="d", system="s")
    table = records.table
    expected = [(math.exp(-0.1) + math.exp(-0.3)) / 2, math.exp(-0.5)]
    np.testing.assert_allclose(table["confidence"], expected)
    assert table["correct"].tolist() == [False, True]
    assert "1 answer(s) have no box; the whole text is the answer" in records.notes
    assert "1 question(s) of golds.csv have no line (one that failed?)" in records.notes


def test_batch_of_choices(tmp_path):
    golds = lines(tmp_path / "golds.jsonl", *(
        {"custom_id": i, "gold": "B", "options": ["bank", "library"], "dataset": "d"} for i in "123"
    ))  # fmt: skip
    texts = ["<think>A?</think>\n**B** \\confidence{0.8}", "the library", "library"]
    rows = [request(i, answer(text)) for i, text in zip("123", texts, strict=True)]
    path = lines(tmp_path / "out.jsonl", *rows)
    records = read("batch", path, golds=golds, kind="choice")
    assert records.table["correct"].tolist() == [True, False, True]
    assert records.table["answer"][0] == "**B**"
    assert set(records.table["dataset"]) == {"d"}


def test_batch_choices_of_one_request_are_samples_without_their_tokens(tmp_path):
    two = request("q1", answer("\\boxed{12}"), answer("\\boxed{1}", index=1))
    table = batch(tmp_path, two).table
    assert table["sample"].tolist() == [0, 1]
    assert table["correct"].tolist() == [True, False]
    assert "completion_tokens" not in table
    assert table["prompt_tokens"].tolist() == [11, 11]


OK = answer("\\boxed{12}")


@pytest.mark.parametrize(
    ("requests", "more", "message"),
    [
        ([request("q9", OK)], {}, "row 1, field custom_id: found 'q9', expected one of the questions in golds.csv"),
        ([request("q1", OK)] * 2, {}, "row 2, field custom_id: found 'q1', expected one not in row 1"),
        ([request("q1", OK)], {"golds": "custom_id,gold\nq1,\n"}, "golds.csv.*\n.*row 1, field gold"),
        ([request("q1", OK)], {"golds": "custom_id,gold\nq1,1\nq1,2\n"}, "golds.csv.*\n.*row 2, field custom_id"),
        ([request("q1", OK)], {"golds": "id,gold\nq1,1\n"}, "row 1, field custom_id: found nothing"),
        ([request("q1", answer("x", [0.5]))], {}, "logprobs.content: found .0.5., expected log-prob"),
        ([request("q1", answer("x", ["a"]))], {}, "logprobs.content: found .'a'., expected log-prob"),
        ([request("q1", status=500)], {}, "system: none named, found none"),
        ([{"custom_id": "q1"}], {}, "field response.body.choices: found nothing, expected an array"),
        ([request("q1", OK)], {"kind": "text"}, "kind"),
    ],
)  # fmt: skip
def test_batch_problems(tmp_path, requests, more, message):
    with pytest.raises(ValueError, match=message):
        batch(tmp_path, *requests, **more)


# --- promptfoo ------------------------------------------------------------------------------


def test_promptfoo_repeats_are_samples():
    records = read("promptfoo", PROMPTFOO)
    table = records.table
    assert len(table) == 12
    assert set(table["question_id"]) == {"0", "2", "4"}  # 1, 3 and 5 repeat them
    assert set(table["dataset"]) == {"doubling"}
    right = table.groupby(["system", "question_id"])["correct"].agg(list).to_dict()
    assert right == {
        ("large", "0"): [True] * 2, ("large", "2"): [True] * 2, ("large", "4"): [True] * 2,
        ("small", "0"): [True] * 2, ("small", "2"): [False] * 2, ("small", "4"): [False] * 2,
    }  # fmt: skip
    small = table[(table["system"] == "small") & (table["sample"] == 0)].set_index("question_id")
    expected = (math.exp(-0.1) + math.exp(-0.2)) / 2
    assert small["confidence"]["0"] == pytest.approx(expected)
    assert math.isnan(small["confidence"]["4"])
    assert table["cost"].max() == 0.003
    assert "2 record(s) of calls that failed count as wrong" in records.notes
    assert len(read("promptfoo", PROMPTFOO, errors="leave out").table) == 10


def test_promptfoo_prompts_are_systems(tmp_path):
    log = json.loads(PROMPTFOO.read_text())
    again = copy.deepcopy(log["results"]["results"])
    for row in again:
        row["promptIdx"] += 2
        row["response"] = {"output": "1", "cached": True, "tokenUsage": {"cached": 9, "total": 9}}
    log["results"]["results"] += again
    path = tmp_path / "a.json"
    path.write_text(json.dumps(log))
    table = read("promptfoo", path).table
    names = [f"{name}, prompt {i}" for name in ("large", "small") for i in (1, 2)]
    assert sorted(set(table["system"])) == names
    assert table[table["system"] == "large, prompt 2"]["prompt_tokens"].isna().all()
    log["results"]["version"] = 2
    path.write_text(json.dumps(log))
    with pytest.raises(RecordsError, match="field results.version: found 2, expected 3"):
        read("promptfoo", path)


# --- Every Eval Ever ------------------------------------------------------------------------


def own_records():
    columns = {
        "dataset": ["d", "d", "d", "e/1"], "question_id": ["1", "1", "2", "1"],
        "system": ["org/m", "org/m", "org/m", "data"], "sample": [0, 1, 0, 0],
        "correct": [True, False, True, True], "confidence": [0.1, None, 1.0, 1 / 3],
        "prompt_tokens": [3, None, 0, 1], "completion_tokens": [4, None, 7, 1],
        "answer": ["x", None, "y", "z"], "gold": ["x", "x", None, "z"],
    }  # fmt: skip
    return records_from_columns(columns, source="log")


def test_every_eval_ever_reads_what_was_written(tmp_path):
    records = own_records()
    paths = write_every_eval_ever(records, tmp_path, timestamp=1)
    back = read("every-eval-ever", paths)
    pd.testing.assert_frame_equal(back.table, records.table)
    assert write_every_eval_ever(records, tmp_path, timestamp=1) == paths
    assert len(list(tmp_path.rglob("*.json*"))) == 4


def test_every_eval_ever_is_written_by_its_schema(tmp_path):
    jsonschema = pytest.importorskip("jsonschema", reason="checks JSON by a schema")
    aggregate, line = (
        jsonschema.Draft7Validator(json.loads((DATA / "every_eval_ever" / name).read_text()))
        for name in ("eval.schema.json", "instance_level_eval.schema.json")
    )
    for path in write_every_eval_ever(own_records(), tmp_path):
        for row in rows_of(path):
            assert not [error.message for error in line.iter_errors(row)]
        about = json.loads(path.with_name(path.name.replace("_samples.jsonl", ".json")).read_text())
        assert not [error.message for error in aggregate.iter_errors(about)]
        details = about["detailed_evaluation_results"]
        assert tmp_path / details["file_path"] == path
        assert details["total_rows"] == len(rows_of(path))
        assert {row["evaluation_id"] for row in rows_of(path)} == {about["evaluation_id"]}
        assert "data" not in path.relative_to(tmp_path).parts[1:]
    del row["evaluation"]
    assert [error.message for error in line.iter_errors(row)]  # the schema does look


def test_every_eval_ever_counts_an_answer_once(tmp_path):
    path = write_every_eval_ever(own_records(), tmp_path)[0]
    rows = rows_of(path)
    path = lines(path, *rows, *({**row, "evaluation_result_id": "f1"} for row in rows))
    with pytest.raises(RecordsError, match="metric: none named, found 'accuracy', 'f1'"):
        read("every-eval-ever", path)
    assert len(read("every-eval-ever", path, metric="f1").table) == 3
    lines(path, {**rows[0], "metadata": {"confidence": "high"}})
    with pytest.raises(RecordsError, match="row 1, field metadata.confidence: found 'high'"):
        read("every-eval-ever", path)


# --- all formats ----------------------------------------------------------------------------


def test_reading_by_name(tmp_path):
    with pytest.raises(ValueError, match="no format 'x'; expected lm-eval, inspect, helm"):
        read("x", CHOICE)
    with pytest.raises(
        ValueError, match="lm-eval: .*unexpected.*'filters'; its options are filter,"
    ):
        read("lm-eval", CHOICE, filters="none")
    with pytest.raises(ValueError, match="batch: missing .*'golds'"):
        read("batch", CHOICE)
    with pytest.raises(FileNotFoundError, match="a.jsonl: no such file"):
        read("lm-eval", tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="threshold is 'half'; expected a number"):
        read("inspect", JSON, threshold="half")


def test_several_files_are_one_table(tmp_path):
    (tmp_path / "other").mkdir()
    other = shutil.copy(CHOICE, tmp_path / "other")
    records = read("lm-eval", [CHOICE, other])
    assert records.table["system"].tolist() == ["dummy"] * 4 + ["other"] * 4
    assert isinstance(records, Records)
    with pytest.raises(RecordsError, match="row 5: repeats the key of row 1"):
        read("lm-eval", [CHOICE, CHOICE])


def test_using_names_every_format():
    text = (DATA.parents[1] / "book" / "using.md").read_text("utf-8")
    assert [name for name in FORMATS if f"`{name}`" not in text] == []
    for name in ("filter", "scorer", "threshold", "golds", "errors"):
        assert any(name in format.options for format in FORMATS.values())
        assert f"`{name}`" in text


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for step, part in inner:
        yield from places(part, (*path, step))


def valid(tmp_path):
    """One small valid file a format: the value, how to write it, and the options."""
    helm = helm_run(tmp_path / "run")
    log = json.loads(JSON.read_text())
    log["samples"], log["eval"] = log["samples"][:2], {"model": log["eval"]["model"], "task": "t"}
    foo = json.loads(PROMPTFOO.read_text())
    foo = {"results": {"version": 3, "results": foo["results"]["results"][:2]}, "config": {}}
    eee = rows_of(write_every_eval_ever(own_records(), tmp_path)[0])[0]
    (tmp_path / "g.csv").write_text("custom_id,gold\nq1,12\n")
    golds = {"golds": tmp_path / "g.csv", "kind": "choice"}
    yield "lm-eval", rows_of(CHOICE)[0], tmp_path / "samples_t.jsonl", {}
    yield "inspect", log, tmp_path / "log.json", {}
    yield "helm", INSTANCES[:2], helm, {}
    yield "routerarena", arena("A_1", 1), tmp_path / "arena.jsonl", {}
    yield "batch", request("q1", answer("B", [-1.0])), tmp_path / "batch.jsonl", golds
    yield "promptfoo", foo, tmp_path / "foo.json", {}
    yield "every-eval-ever", eee, tmp_path / "eee.jsonl", {}


WRONG = (None, [], {}, "x", -1, 0.5, True, [None], 10**400)


def test_whatever_stands_anywhere_is_read_or_refused_by_name(tmp_path):
    other_errors, tried = [], 0
    for format, value, path, options in valid(tmp_path):
        path.write_text(json.dumps(value))
        assert len(read(format, path, **options).table)
        every = [place for place in places(value) if place and not {*place} & {*range(1, 9)}]
        for i, place in enumerate(every):
            other = copy.deepcopy(value)
            holder = other
            for step in place[:-1]:
                holder = holder[step]
            holder[place[-1]] = WRONG[i % len(WRONG)]
            path.write_text(json.dumps(other))
            tried += 1
            try:
                read(format, path, **options)
            except RecordsError:
                continue
            except Exception as error:
                other_errors.append((format, place, WRONG[i % len(WRONG)], repr(error)))
    assert not other_errors
    assert tried > 200


def test_all_formats_are_in_the_tests(tmp_path):
    assert {name for name, *_ in valid(tmp_path)} | {"routerbench"} == set(FORMATS)
    assert adapters.FORMATS["inspect"].reader is adapters.inspect_ai
