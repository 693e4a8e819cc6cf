"""Studies: readings by hand, runs that are kept, pages beside what was printed, the command."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import BertModel

from offramp import runs
from offramp.cli import main
from offramp.data import Examples
from offramp.errors import InvalidInput
from offramp.loading import load_encoder
from offramp.readings import Option, Part, halves, lost, options, pick, read
from offramp.registry import OBJECTIVES, POLICIES, STUDIES, load_policy, load_study
from offramp.runs import Setting, Trained, all_kept, build_model, of_depth
from offramp.studies.base import AS_IT_IS, EXITS, Between, Cheaper, Keeps, Saving, Training, printed
from offramp.study import Reading, Told
from offramp.study_page import TITLES, data_set_of, page, printed_rows
from offramp.values import Trace
from tiny import LAYERS, encoder_config, texts, tiny_tokenizer

MAX_PROB = {"name": "max-prob"}


def sure(*probabilities: tuple[float, ...]) -> torch.Tensor:
    """Logits (L, N, 2) of exits that give class 1 these probabilities."""
    p = torch.tensor(probabilities)  # (L, N)
    return torch.stack(((1 - p).log(), p.log()), dim=-1)


# Four rows, all of class 1, three exits: row 0 is right and sure at once, the others are wrong at first.
TRACE = Trace(sure((0.95, 0.2, 0.4, 0.45), (0.95, 0.3, 0.8, 0.6), (0.95, 0.9, 0.9, 0.9)), torch.ones(4).long())
PART = Part(TRACE, 3)
PRICED = Part(TRACE, 3, macs=torch.tensor([[10.0], [20.0], [30.0]]).expand(3, 4), plain_macs=torch.full((4,), 24.0))


# --- readings by hand -------------------------------------------------------------------------------------------------


def test_every_threshold_has_its_score_and_its_savings() -> None:
    # largest probabilities: .95 .8 .6 .55 at exit 1; .95 .7 .8 .6 at exit 2. From the strictest threshold down:
    # never 12 layers, all right; .95: row 0 leaves at 1 (10 layers); .8: row 1 leaves at 1, wrong, row 2 at 2 (7);
    # .6: row 2 leaves at 1, wrong, row 3 at 2 (5); .55: row 3 leaves at 1, wrong (4)
    found = options(PART, [MAX_PROB])
    assert [option.figures["score"] for option in found] == [1, 1, 0.75, 0.5, 0.25]
    assert [option.figures["mean_exit"] for option in found] == [3, 10 / 4, 7 / 4, 5 / 4, 1]
    assert [option.figures["saving"] for option in found] == pytest.approx([0, 1 / 6, 5 / 12, 7 / 12, 2 / 3])
    assert [option.figures["speedup"] for option in found] == pytest.approx([1, 1.2, 12 / 7, 2.4, 3])
    assert found[0].threshold == math.inf


def test_the_score_is_the_mean_over_metrics() -> None:
    # one of four right: accuracy 1/4; precision 1, recall 1/4: F1 = 2/5
    both = Part(TRACE, 3, ("accuracy", "f1"))
    assert options(both, [MAX_PROB])[-1].figures["score"] == pytest.approx((1 / 4 + 2 / 5) / 2)
    assert both.exits()[0] == pytest.approx((1 / 4 + 2 / 5) / 2)


def test_what_is_read_is_what_was_counted() -> None:
    for option in options(PRICED, [MAX_PROB, {"name": "patience"}]):
        told = read(PRICED, option, 0.5)
        assert told.pop("relative") == pytest.approx(option.figures["score"] / 0.5)
        assert told == pytest.approx(option.figures)


def test_macs_are_held_against_the_plain_model() -> None:
    # everybody at the first exit: 4 * 24 / (4 * 10); at the last: 4 * 24 / (4 * 30)
    found = options(PRICED, [MAX_PROB])
    assert found[-1].figures["macs_ratio"] == pytest.approx(2.4)
    assert found[0].figures["macs_ratio"] == pytest.approx(0.8)


def asked(ask: Any, part: Part = PART, plain: float = 1.0) -> float:
    """Mean exit of what is picked."""
    option = pick(ask, options(part, [MAX_PROB]), plain)
    return math.nan if option is None else option.figures["mean_exit"]


def test_the_threshold_for_each_ask() -> None:
    assert asked(Saving(0.25)) == 10 / 4  # 1/6 is nearer than 5/12
    assert asked(Saving(0.9)) == 1
    assert asked(Between(1.3, 3)) == 7 / 4  # the best score of .75, .5, .25
    assert asked(Keeps(0.75)) == 7 / 4
    assert asked(Keeps(0.75), plain=1.2) == 10 / 4  # .9 of the score is wanted
    assert asked(Cheaper(2.2), PRICED) == 1


def test_what_cannot_be_had_is_none() -> None:
    assert math.isnan(asked(Between(3.5, 4)))
    assert math.isnan(asked(Keeps(1.0), plain=1.1))


def test_what_keeps_the_score_by_luck_behind_a_failure_does_not_count() -> None:
    figures = [{"score": score, "saving": saving} for score, saving in ((1, 0), (0.5, 0.2), (1, 0.4))]
    found = [Option(MAX_PROB, -place, each) for place, each in enumerate(figures)]
    option = pick(Keeps(0.9), found, 1.0)
    assert option is not None
    assert option.figures["saving"] == 0


def test_of_policies_that_come_as_near_the_better_one_is_picked() -> None:
    figures = {"a": (0.50, 0.7), "b": (0.51, 0.8), "c": (0.6, 0.9)}
    found = [Option({"name": name}, 0, {"saving": each[0], "score": each[1]}) for name, each in figures.items()]
    option = pick(Saving(0.5), found, 1.0)
    assert option is not None
    assert option.policy["name"] == "b"


def test_what_is_lost_was_right_at_the_last_exit() -> None:
    assert lost(TRACE, options(PART, [MAX_PROB])[2]) == 0.25  # row 1
    assert lost(TRACE, options(PART, [MAX_PROB])[0]) == 0


def test_halves_are_all_rows_once() -> None:
    numbered = Trace(torch.arange(7.0).view(1, 7, 1).expand(2, 7, 1), torch.zeros(7))
    chooses, reports = halves(numbered)
    assert (len(chooses), len(reports)) == (3, 4)
    assert sorted([*chooses.logits[0, :, 0].tolist(), *reports.logits[0, :, 0].tolist()]) == list(range(7))
    with pytest.raises(InvalidInput, match="give a test set"):
        halves(TRACE.take(torch.tensor([0])))


def test_a_row_tells_median_and_range_of_the_seeds_that_have_one() -> None:
    readings = [Reading(None, {"score": score}) for score in (0.1, 0.5, 0.2)]
    told = Told("a", "b", (*readings, None))
    assert (told.low, told.middle, told.high) == ({"score": 0.1}, {"score": 0.2}, {"score": 0.5})
    assert Told("a", "b", (None,)).middle == {}


# --- the studies as data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_a_study_names_what_there_is(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert set(study.shows) <= set(TITLES)
    assert study.pace is None or study.pace in [system.name for system in study.systems]
    for regression in (False, True):
        assert all(training.objective in OBJECTIVES for training in study.all_trainings(regression))
    for system in study.systems:
        for policy in (*system.policies, *(system.regression or ())):
            assert load_policy(policy)
            assert policy["name"] in POLICIES


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_printed_figure_stands_beside_a_row_of_ours(name: str) -> None:
    study = load_study(name)
    labels = {ask.label for ask in study.asks}
    rows = {(system.name, AS_IT_IS) for system in study.systems}
    rows |= {(system.name, label) for system in study.systems for label in labels}
    rows |= {(training.name, EXITS) for training in study.all_trainings(False)}
    for row in study.published:
        assert (row.system, row.ask) in rows
        assert set(row.figures) <= {*TITLES, "average", "best"}
        assert all(0 <= row.figures.get(name, 50) <= 101 for name in ("score", "relative", "average", "best"))
        assert 0 <= row.figures.get("saving", 0.5) < 1


def test_trainings_of_one_name_are_one_training() -> None:
    found: dict[str, Training] = {}
    for name in STUDIES:
        for regression in (False, True):
            for training in load_study(name).all_trainings(regression):
                assert found.setdefault(training.name, training) == training


def printed_figures(study: str, data: str, system: str, ask: str) -> dict[str, float]:
    (found,) = [
        dict(row.figures)
        for row in load_study(study).published
        if (row.data, row.system, row.ask) == (data, system, ask)
    ]
    return found


def test_figures_looked_up_in_the_papers() -> None:
    pcee = printed_figures("pcee", "mrpc", "PCEE-BERT", "50% saved")
    assert pcee == pytest.approx({"score": 84.8, "saving": 0.53})
    assert printed_figures("pcee", "rte", "PABEE", "75% saved") == pytest.approx({"score": 55.8, "saving": 0.75})
    assert printed_figures("pabee", "rte", "PABEE", Between(1.30, 1.96).label) == {"score": 80.1, "speedup": 1.57}
    assert printed_figures("berxit", "mrpc", "ALT", "70% saved") == {"relative": 94, "saving": pytest.approx(0.74)}
    assert printed_figures("berxit", "stsb", "ALT-LTE", "98% of the score")["mean_exit"] == 4.6
    assert printed_figures("badge", "mnli", "joint-bypass", EXITS) == {"average": 77.8, "best": 83.8}
    assert printed_figures("mpee", "qnli", "MPEE", "3.5x fewer MACs") == {"score": 90.2, "macs_ratio": 2.45}


def test_a_table_as_text_is_read_cell_by_cell() -> None:
    rows = printed(
        "table 9", "BERT", ("score", "saving"), " | | a | b\nX | half | 1 50 | -\nY | half | 2 40 | 3 30", (1, 0.01)
    )
    assert [(row.data, row.system, dict(row.figures)) for row in rows] == [
        ("a", "X", {"score": 1, "saving": 0.5}),
        ("a", "Y", {"score": 2, "saving": 0.4}),
        ("b", "Y", {"score": 3, "saving": 0.3}),
    ]
    assert printed_rows(rows)[2] == "| system | asked | a | b |"
    assert printed_rows(rows)[4:] == ["| X | half | 1.0 at 50% |  |", "| Y | half | 2.0 at 40% | 3.0 at 30% |"]


@pytest.mark.parametrize(
    ("source", "data"),
    [
        ("glue/mrpc", "mrpc"),
        ("data/SST-2/train.tsv", "sst2"),
        ("glue/cola:train", "cola"),
        ("my_rows.csv", None),
        ("folder/rte.jsonl.gz", "rte"),
    ],
)
def test_the_papers_data_set_is_known_by_its_name(source: str, data: str | None) -> None:
    assert data_set_of(load_study("pcee"), source) == data


# --- runs -------------------------------------------------------------------------------------------------------------


def labelled(count: int, seed: int) -> Examples:
    rows = texts(count, seed=seed)
    return Examples(list(rows), [int("good" in text) for text in rows], ("bad", "good"), "single_label_classification")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "encoder"
    torch.manual_seed(0)
    BertModel(encoder_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def setting(encoder: Path) -> Setting:
    recipe = {"num_train_epochs": 1, "per_device_train_batch_size": 16}
    return Setting(str(encoder), labelled(32, 1), {"validation": labelled(20, 2)}, recipe=recipe)


def test_a_model_is_built_as_the_training_says(setting: Setting) -> None:
    half = build_model(Training("half", "last", {"head": "pooler"}, kept=0.5, alone=True), setting)
    assert (half.layers, half.config.head, half.config.backbone.num_hidden_layers) == ([2], "pooler", 2)
    tokens = build_model(Training("tokens", exits={"memory": 0.9}, tokens={0.5: 0.7}), setting)
    assert tokens.config.token_exit["keep_ratio"] == {2: 0.7}
    assert (tokens.layers, tokens.config.memory) == ([1, 2, 3, 4], 0.9)
    assert build_model(Training("bypass", exits={"bypass": {"rank": 3}}), setting).config.bypass["rank"] == 3


def test_an_encoder_of_another_depth(setting: Setting) -> None:
    encoder = load_encoder(setting.backbone)
    assert of_depth(encoder, 3).config.num_hidden_layers == 3
    deep = of_depth(encoder, 2 * LAYERS)
    first, second, third = (deep.encoder.layer[place].attention.self.query.weight for place in range(3))
    assert torch.equal(first, second)
    assert not torch.equal(second, third)


def test_a_run_that_is_kept_is_not_run_again(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, int]] = []

    def counted(folder: Path, training: Training, seed: int, setting: Setting) -> Trained:
        trained.append((training.name, seed))
        return run(folder, training, seed, setting)

    run = runs._run
    monkeypatch.setattr(runs, "_run", counted)
    trainings = (Training("weighted"), Training("last", "last", alone=True))
    first = all_kept(tmp_path, trainings, [0], setting)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last-0", "setting.json", "weighted-0"]
    assert not list(tmp_path.rglob("model.safetensors"))
    (tmp_path / "weighted-1.unfinished").mkdir()  # what a kill leaves

    again = all_kept(tmp_path, trainings, [0, 1], setting)

    assert trained == [("weighted", 0), ("last", 0), ("weighted", 1), ("last", 1)]
    kept = (first["weighted", 0], again["weighted", 0], again["weighted", 1])
    one, same, other = (found.traces["validation"].logits for found in kept)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert again["weighted", 0].cpu_seconds == first["weighted", 0].cpu_seconds
    assert again["last", 0].config.exit_layers == [LAYERS]


def test_runs_of_another_setting_are_refused(setting: Setting, encoder: Path, tmp_path: Path) -> None:
    all_kept(tmp_path, (), [0], setting)
    other = Setting(str(encoder), setting.train, setting.held_out, pooling="first", recipe=setting.recipe)
    with pytest.raises(InvalidInput, match="other pooling; choose another folder"):
        all_kept(tmp_path, (), [0], other)


# --- the command ------------------------------------------------------------------------------------------------------


def offramp(*arguments: Any) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def mrpc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is called like a data set of the papers."""
    folder = tmp_path_factory.mktemp("data") / "mrpc"
    folder.mkdir()
    for split, count, seed in (("train", 48, 1), ("validation", 40, 2), ("test", 24, 3)):
        first, second = texts(count, seed=seed), texts(count, seed=seed + 10)
        rows = [
            {"sentence1": one, "sentence2": two, "label": int("the" in one), "near": float(len(one) - len(two))}
            for one, two in zip(first, second, strict=True)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def study(name: str, mrpc: Path, encoder: Path, output: Path, *more: Any) -> dict[str, Any]:
    files = ("--train", mrpc / "train.jsonl", "--validation", mrpc / "validation.jsonl", "--backbone", encoder)
    result = offramp("study", name, *files, "-o", output, "--epochs", 1, "--seeds", 2, "--json", *more)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_a_study_of_classes(mrpc: Path, encoder: Path, tmp_path: Path) -> None:
    study("pabee", mrpc, encoder, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("validation.safetensors")}
    assert len(before) == 8  # whole, 9L, 6L and weighted, twice

    found = study("pcee", mrpc, encoder, tmp_path, "--metric", "accuracy", "--metric", "f1")

    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("validation.safetensors")}
    assert {path: after[path] for path in before} == before  # runs are shared
    assert len(after) == 10  # one more training: with a gate
    assert found == json.loads((tmp_path / "pcee.json").read_text())
    assert (found["rows_that_choose"], found["rows_reported"], found["depth"]) == (20, 20, LAYERS)
    rows = {(row["system"], row["ask"]): row for row in found["rows"]}
    assert rows["BERT base", AS_IT_IS]["middle"]["saving"] == 0
    assert rows["Budgeted", "75% saved"]["middle"]["saving"] == pytest.approx(0.75)
    assert all(None not in row["readings"] and len(row["readings"]) == 2 for row in found["rows"])
    text = (tmp_path / "pcee.md").read_text()
    assert "| PCEE-BERT | 50% saved |" in text
    assert "| 84.8 at 53% |" in text  # printed for MRPC
    assert "The paper's own figures" not in text
    assert "BLEU and confidence" in text


