import math
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.early_exit.loop import run
from offramp.errors import InvalidInput, NotApplicable, UnknownName
from offramp.policies.base import Policy
from offramp.policies.certainty import Certainty
from offramp.policies.confidence import Entropy, Margin, MaxProb
from offramp.policies.divergence import Divergence
from offramp.policies.ensemble import Ensemble
from offramp.policies.fixed import Fixed
from offramp.policies.patience import Patience, Stability
from offramp.policies.pcee import PatientConfidence
from offramp.policies.registry import POLICIES, as_policy, load_policy, policy_to_dict
from offramp.policies.replay import replay, run_policy, scores
from offramp.types.problem_types import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL
from offramp.types.trace import Trace
from support.traces import CASE_IDS, CASES, Recorded, assert_same, example, has_meaning, random_trace, threshold_between

NOT_YET = -math.inf


def of_probabilities(*exits: list[list[float]], **more: Any) -> Trace:
    """A trace whose softmax gives these probabilities, [exit][sample][class]."""
    return Trace(torch.tensor(exits).log() + 3.0, **more)  # a constant changes no probability


def of_answers(*exits: list[int], classes: int = 2) -> Trace:
    """A trace in which the exits give these answers, [exit][sample]."""
    return Trace(torch.nn.functional.one_hot(torch.tensor(exits), classes).float())


def of_values(*exits: list[float]) -> Trace:
    """A regression of one sample: at each exit, these outputs."""
    return Trace(torch.tensor(exits).unsqueeze(1), problem_type=REGRESSION)


def assert_scores(policy: Policy, trace: Trace, wanted: list[list[float]]) -> None:
    torch.testing.assert_close(scores(policy, trace), torch.tensor(wanted).float(), rtol=0, atol=1e-6)


def left_at(trace: Trace, policy: Policy, threshold: float) -> list[int]:
    return replay(trace, policy, threshold).exit_layers.tolist()


def every_row(trace: Trace) -> dict[str, Tensor]:
    return {"rows": torch.arange(len(trace))}


# --- confidence ---------------------------------------------------------------------------------------------


def test_entropy_is_one_minus_the_normalised_entropy() -> None:
    # H(.9, .1) = .3250830 nats, / ln 2 = .4689956; H(.5, .25, .25) = 1.5 ln 2 = 1.0397208, / ln 3 = .9463946
    assert_scores(Entropy(), of_probabilities([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]]), [[0.5310044, 0.0, 0.5310044]])
    assert_scores(Entropy(), of_probabilities([[0.5, 0.25, 0.25]]), [[0.0536054]])


def test_the_papers_entropy_thresholds_convert() -> None:
    trace = of_probabilities([[0.9, 0.1], [0.8, 0.2]], [[0.9, 0.1], [0.8, 0.2]])  # H/ln2 .469 .722; H .325 .500
    for tau, leaves in ((0.46, [2, 2]), (0.48, [1, 2]), (0.71, [1, 2]), (0.73, [1, 1])):
        assert left_at(trace, Entropy(), 1 - tau) == leaves
    for nats, leaves in ((0.32, [2, 2]), (0.33, [1, 2]), (0.49, [1, 2]), (0.51, [1, 1])):
        assert left_at(trace, Entropy(), 1 - nats / math.log(2)) == leaves


def test_max_prob_is_the_largest_probability() -> None:
    assert_scores(MaxProb(), of_probabilities([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]), [[0.5, 0.7]])


def test_margin_is_the_largest_probability_minus_the_second() -> None:
    assert_scores(Margin(), of_probabilities([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]), [[0.2, 0.5]])


@pytest.mark.parametrize(
    ("policy", "worst"),
    [
        (MaxProb(), [0.8807971, 0.6]),  # sigmoid(2) = .8807971, 1 - sigmoid(-3) = .9525741
        (Margin(), [0.7615942, 0.2]),  # 2 * .8807971 - 1
        (Entropy(), [0.4729350, 0.0290494]),  # H(.8807971) = .3653337 nats, H(.6) = .6730117; over ln 2 = .6931472
    ],
)
def test_of_several_labels_the_worst_counts(policy: Policy, worst: list[float]) -> None:
    logits = torch.tensor([[[2.0, -3.0], [9.0, math.log(0.6 / 0.4)]]])
    assert_scores(policy, Trace(logits, problem_type=MULTI_LABEL), [worst])


@pytest.mark.parametrize("classes", range(2, 25))
def test_confidence_stays_in_its_range_for_logits_of_any_size(classes: int) -> None:
    random = torch.randn(2000, classes, generator=torch.Generator().manual_seed(0))
    trace = Trace(torch.stack((random, random * 1e-4, random * 0, random * 100, random.sign() * 1e4)))
    for policy, least in ((MaxProb(), 1 / classes), (Margin(), 0.0)):
        seen = scores(policy, trace)
        assert least - 1e-6 <= seen.min()
        assert seen.max() <= 1 + 1e-6


