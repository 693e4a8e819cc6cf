"""The command line: one function a command. Torch loads inside them, so that --help answers at once."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from offramp import __version__
from offramp.engine.about import ENGINES, GRAPHS, weights_digest
from offramp.errors import CannotReach, InvalidInput, OfframpError
from offramp.registry import FITTED, OBJECTIVES, POLICIES, brief, load_policy, usual_policy

if TYPE_CHECKING:
    from offramp.data import Columns
    from offramp.policies.base import Policy
    from offramp.values import OperatingPoint, Trace

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
HEADS = ("linear", "shared_pooler", "pooler", "attention")  # offramp.heads has them, with torch
POLICY_PARAMETERS = ("measure", "patience", "divergence", "window", "ensemble")
Command = TypeVar("Command", bound=Callable[..., None])


class OneLine(click.Group):
    """Turns our own errors and the system's into one line and exit code 1; wrong usage is exit code 2, as always."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (OfframpError, OSError) as error:
            raise click.ClickException(" ".join(str(error).split())) from None


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="offramp")
def main() -> None:
    """Early exit for transformer encoders: easy inputs leave after a few layers, hard ones use all of them.

    \b
    offramp train --train train.csv --validation validation.csv -o model
    offramp predict model texts.txt
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("offramp")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")


def column_options(command: Command) -> Command:
    """--text-column, --pair-column and --label-column."""
    for name in ("label", "pair", "text"):
        command = click.option(f"--{name}-column", help=f"The {name}'s column; guessed, and said, if not given.")(
            command
        )
    return command


def engine_option(command: Command) -> Command:
    """--engine, of commands that record."""
    told = "What runs the model; the others run what `offramp export` wrote."
    return click.option("--engine", type=click.Choice(ENGINES), default="torch", show_default=True, help=told)(command)


def scored_options(split: str) -> Callable[[Command], Command]:
    """--data or --trace, --split and --metric, for commands that score a model."""

    def add(command: Command) -> Command:
        command = click.option("--metric", help="accuracy, f1, macro-f1, matthews or pearson.")(command)
        command = click.option("--split", default=split, show_default=True, help="Of a named data set.")(command)
        command = engine_option(command)
        command = click.option("--trace", type=FILE, help="In place of --data: what `offramp record` wrote.")(command)
        return click.option("--data", metavar="FILE", help="Labelled data that was not trained on.")(command)

    return add


def exit_options(command: Command) -> Command:
    """What the exits are like, and how they learn."""
    rank = click.option("--bypass-rank", type=click.IntRange(min=1), help="Give exits bypasses of this rank (BADGE).")
    leaving = "Share of the tokens that these layers keep (MPEE)."
    for option in (
        click.option("--token-exit", metavar="2:0.7,4:0.7", help=leaving),
        click.option("--memory", type=click.FloatRange(0, 1, min_open=True), help="Let exits add up (MPEE's lambda)."),
        rank,
        click.option("--certainty", is_flag=True, help="Add a gate that learns how sure each exit is (BERxiT)."),
        click.option(
            "--exit-layers", metavar="2,4,6", help="Layers with an exit, the last among them.  [default: all]"
        ),
        click.option("--pooling", type=click.Choice(["first", "mean"]), default="mean", show_default=True),
        click.option("--head", type=click.Choice(HEADS), default="linear", show_default=True),
        click.option("--freeze", is_flag=True, help="Keep a fine-tuned model as it is; only the early exits learn."),
        click.option("--objective", type=click.Choice(sorted(OBJECTIVES)), default="weighted", show_default=True),
    ):
        command = option(command)
    return command


def policy_options(command: Command) -> Command:
    """--policy and its parameters."""
    names = click.Choice(sorted(POLICIES))
    ensemble = "Answer with the mean of the exits that were ready or agreed, or of all so far."
    command = click.option("--ensemble", type=click.Choice(["run", "all"]), help=ensemble)(command)
    window = click.Choice(["all", "consecutive"])
    command = click.option("--window", type=window, help="For divergence: which earlier exits count.")(command)
    divergence = click.Choice(["ce", "kl", "js"])
    command = click.option("--divergence", type=divergence, help="For divergence: how far exits are apart.")(command)
    patience = "For pcee, stability and divergence."
    command = click.option("--patience", type=click.IntRange(min=1), help=patience)(command)
    command = click.option("--measure", type=names, help="For pcee: which score must hold.")(command)
    return click.option("--policy", type=names, help="[default: margin; for regression, stability]")(command)


@main.command()
@click.option("-o", "--output", type=FOLDER, default=Path("offramp-demo"), show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), default=5, show_default=True)
@json_option
def demo(output: Path, seed: int, epochs: float, as_json: bool) -> None:
    """Train, calibrate and answer early on the built-in sample, in a few minutes.

    \b
    offramp demo
    """
    _quiet()
    from offramp.demo import main_job

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        figures = main_job(output, seed, epochs)
    if as_json:
        click.echo(json.dumps(figures))


@main.command()
@click.option(
    "--train",
    "train_source",
    required=True,
    metavar="FILE",
    help="csv, tsv, jsonl, parquet, or a data set's name.",
)
@click.option("--validation", "validation_source", required=True, metavar="FILE", help="Chooses the threshold.")
@click.option("-o", "--output", type=FOLDER, required=True, help="The model's folder.")
@click.option("--backbone", help="A hub name or a folder.  [default: the encoder that offramp[demo] brings]")
@click.option("--layers", type=click.IntRange(min=1), help="Keep so many of the encoder's layers.  [default: all]")
@click.option(
    "--task",
    type=click.Choice(["classification", "multi-label", "regression"]),
    default="classification",
    show_default=True,
)
@exit_options
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), default=5, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), default=1e-4, show_default=True)
@click.option("--max-length", type=click.IntRange(min=2), help="Tokens a text.  [default: what the encoder takes]")
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Of the default operating point.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--bf16", is_flag=True, help="Train in bfloat16: faster where the processor has it.")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@column_options
@json_option
def train(
    train_source: str,
    validation_source: str,
    output: Path,
    backbone: str | None,
    task: str,
    max_drop: float,
    max_length: int | None,
    objective: str,
    freeze: bool,
    resume: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Put exits on an encoder, train them, and choose where to leave.

    \b
    offramp train --train train.csv --validation validation.csv -o model
    offramp train --train glue/sst2 --validation glue/sst2 --backbone bert-base-uncased -o model
    offramp train --train helpdesk --validation helpdesk --label-column urgency --task regression -o model
    offramp train --train train.csv --validation dev.csv --backbone FINE_TUNED --objective two-stage --freeze -o model
    """
    _refuse_to_overwrite(output, resume)
    _quiet()
    from transformers import set_seed

    from offramp.data import read_examples
    from offramp.encoder import default_encoder
    from offramp.loading import load_tokenizer
    from offramp.registry import load_objective
    from offramp.tracing import read_for
    from offramp.tracing import record as record_trace
    from offramp.training import fit

    columns = _columns(given)
    rule = load_objective(objective, **({"freeze": True} if freeze else {}))
    set_seed(given["seed"])
    start = backbone or default_encoder()
    if freeze:
        model = _fine_tuned(start, given)
        data, held_out = (
            read_for(model.config, source, columns, split)
            for source, split in ((train_source, "train"), (validation_source, "validation"))
        )
    else:
        data = read_examples(train_source, columns, split="train", task=task)
        names = data.label_names or None
        held_out = read_examples(validation_source, columns, split="validation", task=task, label_names=names)
        model = _new_model(start, data, given)
    tokenizer = load_tokenizer(start)
    if max_length is not None:
        tokenizer.model_max_length = max_length
    fit(
        model,
        tokenizer,
        output,
        data,
        held_out,
        objective=rule,
        resume=resume,
        num_train_epochs=given["epochs"],
        per_device_train_batch_size=given["batch_size"],
        learning_rate=given["learning_rate"],
        seed=given["seed"],
        bf16=given["bf16"],
    )
    trace = record_trace(output, held_out)
    trace = replace(trace, about={**trace.about, "data": Path(validation_source).name})
    points = {}
    try:
        points["default"] = _calibrated(trace, None, {}, {"max_drop": max_drop}, None)
        _save_point(output, "default", points["default"])
    except (CannotReach, InvalidInput) as error:
        click.echo(f"no default operating point, answers run at full depth: {error}", err=True)
    _tell(as_json, trace, points)


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--data", required=True, metavar="FILE", help="csv, tsv, jsonl, parquet, or a data set's name.")
@click.option("-o", "--output", type=FILE, required=True, help="Where the trace goes, e.g. trace.safetensors.")
@click.option("--split", default="validation", show_default=True, help="Of a named data set.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@engine_option
@column_options
@json_option
def record(
    folder: Path, data: str, output: Path, split: str, batch_size: int, engine: str, as_json: bool, **given: Any
) -> None:
    """Run every layer on labelled data and keep what every exit said.

    \b
    offramp record model --data validation.csv -o trace.safetensors
    """
    _quiet()
    from offramp.tracing import record as record_trace

    trace = record_trace(folder, data, engine, columns=_columns(given), split=split, batch_size=batch_size)
    trace.save(output)
    shape = {
        "exits": trace.depth,
        "rows": len(trace),
        "outputs": trace.logits.shape[-1],
        "trace": str(output),
    }
    click.echo(json.dumps(shape) if as_json else f"{output}: {len(trace)} rows x {trace.depth} exits")


@main.command()
@click.argument("folder", type=FOLDER)
@scored_options("validation")
@click.option("--max-drop", type=click.FloatRange(0, 1), help="Keep at least (1 - this) of the full model's score.")
@click.option("--speedup", type=click.FloatRange(min=1), help="Layers of the full model over mean exit layer.")
@click.option("--agreement", type=click.FloatRange(0, 1), help="Share of rows with the full model's answer.")
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Promise --max-drop or --agreement with this probability, e.g. 0.95.",
)
@click.option("--name", default="default", show_default=True, help="Under which the point is saved with the model.")
@click.option("--temperature", is_flag=True, help="Fit a temperature for each exit first.")
@policy_options
@column_options
@json_option
def calibrate(
    folder: Path,
    confidence: float | None,
    name: str,
    policy: str | None,
    temperature: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Choose where to leave, and save the operating point with the model.

    With --confidence the target holds for rows drawn like the data, and a certificate is saved: accuracy stays at
    least (1 - MAX_DROP) of the full model's, or AGREEMENT of the answers are its own. Where there are too few rows for
    that the point stays at full depth, and says how many are needed.

    The policies consistency and gain, and temperatures, are fitted on a random half of the rows, and the threshold is
    chosen on the other half.

    \b
    offramp calibrate model --data validation.csv --max-drop 0.01
    offramp calibrate model --data validation.csv --max-drop 0.02 --confidence 0.95 --name sure
    offramp calibrate model --data validation.csv --max-drop 0.01 --policy consistency
    offramp calibrate model --trace trace.safetensors --policy pcee --patience 2 --speedup 2 --name fast
    """
    _quiet()
    target = {key: given[key] for key in ("max_drop", "speedup", "agreement") if given[key] is not None}
    if len(target) != 1:
        raise click.UsageError("give exactly one of --max-drop, --speedup, --agreement")
    if temperature and policy in FITTED:
        raise click.UsageError(f"--policy {policy} has a scale of its own; leave out --temperature")
    if confidence is not None and ("speedup" in target or given["metric"] not in (None, "accuracy")):
        raise click.UsageError("--confidence goes with --max-drop, which is then of accuracy, or with --agreement")
    trace = _trace(folder, given)
    parameters = {key: given[key] for key in POLICY_PARAMETERS if given[key] is not None}
    if temperature or policy in FITTED:
        fitted, trace = _fitted(trace, policy if policy in FITTED else None)
        parameters |= fitted
    if confidence is None:
        point = _calibrated(trace, policy, parameters, target, given["metric"])
    else:
        point = _certified(folder, trace, policy, parameters, target, confidence)
    _save_point(folder, name, point)
    _tell(as_json, trace, {name: point}, given["metric"])
    if point.certificate is not None and not as_json:
        click.echo(f"\n{point.certificate.words()}")


@main.command()
@click.argument("folder", type=FOLDER)
@scored_options("test")
@column_options
@json_option
def evaluate(folder: Path, as_json: bool, **given: Any) -> None:
    """Score every exit and every operating point of a model.

    \b
    offramp evaluate model --data test.csv
    """
    _quiet()
    _tell(as_json, _trace(folder, given), _points(folder), given["metric"])


@main.command()
@click.argument("folder", type=FOLDER)
@click.argument("source", default="-", metavar="[FILE]")
@click.option("-o", "--output", type=FILE, help="Where the answers go.  [default: standard output]")
@click.option(
    "--operating-point",
    help='The name of a saved point, or "full".  [default: the point "default", if there is one]',
)
@click.option("--engine", type=click.Choice(["auto", *ENGINES]), default="auto", show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--text-column", help="The text's column; guessed, and said, if not given.")
@click.option("--pair-column", help="The second text's column.")
def predict(
    folder: Path,
    source: str,
    output: Path | None,
    operating_point: str | None,
    engine: str,
    batch_size: int,
    **given: Any,
) -> None:
    """Answer texts from a file or standard input: one JSON object a line, in the order of the input.

    \b
    offramp predict model texts.txt > answers.jsonl
    echo "where is my parcel" | offramp predict model
    """
    _quiet()
    from tqdm import tqdm

    from offramp.data import read_rows
    from offramp.predictor import DEFAULT, Predictor

    point = None if operating_point == "full" else operating_point or DEFAULT
    predictor = Predictor.load(folder, engine, point)
    rows = read_rows(source, _columns(given), split="test", labelled=False)
    answers = predictor.stream((row.text for row in rows), batch_size)
    with _finished_only(output) as out:
        for told in tqdm(answers, desc="predict", unit="text", disable=None if output else True):
            out.write(json.dumps(told, ensure_ascii=False) + "\n")


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--int8", is_flag=True, help="Write model.int8.onnx: the encoder's weights in 8 bits.")
@click.option("--data", metavar="FILE", help="Labelled data to check the file on.  [default: the sample's texts]")
@click.option("--split", default="validation", show_default=True, help="Of a named data set.")
@policy_options
@column_options
@json_option
def export(
    folder: Path, int8: bool, data: str | None, split: str, policy: str | None, as_json: bool, **given: Any
) -> None:
    """Write the model as one ONNX graph that leaves early, checked against torch; its weights lie beside it (.data).

    The policy is that of the operating point "default" unless another is asked for; a graph that is there already takes
    another usual policy in seconds. Thresholds are an input of the graph.

    \b
    offramp export model
    offramp export model --int8 --data validation.csv
    offramp export model --policy entropy
    """
    _refuse_without_onnx()
    parameters = {key: given[key] for key in POLICY_PARAMETERS if given[key] is not None}
    if parameters and policy is None:
        raise click.UsageError("a policy's parameters need --policy")
    asked = {"name": policy, **parameters} if policy else None
    path = folder / GRAPHS["onnx-int8" if int8 else "onnx"]
    if asked and data is None and path.exists():
        from offramp.engine.assemble import switch_policy

        if runs := switch_policy(path, weights_digest(folder), asked):
            told = {"path": str(path), "policy": runs}
            click.echo(json.dumps(told) if as_json else f"{path} runs {_parameters(runs)} now")
            return
    _quiet()
    from offramp.exporting import export as write

    checked = write(folder, asked, int8=int8, dataset=data, columns=_columns(given), split=split)
    if as_json:
        click.echo(json.dumps({**asdict(checked), "path": str(checked.path)}))
        return
    click.echo(f"{checked.path}: {checked.bytes / 1e6:.1f} MB in {checked.seconds:.0f} s")
    click.echo(f"runs {_parameters(checked.policy)}; holds {', '.join(_parameters(each) for each in checked.policies)}")
    same = "" if checked.agreement is None else f"{checked.agreement:.2%} of the answers the same, "
    click.echo(f"{checked.rows} rows at full depth against torch: {same}logits at most {checked.difference:.2g} off")
    if checked.score is not None:
        click.echo(f"{checked.metric} {checked.score:.4f}, torch {checked.torch_score:.4f}")


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--data", required=True, metavar="FILE", help="Texts; labels, where there are some, are scored.")
@click.option("--split", default="test", show_default=True, help="Of a named data set.")
@click.option("--batch-size", "sizes", default="1,8,32", show_default=True, metavar="1,8,32")
@click.option("--engines", metavar=",".join(ENGINES), help="[default: torch, and the graphs that are there]")
@click.option("--rows", type=click.IntRange(min=1), default=512, show_default=True, help="So many texts at most.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="All texts, so many times.")
@column_options
@json_option
def bench(
    folder: Path,
    data: str,
    split: str,
    sizes: str,
    engines: str | None,
    rows: int,
    rounds: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Time the saved operating points against the plain model, without exits, in every runtime there is.

    It ends with whether early exit pays here. The machine should do nothing else meanwhile.

    \b
    offramp bench model --data test.csv
    offramp bench model --data test.csv --batch-size 1,32 --engines onnx-int8
    """
    try:
        batch_sizes = [int(size) for size in sizes.split(",")]
    except ValueError:
        batch_sizes = [0]
    if min(batch_sizes) < 1:
        raise click.UsageError(f"--batch-size takes numbers of rows such as 1,8,32; got {sizes!r}")
    _quiet()
    from offramp.contest import time_folder
    from offramp.engines import check_name
    from offramp.verdict import contest_text, verdict

    names = engines.split(",") if engines else None
    for name in names or ():
        check_name(name)
    columns = _columns(given)
    told = time_folder(folder, data, names, batch_sizes, rows=rows, rounds=rounds, columns=columns, split=split)
    click.echo(json.dumps({**asdict(told), "verdict": verdict(told)}) if as_json else contest_text(told))


@main.command()
@click.argument("folder", type=FOLDER)
@json_option
def info(folder: Path, as_json: bool) -> None:
    """Say what a model is, and where it can leave.

    \b
    offramp info model
    """
    _quiet()
    from offramp.model import load_folder
    from offramp.report import point_text

    model, _ = load_folder(folder)
    config = model.config
    facts: dict[str, Any] = {
        "backbone": config.backbone.model_type,
        "layers": config.backbone.num_hidden_layers,
        "exit_layers": model.layers,
        "head": config.head,
        "pooling": config.pooling,
        "problem_type": config.problem_type,
        "labels": [config.id2label[number] for number in range(config.num_labels)],
        "parameters": model.num_parameters(),
    }
    for name in ("own_head", "bypass", "certainty", "memory", "token_exit"):
        if value := getattr(config, name):
            facts[name] = value
    if graphs := _graphs(folder):
        facts["graphs"] = graphs
    points = {name: point.to_json() for name, point in model.operating_points.items()}
    void = _void(folder, model.operating_points)
    for name in void:
        points[name]["certificate"]["void"] = "the weights changed"
    if as_json:
        click.echo(json.dumps({**facts, "operating_points": points}))
        return
    for name, fact in facts.items():
        click.echo(f"{name:<14}{', '.join(map(str, fact)) if isinstance(fact, list) else fact}")
    for name, point in model.operating_points.items():
        click.echo(f"\noperating point {name!r}: {point_text(point)}")
        if name in void:
            click.echo("  void: the weights changed")


def _void(folder: Path, points: Mapping[str, OperatingPoint]) -> list[str]:
    """The points whose certificate is of other weights than these."""
    certified = {name: point.certificate.weights for name, point in points.items() if point.certificate}
    promised = {name: weights for name, weights in certified.items() if weights is not None}
    now = weights_digest(folder) if promised else None
    return [name for name, weights in promised.items() if weights != now]


def _refuse_without_onnx() -> None:
    if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]:
        raise InvalidInput(f"export needs {', '.join(missing)}: pip install 'offramp[onnx]'")


