"""`orders-backup sync`: start, stop and watch synchronisation."""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cli.client import DEFAULT_URL, Api, ApiUrl, part
from cli.errors import AwayError, RefusedError
from cli.events import task_states
from cli.output import AsJson, progress_console, show_fields, show_json, show_line, show_table

app = typer.Typer(no_args_is_help=True, help="Start, stop and watch synchronisation.")

_TASK = ("task_id", "user_id", "kind", "status", "parameters", "created_at", "started_at", "finished_at", "error")
_RUN = (
    *("run_id", "kind", "status", "started_at", "completed_at", "orders_processed", "orders_expected"),
    *("progress", "orders_added", "orders_updated", "events_stored", "requests", "error"),
)
_STATUS = ("user_id", "token_status", "orders", "pending_orders", "oldest_pending_at", "lag_seconds", "stored_event_id")
# Between two looks at what runs, and so often in a row nobody may answer.
_LOOK_SECONDS = 1.0
_LOOKS_IN_VAIN = 10
_SCHEDULE = ("status", "interval_seconds", "last_run", "last_success", "next_run", "next_full_run", "last_error")

UserId = Annotated[str, typer.Argument(help="Your own name for the seller.")]


@app.command()
def start(
    user_id: UserId,
    from_: Annotated[str | None, typer.Option("--from", help="Purchases from: 2026-01-01T00:00:00Z.")] = None,
    to: Annotated[str | None, typer.Option(help="Purchases before; now if left out.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Everything that Allegro still has.")] = False,
    journal_from: Annotated[str | None, typer.Option(help="Read the event journal again from.")] = None,
    order: Annotated[list[str] | None, typer.Option(help="Look at this order; may be given again.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show the progress and wait for the end.")] = False,
    as_json: AsJson = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """Start a run: of a time frame, of everything, of the journal, or of certain orders."""
    body = _request(from_, to, journal_from, order or [], full=full)
    with Api(api_url) as api:
        task = api.post(f"/sync/manual/{part(user_id)}", body)
        if wait:
            task = until_ended(api, task)
    if as_json:
        show_json(task)
    else:
        show_fields(task, _TASK)
    if wait and task["status"] != "completed":
        raise RefusedError(f"the task is {task['status']}: {task['error'] or 'no reason was given'}")


@app.command()
def stop(
    task_id: Annotated[str, typer.Argument(help="As `sync start` or `sync tasks` shows it.")],
    as_json: AsJson = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """Ask a task to stop; what it has stored stays."""
    with Api(api_url) as api:
        task = api.post(f"/sync/tasks/{part(task_id)}/stop")
    if as_json:
        show_json(task)
    else:
        show_fields(task, _TASK)


@app.command()
def follow(
    task_id: Annotated[str, typer.Argument(help="As `sync start` or `sync tasks` shows it.")],
    as_json: AsJson = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """Show the progress of a task until it has ended; with --json each state as one line."""
    with Api(api_url) as api:
        if not as_json:
            show_fields(until_ended(api, api.get(f"/sync/tasks/{part(task_id)}")), _TASK)
            return
        for state in task_states(api, task_id):
            show_line(state)


@app.command()
def status(
    user_id: UserId,
    watch: Annotated[bool, typer.Option("--watch", help="Show what runs with live bars, until it has ended.")] = False,
    as_json: AsJson = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """How a seller's copy stands: what runs, what is owed, when it is looked at next.

    With --watch the progress of what runs until nothing does; with --json each state as one line.
    """
    with Api(api_url) as api:
        if watch and as_json:
            for state in _states(api, user_id):
                show_line(state)
            return
        found = _watched(api, user_id) if watch else api.get(f"/sync/status/{part(user_id)}")
    if as_json:
        show_json(found)
        return
    show_fields(found, _STATUS)
    if found["schedule"] is not None:
        typer.echo("\nschedule")
        show_fields(found["schedule"], _SCHEDULE)
    typer.echo("\nrunning")
    show_table(found["running"], _RUN, empty="nothing")


def _states(api: Api, user_id: str) -> Iterator[dict[str, Any]]:
    """How it stands, again and again until nothing runs. Raises AwayError if the API stays away."""
    failures = 0
    while True:
        try:
            found: dict[str, Any] = api.get(f"/sync/status/{part(user_id)}")
        except AwayError:
            failures += 1
            if failures >= _LOOKS_IN_VAIN:
                raise
        else:
            failures = 0
            yield found
            if not found["running"]:
                return
        time.sleep(_LOOK_SECONDS)


def _watched(api: Api, user_id: str) -> dict[str, Any]:
    """A bar for each run, until the last has ended; how it stands then."""
    bars: dict[str, TaskID] = {}
    found: dict[str, Any] = {}
    with _bars() as shown:
        for found in _states(api, user_id):
            running = {run["run_id"]: run for run in found["running"]}
            for run_id, run in running.items():
                if run_id not in bars:
                    bars[run_id] = shown.add_task(run["kind"], total=None)
                _move(shown, bars[run_id], run, run)
            for run_id in bars.keys() - running.keys():
                shown.remove_task(bars.pop(run_id))
    return found


@app.command()
def tasks(
    user_id: Annotated[str | None, typer.Option("--user", help="Of this seller only.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """What was asked for, newest first."""
    with Api(api_url) as api:
        found = list(api.items("/sync/tasks", at_most=limit, user_id=user_id))
    if as_json:
        show_json(found)
    else:
        show_table(found, _TASK, empty="no tasks")


@app.command()
def history(
    user_id: UserId,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """What was done, newest first."""
    with Api(api_url) as api:
        found = list(api.items(f"/sync/history/{part(user_id)}", at_most=limit))
    if as_json:
        show_json(found)
    else:
        show_table(found, _RUN, empty="no runs")


@app.command()
def activate(
    user_id: UserId,
    interval: Annotated[int | None, typer.Option(min=1, help="Seconds between two looks.")] = None,
    as_json: AsJson = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """Look into the seller's journal regularly from now on."""
    with Api(api_url) as api:
        _show_schedule(api.post("/sync/activate", {"user_id": user_id, "interval_seconds": interval}), as_json=as_json)


@app.command()
def deactivate(user_id: UserId, as_json: AsJson = False, api_url: ApiUrl = DEFAULT_URL) -> None:
    """Pause the schedule; nothing stored is touched."""
    with Api(api_url) as api:
        _show_schedule(api.post("/sync/deactivate", {"user_id": user_id}), as_json=as_json)


def _show_schedule(schedule: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(schedule)
    else:
        show_fields(schedule, _SCHEDULE)


def _request(
    from_: str | None, to: str | None, journal_from: str | None, order_ids: list[str], *, full: bool
) -> dict[str, Any]:
    """The body that says the same; raises a usage error where not exactly one kind is asked for."""
    kinds: list[dict[str, Any]] = [
        *([{"kind": "manual", "from": from_} | ({"to": to} if to else {})] if from_ else []),
        *([{"kind": "full"}] if full else []),
        *([{"kind": "journal", "from": journal_from}] if journal_from else []),
        *([{"kind": "orders", "order_ids": order_ids}] if order_ids else []),
    ]
    if len(kinds) != 1 or (to and not from_):
        raise typer.BadParameter("give one of: --from [--to], --full, --journal-from, --order")
    return kinds[0]


def until_ended(api: Api, task: dict[str, Any]) -> dict[str, Any]:
    """Follow a task with a bar until it has ended."""
    with _bars() as bars:
        bar = bars.add_task(f"{task['kind']} ({task['status']})", total=None)
        for state in task_states(api, task["task_id"]):
            task = state
            _move(bars, bar, task, task["run"])
    return task


def _bars() -> Progress:
    console = progress_console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _move(bars: Progress, bar: TaskID, named: dict[str, Any], run: dict[str, Any] | None) -> None:
    """Name the bar by a task or a run, and move it to where the run is, if there is one."""
    # Drawn now: between two of its own refreshes a state may come and go.
    where = {} if run is None else {"completed": run["orders_processed"], "total": run["orders_expected"]}
    bars.update(bar, description=f"{named['kind']} ({named['status']})", refresh=True, **where)
