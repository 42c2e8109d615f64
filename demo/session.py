"""The state of one visitor, kept in memory for ten minutes. Does not import Gradio."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from .logic import Answer, PageError, Picture

_GUARD = threading.Lock()


@dataclass(eq=False)
class Session:
    """A visitor's photo, and the answers shown. What is shown is made from this, in either language."""

    photo: bytes | None = None
    preview: bytes = b""  # the photo as a small JPEG
    answers: list[Answer] = field(default_factory=list)
    pictures: dict[str, Picture] = field(default_factory=dict)  # variant: its heat map for the chosen class
    without: set[str] = field(default_factory=set)  # variants that do not know the chosen class
    chosen: str = ""  # the class that the heat maps show; "" for the first of each variant
    clicked: float = 0.0  # when the chosen class was clicked, by the browser's clock
    errors: list[PageError] = field(default_factory=list)
    zip: bytes | None = None
    zip_name: str = ""
    done: tuple[object, ...] = ()  # what the answers are to: photo, variants, number of classes
    turns: dict[str, int] = field(default_factory=dict)

    def turn(self, what: str) -> int:
        """Begin a request: an unfinished earlier request of the same kind becomes stale."""
        with _GUARD:  # of all sessions: Gradio copies a session, and a lock cannot be copied
            self.turns[what] = self.turns.get(what, 0) + 1
            return self.turns[what]

    def is_stale(self, what: str, turn: int) -> bool:
        return self.turns.get(what) != turn

    def take(self, photo: bytes | None, preview: bytes) -> None:
        """Replace the photo, and drop the answers for the one before."""
        self.photo, self.preview, self.chosen = photo, preview, ""
        self.answers, self.pictures, self.without, self.errors, self.done = [], {}, set(), [], ()
