//! Watchers that go on at another member wherever theirs is lost.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use coracle_proto::store::{EventType, WatchRequest};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use tonic::Code;

use super::{
    checker::{Change, Event, Watched},
    clients::{COLLECTION, Content, Shared, read_all},
    members::MEMBERS,
};

/// Until a watch must have begun.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(2);
/// A watch without a word for so long is tried elsewhere: its member may stand still. Progress comes every 2 s.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Before a lost watch is tried elsewhere.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a watch has ended.
enum Ended {
    /// It has seen the target.
    Target,
    /// It has to read anew.
    Expired,
    Lost,
}

/// Watches from a revision on until the target is seen, by gRPC or by REST, beginning at one member.
pub async fn watcher(shared: Arc<Shared>, number: usize, from: u64, rest: bool) {
    let door = if rest { "REST" } else { "gRPC" };
    let name = format!("watcher {number} ({door})");
    let mut watched = Watched { name, from, to: from, ..Watched::default() };
    for member in (number..).map(|number| number % MEMBERS) {
        if reached(&shared, &watched) {
            break;
        }
        let ended = match rest {
            true => rest_watch(&shared, member, &mut watched).await,
            false => grpc_watch(&shared, member, &mut watched).await,
        };
        match ended {
            Ok(Ended::Target) => break,
            Ok(Ended::Expired) => {
                if let Ok(answer) = read_all(&shared, member).await {
                    watched.gaps.push((watched.to, answer.revision));
                    watched.to = answer.revision;
                }
            }
            Ok(Ended::Lost) | Err(_) => {}
        }
        sleep(PAUSE).await;
    }
    shared.note_watched(watched);
}

fn reached(shared: &Shared, watched: &Watched) -> bool {
    let target = shared.target.load(Ordering::Relaxed);
    target > 0 && watched.to >= target
}

/// Each transaction of the clients has one write, so a revision is complete with its event.
fn note(watched: &mut Watched, revision: u64, kind: EventType, content: &Content) -> Result<()> {
    let Some(register) = content.register() else { return Ok(()) };
    let change = match kind {
        EventType::Deleted => Change::Delete,
        _ => Change::Put(content.value().context("an object without a value")?),
    };
    watched.events.push(Event { revision, register, change });
    watched.to = watched.to.max(revision);
    Ok(())
}

async fn grpc_watch(shared: &Shared, member: usize, watched: &mut Watched) -> Result<Ended> {
    let mut store = shared.clients[member].store();
    let request =
        WatchRequest { resource: "configmaps".into(), namespace: "default".into(), after: Some(watched.to) };
    let mut answers = match timeout(BEGIN_TIMEOUT, store.client.watch(request)).await? {
        Ok(answers) => answers.into_inner(),
        Err(status) if status.code() == Code::OutOfRange => return Ok(Ended::Expired),
        Err(_) => return Ok(Ended::Lost),
    };
    loop {
        let answer = match timeout(SILENCE_MAX, answers.message()).await? {
            Ok(Some(answer)) => answer,
            Err(status) if status.code() == Code::OutOfRange => return Ok(Ended::Expired),
            Ok(None) | Err(_) => return Ok(Ended::Lost),
        };
        for event in &answer.events {
            let object = event.object.as_ref().context("an event without an object")?;
            note(watched, object.revision, event.r#type(), &serde_json::from_slice(&object.json)?)?;
        }
        watched.to = watched.to.max(answer.progress);
        if reached(shared, watched) {
            return Ok(Ended::Target);
        }
    }
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

async fn rest_watch(shared: &Shared, member: usize, watched: &mut Watched) -> Result<Ended> {
    let rest = timeout(BEGIN_TIMEOUT, shared.clients[member].rest()).await??;
    let path = format!("{COLLECTION}?watch=true&resourceVersion={}", watched.to);
    let (status, mut body) = timeout(BEGIN_TIMEOUT, rest.send("GET", &path, Vec::new())).await??;
    match status {
        200 => {}
        410 => return Ok(Ended::Expired),
        _ => return Ok(Ended::Lost),
    }
    let mut text = Vec::new();
    while let Some(frame) = timeout(SILENCE_MAX, body.frame()).await? {
        text.extend_from_slice(&frame?.into_data().unwrap_or_default());
        let complete = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let rest = text.split_off(complete);
        for line in
            std::mem::replace(&mut text, rest).split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
        {
            let line: Line = serde_json::from_slice(line)?;
            let kind = match line.kind.as_str() {
                "ADDED" => EventType::Added,
                "MODIFIED" => EventType::Modified,
                "DELETED" => EventType::Deleted,
                "ERROR" => return Ok(Ended::Expired),
                other => bail!("an event of type {other}"),
            };
            let content: Content = serde_json::from_value(line.object)?;
            note(watched, content.revision().context("an object without a revision")?, kind, &content)?;
        }
        if reached(shared, watched) {
            return Ok(Ended::Target);
        }
    }
    Ok(Ended::Lost)
}
