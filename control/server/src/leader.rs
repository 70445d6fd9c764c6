//! The leader's duties, begun when this member is elected and dropped when it no longer leads.

use std::{sync::Arc, time::Duration};

use coracle_api::{Admission, Storage, UserInfo};
use coracle_node_link::Links;
use coracle_raft::Role;
use coracle_storage::{
    ReplicatedStorage,
    encryption::{self, SecretBox},
    peers::MemberSpec,
    version,
};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    accounts::Accounts,
    bootstrap,
    certificates::{self, Credentials},
    claims, events,
    events::EventRecorder,
    membership::{self, keeper::Periods},
    planner_thread::{self, OnDuty},
    planning::Planning,
    plans,
};

/// Between two tries of a step without which leading cannot begin.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Before duties that ended by a bug are begun anew.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// What leading needs.
#[derive(Clone)]
pub struct Duties {
    pub storage: ReplicatedStorage,
    pub admission: Admission,
    pub links: Arc<Links>,
    pub recorder: EventRecorder,
    pub cluster_id: String,
    pub me: MemberSpec,
    /// The bundle of the serving authority is given to each namespace as `kube-root-ca.crt`.
    pub credentials: Arc<Credentials>,
    pub periods: Periods,
    pub secrets: Arc<SecretBox>,
    pub planning: Arc<Planning>,
}

/// Leads whenever this member is the leader, until raft has ended. No planner's thread outlives it.
pub async fn run(duties: Duties) {
    let mut leading = duties.storage.raft().leading();
    loop {
        let Ok(term) = leading.wait_for(|now| now.role == Role::Leader).await.map(|now| now.term) else {
            return;
        };
        tracing::info!(term, "leading");
        let mut tasks = JoinSet::new();
        let (on_duty, muster) = planner_thread::muster();
        tasks.spawn(lead(duties.clone(), on_duty));
        let lost =
            async { leading.wait_for(|now| now.role != Role::Leader || now.term != term).await.is_err() };
        let stopped = tokio::select! {
            stopped = lost => stopped,
            _ = tasks.join_next() => {
                // A duty ended, which only a bug makes it do: all are begun anew rather than one be missed in silence.
                tracing::error!(term, "the leader's duties ended and are begun anew");
                sleep(RESTART_PAUSE).await;
                false
            }
        };
        // Only when none of them runs any more, or one could open the links again.
        tasks.shutdown().await;
        duties.links.close_all();
        muster.dismissed().await;
        // Its thread may have begun to route after the links were ended.
        duties.links.routing.stop();
        tracing::info!(term, "no longer leading");
        if stopped {
            return;
        }
    }
}

async fn lead(duties: Duties, on_duty: OnDuty) {
    let storage = &duties.storage;
    // Until a read index of this term is applied, the local state may lack what earlier leaders acknowledged.
    while let Err(error) = storage.linearizable().await {
        tracing::debug!(%error, "waiting for the first read index of the term");
        sleep(RETRY_PAUSE).await;
    }
    while let Err(error) = bootstrap::ensure(storage, &duties.cluster_id, &duties.me).await {
        tracing::debug!(%error, "the first objects are not written yet");
        sleep(RETRY_PAUSE).await;
    }
    duties.links.open(&storage.view());
    let mut tasks = JoinSet::new();
    let spawned = duties.clone();
    tasks.spawn(planner_thread::run("controllers", on_duty.clone(), move || run_controllers(spawned)));
    let spawned = duties.clone();
    tasks.spawn(planner_thread::run("scheduler", on_duty.clone(), move || async move {
        let Duties { storage, admission, recorder, planning, .. } = &spawned;
        let own = admission.storage_of(storage.clone(), UserInfo::scheduler());
        plans::run_scheduler(storage.hub(), &own, recorder, &planning.scheduler).await;
    }));
    let spawned = duties.clone();
    tasks.spawn(planner_thread::run("node links", on_duty, move || async move {
        spawned.links.routing.run(&spawned.storage).await;
    }));
    let spawned = duties.clone();
    tasks.spawn(async move {
        let user = UserInfo::component(coracle_leader::monitor::ACCOUNT);
        let own = spawned.admission.storage_of(spawned.storage, user);
        coracle_node_link::monitor(&own, &spawned.links).await;
    });
    let spawned = duties.clone();
    tasks.spawn(async move {
        membership::keeper::run(&spawned.storage, &spawned.recorder, spawned.periods).await;
    });
    let spawned = duties.clone();
    tasks.spawn(async move { membership::endpoints::publish(&spawned.storage).await });
    let spawned = duties.clone();
    tasks.spawn(async move { claims::keep(&spawned.storage, &spawned.recorder).await });
    let spawned = duties.clone();
    tasks.spawn(async move { version::keep_raised(&spawned.storage).await });
    let spawned = duties.clone();
    tasks.spawn(async move { encryption::run_rotation(&spawned.storage, &spawned.secrets).await });
    let spawned = duties.clone();
    tasks.spawn(async move { certificates::run_change(&spawned.storage, &spawned.credentials).await });
    tasks.spawn(async move { events::sweep(&duties.storage).await });
    // None of them ends by itself: the first that does ends them all.
    tasks.join_next().await;
}

/// Runs the controllers, which begin anew whenever the bundle of the serving authority is another.
async fn run_controllers(duties: Duties) {
    let mut news = duties.credentials.news();
    loop {
        let bundle = duties.credentials.authorities().serving.bundle();
        let known = bundle.clone();
        let replaced = async {
            // The sender lives as long as the process.
            while duties.credentials.authorities().serving.bundle() == known {
                let _ = news.changed().await;
            }
        };
        let Duties { storage, admission, recorder, planning, links, .. } = &duties;
        let accounts = Accounts::new(storage.clone(), admission.clone());
        tokio::select! {
            () = plans::run_controllers(
                storage.hub(), accounts, recorder, &planning.controllers, &links.demands, bundle,
            ) => return,
            () = replaced => tracing::debug!("the controllers begin anew with another bundle"),
        }
    }
}