# --- fixed, certainty ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
def test_fixed_leaves_at_the_layer_that_the_threshold_names(layer: int) -> None:
    trace = random_trace(SINGLE_LABEL, depth=4, samples=2)
    answers = replay(trace, Fixed(), layer)
    assert answers.exit_layers.tolist() == [layer, layer]
    assert torch.equal(answers.logits, trace.logits[layer - 1])


@pytest.mark.parametrize(("layer", "leaves"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6), (7, 6)])
def test_fixed_counts_layers_and_not_exits(layer: int, leaves: int) -> None:
    trace = random_trace(SINGLE_LABEL, depth=3, samples=2, layers=torch.tensor([2, 4, 6]))
    assert_scores(Fixed(), trace, [[2, 2], [4, 4], [6, 6]])
    assert left_at(trace, Fixed(), layer) == [leaves, leaves]
    assert run(Recorded(trace), Fixed(), layer, every_row(trace)).exit_layers.tolist() == [leaves, leaves]


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_certainty_is_the_gates_opinion(problem_type: str) -> None:
    opinion = torch.tensor([[0.1, 0.9], [0.6, 0.2]])
    trace = Trace(torch.randn(2, 2, 3), certainty=opinion, problem_type=problem_type)
    assert torch.equal(scores(Certainty(), trace), opinion)
    assert left_at(trace, Certainty(), 0.5) == [2, 1]


def test_certainty_needs_a_gate() -> None:
    with pytest.raises(NotApplicable, match="learned gate"):
        scores(Certainty(), Trace(torch.randn(2, 2, 3)))


# --- patience, stability ------------------------------------------------------------------------------------


def test_patience_counts_exits_that_repeat_the_answer() -> None:
    trace = of_answers([0, 1], [0, 0], [1, 0], [1, 0])  # 4 exits, 2 samples
    assert scores(Patience(), trace).tolist() == [[0, 0], [1, 0], [0, 1], [1, 2]]
    assert left_at(trace, Patience(), 1) == [2, 3]
    assert left_at(trace, Patience(), 2) == [4, 4]


@pytest.mark.parametrize("t", [0, 1, 2, 5, 11])
def test_with_identical_exits_patience_leaves_at_t_plus_1(t: int) -> None:
    assert left_at(of_answers(*[[1, 0, 2]] * 12, classes=3), Patience(), t) == [t + 1] * 3


def test_patience_of_the_papers_12_layers() -> None:
    """PCEE-BERT, table 1: patience 11 takes 12.00 layers, patience 1 with exits that agree 2.00."""
    unlike = random_trace(SINGLE_LABEL, depth=12, samples=200)
    assert replay(unlike, Patience(), 11).exit_layers.float().mean().item() == 12.00
    assert replay(unlike, Patience(), 1).exit_layers.min().item() == 2
    alike = Trace(unlike.logits[:1].expand(12, -1, -1))
    assert replay(alike, Patience(), 1).exit_layers.float().mean().item() == 2.00


def test_more_patience_than_exits_is_the_full_model() -> None:
    trace = of_answers(*[[1, 0]] * 4)
    assert left_at(trace, Patience(), 4) == [4, 4]
    assert left_at(trace, PatientConfidence(Entropy(), 5), -1e30) == [4, 4]
    assert left_at(trace, Divergence(patience=4), -1e30) == [4, 4]


def test_patience_compares_sets_of_labels() -> None:
    sets = torch.tensor([[1.0, -1.0, 1.0], [2.0, -0.5, 0.1], [2.0, 0.5, 0.1], [0.3, 9.0, 1.0]])  # 2nd label flips once
    trace = Trace(sets.unsqueeze(1), problem_type=MULTI_LABEL)
    assert scores(Patience(), trace).flatten().tolist() == [0, 1, 0, 1]


def test_a_label_is_given_above_one_half() -> None:
    trace = Trace(torch.tensor([[[0.0]], [[-1.0]], [[1e-3]]]), problem_type=MULTI_LABEL)  # no, no, yes
    assert scores(Patience(), trace).flatten().tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("patience", "wanted"),
    [
        (1, [NOT_YET, -0.5, -0.25, -0.125, -2.0]),
        (2, [NOT_YET, NOT_YET, -0.5, -0.25, -2.0]),
        (3, [NOT_YET, NOT_YET, NOT_YET, -0.5, -2.0]),
        (5, [NOT_YET] * 5),
    ],
)
def test_stability_is_minus_the_largest_of_the_last_changes(patience: int, wanted: list[float]) -> None:
    trace = of_values([1.0], [1.5], [1.25], [1.375], [-0.625])  # a fall counts as much as a rise
    assert scores(Stability(patience), trace).flatten().tolist() == wanted


