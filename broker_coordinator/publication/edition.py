"""An edition: a version as it goes out, blobs, signed manifest and marker.

A manifest is signed once and kept: a coordinator that starts again sends the same bytes, so that a fleet
of sleeping devices is not woken by a new counter on an old message.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from broker_coordinator.books.recovery import note_witnessed
from broker_coordinator.configuration import FleetConfiguration
from broker_coordinator.publication.shelf import BlobShelf
from broker_coordinator.storage.records import VersionRecord
from broker_coordinator.storage.store import Store
from fl_io.disk import DISK, Disk, write_file
from fl_protocol.blob import BlobRef
from fl_protocol.errors import ProtocolError, StorageError
from fl_protocol.signed import TASK_CONTEXT, Sign, Verify, open_envelope, seal
from fl_protocol.task import MAX_TASK_BYTES, Pacing, TaskManifest
from fl_protocol.topics import FleetTopics, blob_name
from models.runtime import TrainingArtifact

__all__ = ["MANIFEST_FILE", "Edition", "Editor", "read_manifest"]

MANIFEST_FILE = "task.manifest"
_INITIAL_WEIGHTS = "weights.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Edition:
    """``rows`` maps each retained topic, the manifest's apart, to the sha256 of its payload."""

    version: VersionRecord
    envelope: bytes
    manifest: TaskManifest
    rows: Mapping[str, bytes]

    @property
    def marker(self) -> bytes:
        """sha256 over all rows and the manifest: who finds it on the broker finds them all."""
        digest = hashlib.sha256(self.envelope)
        for topic, sha256 in sorted(self.rows.items()):
            digest.update(topic.encode() + b"\0" + sha256)
        return digest.digest()


class Editor:
    """Makes editions of one task. Puts the artifact's files on the shelf as it is made.

    Raises:
        ArtifactError: a file of the artifact is damaged.
        StorageError: the disk refuses.
    """

    def __init__(
        self,
        configuration: FleetConfiguration,
        artifact: TrainingArtifact,
        *,
        store: Store,
        shelf: BlobShelf,
        sign: Sign,
        verify: Verify,
        disk: Disk = DISK,
    ) -> None:
        self._configuration = configuration
        self._artifact = artifact
        self._store = store
        self._shelf = shelf
        self._sign = sign
        self._verify = verify
        self._disk = disk
        self._path = configuration.state / MANIFEST_FILE
        self._topics = FleetTopics(configuration.fleet)
        self._manifest_ref = shelf.put(artifact.manifest.to_json())
        files = [shelf.put(artifact.read(name)) for name in _travelling(artifact)]
        self.artifact_rows = {
            topic: sha256 for ref in (self._manifest_ref, *files) for topic, sha256 in self._rows(ref).items()
        }

    def edition(self, version: VersionRecord) -> Edition:
        """The edition of a version: the one that went out before, if nothing in it has changed.

        Raises:
            StorageError: the published weights are not on the shelf; the disk refuses.
        """
        weights = self._weights(version)
        if weights is None:
            raise StorageError(
                f"the published weights of version {version.number} are gone from the state folder",
                hint="restore a backup: lichen backup made one if it was asked to",
            )
        manifest, envelope = self._manifest(version, weights.listed()[0])
        rows = {**self.artifact_rows, **self._weight_rows(weights)}
        return Edition(version=version, envelope=envelope, manifest=manifest, rows=rows)

    def rows(self, version: VersionRecord) -> Mapping[str, bytes]:
        """The topics of a version's weights; empty where they are not on the shelf any more."""
        weights = self._weights(version)
        return {} if weights is None else self._weight_rows(weights)

    def verified(self, envelope: bytes) -> TaskManifest | None:
        """A manifest that bears our own signature, else None."""
        return read_manifest(envelope, self._verify)

    def note_witnessed(self, envelope: bytes, manifest: TaskManifest) -> None:
        """Keep what shows how far the fleet has come beyond our store."""
        note_witnessed(self._configuration.state, envelope, manifest)

    def _weights(self, version: VersionRecord) -> BlobRef | None:
        content = self._shelf.read(version.published_sha256)
        return None if content is None else BlobRef.of(content)

    def _manifest(self, version: VersionRecord, weights: BlobRef) -> tuple[TaskManifest, bytes]:
        wanted = self._wanted(version, weights)
        try:
            kept = self._path.read_bytes()
        except FileNotFoundError:
            kept = b""
        except OSError as error:
            raise StorageError(f"cannot read {self._path}: {error.strerror or error}") from error
        before = self.verified(kept)
        if before is not None and before.version == version.id and self._configuration.selection.automatic:
            # As many devices as are on line now decide for the next version.
            wanted = replace(wanted, pacing=replace(wanted.pacing, by_lease=before.pacing.by_lease))
        if before is not None and replace(before, counter=0, term=0) == wanted:
            return before, kept
        fresh = replace(wanted, counter=self._store.next_counter(), term=self._store.office().term)
        envelope = seal(TASK_CONTEXT, fresh.pack(), self._sign)
        write_file(self._path, envelope, purpose="coordinator.manifest", disk=self._disk)
        # What devices will compare is what they will read: float32 plans, references without lists.
        return TaskManifest.unpack(fresh.pack()), envelope

    def _wanted(self, version: VersionRecord, weights: BlobRef) -> TaskManifest:
        configuration = self._configuration
        manifest = TaskManifest(
            fleet=configuration.fleet,
            task=configuration.task,
            counter=0,
            term=0,
            version=version.id,
            artifact=self._manifest_ref,
            weights=weights,
            fingerprint=self._artifact.layout.fingerprint,
            plan=configuration.plan.plan,
            codec=configuration.update.canonical_codec,
            pacing=self._pacing(),
            max_examples=configuration.update.max_examples,
        )
        return TaskManifest.unpack(manifest.pack())

    def _pacing(self) -> Pacing:
        """By lease where more devices are on line than may be in flight, and in rounds."""
        configuration = self._configuration
        pacing = replace(configuration.selection.pacing, horizon=configuration.horizon_versions)
        if not configuration.selection.automatic:
            return pacing
        most = configuration.in_flight
        rounds = configuration.buffer.kind == "rounds"
        return replace(pacing, by_lease=rounds or self._store.count_ready(most=most + 1) > most)

    def _weight_rows(self, weights: BlobRef) -> Mapping[str, bytes]:
        rows = dict(self._rows(weights))
        chunk_list = weights.listed()[1]
        if chunk_list is not None:
            rows |= self._rows(self._shelf.put(chunk_list))
        return rows

    def _rows(self, ref: BlobRef) -> Mapping[str, bytes]:
        name = blob_name(ref.address, ref.chunk_bytes)
        return {self._topics.blob(name, index): chunk for index, chunk in enumerate(ref.chunks)}


def read_manifest(envelope: bytes, verify: Verify) -> TaskManifest | None:
    """The manifest in an envelope if ``verify`` trusts it, else None."""
    try:
        return TaskManifest.unpack(open_envelope(TASK_CONTEXT, envelope, verify, limit=2 * MAX_TASK_BYTES))
    except ProtocolError:
        return None


def _travelling(artifact: TrainingArtifact) -> list[str]:
    """The files a device needs; the initial weights only where something in them is not sent as weights."""
    manifest = artifact.manifest
    return [name for name in manifest.files if name != _INITIAL_WEIGHTS or manifest.needs_initial_weights]
