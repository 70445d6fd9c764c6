//! The version gate of rolling upgrades.
//!
//! Each member announces its build and the newest format of log entries that it reads. The leader raises the cluster's
//! version to the lowest of them, never down; entries are written in the agreed format only. Once raised, a build that
//! is older stops, and its data directory, which keeps the version, refuses it at every start.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use coracle_api::Storage;
use coracle_objects::{Object, Transaction, View};
use coracle_store::ENTRY_FORMATS;

use crate::{
    bootstrap::CLUSTER_INFO,
    config::VERSION,
    data_dir::DataDir,
    drafts::{self, editable, encode},
    error::chain,
    machine::Fatal,
    peers::{MEMBERS, MemberSpec, members},
    storage::ReplicatedStorage,
};

/// Between two tries to raise the version or to write it down.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What a control node announces of itself: by that alone the gate knows builds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// As `1.2.3`.
    pub version: String,
    /// The newest format of log entries that it reads.
    pub entry_format: u8,
}

impl Default for Build {
    /// This one.
    fn default() -> Self {
        Self { version: VERSION.into(), entry_format: *ENTRY_FORMATS.end() }
    }
}

/// What the whole cluster has agreed on: no member is older.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Empty until there is one.
    pub version: String,
    /// 0 until there is one.
    pub entry_format: u8,
}

impl Agreed {
    pub fn read(view: &View) -> Self {
        view.get(&CLUSTER_INFO.key()).map(|info| Self::of(info)).unwrap_or_default()
    }

    fn of(info: &Object) -> Self {
        let draft = editable(info);
        let text = |field: &str| draft["data"][field].as_str().unwrap_or_default();
        Self {
            version: text("version").to_owned(),
            entry_format: text("entryFormat").parse().unwrap_or_default(),
        }
    }

    /// Why a build may not take part; `None` where it may.
    pub fn refusal(&self, build: &Build) -> Option<String> {
        let Build { version, entry_format } = build;
        let (ours, format) = (&self.version, self.entry_format);
        if older(version, ours) {
            return Some(format!(
                "the cluster runs version {ours}, this is version {version}: use {ours} or newer"
            ));
        }
        (*entry_format < format).then(|| {
            format!(
                "the cluster's log has entries of format {format}, this build reads up to {entry_format}: use version \
                 {ours} or newer"
            )
        })
    }
}

/// The format in which this member writes entries while it leads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EntryFormat(Arc<AtomicU8>);

impl Default for EntryFormat {
    /// The oldest, until the cluster's is known.
    fn default() -> Self {
        Self(Arc::new(AtomicU8::new(*ENTRY_FORMATS.start())))
    }
}

impl EntryFormat {
    pub fn get(&self) -> u8 {
        self.0.load(Relaxed)
    }

    fn raise(&self, format: u8) {
        self.0.fetch_max(format.min(*ENTRY_FORMATS.end()), Relaxed);
    }
}

/// The lowest of the members' versions and formats, where that is above what is agreed on. `None` where nothing is to
/// be raised, or a member has not announced itself.
pub fn raised(members: &BTreeMap<u64, MemberSpec>, agreed: &Agreed) -> Option<Agreed> {
    let lowest = members.values().map(|member| member.version.as_str());
    let lowest = lowest.min_by(|a, b| order(a, b)).filter(|lowest| parse(lowest).is_some())?;
    let format = members.values().map(|member| member.entry_format).min().unwrap_or_default();
    let raised = Agreed {
        version: if older(&agreed.version, lowest) { lowest.to_owned() } else { agreed.version.clone() },
        entry_format: format.max(agreed.entry_format),
    };
    (raised != *agreed).then_some(raised)
}

/// Raises the cluster's version whenever all members allow it, as long as this member leads. Never ends by itself.
pub async fn keep_raised(storage: &ReplicatedStorage) {
    loop {
        let (_, mut events) = storage.hub().everything();
        loop {
            let written = drafts::write(storage, |view| {
                let info = view.get(&CLUSTER_INFO.key())?;
                let raised = raised(&members(view), &Agreed::of(info))?;
                let mut draft = editable(info);
                draft["data"]["version"] = raised.version.into();
                draft["data"]["entryFormat"] = raised.entry_format.to_string().into();
                Some(Transaction::update(info.key.clone(), encode(&draft), info.revision))
            });
            match written.await {
                Ok(Some(_)) => {
                    let Agreed { version, entry_format } = Agreed::read(&storage.view());
                    tracing::info!(version, entry_format, "cluster version raised");
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

/// Writes down what the cluster agrees on, and stops a build that is too old for it. Never ends by
/// itself.
pub async fn follow(storage: ReplicatedStorage, data: Arc<DataDir>, format: EntryFormat, fatal: Arc<Fatal>) {
    let key = CLUSTER_INFO.key();
    loop {
        let (view, mut events) = storage.hub().everything();
        let mut agreed = Agreed::read(&view);
        loop {
            if let Some(refusal) = agreed.refusal(data.build()) {
                tracing::error!(refusal, "this build is too old for the cluster");
                fatal.send_if_modified(|reason| reason.is_none() && reason.replace(refusal).is_none());
                std::future::pending::<()>().await;
            }
            format.raise(agreed.entry_format);
            while !agreed.version.is_empty() && !is_recorded(&data, &agreed) {
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

/// Whether it need not be tried again: the directory of a new cluster is not whole at once.
fn is_recorded(data: &DataDir, agreed: &Agreed) -> bool {
    data.record_agreed(agreed).unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "the cluster's version is not written down");
        true
    })
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

    fn member(id: u64, version: &str, entry_format: u8) -> (u64, MemberSpec) {
        (id, MemberSpec { id, version: version.into(), entry_format, ..MemberSpec::default() })
    }

    fn agreed(version: &str, entry_format: u8) -> Agreed {
        Agreed { version: version.into(), entry_format }
    }

    fn build(version: &str, entry_format: u8) -> Build {
        Build { version: version.into(), entry_format }
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
    fn an_older_build_is_refused() {
        let agreed = agreed("0.2.0", 2);
        assert_eq!(agreed.refusal(&build("0.2.0", 2)), None);
        assert_eq!(agreed.refusal(&build("0.3.0", 3)), None);
        assert!(agreed.refusal(&build("0.1.9", 2)).unwrap().contains("this is version 0.1.9"));
        assert!(agreed.refusal(&build("0.2.0", 1)).unwrap().contains("reads up to 1"));
        assert_eq!(Agreed::default().refusal(&build("0.0.1", 1)), None);
    }

    #[test]
    fn the_format_only_rises_and_never_above_what_is_known() {
        let format = EntryFormat::default();
        assert_eq!(format.get(), *ENTRY_FORMATS.start());
        format.raise(200);
        assert_eq!(format.get(), *ENTRY_FORMATS.end());
        format.raise(0);
        assert_eq!(format.get(), *ENTRY_FORMATS.end());
    }
}