def test_stability_leaves_after_patience_small_changes_in_a_row() -> None:
    trace = of_values([1.0], [1.1], [2.0], [2.1], [2.0], [2.0])  # below tau: yes, no, yes, yes, yes
    assert left_at(trace, Stability(2), -0.2) == [5]
    assert left_at(trace, Stability(3), -0.2) == [6]
    assert left_at(trace, Stability(1), -0.2) == [2]


def test_of_several_values_the_one_that_moved_most_counts() -> None:
    trace = of_values([0.0, 0.0], [0.25, -1.0], [0.75, -1.0], [0.75, -1.0])
    assert scores(Stability(1), trace).flatten().tolist() == [NOT_YET, -1.0, -0.5, 0.0]
    assert scores(Stability(2), trace).flatten().tolist() == [NOT_YET, NOT_YET, -1.0, -0.5]


def test_stability_lets_a_value_creep() -> None:
    trace = of_values(*[[0.25 * exit] for exit in range(4)])
    assert scores(Stability(3), trace).flatten().tolist() == [NOT_YET] * 3 + [-0.25]


# --- pcee ---------------------------------------------------------------------------------------------------


def test_pcee_is_the_least_of_the_measures_last_scores() -> None:
    # entropy's scores: .9 -> .5310044, .8 -> .2780719, .95 -> .7136030, .5 -> 0
    trace = of_probabilities([[0.9, 0.1]], [[0.2, 0.8]], [[0.95, 0.05]], [[0.5, 0.5]])
    assert_scores(PatientConfidence(Entropy(), 2), trace, [[NOT_YET], [0.2780719], [0.2780719], [0.0]])
    assert_scores(PatientConfidence(Entropy(), 3), trace, [[NOT_YET], [NOT_YET], [0.2780719], [0.0]])
    assert_scores(PatientConfidence(MaxProb(), 2), trace, [[NOT_YET], [0.8], [0.8], [0.5]])


def test_pcee_asks_for_confidence_in_a_row_and_not_for_one_label() -> None:
    trace = of_probabilities([[0.95, 0.05]], [[0.6, 0.4]], [[0.95, 0.05]], [[0.05, 0.95]], [[0.5, 0.5]])
    assert left_at(trace, PatientConfidence(MaxProb(), 2), 0.9) == [
        4
    ]  # the label changed in the run; the gap broke the first
    assert left_at(trace, PatientConfidence(MaxProb(), 1), 0.9) == [1]
    assert left_at(trace, PatientConfidence(MaxProb(), 3), 0.9) == [5]


def test_pcee_around_certainty() -> None:
    trace = Trace(torch.randn(4, 1, 1), certainty=torch.tensor([[0.75], [0.25], [0.5], [1.0]]))
    assert scores(PatientConfidence(Certainty(), 2), trace).flatten().tolist() == [NOT_YET, 0.25, 0.25, 0.5]


def test_pcee_around_a_policy_that_remembers() -> None:
    trace = of_values([1.0], [1.5], [1.25], [1.375], [3.375])  # changes .5 .25 .125 2
    assert scores(PatientConfidence(Stability(1), 2), trace).flatten().tolist() == [NOT_YET, NOT_YET, -0.5, -0.25, -2.0]
    assert scores(PatientConfidence(Stability(2), 2), trace).flatten().tolist() == [NOT_YET] * 3 + [-0.5, -2.0]
    repeats = of_answers([0], [0], [0], [1], [1])  # patience 0 1 2 0 1
    assert scores(PatientConfidence(Patience(), 2), repeats).flatten().tolist() == [NOT_YET, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("measure", "threshold", "leaves"),
    [
        ("entropy", 1 - 0.6, [3, 4]),  # version 0: H / ln 2 of .9 .469, .7 .881, .95 .286: below tau = .6
        ("entropy", 1 - 0.4, [4, 4]),
        ("max-prob", 0.8, [3, 4]),  # version 1: max p above tau
        ("max-prob", 0.93, [4, 4]),
        ("certainty", 0.5, [4, 2]),  # version 2: u above tau
        ("certainty", 0.85, [4, 3]),
    ],
)
def test_the_papers_three_versions_of_pcee(measure: str, threshold: float, leaves: list[int]) -> None:
    trace = of_probabilities(
        [[0.7, 0.3], [0.9, 0.1]],
        [[0.1, 0.9], [0.7, 0.3]],
        [[0.95, 0.05], [0.9, 0.1]],
        [[0.5, 0.5], [0.5, 0.5]],
        certainty=torch.tensor([[0.9, 0.8], [0.3, 0.9], [0.9, 0.9], [0.1, 0.1]]),
    )
    assert left_at(trace, load_policy("pcee", measure=measure, patience=2), threshold) == leaves


