//! The version gate of rolling upgrades.
//!
//! Each member announces its build: its version, and the newest level that it knows ([`coracle_store::level`]), which says
//! what it reads of entries and snapshots, how it decides and how it hashes its state. The leader raises the cluster's
//! version and level to the lowest of them, never down; all four go by the agreed level only. Once raised, a build that is
//! older stops, and its data directory, which keeps what is agreed on, refuses it at every start; so do backups.
//!
//! Where it is written the level is named `entryFormat`, as in the first builds, whose levels told of entries alone.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use coracle_api::{Storage, write};
use coracle_objects::{
    Object, Transaction, View, cluster_info_key,
    draft::{editable, encode},
};
use coracle_store::{FIRST_LEVEL, Levels, Origin};

use crate::{
    ReplicatedStorage,
    machine::Fatal,
    peers::{MEMBERS, MemberSpec, members},
};

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Between two tries to raise the version or to write it down.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What a control node is, for the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// As `1.2.3`.
    pub version: String,
    /// All that it reads and writes.
    pub levels: Levels,
}

impl Default for Build {
    /// This one.
    fn default() -> Self {
        Self { version: VERSION.into(), levels: Levels::default() }
    }
}

impl Build {
    /// The newest level that it knows.
    pub fn level(&self) -> u8 {
        self.levels.newest()
    }
}

/// What the whole cluster has agreed on: no member is older.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Empty until there is one.
    pub version: String,
    /// 0 until there is one.
    pub level: u8,
}

impl From<&Origin> for Agreed {
    /// What a state's beginning tells of its cluster.
    fn from(origin: &Origin) -> Self {
        Self { version: origin.version.clone(), level: origin.level }
    }
}

impl Agreed {
    /// As a state has it.
    pub fn read(view: &View) -> Self {
        view.get(&cluster_info_key()).map(|info| Self::of(info)).unwrap_or_default()
    }

    fn of(info: &Object) -> Self {
        let draft = editable(info);
        let text = |field: &str| draft["data"][field].as_str().unwrap_or_default();
        Self { version: text("version").to_owned(), level: text("entryFormat").parse().unwrap_or_default() }
    }

    /// Why a build may not take part; `None` where it may.
    pub fn refusal(&self, build: &Build) -> Option<String> {
        self.refusal_of(&build.version, build.level())
    }

    /// The same for one that tells its version and newest level.
    pub fn refusal_of(&self, version: &str, newest: u8) -> Option<String> {
        let (ours, level) = (&self.version, self.level);
        if older(version, ours) {
            return Some(format!(
                "the cluster runs version {ours}, this is version {version}: use {ours} or newer"
            ));
        }
        (newest < level).then(|| {
            format!(
                "the cluster's entries and snapshots are of level {level}, this build, version {version}, knows levels \
                 up to {newest}: use version {ours} or newer"
            )
        })
    }
}

/// The level at which this member writes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AgreedLevel {
    level: Arc<AtomicU8>,
    levels: Levels,
}

impl AgreedLevel {
    /// The first, until the cluster's is known.
    pub fn new(levels: Levels) -> Self {
        Self { level: Arc::new(AtomicU8::new(FIRST_LEVEL)), levels }
    }

    /// The level of what is written now.
    pub fn get(&self) -> u8 {
        self.level.load(Relaxed)
    }

    /// All that this member knows.
    pub fn known(&self) -> Levels {
        self.levels
    }

    fn raise(&self, level: u8) {
        self.level.fetch_max(level.min(self.levels.newest()), Relaxed);
    }
}

/// The lowest of the members' versions and levels, where that is above what is agreed on. `None` where nothing is to be
/// raised, or a member has not announced itself: so has none in `ids`, those that raft knows, of which there is no object.
fn raised(members: &BTreeMap<u64, MemberSpec>, ids: &[u64], agreed: &Agreed) -> Option<Agreed> {
    if !are_named(members, ids) {
        return None;
    }
    let lowest = members.values().map(|member| member.version.as_str());
    let lowest = lowest.min_by(|a, b| order(a, b)).filter(|lowest| parse(lowest).is_some())?;
    let level = members.values().map(|member| member.level).min().unwrap_or_default();
    let raised = Agreed {
        version: if older(&agreed.version, lowest) { lowest.to_owned() } else { agreed.version.clone() },
        level: level.max(agreed.level),
    };
    (raised != *agreed).then_some(raised)
}

fn are_named(members: &BTreeMap<u64, MemberSpec>, ids: &[u64]) -> bool {
    ids.iter().all(|id| members.contains_key(id))
}

/// Raises the cluster's version whenever all members allow it, as long as this member leads. Never ends by itself.
pub async fn keep_raised(storage: &ReplicatedStorage) {
    loop {
        let (_, mut events) = storage.hub().follow();
        loop {
            let written = write(storage, |view| {
                let info = view.get(&cluster_info_key())?;
                let raised = raised(&members(view), &member_ids(storage), &Agreed::of(info))?;
                let mut draft = editable(info);
                draft["data"]["version"] = raised.version.into();
                draft["data"]["entryFormat"] = raised.level.to_string().into();
                Some(Transaction::update(info.key.clone(), encode(&draft), info.revision))
            });
            match written.await {
                Ok(Some(_)) => {
                    let Agreed { version, level } = Agreed::read(&storage.view());
                    tracing::info!(version, level, "cluster version raised");
                }
                // It will be named, or removed, and of a removal no event tells.
                Ok(None) if !are_named(&members(&storage.view()), &member_ids(storage)) => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "the cluster version is not raised yet");
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
            }
            let lagged = loop {
                match events.next().await {
                    Ok(events)
                        if events.iter().any(|event| event.object.key.resource.as_str() == MEMBERS) =>
                    {
                        break false;
                    }
                    Ok(_) => {}
                    Err(_) => break true,
                }
            };
            if lagged {
                break;
            }
        }
    }
}

