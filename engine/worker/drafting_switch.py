"""Whether drafting as a whole pays, and when to try again where it does not.

What drafts are expected to bring, and what steps cost, is the policy's estimate; here it is held
against what came of it. Steps with drafts and steps without are measured as a whole, for all that
no part's cost knows of; so that both kinds are seen, one without drafts is due from time to time.
Knows seconds and tokens only.
"""

from dataclasses import dataclass

from engine.policy_reason import PolicyReason, PolicyReport
from engine.worker.step_times import StepTimes

_WINDOW = 0.98  # decay per step of the measured gain: some 50 steps
_DOUBT = 25.0  # steps whose outcome counts as much as what was promised of them
_MIN_STEPS = 16  # before the gain is judged
_FEWEST_STEPS = 4  # before what is promised is judged
_CLEARLY = 1.15  # times as much has to be spent as is promised, until it is known what steps take
_FIRST_PAUSE = 32  # steps without drafting after the first switch-off; doubles up to
_LONGEST_PAUSE = 1024
_MOST_LOST = 1.0  # plain steps that drafting may have cost before the gain is judged, if of
_HOPED_FOR = 3.0  # or more drafts that were expected to stand
_HARDLY_ANY = 0.1  # of them or less did
_MOST_LOST_AT_ALL = 4.0  # whatever was hoped for
_PAUSE_PER_LOSS = 96  # steps without drafting per plain step lost so: 1 %
_CONTROL_LOSS = 0.003  # of the time, for steps without drafts that are there to be measured


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What came of a step with drafts."""

    num_rows: int  # decoding rows that may draft
    num_committed: int  # tokens they committed
    num_expected: float  # tokens that were expected of them
    modelled_s: float  # heads included
    took_s: float  # measured, of the whole step


class DraftingSwitch:
    """On at first; off while plain decoding is faster, for longer every time."""

    def __init__(self, num_controls: int = 1, like: "DraftingSwitch | None" = None) -> None:
        """Args:
        num_controls: Steps without drafts in a row, until one of them can be measured.
        like: Of batches of another size: how far their steps take longer is begun with.
        """
        self._num_controls = num_controls
        self._gained = 0.0  # decayed: plain seconds that the committed tokens would have taken
        self._promised = 0.0  # decayed: the same of the tokens that were expected
        self._spent = 0.0  # decayed: seconds they took
        self._steps = 0
        self._since_plain = 0  # steps
        self._times: StepTimes = StepTimes(None if like is None else like._times)
        self._plain_rate = 0.0  # tokens per second of plain steps, for as many rows as lately
        self._paused_because = PolicyReason.COSTS_MORE
        self._pause = _FIRST_PAUSE
        self._paused_for = 0

    @property
    def is_on(self) -> bool:
        """Whether anything is drafted at present."""
        return self._paused_for == 0

    @property
    def wants_control(self) -> bool:
        """Whether a step without drafts is due, to see what it takes: the less is lost by one, the
        sooner, and soon where little is known of them.
        """
        if not self.is_on or self._since_plain < _FEWEST_STEPS:
            return False
        if not self._times.has_seen_plain:
            return True
        if self._since_plain < _MIN_STEPS:
            return False
        if self.speedup <= 1.0:
            return True
        lost = self._num_controls * (1.0 - 1.0 / self.speedup)
        return self._since_plain * _CONTROL_LOSS >= lost

    @property
    def may_be_on_next(self) -> bool:
        """Whether it can be on in the step after this one."""
        return self._paused_for <= 1

    @property
    def speedup(self) -> float:
        """Modelled gain over plain steps, recent steps only; 1.0 before there are any."""
        return self._gained / self._spent if self._spent else 1.0

    @property
    def usual_rate(self) -> float:
        """Tokens per second of recent steps; 0.0 before there are any."""
        return self.speedup * self._plain_rate if self._spent else 0.0

    def report(self, looks: tuple[float, ...] = ()) -> PolicyReport:
        """Whether it is on, and why.

        Args:
            looks: Tokens that a look brings, by exit.
        """
        if not self.is_on:
            return PolicyReport(self._paused_because, pause=self._paused_for)
        is_new = self._steps < _MIN_STEPS
        reason = PolicyReason.PROBING if is_new else PolicyReason.DRAFTING
        return PolicyReport(reason, self.speedup, looks=looks)

    def observe(self, plain_s: float, step: StepOutcome) -> None:
        """Learn what a step brought; switches off where drafts do not pay.

        Whether few drafts stand is chance at first, so that what was promised counts too: half
        at `_DOUBT` steps, less and less after. Where the first steps have lost much, and chance
        cannot explain how few drafts stood, it ends at once, and the next attempt is put off until
        it can cost little in comparison.

        Args:
            plain_s: Modelled, of a plain step of these rows.
        """
        seconds = self._times.drafting(step.modelled_s, step.took_s)
        plain_s = self._times.plain(plain_s)
        self._account(plain_s, step.num_rows, step.num_committed, step.num_expected, seconds)

    def observe_straight(
        self, plain_s: float, num_rows: int, modelled_s: float, took_s: float | None
    ) -> None:
        """Learn what a step took in which a draft was thought of, and none was found.

        Args:
            took_s: None: its pass had run ahead, so that thinking cost nothing.
        """
        plain_s = self._times.plain(plain_s)
        seconds = plain_s if took_s is None else self._times.straight(modelled_s, took_s)
        self._account(plain_s, num_rows, num_rows, num_rows, seconds)

    def _account(
        self, plain_s: float, num_rows: int, committed: int, expected: float, seconds: float
    ) -> None:
        """Add a step to the gain, and judge it."""
        self._since_plain += 1
        plain = plain_s / num_rows
        self._plain_rate = 1.0 / plain
        self._gained = self._gained * _WINDOW + committed * plain
        self._promised = self._promised * _WINDOW + expected * plain
        self._spent = self._spent * _WINDOW + seconds
        self._steps += 1
        num_seen = (1.0 - _WINDOW**self._steps) / (1.0 - _WINDOW)
        if self._steps < _MIN_STEPS:
            lost = (self._spent - self._gained) / plain_s
            has_no_luck = lost > _MOST_LOST and self._has_no_luck(plain, num_rows * num_seen)
            if has_no_luck or lost > _MOST_LOST_AT_ALL:
                self._switch_off(int(lost * _PAUSE_PER_LOSS))
            elif self._is_hopeless:
                self._switch_off()
            return
        share = num_seen / (num_seen + _DOUBT)
        if share * self._gained + (1.0 - share) * self._promised < self._spent:
            self._switch_off()
        elif self.speedup >= 1.0:
            self._pause = _FIRST_PAUSE

    def pass_by(self, plain_s: float, took_s: float | None) -> None:
        """A step without drafts: a pause goes on.

        Args:
            plain_s: Modelled cost of the step.
            took_s: Measured; None: it was no plain step of these rows.
        """
        self._paused_for = max(0, self._paused_for - 1)
        if took_s is not None:
            self._since_plain = 0
            self._times.note_plain(plain_s, took_s)

    @property
    def _is_hopeless(self) -> bool:
        """Whether drafting does not pay, and would not even if all went as expected."""
        doubt = 1.0 if self._times.knows_drafting else _CLEARLY
        best = max(doubt * self._promised, self._gained)
        return self._steps >= _FEWEST_STEPS and best < self._spent

    def _has_no_luck(self, plain: float, num_plain: float) -> bool:
        """Whether so few drafts stood that chance cannot explain it.

        Args:
            plain: Seconds of a row's token, decoded plainly.
            num_plain: Tokens that plain decoding would have brought.
        """
        came = self._gained / plain - num_plain
        hoped = self._promised / plain - num_plain
        return hoped > _HOPED_FOR and came < hoped * _HARDLY_ANY

    def _switch_off(self, least_pause: int = 0) -> None:
        self._pause = max(self._pause, least_pause)
        has_failed = self._promised >= self._spent
        self._paused_because = (
            PolicyReason.POOR_ACCEPTANCE if has_failed else PolicyReason.COSTS_MORE
        )
        self._paused_for = min(self._pause, _LONGEST_PAUSE)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        self._gained = self._promised = self._spent = 0.0
        self._steps = 0
