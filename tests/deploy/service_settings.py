"""What each service reads from its environment, asked of the settings classes themselves."""

from collections.abc import Mapping
from importlib import import_module

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from shared.settings import Group

SERVICES = ("api", "enricher", "poller", "writer")


def settings_class(service: str) -> type[Group]:
    """The service's own settings class, which is composed of the shared groups."""
    module = import_module(f"services.{service}.settings")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Group) and value.__module__ == module.__name__
    )
    return found


def variables(service: str) -> Mapping[str, FieldInfo]:
    """The fields by the name of the environment variable that sets them."""
    return {name.upper(): field for name, field in settings_class(service).model_fields.items()}


def default_text(field: FieldInfo) -> str:
    """The default as one would write it into `.env`; empty where there is none."""
    match None if field.is_required() else field.default:
        case None:
            return ""
        case SecretStr() as secret:
            return secret.get_secret_value()
        case bool() as flag:
            return str(flag).lower()
        case frozenset() | tuple() as items:
            return ",".join(sorted(items))
        case value:
            return str(value)
