//! The change of authorities by overlapping bundles: everybody trusts the new one, then certificates are of the new
//! one, then the old one is trusted no more. Each step begins when everybody goes by the one before it.

use std::{sync::Arc, time::Duration};

use coracle_api::Storage;
use coracle_objects::View;
use coracle_pki::{Authorities, AuthorityName, PkiError};
use coracle_storage::ReplicatedStorage;
use jiff::Timestamp;
use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{
    Credentials,
    authority_state::{self, NODES, TRUSTS, TrustState},
};
use crate::{authority_files, data_dir::DataDir};

/// How often the leader looks whether the next step may begin.
const PERIOD: Duration = Duration::from_millis(500);

/// Before what did not succeed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Why a change of authorities does not begin.
#[derive(Debug, Error)]
pub enum ChangeRefused {
    #[error("a change of authorities is under way; see `coracle cluster ca`")]
    UnderWay,
    #[error("name what to change: the peer, serving or client authority, or all")]
    Nothing,
    #[error("this control node has not taken over the last change yet; try again in a moment")]
    Behind,
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("the change was not made: {0}")]
    NotWritten(String),
}

/// What a change still waits for.
#[derive(Debug, Default)]
pub struct Waiting {
    pub members: Vec<u64>,
    pub nodes: Vec<String>,
    /// How many there are that the change concerns.
    pub members_all: usize,
    pub nodes_all: usize,
}

impl Waiting {
    /// For everybody to go by the present generation.
    pub fn read(storage: &ReplicatedStorage, view: &View, trust: &TrustState) -> Self {
        // Nodes and the peer authority have nothing to do with each other.
        let for_nodes = trust.changing.keys().any(|name| *name != AuthorityName::Peer);
        let (nodes, nodes_all) = match for_nodes {
            true => (authority_state::nodes_behind(view, trust.generation), view.count(NODES)),
            false => (vec![], 0),
        };
        let (all, members) = authority_state::members_behind(view, &storage.status(), trust.generation);
        Self { members, nodes, members_all: all.len(), nodes_all }
    }
}

/// Begins to change authorities. Only the leader can.
pub async fn begin(
    storage: &ReplicatedStorage,
    credentials: &Credentials,
    cluster_id: &str,
    names: &[AuthorityName],
    grace: Duration,
) -> Result<(), ChangeRefused> {
    let view = storage.view();
    let trust = TrustState::read(&view).unwrap_or_default();
    if !trust.changing.is_empty() {
        return Err(ChangeRefused::UnderWay);
    }
    if names.is_empty() {
        return Err(ChangeRefused::Nothing);
    }
    let mut authorities = Authorities::clone(&credentials.authorities());
    if authorities.generation != trust.generation {
        return Err(ChangeRefused::Behind);
    }
    authorities.begin_change(names, cluster_id)?;
    write(storage, &view, &authorities, grace.as_secs()).await.map_err(ChangeRefused::NotWritten)?;
    tracing::info!(?names, "a change of authorities begins");
    Ok(())
}

/// Takes the steps, as long as this member leads.
pub async fn run(storage: &ReplicatedStorage, credentials: &Credentials) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let view = storage.view();
        let Some(trust) = TrustState::read(&view).filter(|trust| !trust.changing.is_empty()) else {
            continue;
        };
        let waiting = Waiting::read(storage, &view, &trust);
        let patient = Timestamp::now().as_second() - trust.began_unix < trust.grace_seconds as i64;
        if !waiting.members.is_empty() || patient && !waiting.nodes.is_empty() {
            continue;
        }
        let mut authorities = Authorities::clone(&credentials.authorities());
        if authorities.generation != trust.generation {
            continue;
        }
        authorities.next_stage();
        match write(storage, &view, &authorities, trust.grace_seconds).await {
            Ok(()) => tracing::info!(
                changing = ?authorities.changing(),
                left_behind = ?waiting.nodes,
                "the change of authorities goes on"
            ),
            Err(error) => tracing::warn!(error, "the change of authorities does not go on yet"),
        }
    }
}

async fn write(
    storage: &ReplicatedStorage,
    view: &View,
    authorities: &Authorities,
    grace_seconds: u64,
) -> Result<(), String> {
    let transaction = authority_state::write(view, authorities, Timestamp::now(), grace_seconds);
    match storage.propose(transaction).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(refusal)) => Err(format!("{refusal:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// What every member does: takes over the agreed authorities, and says so. For as long as the process lives.
pub async fn follow(storage: ReplicatedStorage, credentials: Arc<Credentials>, data: Arc<DataDir>) {
    loop {
        let (_, mut events) = storage.hub().follow();
        loop {
            if !take_over(&storage, &credentials, &data).await {
                sleep(RETRY_PAUSE).await;
                continue;
            }
            let changed = loop {
                match events.next().await {
                    Ok(events) if events.iter().any(|event| event.object.key.resource.as_str() == TRUSTS) => {
                        break true;
                    }
                    Ok(_) => {}
                    Err(_) => break false,
                }
            };
            if !changed {
                break;
            }
        }
    }
}

/// Whether nothing is left to be done.
async fn take_over(storage: &ReplicatedStorage, credentials: &Credentials, data: &DataDir) -> bool {
    let view = storage.view();
    let generation = TrustState::generation(&view);
    if generation == 0 {
        return true;
    }
    if credentials.authorities().generation < generation {
        // Sealed where this member lacks the key; it is on its way then.
        let Some(agreed) = authority_state::authorities(&view) else { return false };
        if let Err(error) = authority_files::save(&agreed, data).and_then(|()| credentials.replace(agreed)) {
            tracing::error!(%error, "the agreed authorities cannot be taken over");
            return false;
        }
        tracing::info!(generation, "authorities taken over");
    }
    match authority_state::announcement(&view, storage.member(), credentials.authorities().generation) {
        None => true,
        Some(announcement) => matches!(storage.propose(announcement).await, Ok(Ok(_))),
    }
}
