"""Subject-verb agreement: the subject's number decides the form of the verb, whatever noun stands between them.

Clean: "The old doctors near the pilot", answer " are", distractor " is". The corrupted prompt has the subject in the
other number: "The old doctor near the pilot". The second noun, the attractor, has the number that the verb must not
take (Linzen et al., arXiv 1611.01368). The sentences are our own.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Literal, final, get_args

from datamodules.tasks.base import PromptPair
from datamodules.tasks.generated import GeneratedTask, share_out
from datamodules.tasks.wording import (
    END,
    check_choice,
    check_enough,
    check_templates,
    fill,
    pairs_of,
    rounds,
    single_token_words,
    tokens_after_word,
    words_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Forms = tuple[str, str]  # singular, plural
AnswerSet = Literal["verbs", "pair"]
NUMBERS = ("singular", "plural")  # index into Forms
MIN_NOUNS = 6


@dataclass(frozen=True)
class NounsAndVerbs:
    """Nouns and verbs of which both forms are one token for the tokenizer in use.

    Attributes:
        nouns: Subjects and attractors.
        verbs: Verbs to answer with.
        verb_ids: Tokens of the verbs: all singular forms, all plural forms.
        adjectives: Adjectives of one token.
        relations: Verbs of the relative clause.
    """

    nouns: tuple[Forms, ...]
    verbs: tuple[Forms, ...]
    verb_ids: tuple[tuple[int, ...], tuple[int, ...]]
    adjectives: tuple[str, ...]
    relations: tuple[Forms, ...]


@final
@dataclass(frozen=True)
class SubjectVerb(GeneratedTask[NounsAndVerbs]):
    """Prompts that end before the verb; templates and numbers of the subject are equally frequent.

    The entities are the nouns: with `entities="disjoint"` no noun occurs in two splits, as subject or as attractor.
    Each pair asks for one verb, drawn at random: its right form is the answer, its other form the distractor (and the
    right answer of the corrupted prompt). Roles: `subject`, `attractor` (where there is one), `END` (the last token).

    Attributes:
        attractor: Put a noun of the other number between subject and verb, in a prepositional phrase or a relative
            clause. The corrupted prompt keeps it.
        answer_set: `"verbs"`: the right answers are the right forms of all verbs and the wrong ones their other forms,
            as is common for this task (probability of all right minus that of all wrong forms). `"pair"`: only the
            two forms of the verb that is asked for.
        templates: Use the first so many templates; None for all.
    """

    attractor: bool = False
    answer_set: AnswerSet = "verbs"
    templates: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("answer_set", self.answer_set, get_args(AnswerSet))
        check_templates(self.templates, len(self._forms))

    def vocabulary(self, tokenizer: "PreTrainedTokenizerBase") -> NounsAndVerbs:
        """Words whose forms are one token each."""
        nouns, verbs, relations = (_single_token_pairs(forms, tokenizer) for forms in (NOUNS, VERBS, RELATIONS))
        adjectives = single_token_words(ADJECTIVES, tokenizer)
        check_enough(
            "SubjectVerb",
            ("nouns", nouns, MIN_NOUNS),
            ("verbs", verbs, 1),
            ("verbs of relative clauses", relations, 1),
            ("adjectives", adjectives, 1),
        )
        singular, plural = (
            tuple(ids[0] for ids in tokens_after_word([verb[number] for verb in verbs], tokenizer)) for number in (0, 1)
        )
        return NounsAndVerbs(nouns, verbs, (singular, plural), adjectives, relations)

    def share_out(self, vocabulary: NounsAndVerbs, rng: random.Random) -> list[NounsAndVerbs]:
        """Nouns of each split; the other words are common to all."""
        nouns = share_out(vocabulary.nouns, self.sizes, rng, minimum=MIN_NOUNS, what="nouns")
        return [replace(vocabulary, nouns=part) for part in nouns]

    def generate(self, vocabulary: NounsAndVerbs, count: int, rng: random.Random) -> list[PromptPair]:
        """Different pairs, going round the templates and numbers."""
        cells = list(product(range(self.templates or len(self._forms)), range(len(NUMBERS))))
        others = len(vocabulary.nouns) - 1 if self.attractor else 1
        num_fillings = len(vocabulary.nouns) * others * len(vocabulary.adjectives)
        drawn = rounds(cells, num_fillings, count, rng, "SubjectVerb")
        return [self._pair(*cell, filling, vocabulary, rng) for cell, filling in drawn]

    @property
    def _forms(self) -> tuple[str, ...]:
        return WITH_ATTRACTOR if self.attractor else SIMPLE

    def _pair(self, template: int, number: int, filling: int, words: NounsAndVerbs, rng: random.Random) -> PromptPair:
        filling, adjective = divmod(filling, len(words.adjectives))
        other, subject = divmod(filling, len(words.nouns))
        noun = words.nouns[subject]
        attractor = words.nouns[other + (other >= subject)] if self.attractor else None
        slots = {"adjective": words.adjectives[adjective]}
        if attractor is not None:
            slots |= {"attractor": attractor[1 - number], "relation": rng.choice(words.relations)[1 - number]}
        clean = fill(self._forms[template], {**slots, "subject": noun[number]})
        corrupted = fill(self._forms[template], {**slots, "subject": noun[1 - number]})
        verb = rng.choice(words.verbs)
        roles = [role for role in ("subject", "attractor", END) if role in clean.spans]
        every = self.answer_set == "verbs"
        return PromptPair(
            clean=clean.text,
            corrupted=corrupted.text,
            answer=f" {verb[number]}",
            distractor=f" {verb[1 - number]}",
            corrupted_answer=f" {verb[1 - number]}",
            answer_ids=(words.verb_ids[number],) if every else (),
            wrong_ids=(words.verb_ids[1 - number],) if every else (),
            roles={role: clean.spans[role] for role in roles},
            corrupted_roles={role: corrupted.spans[role] for role in roles},
            source=f"SubjectVerb template {template} {noun[number]}",
            labels=_labels(template, number, noun, attractor, verb),
        )


def _labels(template: int, number: int, noun: Forms, attractor: Forms | None, verb: Forms) -> dict[str, str]:
    """What is known about a pair; words in the singular."""
    labels = {"template": str(template), "number": NUMBERS[number], "subject": noun[0], "verb": verb[0]}
    return labels if attractor is None else {**labels, "attractor": attractor[0]}


def _single_token_pairs(pairs: Sequence[Forms], tokenizer: "PreTrainedTokenizerBase") -> tuple[Forms, ...]:
    """Those of which both forms are one token after a space."""
    single = set(single_token_words([form for forms in pairs for form in forms], tokenizer))
    return tuple(forms for forms in pairs if single.issuperset(forms))


# -------------------------------------------------------------------- sentences and words
# Every slot follows a space; forms are singular/plural.
# The verb follows the end.
SIMPLE = (
    "The {adjective} {subject}",
    "Every morning the {adjective} {subject}",
    "I believe that the {adjective} {subject}",
    "In this town the {adjective} {subject}",
    "People say that the {adjective} {subject}",
    "As you know, the {adjective} {subject}",
)

# A second noun stands between subject and verb; `relation` agrees with it, not with the subject.
WITH_ATTRACTOR = (
    "The {adjective} {subject} near the {attractor}",
    "As you know, the {adjective} {subject} behind the {attractor}",
    "People say that the {adjective} {subject} with the {attractor}",
    "The {adjective} {subject} that the {attractor} {relation}",
    "In this town the {adjective} {subject} that the {attractor} {relation}",
    "I believe that the {adjective} {subject} that the {attractor} {relation}",
)

NOUNS = pairs_of(
    """
    actor/actors, artist/artists, author/authors, boy/boys, brother/brothers, chef/chefs, citizen/citizens,
    coach/coaches, cousin/cousins, critic/critics, customer/customers, dancer/dancers, daughter/daughters,
    designer/designers, detective/detectives, doctor/doctors, driver/drivers, editor/editors, engineer/engineers,
    expert/experts, farmer/farmers, father/fathers, fighter/fighters, friend/friends, girl/girls, guard/guards,
    guest/guests, guide/guides, hunter/hunters, judge/judges, king/kings, lady/ladies, lawyer/lawyers,
    leader/leaders, manager/managers, member/members, merchant/merchants, minister/ministers, mother/mothers,
    neighbor/neighbors, nurse/nurses, officer/officers, owner/owners, parent/parents, patient/patients,
    pilot/pilots, player/players, poet/poets, priest/priests, prince/princes, prisoner/prisoners,
    professor/professors, reporter/reporters, researcher/researchers, rider/riders, runner/runners, sailor/sailors,
    scholar/scholars, scientist/scientists, senator/senators, singer/singers, sister/sisters, soldier/soldiers,
    son/sons, student/students, surgeon/surgeons, teacher/teachers, tourist/tourists, visitor/visitors,
    winner/winners, witness/witnesses, worker/workers, writer/writers
    """
)

VERBS = pairs_of(
    """
    is/are, was/were, has/have, does/do, goes/go, seems/seem, looks/look, works/work, lives/live, knows/know,
    wants/want, needs/need, likes/like, comes/come, makes/make, takes/take, sees/see, says/say, thinks/think,
    plays/play, runs/run, keeps/keep, gives/give, gets/get
    """
)

RELATIONS = pairs_of(
    """
    likes/like, knows/know, trusts/trust, remembers/remember, meets/meet, follows/follow, watches/watch, helps/help,
    sees/see, fears/fear
    """
)

ADJECTIVES = words_of(
    """
    old young tall small quiet happy famous clever kind tired strong poor rich brave friendly local
    """
)
