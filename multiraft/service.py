"""The handle of a service: to type checkers the machine's class, at run time an object that holds the remote calls.

Rules of this file: a handle is made before its node runs, and is worth the same before, during and after.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar, cast

from multiraft.remote import ServiceBinding
from multiraft.statemachine import StateMachine, declarations_of, methods_of

M = TypeVar("M", bound=StateMachine)


class ServiceHandle:
    """The commands and queries of one service, as attributes. Not a class and not a machine: it cannot be called."""

    def __init__(self, machine: type[StateMachine], binding: ServiceBinding) -> None:
        methods = methods_of(machine)
        self.__dict__.update(
            {name: item.remote(methods[name], binding) for name, item in declarations_of(machine).items()}
        )
        self._machine_name = machine.__name__
        self._service = binding.name

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(
            f"the handle of service {self._service!r} makes no machine; write {self._machine_name}(...) for one"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = ", ".join(item for item in vars(self) if not item.startswith("_")) or "none"
        raise AttributeError(f"service {self._service!r} has no command or query {name!r} (there are: {known})")

    def __repr__(self) -> str:
        return f"<service {self._service!r} of {self._machine_name}>"


def bind_service(machine: type[M], name: str, binding: ServiceBinding) -> type[M]:
    """Return the handle of service `name`: typed as the class, so that its commands and queries are typed as well.

    Calls go to `binding.caller`; while that is None they raise NotRunning. Raises TypeError for a class that does
    not derive from StateMachine.
    """
    if not isinstance(machine, type) or not issubclass(machine, StateMachine):
        raise TypeError(f"service {name!r}: {machine!r:.80} must be a class that derives from StateMachine")
    if binding.name != name:
        raise ValueError(f"service {name!r}: the binding is of service {binding.name!r}")
    return cast("type[M]", ServiceHandle(machine, binding))
