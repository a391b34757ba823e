"""What the system says about a server's processes."""

from pathlib import Path


def command(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return b" ".join(words).decode(errors="replace").strip()[-60:]


def descendants(pid: int) -> list[int]:
    """``pid`` and everything below it."""
    found = [pid]
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += descendants(int(child))
    return found


def resident_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process: all of it, and its share, in which a page that n processes map counts 1/n."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kibibytes = {name: int(text.split()[0]) for name, _, text in (line.partition(":") for line in lines[1:])}
    return kibibytes["Rss"] << 10, kibibytes["Pss"] << 10
