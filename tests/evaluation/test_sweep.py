"""A sweep gives what the pipeline gives, once for each thing, and its advice follows evidence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from distributed import Client, LocalCluster

from support_rag.chunk import chunk
from support_rag.embed import HashingEmbedder
from support_rag.evaluation.cache import (
    Cache,
    CacheUnusable,
    Endpoint,
    Tick,
    cache_folder,
    progress_bar,
    silent,
)
from support_rag.evaluation.labels import Labels, Question, load_labels, take
from support_rag.evaluation.metrics import (
    citation_scores,
    distinct_documents,
    ndcg_at_k,
    span_scores,
)
from support_rag.evaluation.sweep import (
    Prices,
    Sweep,
    as_json,
    compare,
    efficient,
    equal_context,
    halve,
    in_dollars,
    recommend,
    summarise,
    sweep,
    time_stages,
)
from support_rag.evaluation.trials import Measured, make_study
from support_rag.generate import ExtractiveGenerator
from support_rag.pipeline import Pipeline
from support_rag.release import Parameters, load_parameters, load_release
from support_rag.retrieve import InMemoryIndex
from support_rag.types import EmbeddingFailed, GenerationFailed, InputInvalid, SettingsInvalid
from tests.openai_stub import OpenAIStub, Reply

ROOT = Path(__file__).parents[2]
TOPICS = ("kiosk", "invoice", "webhook", "shift", "holiday", "export")
TUNE = ("q5", "q7", "q8", "q9", "q13", "q19")  # ids in the tuning split
HASHING = Parameters().with_(
    embed={"model": "hashing-256"},
    gate={"abstain_threshold": 0.05, "answer_threshold": 0.3},
    retrieve={"k": 3},
)
QUOTING = HASHING.with_(generate={"generator": "extractive"})  # where an endpoint only embeds
GRID = {"chunk.size_tokens": [64, 128], "retrieve.k": [2, 5], "retrieve.fusion": ["rrf", "dense"]}


def write_labels(folder: Path) -> Path:
    "Six articles of six paragraphs. The third paragraph of each answers its question."
    corpus, queries, qrels, spans = [], [], ["query-id\tcorpus-id\tscore"], []
    for name, topic in zip(TUNE, TOPICS, strict=True):
        paragraphs = [
            f"Paragraph {n} about the {topic} says that setting number {n} is {n * 7}. " * 3
            for n in range(6)
        ]
        text, quote = "\n\n".join(paragraphs), paragraphs[3].strip()
        corpus.append({"id": topic, "title": topic, "text": text})
        queries.append({"id": name, "text": f"What is setting number 3 of the {topic}?"})
        qrels.append(f"{name}\t{topic}\t1")
        spans.append({"query_id": name, "doc_id": topic, "text": quote})
    history = [{"role": "user", "content": "How do I set up the kiosk?"}]
    queries.append({"id": "q20", "text": "And setting 3 of it?", "history": history})
    qrels.append("q20\tkiosk\t1")
    queries.append({"id": "q21", "text": "Who won the cup?", "answerable": False})
    files = {"corpus.jsonl": corpus, "queries.jsonl": queries, "spans.jsonl": spans}
    for file, rows in files.items():
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels.tsv").write_text("\n".join(qrels))
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    return load_labels(write_labels(tmp_path))


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


class Ticks(list[tuple[str, int, int]]):
    "A progress display that remembers."

    @contextmanager
    def __call__(self) -> Iterator[Tick]:  # type: ignore[override]
        yield lambda stage, done, total: self.append((stage, done, total))

    @property
    def computed(self) -> dict[str, int]:
        "Stage → results that were missing."
        first = {stage: (done, total) for stage, done, total in reversed(self)}
        return {stage: total - done for stage, (done, total) in first.items() if total > done}


def run(
    space: Any, labels: Labels, threads: Executor, *, cache: Cache | None = None, **options: Any
) -> tuple[Sweep, dict[str, int]]:
    "A sweep with the hashing embedder, and what it computed."
    ticks = Ticks()
    common: dict[str, Any] = {"base": HASHING, "executor": threads, "progress": ticks}
    return sweep(space, labels, cache=cache or Cache(None), **{**common, **options}), ticks.computed


# ---------------------------------------------------------------- the figures


async def test_a_row_is_what_the_pipeline_gives(labels: Labels, threads: Executor) -> None:
    "Real ports, no memory: the same hits, confidence, decision and citations."
    found, _ = run(GRID, labels, threads, depth="answers")
    assert len(found.measured) == 9, "eight combinations and the present settings"
    for measured in (found.measured[0], found.measured[3], found.measured[6]):
        parameters, embedder = measured.parameters, HashingEmbedder()
        chunks = [piece for doc in labels.corpus for piece in chunk(doc, parameters.chunk)]
        vectors = (await embedder.embed([piece.embedded_text for piece in chunks])).vectors
        index = InMemoryIndex(chunks, vectors)
        pipeline = Pipeline(load_release(parameters), embedder, index, ExtractiveGenerator())
        deep = parameters.model_copy(
            update={"retrieve": parameters.retrieve.model_copy(update={"k": 100})}
        )
        wide = Pipeline(load_release(deep), embedder, index, ExtractiveGenerator())
        for question in labels.questions:
            row = measured.rows[question.id]
            answer = await pipeline.answer(question.text, history=question.history)
            assert row["tokens"] == sum(hit.chunk.n_tokens for hit in answer.hits)
            assert row["confidence"] == pytest.approx(answer.decision.confidence, abs=1e-9)
            assert (row["outcome"], row["reason"]) == (
                answer.decision.outcome,
                answer.decision.reason,
            )
            if gold := labels.spans.get(question.id):
                scores = span_scores([hit.chunk for hit in answer.hits], gold)
                assert row["recall"] == pytest.approx(scores.recall, abs=1e-9)
                assert row["iou"] == pytest.approx(scores.iou, abs=1e-9)
                cited = citation_scores(answer.citations, gold)
                assert row["citation_recall"] == pytest.approx(cited.recall, abs=1e-9)
            if graded := labels.qrels.get(question.id):
                answer = await wide.answer(question.text, history=question.history)
                ranking = distinct_documents(answer.hits)
                expected = ndcg_at_k(ranking, graded, k=10)
                assert row["ndcg_at_10"] == pytest.approx(expected, abs=1e-9)
        assert measured.facts["chunks"] == len(chunks)


def test_what_a_question_cannot_have_is_missing(labels: Labels, threads: Executor) -> None:
    found, _ = run({"retrieve.k": [3]}, labels, threads)
    rows = found.frame.set_index("question")
    assert rows.loc["q21", ["recall", "ndcg_at_10"]].isna().all(), "unanswerable"
    assert np.isnan(rows.loc["q20", "recall"]), "no gold spans"
    assert rows.loc["q20", "ndcg_at_10"] > 0
    assert rows["confidence"].notna().all()


def test_without_spans_only_documents_are_measured(labels: Labels, threads: Executor) -> None:
    found, _ = run({"retrieve.k": [2]}, replace(labels, spans={}), threads)
    assert not {"recall", "precision", "iou"} & set(found.frame)
    assert {"ndcg_at_10", "mrr_at_10", "map_at_10", "hit", "tokens"} <= set(found.frame)
    assert "ndcg_at_10" in recommend(found, "ndcg_at_10")
    with pytest.raises(InputInvalid, match="'recall' was not measured"):
        recommend(found, "recall")


def test_every_parameter_can_be_swept(labels: Labels, threads: Executor) -> None:
    other = {
        "chunk.mode": "fixed", "chunk.size_tokens": 90, "chunk.overlap_tokens": 10,
        "embed.model": "hashing-64", "retrieve.k": 4, "retrieve.candidates": 9,
        "retrieve.fusion": "lexical", "retrieve.rrf_k": 10, "retrieve.dense_weight": 0.0,
        "retrieve.bm25_k1": 2.0, "retrieve.bm25_b": 0.1, "prompt.context_tokens": 150,
        "prompt.history_tokens": 0, "prompt.summary_every": 4,
        "generate.generator": "extractive", "generate.model": "other", "generate.max_tokens": 50,
        "generate.temperature": 1.0, "generate.max_sentences": 1, "gate.answer_threshold": 0.9,
        "gate.abstain_threshold": 0.2, "gate.answer_risk": 0.5,
    }  # fmt: skip
    sections = Parameters().model_dump()
    assert set(other) | {"prompt.version"} == {f"{s}.{n}" for s in sections for n in sections[s]}
    configurations = [
        HASHING.with_(**{name.split(".")[0]: {name.split(".")[1]: value}})
        for name, value in other.items()
    ]
    found, _ = run(configurations, labels, threads)
    assert [m.name for m in found.measured[1:]] == [f"{n}={v}" for n, v in other.items()]
    present, *rivals = found.measured
    same = {m.name.split("=")[0] for m in rivals if m.rows == present.rows}
    assert not same & {
        "chunk.mode", "chunk.size_tokens", "embed.model", "retrieve.k", "retrieve.fusion",
        "retrieve.dense_weight", "retrieve.bm25_b", "prompt.context_tokens",
        "gate.answer_threshold",
    }  # fmt: skip
    configurations = {m.name: m.parameters for m in found.measured}
    study = make_study(labels, configurations, depth="answers", endpoint=Endpoint())
    assert len({keys.score for keys in study.keys.values()}) == len(found.measured)


# ---------------------------------------------------------------- equal on every executor


def test_two_runs_are_equal_bytes_on_any_executor(labels: Labels, threads: Executor) -> None:
    found, _ = run(GRID, labels, threads, depth="answers")
    expected = as_json(found)
    with ThreadPoolExecutor(1) as single:
        assert as_json(run(GRID, labels, single, depth="answers")[0]) == expected
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        cluster_run, computed = run(GRID, labels, client.get_executor(), depth="answers")
    assert as_json(cluster_run) == expected
    assert computed["configurations"] == 9


def test_the_bytes_hold_no_time_and_no_path(labels: Labels, threads: Executor) -> None:
    text = as_json(run({"retrieve.k": [2]}, labels, threads)[0])
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text
    assert "seconds" not in text
    assert str(ROOT) not in text and (len(Path.home().parts) < 2 or str(Path.home()) not in text)


# ---------------------------------------------------------------- each thing once


def test_what_is_known_is_not_computed_again(labels: Labels, threads: Executor) -> None:
    cache = Cache(None)
    cold, computed = run(GRID, labels, threads, cache=cache)
    assert computed["chunkings"] == 3 and computed["rankings"] == 3
    again, computed = run(GRID, labels, threads, cache=cache)
    assert computed == {} and as_json(again) == as_json(cold)
    wider = {**GRID, "retrieve.k": [2, 5, 7], "retrieve.dense_weight": [0.3]}
    _, computed = run(wider, labels, threads, cache=cache)
    assert computed == {"configurations": 12}, "k and weights embed and rank nothing"
    _, computed = run({"retrieve.bm25_b": [0.2]}, labels, threads, cache=cache)
    assert computed == {"rankings": 1, "configurations": 1}
    _, computed = run({"gate.answer_threshold": [0.2]}, labels, threads, cache=cache)
    assert computed == {"configurations": 2}, "now with answers"


def test_labels_that_change_cost_only_what_they_change(labels: Labels, threads: Executor) -> None:
    cache, space = Cache(None), {"chunk.size_tokens": [64]}
    run(space, labels, threads, cache=cache)
    less = replace(labels, spans={**labels.spans, "q5": {}})
    _, computed = run(space, less, threads, cache=cache)
    assert set(computed) == {"configurations", "sets of queries", "rankings"}
    text = labels.corpus[0].text.replace("Paragraph 5", "Section 5")
    edited = replace(labels, corpus=(replace(labels.corpus[0], text=text), *labels.corpus[1:]))
    _, computed = run(space, edited, threads, cache=cache)
    pieces = [piece for size in (64, 200) for piece in chunk(
        edited.corpus[0], HASHING.with_(chunk={"size_tokens": size}).chunk
    )]  # fmt: skip
    assert 0 < computed["texts to embed"] < len(pieces), "only chunks whose text changed"


def test_texts_that_two_chunkings_share_are_embedded_once(
    labels: Labels, threads: Executor
) -> None:
    with OpenAIStub(dim=32) as stub:
        base = QUOTING.with_(embed={"model": "text@32"})
        space = {"chunk.size_tokens": [400, 500, 600], "retrieve.k": [2, 3]}
        run(space, labels, threads, base=base, endpoint=Endpoint(stub.base_url, "key"))
        texts = [text for seen in stub.requests for text in seen.body["input"]]
        assert len(texts) == len(set(texts)) > len(TOPICS)


def test_a_process_for_each_core_and_the_real_model(labels: Labels) -> None:
    "Vectors from two processes with a thread each equal those of this one."
    two = replace(take(labels, {"q5", "q7"}), corpus=labels.corpus[:2])
    ticks, base = Ticks(), load_parameters()
    found = sweep({"retrieve.k": [2]}, two, base=base, cache=Cache(None), progress=ticks)
    assert ticks.computed["texts to embed"] > 2
    with ThreadPoolExecutor(1) as single:
        here, _ = run({"retrieve.k": [2]}, two, single, base=base)
    assert as_json(here) == as_json(found)
    assert found.measured[0].facts["index_bytes"] > 768 * found.measured[0].facts["chunks"]


# ---------------------------------------------------------------- the held-out split


def test_the_held_out_split_is_refused(labels: Labels, threads: Executor) -> None:
    with pytest.raises(InputInvalid, match="kept for the evidence of a release"):
        run(GRID, labels, threads, split="evidence")
    with pytest.raises(InputInvalid, match="kept for the evidence of a release"):
        halve(GRID, labels, metric="recall", split="evidence")
    held_out = replace(labels, questions=(Question("q2", "And this?"), Question("q3", "Or this?")))
    with pytest.raises(InputInvalid, match="0 of 2 questions are in the split 'tune'"):
        run(GRID, held_out, threads)
    mixed = replace(labels, questions=(*labels.questions, Question("q2", "Held out", "x", False)))
    found, _ = run({"retrieve.k": [2]}, mixed, threads)
    assert "q2" not in set(found.frame["question"])


def test_a_space_with_a_mistake_is_refused(labels: Labels, threads: Executor) -> None:
    with pytest.raises(SettingsInvalid, match=r"did you mean retrieve\.k"):
        run({"retrieve.kk": [3]}, labels, threads)
    with pytest.raises(SettingsInvalid, match=r"retrieve\.k=0 fits no combination"):
        run({"retrieve.k": [0, 3]}, labels, threads)
    found, _ = run(
        {"chunk.size_tokens": [64, 200], "chunk.overlap_tokens": [0, 50]}, labels, threads
    )
    assert found.left_out == ("chunk.size_tokens=64 chunk.overlap_tokens=50",)
    assert len(found.measured) == 3


# ---------------------------------------------------------------- faults


def test_a_failure_keeps_what_is_finished(labels: Labels, threads: Executor) -> None:
    cache, base = Cache(None), QUOTING.with_(embed={"model": "text@16"})
    space = {"chunk.size_tokens": [32, 64, 100, 150]}
    with OpenAIStub(dim=16) as stub:
        options = {"cache": cache, "base": base, "endpoint": Endpoint(stub.base_url, "key")}
        stub.script(Reply(), Reply(), *[Reply(status=400)] * 2)
        with pytest.raises(EmbeddingFailed), ThreadPoolExecutor(1) as single:
            run(space, labels, single, **options)
        n_known = sum(len(seen.body["input"]) for seen in stub.requests[:2])
        stub.reset()
        found, computed = run(space, labels, threads, **options)
        asked = sum(len(seen.body["input"]) for seen in stub.requests)
    assert computed["texts to embed"] == asked
    assert "chunkings" not in computed
    with OpenAIStub(dim=16) as stub:
        options = {"base": base, "endpoint": Endpoint(stub.base_url, "key")}
        cold, computed = run(space, labels, threads, **options)
    assert computed["texts to embed"] == asked + n_known
    assert [m.rows for m in cold.measured] == [m.rows for m in found.measured]


def test_a_model_is_asked_once_and_its_bad_day_is_no_result(
    labels: Labels, threads: Executor
) -> None:
    cache, space = Cache(None), {"gate.answer_threshold": [0.2, 0.4, 0.5]}
    with OpenAIStub() as stub:
        stub.answer = lambda body: Reply(tokens=["Setting 3 is 21 ", "[1]."])
        base = HASHING.with_(generate={"generator": "openai"})
        options = {"cache": cache, "base": base, "endpoint": Endpoint(stub.base_url, "key")}
        found, _ = run(space, labels, threads, **options)
        prompts = Counter(json.dumps(seen.body["messages"]) for seen in stub.requests)
        assert set(prompts.values()) == {1}, "the gate changes no prompt"
        assert len(prompts) <= len(labels.questions) + 1, "and one rewrites the follow-up"
        assert found.frame["citation_precision"].notna().any()
        stub.reset()
        assert as_json(run(space, labels, threads, **options)[0]) == as_json(found)
        assert stub.n_calls == 0

        stub.answer, stub.default = None, Reply(status=500)
        broken = {**options, "base": base.with_(generate={"max_tokens": 77})}
        with pytest.raises(GenerationFailed, match="the step condense failed"):
            run({}, labels, threads, **broken)
        stub.default = Reply()
        run({}, labels, threads, **broken)


SCRIPT = """
import json, signal, sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from support_rag.evaluation.cache import Cache
from support_rag.evaluation.labels import load_labels
from support_rag.release import Parameters
from support_rag.evaluation.sweep import as_json, sweep
from support_rag.types import SupportRagError

