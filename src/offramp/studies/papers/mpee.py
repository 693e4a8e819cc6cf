"""MPEE: tokens and layers."""

from offramp.studies.papers.berxit import OWN, TWO_STAGE
from offramp.studies.papers.pabee import ENTROPY, PATIENCE, SIX, WEIGHTED, WHOLE
from offramp.studies.spec import AS_IT_IS, MacsReduced, Study, SystemSpec, TrainingSpec, printed

FAST_BERT = TrainingSpec("self-distillation-attention", "self-distillation", {"head": "attention"})
RECALLING = {**OWN, "memory": 0.9}
LAYERS_ALONE = TrainingSpec("mpee-all-tokens", "ensemble-distillation", RECALLING)
BOTH = TrainingSpec("mpee", "ensemble-distillation", RECALLING, tokens={4 / 12: 0.7, 7 / 12: 0.7, 10 / 12: 0.7})
TWICE, MORE = MacsReduced(2.0), MacsReduced(3.5)

TABLE_1 = f"""
 | | mnli | sst2 | mrpc | qqp | mnli-mm | qnli | rte
BERT-Base | {AS_IT_IS} | 83.9 1 | 92.1 1 | 86.3 1 | 91.1 1 | 83.8 1 | 91.2 1 | 71.1 1
BERT-6L | {AS_IT_IS} | 80.3 2 | 90.1 2 | 80.3 2 | 88.0 2 | 80.6 2 | 86.9 2 | 64.5 2
DeeBERT | {TWICE.label} | 74.3 1.92 | 90.4 1.97 | 79.9 1.95 | 88.2 1.96 | 74.5 1.91 | 86.4 1.95 | 63.8 1.96
FastBERT | {TWICE.label} | 74.5 1.93 | 90.8 1.98 | 80.3 1.96 | 88.4 1.96 | 74.8 1.92 | 86.7 1.92 | 65.0 1.98
PABEE | {TWICE.label} | 79.0 1.95 | 90.1 1.98 | 80.4 1.80 | 89.1 1.98 | 79.5 1.93 | 87.6 1.85 | 63.9 1.96
MPEE | {MORE.label} | 82.6 3.38 | 91.7 4.4 | 83.3 3.47 | 90.0 4.33 | 82.3 3.41 | 90.2 2.45 | 69.0 3.55
"""
TABLE_2 = f"""
 | | sst2 | mrpc | rte | qqp | qnli
w/o Layer-EE | {AS_IT_IS} | 91.3 2.43 | 81.1 2.62 | 68.2 2.43 | 87.3 2.43 | 90.0 1.74
w/o Token-EE | {TWICE.label} | 91.5 2.47 | 81.5 2.83 | 68.6 1.72 | 89.9 2.88 | 89.9 1.71
"""

STUDY = Study(
    name="mpee",
    source=(
        'Kong et al., "Accelerating Inference for Pretrained Language Models by Unified Multi-Perspective '
        'Early Exiting", COLING 2022, tables 1 and 2'
    ),
    systems=(
        SystemSpec("BERT-Base", WHOLE, regression=()),
        SystemSpec("BERT-6L", SIX, regression=()),
        SystemSpec("DeeBERT", TWO_STAGE, (ENTROPY,)),
        SystemSpec("FastBERT", FAST_BERT, (ENTROPY,)),
        SystemSpec("PABEE", WEIGHTED, (PATIENCE,)),
        SystemSpec("MPEE", BOTH, (ENTROPY,)),
        SystemSpec("w/o Layer-EE", BOTH),
        SystemSpec("w/o Token-EE", LAYERS_ALONE, (ENTROPY,)),
    ),
    budgets=(TWICE, MORE),
    shows=("score", "macs_ratio"),
    published=(
        *printed("table 1", "BERT-base", ("score", "macs_ratio"), TABLE_1),
        *printed("table 2", "BERT-base", ("score", "macs_ratio"), TABLE_2),
    ),
    plain=WHOLE,
    notes=(
        "On MRPC the paper prints F1 and accuracy; here stands the accuracy.",
        "Tokens leave at the same relative depths as in the authors' code, 4, 7 and 10 of 12, and 70% stay.",
        "Each cell of the paper is at a ratio of its own, told beside it.",
    ),
)
