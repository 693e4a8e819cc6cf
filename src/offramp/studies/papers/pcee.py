"""PCEE-BERT: patience and confidence."""

from offramp.studies.papers.pabee import ENTROPY, LARGEST, PATIENCE, POOLER, WEIGHTED, WHOLE
from offramp.studies.spec import AS_IT_IS, LayersSaved, Study, SystemSpec, TrainingSpec, printed

GATED = TrainingSpec("weighted-shared-pooler-gate", "weighted", {**POOLER, "certainty": True})
"""With BERxiT's gate, which needs a training of its own."""
CERTAINTY = {"name": "certainty"}
PATIENT = tuple({"name": "pcee", "measure": "entropy", "patience": patience} for patience in (2, 3, 6))
MOST, HALF, LEAST = LayersSaved(0.75), LayersSaved(0.50), LayersSaved(0.25)

TABLE_2 = f"""
 | | cola | mnli | mrpc | qnli | qqp | rte | sst2
BERT base | {AS_IT_IS} | 0.542 0 | 0.831 0 | 0.868 0 | 0.898 0 | 0.892 0 | 0.691 0 | 0.913 0
Budgeted | {MOST.label} | 0.0 75 | 0.700 75 | 0.758 75 | 0.774 75 | 0.818 75 | 0.547 75 | 0.810 75
Budgeted | {HALF.label} | 0.0 50 | 0.796 50 | 0.847 50 | 0.853 50 | 0.893 50 | 0.681 50 | 0.886 50
Budgeted | {LEAST.label} | 0.519 25 | 0.830 25 | 0.870 25 | 0.884 25 | 0.903 25 | 0.690 25 | 0.912 25
BranchyNet | {MOST.label} | 0.0 74 | 0.638 76 | 0.757 76 | 0.742 80 | 0.716 80 | 0.547 76 | 0.799 76
BranchyNet | {HALF.label} | 0.0 51 | 0.783 53 | 0.830 52 | 0.871 47 | 0.893 50 | 0.674 47 | 0.883 49
BranchyNet | {LEAST.label} | 0.521 27 | 0.830 25 | 0.858 24 | 0.893 27 | 0.901 26 | 0.680 26 | 0.912 24
Shallow-Deep | {MOST.label} | 0.0 75 | 0.641 77 | 0.756 76 | 0.743 78 | 0.714 79 | 0.547 76 | 0.795 77
Shallow-Deep | {HALF.label} | 0.0 52 | 0.782 51 | 0.828 51 | 0.872 49 | 0.896 51 | 0.672 48 | 0.884 48
Shallow-Deep | {LEAST.label} | 0.523 26 | 0.829 26 | 0.857 25 | 0.893 26 | 0.901 27 | 0.678 26 | 0.912 25
BERxiT | {MOST.label} | 0.0 76 | 0.635 76 | 0.756 76 | 0.733 78 | 0.682 80 | 0.553 77 | 0.795 76
BERxiT | {HALF.label} | 0.1232 52 | 0.784 51 | 0.829 51 | 0.870 48 | 0.891 49 | 0.673 47 | 0.883 49
BERxiT | {LEAST.label} | 0.522 25 | 0.832 26 | 0.862 26 | 0.896 27 | 0.901 26 | 0.681 27 | 0.914 24
PABEE | {MOST.label} | 0.0 75 | 0.639 77 | 0.758 75 | 0.736 81 | 0.686 82 | 0.558 75 | 0.799 77
PABEE | {HALF.label} | 0.0 50 | 0.789 52 | 0.831 53 | 0.872 46 | 0.896 49 | 0.677 46 | 0.887 48
PABEE | {LEAST.label} | 0.524 26 | 0.834 24 | 0.861 26 | 0.898 28 | 0.904 24 | 0.683 28 | 0.917 22
PCEE-BERT | {MOST.label} | 0.098 79 | 0.734 72 | 0.788 77 | 0.804 75 | 0.796 82 | 0.584 76 | 0.836 76
PCEE-BERT | {HALF.label} | 0.232 57 | 0.801 53 | 0.848 53 | 0.871 54 | 0.908 49 | 0.694 47 | 0.904 48
PCEE-BERT | {LEAST.label} | 0.528 27 | 0.834 28 | 0.868 26 | 0.905 27 | 0.912 25 | 0.697 30 | 0.918 23
"""

STUDY = Study(
    name="pcee",
    source=(
        'Zhang et al., "PCEE-BERT: Accelerating BERT Inference via Patient and Confident Early Exiting", '
        "Findings of NAACL 2022, table 2"
    ),
    systems=(
        SystemSpec("BERT base", WHOLE, regression=()),
        SystemSpec("Budgeted", WEIGHTED, ({"name": "fixed"},), regression=({"name": "fixed"},)),
        SystemSpec("BranchyNet", WEIGHTED, (ENTROPY,)),
        SystemSpec("Shallow-Deep", WEIGHTED, (LARGEST,)),
        SystemSpec("BERxiT", GATED, (CERTAINTY,), regression=(CERTAINTY,)),
        SystemSpec("PABEE", WEIGHTED, (PATIENCE,)),
        SystemSpec("PCEE-BERT", WEIGHTED, PATIENT),
        SystemSpec("PCEE-BERT-v1", WEIGHTED, tuple({**policy, "measure": "max-prob"} for policy in PATIENT)),
        SystemSpec("DGE", WEIGHTED, tuple({"name": "divergence", "patience": patience} for patience in (1, 2, 3))),
    ),
    budgets=(MOST, HALF, LEAST),
    shows=("score", "saving"),
    published=printed("table 2", "BERT-base", ("score", "saving"), TABLE_2, scales=(100, 0.01)),
    plain=WHOLE,
    pace="PABEE",
    notes=(
        "As in the paper the others are brought to the savings that PABEE can have, which come in steps; Budgeted has "
        'steps of its own. Where PABEE is far off ("none"), they are brought to what is asked.',
        "BERxiT's gate needs a training of its own, as in the paper. The paper prints 0.1232 for it on CoLA at 50%.",
        "PCEE-BERT-v1 is section 4.6.1 (no figures printed), DGE is BADGE's policy on the same model.",
        "With two classes BranchyNet and Shallow-Deep are one policy, and so are PCEE-BERT and PCEE-BERT-v1.",
    ),
)