def test_a_study_of_values_on_a_test_set(mrpc: Path, encoder: Path, tmp_path: Path) -> None:
    more = ("--test", mrpc / "test.jsonl", "--task", "regression", "--label-column", "near", "--layers", 6)
    found = study("pabee", mrpc, encoder, tmp_path, *more)
    assert (found["rows_that_choose"], found["rows_reported"], found["depth"]) == (40, 24, 6)
    assert [row["system"] for row in found["rows"]] == ["Backbone", "9L", "6L", "PABEE"]
    assert found["promises"] == []


@pytest.mark.parametrize("name", ["badge", "berxit", "mpee"])
def test_the_other_studies(name: str, mrpc: Path, encoder: Path, tmp_path: Path) -> None:
    found = study(name, mrpc, encoder, tmp_path, "--seeds", 1, "--limit", 24)
    assert found["setting"]["rows"] == {"train": 24, "validation": 24}
    wanted = [system.name for system in load_study(name).systems]
    assert list(dict.fromkeys(row["system"] for row in found["rows"])) == wanted
    if name == "mpee":
        rows = {row["system"]: row["middle"] for row in found["rows"]}
        assert rows["BERT-Base"]["macs_ratio"] == pytest.approx(1)
        assert rows["w/o Layer-EE"]["saving"] == 0
        assert rows["w/o Layer-EE"]["macs_ratio"] != 1


def test_a_page_of_data_that_is_in_no_paper_has_all_that_was_printed(mrpc: Path, encoder: Path, tmp_path: Path) -> None:
    found = study("pabee", mrpc, encoder, tmp_path, "--seeds", 1, "--limit", 24)
    text = page(load_study("pabee"), found, None)
    assert "## The paper's own figures" in text
    assert "| PABEE | best of 1.30x to 1.96x | 61.2 at 1.57x |" in text
