"""ndif's API, which forgets its clients' keys at the door. Runs in the server's environment: imports none of ours.

A server of one's own checks no key, and ndif would write it beside every status of a job: to its own log and to those
of ray's workers.
"""

# pyright: reportMissingImports=false
import json

from fastapi import Form, HTTPException
from ndif.common.schema import BackendRequestModel
from ndif.services.api.app import app
from ndif.services.api.auth import validate_request


async def without_key(data: str = Form(...)) -> BackendRequestModel:
    """ndif's own check of a request, which is not shown the key: neither the header's nor one among the data."""
    try:
        sent = json.loads(data)
        sent.pop("api_key", None)
    except (ValueError, AttributeError):
        # ndif's own message holds what was sent.
        raise HTTPException(status_code=422, detail="The request's data is not a JSON object.") from None
    return await validate_request(json.dumps(sent), None)


app.dependency_overrides[validate_request] = without_key
