"""Sentences and nouns of the greater-than task: things that last."""

# What stands between the noun and the start year; the first is the standard form.
VERBS = ("lasted", "ran", "continued", "went on")

# fmt: off
NOUNS = (
    "absence", "affair", "agreement", "alliance", "arrest", "assignment", "attempt", "ban", "battle",
    "blockade", "boom", "boycott", "campaign", "career", "case", "celebration", "ceremony", "chase",
    "colony", "competition", "conflict", "construction", "contest", "contract", "controversy", "course",
    "crisis", "cycle", "debate", "decline", "deployment", "depression", "detention", "dispute", "drought",
    "dynasty", "eclipse", "effort", "embargo", "empire", "engagement", "enterprise", "epidemic", "era",
    "eruption", "exchange", "exhibition", "exile", "expansion", "expedition", "experiment", "famine",
    "festival", "fight", "fire", "flood", "friendship", "holiday", "hostility", "hunt", "imprisonment",
    "inquiry", "invasion", "investigation", "journey", "kingdom", "lawsuit", "league", "lease", "march",
    "marriage", "migration", "mission", "monopoly", "mourning", "movement", "negotiation", "occupation",
    "operation", "outbreak", "partnership", "peace", "period", "persecution", "phase", "plague", "presence",
    "process", "program", "project", "pursuit", "quarrel", "race", "raid", "rebellion", "recession",
    "regime", "reign", "renovation", "repair", "republic", "research", "restoration", "retreat", "revolt",
    "revolution", "riot", "rivalry", "romance", "rule", "search", "season", "series", "service",
    "settlement", "show", "siege", "silence", "stay", "storm", "strike", "struggle", "study", "survey",
    "tension", "tour", "tournament", "trade", "tradition", "training", "treaty", "trial", "union", "unrest",
    "uprising", "venture", "visit", "voyage", "war", "work",
)
# fmt: on
