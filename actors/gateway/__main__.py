"""`python -m actors.gateway`: the gateway alone."""

from actors.actor import main
from actors.gateway.service import Gateway

if __name__ == "__main__":
    raise SystemExit(main("gateway", Gateway))
