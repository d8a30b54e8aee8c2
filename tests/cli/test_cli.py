"""What a person meets at the prompt: what is printed, and with which exit code a command ends."""

import asyncio
import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
import segno

from services.writer.batch import collect
from services.writer.store import Store
from shared.encryption import Keyring, Secret
from shared.messages import RawJson
from shared.token_vault import access_binding, refresh_binding
from tests.builders import AN_ORDER, a_token, an_event, an_observation, consumed
from tests.canary import a_secret
from tests.cli.conftest import Run

pytestmark = pytest.mark.integration


async def a_connected_seller(pool: asyncpg.Pool) -> None:
    token_id = await a_token(pool)
    await pool.execute(
        "INSERT INTO active_sync_schedules (user_token_id, user_id, interval_seconds, next_full_run)"
        " VALUES ($1, 'shop-1', 180, now())",
        token_id,
    )
    order = an_observation(body=RawJson(b'{"id": "x", "price": 1.10}'))
    batch = collect([consumed(an_event(100)), consumed(order)], dead_letter_topic="dead")
    await Store(pool).apply(batch)


NEWER_KEY = "k2:" + base64.b64encode(bytes([1] * 32)).decode()


async def a_stored_pair(pool: asyncpg.Pool, environment: dict[str, str]) -> None:
    """A seller's tokens, as the services of this environment store them."""
    keyring, token_id = Keyring.parse(environment["ENCRYPTION_KEYS"]), await a_token(pool)
    access = keyring.seal(Secret(a_secret("access")), belongs_to=access_binding(token_id))
    refresh = keyring.seal(Secret(a_secret("refresh")), belongs_to=refresh_binding(token_id))
    await pool.execute(
        "UPDATE user_tokens SET access_token = $2, refresh_token = $3, key_id = $4 WHERE id = $1",
        token_id,
        access.envelope,
        refresh.envelope,
        refresh.key_id,
    )


