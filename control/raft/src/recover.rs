//! A member's directory while nobody runs it: read whole, and founded anew as a cluster of one.
//!
//! Both serve when a cluster is made of what is left of another: after the loss of a quorum, or from a backup. The new
//! cluster begins with a snapshot of the old one's state. It has another cluster id, so that no member of the old one
//! is heard, and a member id that was never used.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::Path;

use raft::eraftpb::{ConfState, EntryType, HardState};

use crate::config::SEGMENT_BYTES;
use crate::error::Error;
use crate::identity;
use crate::membership;
use crate::snapshot::files;
use crate::snapshot::{Frozen, Header};
use crate::wal::{Disk, RealDisk, Record, Recovered, SnapshotMarker, Wal, WalOptions};

/// A stopped member's log and snapshot. Nobody can start the member while this lives.
pub struct Stopped {
    cluster_id: String,
    disk: RealDisk,
    recovered: Recovered,
    _lock: identity::Lock,
}

impl Stopped {
    /// Opens the directory of a member that does not run, and changes nothing in it.
    pub fn open(dir: &Path, cluster_id: &str, id: u64) -> Result<Stopped, Error> {
        let disk = RealDisk::new(dir);
        let names = disk.list().map_err(|source| Error::Disk {
            action: "list",
            file: dir.display().to_string(),
            source,
        })?;
        if !names.iter().any(|name| name.ends_with(".wal")) {
            return Err(Error::Corrupt {
                file: dir.display().to_string(),
                offset: 0,
                what: "there is no log".into(),
            });
        }
        let lock = identity::lock(dir)?;
        identity::claim(&disk, cluster_id, id)?;
        let (_, recovered) = Wal::open(disk.clone(), options())?;
        Ok(Stopped { cluster_id: cluster_id.to_owned(), disk, recovered, _lock: lock })
    }

    /// The index of the last entry, committed or not.
    pub fn last(&self) -> u64 {
        self.recovered.entries.last().map_or(self.recovered.snapshot.index, |entry| entry.index)
    }

    /// The term of the last entry. Of several members the one with the highest last term, and then the highest last
    /// index, has everything that was acknowledged.
    pub fn last_term(&self) -> u64 {
        self.recovered.entries.last().map_or(self.recovered.snapshot.term, |entry| entry.term)
    }

    /// The highest index that the member knew to be committed.
    pub fn commit(&self) -> u64 {
        self.recovered.hard_state.commit.max(self.recovered.snapshot.index)
    }

    /// All ids that were ever members as far as this member knows, in ascending order.
    pub fn used_ids(&self) -> Vec<u64> {
        let marker = &self.recovered.snapshot;
        let members = membership::Members::new(marker.conf_state.clone(), &marker.removed);
        let mut used: BTreeSet<u64> = members.removed().into_iter().collect();
        used.extend(members.voters().into_iter().chain(members.learners()));
        for entry in &self.recovered.entries {
            if entry.entry_type == EntryType::EntryConfChangeV2
                && let Some(change) = membership::decode(&entry.data)
            {
                used.extend(change.changes.iter().map(|single| single.node_id));
            }
        }
        used.into_iter().filter(|id| *id != 0).collect()
    }

    /// Gives the state as of the snapshot, where there is one, and then every entry behind it, in order. Entries that
    /// the member did not know to be committed are among them: the members that are lost may have acknowledged them.
    pub fn replay(
        &self,
        restore: impl FnOnce(&mut dyn Read) -> io::Result<()>,
        mut apply: impl FnMut(u64, &[u8]) -> Result<(), String>,
    ) -> Result<(), Error> {
        let marker = &self.recovered.snapshot;
        if marker.index > 0 {
            let mut state = files::open_for(&self.disk, &self.cluster_id, marker)?;
            restore(&mut state).map_err(|error| files::broken(marker.index, error))?;
        }
        for entry in &self.recovered.entries {
            if entry.entry_type == EntryType::EntryNormal && !entry.data.is_empty() {
                apply(entry.index, &entry.data).map_err(|what| Error::Corrupt {
                    file: format!("entry {}", entry.index),
                    offset: 0,
                    what,
                })?;
            }
        }
        Ok(())
    }
}

