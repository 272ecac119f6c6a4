"""The dashboard: a page in the browser that shows and does what the REST and events APIs can, and nothing else.

Its source is TypeScript in `src/`, in folders by feature; `build.py` makes `dist/` of it, and `page.py` hands that out.
"""

from toolscore.dashboard.page import CONTENT_POLICY, Page, Part

__all__ = ["CONTENT_POLICY", "Page", "Part"]
