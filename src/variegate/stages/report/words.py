"""How numbers are written on the page: percent, signed points, intervals, durations.

Every view (HTML, Markdown) uses these, so that a number reads the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

from variegate.progress import clock
from variegate.stages.report.contents import Interval

NONE = "–"
MINUS = "\N{MINUS SIGN}"


def percent(value: float | None, digits: int = 1) -> str:
    """Write a fraction as percent.

    >>> percent(0.8434), percent(None), percent(1 / 3, 0)
    ('84.3 %', '–', '33 %')
    """
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def percent_short(value: float) -> str:
    """A tick label: no digits that are not needed.

    >>> percent_short(0.05), percent_short(0.125)
    ('5 %', '12.5 %')
    """
    return f"{100 * value:.4g} %"


def plain_points(value: float) -> str:
    """A size in percentage points, without a sign.

    >>> plain_points(0.031)
    '3.1'
    """
    return f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """Write a difference of fractions as signed percentage points; zero has no sign.

    >>> points(0.042), points(-0.0042), points(-0.0001)
    ('+4.2', '−0.4', '0.0')
    """
    if value is None:
        return NONE
    text = f"{100 * value:+.1f}"
    return "0.0" if text in {"+0.0", "-0.0"} else text.replace("-", MINUS)


def span(interval: Interval, write: Callable[[float], str] = percent) -> str:
    """Write the interval's bounds; without bounds, say so.

    >>> span(Interval(0.5, 0.4, 0.6)), span(Interval(0.1, -0.1, 0.3), points), span(Interval(0.5))
    ('40.0 % to 60.0 %', '−10.0 to +30.0', 'no interval')
    """
    if interval.low is None or interval.high is None:
        return NONE if interval.value is None else "no interval"
    return f"{write(interval.low)} to {write(interval.high)}"


def count(value: float | None) -> str:
    """Write a whole number with thousands separated.

    >>> count(12345), count(None)
    ('12,345', '–')
    """
    return NONE if value is None else f"{value:,.0f}"


def short(value: float | None) -> str:
    """Write a number with three significant digits at most, without an exponent.

    >>> short(0.6249), short(1234.0), short(3.0), short(None)
    ('0.625', '1,234', '3', '–')
    """
    if value is None:
        return NONE
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Write seconds; short ones with a decimal.

    >>> duration(0.42), duration(75.0)
    ('0.4 s', '1 min 15 s')
    """
    return f"{seconds:.1f} s" if seconds < 9.95 else clock(seconds)


def label_words(label: tuple[tuple[str, float], ...]) -> tuple[tuple[str, str], ...]:
    """A soft label as (share, class name) pairs; a hard label has no share.

    >>> label_words((("cat", 1.0),)), label_words((("cat", 0.3), ("dog", 0.7)))
    ((('', 'cat'),), (('30 %', 'cat'), ('70 %', 'dog')))
    """
    if len(label) == 1 and label[0][1] == 1.0:
        return (("", label[0][0]),)
    return tuple((percent(share, 0), name) for name, share in label)


def file_size(num_bytes: int) -> str:
    """Write a number of bytes, in decimal units.

    >>> file_size(412_345), file_size(2_400_000)
    ('412 kB', '2.4 MB')
    """
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1_000_000 else f"{num_bytes / 1e3:.0f} kB"


def megabytes(value: float | None) -> str:
    """Write memory given in MB.

    >>> megabytes(812.3), megabytes(2400.0), megabytes(None)
    ('812 MB', '2.4 GB', '–')
    """
    return NONE if value is None else f"{value / 1e3:.1f} GB" if value >= 1000 else f"{value:.0f} MB"


def energy(value: float | None) -> str:
    """Write energy given in joules; from a watt-hour on in those.

    >>> energy(420.0), energy(7200.0), energy(None)
    ('420 J', '2.0 Wh', '–')
    """
    return NONE if value is None else f"{value / 3600:.1f} Wh" if value >= 3600 else f"{value:.0f} J"
