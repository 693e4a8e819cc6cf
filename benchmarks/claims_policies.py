"""Claims of PABEE and PCEE-BERT, whose policies run on one network."""

from __future__ import annotations

from claims_base import (
    ALL,
    BERT_T2,
    BEST_EXIT,
    HALF,
    LEAST,
    MOST,
    PLAIN,
    SHALLOW,
    T1,
    TWELVE,
    TWO_STAGE,
    VALUES,
    WEIGHTED,
    Claim,
    at_pace,
    gap,
    rivals,
)
from claims_measure import Side
from claims_page import COMPARABLE, LOWER
from offramp.studies.papers import pabee, pcee
from offramp.studies.spec import AS_IT_IS, LayersSaved

PABEE_BEST = Side(WEIGHTED, "patience", pabee.BEST)
CHOSEN = "PABEE's patience is the best of 1.30x to 1.96x (layers) on the half that chooses, as for its rivals."

PABEE = (
    Claim(
        "pabee-1",
        "With patience the model is more accurate than the plainly fine-tuned one, at about 1.57x.",
        "table 1 (ALBERT), table 2 (BERT)",
        f"{gap(pabee.STUDY, 'PABEE', 'Backbone', T1, (pabee.BEST.label, AS_IT_IS))} (ALBERT); "
        f"{gap(pabee.STUDY, 'PABEE', 'Backbone', BERT_T2, (pabee.BEST.label, AS_IT_IS))} (BERT)",
        ((PABEE_BEST, PLAIN),),
        note=f"{CHOSEN} The plain model is a network of its own with one exit. Head: one shared pooler, as in the "
        "authors' code; the paper writes a linear layer.",
    ),
    Claim(
        "pabee-2",
        "The gain is the rule's: agreement of several exits beats the last exit of the same network.",
        "3.2, 3.4, 4.4",
        "not printed",
        ((PABEE_BEST, Side(WEIGHTED)),),
        note=f"{CHOSEN} The paper does not separate the rule from the training with exits; here both sides are one "
        "network. The traces of CLINC150, SST-2 and SNLI have linear heads.",
        cases=ALL,
    ),
    Claim(
        "pabee-3",
        "It beats a model cut to three quarters of its layers.",
        "table 1",
        gap(pabee.STUDY, "PABEE", "9L", T1, (pabee.BEST.label, AS_IT_IS)),
        ((PABEE_BEST, Side(pabee.NINE.name)),),
        note=f"{CHOSEN} The cut model is fine-tuned alone; of six layers four are kept.",
        cases=SHALLOW,
    ),
    Claim(
        "pabee-4",
        "It beats a model cut to half of its layers.",
        "table 1",
        gap(pabee.STUDY, "PABEE", "6L", T1, (pabee.BEST.label, AS_IT_IS)),
        ((PABEE_BEST, Side(pabee.SIX.name)),),
        note=f"{CHOSEN} So it spends more than the cut model, as in the paper's table; see pabee-5.",
        cases=SHALLOW,
    ),
    Claim(
        "pabee-5",
        "At half of the layers saved, too, it beats the model cut to half.",
        "table 1 (implied by figure 3)",
        "not printed",
        ((Side(WEIGHTED, "patience", HALF), Side(pabee.SIX.name)),),
        note="Patience nearest to 50 % saved.",
        cases=SHALLOW,
    ),
    Claim(
        "pabee-6",
        "At the same speed it is more accurate than leaving by entropy (BranchyNet).",
        "table 1, figure 3",
        gap(pabee.STUDY, "PABEE", "BranchyNet", T1),
        rivals("patience", "entropy", LEAST, HALF),
        note="Same network; entropy at the savings that patience has, near 25 and 50 %. The paper's table compares "
        "1.57x with 1.88x; its figure 3 equal speeds.",
        cases=ALL,
    ),
    Claim(
        "pabee-7",
        "At the same speed it is more accurate than leaving by the largest probability (Shallow-Deep).",
        "table 1, figure 3",
        gap(pabee.STUDY, "PABEE", "Shallow-Deep", T1),
        rivals("patience", "max-prob", LEAST, HALF),
        note="As pabee-6. With two classes entropy and largest probability are one rule.",
        cases=ALL,
    ),
    Claim(
        "pabee-8",
        "Models overthink: an earlier exit is more accurate than the last.",
        "3.1, figure 2b (MRPC)",
        "error rises after layer 10 of 12",
        ((Side(WEIGHTED, "fixed", BEST_EXIT), Side(WEIGHTED)),),
        note="One exit for all samples, the best on the half that chooses. Of equal ones the earliest.",
        cases=ALL,
    ),
    Claim(
        "pabee-9",
        "A patience of 6 of 12 suits all tasks: it is more accurate than the last exit.",
        "4.3, 4.5, figure 4",
        "peak at 6 or 7; above the baseline from 5 to 8",
        ((Side(WEIGHTED, "patience", share=0.5), Side(WEIGHTED)),),
        note="Patience is half the number of exits (3 of 6), nothing is chosen.",
        cases=ALL,
    ),
    Claim(
        "pabee-10",
        "Accuracy falls again when patience grows (an inverted U).",
        "4.5, figure 4",
        "peak at 6 or 7 of 12",
        ((Side(WEIGHTED, "patience", share=0.5), Side(WEIGHTED, "patience", share=0.75)),),
        note="Patience 6 less patience 9, twelve layers only.",
        cases=TWELVE,
    ),
    Claim(
        "pabee-11",
        "It works for regression as well, with a gain over the full model.",
        "table 1, table 2, STS-B",
        "+0.6 (ALBERT), -0.2 (BERT)",
        ((Side(WEIGHTED, "stability", pabee.BEST), Side(TWO_STAGE)),),
        note="Pearson's correlation. The full model is the last exit of two-stage training, which learns alone. The "
        "paper's equation 3 lacks the absolute value; here and in its code it is there. It never gives tau: here it "
        "is chosen.",
        cases=VALUES,
    ),
)


