//! Keeps a Node's status as its node described itself: whoever may write to it could have the scheduler believe anything.

use std::time::Duration;

use coracle_api::{Storage, write};
use coracle_leader::node_object;
use coracle_objects::Revision;
use coracle_proto::node::Hello;
use tokio::time::sleep;
use tonic::Status;

/// Between two looks at a Node, and the longest time between two where each finds something to put back.
const PERIOD: Duration = Duration::from_secs(10);
const PERIOD_MAX: Duration = Duration::from_secs(300);

/// When to look again: the later the more often the last look found something, since somebody else writes as well.
struct Pace(Duration);

impl Pace {
    fn after(&mut self, corrected: bool) -> Duration {
        self.0 = if corrected { (self.0 * 2).min(PERIOD_MAX) } else { PERIOD };
        self.0
    }
}

/// Puts back what the node said of itself, as long as it is linked.
pub async fn keep(storage: &impl Storage, hello: &Hello) -> Result<(), Status> {
    let key = node_object::key(&hello.name);
    let mut pace = Pace(PERIOD);
    let mut pause = PERIOD;
    // As the Node was when it said what the node says.
    let mut agreed: Revision = 0;
    loop {
        sleep(pause).await;
        let mut seen = 0;
        let written = write(storage, |view| {
            let object = view.get(&key)?;
            seen = object.revision;
            if seen == agreed { None } else { node_object::correction(object, hello) }
        })
        .await;
        let corrected = match written {
            Ok(None) => {
                agreed = seen;
                false
            }
            Ok(Some(_)) => {
                tracing::info!(
                    node = hello.name,
                    "the status of a Node was not what its node says, and is put right"
                );
                true
            }
            Err(error) => {
                tracing::debug!(node = hello.name, %error, "the status of a Node is not put right yet");
                true
            }
        };
        pause = pace.after(corrected);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_again_and_again_is_not_answered_each_time() {
        let mut pace = Pace(PERIOD);
        let seconds: Vec<u64> = (0..7).map(|_| pace.after(true).as_secs()).collect();
        assert_eq!(seconds, [20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(pace.after(false), PERIOD);
    }
}
