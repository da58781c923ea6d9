"""A bucket as a storage: on a real S3 server, behind a proxy that injects faults."""

import json
import os
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.buckets import ACCOUNT_KEY, KEYS, azurite, going_to, google
from tests.helpers import cases
from tests.servers import Faults, npm_server, proxy, quick_repeats
from vitbackbone.files import bucket_clients, cloud_requests, object_storage
from vitbackbone.files.object_storage import ObjectStorage, open_bucket

pytest.importorskip("obstore", reason="buckets need the extra 'cloud'")
pytestmark = pytest.mark.usefixtures(quick_repeats.__name__)


@pytest.fixture
def connect(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Connect to the server through a proxy with some faults."""
    with ExitStack() as stack:

        def open_through(faults: Faults, prefix: str = "store") -> ObjectStorage:
            stack.enter_context(going_to(stack.enter_context(proxy(server, faults)), monkeypatch))
            return open_bucket(f"s3://photos/{prefix}")

        yield open_through


BIG = bytes(range(256)) * 100_000  # 25 MB: several parts


def check_contract(storage: ObjectStorage) -> None:
    storage = pickle.loads(pickle.dumps(storage))  # noqa: S301  # our own bytes
    assert storage.head("a/b") is None
    assert storage.create("a/b", b"1")
    assert storage.create("a/b", b"1")  # the same content: of a lost answer
    assert not storage.create("a/b", b"2")
    first = storage.head("a/b")
    assert first.size == 1
    assert all(abs(stored.modified - time.time()) < 60 for stored in (first, *storage.list()))
    second = storage.swap("a/b", b"3", first.version)
    assert second == storage.head("a/b").version != first.version
    assert storage.swap("a/b", b"4", first.version) is None
    assert storage.swap("none", b"4", first.version) is None
    assert storage.get("a/b") == b"3"
    storage.put("big", BIG)
    with storage.scratch() as folder:
        (folder / "file").write_bytes(BIG)
        storage.put("file", folder / "file")
    assert storage.get("file") == storage.get("big") == BIG
    for start, length in [(0, 10), (7, 2**24 + 5), (len(BIG) - 3, 10), (len(BIG), 5), (len(BIG) - 2, 2**25), (3, 0)]:
        assert storage.get_range("big", start, length) == BIG[start : start + length]
    storage.delete("big")
    storage.delete("big")
    with pytest.raises(FileNotFoundError, match=f"{storage.url}/big"):
        storage.get("big")
    assert [stored.key for stored in storage.list()] == ["a/b", "file"]  # nothing of the probe stays
    for key in ("../a", "a//b", "a/./b", "", "a\nb"):
        with pytest.raises(ValueError, match="not a key"):
            storage.get(key)


def test_a_bucket_keeps_the_contract_of_a_storage(connect: object) -> None:
    storage = connect(Faults(), "contract")
    assert storage.url == "s3://photos/contract"
    check_contract(storage)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "refused", "lost", "failed", "cut"])
def test_azure_keeps_the_contract_of_a_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    with azurite(tmp_path) as url:
        server, _, account = url.rpartition("/")
        faults = Faults() if kind == "none" else Faults(**{kind: 0.2})
        with proxy(server, faults) as through:
            settings = f"AccountName={account};AccountKey={ACCOUNT_KEY};BlobEndpoint={through}/{account};"
            monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", settings)
            bucket_clients._client.cache_clear()
            check_contract(open_bucket("az://photos/contract"))
            check_conditions(open_bucket("az://photos/conditions"))
    bucket_clients._client.cache_clear()


@pytest.mark.parametrize("kind", cases(["none", "refused", "lost", "failed", "cut"], {"lost"}))
def test_google_keeps_the_contract_of_a_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    faults = Faults() if kind == "none" else Faults(**{kind: 0.2})
    with google() as url, proxy(url, faults) as through:
        account = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True}
        (tmp_path / "account.json").write_text(json.dumps(account | {"gcs_base_url": through}))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
        monkeypatch.setenv("GOOGLE_BASE_URL", through)
        bucket_clients._client.cache_clear()
        storage = open_bucket("gs://photos/contract")
        check_contract(storage)
        listed = next(storage.list())
        assert storage.swap(listed.key, b"by a list", listed.version)  # which tells no generation
        assert storage.swap(listed.key, b"again", listed.version) is None
        check_conditions(open_bucket("gs://photos/conditions"))
    bucket_clients._client.cache_clear()


def test_credentials_are_those_of_the_tools_of_the_cloud(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")
    faults = Faults()
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    with proxy(server, faults) as url:
        (tmp_path / "config").write_text(f"[profile work]\nregion = eu-west-1\nendpoint_url = {url}\n")
        (tmp_path / "credentials").write_text("[work]\naws_access_key_id = MINE\naws_secret_access_key = secret\n")
        for name, value in {
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)
        bucket_clients._client.cache_clear()
        with pytest.raises(PermissionError, match="no credentials were found; set AWS_ACCESS_KEY_ID"):
            open_bucket("s3://photos")
        monkeypatch.setenv("AWS_PROFILE", "work")
        open_bucket("s3://photos").put("credentials", b"1")
        assert "Credential=MINE/" in faults.signatures[-1]
        assert "/eu-west-1/s3/" in faults.signatures[-1]
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        bucket_clients._client.cache_clear()
        with pytest.raises(PermissionError):  # the server has no public objects
            open_bucket("s3://photos").head("credentials")
        assert faults.signatures[-1] == ""
        faults.denied = 1.0
        with pytest.raises(PermissionError, match=r"access is denied \(Access Denied\); set AWS_ACCESS_KEY_ID"):
            open_bucket("s3://photos").get("credentials")
    bucket_clients._client.cache_clear()


def test_a_list_is_sorted_by_bytes_and_starts_anywhere(connect: object) -> None:
    storage = connect(Faults(cut=0.2), "lists")
    keys = [f"{kind}{i:03}" for kind in ("n/", "n-", "n", "na/x/", "ü/") for i in range(3)]
    for key in keys:
        storage.put(key, b"x")
    keys.sort(key=str.encode)
    for prefix in ("", "n", "n/", "n-", "na", "na/", "na/x/00", "z", "n-001"):
        for after in ("", "n-001", "n/001", "na/x/001", "zz"):
            expected = [key for key in keys if key.startswith(prefix) and key > after]
            assert [stored.key for stored in storage.list(prefix, after)] == expected, (prefix, after)


def check_conditions(storage: ObjectStorage) -> None:
    for i in range(12):
        assert storage.create(f"c/{i}", b"mine")
        assert not storage.create(f"c/{i}", b"another")
        version = storage.head(f"c/{i}").version
        assert storage.swap(f"c/{i}", b"next", version)
        assert storage.swap(f"c/{i}", b"third", version) is None
        assert storage.get(f"c/{i}") == b"next"
    storage.put("big", BIG)
    assert storage.get("big") == BIG
    assert storage.get_range("big", 5, len(BIG)) == BIG[5:]
    assert sorted(stored.key for stored in storage.list("c/")) == sorted(f"c/{i}" for i in range(12))


@pytest.mark.parametrize("kind", cases(["refused", "lost", "failed", "cut", "slow"], {"lost", "cut"}))
def test_passing_faults_change_nothing(connect: object, kind: str) -> None:
    faults = Faults(**{kind: 0.3}, seed=1)
    check_conditions(connect(faults, f"faults-{kind}"))
    assert faults.counts[kind] > 5


@pytest.mark.parametrize("kind", ["lost", "failed"])
def test_a_lost_answer_to_the_end_of_an_upload_in_parts_is_no_error(connect: object, kind: str) -> None:
    faults = Faults(**{kind: 1.0}, only="^POST .*uploadId", most=1)
    storage = connect(faults, "parts")
    storage.put("big", BIG)
    assert faults.counts == {kind: 1}
    assert storage.get("big") == BIG


def test_of_several_creators_and_swappers_one_wins(connect: object) -> None:
    storage = connect(Faults(lost=0.1, refused=0.1), "races")
    for round_ in range(5):
        won: list[str] = []

        barrier = threading.Barrier(6)

        def race(
            name: str, key: str = f"race-{round_}", won: list[str] = won, barrier: threading.Barrier = barrier
        ) -> None:
            won += ["create"] * storage.create(key, name.encode())
            version = storage.head(key).version
            barrier.wait()
            won += ["swap"] * (storage.swap(key, f"{name} swapped".encode(), version) is not None)

        threads = [threading.Thread(target=race, args=(str(i),)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == ["create", "swap"]


def test_a_service_that_stays_away_is_an_error_that_says_so(connect: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_requests, "PATIENCE", 0.5)
    monkeypatch.setitem(bucket_clients.RETRIES, "max_retries", 1)
    storage = connect(Faults(refused=1.0), "away")
    with pytest.raises(cloud_requests.ServiceError, match=r"Slow down\); run the same command again"):
        storage.get("a")


def test_a_refusal_is_an_error_at_once(connect: object) -> None:
    connect(Faults())
    with pytest.raises(OSError, match="no bucket with this name|bucket does not exist"):
        list(open_bucket("s3://another-bucket").list())
    for url in ("s3://", "s3:///a", "ftp://a/b", "s3://photos/a//b", "s3://photos/../b"):
        with pytest.raises(ValueError, match=r"names no bucket|not a key"):
            open_bucket(url)


def test_a_forked_process_is_told_to_be_spawned(connect: object) -> None:
    """It would wait forever, because the threads of the client stay with its parent."""
    storage = connect(Faults(), "forks")
    storage.head("a")
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            storage.head("a")
        except RuntimeError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as text:
        assert "start it by the method 'spawn'" in text.read()
    os.waitpid(child, 0)


def test_the_probe_refuses_a_service_that_ignores_conditions(connect: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the real server of this kind, which the slow test starts."""
    storage = connect(Faults(), "ignored")
    put = ObjectStorage._put
    monkeypatch.setattr(ObjectStorage, "_put", lambda self, key, data, mode: put(self, key, data, "overwrite"))
    with pytest.raises(object_storage.ConditionsUnusable, match="ignores their conditions.*s3://photos/ignored"):
        storage.create("a", b"1")


def test_the_probe_refuses_a_service_whose_etags_fulfil_no_condition(
    connect: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy may mark ETags as weak, or add the coding of the content. Each swap would be tried for ever."""
    storage = connect(Faults(), "changed")
    monkeypatch.setattr(ObjectStorage, "_version", lambda self, etag, generation: f"W/{etag}")
    with pytest.raises(object_storage.ConditionsUnusable, match="the ETag that it gave.*s3://photos/changed"):
        storage.create("a", b"1")
    assert [stored.key for stored in storage.list()] == []


@pytest.mark.slow
def test_s3rver_ignores_conditions_and_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with npm_server("s3rver", "-d", str(tmp_path), "-p", "{port}", "-a", "127.0.0.1") as url:
        for name, value in {**KEYS, "AWS_ACCESS_KEY_ID": "S3RVER", "AWS_SECRET_ACCESS_KEY": "S3RVER"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        (tmp_path / "photos").mkdir()
        bucket_clients._client.cache_clear()
        with pytest.raises(object_storage.ConditionsUnusable):
            open_bucket("s3://photos/store").create("a", b"1")
    bucket_clients._client.cache_clear()


@pytest.mark.slow
def test_a_list_of_many_keys_streams(connect: object) -> None:
    storage = connect(Faults(), "many")
    for i in range(2500):
        storage.put(f"k/{i:05}", b"")
    faults = Faults()
    storage = connect(faults, "many")
    listing = storage.list("k/")
    assert next(listing).key == "k/00000"
    assert len([request for request in faults.requests if "list-type" in request[1]]) <= 2  # no page ahead but one
    assert sum(1 for _ in listing) == 2499
    assert len([request for request in faults.requests if "list-type" in request[1]]) == 3
