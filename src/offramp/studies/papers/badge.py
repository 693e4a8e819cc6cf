"""BADGE: bypasses and divergence."""

from offramp.studies.papers.pabee import ENTROPY, LARGEST, PATIENCE
from offramp.studies.spec import AS_IT_IS, EXITS, PLAIN, LayersSaved, Study, SystemSpec, TrainingSpec, printed

TWO_STAGE = TrainingSpec("two-stage", "two-stage")
JOINT = TrainingSpec("joint", "joint")
ATTENTION = TrainingSpec("joint-attention", "joint", {"head": "attention"})
EQUILIBRIUM = TrainingSpec("gradient-equilibrium", "gradient-equilibrium")
ALTERNATING = TrainingSpec("alternating", "alternating")
BYPASS = TrainingSpec("joint-bypass", "joint", {"bypass": {"rank": 16}})
BYPASS_FFN = TrainingSpec("joint-bypass-ffn", "joint", {"bypass": {"rank": 16, "placement": "ffn"}})
DIVERGENCE = tuple({"name": "divergence", "patience": patience} for patience in (1, 2, 3))
KL, JS = (tuple({**policy, "divergence": kind} for policy in DIVERGENCE) for kind in ("kl", "js"))

TABLE_1 = f"""
 | | rte | mrpc | mnli
{TWO_STAGE.name} | {EXITS} | 68.9 77.6 | 83.0 89.1 | 76.2 83.7
{JOINT.name} | {EXITS} | 66.8 72.5 | 84.4 87.9 | 76.0 83.8
{ATTENTION.name} | {EXITS} | 67.5 75.9 | 84.8 87.9 | 76.8 83.2
{EQUILIBRIUM.name} | {EXITS} | 67.3 77.4 | 84.2 88.4 | 76.5 83.6
{ALTERNATING.name} | {EXITS} | 68.5 77.8 | 84.6 88.3 | 76.6 82.9
{BYPASS.name} | {EXITS} | 70.2 77.9 | 86.0 89.6 | 77.8 83.8
"""
WHOLE = f"""
 | | rte | mrpc | mnli
ALBERT | {AS_IT_IS} | 77.6 | 89.1 | 83.7
"""
ELASTIC_BERT = f"""
 | | rte
{JOINT.name} | {EXITS} | 62.3 70.7
{ALTERNATING.name} | {EXITS} | 63.1 70.9
{BYPASS.name} | {EXITS} | 64.5 72.3
"""
BERT = f"""
 | | rte
{JOINT.name} | {EXITS} | 61.5 68.9
{ALTERNATING.name} | {EXITS} | 61.9 69.3
{BYPASS.name} | {EXITS} | 62.7 70.5
"""

STUDY = Study(
    name="badge",
    source=(
        'Zhu et al., "BADGE: Speeding Up BERT Inference after Deployment via Block-wise Bypasses and '
        'Divergence-based Early Exiting", ACL 2023 (industry track), tables 1 and 6, figure 2'
    ),
    systems=(
        SystemSpec("ALBERT", PLAIN, regression=()),
        SystemSpec("Entropy", BYPASS, (ENTROPY,)),
        SystemSpec("Maxprob", BYPASS, (LARGEST,)),
        SystemSpec("Patience", BYPASS, (PATIENCE,)),
        SystemSpec("DGE", BYPASS, DIVERGENCE),
        SystemSpec("DGE, KL", BYPASS, KL),
        SystemSpec("DGE, JS", BYPASS, JS),
        SystemSpec("JT+Patience", JOINT, (PATIENCE,)),
    ),
    budgets=(LayersSaved(0.75), LayersSaved(0.50), LayersSaved(0.25)),
    shows=("score", "saving"),
    published=(
        *printed("table 1", "ALBERT-base", ("score",), WHOLE),
        *printed("table 1", "ALBERT-base", ("average", "best"), TABLE_1),
        *printed("table 6", "ElasticBERT-base", ("average", "best"), ELASTIC_BERT),
        *printed("table 6", "BERT-base", ("average", "best"), BERT),
    ),
    trainings=(TWO_STAGE, JOINT, ATTENTION, EQUILIBRIUM, ALTERNATING, BYPASS, BYPASS_FFN),
    pace="Patience",
    notes=(
        "Figure 2 compares the policies as curves without numbers; here they are read at Patience's savings.",
        "Left out: single exits (a model for each layer), Global Past-Future, the learned gate, and the paper's own "
        "three data sets, which are not public.",
    ),
)
