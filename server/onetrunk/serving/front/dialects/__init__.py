"""The protocols of other servers for text, so that their clients need no change but the address."""
