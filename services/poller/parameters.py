"""What a task asks for beyond its kind. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from shared.errors import PermanentError

# Allegro keeps orders for 365 days (#9729, #13539); slightly older ones may appear (#12597).
_LISTED = timedelta(days=366)
# A purchase on a host whose clock is ahead of ours is inside of the window as well.
_MARGIN = timedelta(minutes=10)


class UnusableParametersError(PermanentError):
    """What was asked for cannot be done; the text names the parameter."""


class TaskParameters(BaseModel):
    """`task_history.parameters`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    from_: AwareDatetime | None = Field(default=None, alias="from")
    to: AwareDatetime | None = None
    order_ids: tuple[str, ...] = ()

    @classmethod
    def read(cls, raw: bytes) -> "TaskParameters":
        """Read stored parameters; raises UnusableParametersError."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            complaints = error.errors(include_input=False, include_url=False)
            raise UnusableParametersError(
                "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in complaints)
            ) from None


@dataclass(frozen=True)
class Window:
    """Purchases to list, both ends included."""

    bought_from: datetime
    bought_to: datetime


def window(kind: str, parameters: TaskParameters, *, now: datetime) -> Window:
    """The purchases to list: those asked for by hand, else everything that Allegro has."""
    end = now + _MARGIN
    if kind != "manual":
        return Window(now - _LISTED, end)
    if parameters.from_ is None:
        raise UnusableParametersError("from: missing")
    wanted = Window(parameters.from_, parameters.to or end)
    if wanted.bought_from >= wanted.bought_to:
        raise UnusableParametersError("to: must be after from")
    return wanted
