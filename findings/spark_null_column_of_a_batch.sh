#!/usr/bin/env bash
# Expected by most: a pandas UDF may return a column of strings in which all cells are missing, as it may return one in
#   which some are; the schema says that they are strings.
# What happens: where all cells of a batch are missing, pandas has them as NaN of the type float64, and Spark fails with
#   "Cannot convert pyarrow.lib.ChunkedArray to pyarrow.lib.Array", a message about neither. One string in the batch, None
#   in place of NaN, or the type "string" and it works.
# Where it matters: answers or errors, of which a row has one (`pd.DataFrame(list_of_dicts, columns=[...])`). The job works
#   in tests and fails late, on the first batch in which no row has an error.
# Source: measured here, with pandas 3.1.1 too; needs Java 17 or later.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pyspark==4.3.0" "pandas==2.3.3" \
    "pyarrow==26.0.1" "setuptools<81" 2>/dev/null
cat > "$folder/missing.py" <<'PYTHON'
import pandas as pd
import pyspark
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
spark.sparkContext.setLogLevel("OFF")
print(f"pyspark {pyspark.__version__}, pandas {pd.__version__}")


def outcome(make) -> str:
    schema = "label string, error string"
    table = spark.range(3, numPartitions=1).mapInPandas(lambda batches: (make() for _ in batches), schema)
    try:
        return str([tuple(row) for row in table.collect()])
    except pyspark.errors.PythonException as error:
        return str(error).strip().splitlines()[-1]


names = ["label", "error"]
cases = {
    "no error in the batch": lambda: pd.DataFrame([{"label": "a"}, {"label": "b"}], columns=names),
    "one error in the batch": lambda: pd.DataFrame([{"label": "a"}, {"error": "b"}], columns=names),
    "None": lambda: pd.DataFrame({"label": ["a", "b"], "error": [None, None]}),
    "typed": lambda: pd.DataFrame([{"label": "a"}, {"label": "b"}], columns=names).astype("string"),
}
found = {name: outcome(make) for name, make in cases.items()}
for name, result in found.items():
    print(f"{name}: {result}")
assert found["no error in the batch"] == "TypeError: Cannot convert pyarrow.lib.ChunkedArray to pyarrow.lib.Array"
assert found["one error in the batch"] == "[('a', None), (None, 'b')]"
assert found["None"] == found["typed"] == "[('a', None), ('b', None)]"
print("as described")
PYTHON
PYSPARK_PYTHON="$folder/venv/bin/python" "$folder/venv/bin/python" "$folder/missing.py" 2>/dev/null
