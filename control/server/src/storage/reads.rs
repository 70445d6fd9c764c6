//! The index from which on a read is linearizable.

use std::{future::Future, sync::Weak, time::Duration};

use coracle_api::Unavailable;
use coracle_proto::cluster::ReadIndexRequest;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{
    Shared,
    forwarding::{FORWARD_TIMEOUT, leader_client},
    leadership::{moved, wait_for_news},
};

/// Until a linearizable read must have its index.
pub const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a waiting reader is told its index.
pub type ReadReply = oneshot::Sender<Result<u64, Unavailable>>;

/// Gives waiting readers their index: all that wait share one.
pub async fn serve_reads(shared: Weak<Shared>, mut waiting: mpsc::Receiver<ReadReply>) {
    while let Some(first) = waiting.recv().await {
        let Some(shared) = shared.upgrade() else { return };
        let _asking = shared.asking.lock().await;
        let mut readers = vec![first];
        while let Ok(reader) = waiting.try_recv() {
            readers.push(reader);
        }
        let index = read_index(&shared).await;
        for reader in readers {
            let _ = reader.send(index.clone());
        }
    }
}

pub async fn read_index(shared: &Shared) -> Result<u64, Unavailable> {
    let deadline = Instant::now() + READ_TIMEOUT;
    let mut leading = shared.raft.leading();
    let mut reason = "no leader is known".to_owned();
    while Instant::now() < deadline {
        let seen = *leading.borrow_and_update();
        let tried = async {
            match seen.leader {
                Some(leader) if leader == shared.member => {
                    shared.raft.read_index().await.map_err(|error| error.to_string())
                }
                Some(leader) => read_index_there(shared, leader).await,
                None => Err("no leader is known".into()),
            }
        };
        let tried = tokio::select! {
            biased;
            tried = tried => tried,
            () = moved(leading.clone(), seen) => Err("the leader changed meanwhile".into()),
        };
        match tried {
            Ok(index) => return Ok(index),
            Err(why) => reason = why,
        }
        wait_for_news(&leading, seen, deadline).await;
    }
    Err(Unavailable(reason))
}

fn read_index_there(shared: &Shared, leader: u64) -> impl Future<Output = Result<u64, String>> + Send {
    let channel = shared.peers.channel(leader);
    async move {
        let channel =
            channel.ok_or_else(|| format!("the address of the leader, member {leader}, is not known"))?;
        let mut client = leader_client(channel);
        match timeout(FORWARD_TIMEOUT, client.read_index(ReadIndexRequest {})).await {
            Ok(Ok(response)) => Ok(response.into_inner().index),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err(format!("the leader, member {leader}, did not answer in time")),
        }
    }
}