def _parameters(policy: Mapping[str, Any]) -> str:
    """A policy in words: "pcee (measure entropy, patience 2)"."""
    rest = ", ".join(f"{key} {value}" for key, value in brief(policy).items() if key != "name")
    return f"{policy['name']} ({rest})" if rest else str(policy["name"])


def _graphs(folder: Path) -> list[str]:
    """The exported files of a folder, and the policy that each runs."""
    files = [folder / name for name in GRAPHS.values() if (folder / name).exists()]
    if not files or find_spec("onnxruntime") is None:
        return [path.name for path in files]
    from offramp.engine.runner import Graph

    return [f"{path.name} ({_parameters(Graph.load(path).about.policy)})" for path in files]


def _quiet() -> None:
    """No bars and no chatter of transformers' own; offramp's say what matters."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _columns(given: Mapping[str, Any]) -> Columns:
    from offramp.data import Columns

    return Columns(given.get("text_column"), given.get("pair_column"), given.get("label_column"))


def _refuse_to_overwrite(folder: Path, resume: bool) -> None:
    if (folder / "config.json").exists():
        raise InvalidInput(f"{folder}: there is a model already; choose another folder")
    if (folder / "checkpoints").exists() and not resume:
        raise InvalidInput(
            f"{folder}: an unfinished run lies there; go on with it by --resume, or choose another folder"
        )


def _new_model(start: str, data: Any, given: Mapping[str, Any]) -> Any:
    from offramp.backbones.depth import restack
    from offramp.loading import load_encoder
    from offramp.model import MultiExitModel

    first = data.labels[0]
    outputs = len(first) if isinstance(first, list) else 1
    labels = {"id2label": dict(enumerate(data.label_names))} if data.label_names else {"num_labels": outputs}
    kept = given["layers"]
    encoder = restack(load_encoder(start), range(kept)) if kept else start
    return MultiExitModel.from_backbone(encoder, problem_type=data.problem_type, **labels, **_exits(given))


def _fine_tuned(start: str, given: Mapping[str, Any]) -> Any:
    from offramp.model import MultiExitModel

    if given["layers"]:
        raise click.UsageError("--freeze keeps the whole fine-tuned model, --layers a part of it; choose one")
    model = MultiExitModel.from_backbone(start, **_exits(given))
    if model.config.own_head is None:
        raise InvalidInput(f"{start}: --freeze keeps a fine-tuned classifier's head, and there is none to be kept")
    return model


def _exits(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the options say of the exits, as arguments of `from_backbone`."""
    from offramp.bypass import Bypass
    from offramp.token_exit import TokenExit

    asked, rank, leaving = given["exit_layers"], given["bypass_rank"], given["token_exit"]
    try:
        layers = [int(layer) for layer in asked.split(",")] if asked else None
    except ValueError:
        raise click.UsageError(f"--exit-layers takes numbers such as 2,4,6; got {asked!r}") from None
    try:
        pairs = [pair.split(":") for pair in leaving.split(",")] if leaving else []
        keep = {int(layer): float(share) for layer, share in pairs}
    except ValueError:
        raise click.UsageError(f"--token-exit takes layers and shares such as 2:0.7,4:0.7; got {leaving!r}") from None
    return {
        **{name: given[name] for name in ("head", "pooling", "certainty", "memory")},
        "bypass": Bypass(rank=rank) if rank else None,
        "token_exit": TokenExit(keep_ratio=keep) if keep else None,
        "exit_layers": layers,
    }


