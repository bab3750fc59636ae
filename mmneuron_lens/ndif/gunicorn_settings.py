"""ndif's own gunicorn settings, and one import before them. Runs in the server's environment.

nnsight gives every object a `save`; anyio's socket module, when imported after that, takes it for an attribute of its
own and refuses. It is first needed for a request above a megabyte, which then fails as "error parsing the body".
gunicorn reads its settings before it loads the application, so here it comes first.
"""

# pyright: reportMissingImports=false
import anyio._backends._asyncio  # noqa: F401
from ndif.services.api.gunicorn_conf import *  # noqa: F403