def test_of_the_papers_versions_certainty_alone_has_a_meaning_for_values() -> None:
    trace = Trace(torch.randn(3, 1, 1), certainty=torch.tensor([[0.6], [0.9], [0.2]]))
    assert left_at(trace, load_policy("pcee", measure="certainty"), 0.5) == [2]
    for measure in ("entropy", "max-prob"):
        with pytest.raises(NotApplicable, match="a regression has none"):
            replay(trace, load_policy("pcee", measure=measure), 0.5)


def test_pcee_with_patience_1_is_the_measure_alone() -> None:
    for data, problem_type in CASES:
        trace, measure = random_trace(problem_type), load_policy(data)
        assert torch.equal(scores(PatientConfidence(measure, 1), trace), scores(measure, trace)), (data, problem_type)


@pytest.mark.parametrize("patience", [1, 2, 3, 6])
def test_pcee_with_threshold_0_leaves_at_layer_t(patience: int) -> None:
    assert set(left_at(random_trace(SINGLE_LABEL), PatientConfidence(Entropy(), patience), 0)) == {patience}


# --- divergence ---------------------------------------------------------------------------------------------

PQR = ([[0.9, 0.1]], [[0.8, 0.2]], [[0.5, 0.5]])


@pytest.mark.parametrize(
    ("divergence", "q_from_p", "r_from_p", "r_from_q"),
    [
        # -.8 ln .9 - .2 ln .1 = .5448054;  -.5 ln .9 - .5 ln .1 = 1.2039728;  -.5 ln .8 - .5 ln .2 = .9162907
        ("ce", 0.5448054, 1.2039728, 0.9162907),
        # less H(q) = .5004024, and less H(r) = ln 2 = .6931472
        ("kl", 0.0444030, 0.5108256, 0.2231436),
        # H(.85, .15) - (H(p) + H(q)) / 2 = .4227091 - .4127427;  H(.7, .3) = .6108643, H(.65, .35) = .6474466
        ("js", 0.0099664, 0.1017492, 0.0506718),
    ],
)
def test_the_divergences_of_an_exit_from_earlier_ones(
    divergence: str, q_from_p: float, r_from_p: float, r_from_q: float
) -> None:
    trace = of_probabilities(*PQR)
    nearest, both = min(r_from_p, r_from_q), max(r_from_p, r_from_q)
    assert_scores(Divergence(divergence, 1), trace, [[NOT_YET], [-q_from_p], [-nearest]])
    assert_scores(Divergence(divergence, 2), trace, [[NOT_YET], [NOT_YET], [-both]])


def test_kl_and_cross_entropy_take_the_current_exit_first() -> None:
    back = of_probabilities(PQR[2], PQR[0])  # KL(p, r) = ln 2 - H(p) = .3680642, KL(r, p) = .5108256
    assert_scores(Divergence("kl"), back, [[NOT_YET], [-0.3680642]])
    assert_scores(Divergence("ce"), back, [[NOT_YET], [-0.6931472]])
    assert_scores(Divergence("js"), back, [[NOT_YET], [-0.1017492]])  # the same both ways


@pytest.mark.parametrize(
    ("window", "patience", "score"),
    [
        ("all", 1, 0.0),
        ("all", 2, -0.2231436),
        ("all", 3, -0.5108256),
        ("consecutive", 1, -0.2231436),
        ("consecutive", 2, -0.2231436),
        ("consecutive", 3, -0.5108256),
        ("consecutive", 4, NOT_YET),
    ],
)
def test_all_earlier_exits_count_or_the_last_ones_alone(window: str, patience: int, score: float) -> None:
    # KL of the last exit from the others: .5108256, 0, .2231436
    trace = of_probabilities([[0.9, 0.1]], [[0.5, 0.5]], [[0.8, 0.2]], [[0.5, 0.5]])
    assert scores(Divergence("kl", patience, window), trace)[-1].item() == pytest.approx(score, abs=1e-6)


def test_the_papers_count_of_near_exits_may_jump_over_patience() -> None:
    # exits 1 and 2 are apart (KL .368), exit 3 is near both (.092, .131): the count goes from 0 to 2, over t = 1
    trace = of_probabilities([[0.5, 0.5]], [[0.9, 0.1]], [[0.75, 0.25]], [[0.1, 0.9]])
    assert left_at(trace, Divergence("kl", 1), -0.2) == [3]
    assert left_at(trace, Divergence("kl", 2), -0.2) == [3]


@pytest.mark.parametrize("window", ["all", "consecutive"])
@pytest.mark.parametrize("t", [1, 2, 5, 11])
def test_with_identical_exits_kl_and_js_leave_at_t_plus_1_for_any_tau(t: int, window: str) -> None:
    trace = Trace(torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(0)).expand(12, -1, -1))
    for divergence in ("kl", "js"):
        assert set(left_at(trace, Divergence(divergence, t, window), -1e-6)) == {t + 1}


