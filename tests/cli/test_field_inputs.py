"""Every command that reads data, on small inputs that failed elsewhere: an answer or one line, never a traceback."""

import json
from pathlib import Path

import pytest

from support.command_line import offramp
from support.models import balanced, save_folder, tiny_model

FIELD = Path(__file__).parents[3] / "shared" / "field"
COMMANDS = {
    "predict": ("predict", "MODEL", "FILE"),
    "predict from standard input": ("predict", "MODEL"),
    "record": ("record", "MODEL", "--data", "FILE", "-o", "OUT"),
    "calibrate": ("calibrate", "MODEL", "--data", "FILE", "--agreement", "0.9"),
    "evaluate": ("evaluate", "MODEL", "--data", "FILE"),
}
REPORT = ("report", "MODEL", "--data", "FILE", "--no-timing", "-o", "OUT")
ROWS = {"blank_line.txt": 3, "empty_cell.csv": 3, "missing_text.jsonl": 3, "surrogate.jsonl": 3, "p_blank.csv": 3}
ROWS |= {"array.json": 2, "brace.txt": 2, "crlf.txt": 2, "quote.tsv": 2, "two.jsonl": 2, "hot.jsonl": 4}


SLOW = pytest.param("report", marks=pytest.mark.slow)


@pytest.mark.parametrize("command", [*COMMANDS, SLOW])
def test_no_input_of_the_field_ends_in_a_traceback(command: str, tmp_path: Path) -> None:
    if not FIELD.is_dir():
        pytest.skip("the inputs from the field are not beside the repository")
    names = {0: "cancel", 1: "order_status"}
    model = save_folder(tmp_path / "model", balanced(tiny_model(id2label=names)))
    for path in sorted(FIELD.iterdir()):
        values = {"MODEL": model, "FILE": path, "OUT": tmp_path / "out"}
        arguments = [values.get(argument, argument) for argument in COMMANDS.get(command, REPORT)]
        piped = command.endswith("standard input")
        text = path.read_text(encoding="utf-8") if piped else None
        result = offramp(*arguments, given=text)
        assert result.exit_code in (0, 1), (path.name, result.output)
        errors = [line for line in result.stderr.splitlines() if line.startswith("Error")]
        assert len(errors) == result.exit_code, (path.name, result.stderr)
        if command == "predict" and path.name in ROWS:
            assert result.exit_code == 0, (path.name, result.output)
            assert len(list(map(json.loads, result.stdout.splitlines()))) == ROWS[path.name]
