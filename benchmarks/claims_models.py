"""Claims of MPEE and BADGE, which change the model."""

from __future__ import annotations

from claims_base import (
    ALL,
    BEST_EXIT,
    BYPASS,
    CELLS,
    HALF,
    JOINT,
    JOINT_POOLER,
    LEAST,
    MOST,
    PLAIN,
    SHALLOW,
    T1,
    TWO_STAGE,
    WEIGHTED,
    Claim,
    at_pace,
    exits,
    gap,
    rivals,
)
from claims_measure import Side
from claims_page import COMPARABLE, not_below
from offramp.studies.papers import badge, mpee, pabee
from offramp.studies.spec import AS_IT_IS

BOTH, LAYERS_ALONE = mpee.BOTH.name, mpee.LAYERS_ALONE.name
TWICE, MORE = mpee.TWICE, mpee.MORE
MPEE_MORE, SCHEDULE = (
    Side(BOTH, "entropy", MORE),
    "Multiply-accumulates at true lengths. Tokens leave at 4, 7 and 10 of 12 and 70 % stay, as in the code; the "
    "paper's equation 7 reads as 30 %.",
)

MPEE = (
    Claim(
        "mpee-1",
        "3.5x fewer FLOPs cost little: at most 3 points.",
        "table 1",
        f"2.45x to 4.4x at {gap(mpee.STUDY, 'MPEE', 'BERT-Base', T1, (MORE.label, AS_IT_IS))}",
        ((MPEE_MORE, PLAIN),),
        not_below(3.0),
        note=f"{SCHEDULE} 3 points is the paper's largest loss (MRPC).",
        cases=SHALLOW,
    ),
    Claim(
        "mpee-2",
        "Both axes together are better than layers alone, at 3.5x.",
        "table 2",
        "ratio falls from 2.45-4.4x to 1.71-2.88x without token exit, the score by 0.2 to 1.8 points",
        ((MPEE_MORE, Side(LAYERS_ALONE, "entropy", MORE)),),
        note=SCHEDULE,
        cases=SHALLOW,
    ),
    Claim(
        "mpee-3",
        "Both axes together are better than layers alone, at 2x.",
        "table 2",
        "not printed at equal ratios",
        ((Side(BOTH, "entropy", TWICE), Side(LAYERS_ALONE, "entropy", TWICE)),),
        note=SCHEDULE,
        cases=SHALLOW,
    ),
    Claim(
        "mpee-4",
        "Leaving by layers as well costs tokens alone nothing: 2x is as good as tokens alone at full depth.",
        "table 2",
        "without layer exit 0.2 to 2.7 points less, at 1.74x to 2.62x",
        ((Side(BOTH, "entropy", TWICE), Side(BOTH)),),
        not_below(1.0),
        note=SCHEDULE,
        cases=SHALLOW,
    ),
    Claim(
        "mpee-5",
        "It is more accurate at 3.5x than DeeBERT at 2x.",
        "table 1",
        gap(mpee.STUDY, "MPEE", "DeeBERT", T1, (MORE.label, TWICE.label)),
        ((MPEE_MORE, Side(TWO_STAGE, "entropy", TWICE)),),
        note="DeeBERT is two-stage training with entropy.",
        cases=SHALLOW,
    ),
    Claim(
        "mpee-6",
        "It is more accurate at 3.5x than FastBERT at 2x.",
        "table 1",
        gap(mpee.STUDY, "MPEE", "FastBERT", T1, (MORE.label, TWICE.label)),
        ((MPEE_MORE, Side(mpee.FAST_BERT.name, "entropy", TWICE)),),
        cases=SHALLOW,
    ),
    Claim(
        "mpee-7",
        "It is more accurate at 3.5x than PABEE at 2x.",
        "table 1",
        gap(mpee.STUDY, "MPEE", "PABEE", T1, (MORE.label, TWICE.label)),
        ((MPEE_MORE, Side(WEIGHTED, "patience", TWICE)),),
        cases=SHALLOW,
    ),
    Claim(
        "mpee-8",
        "At equal FLOPs it is more accurate than DeeBERT, FastBERT and PABEE.",
        "figure 3",
        "plotted, not printed",
        tuple(
            (Side(BOTH, "entropy", TWICE), Side(training, policy, TWICE))
            for training, policy in (
                (TWO_STAGE, "entropy"),
                (mpee.FAST_BERT.name, "entropy"),
                (WEIGHTED, "patience"),
            )
        ),
        note="Mean of the three rivals, all at 2x.",
        cases=SHALLOW,
    ),
    Claim(
        "mpee-9",
        "It is more accurate at 3.5x than a model cut to half of its layers (2x).",
        "table 1",
        gap(mpee.STUDY, "MPEE", "BERT-6L", T1, (MORE.label, AS_IT_IS)),
        ((MPEE_MORE, Side(pabee.SIX.name)),),
        cases=SHALLOW,
    ),
    Claim(
        "mpee-10",
        "Exit memory and distillation from all exits make better exits.",
        "3.2, table 2",
        "-0.2 to -0.8 without memory, -0.2 to -1.1 without distillation (accuracy)",
        exits(LAYERS_ALONE, JOINT_POOLER, "all"),
        note="Mean score of all exits, both parts together against joint training with the same heads; the paper takes "
        "them out one by one. The direction of the divergence and the loss weights are the code's.",
        cases=SHALLOW,
    ),
)