def test_with_identical_exits_the_cross_entropy_is_the_entropy_and_asks_for_confidence() -> None:
    trace = of_probabilities(*[[[0.9, 0.1], [0.5, 0.5]]] * 4)  # H = .3250830 and .6931472
    assert_scores(Divergence("ce"), trace, [[NOT_YET] * 2, *[[-0.3250830, -0.6931472]] * 3])
    assert left_at(trace, Divergence("ce"), -0.5) == [2, 4]


@pytest.mark.parametrize("divergence", ["kl", "js"])
def test_rounding_takes_no_divergence_below_0(divergence: str) -> None:
    random = torch.Generator().manual_seed(0)
    exits = torch.randn(1, 500, 12, generator=random) + torch.randn(5, 500, 12, generator=random) * 1e-5
    assert scores(Divergence(divergence), Trace(exits)).max().item() <= 0


def test_divergences_of_several_labels_are_added_up() -> None:
    yes = torch.tensor([[[0.9, 0.8]], [[0.8, 0.5]]])
    trace = Trace((yes / (1 - yes)).log(), problem_type=MULTI_LABEL)
    assert_scores(Divergence("ce"), trace, [[NOT_YET], [-0.5448054 - 0.9162907]])
    assert_scores(Divergence("kl"), trace, [[NOT_YET], [-0.0444030 - 0.2231436]])
    assert_scores(Divergence("js"), trace, [[NOT_YET], [-0.0099664 - 0.0506718]])


def test_divergences_of_certain_exits_that_contradict_are_large_and_finite() -> None:
    trace = Trace(torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]]))
    assert scores(Divergence("ce"), trace)[1].item() == scores(Divergence("kl"), trace)[1].item() == -2e4
    assert scores(Divergence("js"), trace)[1].item() == pytest.approx(-math.log(2))


# --- ensembles ----------------------------------------------------------------------------------------------

STEADY = ([[0.6, 0.4]], [[0.9, 0.1]], [[0.8, 0.2]], [[0.3, 0.7]])


def told(trace: Trace, policy: Policy, threshold: float) -> list[list[float]]:
    return replay(trace, policy, threshold).logits.softmax(dim=-1).tolist()


def approx(*rows: list[float]) -> list[Any]:
    return [pytest.approx(row, abs=1e-6) for row in rows]


def test_an_ensemble_leaves_where_its_policy_does() -> None:
    trace, policy = random_trace(SINGLE_LABEL), PatientConfidence(Margin(), 2)
    for members in ("run", "all"):
        assert torch.equal(scores(Ensemble(policy, members), trace), scores(policy, trace))


def test_run_is_the_mean_of_the_confident_run_alone() -> None:
    trace = of_probabilities(*STEADY)
    assert told(trace, Ensemble(PatientConfidence(MaxProb(), 2), "run"), 0.75) == approx([0.85, 0.15])  # exits 2 and 3
    assert told(trace, Ensemble(PatientConfidence(MaxProb(), 3), "run"), 0.55) == approx([2.3 / 3, 0.7 / 3])
    assert told(trace, Ensemble(MaxProb(), "run"), 0.75) == approx([0.9, 0.1])  # a run of one
    mean = replay(trace, Ensemble(PatientConfidence(MaxProb(), 2), "run"), 0.75).logits
    assert mean.tolist() == approx([math.log(0.85), math.log(0.15)])


@pytest.mark.parametrize(
    "policy",
    [
        PatientConfidence(MaxProb(), 2),
        PatientConfidence(MaxProb(), 4),
        Patience(),
        Divergence("kl", 2),
        PatientConfidence(Patience(), 2),
    ],
)
def test_where_the_rule_never_fired_run_is_the_last_exit_alone(policy: Policy) -> None:
    trace = of_probabilities(*STEADY)
    answers = replay(trace, Ensemble(policy, "run"), math.inf)
    assert answers.exit_layers.tolist() == [4]
    assert torch.equal(answers.logits, trace.logits[-1])
    assert torch.equal(run(Recorded(trace), Ensemble(policy, "run"), math.inf, every_row(trace)).logits, answers.logits)


def test_all_is_the_mean_of_every_exit_so_far() -> None:
    trace = of_probabilities(*STEADY)
    assert told(trace, Ensemble(PatientConfidence(MaxProb(), 2), "all"), 0.75) == approx([2.3 / 3, 0.7 / 3])
    assert told(trace, Ensemble(MaxProb(), "all"), math.inf) == approx([2.6 / 4, 1.4 / 4])  # the last exit too


