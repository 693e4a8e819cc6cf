"""Claims of BERxiT: alternating training, learning to exit."""

from __future__ import annotations

from claims_base import (
    ALT,
    GRID,
    HALF,
    JOINT_POOLER,
    LEARNED,
    LEAST,
    MOST,
    SHALLOW,
    TWO_STAGE,
    VALUES,
    WEIGHTED,
    Claim,
    at_pace,
    exits,
)
from claims_measure import Side
from claims_page import COMPARABLE, LOWER, not_below
from offramp.studies.papers import berxit
from offramp.studies.spec import LayersSaved

BERXIT = (
    Claim(
        "berxit-1",
        "Alternating training has a better last exit than joint training.",
        "5.2, figures 2, 3",
        "plotted, not printed",
        exits(ALT, JOINT_POOLER, "last"),
        note="A pooler for each exit, as in the authors' code. The code restarts its odd and even steps in every epoch "
        "and leaves the last loss out of the even ones; here they are the paper's.",
        cases=SHALLOW,
    ),
    Claim(
        "berxit-2",
        "Its last exit is close to that of the plain model.",
        "5.2, figure 2",
        "about 100 % of it",
        exits(ALT, TWO_STAGE, "last"),
        not_below(1.0),
        note="The plain model is two-stage training's last exit.",
        cases=SHALLOW,
    ),
    Claim(
        "berxit-3",
        "Joint training costs the last exit quality.",
        "3, figure 2",
        "plotted, not printed",
        exits(JOINT_POOLER, TWO_STAGE, "last"),
        LOWER,
        cases=SHALLOW,
    ),
    Claim(
        "berxit-4",
        "Two-stage training costs the early exits quality, against joint training.",
        "3, 5.2, figure 2",
        "plotted, not printed",
        exits(TWO_STAGE, JOINT_POOLER, "early"),
        LOWER,
        note="Mean of all exits but the last. Two-stage training takes twice the steps here, as its second stage is as "
        "long as its first.",
        cases=SHALLOW,
    ),
    Claim(
        "berxit-5",
        "In the early layers alternating training is weaker than joint training.",
        "5.2, figure 2",
        "plotted, not printed",
        exits(ALT, JOINT_POOLER, "first half"),
        LOWER,
        note="Mean of the first half of the exits.",
        cases=SHALLOW,
    ),
    Claim(
        "berxit-6",
        "Along the trade-off curve alternating training is above joint training.",
        "5.3, figure 4",
        "areas 13.5 - 0.4 (RTE), 8.8 - 0.9 (MRPC), 18.2 - 0.2 (SST-2), in per cent times layers",
        tuple((Side(ALT, "max-prob", budget), Side(JOINT_POOLER, "max-prob", budget)) for budget in GRID),
        note="Mean over 20 to 70 % of the layers saved, in points. The paper's areas over some eleven layers are 1.2, "
        "0.7 and 1.6 points.",
        cases=SHALLOW,
    ),
    Claim(
        "berxit-7",
        "With little saved, alternating training is above joint training.",
        "5.3, figures 4, 5",
        "plotted, not printed",
        tuple((Side(ALT, "max-prob", budget), Side(JOINT_POOLER, "max-prob", budget)) for budget in GRID[:2]),
        note="Mean over 20 and 30 % saved.",
        cases=SHALLOW,
    ),
    Claim(
        "berxit-8",
        "Alternating training gives a better trade-off than two-stage training with entropy (DeeBERT).",
        "5.2, 5.3",
        "plotted, not printed",
        tuple((Side(ALT, "max-prob", budget), Side(TWO_STAGE, "entropy", budget)) for budget in GRID),
        note="Mean over 20 to 70 % of the layers saved.",
        cases=SHALLOW,
    ),
    Claim(
        "berxit-9",
        "About a third of the layers saved costs at most 1 % of the score.",
        "table 2",
        "98 to 101 % at 30 to 65 % saved (BERT-base)",
        ((Side(ALT, "max-prob", berxit.MILD), Side(TWO_STAGE)),),
        not_below(0.0),
        factor=0.99,
        note="Score at 30 % saved less 99 % of the plain model's. The paper uses the test server.",
        cases=SHALLOW,
    ),
    Claim(
        "berxit-10",
        "About half of the layers saved costs at most 4 % of the score.",
        "table 2",
        "96 to 99 % at 54 to 79 % saved (BERT-base)",
        ((Side(ALT, "max-prob", berxit.MIDDLE), Side(TWO_STAGE)),),
        not_below(0.0),
        factor=0.96,
        note="Score at 50 % saved less 96 % of the plain model's.",
        cases=SHALLOW,
    ),
    Claim(
        "berxit-11",
        "Learning to exit beats one layer for all samples, on classes.",
        "5.4, figure 6",
        "plotted, not printed (QNLI, QQP)",
        tuple((Side(LEARNED, "certainty", budget), Side(LEARNED, "fixed", budget)) for budget in (LEAST, HALF, MOST)),
        note="At 25, 50 and 75 % saved, same network. The gate reads the tanh-pooled vector, as in the authors' code.",
        cases=SHALLOW,
    ),
    Claim(
        "berxit-12",
        "Learning to exit beats one layer for all samples, on values.",
        "5.4, figure 6",
        "plotted, not printed (STS-B, SICK)",
        tuple((Side(LEARNED, "certainty", budget), Side(LEARNED, "fixed", budget)) for budget in (LEAST, HALF, MOST)),
        note="Pearson's correlation.",
        cases=VALUES,
    ),
    Claim(
        "berxit-13",
        "On STS-B learning to exit keeps 99 % of the score at 2.2x.",
        "table 3",
        "99 % at 2.2x, 98 % at 2.6x",
        ((Side(LEARNED, "certainty", LayersSaved(1 - 1 / 2.2)), Side(TWO_STAGE)),),
        not_below(0.0),
        factor=0.99,
        note="Score at 55 % of the layers saved (2.2x) less 99 % of the plain model's, two-stage training's last exit. "
        "Its table 2 prints 95 % at 50 % saved on the test set.",
        cases=VALUES,
    ),
    Claim(
        "berxit-14",
        "On STS-B learning to exit is better than PABEE's rule, if little.",
        "table 3",
        "2.2x against 2.1x at 99 %, 2.6x against 2.4x at 98 %",
        at_pace(
            Side(LEARNED, "certainty"), Side(WEIGHTED, "stability"), (LEARNED, "certainty"), (HALF, LayersSaved(0.6))
        ),
        note="At 50 and 60 % saved, each with its own training. The paper read PABEE's speeds off its figures.",
        cases=VALUES,
    ),
    Claim(
        "berxit-15",
        "On classes learning to exit is on a par with confidence.",
        "2, 5.4",
        "not printed",
        tuple(
            (Side(LEARNED, "certainty", budget), Side(LEARNED, "max-prob", budget)) for budget in (LEAST, HALF, MOST)
        ),
        COMPARABLE,
        note="At 25, 50 and 75 % saved, same network.",
        cases=SHALLOW,
    ),
)