folder, cache, mode = sys.argv[1:]


@contextmanager
def progress():
    first = {}

    def tick(stage, done, total):
        first.setdefault(stage, total - done)
        print("tick", stage, done, total, flush=True)
        if mode == "wait" and stage == "configurations" and done >= 8:
            sys.stdin.read()

    yield tick
    print("computed", json.dumps({k: v for k, v in first.items() if v}), flush=True)


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even in a background job
    labels = load_labels(Path(folder))
    base = Parameters().with_(embed={"model": "hashing-256"})
    space = {"retrieve.k": list(range(1, 31))}
    threads = ThreadPoolExecutor(1) if mode == "edit" else None
    options = {"base": base, "cache": Cache(Path(cache)), "progress": progress}
    found = sweep(space, labels, executor=threads, **options)
    print("result", as_json(found))
    if mode == "edit":
        import support_rag.gate
        path = Path(support_rag.gate.__file__)
        path.write_text(path.read_text() + "EDITED = True\\n")
        try:
            sweep({"retrieve.k": [40]}, labels, executor=threads, **options)
        except SupportRagError as error:
            print("refused", error.code)


if __name__ == "__main__":
    main()
"""


def lines(output: str, word: str) -> list[str]:
    return [line.partition(" ")[2] for line in output.splitlines() if line.startswith(word + " ")]


def test_an_interruption_loses_nothing_and_leaves_nothing(
    tmp_path: Path, threads: Executor
) -> None:
    "Ctrl-C reaches the whole group: the sweep and its pool."
    labels = write_labels(tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(labels), str(tmp_path / "cache")]
    process = subprocess.Popen(
        [*command, "wait"],
        cwd=ROOT, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    seen: list[str] = []
    while not (seen and seen[-1].startswith("tick configurations 8 ")):
        seen.append(process.stdout.readline())
        assert seen[-1], process.communicate()[1]
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert "KeyboardInterrupt" in errors
    _, alive = psutil.wait_procs(children, timeout=120)
    assert not alive

    space: Any = {"retrieve.k": list(range(1, 31))}
    base = Parameters().with_(embed={"model": "hashing-256"})
    found = load_labels(labels)
    again, computed = run(space, found, threads, base=base, cache=Cache(tmp_path / "cache"))
    assert 0 < computed["configurations"] <= 30 - 8
    assert set(computed) == {"configurations"}, "what the stages had finished is there"
    assert as_json(again) == as_json(run(space, found, threads, base=base)[0])


def test_keys_follow_the_source(tmp_path: Path) -> None:
    "A copy of the package is edited: what the edited module computes is computed again."
    labels = write_labels(tmp_path)
    copy = tmp_path / "project"
    shutil.copytree(ROOT / "support_rag", copy / "support_rag")
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    (copy / "data").symlink_to(ROOT / "data")
    (copy / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}

    def computed() -> tuple[dict[str, int], list[str]]:
        command = [sys.executable, "script.py", str(labels), str(tmp_path / "cache"), "edit"]
        output = subprocess.run(
            command, cwd=copy, env=environment, text=True, capture_output=True, timeout=300
        )
        assert output.returncode == 0, output.stderr
        shutil.copy(ROOT / "support_rag" / "gate.py", copy / "support_rag" / "gate.py")
        [first] = map(json.loads, lines(output.stdout, "computed")[:1])
        return first, lines(output.stdout, "refused")

    def append(module: str, line: str) -> None:
        with (copy / "support_rag" / f"{module}.py").open("a") as file:
            file.write(line)

    cold, refused = computed()
    assert set(cold) == {
        "configurations", "chunkings", "sets of queries", "texts to embed", "rankings",
    }  # fmt: skip
    assert refused == ["package_changed"], "a module was edited after it was imported"
    append("retrieve", "\n# a comment\n")
    append("evaluation/metrics", "EDITED = True\n")
    assert computed()[0] == {"configurations": 30}
    append("retrieve", "EDITED = True\n")
    assert set(computed()[0]) == {"configurations", "rankings", "sets of queries"}


# ---------------------------------------------------------------- the cache


def test_without_a_folder_nothing_is_written(
    labels: Labels, threads: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("SUPPORT_RAG_HOME", str(home))
    assert cache_folder() == home / "cache"
    run({"retrieve.k": [2]}, labels, threads)
    assert not home.exists()
    common: dict[str, Any] = {"base": HASHING, "executor": threads}
    first = sweep({"retrieve.k": [2]}, labels, progress=silent, **common)
    assert (home / "cache").is_dir(), "made on demand"
    ticks = Ticks()
    again = sweep({"retrieve.k": [2]}, labels, progress=ticks, **common)
    assert ticks.computed == {} and as_json(again) == as_json(first)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "sweeps.sqlite").write_bytes(b"no database" * 200)
    with pytest.raises(CacheUnusable, match=r"cache cannot be used .*go without by Cache\(None\)"):
        Cache(tmp_path / "cache").get(["a"])


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from support_rag.evaluation.cache import Cache\n"
        "cache = Cache(Path(sys.argv[1]))\n"
        "for n in range(200): cache.put({f'{sys.argv[2]}{n}': sys.argv[2].encode(), f'n{n}': b'1'})"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "cache"), name], cwd=ROOT)
        for name in ("a", "b")
    ]
    assert [writer.wait(timeout=300) for writer in writers] == [0, 0]
    keys = [f"{name}{n}" for name in ("a", "b", "n") for n in range(200)]
    found = Cache(tmp_path / "cache").get(keys)
    assert Counter(found.values()) == {b"a": 200, b"b": 200, b"1": 200}


def test_the_bar_shows_configurations(
    labels: Labels, threads: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    run(GRID, labels, threads, progress=progress_bar)
    with progress_bar() as tick:
        tick("configurations", 3, 9)
        tick("texts to embed", 10, 40)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- large spaces, time


def test_halving_keeps_the_present_settings_and_ends_on_all_questions(
    labels: Labels, threads: Executor
) -> None:
    wide = {
        "retrieve.k": [1, 2, 3, 5, 8],
        "chunk.size_tokens": [32, 64, 128],
        "chunk.mode": ["fixed"],
    }
    cache = Cache(None)
    options = {"base": HASHING, "executor": threads, "cache": cache, "progress": silent}
    rounds = halve(wide, labels, metric="recall", least=2, **options)
    sizes = [len(r.labels.questions) for r in rounds]
    assert sizes == [2, 8]
    first, last = (len(r.measured) for r in rounds)
    assert first == 16 and last in (6, 7), "a third, and the present settings"
    assert rounds[-1].measured[0].name == "present"
    full, _ = run(wide, labels, threads, cache=cache)
    rows = {m.name: m.rows for m in full.measured}
    assert all(rows[m.name] == m.rows for m in rounds[-1].measured), "the last round is exact"


async def test_time_is_measured_apart(labels: Labels, threads: Executor) -> None:
    options: dict[str, Any] = {"executor": threads, "cache": Cache(None)}
    times = await time_stages(HASHING, labels, n=5, **options)
    assert len(times) == 5
    assert (times[["condense", "embed", "retrieve"]] >= 0).all(axis=None)


# ---------------------------------------------------------------- the verdict


def measured(
    rows: Mapping[str, Sequence[float]],  # name of a configuration → recall of each question
    *,
    parameters: Mapping[str, Parameters] | None = None,
    tokens: Mapping[str, float] | None = None,
) -> Sweep:
    n = len(next(iter(rows.values())))
    questions = tuple(Question(f"q{i}", "?") for i in range(n))
    chosen = parameters or {}
    cost = tokens or {}
    found = tuple(
        Measured(
            name,
            chosen.get(name, Parameters()),
            {},
            {
                q.id: {"recall": float(v), "tokens": cost.get(name, 1000), "confidence": 0.5}
                for q, v in zip(questions, values, strict=True)
            },
        )
        for name, values in rows.items()
    )
    return Sweep(Labels((), questions, {}, {}), found)


BASE = np.linspace(0.1, 0.7, 60)


def test_a_clear_winner_is_named_with_what_to_change() -> None:
    better = Parameters().with_(chunk={"size_tokens": 100}, retrieve={"k": 16})
    found = measured(
        {"present": BASE, "better": BASE + 0.1, "worse": BASE - 0.05},
        parameters={"better": better},
        tokens={"present": 1290, "better": 1240},
    )
    sentence = recommend(found, "recall")
    assert "Change settings.ini: [chunk] size_tokens 200 → 100, [retrieve] k 8 → 16." in sentence
    assert "recall +0.100 [+0.100, +0.100], n = 60, p = 0.0001 corrected for 2 rivals" in sentence
    assert "1,240 tokens a question instead of 1,290" in sentence


def test_a_worse_rival_never_wins() -> None:
    found = measured({"present": BASE, "worse": BASE - 0.1})
    assert recommend(found, "recall").startswith("No clear winner over the present settings.")
    assert "The best rival, worse: recall -0.100" in recommend(found, "recall")
    alone = measured({"present": BASE})
    assert recommend(alone, "recall") == (
        "No clear winner: only the present settings were measured."
    )


def test_equal_settings_rarely_give_a_winner() -> None:
    "Ten rivals that differ by chance alone: at most one sweep in twenty may name one of them."
    generator = np.random.default_rng(2)
    wins = 0
    for _ in range(40):
        rows = {
            name: np.clip(BASE + generator.normal(0, 0.2, 60), 0, 1)
            for name in ("present", *(f"rival {n}" for n in range(10)))
        }
        wins += recommend(measured(rows), "recall").startswith("Change")
    assert wins <= 4  # 1 expected: half of the 5 % are for worse rivals


def test_p_values_grow_with_the_number_of_rivals() -> None:
    noise = np.random.default_rng(4).normal(0.04, 0.2, 60)
    one = compare(measured({"present": BASE, "rival": BASE + noise}), "recall").loc["rival"]
    rows = {"present": BASE, "rival": BASE + noise} | {f"equal {n}": BASE for n in range(9)}
    many = compare(measured(rows), "recall").loc["rival"]
    assert (one["p"], one["low"], one["high"]) == (many["p"], many["low"], many["high"])
    assert one["p_holm"] == one["p"]
    assert many["p_holm"] == pytest.approx(min(1.0, 10 * many["p"]))


def test_efficient_is_what_nothing_beats() -> None:
    generator = np.random.default_rng(5)
    table = pd.DataFrame(generator.integers(0, 8, (40, 2)), columns=["recall", "tokens"])
    kept = table[efficient(table, quality="recall")]
    for row, is_kept in zip(table.itertuples(), efficient(table, quality="recall"), strict=True):
        better = table[(table["recall"] >= row.recall) & (table["tokens"] <= row.tokens)]
        strictly = better[(better["recall"] > row.recall) | (better["tokens"] < row.tokens)]
        assert is_kept == strictly.empty
    assert kept.sort_values("tokens")["recall"].is_monotonic_increasing


def test_money_counts_what_is_read_written_and_embedded(labels: Labels, threads: Executor) -> None:
    base = Parameters().with_(embed={"model": "hashing-256"})
    space: Any = {"retrieve.k": [2]}
    prices = Prices(read=2.0, write=8.0, embed=0.5)
    hits = run(space, labels, threads, base=base)[0]
    answers = run(space, labels, threads, base=base, depth="answers")[0]
    for measured in answers.measured:
        rows = [dict(row) for row in measured.rows.values()]
        read, written = (sum(r[f"{name}_tokens"] for r in rows) for name in ("prompt", "reply"))
        assert read > 0 < written
        costs = in_dollars(summarise(answers), prices).loc[measured.name]
        expected = (2e-6 * read + 8e-6 * written) / len(rows) * 1000
        assert costs["questions"] == pytest.approx(expected)
        assert costs["reindex"] == pytest.approx(measured.facts["embedded_tokens"] * 0.5e-6)
        only_hits = sum(r["tokens"] for r in rows) / len(rows)
        cheaper = in_dollars(summarise(hits), prices).loc[measured.name, "questions"]
        assert cheaper == pytest.approx(2e-6 * only_hits * 1000)


@pytest.mark.parametrize("price", [-0.01, float("nan")])
def test_a_price_is_not_negative(price: float) -> None:
    with pytest.raises(InputInvalid, match="the price write is"):
        Prices(write=price)


def test_equal_context_reads_as_much(labels: Labels, threads: Executor) -> None:
    cache, space = Cache(None), {"chunk.size_tokens": [32, 64, 128], "chunk.mode": ["fixed"]}
    found, _ = run(space, labels, threads, cache=cache)
    chosen = equal_context(found)
    assert chosen[0] == HASHING, "the present settings stay as they are"
    equal, computed = run(chosen, labels, threads, cache=cache)
    assert set(computed) <= {"configurations"}, "nothing is embedded for it"
    tokens = summarise(equal)["tokens"]
    for m in equal.measured:
        a_hit = tokens[m.name] / m.parameters.retrieve.k
        assert abs(tokens[m.name] - tokens["present"]) <= a_hit