def test_the_run_of_patience_is_the_exits_that_agreed() -> None:
    trace = of_probabilities(
        [[0.2, 0.8], [0.9, 0.1], [0.9, 0.1], [0.6, 0.4]],
        [[0.9, 0.1], [0.7, 0.3], [0.1, 0.9], [0.7, 0.3]],
        [[0.7, 0.3], [0.5, 0.5], [0.9, 0.1], [0.8, 0.2]],
        [[0.3, 0.7], [0.5, 0.5], [0.2, 0.8], [0.9, 0.1]],
    )
    assert left_at(trace, Ensemble(Patience(), "run"), 1) == [3, 2, 4, 2]
    wanted = approx([0.8, 0.2], [0.8, 0.2], [0.2, 0.8], [0.65, 0.35])  # exits 2-3, 1-2, the last alone, 1-2
    assert told(trace, Ensemble(Patience(), "run"), 1) == wanted
    assert told(trace, Ensemble(Patience(), "run"), 2)[3] == pytest.approx([0.7, 0.3])  # exits 1, 2 and 3


def test_the_run_of_stability_and_divergence_holds_the_exits_that_were_compared_with() -> None:
    values = of_values([1.0], [4.0], [4.5], [5.0], [9.0])  # moves 3 .5 .5 4
    assert replay(values, Ensemble(Stability(2), "run"), -1).logits.tolist() == [[4.5]]  # exits 2, 3, 4
    assert replay(values, Ensemble(Stability(1), "run"), -1).logits.tolist() == [[4.25]]
    assert replay(values, Ensemble(Stability(1), "all"), -1).logits.flatten().tolist() == pytest.approx([9.5 / 3])
    assert replay(values, Ensemble(Stability(2), "run"), math.inf).logits.tolist() == [[9.0]]
    steady = of_probabilities(*STEADY)  # KL of exit 3 from exit 2: .044
    assert told(steady, Ensemble(Divergence("kl", 1, "consecutive"), "run"), -0.05) == approx([0.85, 0.15])


def test_an_ensemble_of_several_labels_averages_each_labels_probability() -> None:
    yes = torch.tensor([[[0.9, 0.2]], [[0.6, 0.1]], [[0.3, 0.3]]])
    trace = Trace((yes / (1 - yes)).log(), problem_type=MULTI_LABEL)
    answers = replay(trace, Ensemble(PatientConfidence(MaxProb(), 2), "run"), 0.5)
    assert answers.logits.sigmoid().flatten().tolist() == pytest.approx([0.75, 0.15], abs=1e-6)
    answers = replay(trace, Ensemble(MaxProb(), "all"), math.inf)
    assert answers.logits.sigmoid().flatten().tolist() == pytest.approx([0.6, 0.2], abs=1e-6)


def test_probabilities_are_averaged_and_not_logits() -> None:
    # two exits say no, mildly, one says yes, loudly: mean .603 yes of probabilities; the mean log-odds would be .77
    trace = of_probabilities([[0.6, 0.4]], [[0.58, 0.42]], [[0.01, 0.99]])
    assert told(trace, Ensemble(MaxProb(), "all"), math.inf) == approx([1.19 / 3, 1.81 / 3])


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@pytest.mark.parametrize("policy", [Certainty(), Fixed(), PatientConfidence(Certainty(), 1)])
def test_an_ensemble_of_one_is_the_exits_own_logits(policy: Policy, problem_type: str) -> None:
    trace = random_trace(problem_type)
    assert torch.equal(replay(trace, Ensemble(policy), 0.5).logits, replay(trace, policy, 0.5).logits)


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@pytest.mark.parametrize("members", ["run", "all"])
def test_an_ensembles_logits_are_finite_for_logits_of_any_size(members: str, problem_type: str) -> None:
    signs = torch.randn(6, 50, 3, generator=torch.Generator().manual_seed(1)).sign() * 1e4
    trace = Trace(signs, certainty=torch.rand(6, 50), problem_type=problem_type)
    _, logits = run_policy(Ensemble(PatientConfidence(Certainty(), 3), members), trace)
    assert logits.isfinite().all()


@pytest.mark.parametrize("wrong", [Ensemble(Entropy()), "entropy"])
def test_an_ensemble_is_around_one_policy(wrong: Any) -> None:
    with pytest.raises(InvalidInput, match="an ensemble is around a policy that is none itself, got "):
        Ensemble(wrong)


