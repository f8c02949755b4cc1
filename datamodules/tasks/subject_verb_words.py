"""Sentences and words of the subject-verb task; every slot follows a space, forms are (singular, plural)."""

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

# fmt: off
NOUNS = (
    ("actor", "actors"), ("artist", "artists"), ("author", "authors"), ("boy", "boys"),
    ("brother", "brothers"), ("chef", "chefs"), ("citizen", "citizens"), ("coach", "coaches"),
    ("cousin", "cousins"), ("critic", "critics"), ("customer", "customers"), ("dancer", "dancers"),
    ("daughter", "daughters"), ("designer", "designers"), ("detective", "detectives"),
    ("doctor", "doctors"), ("driver", "drivers"), ("editor", "editors"), ("engineer", "engineers"),
    ("expert", "experts"), ("farmer", "farmers"), ("father", "fathers"), ("fighter", "fighters"),
    ("friend", "friends"), ("girl", "girls"), ("guard", "guards"), ("guest", "guests"), ("guide", "guides"),
    ("hunter", "hunters"), ("judge", "judges"), ("king", "kings"), ("lady", "ladies"),
    ("lawyer", "lawyers"), ("leader", "leaders"), ("manager", "managers"), ("member", "members"),
    ("merchant", "merchants"), ("minister", "ministers"), ("mother", "mothers"), ("neighbor", "neighbors"),
    ("nurse", "nurses"), ("officer", "officers"), ("owner", "owners"), ("parent", "parents"),
    ("patient", "patients"), ("pilot", "pilots"), ("player", "players"), ("poet", "poets"),
    ("priest", "priests"), ("prince", "princes"), ("prisoner", "prisoners"), ("professor", "professors"),
    ("reporter", "reporters"), ("researcher", "researchers"), ("rider", "riders"), ("runner", "runners"),
    ("sailor", "sailors"), ("scholar", "scholars"), ("scientist", "scientists"), ("senator", "senators"),
    ("singer", "singers"), ("sister", "sisters"), ("soldier", "soldiers"), ("son", "sons"),
    ("student", "students"), ("surgeon", "surgeons"), ("teacher", "teachers"), ("tourist", "tourists"),
    ("visitor", "visitors"), ("winner", "winners"), ("witness", "witnesses"), ("worker", "workers"),
    ("writer", "writers"),
)

VERBS = (
    ("is", "are"), ("was", "were"), ("has", "have"), ("does", "do"), ("goes", "go"), ("seems", "seem"),
    ("looks", "look"), ("works", "work"), ("lives", "live"), ("knows", "know"), ("wants", "want"),
    ("needs", "need"), ("likes", "like"), ("comes", "come"), ("makes", "make"), ("takes", "take"),
    ("sees", "see"), ("says", "say"), ("thinks", "think"), ("plays", "play"), ("runs", "run"),
    ("keeps", "keep"), ("gives", "give"), ("gets", "get"),
)

RELATIONS = (
    ("likes", "like"), ("knows", "know"), ("trusts", "trust"), ("remembers", "remember"), ("meets", "meet"),
    ("follows", "follow"), ("watches", "watch"), ("helps", "help"), ("sees", "see"), ("fears", "fear"),
)

ADJECTIVES = (
    "old", "young", "tall", "small", "quiet", "happy", "famous", "clever", "kind", "tired", "strong",
    "poor", "rich", "brave", "friendly", "local",
)
# fmt: on
