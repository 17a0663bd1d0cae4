"""`python -m actors.discovery`: the discovery actor alone."""

from actors.actor import main
from actors.discovery.service import Discovery

raise SystemExit(main("discovery", Discovery))
