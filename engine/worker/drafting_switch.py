"""Decides whether drafting as a whole pays, and when to try again where it does not.

The policy estimates what drafts bring and what steps cost; here its estimates are compared with
what came of them. Steps with drafts and steps without are measured as a whole, since the costs of
their parts do not cover everything. A control, a step without drafts, is due from time to time so
that both kinds are measured. Knows seconds and tokens only.
"""

from dataclasses import dataclass

from engine.policy_reason import PolicyReason, PolicyReport
from engine.worker.step_times import StepTimes

_WINDOW = 0.98  # decay of the measured gain per step, so that it covers some 50 steps
_DOUBT = 25.0  # number of steps at which their outcome and their estimate weigh the same
_MIN_STEPS = 16  # steps with drafts before the measured gain is judged
_FEWEST_STEPS = 4  # steps before the expected gain is judged, and between two controls
_UNCERTAINTY = 1.15  # factor by which the expected gain may be off while step times are uncertain
_FIRST_PAUSE = 32  # steps without drafting after the first switch-off
_LONGEST_PAUSE = 1024  # steps; every switch-off doubles the next pause, up to this
_UNLUCKY_LOSS = 1.0  # plain steps that new drafting may lose if hardly any draft is accepted
_MOST_LUCK = 3.0  # expected accepted drafts, times plain steps lost, that may be bad luck
_UNLUCKY_SHARE = 0.1  # share of the expected accepted drafts that counts as hardly any
_MOST_LOSS = 4.0  # plain steps that new drafting may lose, however many drafts are accepted
_PAUSE_PER_LOSS = 96  # steps of pause per plain step that new drafting lost: a loss of 1 %
_MOST_PAUSE_PER_LOSS = 192  # the same at most, after drafting that lasted: a loss of 0.5 %
_ROUNDING = 1e-9  # share of the time that rounding alone may seem to lose
_CONTROL_LOSS = 0.003  # share of the time that controls may lose
_NUM_CONTROLS = 3  # in a row, of which the last one is measured (see `StepWatch`)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What came of a step with drafts."""

    num_rows: int  # rows of the step, all of which decode
    num_committed: int  # tokens they committed
    num_expected: float  # tokens they were expected to commit
    modelled_s: float  # modelled seconds of the step's parts, heads included
    took_s: float  # measured seconds of the whole step