/// Makes the directory of a cluster of one member, `id`, that begins with `state` as of entry `index` of `term`. The
/// ids in `removed` will never be given again. The directory must not exist, or be empty; it is whole when this
/// returns.
pub fn found(
    dir: &Path,
    cluster_id: &str,
    id: u64,
    (index, term): (u64, u64),
    removed: Vec<u64>,
    state: &dyn Frozen,
) -> Result<SnapshotMarker, Error> {
    let lock = identity::lock(dir)?;
    let disk = RealDisk::new(dir);
    identity::claim(&disk, cluster_id, id)?;
    let marker = SnapshotMarker {
        index: index.max(1),
        term: term.max(1),
        conf_state: ConfState { voters: vec![id], ..ConfState::default() },
        removed: removed.into_iter().filter(|removed| *removed != id).collect(),
    };
    let header = Header { cluster_id: cluster_id.to_owned(), marker: marker.clone() };
    files::write(&disk, &header, state).map_err(|source| Error::Disk {
        action: "write",
        file: files::name(marker.index),
        source,
    })?;
    let (mut wal, _) = Wal::open(disk, options())?;
    let hard_state = HardState { term: marker.term, commit: marker.index, ..HardState::default() };
    wal.append(&[Record::Snapshot(marker.clone()), Record::HardState(hard_state)])?;
    drop(lock);
    Ok(marker)
}

fn options() -> WalOptions {
    WalOptions { segment_bytes: SEGMENT_BYTES, salt: rand::random() }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use raft::eraftpb::Entry;

    use super::*;
    use crate::core::Core;
    use crate::{Config, MemberChange};

    struct Words(String);

    impl Frozen for Words {
        fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
            out.write_all(self.0.as_bytes())
        }
    }

    fn words(stopped: &Stopped) -> String {
        let text = std::cell::RefCell::new(String::new());
        let restore = |state: &mut dyn Read| state.read_to_string(&mut text.borrow_mut()).map(|_| ());
        let apply = |_, entry: &[u8]| {
            text.borrow_mut().push_str(std::str::from_utf8(entry).expect("words"));
            Ok(())
        };
        stopped.replay(restore, apply).expect("it is whole");
        text.into_inner()
    }

    #[test]
    fn a_cluster_of_one_goes_on_with_the_state_of_another() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let old = dir.path().join("old");
        let marker = found(&old, "c1", 4, (10, 3), vec![1, 2, 4], &Words("one ".into())).expect("it is made");
        assert_eq!((marker.index, marker.term, &marker.removed[..]), (10, 3, &[1, 2][..]));
        {
            // It goes on: a word that it did not know to be committed, and a change of members.
            let (mut wal, recovered) = Wal::open(RealDisk::new(&old), options()).expect("it opens");
            assert_eq!((recovered.snapshot, recovered.hard_state.commit), (marker, 10));
            let change = membership::to_raft(&[MemberChange::AddLearner(7)]);
            let data = protobuf::Message::write_to_bytes(&change).expect("it encodes");
            let entry = |index, entry_type, data: Vec<u8>| {
                Record::Entry(Entry { entry_type, term: 5, index, data: data.into(), ..Entry::default() })
            };
            wal.append(&[
                entry(11, EntryType::EntryNormal, b"two ".to_vec()),
                entry(12, EntryType::EntryConfChangeV2, data),
                entry(13, EntryType::EntryNormal, b"three".to_vec()),
            ])
            .expect("it is written");
        }
        assert!(matches!(Stopped::open(&old, "c2", 4), Err(Error::ForeignCluster { .. })));
        let stopped = Stopped::open(&old, "c1", 4).expect("it is whole");
        assert!(matches!(Stopped::open(&old, "c1", 4), Err(Error::Locked { .. })));
        assert_eq!((stopped.last(), stopped.last_term(), stopped.commit()), (13, 5, 10));
        assert_eq!(stopped.used_ids(), [1, 2, 4, 7]);
        assert_eq!(words(&stopped), "one two three");

        let new = dir.path().join("new");
        let state = Words(words(&stopped));
        found(&new, "c2", 8, (stopped.last(), stopped.last_term()), stopped.used_ids(), &state)
            .expect("it is made");
        let stopped = Stopped::open(&new, "c2", 8).expect("it is whole");
        assert_eq!(words(&stopped), "one two three");
        let core =
            Core::new(Config::new(8, &new, "c2"), stopped.recovered, &crate::logger()).expect("it starts");
        let status = core.status();
        assert_eq!((status.voters, status.applied, status.last), (vec![8], 13, 13));
    }

    #[test]
    fn a_directory_without_a_log_stays_as_it_is() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(matches!(Stopped::open(dir.path(), "c1", 1), Err(Error::Corrupt { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).expect("it lists").count(), 0);
        assert!(Stopped::open(&dir.path().join("none"), "c1", 1).is_err());
    }
}
