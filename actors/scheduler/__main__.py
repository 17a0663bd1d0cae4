"""`python -m actors.scheduler` is the scheduler, alone."""

from actors.actor import main
from actors.scheduler.service import Scheduler

if __name__ == "__main__":
    raise SystemExit(main("scheduler", Scheduler))