# --- every policy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "problem_type", "earliest"),
    [
        ({"name": "entropy"}, SINGLE_LABEL, 1),
        ({"name": "certainty"}, REGRESSION, 1),
        ({"name": "fixed"}, REGRESSION, 1),
        ({"name": "pcee", "patience": 1}, SINGLE_LABEL, 1),
        ({"name": "pcee", "patience": 4}, SINGLE_LABEL, 4),
        ({"name": "divergence"}, SINGLE_LABEL, 2),
        ({"name": "divergence", "patience": 3}, SINGLE_LABEL, 4),
        ({"name": "divergence", "patience": 3, "window": "consecutive"}, MULTI_LABEL, 4),
        ({"name": "pcee", "patience": 4, "ensemble": "run"}, SINGLE_LABEL, 4),
        ({"name": "stability", "patience": 1}, REGRESSION, 2),
        ({"name": "stability", "patience": 4}, REGRESSION, 5),
        ({"name": "pcee", "patience": 2, "measure": "stability"}, REGRESSION, 4),
    ],
)
def test_the_earliest_exit_is_the_papers(data: dict[str, Any], problem_type: str, earliest: int) -> None:
    assert set(left_at(random_trace(problem_type), load_policy(data), -1e30)) == {earliest}


@pytest.mark.parametrize(
    "policy",
    [
        Entropy(),
        MaxProb(),
        Margin(),
        Patience(),
        Divergence(),
        PatientConfidence(Entropy()),
        PatientConfidence(Patience()),
        Ensemble(Entropy()),
    ],
)
@pytest.mark.parametrize("outputs", [1, 3])
def test_policies_that_compare_classes_refuse_a_regression(policy: Policy, outputs: int) -> None:
    with pytest.raises(NotApplicable, match="a regression has none"):
        replay(random_trace(REGRESSION, outputs=outputs), policy, 0.5)


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
@pytest.mark.parametrize("policy", [Stability(), PatientConfidence(Stability(), 1)])
def test_stability_refuses_classes(policy: Policy, problem_type: str) -> None:
    with pytest.raises(NotApplicable, match="classes have none"):
        replay(random_trace(problem_type), policy, -0.5)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_has_a_meaning_somewhere(name: str) -> None:
    assert any(has_meaning(load_policy(example(name)), problem_type) for problem_type in PROBLEM_TYPES)


@pytest.mark.parametrize(("data", "problem_type"), CASES, ids=CASE_IDS)
def test_scores_are_finite_or_not_yet_for_logits_of_any_size(data: dict[str, Any], problem_type: str) -> None:
    signs = torch.randn(6, 50, 3, generator=torch.Generator().manual_seed(1)).sign() * 1e4
    for logits in (signs, signs * 0, torch.full_like(signs, 1e4), torch.full_like(signs, -1e4)):
        trace = Trace(logits, certainty=random_trace(problem_type).certainty, problem_type=problem_type)
        seen = scores(load_policy(data), trace)
        assert seen.dtype == torch.float32
        assert (seen.isfinite() | (seen == NOT_YET)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_decisions_are_taken_in_float32(dtype: torch.dtype) -> None:
    for data, problem_type in CASES:
        policy = load_policy(data)
        out = random_trace(problem_type).exit(2)
        low = type(out)(out.logits.to(dtype), out.certainty.bfloat16(), layer=out.layer, problem_type=out.problem_type)
        high = type(out)(low.logits.float(), low.certainty.float(), layer=out.layer, problem_type=out.problem_type)
        got, wanted = policy.step(0, low, ()), policy.step(0, high, ())
        assert got.score.dtype == torch.float32, (data, problem_type)
        assert torch.equal(got.score, wanted.score), (data, problem_type)


@pytest.mark.parametrize(("data", "problem_type"), CASES, ids=CASE_IDS)
def test_a_broken_sample_leaves_at_once_and_touches_nobody(data: dict[str, Any], problem_type: str) -> None:
    whole, policy = random_trace(problem_type), load_policy(data)
    others = torch.tensor([row for row in range(50) if row != 7])
    for threshold in (math.inf, threshold_between(scores(policy, whole), 0.7)):
        alone = replay(whole.take(others), policy, threshold)
        healthy = replay(whole, policy, threshold).exit_layers[7]
        for exit, broken in ((0, math.nan), (1, -math.inf), (3, math.nan), (5, math.inf)):
            logits = whole.logits.clone()
            logits[exit, 7, 1] = broken
            trace = Trace(logits, None, whole.certainty, None, problem_type)
            by_loop = run(Recorded(trace), policy, threshold, every_row(trace))
            for kind, answers in (("replay", replay(trace, policy, threshold)), ("loop", by_loop)):
                case = f"{kind}, {broken} at exit {exit}, threshold {threshold}"
                assert_same(type(answers)(*(part[others] for part in vars(answers).values())), alone, case=case)
                left = answers.exit_layers[7]
                assert left == min(exit + 1, healthy), case  # not later than it breaks
                assert answers.failed[7] == (left == exit + 1), case


def test_a_certainty_of_nan_is_a_failure() -> None:
    certainty = torch.tensor([[math.nan, 0.5], [0.5, 0.5], [0.5, 0.5]])
    trace = Trace(torch.randn(3, 2, 2), certainty=certainty)
    for answers in (replay(trace, Certainty(), 0.9), run(Recorded(trace), Certainty(), 0.9, every_row(trace))):
        assert answers.exit_layers.tolist() == [1, 3]
        assert answers.failed.tolist() == [True, False]


def test_entropy_of_equal_logits_is_not_below_0() -> None:
    for classes in range(2, 25):
        trace = Trace(torch.zeros(4, 1, classes))
        assert left_at(trace, PatientConfidence(Entropy(), 2), 0) == [2], classes


# --- names and parameters -----------------------------------------------------------------------------------


def test_a_policy_is_given_by_itself_by_name_or_as_data() -> None:
    policy = load_policy("entropy")
    assert as_policy(policy) is policy
    assert as_policy("entropy") == as_policy({"name": "entropy"}) == policy


def test_policies_go_through_data_and_back() -> None:
    for data, _ in CASES:
        policy = load_policy(data)
        assert load_policy(policy_to_dict(policy)) == policy
        assert policy_to_dict(load_policy(policy_to_dict(policy))) == policy_to_dict(policy)
        assert policy_to_dict(policy).items() >= data.items()


def test_policies_are_named_as_their_papers_are() -> None:
    assert load_policy("entropy") == Entropy()
    assert load_policy("pcee", measure="max-prob", patience=3) == PatientConfidence(MaxProb(), 3)
    assert load_policy("pcee", measure={"name": "stability", "patience": 4}) == PatientConfidence(Stability(4), 2)
    assert load_policy({"name": "stability", "patience": 4}, patience=1) == Stability(1)
    assert load_policy("divergence") == Divergence("ce", 1, "all")
    assert load_policy("pcee", patience=3, ensemble="run") == Ensemble(PatientConfidence(Entropy(), 3), "run")
    assert load_policy({"name": "fixed", "ensemble": "all"}, ensemble="run") == Ensemble(Fixed(), "run")
    assert policy_to_dict(Ensemble(PatientConfidence(MaxProb(), 3), "all")) == {
        "name": "pcee",
        "measure": "max-prob",
        "patience": 3,
        "ensemble": "all",
    }
    assert policy_to_dict(PatientConfidence(Stability(4), 3)) == {
        "name": "pcee",
        "measure": {"name": "stability", "patience": 4},
        "patience": 3,
    }


@pytest.mark.parametrize(
    ("name", "meant"),
    [("entorpy", "entropy"), ("max_prob", "max-prob"), ("patient", "patience"), ("pce", "pcee")],
)
def test_an_unknown_name_says_which_may_have_been_meant(name: str, meant: str) -> None:
    with pytest.raises(UnknownName, match=f"unknown name '{name}'; did you mean '{meant}'\\?"):
        load_policy(name)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="unknown name 'zzz'; known: certainty, consistency, divergence, entropy"):
        load_policy("zzz")
    with pytest.raises(UnknownName, match="did you mean 'entropy'"):
        load_policy("pcee", measure="entropie")