def _trace(folder: Path, given: Mapping[str, Any]) -> Trace:
    from offramp.tracing import record
    from offramp.values import Trace

    if (given["data"] is None) == (given["trace"] is None):
        raise click.UsageError("give either --data or --trace")
    if given["trace"] is not None:
        return Trace.load(given["trace"])
    return record(folder, given["data"], given["engine"], columns=_columns(given), split=given["split"])


def _fitted(trace: Trace, policy: str | None) -> tuple[dict[str, Any], Trace]:
    """Parameters fitted on a random half of the rows, of a policy or else temperatures, and the other half."""
    import torch

    from offramp.fitting import fit_policy, fit_temperatures
    from offramp.registry import policy_data

    if len(trace) < 2:
        raise InvalidInput("one row cannot be halved, and rows that fit do not choose the threshold")
    order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(0))
    ours, rest = (trace.take(rows) for rows in order.tensor_split(2))
    fitted = fit_temperatures(ours) if policy is None else policy_data(fit_policy(policy, ours))
    what = policy or "temperatures"
    click.echo(f"{what} fitted on {len(ours)} rows, the threshold chosen on the other {len(rest)}", err=True)
    return {key: value for key, value in fitted.items() if key != "name"}, rest


def _policy(trace: Trace, name: str | None, parameters: Mapping[str, Any]) -> Policy:
    """The policy asked for, or the usual one for the trace's kind of problem."""
    return load_policy(name or usual_policy(str(trace.problem_type)), **parameters)


