"""PABEE: patience."""

from offramp.studies.spec import AS_IT_IS, SpeedupBetween, Study, SystemSpec, TrainingSpec, printed

POOLER = {"head": "shared_pooler"}
"""One pooler for all exits, as in the code that the printed figures come from; the paper writes "a linear layer"."""

WHOLE = TrainingSpec("plain-pooler", "last", POOLER, alone=True)
WEIGHTED = TrainingSpec("weighted-shared-pooler", "weighted", POOLER)
NINE = TrainingSpec("three-quarters-pooler", "last", POOLER, kept=0.75, alone=True)
SIX = TrainingSpec("half-pooler", "last", POOLER, kept=0.5, alone=True)

ENTROPY, LARGEST, PATIENCE = {"name": "entropy"}, {"name": "max-prob"}, {"name": "patience"}
STABILITY = tuple({"name": "stability", "patience": patience} for patience in (1, 2, 3))
BEST = SpeedupBetween(1.30, 1.96)

TABLE_1 = f"""
 | | cola | mnli | mrpc | qnli | qqp | rte | sst2 | stsb
Backbone | {AS_IT_IS} | 58.9 1.00 | 84.6 1.00 | 89.5 1.00 | 91.7 1.00 | 89.6 1.00 | 78.6 1.00 | 92.8 1.00 | 89.5 1.00
6L | {AS_IT_IS} | 53.4 1.96 | 80.2 1.96 | 85.8 1.96 | 87.2 1.96 | 86.8 1.96 | 73.6 1.96 | 89.8 1.96 | 83.4 1.96
9L | {AS_IT_IS} | 55.2 1.30 | 81.2 1.30 | 87.1 1.30 | 88.7 1.30 | 88.3 1.30 | 75.9 1.30 | 91.3 1.30 | 87.1 1.30
BranchyNet | {BEST.label} | 55.2 1.88 | 81.7 1.88 | 87.2 1.88 | 88.9 1.88 | 87.4 1.88 | 75.4 1.88 | 91.6 1.88 | -
Shallow-Deep | {BEST.label} | 55.5 1.95 | 81.5 1.95 | 87.1 1.95 | 89.2 1.95 | 87.8 1.95 | 75.2 1.95 | 91.7 1.95 | -
PABEE | {BEST.label} | 61.2 1.57 | 85.1 1.57 | 90.0 1.57 | 91.8 1.57 | 89.6 1.57 | 80.1 1.57 | 93.0 1.57 | 90.1 1.57
"""
TABLE_2 = f"""
 | | mnli | sst2 | stsb
Backbone | {AS_IT_IS} | 84.5 1.00 | 92.1 1.00 | 88.9 1.00
6L | {AS_IT_IS} | 80.1 1.96 | 89.6 1.96 | 81.2 1.96
9L | {AS_IT_IS} | 81.4 1.30 | 90.5 1.30 | 85.0 1.30
BranchyNet | {BEST.label} | 80.3 1.87 | 90.4 1.87 | -
Shallow-Deep | {BEST.label} | 80.5 1.91 | 90.6 1.91 | -
PABEE | {BEST.label} | 83.6 1.62 | 92.0 1.62 | 88.7 1.62
"""

STUDY = Study(
    name="pabee",
    source=(
        'Zhou et al., "BERT Loses Patience: Fast and Robust Inference with Early Exit", NeurIPS 2020, tables 1 and 2'
    ),
    systems=(
        SystemSpec("Backbone", WHOLE, regression=()),
        SystemSpec("9L", NINE, regression=()),
        SystemSpec("6L", SIX, regression=()),
        SystemSpec("BranchyNet", WEIGHTED, (ENTROPY,)),
        SystemSpec("Shallow-Deep", WEIGHTED, (LARGEST,)),
        SystemSpec("PABEE", WEIGHTED, (PATIENCE,), regression=STABILITY),
    ),
    budgets=(BEST,),
    shows=("score", "speedup"),
    published=(
        *printed("table 1, development sets", "ALBERT-base", ("score", "speedup"), TABLE_1),
        *printed("table 2", "BERT-base", ("score", "speedup"), TABLE_2),
    ),
    plain=WHOLE,
    notes=(
        "6L and 9L are cut after half and after three quarters of the layers, rounded.",
        "The paper's speed-ups are of the clock and averaged over its tasks; ours are layers over the mean exit layer.",
        "The paper sets PABEE's patience to 6 of 12 for all tasks; here it is chosen like the other thresholds.",
        "With two classes BranchyNet and Shallow-Deep are one policy.",
    ),
)