class DraftingSwitch:
    """Switches drafting off while plain decoding is faster. On at first.

    Pauses grow, but after an attempt that lost little while it lasted no more than that is worth.
    """

    def __init__(self, like: "DraftingSwitch | None" = None) -> None:
        """
        Args:
            like: The switch for another batch size, whose measured step times this one starts with.
        """
        # Decayed sums over steps with drafts: the seconds that plain decoding would have taken for
        # the committed tokens and for the expected tokens, and the seconds that the steps took.
        self._gained = 0.0
        self._promised = 0.0
        self._spent = 0.0
        self._steps = 0
        self._since_plain = 0  # steps since a plain step was measured
        self._times: StepTimes = StepTimes(None if like is None else like._times)
        self._plain_rate = 0.0  # tokens per second of plain steps of as many rows as the latest
        self._paused_because = PolicyReason.COSTS_MORE
        self._pause = _FIRST_PAUSE
        self._paused_for = 0

    @property
    def is_on(self) -> bool:
        """Whether anything is drafted at present."""
        return self._paused_for == 0

    @property
    def wants_control(self) -> bool:
        """Whether a control is due, a step without drafts that is measured.

        One is due the sooner the less it loses, and soon where plain steps were never measured.
        """
        if not self.is_on or self._since_plain < _FEWEST_STEPS:
            return False
        if not self._times.has_seen_plain:
            return True
        if self._since_plain < _MIN_STEPS:
            return False
        if self.speedup <= 1.0:
            return True
        lost = _NUM_CONTROLS * (1.0 - 1.0 / self.speedup)
        return self._since_plain * _CONTROL_LOSS >= lost

    @property
    def may_be_on_next(self) -> bool:
        """Whether drafting can be on in the step after this one."""
        return self._paused_for <= 1

    @property
    def speedup(self) -> float:
        """The gain of recent steps over plain ones; 1.0 before there are any."""
        return self._gained / self._spent if self._spent else 1.0

    @property
    def usual_rate(self) -> float:
        """The tokens per second of recent steps; 0.0 before there are any."""
        return self.speedup * self._plain_rate if self._spent else 0.0

    def in_plain_steps(self, modelled_s: float, plain_s: float) -> float:
        """See `StepTimes.in_plain_steps`."""
        return self._times.in_plain_steps(modelled_s, plain_s)

    def report(self, looks: tuple[float, ...] = ()) -> PolicyReport:
        """Return whether drafting is on, and why.

        Args:
            looks: Expected tokens that evaluating a row brings, by exit.
        """
        if not self.is_on:
            return PolicyReport(self._paused_because, pause=self._paused_for)
        is_new = self._steps < _MIN_STEPS
        reason = PolicyReason.PROBING if is_new else PolicyReason.DRAFTING
        return PolicyReport(reason, self.speedup, looks=looks)

    def observe(self, plain_s: float, step: StepOutcome) -> None:
        """Learn what a step with drafts brought; switch off if drafts do not pay.

        At first it is chance how many drafts are accepted, so the estimate counts too: half at
        `_DOUBT` steps, then less and less. If the first steps lose much, and chance cannot explain
        how few drafts were accepted, drafting ends at once, and the next attempt is put off until
        the loss is small in comparison.

        Args:
            plain_s: Modelled seconds of a plain step of these rows.
        """
        seconds = self._times.drafting(step.modelled_s, step.took_s)
        plain_s = self._times.plain(plain_s)
        self._account(plain_s, step.num_rows, step.num_committed, step.num_expected, seconds)

    def observe_straight(
        self, plain_s: float, num_rows: int, modelled_s: float, took_s: float
    ) -> None:
        """Learn what a step took in which drafts were looked for and none was found.

        Args:
            plain_s: Modelled seconds of a plain step among others of its kind.
            modelled_s: Modelled seconds of a plain step on its own.
            took_s: Measured.
        """
        seconds = self._times.straight(modelled_s, took_s)
        self._account(self._times.plain(plain_s), num_rows, num_rows, num_rows, seconds)

    def observe_free(self, plain_s: float, num_rows: int, took_s: float) -> None:
        """Learn what a step took in which looking for drafts found none and cost nothing: its pass
        had run ahead, as a plain one's does.

        Args:
            plain_s: Modelled seconds of a plain step.
            took_s: Measured.
        """
        self._note_plain(plain_s, took_s)
        plain_s = self._times.plain(plain_s)
        self._account(plain_s, num_rows, num_rows, num_rows, plain_s)

    def _account(
        self, plain_s: float, num_rows: int, committed: int, expected: float, seconds: float
    ) -> None:
        """Add a step to the gain, and judge the gain."""
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
            has_no_luck = self._has_no_luck(plain, num_rows * num_seen, lost)
            if has_no_luck or lost > _MOST_LOSS or self._is_hopeless:
                self._switch_off(int(lost * _PAUSE_PER_LOSS))
            return
        share = num_seen / (num_seen + _DOUBT)
        if self._loses(share * self._gained + (1.0 - share) * self._promised):
            lost = (self._spent - self._gained) / plain_s
            self._switch_off(most_pause=int(lost * _MOST_PAUSE_PER_LOSS))
        elif self._gained > self._spent * (1.0 + _ROUNDING):
            self._pause = _FIRST_PAUSE

    def pass_by(self, plain_s: float, took_s: float | None) -> None:
        """Count a step without drafts towards the end of a pause, and learn what it took.

        Args:
            plain_s: Modelled seconds of the step.
            took_s: Measured; None: it tells nothing of plain steps of these rows.
        """
        self._paused_for = max(0, self._paused_for - 1)
        if took_s is not None:
            self._note_plain(plain_s, took_s)

    def _note_plain(self, plain_s: float, took_s: float) -> None:
        """Learn what a plain step took; it stands for all since the one before."""
        self._times.note_plain(plain_s, took_s, self._since_plain + 1)
        self._since_plain = 0

    @property
    def _is_hopeless(self) -> bool:
        """Whether drafting does not pay, and would not pay even if all went as expected."""
        doubt = 1.0 if self._times.knows_drafting else _UNCERTAINTY
        best = max(doubt * self._promised, self._gained)
        return self._steps >= _FEWEST_STEPS and self._loses(best)

    def _loses(self, gained: float) -> bool:
        """Whether so many gained seconds are fewer than those spent.

        Steps that find no draft while passes run ahead gain exactly what they spend.
        """
        return gained < self._spent * (1.0 - _ROUNDING)

    def _has_no_luck(self, plain: float, num_plain: float, lost: float) -> bool:
        """Whether so few drafts were accepted that chance is not believed to explain it.

        The more has been lost, the less is believed.

        Args:
            plain: Seconds per token of a plain step.
            num_plain: Tokens that plain decoding would have brought in as many steps.
            lost: Plain steps lost.
        """
        came = self._gained / plain - num_plain
        hoped = self._promised / plain - num_plain
        is_too_little = came < hoped * _UNLUCKY_SHARE
        return is_too_little and lost > _UNLUCKY_LOSS and hoped * lost > _MOST_LUCK

    def _switch_off(self, least_pause: int = 0, most_pause: int = _LONGEST_PAUSE) -> None:
        self._pause = max(min(self._pause, most_pause), least_pause, _FIRST_PAUSE)
        has_failed = self._promised >= self._spent
        self._paused_because = (
            PolicyReason.POOR_ACCEPTANCE if has_failed else PolicyReason.COSTS_MORE
        )
        self._paused_for = min(self._pause, _LONGEST_PAUSE)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        self._gained = self._promised = self._spent = 0.0
        self._steps = 0
