"""`python -m services.gateway`: browsers and OpenAI Realtime clients."""

from minmo.settings import GatewaySettings
from services.gateway.process import serve


def main() -> None:
    """Serves until SIGTERM or Ctrl-C."""
    serve(GatewaySettings.load("minmo-gateway"))


if __name__ == "__main__":
    main()
