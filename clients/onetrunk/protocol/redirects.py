"""``NoRedirect``: requests over HTTP that carry a key go to the server that was named, and to no other."""

from __future__ import annotations

import urllib.request
from typing import Any


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error: following it, urllib would send the key to whatever host the answer names."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        """Follow none."""