def test_a_policy_of_ones_own_cannot_be_stored_by_name() -> None:
    class Own(Policy):
        step = Fixed.step

    row = rf'POLICIES\["a-name"\] = "{__name__}:test_a_policy_of_ones_own_cannot_be_stored_by_name.<locals>.Own"'
    with pytest.raises(UnknownName, match=f"Own has no row in .*; such a row is {row}"):
        policy_to_dict(Own())


def test_a_policy_that_is_no_dataclass_has_no_parameters_to_store(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Policy):
        step = Fixed.step

    monkeypatch.setitem(POLICIES, "own", f"{__name__}:{Own.__qualname__}")
    with pytest.raises(InvalidInput, match="Own is not a dataclass, so its parameters cannot be stored"):
        policy_to_dict(Own())


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("entropy", {"patience": 2}, "'entropy' has no parameter 'patience'; it has: none"),
        ("pcee", {"patients": 2}, "'pcee' has no parameter 'patients'; it has: measure, patience"),
        ("pcee", {"patience": 0}, "patience must be a whole number of at least 1, got 0"),
        ("stability", {"patience": -3}, "patience must be a whole number of at least 1, got -3"),
        ("pcee", {"patience": 2.5}, "patience must be a whole number of at least 1, got 2.5"),
        ("divergence", {"patience": 0}, "patience must be a whole number of at least 1, got 0"),
        ("divergence", {"divergence": "reverse"}, "divergence must be one of ce, kl, js; got 'reverse'"),
        ("divergence", {"window": "any"}, "window must be one of all, consecutive; got 'any'"),
        ("entropy", {"ensemble": "both"}, "ensemble must be one of run, all; got 'both'"),
        ("pcee", {"measure": 3}, "measure must be a policy, its name or its data, got 3"),
        ({"patience": 2}, {}, "a policy as data needs a name, got {'patience': 2}"),
    ],
)
def test_parameters_are_checked(name: Any, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_policy(name, **parameters)
