"""Sentences for a methods section, each stated beside the code that it describes, with its references."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

CITED = re.compile(r"\[(@\w+(?:; @\w+)*)\]")


@dataclass(frozen=True)
class Sentence:
    """What a step did, with the options that ran.

    Attributes
    ----------
    text
        One sentence or a few; [@scanpy; @anndata] cites two references.
    references
        The references that the text cites, by key.
    tools
        Functions or packages that the text names, as the code beside it calls them, such as scanpy.pp.scrublet.
    """

    text: str
    references: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()


class Methods(NamedTuple):
    """Paragraphs that cite by number, and the references in that order."""

    paragraphs: list[str]
    references: list[str]


def numbered(paragraphs: Iterable[Iterable[Sentence]]) -> Methods:
    """Join sentences to paragraphs and number their references in the order in which they are cited.

    Examples
    --------
    >>> one = Sentence("Counts were read by anndata [@anndata].", {"anndata": "Virshup et al. (2024)."})
    >>> numbered([[one, Sentence("All cells were kept.")], []])
    Methods(paragraphs=['Counts were read by anndata [1]. All cells were kept.'], references=['Virshup et al. (2024).'])
    """
    known: dict[str, str] = {}

    def numbers(sentence: Sentence) -> str:
        def number(match: re.Match[str]) -> str:
            keys = [key.removeprefix("@") for key in match[1].split("; ")]
            if not set(keys) <= set(sentence.references):
                return match[0]
            for key in keys:
                known.setdefault(key, sentence.references[key])
            return "[" + ", ".join(str(list(known).index(key) + 1) for key in keys) + "]"

        return CITED.sub(number, sentence.text)

    texts = [" ".join(numbers(sentence) for sentence in paragraph) for paragraph in paragraphs]
    return Methods([text for text in texts if text], list(known.values()))
