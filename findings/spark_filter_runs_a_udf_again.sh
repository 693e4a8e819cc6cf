#!/usr/bin/env bash
# Expected by most: a column that a pandas UDF has made is made once; a filter on one of its fields reads it.
# What happens: Spark pushes the filter below the column. The UDF runs on all rows to filter them, and again on those that
#   are left, in one query. Without a filter, or with `asNondeterministic()`, it runs once.
# Where it matters: a UDF that runs a model: `where("answer.error is null")` nearly doubles the time of a job, and nothing
#   says so but the plan, which has ArrowEvalPython twice.
# Source: measured here; needs Java 17 or later.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pyspark==4.3.0" "pandas==2.3.3" "pyarrow==26.0.1" \
    "setuptools<81" 2>/dev/null
cat > "$folder/filtered.py" <<'PYTHON'
import pandas as pd
import pyspark
from pyspark.sql import SparkSession
from pyspark.sql.functions import pandas_udf

spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
spark.sparkContext.setLogLevel("OFF")
print(f"pyspark {pyspark.__version__}, pandas {pd.__version__}")
calls = spark.sparkContext.accumulator(0)


def halves(numbers: pd.Series) -> pd.DataFrame:
    calls.add(len(numbers))
    return pd.DataFrame({"half": numbers // 2, "rest": numbers % 2})


def rows_run(udf, condition: str) -> int:
    before = calls.value
    table = spark.range(100, numPartitions=1).withColumn("answer", udf("id"))
    assert len(table.where(condition).collect()) == (100 if condition == "true" else 90)
    return calls.value - before


udf = pandas_udf(halves, "half long, rest long")
found = [
    rows_run(udf, "true"),
    rows_run(udf, "answer.half >= 5"),
    rows_run(udf.asNondeterministic(), "answer.half >= 5"),
]
print("rows that a UDF ran on, of 100: without a filter {}, with one {}, as nondeterministic {}".format(*found))
assert found == [100, 190, 100], found
print("as described")
PYTHON
PYSPARK_PYTHON="$folder/venv/bin/python" "$folder/venv/bin/python" "$folder/filtered.py" 2>/dev/null
