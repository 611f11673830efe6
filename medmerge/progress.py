"""How far training has come: one bar on a terminal, or a line an epoch in a log, with the time left for all of it."""

import logging
import sys

from tqdm import tqdm

log = logging.getLogger(__name__)


class Progress:
    """Training that is to come in one run or several, counted in images x epochs.

    Epochs on features that were computed once are not counted: they cost next to nothing.

    Args:
        images: images x epochs of all runs.
        bar: whether to draw a bar on standard error instead of logging a line an epoch; None: if it is a terminal.
        rate: seconds an image, as far as they are known before (:func:`medmerge.training.seconds_per_image`).
    """

    def __init__(self, images: int, bar: bool | None = None, rate: float | None = None):
        self.images, self.done = images, 0
        self._rate, self._timed, self._seconds = rate, 0, 0.0
        shown = sys.stderr.isatty() if bar is None else bar
        self._bar = tqdm(total=images, unit=" images", unit_scale=True, disable=not shown)

    def run(self, title: str) -> None:
        """Say which run begins, such as ``"run 3 of 10: FT lesions, seed 1"``."""
        self._bar.set_description(title)
        if self._bar.disable:
            log.info("%s", title)

    def advance(self, images: int, seconds: float | None = None, line: str = "") -> None:
        """Count ``images`` more that were trained on, in ``seconds``, or None if that was before; say ``line``."""
        self.done += images
        if seconds is not None:
            self._timed, self._seconds = self._timed + images, self._seconds + seconds
        self._bar.set_postfix_str(line, refresh=False)
        self._bar.update(images)
        if line and self._bar.disable:
            left = self.left
            log.info("%s%s", line, "" if left is None else f"  {duration(left)} left")

    @property
    def left(self) -> float | None:
        """Seconds that what is left will take, by what was timed so far; None before anything was."""
        rate = self._seconds / self._timed if self._timed else self._rate
        return None if rate is None else max(self.images - self.done, 0) * rate

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def duration(seconds: float) -> str:
    """Seconds as ``"m:ss"`` or ``"h:mm:ss"``."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
