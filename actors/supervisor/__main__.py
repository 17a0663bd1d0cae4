"""`python -m actors.supervisor`: the whole runtime."""

from actors.supervisor.main import main

raise SystemExit(main())
