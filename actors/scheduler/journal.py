"""The latest decisions with their numbers, for whoever asks why."""

import logging
import time
from collections import OrderedDict, deque

from actors.protocol import LoadDecision, LoadOptions, ModelSpec
from actors.scheduler.story import Story

N_DECISIONS = 256  # a day's loads on a busy machine; some tens of KiB
N_STORIES = 64  # models whose latest load is remembered

log = logging.getLogger("scheduler")


class Journal:
    """A ring of sentences, oldest first, and the story of each model's latest load."""

    def __init__(self) -> None:
        self._decisions: deque[tuple[str, str]] = deque(maxlen=N_DECISIONS)  # (digest, sentence)
        self._stories: OrderedDict[str, Story] = OrderedDict()

    def note(self, decision: str, digest: str = "") -> None:
        """Keep and log a decision, about the model of this digest if it is about one."""
        self._decisions.append((digest, f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {decision}"))
        log.info("%s", decision)

    def begin(self, model: ModelSpec, options: LoadOptions) -> Story:
        """A load begins; its story replaces that of the load before."""
        story = self._stories[model.digest] = Story(model, options, time.time())
        self._stories.move_to_end(model.digest)
        while len(self._stories) > N_STORIES:
            self._stories.popitem(last=False)
        return story

    def decisions(self, digest: str = "") -> tuple[str, ...]:
        """Oldest first; all, or those about one model."""
        return tuple(text for about, text in self._decisions if digest in ("", about))

    def loads(self, digest: str = "") -> tuple[LoadDecision, ...]:
        """The latest load of each model, or of one, in the order in which they began."""
        now = time.time()
        return tuple(story.told(now) for about, story in self._stories.items() if digest in ("", about))