/// All that raft has as members.
fn member_ids(storage: &ReplicatedStorage) -> Vec<u64> {
    let status = storage.status();
    status.voters.into_iter().chain(status.learners).collect()
}

/// Has what the cluster agrees on written down, and stops a build that is too old for it. `record` says whether that need
/// not be tried again. Never ends by itself.
pub async fn follow(
    storage: ReplicatedStorage,
    build: Build,
    fatal: Arc<Fatal>,
    record: impl Fn(&Agreed) -> bool,
) {
    let key = cluster_info_key();
    loop {
        let (view, mut events) = storage.hub().follow();
        let mut agreed = Agreed::read(&view);
        loop {
            if let Some(refusal) = agreed.refusal(&build) {
                tracing::error!(refusal, "this build is too old for the cluster");
                fatal.send_if_modified(|reason| reason.is_none() && reason.replace(refusal).is_none());
                std::future::pending::<()>().await;
            }
            storage.level().raise(agreed.level);
            while !agreed.version.is_empty() && !record(&agreed) {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            let news = loop {
                match events.next().await {
                    Ok(events) => {
                        if let Some(event) = events.iter().rev().find(|event| event.object.key == key) {
                            break Some(Agreed::of(&event.object));
                        }
                    }
                    Err(_) => break None,
                }
            };
            let Some(news) = news else { break };
            agreed = news;
        }
    }
}

/// Whether the first version is below the second. What is no version is below every version.
pub fn older(version: &str, than: &str) -> bool {
    order(version, than) == Ordering::Less
}

fn order(a: &str, b: &str) -> Ordering {
    parse(a).cmp(&parse(b))
}

/// `1.2.3`, whatever follows after `-` or `+`.
fn parse(version: &str) -> Option<[u64; 3]> {
    let core = version.split(['-', '+']).next()?;
    let mut parts = core.split('.').map(str::parse);
    let parsed = [parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?];
    parts.next().is_none().then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, version: &str, level: u8) -> (u64, MemberSpec) {
        (id, MemberSpec { id, version: version.into(), level, ..MemberSpec::default() })
    }

    fn agreed(version: &str, level: u8) -> Agreed {
        Agreed { version: version.into(), level }
    }

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        assert!(older("0.9.0", "0.10.0") && older("1.2.3", "1.2.4") && older("", "0.0.1"));
        assert!(!older("1.0.0", "1.0.0") && !older("2.0.0-rc.1", "1.9.9") && !older("1.0.0", "nonsense"));
    }

    #[test]
    fn the_lowest_member_is_the_gate() {
        let members = |versions: &[(&str, u8)]| -> BTreeMap<u64, MemberSpec> {
            (1..).zip(versions).map(|(id, (version, format))| member(id, version, *format)).collect()
        };
        let none = Agreed::default();
        let raised = |members: &BTreeMap<u64, MemberSpec>, agreed: &Agreed| {
            let ids: Vec<u64> = members.keys().copied().collect();
            raised(members, &ids, agreed)
        };
        assert_eq!(raised(&members(&[("0.2.0", 2), ("0.1.0", 1)]), &none), Some(agreed("0.1.0", 1)));
        assert_eq!(raised(&members(&[("0.2.0", 2), ("0.1.0", 1)]), &agreed("0.1.0", 1)), None);
        assert_eq!(
            raised(&members(&[("0.2.0", 2), ("0.2.0", 2)]), &agreed("0.1.0", 1)),
            Some(agreed("0.2.0", 2))
        );
        assert_eq!(
            raised(&members(&[("0.2.0", 2), ("", 0)]), &agreed("0.1.0", 1)),
            None,
            "not announced yet"
        );
        assert_eq!(raised(&members(&[("0.1.0", 1)]), &agreed("0.2.0", 2)), None, "never down");
        assert_eq!(raised(&members(&[]), &none), None);
    }

    #[test]
    fn a_member_of_which_nothing_is_known_holds_the_gate() {
        let members: BTreeMap<u64, MemberSpec> = [member(1, "0.2.0", 2), member(2, "0.2.0", 2)].into();
        assert_eq!(raised(&members, &[1, 2, 3], &Agreed::default()), None);
        assert_eq!(raised(&members, &[1, 2], &Agreed::default()), Some(agreed("0.2.0", 2)));
        assert_eq!(raised(&members, &[1], &Agreed::default()), Some(agreed("0.2.0", 2)), "the other joins");
    }

    #[test]
    fn an_older_build_is_refused() {
        let agreed = agreed("0.2.0", 2);
        assert_eq!(agreed.refusal_of("0.2.0", 2), None);
        assert_eq!(agreed.refusal_of("0.3.0", 3), None);
        let older = agreed.refusal_of("0.1.9", 2).unwrap();
        assert!(older.contains("runs version 0.2.0, this is version 0.1.9: use 0.2.0 or newer"), "{older}");
        let lower = agreed.refusal_of("0.2.0", 1).unwrap();
        assert!(lower.contains("level 2") && lower.contains("levels up to 1"), "{lower}");
        assert_eq!(Agreed::default().refusal_of("0.0.1", 1), None);
    }

    #[test]
    fn the_level_only_rises_and_never_above_what_is_known() {
        let levels = Levels::default();
        let level = AgreedLevel::new(levels);
        assert_eq!(level.get(), FIRST_LEVEL);
        level.raise(200);
        assert_eq!(level.get(), levels.newest());
        level.raise(0);
        assert_eq!(level.get(), levels.newest());
    }
}
