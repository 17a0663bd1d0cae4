"""Numbers in words, as Ollama's command line writes them: scripts and benchmarks parse these."""

from datetime import datetime, timedelta

FOREVER = timedelta(days=20 * 365)  # whoever says so much means no end


def human_bytes(n: int) -> str:
    """Decimal units: "4.7 GB", "12 MB", "512 B"."""
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if n >= size:
            value = n / size
            return f"{int(value)} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"
    return f"{n} B"


def memory_bytes(n: int) -> str:
    """Binary units with a fixed decimal, for columns of memory: "312.0 KiB", "1.2 GiB"; 0 is "0"."""
    for size, unit in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B" if n else "0"


def human_span(span: timedelta) -> str:
    """A span in its largest unit: "About a minute", "3 hours", "2 days"."""
    seconds = int(span.total_seconds())
    minutes, hours = seconds // 60, round(seconds / 3600)
    days = hours // 24
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return "1 second" if seconds == 1 else f"{seconds} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    for limit_days, size_days, unit in ((14, 1, "days"), (60, 7, "weeks"), (730, 30, "months")):
        if days < limit_days:
            return f"{days // size_days} {unit}"
    return f"{days // 365} years"


def human_time(moment: datetime, now: datetime) -> str:
    """A moment seen from now: "2 days ago", "4 minutes from now", "Forever"."""
    if moment - now > FOREVER:
        return "Forever"
    if moment > now:
        return f"{human_span(moment - now)} from now"
    return f"{human_span(now - moment)} ago"


def go_duration(ns: int) -> str:
    """Nanoseconds as Go prints a time.Duration: "1.5s", "130.079ms", "1m2.3s"."""
    if ns < 0:
        return "-" + go_duration(-ns)
    for size, unit in ((1, "ns"), (1_000, "µs"), (1_000_000, "ms")):
        if ns < size * 1000:
            return f"{_trimmed(ns, size)}{unit}" if ns else "0s"
    minutes, rest = divmod(ns, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h" if hours else ""
    if hours or minutes:
        text += f"{minutes}m"
    return f"{text}{_trimmed(rest, 1_000_000_000)}s"


def _trimmed(ns: int, size: int) -> str:
    whole, part = divmod(ns, size)
    digits = f"{part:0{len(str(size)) - 1}d}".rstrip("0") if size > 1 else ""
    return f"{whole}.{digits}" if digits else str(whole)