class TestSetup:
    def test_the_second_time_there_is_nothing_to_do(self, orders_backup: Run) -> None:
        done = orders_backup("setup")

        assert (done.code, done.err) == (0, "")
        assert done.out.splitlines()[1] == "topics: all there"

    def test_an_unreachable_database_is_told_in_one_line(self, orders_backup: Run) -> None:
        done = orders_backup("setup", "--wait", "0", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")

        assert (done.code, done.out) == (3, "")
        assert done.err.startswith("orders-backup: PostgreSQL is not reachable")
        assert len(done.err.splitlines()) == 1

    def test_a_wrong_setting_is_named(self, orders_backup: Run) -> None:
        done = orders_backup("setup", DATABASE_URL="mysql://localhost/orders")

        assert (done.code, done.err) == (2, "orders-backup: DATABASE_URL: must start with postgresql://\n")


class TestDoctor:
    def test_a_working_installation_has_nothing_to_mend(self, api: Path, orders_backup: Run) -> None:
        done = orders_backup("doctor", "--json")

        findings = json.loads(done.out)
        assert (done.code, [finding for finding in findings if finding["mend"]]) == (0, [])
        assert {finding["what"] for finding in findings} == {
            *(
                "settings",
                "PostgreSQL",
                "Kafka",
                "Allegro",
                "client id",
                "API",
                "migrations",
                "encryption keys",
                "clock",
            ),
        }

    def test_what_is_wrong_is_named_with_what_to_do(self, orders_backup: Run) -> None:
        done = orders_backup(
            "doctor",
            "--json",
            DATABASE_URL="postgresql://nobody@127.0.0.1:1/none",
            KAFKA_TOPIC_PREFIX="never-created-",
        )

        mends = {finding["what"]: finding["mend"] for finding in json.loads(done.out)}
        assert done.code == 1
        assert mends["Kafka"] == "orders-backup setup"
        assert "DATABASE_URL" in mends["PostgreSQL"]
        assert "services.api" in mends["API"]

    def test_a_wrong_setting_is_a_finding(self, orders_backup: Run) -> None:
        done = orders_backup("doctor", ALLEGRO_USER_AGENT="no version")

        assert done.code == 1
        assert "ALLEGRO_USER_AGENT" in done.out

    def test_a_setting_of_one_service_keeps_no_look_back(self, api: Path, orders_backup: Run) -> None:
        done = orders_backup("doctor", "--json", API_REQUESTS_PER_MINUTE="many")

        findings = {finding["what"]: finding["found"] for finding in json.loads(done.out)}
        assert done.code == 1
        assert "API_REQUESTS_PER_MINUTE" in findings["settings of api"]
        assert "topics" in findings["Kafka"]

    def test_an_app_that_allegro_does_not_know_is_a_finding(self, api: Path, orders_backup: Run) -> None:
        done = orders_backup("doctor", "--json", ALLEGRO_CLIENT_SECRET="wrong")

        mends = {finding["what"]: finding["mend"] for finding in json.loads(done.out)}
        assert done.code == 1
        assert "ALLEGRO_CLIENT_SECRET" in mends["client id"]


def the_qr_code_of(link: str) -> str:
    drawn = io.StringIO()
    segno.make(link, error="L").terminal(out=drawn, compact=True)
    return drawn.getvalue()


class TestCommands:
    async def test_an_invitation_holds_link_code_and_qr_and_never_the_device_code(
        self, api: Path, orders_backup: Run, pool: asyncpg.Pool
    ) -> None:
        invited = orders_backup("auth", "shop-1", "--no-wait", "--json")

        assert invited.code == 0
        assert json.loads(invited.out)["status"] == "PENDING"
        assert "https://allegro.pl/skojarz-aplikacje?code=abcd1234" in invited.err
        assert the_qr_code_of("https://allegro.pl/skojarz-aplikacje?code=abcd1234") in invited.err
        log = await asyncio.to_thread(api.read_text)
        for text in (invited.out, invited.err, log):
            assert a_secret("device-code") not in text
        assert await pool.fetchval("SELECT count(*) FROM device_authorizations") == 1

    @pytest.mark.parametrize(
        ("end", "code", "said"),
        [
            pytest.param("status = 'SUCCESS', user_token_id = 1", 0, "token 1", id="consent"),
            pytest.param("status = 'FAILURE', reason = 'denied', message = 'No.'", 1, "No. (denied)", id="refusal"),
        ],
    )
    async def test_waiting_ends_with_the_sellers_decision(
        self, api: Path, orders_backup: Run, pool: asyncpg.Pool, end: str, code: int, said: str
    ) -> None:
        await a_token(pool)
        # The poller's part, done as soon as the flow has begun.
        await pool.execute(
            "CREATE FUNCTION decide() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN UPDATE device_authorizations SET {end} WHERE task_id = NEW.task_id; RETURN NULL; END $$;"
            " CREATE TRIGGER decide AFTER INSERT ON device_authorizations FOR EACH ROW EXECUTE FUNCTION decide()"
        )

        done = orders_backup("auth", "shop-1", "--no-qr")

        assert done.code == code
        assert said in done.out + done.err

    async def test_sellers_orders_and_tasks(self, api: Path, orders_backup: Run, pool: asyncpg.Pool) -> None:
        await a_connected_seller(pool)

        tokens = orders_backup("tokens", "list", "--json")
        orders = orders_backup("orders", "list", "shop-1")
        order = orders_backup("orders", "show", "shop-1", AN_ORDER, "--json")
        started = orders_backup("sync", "start", "shop-1", "--full", "--json")
        task_id = json.loads(started.out)["task_id"]
        stopped = orders_backup("sync", "stop", task_id, "--json")
        again = orders_backup("sync", "stop", task_id)
        status = orders_backup("sync", "status", "shop-1")
        paused = orders_backup("sync", "deactivate", "shop-1", "--json")

        assert [token["user_id"] for token in json.loads(tokens.out)] == ["shop-1"]
        assert AN_ORDER in orders.out
        assert '"price": 1.10' in order.out
        assert json.loads(stopped.out)["status"] == "stopped"
        assert (again.code, again.out) == (1, "")
        assert "The task has ended" in again.err
        assert (status.code, "pending orders" in status.out) == (0, True)
        assert json.loads(paused.out)["status"] == "paused"

    async def test_a_comparison_is_waited_for_and_reported(
        self, api: Path, orders_backup: Run, pool: asyncpg.Pool
    ) -> None:
        await a_connected_seller(pool)
        # The services' part, done as soon as the task is there.
        await pool.execute(
            f"""
            CREATE FUNCTION compare() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO sync_history (run_id, task_id, user_token_id, user_id, kind, status, completed_at)
            VALUES (NEW.task_id, NEW.task_id, NEW.user_token_id, NEW.user_id, NEW.kind, 'completed', now());
            INSERT INTO reconciliation_findings (run_id, allegro_order_id, user_token_id, finding, cause)
            VALUES (NEW.task_id, '{AN_ORDER}', NEW.user_token_id, 'stale', 'unannounced');
            UPDATE task_history SET status = 'completed', finished_at = now() WHERE task_id = NEW.task_id;
            RETURN NULL; END $$;
            CREATE TRIGGER compare AFTER INSERT ON task_history FOR EACH ROW EXECUTE FUNCTION compare()
            """
        )

        shown = orders_backup("reconcile", "shop-1", "--from", "2026-10-01T00:00:00Z")
        report = json.loads(orders_backup("reconcile", "shop-1", "--json").out)
        wrong = orders_backup("reconcile", "shop-1", "--to", "2026-10-01T00:00:00Z")

        assert (shown.code, AN_ORDER in shown.out, "unannounced" in shown.out) == (0, True, True)
        assert (report["kind"], report["findings"]["stale"], len(report["items"])) == ("full", 1, 1)
        assert (wrong.code, "--to needs --from" in wrong.err) == (2, True)
        assert await pool.fetchval("SELECT parameters->>'from' FROM task_history WHERE kind = 'manual'") is not None

    async def test_a_list_of_orders_keeps_the_digits_of_numbers(
        self, api: Path, orders_backup: Run, pool: asyncpg.Pool
    ) -> None:
        await a_connected_seller(pool)

        done = orders_backup("orders", "list", "shop-1", "--fields", "order_id,order_data", "--json")

        assert '"price": 1.10' in done.out
        assert [order["order_id"] for order in json.loads(done.out)] == [AN_ORDER]

    async def test_dead_letters_are_listed_and_dealt_with(
        self, api: Path, orders_backup: Run, pool: asyncpg.Pool
    ) -> None:
        await pool.execute(
            'INSERT INTO dead_letters (service, topic, partition, "offset", value, digest, error_type, error)'
            " VALUES ('writer', 'orders', 0, 1, '\\x7b', '\\x00', 'UnreadableRecordError', 'not JSON')"
        )

        listed = orders_backup("dead-letters", "list", "--json")
        shown = orders_backup("dead-letters", "show", "1", "--json")
        dropped = orders_backup("dead-letters", "drop", "1")
        replayed = orders_backup("dead-letters", "replay", "1")

        assert [letter["id"] for letter in json.loads(listed.out)] == [1]
        assert json.loads(shown.out)["text"] == "{"
        assert dropped.code == 0
        assert replayed.code == 1

    async def test_the_states_of_all_orders_are_asked_for_again(self, orders_backup: Run, pool: asyncpg.Pool) -> None:
        await pool.execute("UPDATE order_state_topic SET republish_after = NULL")

        done = orders_backup("orders", "republish")

        assert done.code == 0
        assert await pool.fetchval("SELECT republish_after FROM order_state_topic") == 0

    async def test_keys_are_rotated(self, orders_backup: Run, environment: dict[str, str], pool: asyncpg.Pool) -> None:
        await a_stored_pair(pool, environment)
        both = f"{NEWER_KEY},{environment['ENCRYPTION_KEYS']}"

        done = orders_backup("encryption-keys", "rotate", "--json", ENCRYPTION_KEYS=both)

        assert (done.code, json.loads(done.out)) == (0, {"moved": 1, "left": 0})
        assert await pool.fetchval("SELECT key_id FROM user_tokens") == "k2"

    async def test_a_rotation_that_leaves_something_says_so_and_does_not_end_with_0(
        self, orders_backup: Run, environment: dict[str, str], pool: asyncpg.Pool
    ) -> None:
        """The operator removes the old key next."""
        await a_stored_pair(pool, environment)
        await pool.execute(
            "CREATE FUNCTION replaced() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
            " CREATE TRIGGER replaced BEFORE UPDATE ON user_tokens FOR EACH ROW EXECUTE FUNCTION replaced()"
        )
        both = f"{NEWER_KEY},{environment['ENCRYPTION_KEYS']}"

        done = orders_backup("encryption-keys", "rotate", ENCRYPTION_KEYS=both)

        assert (done.code, done.out) == (1, "0 secrets moved to the first key, 1 are still of another\n")
        assert "rotate again" in done.err

    async def test_a_rotation_without_the_old_key_is_refused(
        self, orders_backup: Run, environment: dict[str, str], pool: asyncpg.Pool
    ) -> None:
        await a_stored_pair(pool, environment)

        done = orders_backup("encryption-keys", "rotate", ENCRYPTION_KEYS=NEWER_KEY)

        assert (done.code, done.out) == (2, "")
        assert "ENCRYPTION_KEYS: key 'k1' is missing, 1 stored secrets were encrypted with it" in done.err


class TestExitCodes:
    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            pytest.param(("tokens", "list"), 3, id="no-api"),
            pytest.param(("tokens", "list", "--api-url", "http://["), 3, id="no-address"),
            pytest.param(("sync", "start", "shop-1"), 2, id="no-kind"),
            pytest.param(("sync", "start", "shop-1", "--full", "--order", "a"), 2, id="two-kinds"),
            pytest.param(("paint",), 2, id="no-such-command"),
        ],
    )
    def test_a_command_that_cannot_do_its_work_says_so(
        self, orders_backup: Run, arguments: tuple[str, ...], code: int
    ) -> None:
        done = orders_backup(*arguments)

        assert (done.code, done.out) == (code, "")
        assert done.err

    async def test_an_unknown_user_is_refused_in_the_apis_words(self, api: Path, orders_backup: Run) -> None:
        done = orders_backup("sync", "status", "nobody")

        assert done.code == 1
        assert done.err.startswith("orders-backup: No seller is connected for user 'nobody'. (404, correlation id ")


class TestService:
    @pytest.mark.parametrize(
        ("variables", "said"),
        [
            pytest.param({"API_HTTP_HOST": "0.0.0.0"}, "orders-backup keys create", id="reachable-by-others"),
            pytest.param({"ALLEGRO_USER_AGENT": "no version"}, "ALLEGRO_USER_AGENT", id="malformed"),
            pytest.param({"ENCRYPTION_KEYS": "k1:short"}, "ENCRYPTION_KEYS", id="short-key"),
        ],
    )
    def test_a_wrong_setting_stops_the_start(
        self, environment: dict[str, str], tmp_path: Path, variables: dict[str, str], said: str
    ) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "services.api"],
            env=environment | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