def _calibrated(
    trace: Trace,
    policy: str | None,
    parameters: Mapping[str, Any],
    target: Mapping[str, float],
    metric: str | None,
) -> OperatingPoint:
    from offramp.thresholds import calibrate
    from offramp.values import Target

    return calibrate(trace, _policy(trace, policy, parameters), Target(**target), metric)


def _certified(
    folder: Path,
    trace: Trace,
    policy: str | None,
    parameters: Mapping[str, Any],
    target: Mapping[str, float],
    confidence: float,
) -> OperatingPoint:
    from offramp.risk import certify

    if trace.about.get("weights") != weights_digest(folder):
        raise InvalidInput(
            f"the trace was not recorded with the weights in {folder}, so it can promise nothing of them"
        )
    rule = _policy(trace, policy, parameters)
    risk, level = ("drop", target["max_drop"]) if "max_drop" in target else ("agreement", 1 - target["agreement"])
    return certify(trace, rule, risk, round(level, 12), round(1 - confidence, 12))


def _points(folder: Path) -> dict[str, OperatingPoint]:
    from offramp.values import POINTS_FILE, read_points

    path = folder / POINTS_FILE
    return read_points(path) if path.exists() else {}


def _save_point(folder: Path, name: str, point: OperatingPoint) -> None:
    from offramp.card import save_points

    exits = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("exit_layers")
    if exits is None:
        raise InvalidInput(f"{folder}: a model without exits; `offramp train` puts exits on it")
    if len(point.thresholds) != len(exits) - 1:
        raise InvalidInput(f"{folder} has {len(exits)} exits, but the trace has {len(point.thresholds) + 1}")
    save_points({**_points(folder), name: point}, folder)


def _tell(as_json: bool, trace: Trace, points: Mapping[str, OperatingPoint], metric: str | None = None) -> None:
    """Scores of the exits and of the points, on one trace."""
    from offramp.report import scores_data, scores_text

    click.echo(json.dumps(scores_data(trace, points, metric)) if as_json else scores_text(trace, points, metric))


@contextmanager
def _finished_only(path: Path | None) -> Iterator[IO[str]]:
    """A file that bears its name only once it is complete; None = standard output."""
    if path is None:
        yield sys.stdout
        return
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        yield file
    unfinished.replace(path)
