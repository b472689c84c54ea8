"""The control plane's routes for models. Who may try one is decided here; what a trial is, in trials.py."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from gateway.trials import Report, Trials
from governance import Forbidden
from kernel import Caller, Role

_REFUSED: dict[int | str, dict[str, Any]] = {
    403: {"description": "The key has not the role platform_admin."},
    404: {"description": "There is no such model."},
}


def routes(trials: Trials, caller_of: Callable[..., Caller]) -> APIRouter:
    """The routes of this file; whoever mounts them chooses the prefix. caller_of: a FastAPI dependency."""
    routes = APIRouter(tags=["models"])

    @routes.post("/models/{name:path}/test", responses=_REFUSED)
    async def test(name: str, caller: Annotated[Caller, Depends(caller_of)]) -> Report:
        """Call the model once with a few tokens, at the cost of the caller's own key; 200 says how it went."""
        if Role.PLATFORM_ADMIN not in caller.roles:
            raise Forbidden("This needs the role platform_admin.")
        return await trials.run(caller, name)

    return routes
