"""A seller's access token, got as any client of Allegro gets it: by the device flow."""

import asyncio
from collections.abc import Mapping

import httpx

_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


async def access_token(http: httpx.AsyncClient, environment: Mapping[str, str]) -> str:
    """The token of the next seller who is not connected; `http` asks the simulated Allegro."""
    basic = httpx.BasicAuth(environment["ALLEGRO_CLIENT_ID"], environment["ALLEGRO_CLIENT_SECRET"])
    headers = {"User-Agent": environment["ALLEGRO_USER_AGENT"]}
    answer = await http.post(
        "/auth/oauth/device", auth=basic, headers=headers, data={"client_id": environment["ALLEGRO_CLIENT_ID"]}
    )
    code = answer.raise_for_status().json()
    (await http.post("/_sim/consent", json={"user_code": code["user_code"]})).raise_for_status()
    await asyncio.sleep(code["interval"])  # asked sooner, Allegro says slow_down
    form = {"grant_type": _DEVICE_GRANT, "device_code": code["device_code"]}
    answer = await http.post("/auth/oauth/token", auth=basic, headers=headers, data=form)
    return str(answer.raise_for_status().json()["access_token"])