def bypass_against(number: int, training: str, words: str, note: str = "") -> Claim:
    """Return the bypass' mean over the exits against that of another training."""
    return Claim(
        f"badge-{number}",
        f"Averaged over the exits, bypasses beat {words}.",
        "table 1",
        gap(badge.STUDY, BYPASS, training, T1),
        exits(BYPASS, training, "all"),
        note=note,
        cases=CELLS if training == JOINT else SHALLOW,
    )


def best_exit(training: str) -> Side:
    """Return a training's best exit on the half that chooses."""
    return Side(training, "fixed", BEST_EXIT)


ON_BYPASS = "Mean of patience's savings near 25, 50 and 75 %, all on the network with bypasses."
BADGE = (
    bypass_against(
        1,
        JOINT,
        "joint training",
        "Exits read the mean over the tokens, where ALBERT's read the first token. A bypass has its own LayerNorm (the "
        "paper's count of parameters asks for it) and starts at 0.",
    ),
    bypass_against(2, badge.TWO_STAGE.name, "two-stage training", "Two-stage training takes twice the steps here."),
    bypass_against(3, badge.ALTERNATING.name, "alternating training"),
    bypass_against(4, badge.EQUILIBRIUM.name, "gradient equilibrium"),
    bypass_against(5, badge.ATTENTION.name, "joint training with attention exits"),
    Claim(
        "badge-6",
        "The best exit with bypasses beats the best of joint training.",
        "table 1",
        gap(badge.STUDY, BYPASS, JOINT, T1),
        ((best_exit(BYPASS), best_exit(JOINT)),),
        note="The best exit is that of the half that chooses; the paper takes the best on the rows reported.",
    ),
    Claim(
        "badge-7",
        "The best exit with bypasses is as good as the plainly fine-tuned model.",
        "table 1",
        "77.9 and 77.6 (RTE), 89.6 and 89.1 (MRPC), 83.8 and 83.7 (MNLI)",
        ((best_exit(BYPASS), Side("plain")),),
        not_below(1.0),
        note="The plain model has the same linear head.",
        cases=SHALLOW,
    ),
    Claim(
        "badge-8",
        "Divergence (DGE) beats entropy.",
        "figure 2",
        "plotted, not printed",
        rivals("divergence", "entropy", MOST, HALF, LEAST, training=BYPASS),
        note=f"{ON_BYPASS} The paper's divergence is a cross-entropy, which asks for confidence, too; its "
        "patience is 1, 2 or 3.",
    ),
    Claim(
        "badge-9",
        "Divergence beats the largest probability.",
        "figure 2",
        "plotted, not printed",
        rivals("divergence", "max-prob", MOST, HALF, LEAST, training=BYPASS),
        note=f"{ON_BYPASS} With two classes the same rule as entropy.",
    ),
    Claim(
        "badge-10",
        "Divergence beats patience.",
        "figure 2",
        "plotted, not printed",
        rivals("divergence", "patience", MOST, HALF, LEAST, training=BYPASS),
        note=ON_BYPASS,
    ),
    Claim(
        "badge-11",
        "Above all where much is saved: divergence beats entropy there.",
        "4.5, figure 2",
        "plotted, not printed",
        rivals("divergence", "entropy", MOST, training=BYPASS),
        note="Near 75 % saved; six layers save two thirds at most.",
    ),
    Claim(
        "badge-12",
        "Divergence beats patience on networks without bypasses as well.",
        "abstract (each part is off the shelf)",
        "not printed",
        rivals("divergence", "patience", MOST, HALF, LEAST),
        note="On PABEE's network, mean of the three savings.",
        cases=ALL,
    ),
    Claim(
        "badge-13",
        "Kullback-Leibler in place of cross-entropy does as well.",
        "3.2, footnote 1",
        "not printed",
        rivals("divergence-kl", "divergence", MOST, HALF, LEAST, training=BYPASS),
        COMPARABLE,
        note=ON_BYPASS,
    ),
    Claim(
        "badge-14",
        "Jensen-Shannon in place of cross-entropy does as well.",
        "3.2, footnote 1",
        "not printed",
        rivals("divergence-js", "divergence", MOST, HALF, LEAST, training=BYPASS),
        COMPARABLE,
        note=ON_BYPASS,
    ),
    Claim(
        "badge-15",
        "A network with bypasses is the better one for patience, at every saving.",
        "4.5, figure 2",
        "plotted, not printed",
        at_pace(Side(BYPASS, "patience"), Side(JOINT, "patience"), (JOINT, "patience"), (MOST, HALF, LEAST)),
        note="At the savings nearest to those of patience on the joint network; both come in steps.",
    ),
    Claim(
        "badge-16",
        "A bypass of the feed-forward part alone does about as well.",
        "4.6, table 2",
        "-0.6 and -0.3 (average)",
        exits(badge.BYPASS_FFN.name, BYPASS, "all"),
        COMPARABLE,
        cases=SHALLOW,
    ),
    Claim(
        "badge-19",
        "Divergence beats entropy on networks without bypasses as well.",
        "abstract (each part is off the shelf)",
        "not printed",
        rivals("divergence", "entropy", MOST, HALF, LEAST),
        note="On PABEE's network, mean of the three savings.",
        cases=ALL,
    ),
)
