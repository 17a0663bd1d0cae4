"""`python -m actors.runner.host` is the runner host, alone."""

from actors.actor import main
from actors.runner.host.service import RunnerHost

if __name__ == "__main__":
    raise SystemExit(main("host", RunnerHost))
