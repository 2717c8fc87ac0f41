"""Domains of prompts that the shipped heads were not trained on, made from tasks and topics."""

from collections.abc import Sequence
from itertools import product

from training.prompts import Prompt

_GERMAN_TASKS = (
    "Schreibe eine kurze Geschichte über {}.",
    "Erkläre einem Kind auf Deutsch, was man über {} wissen sollte.",
    "Beschreibe {} in fünf Sätzen auf Deutsch.",
    "Schreibe einen Brief an eine Freundin über {}.",
    "Nenne Vorteile und Nachteile: {}.",
)
_GERMAN_TOPICS = (
    "den Fluss",
    "die Bibliothek",
    "den Winter am Meer",
    "das Fahrrad",
    "den Wochenmarkt",
    "die neue Schule",
    "das Brot vom Bäcker",
    "den Nachtzug",
    "die Katze der Nachbarn",
    "den Wald im Herbst",
)
_SQL_TASKS = (
    "Write the SQL statements that create the tables of a database for {}, with keys.",
    "Write ten SQL INSERT statements with sample rows for {}.",
    "Write five SQL SELECT queries with joins for {}.",
    "Write SQL UPDATE and DELETE statements for {}, each with a comment.",
    "Write SQL views and indexes for {}.",
)
_SQL_TOPICS = (
    "a library",
    "a bakery",
    "a bicycle rental",
    "a railway timetable",
    "a hospital ward",
    "a football league",
    "a museum",
    "a music archive",
    "a hotel",
    "a parcel service",
)
DOMAINS = {"german": (_GERMAN_TASKS, _GERMAN_TOPICS), "sql": (_SQL_TASKS, _SQL_TOPICS)}


def domain_prompts(domain: str, count: int) -> Sequence[Prompt]:
    """Return the first prompts of a domain: every task for one topic, then for the next.

    Raises:
        ValueError: if the domain has fewer prompts.
    """
    tasks, topics = DOMAINS[domain]
    prompts = [Prompt(domain, task.format(topic)) for topic, task in product(topics, tasks)]
    if count > len(prompts):
        raise ValueError(f"--num-prompts: {domain} has {len(prompts)}")
    return prompts[:count]