def pcee_against(other: str, row: str, number: int, budget: LayersSaved, level: str) -> Claim:
    """Return PCEE-BERT against another policy at one saving."""
    rows = {"patience": "PABEE", "entropy": "BranchyNet (entropy)"}
    return Claim(
        f"pcee-{number}",
        f"With about {level} of the layers saved it beats {rows[other]}.",
        "table 2",
        gap(pcee.STUDY, "PCEE-BERT", row, "table 2", (budget.label, budget.label)),
        rivals("pcee", other, budget),
        note="Same network, at the savings that patience has there"
        + (
            "; six layers save two thirds at most, so twelve layers tell more."
            if budget is MOST
            else ". PCEE-BERT's patience (2, 3 or 6) is chosen with its threshold."
        ),
        cases=ALL,
    )


PCEE = (
    pcee_against("patience", "PABEE", 1, MOST, "three quarters"),
    pcee_against("patience", "PABEE", 2, HALF, "half"),
    pcee_against("patience", "PABEE", 3, LEAST, "a quarter"),
    pcee_against("entropy", "BranchyNet", 4, MOST, "three quarters"),
    pcee_against("entropy", "BranchyNet", 5, HALF, "half"),
    pcee_against("entropy", "BranchyNet", 6, LEAST, "a quarter"),
    Claim(
        "pcee-7",
        "It beats the largest probability (Shallow-Deep).",
        "table 2",
        gap(pcee.STUDY, "PCEE-BERT", "Shallow-Deep", "table 2"),
        rivals("pcee", "max-prob", MOST, HALF, LEAST),
        note="Mean of the three savings.",
        cases=ALL,
    ),
    Claim(
        "pcee-8",
        "It beats BERxiT's learned gate.",
        "table 2",
        gap(pcee.STUDY, "PCEE-BERT", "BERxiT", "table 2"),
        at_pace(
            Side(WEIGHTED, "pcee"), Side(pcee.GATED.name, "certainty"), (WEIGHTED, "patience"), (MOST, HALF, LEAST)
        ),
        note="Mean of the three savings; the gate needs a training of its own.",
        cases=SHALLOW,
    ),
    Claim(
        "pcee-9",
        "It beats one layer for all samples.",
        "table 2, figure 3",
        gap(pcee.STUDY, "PCEE-BERT", "Budgeted", "table 2"),
        tuple((Side(WEIGHTED, "pcee", budget), Side(WEIGHTED, "fixed", budget)) for budget in (MOST, HALF, LEAST)),
        note="Mean of the layers nearest to the three savings.",
        cases=ALL,
    ),
    Claim(
        "pcee-10",
        "With a quarter saved it beats the plainly fine-tuned model.",
        "4.5, table 2",
        gap(pcee.STUDY, "PCEE-BERT", "BERT base", "table 2", (LEAST.label, AS_IT_IS)),
        ((Side(WEIGHTED, "pcee", LEAST), PLAIN),),
        note="The paper has it ahead on six tasks of seven.",
    ),
    Claim(
        "pcee-11",
        "The largest probability in place of entropy (v1) does as well.",
        "4.6.1, figure 4 (QNLI)",
        "plotted, not printed",
        rivals("pcee-v1", "pcee", MOST, HALF, LEAST),
        COMPARABLE,
        note="Only tasks with more than two classes can differ. Equation 5 prints an argmax and keeps entropy's sign; "
        "here the largest probability must exceed the threshold.",
        cases=("mpnet-clinc150", "mpnet-snli"),
    ),
    Claim(
        "pcee-12",
        "A learned certainty in place of entropy (v2) does as well.",
        "4.6.1, figure 4 (QNLI)",
        "plotted, not printed",
        at_pace(Side(pcee.GATED.name, "pcee-v2"), Side(WEIGHTED, "pcee"), (WEIGHTED, "patience"), (MOST, HALF, LEAST)),
        COMPARABLE,
        note="Mean of the three savings; v2 needs a training of its own.",
        cases=SHALLOW,
    ),
    Claim(
        "pcee-13",
        "Averaging the exits so far hurts where much is saved.",
        "4.6.3, figure 6",
        "plotted, not printed",
        rivals("pcee, averaged", "pcee", MOST),
        LOWER,
        note="Near 75 % saved. The paper does not say over which exits; here all so far.",
        cases=ALL,
    ),
    Claim(
        "pcee-14",
        "Averaging the exits so far helps a little where little is saved.",
        "4.6.3, figure 6",
        "plotted, not printed",
        rivals("pcee, averaged", "pcee", LEAST),
        note="Near 25 % saved.",
        cases=ALL,
    ),
)
